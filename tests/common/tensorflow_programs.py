"""Programs that differentiate in TensorFlow: by tapes, by accumulators, eagerly and in graphs."""

import tensorflow as tf

#: Eagerly, and within a `tf.function`.
WAYS = {"eager": lambda function: function, "graph": lambda function: tf.function(function)}


def gradient(function, *, by=0, seed=None):
    """The gradient by one argument, by a tape."""

    def run(*args):
        with tf.GradientTape() as tape:
            tape.watch(args[by])
            y = function(*args)
        return tape.gradient(y, args[by], output_gradients=seed)

    return run


def jacobian(function, *, pfor=True):
    """The Jacobian by the first argument."""

    def run(*args):
        with tf.GradientTape(persistent=not pfor) as tape:
            tape.watch(args[0])
            y = function(*args)
        return tape.jacobian(y, args[0], experimental_use_pfor=pfor)

    return run


def pushed(function, tangent):
    """The Jacobian-vector product by the first argument, by an accumulator."""

    def run(*args):
        with tf.autodiff.ForwardAccumulator(args[0], tangent) as accumulator:
            y = function(*args)
        return accumulator.jvp(y)

    return run


def rows(x):
    return x.shape[:1], "float64"


def like_input(x):
    return x.shape, x.dtype
