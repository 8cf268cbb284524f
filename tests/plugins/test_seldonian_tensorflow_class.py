"""Classes written for the engine's TensorFlow base class work on ours, with the right gradients."""

import copy
import os
import pickle
import threading

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad, jacobian, make_vjp

pytest.importorskip("seldonian")
tf = pytest.importorskip("tensorflow")
if os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
    pytest.skip("Keras runs on another backend here", allow_module_level=True)
from seldonian.models.models import LinearRegressionModel  # noqa: E402
from seldonian.seldonian_algorithm import SeldonianAlgorithm  # noqa: E402
from seldonian.utils.tutorial_utils import make_synthetic_regression_dataset  # noqa: E402
from tensorflow_classes import THETA, Anew, Net, X, layers, truth  # noqa: E402

from gradbridge_seldonian import SupervisedTensorFlowBaseModel, supervised_spec  # noqa: E402


class Forward(Net):
    """With a forward of its own, which squeezes; its tape serves one gradient only."""

    def forward_pass(self, X, **kwargs):
        with tf.GradientTape() as tape:
            hidden, out = self.tensorflow_model.layers[:2]
            predictions = tf.squeeze(out(hidden(tf.convert_to_tensor(X))), -1)
        self.tape = tape
        return predictions


class All(Forward):
    """All of them, as the engine's own class has them, and theta backwards."""

    def get_model_params(self, *args):
        return onp.concatenate([p.numpy().ravel() for p in self.tensorflow_model.trainable_weights])[::-1]

    def update_model_params(self, theta, **kwargs):
        start, theta = 0, theta[::-1]
        for size, p in zip(self.param_sizes, self.tensorflow_model.trainable_weights):
            p.assign(tf.reshape(tf.convert_to_tensor(theta[start : start + size]), p.shape))
            start += size

    def zero_gradients(self):
        self.zeroed = True

    def backward_pass(self, v):
        weights = self.tensorflow_model.trainable_weights
        gradients = self.tape.gradient(self.predictions, weights, output_gradients=v)
        return onp.concatenate([g.numpy().ravel() for g in gradients])[::-1]


class Later(Net):
    """With the predictions handed in."""

    def backward_pass(self, predictions, external_grad):
        return super().backward_pass(predictions, external_grad)


CLASSES = [(Net, 1), (Forward, 1), (All, -1), (Later, 1)]


def program(f):
    return lambda t: np.sum(f(t, X) * f(2 * t, X + 1))


@pytest.mark.parametrize(("cls", "way"), CLASSES)
def test_values_jacobians_and_two_calls_in_one_program_are_right(cls, way):
    model, theta = cls(), THETA[::way]
    onp.testing.assert_allclose(model.predict(theta, X), truth(THETA, X), rtol=1e-13)
    expected = jacobian(truth)(THETA, X)[:, ::way]
    onp.testing.assert_allclose(jacobian(model.predict)(theta, X), expected, rtol=1e-12, atol=1e-14)
    expected = grad(program(truth))(THETA)[::way]
    onp.testing.assert_allclose(grad(program(model.predict))(theta), expected, rtol=1e-12)


@pytest.mark.parametrize(("cls", "way"), CLASSES)
def test_it_starts_at_the_models_own_weights_and_knows_their_sizes(cls, way):
    model = cls(hidden=4)
    weights = onp.concatenate([w.ravel() for w in model.tensorflow_model.get_weights()])
    assert model.param_sizes == model.get_param_sizes() == [12, 4, 4, 1]
    for start in (model.get_model_params(), model.initial_solution()):
        onp.testing.assert_array_equal(start[::way], weights)
    onp.testing.assert_allclose(model.predict(start, X), model.tensorflow_model(X), rtol=1e-13)


def test_pullbacks_in_any_order_from_six_threads_give_what_each_alone_would():
    model, wrong = Net(), []
    points = [(THETA * k, X + k) for k in range(1, 5)]
    expected = [make_vjp(truth)(*point)[0](onp.ones(6)) for point in points]

    def work(seed):
        order = onp.random.default_rng(seed).permutation(4)
        pulls = {i: make_vjp(model.predict)(*points[i])[0] for i in order}
        wrong.extend(i for i in order[::-1] if not onp.allclose(pulls[i](onp.ones(6)), expected[i], 1e-12))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


class Parts(Net):
    """Refers to the layers of its model by attributes of its own, and keeps what a run has made."""

    def create_model(self, **kwargs):
        model = super().create_model(**kwargs)
        self.hidden, self.others = model.layers[0], {"out": [model.layers[1]]}
        return model

    def forward_pass(self, X, **kwargs):
        with tf.GradientTape(persistent=True) as self.tape:
            self.activations = self.hidden(tf.convert_to_tensor(X))
            return tf.squeeze(self.others["out"][0](self.activations), -1)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_after_a_gradient_are_whole_and_apart(copied):
    model = Parts()
    grad(program(model.predict))(THETA)
    twin, start = copied({"model": model, "start": model.get_model_params}), model.get_model_params()
    assert twin["start"].__self__ is twin["model"]
    twin = twin["model"]
    assert twin.hidden is twin.tensorflow_model.layers[0] is not model.hidden
    onp.testing.assert_array_equal(twin.get_model_params(), start)
    onp.testing.assert_allclose(
        grad(program(twin.predict))(2 * THETA), grad(program(truth))(2 * THETA), rtol=1e-12
    )
    onp.testing.assert_array_equal(model.get_model_params(), start)


class Noisy(SupervisedTensorFlowBaseModel):
    """Masks and batch statistics, in train mode on purpose."""

    def create_model(self, **kwargs):
        tf.keras.utils.set_random_seed(0)
        dtype = "float64"
        return tf.keras.Sequential(
            [
                layers.Input((3,), dtype=dtype),
                layers.Dense(8, activation="tanh", dtype=dtype),
                layers.Dropout(0.5, dtype=dtype),
                layers.BatchNormalization(dtype=dtype),
                layers.Dense(1, dtype=dtype),
                layers.Reshape((), dtype=dtype),
            ]
        )

    def forward_pass(self, X, **kwargs):
        with tf.GradientTape(persistent=True) as self.tape:
            return self.tensorflow_model(tf.convert_to_tensor(X), training=True)


def test_a_replay_draws_the_masks_of_its_value_and_moves_no_statistics():
    model = Noisy()
    theta, mean = model.initial_solution(), model.tensorflow_model.layers[2].moving_mean
    f = lambda t: np.sum(model.predict(t, X) ** 2)
    assert f(theta) == f(theta)
    pull, _ = make_vjp(f)(theta)
    before = mean.numpy()
    f(2 * theta)
    moved = mean.numpy()
    gradient, u = pull(1.0), onp.random.default_rng(1).normal(size=theta.size)
    assert not onp.array_equal(before, moved)
    onp.testing.assert_array_equal(mean.numpy(), moved)
    assert onp.isclose(gradient @ u, (f(theta + 1e-6 * u) - f(theta - 1e-6 * u)) / 2e-6, rtol=1e-6)


def test_a_module_and_an_embedding_and_a_frozen_layer_have_gradients():
    class Module(tf.Module):
        def __init__(self):
            super().__init__()
            self.w, self.b = tf.Variable(onp.ones((3, 1))), tf.Variable(onp.zeros(1))

        def __call__(self, x):
            return tf.squeeze(tf.tanh(x @ self.w + self.b), -1)

    class Plain(SupervisedTensorFlowBaseModel):
        def create_model(self, **kwargs):
            return Module()

    # tf.Module sorts its variables by their attributes' names: b, then w.
    loss = lambda f: lambda t: np.sum(f(t) ** 2)
    model = copy.deepcopy(Plain())
    expected = grad(loss(lambda t: np.tanh(X @ t[1:] + t[0])))(THETA[:4])
    onp.testing.assert_allclose(grad(loss(lambda t: model.predict(t, X)))(THETA[:4]), expected, rtol=1e-12)

    class Words(SupervisedTensorFlowBaseModel):
        def create_model(self, **kwargs):
            table = [
                layers.Input((2,), dtype="int32"),
                layers.Embedding(5, 2, dtype="float64"),
                layers.Flatten(),
            ]
            return tf.keras.Sequential([*table, layers.Lambda(lambda h: tf.reduce_sum(h * h, -1))])

    words, t = onp.array([[0, 1], [2, 3], [3, 3]]), onp.linspace(-1, 1, 10)
    expected = grad(lambda t: np.sum(t.reshape(5, 2)[words] ** 2))(t)
    found = grad(lambda t: np.sum(Words().predict(t, words)))(t)
    onp.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)

    class Frozen(Net):
        def create_model(self, **kwargs):
            model = super().create_model(**kwargs)
            model.layers[0].trainable = False
            return model

    frozen = Frozen()
    assert frozen.param_sizes == [2, 1]
    hidden = frozen.tensorflow_model.layers[0](X).numpy()
    found = grad(lambda t: np.sum(frozen.predict(t, X)))(onp.ones(3))
    onp.testing.assert_allclose(found, [*hidden.sum(0), 6.0], rtol=1e-12)


def test_the_engine_trains_it_as_it_does_its_own_line():
    class Line(SupervisedTensorFlowBaseModel):
        def create_model(self, **kwargs):
            dense = layers.Dense(1, dtype="float64")
            return tf.keras.Sequential(
                [layers.Input((1,), dtype="float64"), dense, layers.Reshape((), dtype="float64")]
            )

    onp.random.seed(0)  # noqa: NPY002, what the engine draws from
    data = make_synthetic_regression_dataset(num_points=200)
    solutions = []
    for model in (Line(), LinearRegressionModel()):
        spec = supervised_spec(
            data, model, ["Mean_Squared_Error <= 2.0"], [0.1], initial_solution=onp.zeros(2), num_iters=20
        )
        algorithm = SeldonianAlgorithm(spec)
        algorithm.run()
        solutions.append(algorithm.cs_result["candidate_solution"])
    onp.testing.assert_allclose(solutions[0], solutions[1][::-1], rtol=1e-9)


def test_a_forked_child_is_told_at_once_that_tensorflow_did_not_come_along(run_forking):
    lines = run_forking(
        """
        import tensorflow as tf
        from gradbridge_seldonian import SupervisedTensorFlowBaseModel
        class Net(SupervisedTensorFlowBaseModel):
            def create_model(self):
                return tf.keras.Sequential([tf.keras.layers.Input((500,)), tf.keras.layers.Dense(1)])
        net, X = Net(), np.ones((4, 500))
        here = net.predict(np.ones(501), X)
        print(forked(lambda: net.predict(np.ones(501), X)))
        """,
    )
    assert lines[0].startswith("ForkError: TensorFlow was started in process")


def _assigned(model):
    model.tensorflow_model.layers[0].kernel.assign(onp.ones((3, 2)))


def _shared(model):
    other = Anew()
    other.tensorflow_model = model.tensorflow_model
    other.predict(4 * THETA, X)


def _exchanged(model):
    model.tensorflow_model = Anew(hidden=5).tensorflow_model


@pytest.mark.parametrize("change", [_assigned, _shared, _exchanged])
def test_a_gradient_is_that_of_its_value_whatever_is_done_to_the_model_in_between(change):
    model, square = Anew(), lambda f: lambda t: np.sum(f(t, X) ** 2)
    for i in range(3):  # after those that are looked at
        grad(square(model.predict))(THETA + 0.1 * i)
    pull, _ = make_vjp(square(model.predict))(THETA)
    change(model)
    onp.testing.assert_allclose(pull(1.0), grad(square(truth))(THETA), rtol=1e-10)
