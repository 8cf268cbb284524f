"""Forward mode by the guest itself; and not where it would say something else than reverse mode."""

import threading

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad, make_jvp
from autograd.differential_operators import make_jvp_reversemode

import gradbridge as gb
from gradbridge.errors import CotangentMismatchError, GuestError, NotDifferentiableError

X = np.random.default_rng(0).normal(size=(5, 3))


def torch_net():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    return gb.bridge(
        torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)), dtype="float64"
    )


def jax_net():
    pytest.importorskip("jax")
    import jax.numpy as jnp

    return gb.bridge(
        lambda p, x: jnp.tanh(x @ p["w"] + p["b"]), params=parameters(), backend="jax", dtype="float64"
    )


def tensorflow_net():
    tf = pytest.importorskip("tensorflow")
    return gb.bridge(
        lambda p, x: tf.tanh(x @ p["w"] + p["b"]), params=parameters(), backend="tensorflow", dtype="float64"
    )


def parameters():
    rng = np.random.default_rng(1)
    return {"w": rng.normal(size=(3, 2)), "b": rng.normal(size=2)}


def directions(f):
    rng = np.random.default_rng(2)
    return rng.normal(size=f.layout.size), rng.normal(size=X.shape)


def labels(trace):
    return {step.bridge for step in trace.steps}


@pytest.fixture(params=[torch_net, jax_net, tensorflow_net], ids=["torch", "jax", "tensorflow"])
def f(request):
    return request.param()


def test_make_jvp_costs_one_forward_of_the_guests_own_forward_mode(f):
    t, _ = directions(f)
    make_jvp(lambda p: f(p, X))(f.params)(t)  # the first is compared with a backward
    with gb.trace() as trace:
        moved = make_jvp(lambda p: f(p, X))(f.params)(t)[1]
    assert trace.counts["backward"] == 0
    assert any("JVP" in label for label in labels(trace))
    assert not any("gradient of" in label for label in labels(trace))
    truth = f.jacobian(f.params, X, strategy="loop") @ t
    np.testing.assert_allclose(moved, truth, rtol=0, atol=1e-13 * max(1, np.abs(truth).max()))


def test_it_equals_the_reverse_mode_twice(f):
    t, _ = directions(f)
    one = make_jvp(lambda p: f(p, X))(f.params)(t)[1]
    np.testing.assert_allclose(
        one, make_jvp_reversemode(lambda p: f(p, X))(f.params)(t), rtol=1e-12, atol=1e-13
    )


def test_params_and_input_move_together(f):
    t, u = directions(f)
    of_params, of_x = f.jacobian(f.params, X, wrt=(0, 1), strategy="loop")
    moved = f.jvp(f.params, X, tangent=(t, u), wrt=(0, 1))
    np.testing.assert_allclose(moved, of_params @ t + np.tensordot(of_x, u, 2), rtol=1e-12, atol=1e-13)


def test_a_jacobian_by_tangents_is_one_batched_push(f):
    with gb.trace() as trace:
        found = f.jacobian(f.params, X, strategy="jvp")
    assert any("batched JVP" in label for label in labels(trace))
    assert not any("gradient of" in label for label in labels(trace))
    np.testing.assert_allclose(found, f.jacobian(f.params, X, strategy="loop"), rtol=1e-12, atol=1e-13)


def test_a_jvp_is_differentiated_again(f):
    t, _ = directions(f)
    v = np.random.default_rng(3).normal(size=(5, 2))

    def along(p):
        return anp.sum(v * make_jvp(lambda q: f(q, X))(p)(t)[1])

    hessian_t = make_jvp(grad(lambda p: anp.sum(v * f(p, X))))(f.params)(t)[1]
    np.testing.assert_allclose(grad(along)(f.params), hessian_t, rtol=1e-11, atol=1e-12)


def test_tangents_that_do_not_fit_are_refused(f):
    with pytest.raises(CotangentMismatchError, match="must be real and have its shape"):
        make_jvp(lambda p: f(p, X))(f.params)(np.ones(3))


def test_chunks_are_pushed_one_by_one():
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(3, 2)
    whole = gb.bridge(model, dtype="float64")
    chunked = gb.bridge(model, dtype="float64", rows_per_chunk=2)
    t, u = directions(whole)
    for tangent, wrt in ((t, 0), (u, 1), ((t, u), (0, 1))):
        np.testing.assert_allclose(
            chunked.jvp(whole.params, X, tangent=tangent, wrt=wrt),
            whole.jvp(whole.params, X, tangent=tangent, wrt=wrt),
            rtol=1e-13,
            atol=1e-14,
        )


def test_an_integer_input_does_not_move():
    torch = pytest.importorskip("torch")
    f = gb.bridge(torch.nn.Embedding(4, 2), dtype="float64")
    with pytest.raises(NotDifferentiableError):
        f.jvp(f.params, np.array([0, 3]), tangent=np.ones(2), wrt=1)


def agrees(function, backend, x, t):
    """J t against the loop of backwards; and whether the guest pushed it itself."""
    q = gb.primitive(backend=backend)(function)
    with gb.trace() as trace:
        moved = q.bridge.jvp(np.empty(0), x, tangent=t, wrt=1)
    truth = q.bridge.jacobian(np.empty(0), x, wrt=1, strategy="loop") @ t
    np.testing.assert_allclose(moved, truth, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(
        q.bridge.jacobian(np.empty(0), x, wrt=1, strategy="jvp") @ t, truth, rtol=1e-12, atol=1e-14
    )
    return not any("gradient of" in label for label in labels(trace))


POINT, MOVE = np.array([0.3, 0.4]), np.array([1.0, -0.5])


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def test_torch_cuts_a_tangent_where_it_cuts_a_gradient(torch):
    def detached(x):
        return x * (2 * x).detach()

    def without_grad(x):
        with torch.no_grad():
            y = 2 * x
        return x * y

    def hooked(x):
        y = x * 3
        if y.requires_grad:
            y.register_hook(lambda g: 10 * g)
        return torch.sin(y)

    def with_a_constant_gradient(x):
        if not x.requires_grad:
            x = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(torch.sin(x).sum(), x, retain_graph=True)
        return x * slope

    assert agrees(detached, "torch", POINT, MOVE)
    assert not agrees(with_a_constant_gradient, "torch", POINT, MOVE)
    assert not agrees(without_grad, "torch", POINT, MOVE)
    assert not agrees(hooked, "torch", POINT, MOVE)


def test_torch_functions_without_a_jvp_go_the_other_way(torch):
    class Sine(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return torch.sin(x)

        @staticmethod
        def backward(ctx, v):
            (x,) = ctx.saved_tensors
            return 3 * v * torch.cos(x)  # not the sine's own, so that it is told apart

    assert not agrees(Sine.apply, "torch", POINT, MOVE)


def test_torch_dropout_moves_through_the_mask_of_its_call(torch):
    model = torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.Dropout(0.5))
    f = gb.bridge(model, dtype="float64", mode="train", seed=5)
    t, _ = directions(f)
    np.testing.assert_allclose(
        f.jvp(f.params, X, tangent=t), f.jacobian(f.params, X, strategy="loop") @ t, rtol=1e-12, atol=1e-14
    )


def test_inside_of_a_level_of_the_callers_the_bridge_goes_the_other_way(torch):
    f = torch_net()
    t, _ = directions(f)
    expected = f.jvp(f.params, X, tangent=t)
    with torch.autograd.forward_ad.dual_level():
        with gb.trace() as trace:
            found = f.jvp(f.params, X, tangent=t)
        assert any("gradient of" in label for label in labels(trace))
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


def test_eight_threads_push_at_once(f):
    rng = np.random.default_rng(4)
    tangents = rng.normal(size=(8, f.layout.size))
    points = f.params + 0.1 * rng.normal(size=(8, f.layout.size))
    alone = [f.jvp(p, X, tangent=t) for p, t in zip(points, tangents)]
    found = {}

    def work(k):
        for turn in range(5):
            found[k, turn] = f.jvp(points[k], X, tangent=tangents[k])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 40
    for (k, _), moved in found.items():
        np.testing.assert_array_equal(moved, alone[k])


def test_jax_functions_with_a_vjp_of_their_own_go_the_other_way():
    jax = pytest.importorskip("jax")
    import jax.numpy as jnp

    @jax.custom_vjp
    def sine(x):
        return jnp.sin(x)

    sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, v: (3 * v * jnp.cos(x),))
    assert not agrees(sine, "jax", POINT, MOVE)
    assert agrees(lambda x: x * jax.lax.stop_gradient(2 * x), "jax", POINT, MOVE)


def test_tensorflow_functions_with_a_gradient_of_their_own_go_the_other_way():
    tf = pytest.importorskip("tensorflow")

    @tf.custom_gradient
    def sine(x):
        return tf.sin(x), lambda v: 3 * v * tf.cos(x)

    inner = tf.function(lambda x: 2 * sine(x))
    assert not agrees(sine, "tensorflow", POINT, MOVE)
    assert not agrees(lambda x: inner(x), "tensorflow", POINT, MOVE)
    assert not agrees(lambda x: tf.cond(x[0] > 0, lambda: sine(x), lambda: x), "tensorflow", POINT, MOVE)
    assert agrees(lambda x: x * tf.stop_gradient(2 * x), "tensorflow", POINT, MOVE)


def test_what_cannot_be_batched_is_not_logged(caplog):
    tf = pytest.importorskip("tensorflow")
    inner = tf.function(lambda x: tf.custom_gradient(lambda y: (y * y, lambda v: v * 2 * y))(x))
    q = gb.primitive(backend="tensorflow")(lambda x: inner(x))
    q.bridge.jacobian(np.empty(0), POINT, wrt=1, strategy="jvp")
    assert "pfor" not in caplog.text


def test_what_jax_cannot_pull_back_it_pushes():
    jax = pytest.importorskip("jax")
    import jax.numpy as jnp

    def iterated(x):
        return jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, jnp.sin(s[1])), (0, x))[1]

    q = gb.primitive(backend="jax")(iterated)
    slope = np.cos(np.sin(np.sin(POINT))) * np.cos(np.sin(POINT)) * np.cos(POINT)
    np.testing.assert_allclose(make_jvp(q)(POINT)(MOVE)[1], slope * MOVE, rtol=1e-13)
    for strategy in ("auto", "jvp"):
        found = q.bridge.jacobian(np.empty(0), POINT, wrt=1, strategy=strategy)
        np.testing.assert_allclose(found, np.diag(slope), rtol=1e-13)
    with pytest.raises(GuestError, match="while_loop"):
        grad(lambda x: anp.sum(q(x)))(POINT)


def test_tensorflow_operations_whose_tangents_are_slices():
    tf = pytest.importorskip("tensorflow")
    agrees(lambda x: tf.math.segment_sum(x, [0, 0]), "tensorflow", POINT, MOVE)
    assert agrees(lambda x: tf.gather(x, [0, 1, 1]) ** 2, "tensorflow", POINT, MOVE)
