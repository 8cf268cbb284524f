"""The scenario with complex numbers, written out in their real and imaginary parts.

The complex step needs analytic functions, and what shows how a guest conjugates is not analytic. In
parts it is: z = a + ib goes in as a and b, y comes out as its parts, and all else is real arithmetic.

A cotangent c of y pairs with a tangent as Re Σ c dy = Σ p dyᵣ + q dyᵢ for p - iq = c; likewise the
gradient of z with the parts g, h of a real function's gradient is g - ih.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradbridge.layout import Array
from gradbridge.testing import derivatives


def value(parts: Sequence[Any]) -> list[Any]:
    """(scale, x, a, b) ↦ parts of y = scale · exp(ix) · z |z|², and |z|²."""
    scale, x, a, b = parts
    square = a**2 + b**2
    real, imaginary = _rotated(x, a, b)
    return [scale * square * real, scale * square * imaginary, square]


def gradients(parts: Sequence[Any]) -> list[Any]:
    """(scale, x, a, b, p, q, u) ↦ gradients of Σ p yᵣ + q yᵢ + u |z|² by the first four."""
    scale, x, a, b, p, q, u = parts
    square = a**2 + b**2
    real, imaginary = _rotated(x, a, b)
    along = p * real + q * imaginary
    return [
        (square * along).sum(0),
        scale * square * (q * real - p * imaginary),
        scale * (2 * a * along + square * (p * np.cos(x) + q * np.sin(x))) + 2 * u * a,
        scale * (2 * b * along + square * (q * np.cos(x) - p * np.sin(x))) + 2 * u * b,
    ]


def gradients_at(
    scale: Array, inputs: Sequence[Array], cotangents: Sequence[Array]
) -> tuple[Array, Array, Array]:
    """Gradients of (scale, x, z) for cotangents of (y, |z|²)."""
    x, z = inputs
    c, u = cotangents
    of_scale, of_x, g, h = gradients([scale, x, z.real, z.imag, c.real, -c.imag, u])
    return of_scale, of_x, g - 1j * h


def pushed(scale: Array, inputs: Sequence[Array], tangents: Sequence[Array]) -> list[Array]:
    """Tangents of (y, |z|²) where (scale, x, z) move along tangents."""
    (x, z), (s, t, w) = inputs, tangents
    real, imaginary, square = derivatives.pushforward(
        value, [scale, x, z.real, z.imag], [s, t, w.real, w.imag]
    )
    return [real + 1j * imaginary, square]


def pulled_again(
    scale: Array, inputs: Sequence[Array], cotangents: Sequence[Array], directions: Sequence[Array]
) -> list[Array]:
    """The VJP of the gradients, by (scale, x, z, cotangent of y, cotangent of |z|²).

    Args:
        scale, inputs, cotangents: where.
        directions: a cotangent of each gradient.
    """
    (x, z), (c, u), (s, t, w) = inputs, cotangents, directions
    arguments = [scale, x, z.real, z.imag, c.real, -c.imag, u]
    gradients_of_parts = derivatives.pullback(gradients, arguments, [s, t, w.real, w.imag], range(7))
    of_scale, of_x, a, b, p, q, of_u = gradients_of_parts
    return [of_scale, of_x, a - 1j * b, p + 1j * q, of_u]


def _rotated(x: Any, a: Any, b: Any) -> tuple[Any, Any]:
    """Parts of exp(ix) · z."""
    return np.cos(x) * a - np.sin(x) * b, np.sin(x) * a + np.cos(x) * b
