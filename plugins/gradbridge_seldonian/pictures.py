"""Pictures of what the engine did, for any algorithm of the user's as for the demonstration."""

from __future__ import annotations

import pathlib
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gradbridge.errors import OptionError
from gradbridge_seldonian import runs  # noqa: F401  # which are recorded from here on
from gradbridge_seldonian.history import ATTRIBUTE, History

# Okabe & Ito (2008): told apart by every kind of colour vision.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#666666"
COLORS, DASHES, MARKERS = (BLUE, ORANGE, GREEN, PURPLE), ("-", "--", "-.", ":"), "os^D"
NONE = ", as none satisfies all"
STYLE = {
    "font.size": 13,
    "axes.titlesize": 14,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 2,
    "legend.frameon": False,
    "text.parse_math": False,  # users' words may have dollars in them
}


def plot_candidate_selection(
    result: Any,
    path: Any,
    *,
    title: str = "Candidate selection",
    objective: str = "primary objective",
    constraints: Sequence[str] | None = None,
) -> pathlib.Path:
    """Draw the objective, the constraints' upper bounds against zero, and the multipliers.

    A gradient descent is drawn by iterations. CMA-ES and SciPy's optimizers have no multipliers and are
    drawn by evaluations, those that satisfy all constraints apart from the others.

    Args:
        result: a `SeldonianAlgorithm` that has run, or its `cs_result`.
        path: the PNG to write.
        title: of the picture.
        objective: label of the first panel, with its unit.
        constraints: labels of the constraints; None takes what was written in `supervised_spec`.

    Returns:
        The path written.

    Raises:
        OptionError: the algorithm has not run, or nothing was recorded of its run.
    """
    if hasattr(result, "candidate_dataset"):
        if getattr(result, "cs_result", None) is None:
            raise OptionError(
                "this algorithm has not selected a candidate yet, and there is nothing to draw; run() it first"
            )
        result = result.cs_result
    history = getattr(result, ATTRIBUTE, None)
    if isinstance(history, History):
        names = _checked_names(constraints, history.constraints)
        return _draw_evaluations(history, path, title, objective, names)
    if not isinstance(result, dict) or "g_vals" not in result:
        raise OptionError(
            f"plot_candidate_selection takes an algorithm that has run, or its cs_result, got a "
            f"{type(result).__name__}. If that is the result of CMA-ES or another barrier_function: the engine keeps "
            f"no history of those, and gradbridge records it in the result if gradbridge_seldonian was imported before "
            f"the run; import it (SeldonianModel does) and run again"
        )
    own = result.get("written") or [f"{c} <= 0" for c in result["constraint_strs"]]
    return _draw_descent(result, path, title, objective, _checked_names(constraints, own))


def _checked_names(given: Any, own: Sequence[str]) -> Sequence[str]:
    """The labels that were asked for, one for each constraint, or their own."""
    if given is None:
        return own
    names = None if isinstance(given, str) or not hasattr(given, "__len__") else list(given)
    if names is None or len(names) != len(own) or not all(isinstance(name, str) for name in names):
        raise OptionError(
            f"constraints must be a list with a label for each of the {len(own)} constraints ({', '.join(own)}), got "
            f"{given!r}"
        )
    return names


def _draw_descent(
    result: dict[str, Any], path: Any, title: str, objective: str, names: Sequence[str]
) -> pathlib.Path:
    bounds, multipliers = np.asarray(result["g_vals"], float), np.asarray(result["lamb_vals"], float)
    steps = np.arange(len(bounds))
    with matplotlib.rc_context(STYLE):
        figure, (top, middle, bottom) = _panels(3, title, names)
        top.plot(steps, result["f_vals"], color=BLUE)
        top.set_ylabel(objective)
        top.set_title("What is minimized", loc="left")
        for i in range(len(names)):
            color, dash = _told_apart(i, DASHES)
            middle.plot(steps, bounds[:, i], color=color, linestyle=dash, label=_wrapped(names[i]))
            bottom.plot(steps, multipliers[:, i], color=color, linestyle=dash)
        _mark_satisfied(middle, bounds, names)
        bottom.set_ylabel("multiplier λ")
        bottom.set_title("How hard each constraint pulls", loc="left")
        bottom.set_xlabel("iteration")
        if isinstance(result.get("candidate_solution"), str):
            top.text(
                0.99, 0.97, "stopped: not finite", ha="right", va="top", transform=top.transAxes, color=GREY
            )
        elif result.get("found_feasible_solution"):
            _mark_chosen(result["best_index"], len(steps), (top, middle, bottom))
        else:  # the engine takes the least ‖bounds‖ then, and does not say which iteration it was
            _mark_chosen(
                int(np.argmin(np.linalg.norm(bounds, axis=1))), len(steps), (top, middle, bottom), NONE
            )
        return save(figure, path)


def _draw_evaluations(
    history: History, path: Any, title: str, objective: str, names: Sequence[str]
) -> pathlib.Path:
    n = len(history.objective)
    steps, satisfied = np.arange(n), np.all(history.bounds <= 0, axis=1)
    with matplotlib.rc_context(STYLE):
        figure, (top, middle) = _panels(2, title, names)
        # Crosses and discs: told apart without colours.
        for which, marker, color, size, label in (
            (~satisfied, "x", ORANGE, 22, "violates"),
            (satisfied, "o", BLUE, 14, "satisfies all"),
        ):
            if which.any():
                top.scatter(
                    steps[which], history.objective[which], s=size, marker=marker, color=color, label=label
                )
        if satisfied.any():
            best = np.fmin.accumulate(np.where(satisfied, history.objective, np.inf))
            known = np.isfinite(best)
            top.step(
                steps[known],
                best[known],
                where="post",
                color="black",
                linewidth=1.5,
                label="best that does",
            )
        top.set_ylim(*_limits(history.objective, around_zero=False))
        top.set_ylabel(objective)
        top.set_title("What is minimized", loc="left")
        _legend(top, 3)
        for i in range(len(names)):
            color, marker = _told_apart(i, MARKERS)
            middle.scatter(
                steps, history.bounds[:, i], s=10, marker=marker, color=color, label=_wrapped(names[i])
            )
        _mark_satisfied(middle, history.bounds, names)
        middle.set_xlabel(f"evaluation by {history.optimizer}")
        if history.chosen is not None:
            _mark_chosen(history.chosen, n, (top, middle), "" if satisfied[history.chosen] else NONE)
        return save(figure, path)


def plot_comparison(
    title: str,
    measures: Sequence[tuple[str, dict[str, Any], float | None]],
    path: Any,
    *,
    note: str = "",
) -> pathlib.Path:
    """Draw measures of several models side by side, a panel each, bars labelled with their values.

    Args:
        title: of the picture.
        measures: (label with unit, {model: value}, a limit to draw or None) for each panel. A value may
            be a pair of what was measured and its confidence bound, drawn as a dot and a whisker.
        path: the PNG to write.
        note: lines below, wrapped.

    Returns:
        The path written.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.2 * len(measures), 5.6), layout="constrained")
        figure.suptitle(title, fontsize=17, fontweight="bold")
        for axes, (label, values, limit) in zip(np.atleast_1d(figure.subplots(1, len(measures))), measures):
            _draw_measure(axes, label, values, limit)
        if note:
            lines = [textwrap.fill(line, 38 * len(measures)) for line in note.splitlines()]
            figure.supxlabel("\n".join(lines), fontsize=12, color="#333333")
        return save(figure, path)


def _draw_measure(axes: Any, label: str, values: dict[str, Any], limit: float | None) -> None:
    draw = _draw_bounded if any(isinstance(v, tuple) for v in values.values()) else _draw_bars
    draw(axes, values, [] if limit is None else [limit])
    axes.set_title(label + (f"\n(dashed: limit {limit:g})" if limit else ""), fontsize=13)
    if limit:
        axes.axhline(limit, color="black", linestyle="--", linewidth=1.5)


def _draw_bars(axes: Any, values: dict[str, float], limits: list[float]) -> None:
    bars = axes.bar(
        list(values),
        list(values.values()),
        color=[_told_apart(i, DASHES)[0] for i in range(len(values))],
        width=0.62,
    )
    numbers = [*values.values(), 0.0, *limits]
    spread = max(numbers) - min(numbers) or 1.0
    axes.set_ylim(min(numbers) - 0.14 * spread * (min(numbers) < 0), max(numbers) + 0.2 * spread)
    axes.bar_label(bars, fmt="%.3f", padding=3, fontsize=13)
    axes.axhline(0, color="black", linewidth=1)


def _draw_bounded(axes: Any, values: dict[str, Any], limits: list[float]) -> None:
    """What was measured as a dot, and from there a whisker to its confidence bound."""
    pairs = [v if isinstance(v, tuple) else (v, v) for v in values.values()]
    numbers = [x for pair in pairs for x in pair if np.isfinite(x)] + limits
    spread = max(numbers) - min(numbers) or 1.0
    axes.set_ylim(min(numbers) - 0.15 * spread, max(numbers) + 0.15 * spread)
    axes.set_xlim(-0.45, len(pairs) - 0.2)
    axes.set_xticks(range(len(pairs)), list(values))
    for x, (value, bound) in enumerate(pairs):
        color, _ = _told_apart(x, DASHES)
        axes.plot(x, value, "o", color=color, markersize=11)
        axes.plot([x, x], [value, bound], color=color, linewidth=2.5)
        axes.plot(x, bound, "_", color=color, markersize=20, markeredgewidth=2.5)
        below, above = ("top", "bottom") if bound >= value else ("bottom", "top")
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.8}  # over the dashed line
        axes.text(x + 0.12, value, f"{value:.3f}", va=below, fontweight="bold", bbox=paper)
        if bound != value:
            axes.text(x + 0.12, bound, f"bound {bound:.3f}", va=above, fontsize=12, bbox=paper)


def _told_apart(i: int, shapes: Sequence[str]) -> tuple[str, str]:
    """A colour and a shape for the i-th of up to 16."""
    return COLORS[i % 4], shapes[(i + i // 4) % 4]


def _panels(count: int, title: str, names: Sequence[str]) -> tuple[Figure, Any]:
    entries = sum(len(_wrapped(name).splitlines()) for name in names) / _columns(names)
    height = 3 * count + 0.5 * (count < 3) + 0.3 * max(0.0, entries - 2)
    figure = Figure(figsize=(9, height), layout="constrained")
    figure.suptitle(textwrap.fill(title, 60), fontsize=17, fontweight="bold")
    panels = figure.subplots(count, 1, sharex=True)
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, panels


def _legend(axes: Any, columns: int) -> None:
    """Above the panel, where no curve can run behind it."""
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        fontsize=12,
        borderaxespad=0.2,
        ncols=columns,
        columnspacing=1.2,
    )


def _columns(names: Sequence[str]) -> int:
    """How many columns of a legend have room beside the panel's title."""
    longest = max(map(len, names), default=0)
    return 1 if len(names) < 3 or longest > 26 else 2 if longest > 16 else 3


def _mark_satisfied(axes: Any, bounds: np.ndarray, names: Sequence[str]) -> None:
    low, high = _limits(bounds)
    axes.set_ylim(low, high)
    axes.axhline(0, color="black", linewidth=1)
    axes.axhspan(low, 0, color=GREEN, alpha=0.12, linewidth=0)
    axes.text(
        0.5, 0.04, "satisfied", color="#00664B", ha="center", transform=axes.transAxes, fontweight="bold",
        bbox={"facecolor": "#E0F3EE", "edgecolor": "none", "pad": 1.5}, zorder=1,  # below the curves
    )  # fmt: skip
    axes.set_ylabel("upper bound\n(≤ 0 is satisfied)")
    axes.set_title("What must hold", loc="left")
    _legend(axes, _columns(names))


def _mark_chosen(best: int, count: int, panels: Sequence[Any], but: str = "") -> None:
    for axes in panels:
        axes.axvline(best, color=GREY, linewidth=1.2, linestyle=(0, (2, 2)))
    side = "right" if best > 0.6 * count else "left"
    text = f"chosen: {best}{but}"
    text = f"{text} " if side == "right" else f" {text}"
    panels[0].text(
        best, 0.97, text, ha=side, va="top", transform=panels[0].get_xaxis_transform(), color=GREY,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.8},
    )  # fmt: skip


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 62)


def _limits(values: np.ndarray, around_zero: bool = True) -> tuple[float, float]:
    """Limits that show the course and the zero line, and are not ruled by a few wild values."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return -1.0, 1.0
    zero = [0.0] if around_zero else []
    low, high = min([*zero, np.quantile(finite, 0.01)]), max([*zero, np.quantile(finite, 0.99)])
    least, most = min([*zero, finite.min()]), max([*zero, finite.max()])
    if most - least <= 2 * (high - low):
        low, high = least, most
    margin = 0.12 * (high - low or 1.0)
    return float(low - margin), float(high + margin)


def save(figure: Figure, path: Any) -> pathlib.Path:
    """Write a picture, into a new folder if need be; the path written."""
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)
    return target
