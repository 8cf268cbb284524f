"""What is wrong with a class of five methods over TensorFlow is refused or told, and laid at the method that does it."""

import copy
import os
import warnings

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad

pytest.importorskip("seldonian")
tf = pytest.importorskip("tensorflow")
if os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
    pytest.skip("Keras runs on another backend here", allow_module_level=True)
from tensorflow_classes import THETA, Anew, Net, X, layers, truth, variant  # noqa: E402

from gradbridge.errors import (  # noqa: E402
    AuditError,
    GradbridgeWarning,
    GuestError,
    HigherOrderError,
    NotDifferentiableError,
    OutputError,
    ParamsShapeError,
    UnknownModelError,
)


def _untaped(self, X, **kwargs):
    return self.tensorflow_model(X)


def _outside(self, X, **kwargs):
    with tf.GradientTape() as self.tape:
        predictions = self.tensorflow_model(X)
    return predictions * 2.0


def _numpy(self, X, **kwargs):
    return Net.forward_pass(self, X).numpy()


@pytest.mark.parametrize(
    ("forward", "error", "words"),
    [
        (_untaped, NotDifferentiableError, "does not set self.tape"),
        (_outside, NotDifferentiableError, "its tape has not recorded"),
        (_numpy, OutputError, "must return a tf.Tensor"),
        (lambda self, X, **kwargs: None, OutputError, "returned None"),
    ],
)
def test_a_forward_that_records_nothing_is_named(forward, error, words):
    model = variant(forward_pass=forward)()
    with pytest.raises(error, match=f"forward_pass of Variant .*{words}"):
        grad(lambda t: np.sum(model.predict(t, X)))(THETA)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: None, "returned None"),
        (lambda: [1.0], "must return a Keras model or a tf.Module, and returned a list"),
        (lambda: tf.keras.Sequential([layers.Dense(1)]), "it is not built"),
        (lambda: tf.keras.Sequential([layers.Input((3,)), layers.Flatten()]), "without trainable variables"),
    ],
)
def test_what_is_no_model_is_refused_where_it_is_made(made, words):
    with pytest.raises(UnknownModelError, match=f"create_model of Variant .*{words}"):
        variant(create_model=lambda self, **kwargs: made())()


class Hoards(Net):
    """Pulls back by the first run's tape, whichever run it is called for."""

    def backward_pass(self, v):
        self.first = getattr(self, "first", (self.tape, self.predictions))
        weights = self.tensorflow_model.trainable_weights
        gradients = self.first[0].gradient(self.first[1], weights, output_gradients=v)
        return onp.concatenate([g.numpy().ravel() for g in gradients])


def test_a_backward_of_another_run_is_refused():
    model = Hoards()
    gradient = grad(lambda t: np.sum(model.predict(t, X) ** 2))
    onp.testing.assert_allclose(gradient(THETA), grad(lambda t: np.sum(truth(t, X) ** 2))(THETA))
    with pytest.raises(AuditError, match="other predictions than those of its run"):
        gradient(3 * THETA)


def test_what_is_stopped_on_the_way_is_told():
    def forward_pass(self, X, **kwargs):
        with tf.GradientTape() as self.tape:
            hidden, out = self.tensorflow_model.layers[:2]
            return tf.squeeze(out(tf.stop_gradient(hidden(X))), -1)

    model = variant(forward_pass=forward_pass)()
    with pytest.warns(GradbridgeWarning, match="held constant"):
        assert not grad(lambda t: np.sum(model.predict(t, X)))(THETA)[:8].any()


def test_what_the_methods_cannot_give_is_refused():
    model = Net()
    with pytest.raises(NotDifferentiableError, match="backward_pass gives that of theta only"):
        grad(lambda X: np.sum(model.predict(THETA, X)))(X)
    with pytest.raises(HigherOrderError):
        grad(lambda t: np.sum(grad(lambda s: np.sum(model.predict(s, X)))(t)))(THETA)
    with pytest.raises(ParamsShapeError, match=r"theta of shape \(11,\), got \(12,\)"):
        model.predict(onp.ones(12), X)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_backward_pass_that_leaves_out_a_parameter_or_scales_is_refused(dtype):
    f = lambda model: lambda t: np.sum(model.predict(t, X) ** 2)
    grad(f(Anew(dtype=dtype)))(THETA)
    for place in range(4):
        drop = lambda parts, place=place: [0 * p if i == place else p for i, p in enumerate(parts)]
        with pytest.raises(AuditError, match="leaves out theta.*1 of 4 parameters"):
            grad(f(type("Drops", (Anew,), {"change": staticmethod(drop)})(dtype=dtype)))(THETA)
    scales = staticmethod(lambda parts: [1.02 * p for p in parts])
    with pytest.raises(AuditError, match="it is 1.02 times as large"):
        grad(f(type("Scales", (Anew,), {"change": scales})(dtype=dtype)))(THETA)


def _stopped(self, X, **kwargs):
    with tf.GradientTape(persistent=True) as self.tape:
        hidden, out = self.tensorflow_model.layers[:2]
        return tf.squeeze(out(tf.stop_gradient(hidden(X))), -1)


def _zeros_where_none(self, v):
    weights = self.tensorflow_model.trainable_weights
    parts = self.tape.gradient(self.predictions, weights, output_gradients=v)
    parts = [onp.zeros(w.shape) if x is None else x.numpy() for w, x in zip(weights, parts)]
    return onp.concatenate([x.ravel() for x in parts])


@pytest.mark.parametrize("more", [{}, {"backward_pass": _zeros_where_none}])
def test_what_is_stopped_on_the_way_is_told_once_whoever_writes_backward_pass(more):
    def descend(model):
        for i in range(3):
            grad(lambda t: np.sum(model.predict(t, X) ** 2))(THETA + 0.1 * i)

    model = variant(forward_pass=_stopped, **more)()
    with pytest.warns(GradbridgeWarning, match="held constant") as told:
        descend(model)
    assert sum(issubclass(w.category, GradbridgeWarning) for w in told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradbridgeWarning)
        descend(copy.deepcopy(model))


def test_a_failure_in_create_model_is_named():
    def create_model(self, **kwargs):
        model = tf.keras.Sequential([layers.Input((3,)), layers.Dense(1)])
        model.build((7,))
        return model

    with pytest.raises(GuestError, match="create_model of Variant failed: ValueError"):
        variant(create_model=create_model)()
