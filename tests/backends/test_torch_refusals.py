"""What torch modules and functions cannot do is said: wrong inputs, options, and derivatives that torch has not."""

import threading

import numpy as onp
import pytest
from autograd import grad

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.errors import (  # noqa: E402
    GradbridgeError,
    GradbridgeWarning,
    GuestError,
    InputError,
    NotDifferentiableError,
    OptionError,
    UnknownModelError,
)


@pytest.mark.parametrize("backend", [None, "torch"])
def test_a_module_class_in_place_of_a_module_is_told_so(backend):
    with pytest.raises(
        UnknownModelError, match=r"got the class Linear; make an instance of it, Linear\(…\), and bridge that"
    ):
        gb.bridge(nn.Linear, backend=backend)


def test_a_wrong_number_of_columns_names_the_layer_and_what_it_expects(mlp):
    with pytest.raises(
        InputError, match=r"over Sequential: layer '0' \(Linear\) expects \(…, 3\), got \(4, 5\)"
    ):
        f = gb.bridge(mlp())
        f(f.params, onp.ones((4, 5)))


def test_images_without_their_channel_axis_name_the_convolution():
    f = gb.bridge(nn.Sequential(nn.Conv2d(3, 4, 3)))
    with pytest.raises(InputError, match=r"\(Conv2d\) expects \(N, 3, H, W\)"):
        f(f.params, onp.ones((2, 1, 8, 8)))


def test_a_model_that_raises_itself_is_named():
    class Fussy(nn.Module):
        def forward(self, x):
            raise ZeroDivisionError("no")

    with pytest.raises(
        GuestError, match="Fussy failed in Fussy on input 0 of shape .* ZeroDivisionError: no"
    ):
        gb.bridge(Fussy())(onp.empty(0), onp.ones(2))


@pytest.mark.parametrize(
    "options", [{"dtype": "int32"}, {"device": "quantum"}, {"device": "meta"}, {"params": {}}]
)
def test_unusable_options_are_refused(options):
    with pytest.raises(OptionError):
        gb.bridge(nn.Linear(1, 1), **options)


def test_what_has_no_parameters_to_flatten_is_refused():
    with pytest.raises(UnknownModelError, match="has no shape yet"):
        gb.bridge(nn.LazyLinear(3))
    with pytest.raises(NotDifferentiableError, match="complex"):
        gb.bridge(nn.Linear(2, 2, dtype=torch.complex64))
    with pytest.raises(UnknownModelError, match="bridges modules and callables"):
        gb.bridge(3, backend="torch")


def test_a_module_that_cannot_be_copied_says_why():
    net = nn.Linear(1, 1)
    net.lock = threading.Lock()
    with pytest.raises(GuestError, match="Linear cannot be copied .*outside the module"):
        gb.bridge(net)


def test_integers_where_a_layer_wants_floats_are_named():
    f = gb.bridge(nn.Linear(2, 1))
    with pytest.raises(InputError, match="expects floating inputs, got torch.int64"):
        f(f.params, onp.ones((3, 2), int))


def test_a_second_derivative_that_torch_has_not_is_refused_and_never_zero():
    from torch.autograd.function import once_differentiable

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**2

        @staticmethod
        @once_differentiable
        def backward(ctx, v):
            (x,) = ctx.saved_tensors
            return 2 * x * v

    f = gb.primitive(backend="torch")(lambda x: Square.apply(x))
    assert grad(f)(3.0) == 6.0
    with pytest.raises(gb.errors.HigherOrderError, match="once_differentiable"):
        grad(grad(f))(3.0)


def test_what_torch_cannot_see_is_said():
    f = gb.primitive(backend="torch")(lambda x: (x**2).sum().item())
    assert f(3.0) == 9.0
    with pytest.raises(NotDifferentiableError, match=r"Python float.*without \.item\(\)"):
        grad(f)(3.0)
    g = gb.primitive(backend="torch")(lambda x: x.detach() ** 2)
    with pytest.warns(GradbridgeWarning, match=r"look for \.detach\(\)") as caught:
        assert grad(g)(3.0) == 0.0
    assert caught[0].filename == __file__


def test_gradient_hooks_on_parameters_are_noticed():
    model = nn.Linear(2, 1)
    model.weight.register_hook(lambda g: 2 * g)
    with pytest.warns(
        GradbridgeWarning, match="Linear has gradient hooks on weight; they belong to those tensors"
    ) as caught:
        gb.bridge(model)
    assert caught[0].filename == __file__


def test_a_layer_that_is_not_what_it_was_taken_for_does_not_hide_the_error():
    class Odd(nn.Linear):
        def __init__(self):
            super().__init__(3, 2)
            del self.in_features

    f = gb.bridge(Odd())
    with pytest.raises(GuestError, match=r"Odd failed on input 0 of shape \(4, 5\).*cannot be multiplied"):
        f(f.params, onp.ones((4, 5)))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("is_settled", [False, True])
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_refused_wherever_they_come_in(layout, is_settled):
    nested = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)], layout=layout)
    x, told = (
        torch.ones(2, 3),
        r"a nested tensor of layout .*hand over a plain tensor .*to_padded_tensor\(0\)",
    )
    f = gb.bridge(lambda p, x: p["a"] * x, params={"a": onp.ones(3)}, backend="autograd")
    vector, tree = torch.ones(3), {"a": torch.ones(3)}
    for params in (vector, tree):
        for _ in range(2 * is_settled):
            f(params, x)
        with pytest.raises(InputError, match=told):
            f(params, nested)
    for params in (nested, {"a": nested}):  # whose jagged ones have a shape, which does not fit
        with pytest.raises(GradbridgeError, match=f"{told}|params of shape|for parameter 'a'"):
            f(params, x)
