"""Supervision collapse as a page: queries of new classes, their nearest neighbours, and what these are.

As in the paper's first figure: the neighbours of the commonest wrong class are framed, test classes are marked.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from setwise.collapse import Found, Gallery, rows
from setwise.report.markup import Html, document, element, image, section, table
from setwise.run_folder import write_whole
from setwise.show.files import DPI, new_folder, png

__all__ = ["PAGE", "neighbours_figure", "shares_table", "write_neighbours"]

PAGE = "collapse.html"
NUMBERS = "collapse.json"
FRAME = "#d55e00"
"""Of neighbours of the commonest wrong class; the mark of test classes is MARK (Okabe and Ito, 2008)."""
MARK = "#0072b2"
SIDE = 1.1
"""Inches of a picture."""
LETTERS = 16
"""Of a class name under a picture."""
HEADS = (
    "network",
    "queries",
    "same class",
    "by chance",
    "one wrong class",
    "of training classes",
    "by chance",
    "any right",
)


def shares_table(found: Sequence[Found]) -> list[list[str]]:
    """One row a network and kind of query, in percent; columns are ``HEADS``."""
    return [
        [name, kind, *(f"{100 * value:.1f}" for value in (
            shares.same_class,
            shares.chance_same_class,
            shares.modal_wrong,
            shares.from_train,
            shares.chance_from_train,
            shares.any_correct,
        ))]
        for name, kind, shares in rows(found)
    ]  # fmt: skip


def neighbours_figure(one: Found, gallery: Gallery) -> Figure:
    """A row for each shown query: itself, then its neighbours, nearest first."""
    count, across = len(one.shown), 1 + one.neighbours.shape[1]
    figure = Figure(figsize=(SIDE * across, (SIDE + 0.32) * count + 0.1), dpi=DPI, layout="constrained")
    grid = figure.subplots(count, across, squeeze=False)
    for row, (query, neighbours) in zip(
        grid, zip(one.shown.tolist(), one.neighbours.tolist(), strict=True), strict=True
    ):
        own = int(gallery.target[query])
        wrong = Counter(label for n in neighbours if (label := int(gallery.target[n])) != own)
        commonest, times = wrong.most_common(1)[0] if wrong else (None, 0)
        _draw(row[0], gallery, query, framed=False)
        for axes, neighbour in zip(row[1:], neighbours, strict=True):
            _draw(axes, gallery, neighbour, framed=times > 1 and int(gallery.target[neighbour]) == commonest)
    return figure


def _draw(axes: Axes, gallery: Gallery, place: int, *, framed: bool) -> None:
    label = int(gallery.target[place])
    new = label >= gallery.num_trained
    axes.imshow(gallery.images[place].permute(1, 2, 0).numpy().astype(np.uint8))
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(framed)
        spine.set_color(FRAME)
        spine.set_linewidth(3)
    name = gallery.class_names[label]
    name = name if len(name) <= LETTERS else f"…{name[1 - LETTERS :]}"
    axes.set_xlabel(name, fontsize=6, color=MARK if new else "black", parse_math=False, labelpad=1)
    if new:
        axes.plot(0.06, 0.06, marker="o", markersize=5, color=MARK, transform=axes.transAxes, clip_on=False)


def write_neighbours(
    found: Sequence[Found], galleries: Sequence[Gallery], folder: Path, *, batch_moments: bool
) -> Path:
    """Write ``NUMBER.png`` for every network, ``collapse.html`` with all of them, and the shares to ``collapse.json``.

    Args:
        found: one a network.
        galleries: what each was looked for in.
        folder: new or empty.
        batch_moments: how features were normalised, to say so.

    Returns:
        The page.

    Raises:
        RunError: if the folder holds something, or cannot be written.
    """
    new_folder(folder)
    parts: list[Html | None] = []
    for number, (one, gallery) in enumerate(zip(found, galleries, strict=True), 1):
        drawn = png(neighbours_figure(one, gallery))
        write_whole(folder / f"{number}.png", drawn)
        said = element("p", f"{one.episodes[0].upper()}{one.episodes[1:]}.", class_="faint")
        picture = image("image/png", drawn, alt=f"Queries and their nearest neighbours: {one.name}")
        parts.append(section(one.name, said, picture))
    write_whole(folder / NUMBERS, json.dumps([_numbers(one) for one in found], indent=2) + "\n")
    shares = section("What the neighbours are, %", table(HEADS, shares_table(found)))
    title = "Supervision collapse"
    write_whole(
        folder / PAGE, document(title, element("h1", title), _about(galleries[0], batch_moments), shares, *parts)
    )
    return folder / PAGE


def _numbers(one: Found) -> dict[str, object]:
    return {"network": one.name, "test_classes": asdict(one.of_test), "training_classes": asdict(one.of_train)}


def _about(gallery: Gallery, batch_moments: bool) -> Html:
    moments = "Features were normalised by the running averages of training, so no image sees another."
    if batch_moments:
        moments = (
            "Features were normalised by the moments of batches of mixed images, as in the paper: images of a batch "
            "see each other then."
        )
    new = len(gallery.class_names) - gallery.num_trained
    said = (
        f"Each row is a query and its nearest neighbours among {len(gallery.images):,} images of {gallery.num_trained} "
        f"training and {new} test classes (blue name and dot). Framed: neighbours of the one wrong class that is "
        "commonest in the row, where it is there twice. Rows are drawn by the seed.",
        moments,
        "A few-shot network compares images within an episode alone. If its episodes were of related classes, classes "
        "that never met may share a place without harm; the rows of training classes tell how much of that there is.",
    )
    return element("div", *(element("p", text, class_="faint") for text in said))
