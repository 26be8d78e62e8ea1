"""Training curves of the two streams, apart, as small multiples."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from setwise.report.figures import COLOURS, FAINT, INK, STYLES, plain_axes
from setwise.report.records import Curves
from setwise.report.wording import names_of

__all__ = ["curves_figure"]

PANELS = (
    {"train/plain_loss": "loss, plain stream", "train/plain_accuracy": "training accuracy in %, plain stream"},
    {"train/related_loss": "loss, related stream", "train/related_accuracy": "training accuracy in %, related stream"},
)
"""Rows of the picture: quantity -> title."""
OTHERS = ("#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Of arms beyond the three, of the same palette."""


def curves_figure(arms: Mapping[str, Curves], primary: str, part: str = "validation") -> Figure | None:
    """One panel a quantity, one line an arm, mean over seeds; None where fewer than two epochs were logged.

    Args:
        arms: arm -> quantity -> epoch -> value, from :func:`~setwise.report.records.training_curves`.
        primary: metric whose curve on the part that selects is shown.
        part: what this is called.
    """
    validation = {f"val/{primary}": f"{names_of([])(primary)} in %, {part}"}
    logged = {name for curves in arms.values() for name, curve in curves.items() if len(curve) > 1}
    rows = [
        {name: title for name, title in row.items() if name in logged} for row in (PANELS[0] | validation, PANELS[1])
    ]
    rows = [row for row in rows if row]
    if not rows:
        return None
    figure = Figure(figsize=(10, 0.5 + 2.3 * len(rows)), dpi=100, layout="constrained")
    grid = figure.subplots(len(rows), max(map(len, rows)), squeeze=False)
    for line, row in zip(grid, rows, strict=True):
        for axes, (name, title) in zip(line, row.items(), strict=False):
            axes.set_title(title, fontsize=9, color=INK, loc="left")
            _draw(axes, name, arms)
        for axes in line[len(row) :]:
            axes.set_axis_off()
    if len(arms) > 1:
        drawn = {text: line for axes in grid.flat for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
        look: dict[str, Any] = {"frameon": False, "fontsize": 9, "labelcolor": INK}
        figure.legend(drawn.values(), drawn, loc="outside upper left", ncols=len(drawn), **look)
    return figure


def _draw(axes: Axes, name: str, arms: Mapping[str, Curves]) -> None:
    colours = COLOURS | dict(zip((arm for arm in arms if arm not in COLOURS), OTHERS, strict=False))
    plain_axes(axes)
    axes.grid(color="#eeeeee")
    axes.set_xlabel("epoch", fontsize=8.5, color=FAINT)
    scale = 1 if name.endswith("loss") else 100
    for arm, curves in arms.items():
        if curve := curves.get(name):
            look: dict[str, Any] = {
                "color": colours.get(arm, FAINT),
                "linestyle": STYLES.get(arm, "solid"),
                "linewidth": 1.5,
            }
            axes.plot(list(curve), [scale * value for value in curve.values()], label=arm, **look)
