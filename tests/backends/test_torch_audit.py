"""What the audit finds in modules of torch that look like functions and are none, and what it mends."""

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad, hessian_vector_product, jacobian, make_jvp

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.errors import AuditError, GradbridgeWarning  # noqa: E402

X = onp.linspace(-1, 1, 12).reshape(4, 3)


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


class Kernel(nn.Module):
    """Keeps what it computed from its parameters where nothing is recorded, as Gaussian processes do in eval mode."""

    def __init__(self):
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.strategy = None

    def forward(self, x):
        if self.strategy is None:
            self.strategy = {"mean": torch.exp(self.raw) * 2}
        return x @ self.strategy["mean"]


@pytest.mark.parametrize("value_first", [True, False])
def test_what_is_kept_of_parameters_that_start_at_zero_is_seen_whatever_comes_first(value_first):
    f = gb.bridge(Kernel())
    p, q = f.params, onp.array([0.3, 0.5, -0.4])
    if value_first:
        f(p, X)
    for at in (p, q, p):
        onp.testing.assert_allclose(
            grad(lambda t: np.sum(f(t, X)))(at), 2 * X.sum(0) * onp.exp(at), rtol=1e-12
        )
        onp.testing.assert_allclose(f(at, X), X @ (2 * onp.exp(at)), rtol=1e-12)


class Equilibrium(nn.Module):
    """A fixed point whose implicit gradient a hook puts in, which then removes itself."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.l, self.u = nn.Linear(3, 3).double(), nn.Linear(3, 3).double()

    def step(self, z, x):
        return 0.5 * torch.tanh(self.l(z) + self.u(x))

    def forward(self, x):
        with torch.no_grad():
            z = torch.zeros_like(x)
            for _ in range(100):
                z = self.step(z, x)
        new = self.step(z, x)
        if new.requires_grad:
            at = new.detach().requires_grad_()
            again = self.step(at, x)

            def implicit(g):
                self.hook.remove()
                h = g
                for _ in range(100):
                    h = torch.autograd.grad(again, at, h, retain_graph=True)[0] + g
                return h

            self.hook = new.register_hook(implicit)
        return new


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.slope = 3 * x.detach() ** 2
        return x**3

    @staticmethod
    def backward(ctx, g):
        return ctx.slope.mul_(g)


def test_a_backward_that_works_once_is_right_any_number_of_times():
    f = gb.bridge(Equilibrium(), reuse=4)
    p, step = f.params, 1e-6
    J = jacobian(lambda t: f(t, X))(p)
    moved = [(f(p + step * e, X) - f(p - step * e, X)) / (2 * step) for e in onp.eye(p.size)]
    onp.testing.assert_allclose(J, onp.stack(moved, -1), atol=1e-8)
    onp.testing.assert_allclose(f.jacobian(p, X, strategy="loop"), J, atol=1e-12)
    assert "again" in f.capabilities["audited"].note
    cube = gb.primitive(backend="torch")(lambda x: Once.apply(x))
    onp.testing.assert_allclose(jacobian(cube)(X[0]), onp.diag(3 * X[0] ** 2), atol=1e-12)


@pytest.mark.parametrize("asks", [lambda x: x.requires_grad, lambda x: torch.is_grad_enabled()])
def test_a_forward_that_asks_what_is_recorded_is_refused(asks):
    class Asking(MLP):
        def forward(self, x):
            return super().forward(x) * (2 if asks(x) else 1)

    f = gb.bridge(Asking())
    with pytest.raises(AuditError, match="requires_grad or is_grad_enabled"):
        grad(lambda t: np.sum(f(t, X)))(f.params)


def test_numbers_of_numpys_generator_are_seen_by_forward_mode_too():
    class Noisy(MLP):
        def forward(self, x):
            return super().forward(x) + float(onp.random.rand())  # noqa: NPY002

    f = gb.bridge(Noisy())
    with pytest.raises(AuditError):
        make_jvp(lambda t: np.sum(f(t, X) ** 2))(f.params)(f.params)
    with pytest.raises(AuditError):
        f.jvp(f.params, X, tangent=f.params)


def test_second_derivatives_beside_outputs_that_have_none():
    class Flags(MLP):
        def forward(self, x):
            y = super().forward(x)
            return {"y": y, "flags": [y * 2, y > 0]}

    f, plain = gb.bridge(Flags()), gb.bridge(MLP())
    ours = hessian_vector_product(lambda t: np.sum(f(t, X)["y"] ** 2))(f.params, f.params)
    theirs = hessian_vector_product(lambda t: np.sum(plain(t, X) ** 2))(f.params, f.params)
    onp.testing.assert_allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16, torch.float32])
def test_a_cast_on_the_way_is_told_with_its_steps(narrow):
    class Cast(MLP):
        def forward(self, x):
            return self.b(torch.tanh(self.a(x)).to(narrow).to(x.dtype))

    f = gb.bridge(Cast())
    with pytest.warns(GradbridgeWarning, match="its outputs change in steps of about"):
        grad(lambda t: np.sum(f(t, X)))(f.params)
    own = f.jacobian(f.params, X, strategy="loop")
    for strategy in ("rows", "vjp"):
        found = f.jacobian(f.params, X, strategy=strategy)
        onp.testing.assert_allclose(found, own, atol=2e-2 * onp.abs(own).max())


class Keeper:
    """Holds a parameter where nobody finds it."""

    def __init__(self, parameter):
        self.parameter = lambda: parameter

    def __deepcopy__(self, memo):
        return self


@pytest.mark.parametrize("rows", [2, 100])
def test_a_parameter_of_its_own_is_seen_in_chunks_of_rows_too(rows):
    class Holds(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.ones(3))
            self.kept = Keeper(self.w)

        def forward(self, x):
            return x * self.w + self.kept.parameter()

    f = gb.bridge(Holds(), backend="torch", rows_per_chunk=rows)
    x = onp.ones((6, 3))
    with pytest.raises(AuditError, match="of its own"):
        grad(lambda p: np.sum(f(p, x)))(f.params)
