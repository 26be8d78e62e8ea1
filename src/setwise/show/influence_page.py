"""The influence of classes on each other as pictures, as one page, and as a table to go on with."""

import csv
import io
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from setwise.report.markup import Html, details, document, element, image, section, table
from setwise.run_folder import write_whole
from setwise.show.files import DPI, new_folder, png
from setwise.show.influence import GROUPS, Measured, between_groups

__all__ = ["PAGE", "gradient_figure", "matrix_figure", "write_influence"]

PAGE = "influence.html"
COLOURS = ("#0072b2", "#6e6e6e", "#d55e00")
"""Of many-, medium- and few-shot classes: blue, grey and vermillion of Okabe and Ito, 2008."""
NAMED = 25
"""Most classes whose names stand at an axis."""
DRAWN = 200
"""Most rows of a heat map; of more classes, neighbours in size are averaged."""
LISTED = 200
"""Most classes in the page's table; the CSV file has all."""
LETTERS = 18
MISSING = "#b8b8b8"
LEAST = 0.1
"""Departure from the centre, at least, that has the strongest colour."""
LUMINANCE = (0.299, 0.587, 0.114)
"""Of red, green and blue: ITU-R BT.601."""


def write_influence(one: Measured, folder: Path, *, title: str) -> Path:
    """Write ``gradient.png``, ``attention.png``, ``gradient-between.png``, ``influence.csv`` and the page with them.

    Args:
        one: what was measured.
        folder: new or empty.
        title: of the page.

    Returns:
        The page.

    Raises:
        RunError: if the folder holds something, or cannot be written.
    """
    new_folder(folder)
    pictures = {"gradient": png(gradient_figure(one))}
    if one.found.attention is not None:
        weights = one.found.attention.numpy() / one.found.uniform
        pictures["attention"] = png(matrix_figure(one, weights, ATTENTION, centre=1.0))
    pictures["gradient-between"] = png(matrix_figure(one, one.found.gradient_between.numpy(), BETWEEN))
    for name, drawn in pictures.items():
        write_whole(folder / f"{name}.png", drawn)
    write_whole(folder / "influence.csv", _as_csv(one))
    shown = {name: image("image/png", drawn, alt=_sentences(one)[name]) for name, drawn in pictures.items()}
    told = {name: element("p", text, class_="faint") for name, text in _sentences(one).items()}
    attention = shown.get("attention") or element("p", "The relation has no attention from sample to sample to show.")
    page = document(
        title,
        element("h1", title),
        element("p", _about(one), class_="faint"),
        section("Gradient on the other samples", told["gradient"], shown["gradient"], _groups_table(one)),
        section("Attention from class to class", told["attention"], attention),
        section("Gradient from class to class", told["gradient-between"], shown["gradient-between"]),
        section("Classes", _classes_table(one)),
    )
    write_whole(folder / PAGE, page)
    return folder / PAGE


ATTENTION = "attention weight, 1 = all alike"
BETWEEN = "mean absolute gradient"


def _about(one: Measured) -> str:
    part = {"test": "test part", "val": "validation part", "train": "training part, augmented as in training"}
    alone = {
        "self": " In this run a sample attends to itself alone (relation.attend self, the control), so nothing reaches "
        "the others.",
        "all": "",
        "uniform": " In this run all are attended to alike (relation.attend uniform).",
    }.get(one.attend, f" Whom a sample may attend to is limited as in training: relation.attend {one.attend}.")
    return (
        f"Measured on {int(one.found.samples.sum()):,} images of the {part[one.part]}, in batches of {one.batch_size} "
        f"drawn at random, with the trained network and no dropout.{alone} Values fall as batches grow: compare runs "
        "by one batch size. Classes are ordered by their training images, the largest first."
    )


def _sentences(one: Measured) -> dict[str, str]:
    return {
        "gradient": (
            f"The loss of one sample ({one.criterion}), of its related feature, is differentiated on "
            f"the features of the {one.batch_size - 1} other samples of its batch, before the relation. Each dot is a "
            "class: the mean absolute value over those samples and their channels, averaged over the images of the "
            "class; in units of loss per unit of feature. Without a relation it is zero."
        ),
        "attention": (
            "Attention weights between samples of two classes, averaged over heads, both directions and all pairs of a "
            f"batch, as multiples of {one.found.uniform:.2g}, the weight if all were attended to alike. A sample's "
            "attention to itself counts among its own class. Grey: no such pair was seen."
        ),
        "gradient-between": (
            "Row: class of the sample whose loss it is. Column: class of the other sample on whose feature it is "
            "differentiated. Mean absolute value over channels, averaged over all pairs of two samples; in units of "
            "loss per unit of feature. Grey: no such pair was seen."
        ),
    }


def gradient_figure(one: Measured) -> Figure:
    """A dot a class, from the largest to the smallest, the mean of each group, and the mean of all classes so far."""
    figure = Figure(figsize=(10, 4.2), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    values, group = one.found.gradient.numpy(), np.array(one.group)
    for number, (name, mean) in enumerate(zip(GROUPS, one.mean_of_groups, strict=True)):
        places = np.flatnonzero(group == number)
        if np.isnan(mean):  # no class of it, or none that was seen
            continue
        label = f"{name}, {len(places)} classes: {mean:.3g}"
        size = 5 if len(values) <= DRAWN else 2
        axes.plot(places, values[places], "o", color=COLOURS[number], markersize=size, alpha=0.7, label=label)
        axes.hlines(mean, places[0] - 0.5, places[-1] + 0.5, color=COLOURS[number], linewidth=2.5)
    seen = ~np.isnan(values)
    if seen.any():
        so_far = np.cumsum(values[seen]) / np.arange(1, seen.sum() + 1)
        axes.plot(np.flatnonzero(seen), so_far, color="black", linewidth=1, label="mean of the classes so far")
    axes.set_ylim(bottom=0)
    axes.set_xlim(-0.7, len(values) - 0.3)
    axes.set_ylabel("mean absolute gradient\non the other samples' features", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.ticklabel_format(axis="y", scilimits=(-2, 3))
    axes.tick_params(labelsize=8)
    if len(values) <= NAMED:
        names = [f"{_short(name)} ({count:,})" for name, count in zip(one.names, one.counts, strict=True)]
        _name(axes, "x", names)
        axes.set_xlabel("class and its training images", fontsize=9)
    else:
        axes.set_xlabel("class, from the largest to the smallest in training images", fontsize=9)
    axes.legend(fontsize=8, frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def matrix_figure(one: Measured, values: Float[np.ndarray, "K K"], what: str, *, centre: float | None = None) -> Figure:
    """All classes on the left, with lines between the groups, and on the right the means of the groups as numbers.

    Args:
        one: what was measured.
        values: to be drawn, in its order of classes.
        what: they are, at the key of colours.
        centre: value from which others depart in both directions; None: values begin at zero.
    """
    figure = Figure(figsize=(10, 5.2), dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.6, 1))
    group = np.array(one.group)
    drawn = _coarse(values)
    colours = _colours(drawn, centre)
    figure.colorbar(
        _heat(left, drawn, colours), ax=left, shrink=0.8, label=what, extend="max" if centre is None else "both"
    )
    scale = len(drawn) / len(values)
    for border in np.flatnonzero(np.diff(group)) + 1:
        for line in (left.axhline, left.axvline):
            line(border * scale - 0.5, color="black" if centre is not None else "white", linewidth=1.2)
    if len(values) <= NAMED:
        for axis in "xy":
            _name(left, axis, [_short(name) for name in one.names])
    else:
        left.set_xticks([])
        left.set_yticks([])
        together = "" if len(drawn) == len(values) else f", {len(values) / len(drawn):.3g} in a cell"
        left.set_xlabel(f"{len(values):,} classes, the largest first{together}", fontsize=9)
    there = [number for number in range(len(GROUPS)) if number in one.group]
    means = between_groups(values, one.group)[np.ix_(there, there)]
    picture = _heat(right, means, colours)
    for row, column in np.ndindex(means.shape):
        _number(right, row, column, float(means[row, column]), picture)
    for axis in "xy":
        _name(right, axis, [GROUPS[number] for number in there], slanted=False)
    right.set_title("means over pairs of classes", fontsize=9)
    return figure


def _colours(values: np.ndarray, centre: float | None) -> dict[str, Any]:
    """Map and limits; a few extreme cells would hide all others, and noise around the centre is not to look large."""
    there = values[np.isfinite(values)]
    if centre is None:
        return {"cmap": "viridis", "vmin": 0, "vmax": max(np.percentile(there, 99) if len(there) else 1.0, 1e-30)}
    far = max(np.percentile(np.abs(there - centre), 99) if len(there) else 0.0, LEAST)
    return {"cmap": "RdBu_r", "vmin": centre - far, "vmax": centre + far}


def _coarse(values: Float[np.ndarray, "K K"]) -> np.ndarray:
    """At most ``DRAWN`` rows and columns, each the mean of what was seen of neighbouring classes."""
    if len(values) <= DRAWN:
        return values
    starts = np.linspace(0, len(values), DRAWN, endpoint=False).astype(int)

    def added(cells: np.ndarray) -> np.ndarray:
        return np.add.reduceat(np.add.reduceat(cells, starts, axis=0), starts, axis=1)

    number = added((~np.isnan(values)).astype(float))
    return np.where(number > 0, added(np.nan_to_num(values)) / np.maximum(number, 1), np.nan)


def _heat(axes: Axes, values: np.ndarray, colours: dict[str, Any]) -> AxesImage:
    axes.set_facecolor(MISSING)
    axes.tick_params(length=0)
    return axes.imshow(values, interpolation="nearest", **colours)


def _number(axes: Axes, row: int, column: int, value: float, picture: AxesImage) -> None:
    dark = not np.isnan(value) and np.dot(picture.to_rgba(np.array(value))[:3], LUMINANCE) < 0.5
    text = "none" if np.isnan(value) else f"{value:#.3g}"
    axes.text(column, row, text, ha="center", va="center", fontsize=10, color="white" if dark else "black")


def _name(axes: Axes, axis: str, names: list[str], *, slanted: bool = True) -> None:
    places = range(len(names))
    if axis == "x":
        slant: Any = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
        axes.set_xticks(places, names, fontsize=8, parse_math=False, **slant)
    else:
        axes.set_yticks(places, names, fontsize=8, parse_math=False)


def _short(name: str) -> str:
    return textwrap.shorten(name, LETTERS, placeholder="…") if " " in name else name[:LETTERS]


def _groups_table(one: Measured) -> Html:
    means, rows = one.mean_of_groups, []
    for number, (name, mean) in enumerate(zip(GROUPS, means, strict=True)):
        if number in one.group:
            ratio = f"{mean / means[0]:.2f}" if means[0] > 0 and not np.isnan(mean) else "-"
            images = sum(n for n, g in zip(one.found.samples.tolist(), one.group, strict=True) if g == number)
            rows.append(
                [name, str(one.group.count(number)), f"{images:,}", "-" if np.isnan(mean) else f"{mean:.3g}", ratio]
            )
    return table(["classes", "how many", "images measured", "mean gradient", "over that of many"], rows)


def _classes_table(one: Measured) -> Html:
    heads = ["class", "training images", "group", "images measured", "gradient"]
    rows = [
        [name, f"{count:,}", GROUPS[group], str(samples), "-" if np.isnan(value) else f"{value:.3g}"]
        for name, count, group, samples, value in _rows(one)
    ]
    more = f" (the first {LISTED} of {len(rows)}; influence.csv has all)" if len(rows) > LISTED else ""
    return details(f"Every class{more}", table(heads, rows[:LISTED]))


def _rows(one: Measured) -> list[tuple[str, int, int, int, float]]:
    samples, gradient = one.found.samples.tolist(), one.found.gradient.tolist()
    return list(zip(one.names, one.counts, one.group, samples, gradient, strict=True))


def _as_csv(one: Measured) -> str:
    held = io.StringIO()
    writer = csv.writer(held, lineterminator="\n")
    writer.writerow(["class", "train_images", "group", "images", "gradient"])
    writer.writerows(
        [name, count, GROUPS[group], samples, "" if np.isnan(value) else f"{value:.6g}"]
        for name, count, group, samples, value in _rows(one)
    )
    return held.getvalue()
