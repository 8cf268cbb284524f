"""Bridges within what torch compiles, exports and traces: reverse mode to any order, and nothing that is zero in silence."""

import gc
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.autograd.forward_ad as forward_ad  # noqa: E402
from torch_programs import INPUTS, assert_same, bridge_over, native, vector  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.errors import HostError  # noqa: E402

P, X = vector(), INPUTS


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def f():
    return gb.bridge(gb.build("mlp", sizes=[2, 3, 1], backend="numpy", seed=0), dtype="float64")


def params_of(f):
    return torch.tensor(np.asarray(f.params))


def loss_of(f):
    return lambda p, x: (torch.sin(f(p, x)) ** 2).sum()


def compiled(function, backend="aot_eager"):
    return torch.compile(function, fullgraph=True, backend=backend)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_program_gives_values_and_gradients_of_every_call(f, backend):
    program = compiled(loss_of(f), backend)
    for scale, x in ((1.0, X), (2.0, X), (2.0, torch.cat([X, X + 1]))):
        p = (scale * params_of(f)).requires_grad_()
        q = p.detach().clone().requires_grad_()
        loss, expected = program(p, x), loss_of(f)(q, x)
        assert_same([loss, *torch.autograd.grad(loss, p)], [expected, *torch.autograd.grad(expected, q)])


def test_outputs_and_gradients_of_any_strides_reach_compiled_code_as_it_reads_them():
    def rule(ans, a):
        return lambda g: np.asfortranarray(2 * g.T)

    double = gb.primitive(lambda a: 2 * a.T, vjp=rule, outputs=lambda a: (a.shape[::-1], a.dtype))
    a = torch.arange(6.0, dtype=torch.float64).reshape(2, 3).requires_grad_()
    for backend in ("aot_eager", "inductor"):
        program = compiled(lambda a: (double(a) ** 2).sum() + torch.sin(a).sum(), backend)
        assert_same(torch.autograd.grad(program(a), a), [8 * a + torch.cos(a)])


def test_a_compiled_gradient_costs_one_forward(f):
    program, p = compiled(loss_of(f)), params_of(f).requires_grad_()
    torch.autograd.grad(program(p, X), p)
    with gb.trace() as t:
        torch.autograd.grad(program(p, X), p)
    assert t.counts == {"update": 1, "forward": 1, "zero": 1, "backward": 1}


def test_gradients_taken_within_what_is_compiled_are_right_to_second_order(f):
    def second(p):
        return torch.func.grad(lambda q: torch.func.grad(lambda r: loss_of(f)(r, X))(q).sum())(p)

    assert_same(compiled(second)(params_of(f)), second(params_of(f)), 1e-10)


REFUSED = {
    "jvp": lambda f, p: torch.func.jvp(lambda q: f(q, X), (p,), (p,))[1],
    "jvp of grad": lambda f, p: torch.func.jvp(torch.func.grad(lambda q: f(q, X).sum()), (p,), (p,))[1],
    "vmap": lambda f, p: torch.func.vmap(lambda q: f(q, X))(torch.stack([p, p])),
    "jacfwd": lambda f, p: torch.func.jacfwd(lambda q: f(q, X))(p),
}


@pytest.mark.parametrize("name", REFUSED)
def test_forward_mode_and_maps_within_what_is_compiled_are_refused_with_the_cure(f, name):
    with pytest.raises(
        Exception, match=r"reverse mode alone: torch would silently make .*outside of what is compiled"
    ):
        compiled(lambda p: REFUSED[name](f, p))(params_of(f))


def test_what_is_refused_as_a_whole_is_computed_in_parts():
    f = gb.bridge(gb.build("mlp", sizes=[2, 3, 1], backend="numpy", seed=0), dtype="float64")
    program = torch.compile(lambda p: REFUSED["jvp"](f, p) * 2, backend="aot_eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch tells of what it left out
        assert_same(program(params_of(f)), REFUSED["jvp"](f, params_of(f)) * 2)


def test_tangents_that_reach_a_compiled_program_are_refused(f):
    program, p = compiled(lambda p: f(p, X).sin()), params_of(f)
    program(p)
    with forward_ad.dual_level(), pytest.raises(HostError, match="reverse mode alone"):
        program(forward_ad.make_dual(p, p))


def test_the_operations_themselves_refuse_what_torch_would_make_zero(f):
    from torch.fx.experimental.proxy_tensor import make_fx

    p = params_of(f)
    graph = make_fx(lambda p, x: f(p, x))(p, X)
    assert_same(graph(2 * p, X), f(2 * p, X))
    for asks in (
        lambda: torch.func.jvp(lambda q: graph(q, X), (p,), (p,)),
        lambda: torch.func.vmap(lambda q: graph(q, X))(torch.stack([p, p])),
    ):
        with pytest.raises(HostError, match="reverse mode alone"):
            asks()


def test_the_operations_are_differentiated_to_third_order_and_batched():
    from torch.fx.experimental.proxy_tensor import make_fx

    f = bridge_over("torch", dtype="float64")
    graph = make_fx(lambda p, x: f(p, x))(P, X)
    names = {str(node.target) for node in graph.graph.nodes}
    assert any("gradbridge" in name for name in names)  # an operation, since it was never called before

    def third(function):
        p, found = P.clone().requires_grad_(), []
        value = (torch.sin(function(p, X)) ** 2).sum()
        for _ in range(3):
            (g,) = torch.autograd.grad(value, p, create_graph=True)
            found.append(g)
            value = (g**2).sum()
        return found

    assert_same(third(graph), third(native), 1e-8)
    p = P.clone().requires_grad_()
    units = torch.eye(4, dtype=torch.float64).reshape(4, 4, 1)
    (rows,) = torch.autograd.grad(graph(p, X), p, units, is_grads_batched=True)
    assert_same(rows, torch.func.jacrev(native)(P, X).reshape(4, 13))


def test_a_guest_of_torch_that_was_looked_at_is_compiled_in():
    f = bridge_over("torch", dtype="float64")
    p = P.clone().requires_grad_()
    f(p, X).sum().backward()
    tangents = compiled(lambda p: torch.func.jvp(lambda q: f(q, X), (p,), (p,))[1])(P)
    assert_same(tangents, torch.func.jvp(lambda q: native(q, X), (P,), (P,))[1])
    rows = compiled(lambda p: torch.func.vmap(lambda q: f(q, X))(torch.stack([p, 2 * p])))(P)
    assert_same(rows, torch.stack([native(P, X), native(2 * P, X)]))


def test_a_module_of_a_bridge_compiles(f):
    module = f.as_module()
    program = compiled(module)
    program(X).sum().backward()
    found = [w.grad.clone() for w in module.parameters()]
    module.zero_grad()
    module(X).sum().backward()
    assert_same(found, [w.grad for w in module.parameters()])


def test_functions_of_arrays_compile_with_their_shapes_declared():
    @gb.primitive(outputs=lambda x: (x.shape, x.dtype))
    def sine(x):
        return np.sin(x)

    sine.defvjp(lambda ans, x: lambda v: v * np.cos(x))
    x = torch.linspace(-1, 1, 5, dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(compiled(lambda x: sine(x).sum())(x), x)
    assert_same(g, x.cos())


def test_outputs_of_other_shapes_than_declared_are_refused_when_they_come():
    cut = gb.primitive(lambda x: x[x > 0], outputs=lambda x: (x.shape, x.dtype))
    program = compiled(lambda x: cut(x).sum())
    assert program(torch.ones(3, dtype=torch.float64)) == 3
    with pytest.raises(Exception, match="where the program was compiled for"):
        program(-torch.ones(3, dtype=torch.float64))


def test_a_model_that_draws_anew_at_each_call_is_refused():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Dropout(0.5))
    f = gb.bridge(model, mode="train", noise="per_call")
    with pytest.raises(Exception, match="draws new numbers at each call"):
        compiled(f)(torch.tensor(f.params), X)


def test_a_program_whose_bridge_is_gone_says_so():
    from torch.fx.experimental.proxy_tensor import make_fx

    bridges = [gb.bridge(gb.build("mlp", sizes=[2, 3, 1], backend="numpy", seed=0), dtype="float64")]
    p = params_of(bridges[0])
    graph = make_fx(lambda p, x: bridges[0](p, x))(p, X)
    bridges.clear()
    gc.collect()
    with pytest.raises(HostError, match="calls a bridge that no longer exists"):
        graph(p, X)


def test_shapes_are_known_to_fake_tensors(f):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        y = f(mode.from_tensor(params_of(f)), mode.from_tensor(X))
    assert tuple(y.shape) == tuple(f(params_of(f), X).shape)
    assert y.dtype is torch.float64


@pytest.mark.parametrize("is_warm", [False, True])
def test_the_compiler_does_not_read_the_guests_code_where_it_gave_up(is_warm):
    jnp = pytest.importorskip("jax.numpy")
    f = gb.bridge(lambda p, x: jnp.tanh(x @ p["w"]), params={"w": np.ones((2, 2))}, backend="jax")
    w = torch.ones(2, 2, dtype=torch.float64)

    def call(x):
        return f({"w": w}, x)

    if is_warm:
        call(X)
    for program in (torch.func.vmap(call), torch.func.hessian(lambda x: call(x).sum())):
        assert_same([torch.compile(program, backend="aot_eager")(X)], [program(X)])
