"""Pictures of what the engine did, for any algorithm of the user's as for the demonstration."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

# Okabe & Ito (2008): told apart by every kind of colour vision.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#666666"
LINES = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (PURPLE, ":"))
STYLE = {
    "font.size": 13,
    "axes.titlesize": 14,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 2,
    "legend.frameon": False,
}


def plot_candidate_selection(
    result: dict[str, Any],
    path: Any,
    *,
    title: str = "Candidate selection",
    objective: str = "primary objective",
    constraints: Sequence[str] | None = None,
) -> pathlib.Path:
    """Draw the objective, the constraints' upper bounds against zero, and the multipliers.

    Args:
        result: ``SeldonianAlgorithm(...).cs_result`` of a gradient descent.
        path: the PNG to write.
        title: of the picture.
        objective: label of the first panel, with its unit.
        constraints: labels of the constraints; None takes those of the result.

    Returns:
        The path written.
    """
    bounds, multipliers = np.asarray(result["g_vals"], float), np.asarray(result["lamb_vals"], float)
    names = list(constraints if constraints is not None else result["constraint_strs"])
    steps = np.arange(len(bounds))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 9), layout="constrained")
        top, middle, bottom = figure.subplots(3, 1, sharex=True)
        figure.suptitle(title, fontsize=17, fontweight="bold")
        top.plot(steps, result["f_vals"], color=BLUE)
        top.set_ylabel(objective)
        top.set_title("What is minimized", loc="left")
        for i, (name, (color, dash)) in enumerate(zip(names, LINES * len(names))):
            middle.plot(steps, bounds[:, i], color=color, linestyle=dash, label=name)
            bottom.plot(steps, multipliers[:, i], color=color, linestyle=dash)
        low, high = _limits(bounds)
        middle.set_ylim(low, high)
        middle.axhline(0, color="black", linewidth=1)
        middle.axhspan(low, 0, color=GREEN, alpha=0.12, linewidth=0)
        middle.text(
            0.5, 0.04, "satisfied", color=GREEN, ha="center", transform=middle.transAxes, fontweight="bold"
        )
        middle.set_ylabel("upper bound\n(≤ 0 is satisfied)")
        middle.set_title("What must hold", loc="left")
        # Above the panel, where no curve can run behind it.
        middle.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), fontsize=12, borderaxespad=0.2)
        bottom.set_ylabel("multiplier λ")
        bottom.set_title("How hard each constraint pulls", loc="left")
        bottom.set_xlabel("iteration")
        best = result.get("best_index")
        if result.get("found_feasible_solution") and best is not None:
            for axes in (top, middle, bottom):
                axes.axvline(best, color=GREY, linewidth=1.2, linestyle=(0, (2, 2)))
            side = "right" if best > 0.6 * len(steps) else "left"
            gap = " " if side == "left" else ""
            top.text(
                best, 0.97, f"{gap}chosen: {best}{' ' if side == 'right' else ''}", ha=side, va="top",
                transform=top.get_xaxis_transform(), color=GREY,
            )  # fmt: skip
        return _save(figure, path)


def plot_comparison(
    title: str,
    measures: Sequence[tuple[str, dict[str, float], float | None]],
    path: Any,
    *,
    note: str = "",
) -> pathlib.Path:
    """Draw measures of several models side by side, a panel each, bars labelled with their values.

    Args:
        title: of the picture.
        measures: (label with unit, {model: value}, a limit to draw or None) for each panel.
        path: the PNG to write.
        note: a line below.

    Returns:
        The path written.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.2 * len(measures), 5.2), layout="constrained")
        figure.suptitle(title, fontsize=17, fontweight="bold")
        for axes, (label, values, limit) in zip(np.atleast_1d(figure.subplots(1, len(measures))), measures):
            bars = axes.bar(list(values), list(values.values()), color=[c for c, _ in LINES], width=0.62)
            numbers = [*values.values(), 0.0] + ([limit] if limit is not None else [])
            spread = max(numbers) - min(numbers) or 1.0
            axes.set_ylim(min(numbers) - 0.14 * spread * (min(numbers) < 0), max(numbers) + 0.2 * spread)
            axes.bar_label(bars, fmt="%.3f", padding=3, fontsize=13)
            dashed = f"\n(dashed: limit {limit:g})" if limit else ""
            axes.set_title(label + dashed, fontsize=13)
            axes.axhline(0, color="black", linewidth=1)
            if limit:
                axes.axhline(limit, color=GREY, linestyle="--", linewidth=1.5)
        if note:
            figure.supxlabel(note, fontsize=12, color=GREY)
        return _save(figure, path)


def _limits(bounds: np.ndarray) -> tuple[float, float]:
    """Limits that show the course and the zero line, and are not ruled by a few wild first steps."""
    finite = bounds[np.isfinite(bounds)]
    if not finite.size:
        return -1.0, 1.0
    low, high = min(0.0, np.quantile(finite, 0.01)), max(0.0, np.quantile(finite, 0.99))
    whole = max(0.0, finite.max()) - min(0.0, finite.min())
    if whole <= 2 * (high - low):
        low, high = min(0.0, finite.min()), max(0.0, finite.max())
    margin = 0.12 * (high - low or 1.0)
    return float(low - margin), float(high + margin)


def _save(figure: Figure, path: Any) -> pathlib.Path:
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)
    return target
