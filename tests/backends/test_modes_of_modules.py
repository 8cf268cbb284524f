"""`f.as_module()` of a bridge in train mode: `.train()` and `.eval()` are those of torch, whatever the guest is."""

import copy
import pickle
from contextlib import nullcontext

import autograd.numpy as anp
import numpy as np
import pytest

import gradbridge as gb
from gradbridge.errors import Unsupported

torch = pytest.importorskip("torch")

from third_party import ByHand  # noqa: E402
from torch import nn  # noqa: E402
from torch_modules import assert_equal, gradients, x64  # noqa: E402

Y64 = 3 * x64 + 1


def normed():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    return net.double()


class Walks(nn.Module):
    """Of the user's own code: what it drops is not to be seen from its layers, and it counts its calls."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2).double()
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        if self.training:
            self.calls += 1
        return nn.functional.dropout(self.layer(x), 0.5, self.training) + self.calls


@pytest.mark.parametrize("made", [normed, Walks])
def test_after_eval_a_module_evaluates_with_the_statistics_that_its_training_has_moved(made):
    native = made()
    module = gb.bridge(native, mode="train").as_module()
    net = nn.Sequential(nn.Identity(), module)  # whose own .eval() reaches its parts
    twin = copy.deepcopy(native)
    for x in (x64, Y64):
        for model in (net, twin):
            model.train()
            model(x), model(x + 1)
        net.eval(), twin.eval()
        assert_equal([net(x)], [twin(x)])
        assert_equal(gradients(net(x).square().sum(), net), gradients(twin(x).square().sum(), twin), 1e-11)
        assert_equal([copy.deepcopy(module)(x)], [twin(x)])
    assert_equal([net.float()(x64.float())], [twin.float()(x64.float())], 1e-6)


def test_train_goes_back_and_a_bridge_in_eval_mode_stays_in_it():
    native = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)).double().eval()
    still, noisy = gb.bridge(native).as_module(), gb.bridge(native, mode="train", seed=3).as_module()
    linear = native[0](x64)
    for module in (still.train(), still.eval(), noisy.eval()):
        assert_equal([module(x64)], [linear])
    masked = noisy.train()(x64)
    assert ((masked == 0) | torch.isclose(masked, 2 * linear)).all()
    assert (masked == 0).any()
    assert "mode train, noise frozen" in repr(noisy)
    assert "mode train" not in repr(noisy.eval())
    assert "0.bias" not in repr(still)
    noisy.training = True  # as some programs set it
    assert_equal([noisy(x64)], [masked])


def test_a_pickled_module_goes_on_with_statistics_of_its_own():
    module, native = gb.bridge(normed(), mode="train").as_module(), normed()
    native.load_state_dict(module.state_dict(), strict=False)
    module(x64), native(x64), module.eval()
    loaded = pickle.loads(pickle.dumps(module))
    loaded.train()(Y64), native(Y64)
    assert_equal([loaded.eval()(x64)], [native.eval()(x64)])
    assert not torch.equal(module(x64), loaded(x64))


def within_64_bits(f):
    """What JAX's own users need for float64; for others nothing."""
    if f.adapter.framework.host != "jax":
        return nullcontext()
    from gradbridge_jax.isolation import enable_x64

    return enable_x64(True)


def nnx_module():
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.layer, self.norm = nnx.Linear(3, 2, rngs=rngs), nnx.BatchNorm(2, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.drop(self.norm(self.layer(x)))

    def evaluated(model, x):
        model.eval()
        return model(x)

    return {"model": Net()}, evaluated, {}


def equinox_module():
    eqx = pytest.importorskip("equinox")
    import jax

    class Net(eqx.Module):
        layer: eqx.nn.Linear
        norm: eqx.nn.BatchNorm
        drop: eqx.nn.Dropout

        def __init__(self):
            self.layer, self.drop = eqx.nn.Linear(3, 2, key=jax.random.key(0)), eqx.nn.Dropout(0.5)
            self.norm = eqx.nn.BatchNorm(2, "batch", mode="ema")

        def __call__(self, x, state, key=None):
            y, state = self.norm(self.layer(x), state)
            return self.drop(y, key=key), state

    def evaluated(pair, x):
        model = eqx.nn.inference_mode(pair[0])
        return jax.vmap(lambda x: model(x, pair[1])[0], axis_name="batch")(x)

    net, state = eqx.nn.make_with_state(Net)()
    return {"model": net, "state": state, "vmap": True}, evaluated, {}


def linen_module():
    linen = pytest.importorskip("flax.linen")
    import jax

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x, train=True):
            x = linen.BatchNorm(use_running_average=not train)(linen.Dense(2)(x))
            return linen.Dropout(0.5, deterministic=not train)(x)

    variables = Net().init(jax.random.key(0), np.ones((2, 3)), train=False)
    return {"model": Net(), "params": variables}, lambda model, x: model(x, train=False), {"train": False}


def keras_model():
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("Keras' other backends have no train mode here")
    layers = [keras.layers.Dense(2), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)]
    model = keras.Sequential([keras.Input((3,)), *layers])
    return {"model": model}, lambda model, x: model(x, training=False), {}


def tensorflow_module():
    tf = pytest.importorskip("tensorflow")

    class Centred(tf.Module):
        def __init__(self):
            self.w = tf.Variable(np.linspace(-1.0, 1.0, 6).reshape(3, 2))
            self.mean = tf.Variable(np.zeros(2), trainable=False)

        def __call__(self, x, training):
            y = x @ self.w
            if training:
                self.mean.assign(0.9 * self.mean + 0.1 * tf.reduce_mean(y, 0))
            return y - self.mean

    return {"model": Centred()}, lambda model, x: model(x, False), {}


@pytest.mark.parametrize("make", [nnx_module, equinox_module, linen_module, keras_model, tensorflow_module])
def test_guests_of_the_frameworks_are_evaluated_as_their_own_users_evaluate_them(make):
    options, evaluated, said = make()
    f = gb.bridge(**options, mode="train")
    module, seen = f.as_module(dtype="float64"), []
    for x in (x64, Y64):
        module.train()(x)
        y = module.eval()(x64, **said)
        own = f.model(f.params)
        with within_64_bits(f):
            expected = evaluated(own, x64.numpy())
        np.testing.assert_allclose(y.detach(), np.asarray(expected), rtol=1e-12, atol=1e-14)
        seen.append(y)
    assert not torch.allclose(*seen)  # by the statistics, which the second round has moved


def test_in_eval_mode_a_bridge_is_one_for_any_host_and_shares_what_training_moves():
    native = normed()
    f = gb.bridge(native, mode="train")
    g = f.in_eval_mode()
    before = g(f.params, x64.numpy())
    with torch.no_grad():
        np.testing.assert_allclose(before, native.eval()(x64), rtol=1e-12)
    f(f.params, Y64.numpy())
    after = g(f.params, x64.numpy())
    assert not np.allclose(before, after)
    assert np.array_equal(after, g(f.params, x64.numpy()))
    native.train()(Y64)
    np.testing.assert_allclose(after, native.eval()(x64).detach(), rtol=1e-12)
    assert g.in_eval_mode() is g


def test_a_function_has_no_mode_and_a_backend_that_says_nothing_is_refused():
    params = {"a": np.ones(3)}
    for backend in ("autograd", "numpy"):
        f = gb.bridge(lambda p, x: anp.sin(p["a"] * x), params=params, backend=backend, mode="train")
        module = f.as_module()
        assert torch.equal(module(x64), module.eval()(x64))
    silent = gb.bridge(ByHand(3), mode="train").as_module()
    assert torch.equal(silent(x64), x64.sum(1))
    with pytest.raises(Unsupported, match="bridge it with mode='eval'"):
        silent.eval()
    gb.bridge(ByHand(3)).as_module().eval()
