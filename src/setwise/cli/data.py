"""``setwise data``: where a data set comes from, and whether the files that are there are it."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from setwise.cli.known_sets import show_known_set
from setwise.cli.options import NAMELESS, find_recipe, parse_with_recipe, take_name
from setwise.errors import choose
from setwise.recipes import RECIPES, Recipe

__all__ = ["data_"]

SHOWN = 10
"""Classes listed from either end of a long table."""


@dataclass
class _Data:
    """Say where a data set comes from and what it must look like, load it as a recipe would, and count its classes."""


def data_(args: Sequence[str]) -> None:
    """``setwise data NAME``, the name of a data set, a benchmark that comes as lists, or a recipe."""
    from setwise.data import DATASETS, DataSet
    from setwise.data.few_shot import FEW_SHOT, FewShotSet
    from setwise.data.known_sets import KNOWN_SETS

    name, rest = take_name("data", args, "the name of a data set or a recipe")
    if name in KNOWN_SETS:
        show_known_set(KNOWN_SETS[name], rest)
        return
    known: dict[str, DataSet | FewShotSet] = {**DATASETS, **FEW_SHOT}
    if name in known:
        task, default = ("few-shot", "omniglot-ctx") if name in FEW_SHOT else ("classification", "digits-lt")
        recipe = next((r for r in RECIPES.values() if (r.data.name, r.task) == (name, task)), RECIPES[default])
        if recipe.data.name != name:
            recipe = recipe.override({"data.name": name, "data.root": None})
    elif "/" in name or "." in name or name == NAMELESS:
        recipe = find_recipe(name)
    else:
        recipe = RECIPES[choose(name, sorted({*RECIPES, *known, *KNOWN_SETS}), "recipe or data set")]
    _, recipe = parse_with_recipe("data", name, _Data, recipe, rest)
    about = choose(recipe.data.name, known, "data set")
    console = Console(markup=False, highlight=False)  # class names are folder names, with brackets and all
    console.print(f"{about.name}: {about.summary}\nsource: {about.source}\nlicence: {about.licence}")
    console.print(about.how_to_get, "")
    (_show_pools if recipe.task == "few-shot" else _show_splits)(recipe, console)


def _show_splits(recipe: Recipe, console: Console) -> None:
    from setwise.build import build_data

    splits = build_data(recipe)
    sizes = ", ".join(f"{part} {len(getattr(splits, part))}" for part in ("train", "val", "test"))
    console.print(f"{splits.num_classes} classes; images: {sizes}", style="bold")
    for note in splits.notes:
        console.print(note)
    counts = sorted(zip(splits.train_counts.tolist(), splits.class_names, strict=True), reverse=True)
    table = Table("training images", "class", box=None, pad_edge=False)
    shown = counts if len(counts) <= 2 * SHOWN else [*counts[:SHOWN], *counts[-SHOWN:]]
    for number, (count, label) in enumerate(shown):
        if number == SHOWN and len(counts) > 2 * SHOWN:
            table.add_row("...", f"{len(counts) - 2 * SHOWN} more")
        table.add_row(str(count), Text(label))
    console.print(table)


def _show_pools(recipe: Recipe, console: Console) -> None:
    from setwise.build import build_episode_data

    sets = build_episode_data(recipe)
    table = Table("set", "part", "classes", "images", "of a class", "first class", box=None, pad_edge=False)
    for name, splits in sets.items():
        for part in ("train", "val", "test"):
            pool = getattr(splits, part)
            counts = pool.counts.tolist()
            numbers = (str(pool.num_classes), str(len(pool)), f"{min(counts)} to {max(counts)}" if counts else "-")
            table.add_row(Text(name), part, *numbers, Text("".join(pool.class_names[:1])))
    console.print(table)
    for name, splits in sets.items():
        for note in splits.notes:
            console.print(note if len(sets) == 1 else f"{name}: {note}")
