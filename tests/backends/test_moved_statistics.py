"""What training has moved belongs to a module or layer of a bridge: its state_dict, its saved weights, its deep copies."""

import copy

import numpy as np
import pytest

import gradbridge as gb

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

X = torch.linspace(-2, 2, 24, dtype=torch.float64).reshape(8, 3)


def normed():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()


def in_torch():
    return gb.bridge(normed(), mode="train")


def in_flax():
    pytest.importorskip("flax")
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(3, 4, rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)
            self.drop = nnx.Dropout(0.0, rngs=rngs)

        def __call__(self, x):
            return self.drop(self.norm(self.linear(x)))

    return gb.bridge(Net(nnx.Rngs(0)), mode="train")


def in_keras():
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("Keras runs on another backend")
    layers = [keras.layers.Dense(4, name="dense"), keras.layers.BatchNormalization(name="norm")]
    return gb.bridge(keras.Sequential([keras.Input((3,)), *layers], name="net"), mode="train")


@pytest.mark.parametrize("make", [in_torch, in_flax, in_keras])
def test_a_checkpoint_and_a_deep_copy_have_the_statistics_of_their_moment(make):
    module = make().as_module()
    nested = nn.Sequential(nn.Identity(), module)
    nested(X + 1)
    best, saved = copy.deepcopy(nested), copy.deepcopy(nested.state_dict())
    expected = nested.eval()(X)
    nested.train()(5 * X)
    assert not torch.allclose(nested.eval()(X), expected)
    torch.testing.assert_close(best.eval()(X), expected)
    other = nn.Sequential(nn.Identity(), make().as_module())
    assert str(other.load_state_dict(saved)) == "<All keys matched successfully>"
    torch.testing.assert_close(other.eval()(X), expected)
    torch.testing.assert_close(nested.train()(X), other.train()(X))


def test_a_native_modules_state_dict_is_taken():
    native = normed()
    native(X + 1)
    module = in_torch().as_module()
    assert set(module.state_dict()) == set(native.state_dict())
    module.load_state_dict(native.state_dict())
    torch.testing.assert_close(module.eval()(X), native.eval()(X))
    native.load_state_dict(module.state_dict())


def test_what_is_missing_is_named():
    module = in_torch().as_module()
    weights = {name: p.detach() for name, p in module.named_parameters()}
    with pytest.raises(RuntimeError, match=r"Missing key.*1\.running_mean"):
        module.load_state_dict(weights)
    module.load_state_dict(weights, strict=False)


def test_a_bridge_that_moves_nothing_has_its_weights_alone():
    assert set(gb.bridge(normed()).as_module().state_dict()) == {"0.weight", "0.bias", "1.weight", "1.bias"}


@pytest.mark.parametrize("make", [in_torch, in_flax])
def test_saved_weights_and_copies_of_a_keras_layer_have_them(make, tmp_path):
    keras = pytest.importorskip("keras")
    x = X.numpy()

    def network():
        net = keras.Sequential([keras.Input((3,)), make().as_layer(dtype="float64", name="guest")])
        net.compile(keras.optimizers.SGD(0.0), "mse")
        return net

    net = network()
    net.fit(x + 1, np.zeros((8, 4)), verbose=0)
    expected = net.predict(x, verbose=0)
    net.save_weights(tmp_path / "net.weights.h5")
    layer = copy.deepcopy(net.layers[0])
    net.fit(5 * x, np.zeros((8, 4)), verbose=0)
    assert not np.allclose(net.predict(x, verbose=0), expected)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(layer(x)), expected, rtol=1e-6)
    other = network()
    other.load_weights(tmp_path / "net.weights.h5")
    np.testing.assert_allclose(other.predict(x, verbose=0), expected, rtol=1e-6)
