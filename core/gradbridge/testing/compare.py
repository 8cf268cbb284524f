"""Comparisons whose failures say what was expected, what came, and where."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from gradbridge.layout import Array


class Gradients(dict[int, Array]):
    """Gradients by argument of the host.

    Args:
        gradients: pairs of an argument and its gradient.
        first_input: the argument that is the first input, after the params.
    """

    def __init__(self, gradients: Iterable[tuple[int, Array]], first_input: int) -> None:
        super().__init__(gradients)
        self.first_input = first_input

    def name(self, argument: int) -> str:
        """An argument in words."""
        return "params" if argument < self.first_input else f"input {argument - self.first_input}"


def expect_close(got: Array, expected: Array, what: str, tolerance: float) -> None:
    """Assert equal shapes, and values within `tolerance` of the largest expected one (at least 1).

    What is expected to be infinite, or NaN, must be that.

    Raises:
        AssertionError: names the largest difference and its place.
    """
    got, expected = np.asarray(got), np.asarray(expected)
    if got.shape != expected.shape:
        raise AssertionError(f"{what}: expected shape {expected.shape}, got {got.shape}")
    if not got.size:
        return
    wide = np.complex128 if "c" in (got.dtype.kind, expected.dtype.kind) else np.float64
    got = got.astype(wide)
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))  # infinities among them
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(got - expected))
    worst = np.unravel_index(int(np.argmax(np.where(np.isnan(difference), np.inf, difference))), got.shape)
    limit = tolerance * max(1.0, float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0)))
    if not difference[worst] <= limit:
        place = f" at {[int(i) for i in worst]}" if worst else ""
        raise AssertionError(
            f"{what}: expected {expected[worst].item():.12g}, got {got[worst].item():.12g}{place}; "
            f"the difference {float(difference[worst]):.2g} is more than {limit:.2g}"
        )


def expect_outputs(got: Sequence[Array], expected: Sequence[Array], tolerance: float, when: str = "") -> None:
    """`expect_close` for every output leaf."""
    assert len(got) == len(expected), f"expected {len(expected)} outputs, got {len(got)}"
    for index, (a, b) in enumerate(zip(got, expected)):
        expect_close(a, b, f"output {index}{_space(when)}", tolerance)


def expect_gradients(got: Gradients, expected: Mapping[int, Array], tolerance: float, when: str = "") -> None:
    """`expect_close` for the gradient of every argument that was pulled back to."""
    for argument, gradient in got.items():
        expect_close(
            gradient, expected[argument], f"gradient of {got.name(argument)}{_space(when)}", tolerance
        )


def expect_same(got: Array, expected: Array, what: str) -> None:
    """Assert equal bits, so that not even rounding differs.

    Raises:
        AssertionError: they differ.
    """
    if got.dtype != expected.dtype or got.shape != expected.shape or got.tobytes() != expected.tobytes():
        raise AssertionError(f"{what}: expected exactly {_short(expected)}, got {_short(got)}")


def _short(array: Array) -> str:
    return np.array2string(np.asarray(array), threshold=8, precision=6).replace("\n", "")


def _space(when: str) -> str:
    return f" {when}" if when else ""
