"""What a typed program writes with the public names: passes mypy --strict and pyright, and runs nothing.

Arrays are Any, since they are those of whichever system calls; everything else has a type of its own.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import gradbridge as gb
from gradbridge import errors
from gradbridge.extend import Backend, hookimpl

Array = NDArray[np.float64]


def bridges(net: object, layer: Callable[..., Any], path: pathlib.Path) -> None:
    f = gb.bridge(net, backend="torch", dtype="float64", mode="eval", reuse=1, rows_per_chunk=100)
    assert_type(f, gb.Bridge)
    assert_type(f.layout, gb.ParameterLayout)
    names: Sequence[str] = f.layout.names
    sizes: int = f.layout.size
    tree: Mapping[str, Any] = f.layout.unravel(f.params)
    flat: Array = f.layout.ravel(tree)
    f.save(path, flat)
    loaded: Array = np.asarray(f.load(str(path), names=False))
    value: Array = f(loaded, np.ones((sizes, len(names))))
    report = f.audit(f.params, value)
    wrong: list[str] = [finding.check for finding in report.wrong]
    assert_type(str(f.capabilities), str)
    f.jacobian(f.params, value, strategy="auto")
    f.vjp(f.params, value, cotangent=value)
    f.jvp(f.params, value, tangent=value, wrt=1)
    f.row_gradients(f.params, value)
    f.as_module()
    assert_type(gb.bridge(layer, params={"w": np.ones(3)}, backend="jax"), gb.Bridge)
    print(wrong, f.output_spec(value))


@gb.primitive
def square(x: Array) -> Array:
    return x**2


@square.defvjp
def square_vjp(ans: Array, x: Array) -> Callable[[Array], Array]:
    return lambda v: 2 * x * v


@square_vjp.defvjp
def square_vjp_vjp(gradient: Array, x: Array, v: Array) -> Callable[[Array], Array]:
    return lambda u: 2 * v * u


@gb.primitive
def product(x: Array, y: Array) -> Array:
    return x * y


product.defvjp(lambda ans, x, y: lambda v: v * y, None)


@product.defjvp(argnums=(0,))
def product_jvp(t: Array, ans: Array, x: Array, y: Array) -> Array:
    return t * y


@gb.primitive(backend="torch")
def energy(x: Any, y: Any) -> Any:
    return (x * y).sum()


@gb.primitive(gradient="numeric")
def black_box(x: Array) -> float:
    return float(x.sum())


def primitives(x: Array) -> None:
    assert_type(square, gb.Primitive)
    assert_type(energy, gb.Primitive)
    assert_type(black_box.gradient_error, float | None)
    y: Array = square(x)
    assert_type(energy.bridge, gb.Bridge)
    energy.jacobian(x, y, wrt=0)


def portable() -> gb.Bridge:
    return gb.bridge(gb.build("mlp", sizes=[3, 8, 1], backend="jax"))


def seen(f: gb.Bridge, x: Array) -> dict[str, int]:
    with gb.trace() as t:
        assert_type(t, gb.Trace)
        f(f.params, x)
    return t.counts


def listed() -> Iterator[str]:
    for name, info in gb.backends().items():
        assert_type(info, gb.BackendInfo)
        if not info.available:
            yield f"{name} {info.state}: {info.reason}"


def refused(f: gb.Bridge, x: Array) -> str:
    with contextlib.suppress(errors.HigherOrderError):
        f(f.params, x)
    try:
        f(x, x)
    except errors.ParamsShapeError as error:
        assert_type(error, errors.ParamsShapeError)
        return str(error)
    except gb.GradbridgeError as error:
        return str(error)
    return ""


class Plugin:
    """A backend as its author declares it."""

    @hookimpl
    def gradbridge_backend(self) -> Backend:
        return Backend(name="mine", framework=("mine", "mine"), guest="gradbridge_mine.guest:guest")
