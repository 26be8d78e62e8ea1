"""The one picture of a comparison: paired differences on the left, many- against few-shot accuracy on the right."""

import io
import math
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import blended_transform_factory

from setwise.judge import Comparison, Curve, Difference
from setwise.report.wording import ADJUSTED, interval, names_of, points, selecting_part, selection_warning
from setwise.run_folder import writing

__all__ = ["COLOURS", "STYLES", "comparison_figure", "plain_axes", "save_png", "svg"]

COLOURS = {"plain": "#6e6e6e", "control": "#0072b2", "related": "#d55e00"}
"""Grey, blue and vermillion of Okabe and Ito, Color Universal Design, 2008: apart for every kind of colour vision."""
STYLES = {"plain": (0, (5, 2)), "control": (0, (1, 1.2)), "related": "solid"}
RAW = "#9a9a9a"
INK, FAINT = "#222222", "#666666"
WIDE, NARROW = 10.0, 7.2  # inches: 1000 px at the 100 dpi that a screen shows
HEAD, FOOT, ROW = 0.98, 0.62, 0.33  # inches of the title, below the axes, and of a row of the forest
LINE, UNTITLED = 0.21, 0.5  # inches of a line of the title, and above the axes without one
LEAST_ROWS = 8.5
"""Of a figure with the curves, which need some height."""
DPI = 200
KEY_LINE = 20
"""Pixels, at 100 to the inch, between the two lines of a key."""
SENTENCE = 96
"""Letters of a title in a line of the wide figure."""
MOST_TAU = 1.5
"""Curves begin at 0 and end there, or above the largest strength chosen; beyond, many-shot accuracy only falls."""


def comparison_figure(comparison: Comparison, *, titled: bool = True) -> Figure:
    """Draw what a comparison found.

    Left, a forest plot: related - control filled, related - plain hollow, in percentage points with their intervals,
    for the whole and for many-, medium- and few-shot classes; the primary metric bold. Right, the mean over seeds of
    many- against few-shot accuracy over the strength of logit adjustment, one line an arm; left out where there is no
    such curve (several labels per image).

    Args:
        comparison: what :func:`setwise.judge.judge` found.
        titled: write the verdict above; the page says it in its own letters.
    """
    curves = [curve for curve in comparison.curves if curve.arm in COLOURS]
    blocks = _forest_blocks(comparison)
    rows = sum(map(len, blocks)) + len(blocks) * (len(blocks) > 1)
    width = WIDE if curves else NARROW
    said = " ".join(filter(None, (comparison.verdict.sentence, selection_warning(comparison.plan.recipe))))
    title = textwrap.wrap(said, int(SENTENCE * width / WIDE)) if titled else []
    head = HEAD + LINE * (len(title) - 1) if titled else UNTITLED
    height = head + FOOT + ROW * max(rows, LEAST_ROWS if curves else 0)
    figure = Figure(figsize=(width, height), dpi=100)
    place = {"bottom": FOOT / height, "top": 1 - head / height}
    if curves:
        forest, trade = figure.subplots(1, 2, width_ratios=(1.2, 1))
        figure.subplots_adjust(left=0.16, right=0.985, wspace=0.7, **place)
        _trade_off(trade, curves, selecting_part(comparison.plan.recipe))
    else:
        forest = figure.subplots()
        figure.subplots_adjust(left=0.29, right=0.735, **place)
    _forest(forest, comparison, blocks)
    if titled:
        _title(figure, comparison, title)
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure so that the file is either the old one or the whole new one.

    Raises:
        RunError: if the folder takes no more.
    """
    with writing(path) as part:
        figure.savefig(part, format="png", dpi=DPI, facecolor="white")


def svg(figure: Figure) -> bytes:
    """A figure as SVG, letters as shapes (no font is needed to read it), the same bytes every time."""
    held = io.BytesIO()
    with rc_context({"svg.hashsalt": "setwise", "svg.fonttype": "path"}):
        metadata: Any = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(held, format="svg", facecolor="white", metadata=metadata)
    return held.getvalue()


def plain_axes(axes: Axes) -> None:
    """Only the lines that help reading."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#bbbbbb")
    axes.tick_params(colors=FAINT, labelsize=9, length=3)
    axes.set_axisbelow(True)


def _title(figure: Figure, comparison: Comparison, lines: list[str]) -> None:
    recipe, height = comparison.plan.recipe, figure.get_figheight()
    figure.text(
        0.012,
        1 - 0.12 / height,
        "\n".join(lines),
        ha="left",
        va="top",
        fontsize=11,
        fontweight="bold",
        color=INK,
    )
    told = f"{recipe.name}: related - control in {names_of(_metrics(comparison))(recipe.primary)}"
    below = 1 - (0.15 + LINE * len(lines)) / height
    figure.text(
        0.012, below, textwrap.shorten(told, SENTENCE), ha="left", va="top", fontsize=9, color=FAINT, parse_math=False
    )


def _metrics(comparison: Comparison) -> set[str]:
    return {comparison.primary.metric} | {d.metric for d in comparison.others}


def _forest_blocks(comparison: Comparison) -> list[list[str]]:
    """Metrics of the adjusted block and of the raw one (the primary's kind first), each from the whole to the few."""
    base = comparison.primary.metric.removeprefix(ADJUSTED)
    whole = ["balanced_accuracy", "mean_average_precision"] if base in ("many", "medium", "few") else [base]
    blocks = []
    for prefix in (ADJUSTED, "") if comparison.primary.metric.startswith(ADJUSTED) else ("", ADJUSTED):
        block = [prefix + name for name in (*whole, "many", "medium", "few")]
        blocks.append([metric for metric in block if comparison.find(metric, "related", "control") is not None])
    return [block for block in blocks if block]


def _forest(axes: Axes, comparison: Comparison, blocks: list[list[str]]) -> None:
    plain_axes(axes)
    axes.spines["left"].set_visible(False)
    axes.axvline(0, color=INK, linewidth=0.9, zorder=1)
    beside = blended_transform_factory(axes.transAxes, axes.transData)
    label: dict[str, Any] = {"transform": beside, "fontsize": 9, "ha": "right", "va": "center"}
    names, place = names_of([]), 0.0
    for number, block in enumerate(blocks):
        ink, colour = (INK, COLOURS["related"]) if number == 0 else (FAINT, RAW)
        if len(blocks) > 1:
            heading = "adjusted for class bias" if block[0].startswith(ADJUSTED) else "raw scores"
            axes.text(-0.02, place + 0.1, heading, style="italic", **(label | {"fontsize": 8.5, "color": ink}))
            place += 1
        for metric in block:
            weight = "bold" if metric == comparison.primary.metric else "normal"
            name = names(metric.removeprefix(ADJUSTED))
            axes.text(-0.02, place, name, fontweight=weight, **(label | {"color": ink}))
            _forest_row(axes, comparison, metric, place, colour=colour, ink=ink)
            place += 1
    axes.set_yticks([])
    axes.set_ylim(place - 0.4, -0.6)
    axes.margins(x=0.06)
    axes.set_xlabel("difference in percentage points", fontsize=9, color=FAINT)
    axes.grid(axis="x", color="#eeeeee")
    axes.text(
        1.03,
        1 + 4 / axes.bbox.height,
        "related - control [95 %]",
        transform=axes.transAxes,
        fontsize=8.5,
        color=FAINT,
        va="bottom",
    )
    _forest_key(axes)


def _forest_row(axes: Axes, comparison: Comparison, metric: str, place: float, *, colour: str, ink: str) -> None:
    is_primary = metric == comparison.primary.metric
    if is_primary:
        axes.axhspan(place - 0.5, place + 0.5, color="#fdf0e6", zorder=0, linewidth=0)
    found = comparison.find(metric, "related", "control")
    beside = comparison.find(metric, "related", "plain")
    if found is not None:
        _mark(axes, found, place - 0.14, colour=colour, filled=True, strong=is_primary)
        right = blended_transform_factory(axes.transAxes, axes.transData)
        told = f"{points(found.interval.estimate)}  {interval(found.interval)}"
        weight = "bold" if is_primary else "normal"
        axes.text(1.03, place, told, transform=right, fontsize=8.5, va="center", color=ink, fontweight=weight)
    if beside is not None:
        _mark(axes, beside, place + 0.2, colour=colour, filled=False, strong=False)


def _mark(axes: Axes, found: Difference, place: float, *, colour: str, filled: bool, strong: bool) -> None:
    """A dot with its interval; one seed has the dot alone."""
    ends = 100 * np.array([found.interval.low, found.interval.high])
    if not math.isnan(ends[0]):
        axes.plot(ends, [place, place], color=colour, linewidth=2.6 if strong else 1.5 if filled else 1.0, zorder=2)
    axes.plot(
        [100 * found.interval.estimate],
        [place],
        marker="o",
        linestyle="none",
        color=colour,
        markersize=7.5 if strong else 5.5 if filled else 4.5,
        markerfacecolor=colour if filled else "white",
        zorder=3,
    )


def _forest_key(axes: Axes) -> None:
    for filled, text in ((True, "related - control"), (False, "related - plain")):
        axes.plot(
            [],
            [],
            marker="o",
            color=COLOURS["related"],
            linewidth=1.2,
            markersize=5.5,
            label=text,
            markerfacecolor=COLOURS["related"] if filled else "white",
        )
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 0.995),
        ncols=2,
        frameon=False,
        fontsize=8.5,
        borderpad=0,
        handlelength=1.6,
        columnspacing=1.4,
        labelcolor=INK,
    )


def _trade_off(axes: Axes, curves: list[Curve], part: str) -> None:
    plain_axes(axes)
    axes.grid(color="#eeeeee")
    groups = all({"many", "few"} <= set(curve.values) for curve in curves)
    chosen = [float(np.mean(curve.chosen)) for curve in curves]
    ends = min(0.0, *chosen) - 1e-9, max(MOST_TAU, *(tau + 0.3 for tau in chosen)) + 1e-9
    for curve in sorted(curves, key=lambda c: list(COLOURS).index(c.arm)):
        _draw_curve(axes, curve, groups=groups, ends=ends)
    if groups:
        axes.set_xlabel("many-shot accuracy in percent", fontsize=9, color=FAINT)
        axes.set_ylabel("few-shot accuracy in percent", fontsize=9, color=FAINT)
    else:
        axes.set_xlabel("strength τ of logit adjustment", fontsize=9, color=FAINT)
        axes.set_ylabel("balanced accuracy in percent", fontsize=9, color=FAINT)
    _trade_off_key(axes, part)


def _trade_off_key(axes: Axes, part: str) -> None:
    """Lines and dots above the axes, where no curve can run through them."""
    look: dict[str, Any] = {"loc": "lower left", "frameon": False, "fontsize": 8.5, "labelcolor": INK, "borderpad": 0}
    look |= {"columnspacing": 1.2, "handletextpad": 0.5}
    lines, arms = axes.get_legend_handles_labels()
    high = 1 + KEY_LINE / axes.bbox.height
    axes.add_artist(axes.legend(lines, arms, ncols=3, bbox_to_anchor=(-0.02, high), handlelength=2.4, **look))
    for fill, text in (("white", "raw (τ = 0)"), (INK, f"mean τ from {part}")):
        axes.plot([], [], marker="o", color=INK, markerfacecolor=fill, linestyle="none", markersize=6, label=text)
    dots, texts = axes.get_legend_handles_labels()
    axes.legend(dots[len(lines) :], texts[len(lines) :], ncols=2, bbox_to_anchor=(-0.02, 0.995), handlelength=1, **look)


def _draw_curve(axes: Axes, curve: Curve, *, groups: bool, ends: tuple[float, float]) -> None:
    taus, colour = np.array(curve.taus), COLOURS[curve.arm]
    names = ("many", "few") if groups else (None, "balanced_accuracy")
    x, y = (taus if name is None else 100 * np.array(curve.values[name]) for name in names)
    style: Any = STYLES[curve.arm]
    shown = (ends[0] <= taus) & (taus <= ends[1])
    axes.plot(x[shown], y[shown], color=colour, linestyle=style, linewidth=1.8, label=curve.arm, zorder=2)
    for tau, fill, size in ((0.0, "white", 6.0), (float(np.mean(curve.chosen)), colour, 6.5)):
        axes.plot(
            [np.interp(tau, taus, x)],
            [np.interp(tau, taus, y)],
            marker="o",
            linestyle="none",
            color=colour,
            markerfacecolor=fill,
            markersize=size,
            zorder=3,
        )
