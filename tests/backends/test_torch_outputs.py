"""What goes into torch modules and comes out: containers, no tensors, no rows, no axes, no parameters."""

import collections
import dataclasses

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.errors import OutputError  # noqa: E402

RNG = onp.random.default_rng(0)


@dataclasses.dataclass
class Result:
    mean: object
    extra: object


Pair = collections.namedtuple("Pair", "left right")


class Shapes(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        self.make = make

    def forward(self, x):
        return self.make(self.scale * x, x.sum() * self.scale)


@pytest.mark.parametrize(
    ("make", "first"),
    [
        (lambda a, b: (a, b), lambda out: out[0]),
        (lambda a, b: [a, {"b": b}], lambda out: out[0]),
        (lambda a, b: {"mean": a, "b": (b, None)}, lambda out: out["mean"]),
        (lambda a, b: Result(a, b), lambda out: out.mean),
        (lambda a, b: Pair(a, b), lambda out: out.left),
        (lambda a, b: collections.OrderedDict(z=b, mean=a), lambda out: out["mean"]),
    ],
)
def test_outputs_come_back_in_the_containers_that_the_model_returns(make, first):
    f = gb.bridge(Shapes(make))
    x = onp.arange(3.0)
    out = f(f.params, x)
    assert type(out) is type(make(1, 2))
    assert onp.array_equal(first(out), 2 * x)
    assert onp.array_equal(grad(lambda p: np.sum(first(f(p, x))))(f.params), [3.0])


def test_no_rows_and_no_axes(mlp):
    f = gb.bridge(mlp())
    assert f(f.params, onp.empty((0, 3))).shape == (0, 2)
    assert onp.array_equal(grad(lambda p: np.sum(f(p, onp.empty((0, 3)))))(f.params), onp.zeros(26))
    g = gb.bridge(Shapes(lambda a, b: b))
    assert g(g.params, onp.float64(3.0)).shape == ()


def test_a_model_without_parameters_works_with_params_of_length_0():
    f = gb.bridge(nn.Softmax(dim=1))
    assert f.params.shape == (0,)
    X = RNG.normal(size=(2, 3))
    onp.testing.assert_allclose(f(f.params, X).sum(1), [1, 1])
    assert grad(lambda p: np.sum(f(p, X)))(onp.empty(0)).shape == (0,)


def test_a_model_that_does_not_depend_on_its_params_has_exact_zeros():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return x * 2

    f = gb.bridge(Constant())
    assert onp.array_equal(grad(lambda p: np.sum(f(p, onp.ones(2))))(f.params), onp.zeros(3))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "advice"),
    [
        (lambda y: torch.nested.nested_tensor([y[:2], y[2:3]]), r"nested .*to_padded_tensor\(0\)"),
        (lambda y: torch.nested.as_nested_tensor([y[:2], y[2:]], layout=torch.jagged), r"nested .*to_padded"),
        (lambda y: torch.quantize_per_tensor(y.float(), 0.1, 0, torch.qint8), r"qint8 .*dequantize\(\)"),
        (lambda y: torch.masked.masked_tensor(y, y > 0), r"MaskedTensor .*to_tensor\(0\)"),
    ],
    ids=["nested", "jagged", "quantized", "masked"],
)
def test_tensors_that_are_no_arrays_are_refused_with_what_to_return(make, advice):
    f = gb.bridge(Shapes(lambda a, b: make(a)))
    for call in (lambda p: f(p, onp.ones((4, 3))), grad(lambda p: np.sum(f(p, onp.ones((4, 3)))))):
        with pytest.raises(OutputError, match=advice):
            call(f.params)


def test_sparse_outputs_are_dense_arrays_with_gradients():
    f = gb.bridge(Shapes(lambda a, b: a.to_sparse()))
    x = onp.eye(3)
    onp.testing.assert_array_equal(f(f.params, x), 2 * x)
    onp.testing.assert_allclose(grad(lambda p: np.sum(f(p, x) ** 2))(f.params), [12.0])


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn"])
def test_floating_numbers_that_numpy_has_not_are_widened(name):
    f = gb.bridge(Shapes(lambda a, b: a.to(getattr(torch, name))))
    x = onp.array([1.0, 0.5, 4.0])
    onp.testing.assert_array_equal(f(f.params, x), 2 * x)
    assert grad(lambda p: np.sum(f(p, x)))(f.params) == [5.5]
