"""The audit (law 10): what a bridge finds out about its guest at its first calls, what it mends, and what it refuses.

Models without a framework here; tests/backends has those of each.
"""

import copy
import itertools
import random
import sys

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad, hessian_vector_product, jacobian, make_jvp
from autograd.extend import defvjp
from autograd.extend import primitive as autograd_primitive
from click.testing import CliRunner

import gradbridge as gb
from gradbridge.cli import cli
from gradbridge.errors import AuditError, GradbridgeWarning, HigherOrderError
from gradbridge.protocol import GuestOptions
from gradbridge.testing import SCENARIOS, Subject
from gradbridge.testing.reference import Reference, ReferenceAdapter, ReferencePullback

X = onp.random.default_rng(0).normal(size=(5, 3))


def written(body, rule=lambda ans, x: lambda v: 2 * x * v, **options):
    f = gb.primitive(**options)(body)
    f.defvjp(rule)
    return f


def adapter_of(kind):
    subject = Subject(Reference(), SCENARIOS["mlp"])
    return kind(subject.build(subject.initial()).model, GuestOptions(dtype="float64"))


# -- a function of its arguments ------------------------------------------------------------------


@pytest.mark.parametrize("draw", [lambda: onp.random.normal(), random.random], ids=["numpy", "python"])  # noqa: NPY002
def test_numbers_from_a_global_generator_are_refused_by_name(draw):
    f = written(lambda x: x**2 + draw())
    with pytest.raises(AuditError, match="draws random numbers from Python's or NumPy's global generator"):
        grad(lambda x: np.sum(f(x)))(onp.arange(3.0))
    with pytest.raises(AuditError, match="draws random numbers"):
        written(lambda x: x**2 + draw())(onp.arange(3.0))  # where nothing is differentiated, too


def test_the_random_states_of_the_program_are_as_they_were():
    f = written(lambda x: x**2)
    onp.random.seed(3)  # noqa: NPY002
    random.seed(3)
    expected = onp.random.normal(), random.random()  # noqa: NPY002
    onp.random.seed(3)  # noqa: NPY002
    random.seed(3)
    grad(lambda x: np.sum(f(x)))(onp.arange(3.0))
    assert (onp.random.normal(), random.random()) == expected  # noqa: NPY002


def test_a_counter_between_calls_is_refused():
    calls = []

    def counting(x):
        calls.append(1)
        return x**2 * len(calls)

    with pytest.raises(AuditError, match="keeps something between calls"):
        grad(lambda x: np.sum(written(counting)(x)))(onp.arange(3.0))


def test_a_mask_beside_the_outputs_hinders_neither_the_refusal_nor_the_report():
    def masked(x, factor):
        return x**2 * factor, x > 1

    def rule(ans, x, factor):
        return lambda v: 2 * x * v[0] * factor

    calls = itertools.count(1)
    f = written(lambda x: masked(x, next(calls)), lambda ans, x: rule(ans, x, 1.0))
    with pytest.raises(AuditError, match=r"outputs that differ by up to \d"):
        grad(lambda x: np.sum(f(x)[0]))(onp.arange(3.0))
    report = written(lambda x: masked(x, 1.0), lambda ans, x: rule(ans, x, 1.0)).audit(onp.arange(3.0))
    assert report, report


def test_a_gradient_that_changes_from_call_to_call_is_refused():
    calls = []

    def rule(ans, x):
        calls.append(1)
        return lambda v: 2 * x * v * len(calls)

    with pytest.raises(AuditError, match="gives another gradient when the same call is pulled back again"):
        grad(lambda x: np.sum(written(lambda x: x**2, rule)(x)))(onp.arange(3.0))


def test_audit_off_looks_at_nothing():
    calls = []

    def counting(x):
        calls.append(1)
        return x**2 * len(calls)

    f = written(counting, audit="off")
    assert np.allclose(grad(lambda x: np.sum(f(x)))(onp.arange(3.0)), 2 * onp.arange(3.0))
    assert len(calls) == 1
    assert not f.capabilities["audited"]


def test_what_a_function_keeps_for_its_rule_is_of_the_programs_own_call():
    kept = {}

    def body(x):
        kept["cos"] = onp.cos(x)
        return onp.sin(x)

    x = onp.linspace(-1, 1, 5)
    onp.testing.assert_array_equal(
        grad(lambda x: np.sum(written(body, lambda ans, x: lambda v: v * kept["cos"])(x)))(x), onp.cos(x)
    )


def test_it_is_looked_at_once():
    calls = []

    def counted(x):
        calls.append(1)
        return x**2

    f = written(counted)
    assert not f.capabilities["audited"]
    gradient = grad(lambda x: np.sum(f(x)))
    gradient(onp.arange(3.0))
    first = len(calls)
    assert first > 1
    assert f.capabilities["audited"]
    for _ in range(3):
        gradient(onp.arange(3.0))
    assert len(calls) == first + 3
    assert copy.deepcopy(f).capabilities["audited"]


def test_its_calls_are_none_of_the_programs():
    f = written(lambda x: x**2)
    with gb.trace() as t:
        grad(lambda x: np.sum(f(x)))(onp.arange(3.0))
    assert (t.counts["forward"], t.counts["backward"]) == (1, 1)


class Forgetful(ReferenceAdapter):
    """Computes with the params of its first call, unless each call is by a fresh copy."""

    is_isolated = False
    isolates = True

    def __init__(self, *args):
        super().__init__(*args)
        self.known = None

    def forward(self, loaded, inputs, spec, wrt):
        if self.known is None or self.is_isolated:
            self.known = copy.deepcopy(loaded)
        return super().forward(self.known, inputs, spec, wrt)

    def fresh(self):
        twin = copy.copy(self)
        twin.known = None
        return twin

    def isolate_calls(self):
        if not self.isolates:
            return False
        changes, self.is_isolated = not self.is_isolated, True
        return changes


def test_a_model_that_remembers_is_computed_by_a_fresh_copy_each_time():
    right, f = gb.bridge(adapter_of(ReferenceAdapter)), gb.bridge(adapter_of(Forgetful))
    for scale in (1.0, 2.0, -0.5):
        p = scale * f.params
        ours, theirs = (grad(lambda p, b=b: np.sum(b(p, X) ** 2))(p) for b in (f, right))
        onp.testing.assert_allclose(ours, theirs, rtol=1e-12)
    assert "a fresh copy" in f.capabilities["audited"].note


def test_a_model_that_remembers_and_cannot_be_made_fresh_is_refused():
    adapter = adapter_of(Forgetful)
    adapter.isolates = False
    f = gb.bridge(adapter)
    with pytest.raises(AuditError, match="depend on earlier calls"):
        grad(lambda p: np.sum(f(p, X) ** 2))(f.params)


# -- derivatives of derivatives -------------------------------------------------------------------


class HalfOfTheTerms(ReferencePullback):
    def backward(self, residuals, cotangents, wrt):
        gradients = super().backward(residuals, cotangents, wrt)
        return [0.5 * g if argument < len(self.layout) else g for g, argument in zip(gradients, wrt)]


class Halved(ReferenceAdapter):
    def pullback(self, spec, wrt, residuals=None):
        twin = super().pullback(spec, wrt, residuals)
        twin.__class__ = HalfOfTheTerms
        return twin


def test_a_second_derivative_with_some_terms_missing_is_refused():
    right, f = gb.bridge(adapter_of(ReferenceAdapter)), gb.bridge(adapter_of(Halved))
    loss = lambda b: lambda p: np.sum(np.sin(b(p, X)))
    onp.testing.assert_allclose(grad(loss(f))(f.params), grad(loss(right))(f.params))
    hessian_vector_product(loss(right))(f.params, onp.ones_like(f.params))
    for _ in range(2):
        with pytest.raises(HigherOrderError, match="second derivative .* what its framework gives is wrong"):
            hessian_vector_product(loss(f))(f.params, onp.ones_like(f.params))
    off = gb.bridge(adapter_of(Halved), audit="off")
    assert onp.isfinite(hessian_vector_product(loss(off))(f.params, onp.ones_like(f.params))).all()


class NoWayAlong(ReferencePullback):
    def backward(self, residuals, cotangents, wrt):
        gradients = super().backward(residuals, cotangents, wrt)
        cotangent = max(wrt)  # it comes after the weights and the input
        return [0.0 * g if argument == cotangent else g for g, argument in zip(gradients, wrt)]


class Cut(ReferenceAdapter):
    def pullback(self, spec, wrt, residuals=None):
        twin = super().pullback(spec, wrt, residuals)
        twin.__class__ = NoWayAlong
        return twin

    def pushforward(self, *args):
        raise gb.errors.Unsupported("it has none")


def test_a_gradient_that_is_not_linear_in_its_cotangent_there_is_refused_in_products_and_tangents():
    f = gb.bridge(adapter_of(Cut))
    with pytest.raises(HigherOrderError, match="its product with a cotangent"):
        hessian_vector_product(lambda p: np.sum(np.sin(f(p, X))))(f.params, onp.ones_like(f.params))
    with pytest.raises(HigherOrderError):
        make_jvp(lambda p: f(p, X))(f.params)(onp.ones_like(f.params))


def test_kinks_and_rules_of_ones_own_are_no_fault():
    relu = gb.primitive(lambda x: onp.maximum(x, 0))
    relu.defvjp(lambda ans, x: lambda v: v * (x > 0)).defvjp(
        lambda g, x, v: lambda u: 0 * u, lambda g, x, v: lambda u: u * (x > 0)
    )
    x = onp.array([-1.0, 0.0, 1e-9, 2.0])
    product = hessian_vector_product(lambda x: np.sum(relu(x) ** 2))(x, onp.ones(4))
    onp.testing.assert_allclose(product, [0, 0, 2, 2])
    through = gb.primitive(onp.round)  # straight through
    through.defvjp(lambda ans, x: lambda v: v).defvjp(
        lambda g, x, v: lambda u: 0 * u, lambda g, x, v: lambda u: u
    )
    assert onp.allclose(grad(lambda x: np.sum(through(x) ** 2))(x), 2 * onp.round(x))
    assert onp.allclose(hessian_vector_product(lambda x: np.sum(through(x) ** 2))(x, onp.ones(4)), 2.0)


# -- many at once ---------------------------------------------------------------------------------


class ShuffledMany(ReferenceAdapter):
    def backward_many(self, residuals, cotangents, wrt):
        return [g[::-1] for g in super().backward_many(residuals, cotangents, wrt)]

    def row_jacobians(self, *args):
        raise gb.errors.Unsupported("none")


def test_many_cotangents_at_once_that_are_not_what_each_gives_are_not_used():
    right, f = gb.bridge(adapter_of(ReferenceAdapter)), gb.bridge(adapter_of(ShuffledMany))
    onp.testing.assert_allclose(f.jacobian(f.params, X), right.jacobian(f.params, X), rtol=1e-10)
    with pytest.raises(gb.errors.OptionError, match="not what it gives for each"):
        f.jacobian(f.params, X, strategy="vjp")
    onp.testing.assert_allclose(
        jacobian(lambda p: f(p, X))(f.params), right.jacobian(f.params, X), rtol=1e-10
    )


# -- precision ------------------------------------------------------------------------------------


def half_way(p, x):
    hidden = np.tanh(np.dot(x, p.reshape(3, 2)))
    return np.dot(Rounded.through(hidden), np.ones(2))


class Rounded:
    """Through float32 and back, as a layer that is fixed to it does."""

    through = gb.primitive(lambda x: x.astype(onp.float32).astype(onp.float64), audit="off")
    through.defvjp(lambda ans, x: lambda v: v.astype(onp.float32).astype(onp.float64))


def test_a_part_that_computes_in_less_is_told_once_with_the_precision_that_it_has():
    f = gb.bridge(half_way, params=onp.ones(6), backend="autograd")
    with pytest.warns(
        GradbridgeWarning, match=r"asked to compute in float64.* moves in steps of about [1-9]e-0[78]"
    ):
        grad(lambda p: np.sum(f(p, X)))(f.params)
    assert "steps" in f.capabilities["audited"].note
    smooth = gb.bridge(
        lambda p, x: np.exp(30 * np.tanh(np.dot(x, p))), params=onp.ones(3), backend="autograd"
    )
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error", GradbridgeWarning)
        grad(lambda p: np.sum(smooth(p, X)))(smooth.params)
        grad(lambda p: np.sum(f(p, X)))(f.params)


@pytest.mark.parametrize("dtype", [onp.float32, onp.float64])
def test_the_precision_is_that_of_the_params(dtype):
    params = {"w": onp.ones(3, onp.float32), "b": onp.float16(0.5)}
    seen = set()

    def watched(p, x):
        seen.add(np.result_type(p["w"]._value if hasattr(p["w"], "_value") else p["w"]))
        return np.dot(x, p["w"]) + p["b"]

    f = gb.bridge(watched, params=params, backend="autograd")
    gradient = grad(lambda p: np.sum(f(p, X.astype(dtype)) ** 2))(f.params.astype(dtype))
    assert gradient.dtype == dtype
    own = gb.bridge(watched, params=params, backend="autograd", dtype="model")
    assert own(own.params, X).dtype == onp.float64


# -- on request -----------------------------------------------------------------------------------


def test_the_report_of_a_right_model_has_nothing_wrong_and_says_what_was_measured():
    f = gb.bridge(lambda p, x: np.tanh(np.dot(x, p)), params=onp.ones((3, 2)), backend="autograd")
    report = f.audit(f.params, X)
    assert report
    assert not report.wrong
    outcomes = {row.check: row for row in report}
    assert float(outcomes["gradient against differences"].figure) < 1e-8
    assert outcomes["second derivative"].outcome == "right"
    assert outcomes["third derivative"].outcome == "right"
    assert "independent" in outcomes["rows of the batch"].meaning
    assert str(report).count("\n") == len(report)
    onp.testing.assert_array_equal(f.params, onp.ones(6))


def test_the_report_calls_nothing_right_that_was_not_compared():
    cube = autograd_primitive(lambda x: x**3)
    once = autograd_primitive(lambda v, x: 3 * x**2 * v)
    defvjp(cube, lambda ans, x: lambda v: once(v, x))  # and once has no derivative of its own
    models = {
        "cannot be asked": lambda p, x: cube(np.dot(x, p)),
        "a kink": lambda p, x: np.abs(np.sin(1e6 * np.dot(x, p))),
    }
    for said, model in models.items():
        f = gb.bridge(model, params=onp.ones(3), backend="autograd")
        rows = {row.check: row for row in f.audit(f.params, X)}
        assert rows["second derivative"].outcome == "-"
        assert said in rows["second derivative"].meaning


def test_the_report_names_what_is_wrong_and_raises_nothing():
    report = gb.bridge(adapter_of(Halved)).audit(gb.bridge(adapter_of(Halved)).params, X)
    assert not report
    assert [row.check for row in report.wrong] == ["second derivative"]
    wrong = gb.primitive(lambda x: x**2)
    wrong.defvjp(lambda ans, x: lambda v: 3 * x * v)
    row = next(r for r in wrong.audit(onp.arange(1.0, 4.0)) if r.check == "gradient against differences")
    assert row.outcome == "note"
    assert float(row.figure) == pytest.approx(0.2, abs=0.01)


def test_a_model_that_remembers_shows_as_mended():
    rows = gb.bridge(adapter_of(Forgetful)).audit(gb.bridge(adapter_of(Forgetful)).params, X)
    assert rows[0].check == "mended"
    assert rows


MODELS = """
import autograd.numpy as np
import numpy as onp
import gradbridge as gb

params = onp.ones(3)
X = onp.ones((4, 3))

def linear(p, x):
    return np.dot(x, p)

@gb.primitive
def wrong(x):
    return x**2

calls = []

def counting(p, x):
    calls.append(1)
    return np.dot(x, p) * len(calls)
"""


def test_the_command_audits_what_an_import_gives(tmp_path, monkeypatch):
    (tmp_path / "audited_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    run = lambda *args: CliRunner().invoke(cli, ["audit", *args])
    function = ["--backend", "autograd", "--params", "audited_models:params"]
    good = run("audited_models:linear", *function, "--input", "4x3")
    assert good.exit_code == 0, good.output
    assert "nothing wrong" in good.output
    assert run("audited_models:linear", *function, "--input", "audited_models:X").exit_code == 0
    bad = run("audited_models:counting", *function, "--input", "4x3")
    assert bad.exit_code == 1
    assert "keeps something between calls" in bad.output


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["audited_models"], "MODULE:NAME"),
        (["no_such_module:net"], "cannot be imported"),
        (["gradbridge:bridg"], "did you mean 'bridge'"),
        (["gradbridge:bridge", "--input", "4y3"], "takes a shape"),
    ],
)
def test_the_command_says_what_it_does_not_understand(args, said, capsys):
    result = CliRunner().invoke(cli, ["audit", *args])
    assert result.exit_code == 1
    assert said in result.output + result.stderr


@pytest.mark.parametrize(
    ("params", "call"),
    [
        (onp.ones((3, 2)), onp.full((3, 2), 2.0)),
        ([(onp.ones(3), onp.ones(1)), (onp.ones(2),)], [(2 * onp.ones(3), onp.ones(1)), (onp.ones(2),)]),
        ({"a": {"b": onp.ones((2, 2))}, "c": [1.0, 2.0]}, {"a": {"b": onp.zeros((2, 2))}, "c": [3.0, 4.0]}),
        ([[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]),
        (onp.float64(2.0), 3.0),
    ],
    ids=["matrix", "tuples", "dict", "nested numbers", "scalar"],
)
def test_params_are_taken_in_the_tree_that_they_were_given_in(params, call):
    total = lambda tree: (
        sum(np.sum(leaf**2) for leaf in gb.trees.flatten(tree)[0])
        if not hasattr(tree, "shape")
        else np.sum(tree**2)
    )
    f = gb.bridge(lambda p, x: total(p) * x, params=params, backend="autograd")
    vector = f.layout.ravel(call)
    onp.testing.assert_allclose(f(call, 2.0), f(vector, 2.0))
    onp.testing.assert_allclose(f(call, 2.0), 2 * onp.sum(vector**2))
    onp.testing.assert_allclose(f.jacobian(call, 2.0), 4 * vector)
    if not isinstance(call, (float, list)):
        gradient = grad(lambda p: f(p, 2.0))(call)
        onp.testing.assert_allclose(f.layout.ravel(gradient), 4 * vector)


def test_a_rule_that_reads_what_its_forward_kept_is_right_with_other_calls_in_between():
    kept = {}

    def body(x):
        kept["slope"] = 2 * x
        return x**2

    g, x = written(body, lambda ans, x: lambda v: kept["slope"] * v), onp.arange(1.0, 4.0)
    onp.testing.assert_allclose(grad(lambda z: np.sum(g(z) * g(2 * z)))(x), 16 * x**3)
    assert "again" in g.capabilities["audited"].note


def test_an_empty_batch_is_audited():
    f = gb.bridge(lambda p, x: np.dot(x, p), params=onp.ones(2), backend="autograd")
    assert f.audit(f.params, onp.zeros((0, 2)))
