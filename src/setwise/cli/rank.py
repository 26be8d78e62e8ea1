"""``setwise rank``: few-shot runs side by side, a column a data set, and their mean rank."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from setwise.cli.options import parse
from setwise.data.few_shot import CLASS_FOLDERS, META_DATASET
from setwise.errors import InvalidInput
from setwise.machine import at_home
from setwise.recipes import Recipe, yaml_file
from setwise.run_folder import RunFolder, read_lines

__all__ = ["rank_"]

ACCURACY, INTERVAL = "accuracy/", "accuracy_interval/"


@dataclass
class _Rank:
    """Show the accuracy of few-shot runs on each data set, in percent with half of its 95 % interval over episodes.

    A column is a data set with one form of episodes, 5-way 1-shot say. The rank is the mean over the columns that all
    rows have, 1 the best. Below stand the numbers that the recipes of the runs report from the literature; they were
    taken on other episodes and mostly other trunks, and have no part in the rank.
    """

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN...")]
    """Folders of few-shot runs."""


def rank_(args: Sequence[str]) -> None:
    """``setwise rank RUN...``."""
    runs = parse("rank", _Rank, args).runs
    if not runs:
        raise InvalidInput("Name few-shot runs: setwise rank RUN...")
    from setwise.metrics import mean_rank

    ours = {str(run): _measured(RunFolder(run)) for run in dict.fromkeys(runs)}
    ranks = mean_rank({name: {data: value for data, (value, _) in row.items()} for name, row in ours.items()})
    reported = _reported(runs)
    columns = list(
        dict.fromkeys([*(c for row in ours.values() for c in row), *(c for r in reported.values() for c in r)])
    )
    table = Table(box=None, pad_edge=False)
    for heading in ("run", *columns, "rank"):
        table.add_column(Text(heading))  # a folder's name is no markup
    for name, row in ours.items():
        cells = (f"{100 * row[c][0]:.1f} ± {100 * row[c][1]:.1f}" if c in row else "" for c in columns)
        table.add_row(Text(name), *cells, f"{ranks[name]:.2f}")
    for name, values in reported.items():
        table.add_row(Text(name, style="dim"), *(f"{100 * values[c]:.1f}" if c in values else "" for c in columns), "")
    Console().print(table)


def _measured(folder: RunFolder) -> dict[str, tuple[float, float]]:
    """Data set -> mean accuracy and half of its interval."""
    recipe = yaml_file.read(folder.require(folder.recipe, "recipe"))
    if recipe.task != "few-shot":
        raise InvalidInput(f"{folder.path} is a {recipe.task} run, but ranks are of few-shot runs.")
    metrics: Mapping[str, float] = read_lines(folder.require(folder.results, "result"))[-1]["metrics"]
    several = [name.removeprefix(ACCURACY) for name in metrics if name.startswith(ACCURACY)]
    if several:
        return {_column(data, recipe): (metrics[ACCURACY + data], metrics[INTERVAL + data]) for data in several}
    name = recipe.data.name
    if name in (CLASS_FOLDERS.name, META_DATASET.name) and recipe.data.root is not None:
        name = at_home(recipe.data.root).resolve().name  # such folders hold any data
    return {_column(name, recipe): (metrics["accuracy"], metrics["accuracy_interval"])}


def _column(data: str, recipe: Recipe) -> str:
    """What was measured: episodes of a fixed form are another test."""
    fixed = {"way": recipe.episodes.n_way, "shot": recipe.episodes.n_shot}
    return " ".join([data, *(f"{number}-{what}" for what, number in fixed.items() if number is not None)])


def _reported(runs: Sequence[Path]) -> dict[str, dict[str, float]]:
    """Recipe and source -> data set -> accuracy, as the recipes of the runs have it."""
    rows: dict[str, dict[str, float]] = {}
    for run in runs:
        recipe = yaml_file.read(RunFolder(run).recipe)
        for number in recipe.reported:
            row = rows.setdefault(f"{recipe.name}, reported: {number.source}", {})
            row[number.metric.removeprefix(ACCURACY)] = number.value
    return rows
