"""The looks of a network as PNG files, one an image, and as one page."""

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from setwise.data.images import as_text
from setwise.report.markup import Html, document, element, image, section, table
from setwise.run_folder import write_whole
from setwise.show.files import DPI, new_folder, png
from setwise.show.patches import Look, colour_of, multiplied, overlaid, tinted

__all__ = ["PAGE", "figure_of", "write_patches"]

PAGE = "patches.html"
ACROSS = 5
"""Panels in a row."""
SIDE = 2.6
"""Inches of a panel's width: 260 pixels at the 100 to the inch that a screen shows."""
CAPTION = 0.45
LETTERS = 34
"""Of a caption in a line."""


def write_patches(looks: Sequence[Look], folder: Path, *, title: str, notes: Sequence[str] = ()) -> Path:
    """Write ``NUMBER-NAME.png`` for every look, and ``patches.html`` with all of them.

    Args:
        looks: at least one.
        folder: new or empty.
        title: of the page.
        notes: sentences about what is shown.

    Returns:
        The page.

    Raises:
        RunError: if the folder holds something, or cannot be written.
    """
    new_folder(folder)
    digits, parts = len(str(len(looks))), []
    for number, look in enumerate(looks, 1):
        drawn = png(figure_of(look))
        write_whole(folder / f"{number:0{digits}d}-{_file_name(look.path)}.png", drawn)
        parts.append(_part(look, drawn))
    write_whole(folder / PAGE, document(title, element("h1", title), _about(looks, notes), *parts))
    return folder / PAGE


def figure_of(look: Look) -> Figure:
    """The image and its maps: one over the grey image, or one panel a class and all of them together."""
    panels: list[tuple[str, np.ndarray]] = [("as the network sees it", look.image / 255)]
    if look.per_class:
        panels += [(_caption(look, k), multiplied(look, map_)) for k, map_ in enumerate(look.maps)]
        panels.append(("all of them, a colour each", overlaid(look)))
    else:
        panels.append((_caption(look, 0), tinted(look, look.maps[0])))
    across = min(ACROSS, len(panels))
    rows = -(-len(panels) // across)
    height, width = look.image.shape[:2]
    tall = SIDE * height / width + CAPTION
    key = 0.25 * len(look.classes) if look.per_class else 0.0
    figure = Figure(figsize=(SIDE * across, tall * rows + key), dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, across, squeeze=False)
    for axes, (caption, picture) in zip(grid.flat, panels, strict=False):
        axes.set_title(textwrap.shorten(caption, LETTERS, placeholder=" ..."), fontsize=8.5, parse_math=False)
        axes.imshow(picture.clip(0, 1))
    for axes in grid.flat:
        axes.set_axis_off()
    if look.per_class:
        _add_key(figure, look)
    return figure


def _add_key(figure: Figure, look: Look) -> None:
    handles = [Patch(color=colour_of(k)) for k in range(len(look.classes))]
    captions = [_caption(look, k) for k in range(len(handles))]
    key = figure.legend(handles, captions, loc="outside lower left", frameon=False, fontsize=8.5)
    for text in key.get_texts():
        text.set_parse_math(False)


def _caption(look: Look, number: int) -> str:
    return f"{look.classes[number]} ({100 * look.probabilities[number]:.1f} %)"


def _file_name(path: Path) -> str:
    """The image's name without its ending, short enough for any file system."""
    return os.fsencode(path.stem)[:100].decode("utf-8", "replace").replace("�", "_")


def _part(look: Look, drawn: bytes) -> Html | None:
    said = "; ".join(_caption(look, k) for k in range(len(look.classes)))
    heads = ["class", "probability, %", *(["weight on the query itself, %"] if any(look.own) else [])]
    rows = [
        [name, f"{100 * p:.1f}", *([f"{100 * look.own[k if look.per_class else 0]:.1f}"] if any(look.own) else [])]
        for k, (name, p) in enumerate(zip(look.classes, look.probabilities, strict=True))
    ]
    name = as_text(look.path)
    return section(
        name, image("image/png", drawn, alt=f"Where the network looked in {name}: {said}"), table(heads, rows)
    )


def _about(looks: Sequence[Look], notes: Sequence[str]) -> Html:
    if looks[0].per_class:
        told = (
            "Each class has a query of its own. A panel is the image times the map of that query, its highest place as "
            "in the image; the last one has all maps, a colour each, also scaled to their highest places."
        )
    else:
        told = (
            "One query pools the patches for all classes. Its map lies over the grey image, the brighter the more "
            "weight; it is scaled to its highest place."
        )
    caution = (
        "A map shows the weights with which patches were averaged. Whether it also shows what a prediction rests on is "
        "another question: setwise.metrics measures it (deletion, insertion, energy_inside)."
    )
    return element("div", *(element("p", text, class_="faint") for text in (told, caution, *notes)))
