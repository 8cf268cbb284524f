"""JAX as a host: what a forward recorded serves its pulls, and a record that was forgotten costs no more than a forward."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import autograd.numpy as anp  # noqa: E402
import jax.numpy as jnp  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.lifting import Store, node_of  # noqa: E402
from gradbridge_jax import runs  # noqa: E402
from gradbridge_jax.isolation import enable_x64  # noqa: E402

X = np.linspace(0.1, 1.2, 6).reshape(3, 2)


@pytest.fixture(autouse=True)
def double():
    with enable_x64(True):
        yield


def like(*specs):
    return specs[0]


@pytest.fixture
def cubed():
    """x³ with rules to the second order; by its cotangent a rule is linear."""

    @gb.primitive(outputs=like)
    def cubed(x):
        return x**3

    @cubed.defvjp
    def first(ans, x):
        return lambda v: 3 * x**2 * v

    @first.defvjp
    def second(ans, x, v):
        return lambda u: 6 * x * v * u

    return cubed


def counted(run, *args):
    jax.block_until_ready(run(*args))  # what is found out at first calls is no part of it
    with gb.trace() as trace:
        jax.block_until_ready(run(*args))
    return trace.counts


either = pytest.mark.parametrize("run", [lambda f: f, jax.jit], ids=["eager", "jit"])


@either
def test_a_value_and_its_gradient_cost_one_forward(cubed, run):
    counts = counted(run(jax.value_and_grad(lambda x: cubed(x).sum())), jnp.asarray(X))
    assert (counts["forward"], counts["backward"]) == (1, 1)


@either
@pytest.mark.parametrize("guest", ["rules", "torch"])
def test_a_hessian_vector_product_costs_no_second_forward(cubed, guest, run):
    f = cubed
    if guest != "rules":
        pytest.importorskip(guest)
        f = gb.primitive(backend=guest)(lambda x: x * x * x)
    loss = lambda x: f(x).sum()
    x, v = jnp.asarray(X), jnp.cos(jnp.asarray(X))
    for product in (
        lambda x: jax.grad(lambda x: jnp.vdot(jax.grad(loss)(x), v))(x),
        lambda x: jax.jvp(jax.grad(loss), (x,), (v,))[1],
    ):
        np.testing.assert_allclose(run(product)(x), 6 * x * v, rtol=1e-10)
        assert counted(run(product), x)["forward"] == 1


@either
def test_a_jacobian_pulls_all_rows_together_where_the_guest_can(run):
    pytest.importorskip("torch")
    f = gb.primitive(backend="torch")(lambda x: x * x)
    for transformed in (jax.jacrev(f), jax.vmap(jax.jacrev(f)), jax.jacrev(jax.vmap(f)), jax.jacfwd(f)):
        counts = counted(run(transformed), jnp.asarray(X))
        assert counts["forward"] <= 3
        assert counts["backward"] <= 3


@either
def test_two_calls_in_flight_do_not_see_each_other(cubed, run):
    a, b = jnp.asarray(X), -2 * jnp.asarray(X)
    both = run(lambda a, b: (jax.vjp(cubed, a), jax.vjp(cubed, b)))
    (_, pull_a), (_, pull_b) = both(a, b)
    ones = jnp.ones_like(a)
    for pull, x in ((pull_b, b), (pull_a, a), (pull_b, b), (pull_a, a)):
        np.testing.assert_allclose(pull(ones)[0], 3 * x**2, rtol=1e-12)


def test_threads_do_not_see_each_other(cubed):
    program = jax.jit(jax.value_and_grad(lambda x: cubed(x).sum()))
    wrong = []

    def go(scale):
        for i in range(20):
            x = scale + i + jnp.asarray(X)
            value, gradient = program(x)
            good = np.allclose(value, (x**3).sum(), rtol=1e-12) and np.allclose(
                gradient, 3 * x**2, rtol=1e-12
            )
            wrong.extend([] if good else [(scale, i)])

    def in_double(scale):
        with enable_x64(True):
            go(scale)

    threads = [threading.Thread(target=in_double, args=(10.0 * k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# -- forgotten records -----------------------------------------------------------------------------


def test_a_forgotten_record_costs_a_forward_and_no_wrong_number(cubed):
    x, v = jnp.asarray(X), jnp.cos(jnp.asarray(X))
    _, pull = jax.vjp(cubed, x)
    _, pull_again = jax.vjp(jax.grad(lambda x: (cubed(x) * v).sum()), x)
    runs.STORE.clear()
    with gb.trace() as trace:
        np.testing.assert_allclose(pull(v)[0], 3 * x**2 * v, rtol=1e-12)
        np.testing.assert_allclose(pull(v)[0], 3 * x**2 * v, rtol=1e-12)
    assert trace.counts["forward"] == 1  # what took its place serves the second
    np.testing.assert_allclose(pull_again(v)[0], 6 * x * v * v, rtol=1e-10)


def test_a_scan_longer_than_the_store_is_right(cubed, monkeypatch):
    store = Store(nbytes=0)
    monkeypatch.setattr(runs, "STORE", store)

    def summed(f):
        return lambda x: jax.lax.scan(lambda c, _: (c + 0.01 * f(c), None), x, None, length=40)[0].sum()

    x = jnp.asarray(X)
    found = jax.jit(jax.grad(summed(cubed)))(x)
    np.testing.assert_allclose(found, jax.grad(summed(lambda x: x**3))(x), rtol=1e-12)
    assert store.misses > 20
    assert store.hits > 0


def test_what_was_used_is_forgotten_first():
    f = gb.primitive(backend="autograd")(anp.sin)
    call, _, _, _ = f.bridge._bind((), False, (X,), {}, None)
    node = node_of(call, {})
    store = Store(nbytes=8 * X.nbytes * 2)  # of 8 records: an argument and an output each
    numbers = [store.put(node.evaluate([X], (0,))) for _ in range(8)]
    never = lambda: pytest.fail("it is there")
    for number in numbers[:4]:
        store.get(number, never)
    store.put(node.evaluate([X], (0,)))
    for number in numbers[4:]:  # not used yet
        store.get(number, never)
    made = []
    store.get(numbers[0], lambda: made.append(1) or node.evaluate([X], (0,)))
    assert made
    assert len(set(numbers)) == 8


@either
@pytest.mark.parametrize("noise", ["frozen", "per_params", "per_call"])
def test_a_gradient_belongs_to_the_masks_of_its_value(noise, run):
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.Dropout(0.5), torch.nn.Linear(32, 1))
    f = gb.bridge(net, mode="train", noise=noise, host="jax")
    x, last = jnp.ones((5, 4)), np.r_[f.layout.slices[2], f.layout.slices[3]]
    loss = lambda p: f(p, x).sum()  # linear in the last layer
    value, gradient = run(jax.value_and_grad(loss))(f.params)
    np.testing.assert_allclose(gradient[last] @ f.params[last], value, rtol=1e-12)
    value, pull = jax.vjp(loss, f.params)
    runs.STORE.clear()
    np.testing.assert_allclose(pull(1.0)[0][last] @ f.params[last], value, rtol=1e-12)
    call = run(lambda p: f(p, x))
    assert bool((call(f.params) == call(f.params)).all()) == (noise != "per_call")
    assert bool((call(f.params) == call(f.params * 1.0001)).all()) is False
    twice = run(lambda p: (f(p, x), f(p, x)))(f.params)
    assert bool((twice[0] == twice[1]).all()) == (noise != "per_call")


@either
def test_noise_of_a_jax_model_is_the_same_inlined_and_not(run):
    model = lambda w, x, key: x @ w * jax.random.bernoulli(key, 0.5, x.shape[:1])
    options = {"params": np.ones(2), "backend": "jax", "key": "key", "mode": "train", "seed": 5}
    f, g = gb.bridge(model, **options), gb.bridge(model, host="jax", **options)
    np.testing.assert_array_equal(run(g)(g.params, X), f(f.params, X))


def test_a_bridge_that_was_dropped_leaves_nothing_behind():
    def used():
        f = gb.primitive(backend="autograd", outputs=like)(anp.sin)
        loss = lambda x: f(x).sum()
        jax.block_until_ready((jax.jit(jax.grad(loss))(jnp.asarray(X)), jax.hessian(loss)(jnp.ones(2))))
        return weakref.ref(f.bridge.adapter)

    adapter = used()
    runs.STORE.clear()
    if jax.__version_info__ < (0, 10):
        jax.clear_caches()  # it cannot be told to refer weakly to what it staged
    gc.collect()
    assert adapter() is None


def test_other_threads_call_guests_of_jax_while_a_program_waits_for_a_callback():
    entered, release = threading.Event(), threading.Event()

    @gb.primitive(outputs=lambda x: x)
    def slow(x):
        entered.set()
        release.wait(60)
        return x * 1.0

    f = gb.bridge(lambda p, x: jnp.sin(p["w"] * x), params={"w": np.ones(3)}, backend="jax")
    thread = threading.Thread(target=lambda: jax.block_until_ready(jax.jit(slow)(jnp.ones(3))))
    thread.start()
    try:
        assert entered.wait(60)
        np.testing.assert_allclose(f(f.params, np.ones(3)), np.sin(np.ones(3)), rtol=1e-12)
    finally:
        release.set()
        thread.join()


def in_train_mode(*layers, **options):
    torch = pytest.importorskip("torch")
    return gb.bridge(
        torch.nn.Sequential(*(getattr(torch.nn, n)(*a) for n, *a in layers)), mode="train", **options
    )


def test_a_call_that_moves_a_state_is_made_as_often_as_the_program_says():
    b = in_train_mode(("BatchNorm1d", 1))
    Q, X = jnp.asarray(b.params), jnp.ones((10, 1))
    b(Q, X)

    def moved(program):
        before = int(b.model(b.params)[0].num_batches_tracked)
        jax.block_until_ready(program(Q))
        return int(b.model(b.params)[0].num_batches_tracked) - before

    assert moved(jax.jit(lambda Q: jax.lax.fori_loop(0, 5, lambda i, c: c + b(Q, X).sum(), 0.0))) == 5
    assert moved(jax.jit(lambda Q: (b(Q, X), b(Q, X)))) == 2
    assert moved(jax.jit(jax.grad(lambda Q: (b(Q, X) ** 2).sum()))) == 1
    assert moved(jax.jit(lambda Q: (b(Q, X), 1.0)[1])) == 1


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_new_numbers_at_each_call_are_those_of_the_gradient_or_refused(wrap):
    d = in_train_mode(("Linear", 1, 1), ("Dropout", 0.5), noise="per_call")
    P, X = jnp.ones(2, jnp.float32), jnp.ones((1000, 1), jnp.float32)

    def call(b):
        return d(P.at[1].set(b), X)

    y, vjp = jax.vjp(wrap(call), 1.0)
    assert vjp(y)[0] == (y * jnp.where(y != 0, 2, 0)).sum()
    with pytest.raises(NotImplementedError, match="checkpoint.*draws new numbers"):
        jax.vjp(wrap(jax.checkpoint(call)), 1.0)
    fixed = in_train_mode(("Linear", 1, 1), ("Dropout", 0.5), noise="per_params")
    y, vjp = jax.vjp(wrap(jax.checkpoint(lambda b: fixed(P.at[1].set(b), X))), 1.0)
    assert vjp(y)[0] == (y * jnp.where(y != 0, 2, 0)).sum()
