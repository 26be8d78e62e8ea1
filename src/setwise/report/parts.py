"""Parts that the page of a comparison and the page of a single run share."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from setwise.recipes import RECIPES, Recipe
from setwise.report.curves import curves_figure
from setwise.report.figures import svg
from setwise.report.markup import Html, details, element, image, linked, section, table
from setwise.report.records import training_curves
from setwise.report.wording import selecting_part, signed

__all__ = ["NOT_SAID", "command", "curves_part", "flat", "fold", "heat_table", "recipe_part", "verdict_part"]

SINGLE = {"seed": "seed", "num_seeds": "seeds", "primary": "primary", "select_on": "select-on"}
"""Fields outside the groups that are options of the command line, and what they are called there."""
NOT_SAID = ("name", "summary", "paper", "reported", "ran", "smoke")
"""Fields that do not change a run."""
UNFOLDED = 20
"""Rows up to which a table of classes stands open."""


def verdict_part(kind: str, name: str, word: str, sentence: str) -> Html:
    """The head of a page: what it is about, and the sentence it says."""
    colour = {"": "", "gain": " gain", "loss": " loss"}.get(word, " open")
    return element("header", element("h1", f"{kind} {name}"), element("p", sentence, class_=f"verdict{colour}"))


def fold(rows: Sequence[object], inside: Html, what: str) -> Html:
    """A long table is shown on a click."""
    return details(f"Show {what} ({len(rows)} rows)", inside) if len(rows) > UNFOLDED else inside


def curves_part(folders: dict[str, list[Path]], recipe: Recipe) -> Html | None:
    """Training curves, if the runs logged any.

    Args:
        folders: arm -> its run folders.
        recipe: whose primary metric is shown on the part that selects.
    """
    curves = {arm: training_curves(paths) for arm, paths in folders.items()}
    figure = curves_figure(curves, recipe.primary, selecting_part(recipe))
    if figure is None:
        return None
    many = max(map(len, folders.values()))
    told = f"Mean over {many} seeds. " if many > 1 else ""
    return section(
        "Training",
        image("image/svg+xml", svg(figure), alt="Loss and accuracy of both streams over the epochs, one line an arm"),
        element("p", f"{told}The two streams are shown apart; predictions use the plain stream alone.", class_="faint"),
    )


def heat_table(values: np.ndarray, names: Sequence[str], *, difference: bool) -> Html:
    """Percent by true class (row) and predicted class (column); differences are blue below 0 and orange above."""
    largest = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    rows = [
        [name, *(_heat_cell(100 * values[i, j], 100 * largest, i == j, difference) for j in range(len(names)))]
        for i, name in enumerate(names)
    ]
    return table(["true \\ predicted", *names], rows, class_="heat")


def _heat_cell(value: float, largest: float, same: bool, difference: bool) -> Html:
    if math.isnan(value):
        return element("td", "–")
    text = signed(value) if difference else f"{value:.0f}"
    colour = "--more" if value > 0 else "--less"
    strength = 0.75 * abs(value) / largest
    shown = "" if abs(value) < 0.005 else text  # a table of zeros hides what is there
    kind = {"class_": "same"} if same else {}
    return element("td", shown, style=f"background: rgba(var({colour}), {strength:.2f})", **kind)


def recipe_part(
    recipe_file: Path, facts: dict[str, str], again: str, paper: str, *, notes: Sequence[str] = ()
) -> Html | None:
    """The recipe as it ran, where and with what, and the command that makes it again.

    Args:
        recipe_file: where it is written.
        facts: what else there is to know, by name.
        again: the command.
        paper: what to cite.
        notes: what the data had to say, in sentences.
    """
    pairs = [element("dt", name) + element("dd", value) for name, value in facts.items()]
    return section(
        "Make it again",
        element("pre", again),
        element("dl", *map(Html, pairs)),
        element("p", "Cite: ", linked(paper)) if paper else None,
        details("The recipe", element("pre", recipe_file.read_text(encoding="utf-8"))),
        element("p", "What the data had to say:") if notes else None,
        element("ul", *(element("li", note) for note in notes)) if notes else None,
    )


def command(verb: str, recipe: Recipe, *, skip: Sequence[str] = ()) -> str:
    """The command line that runs ``recipe`` again: its name and what differs from the recipe of that name.

    A recipe that cannot be said on one line is run from its file.

    Args:
        verb: compare or train.
        recipe: what ran.
        skip: fields ("group.field") that the caller says in another way.
    """
    known = RECIPES.get(recipe.name)
    if known is None:
        return f"setwise {verb} recipe.yaml"
    now, then = flat(recipe), flat(known)
    if now["backbone.name"] != then["backbone.name"]:
        then["backbone.options"] = {}  # which the command line leaves behind with the name
    told = []
    for field, value in now.items():
        if value == then[field] or field in (*NOT_SAID, *skip):
            continue
        if isinstance(value, dict) or ("." not in field and field not in SINGLE):
            return f"setwise {verb} recipe.yaml"
        if verb == "compare" or field != "num_seeds":  # which a single run does not have
            told += _option(SINGLE.get(field, field), value)
    return " ".join([f"setwise {verb} {shlex.quote(recipe.name)}", *told])


def _option(field: str, value: Any) -> list[str]:
    """A field as words of the command line."""
    group, _, name = field.replace("_", "-").rpartition(".")
    if isinstance(value, bool):
        return [f"--{group}.{name if value else f'no-{name}'}"]
    values = value if isinstance(value, tuple) else (value,)
    return [f"--{group}{'.' * bool(group)}{name}", *(shlex.quote(str(one)) for one in values)]


def flat(recipe: Recipe) -> dict[str, Any]:
    """The fields of a recipe by their paths.

    >>> flat(RECIPES["digits-lt"])["trainer.epochs"]
    60
    """
    fields: dict[str, Any] = {}
    for name, value in asdict(recipe).items():
        if isinstance(value, dict) and name != "smoke":
            fields |= {f"{name}.{field}": inner for field, inner in value.items()}
        else:
            fields[name] = value
    return fields
