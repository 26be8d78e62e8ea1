"""``setwise list``: what there is."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import tyro
from rich.console import Console
from rich.table import Table

from setwise.cli.options import parse
from setwise.errors import InvalidInput
from setwise.recipes import RECIPES

__all__ = ["list_"]

Tables = Literal["recipes", "datasets", "backbones", "criteria", "transforms", "tasks"]


@dataclass
class _List:
    """Show what there is."""

    what: tyro.conf.Positional[Tables] = "recipes"
    """Which table."""
    pattern: tyro.conf.Positional[str] = "*"
    """Only names that match, "*paco*". Of backbones a pattern searches all of timm's and ours, "vit_small*"; without
    one a few of ours are shown."""


def list_(args: Sequence[str]) -> None:
    """``setwise list [WHAT] [PATTERN]``."""
    options = parse("list", _List, args)
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "", "status" if options.what == "recipes" else ""):
        table.add_column(heading, overflow="fold", no_wrap=heading == "name")
    for row in _rows(options):
        if options.what == "backbones" or fnmatchcase(row[0], options.pattern):  # those have been searched
            table.add_row(*row)
    if not table.row_count:
        raise InvalidInput(f"No name among the {options.what} matches {options.pattern!r}.")
    Console().print(table)


def _rows(options: _List) -> list[tuple[str, ...]]:
    if options.what == "recipes":
        return [(r.name, r.summary, r.status) for r in RECIPES.values()]
    if options.what == "backbones":
        from setwise.models import OURS, list_backbones

        if options.pattern == "*":
            return [(name, _first_line(make)) for name, make in OURS.items()]
        return [(name, "") for name in list_backbones(options.pattern)]
    if options.what == "datasets":
        from setwise.data import DATASETS
        from setwise.data.few_shot import FEW_SHOT
        from setwise.data.known_sets import KNOWN_SETS

        rows = [(d.name, d.summary) for d in DATASETS.values()]
        rows += [(d.name, f"{d.summary} (lists, read as image-list)") for d in KNOWN_SETS.values()]
        return [*rows, *((d.name, d.summary) for d in FEW_SHOT.values())]
    if options.what == "transforms":
        from setwise.data import TRANSFORMS

        return [(name, t.summary) for name, t in TRANSFORMS.items()]
    if options.what == "criteria":
        from setwise.losses import CRITERIA

        return [(name, _first_line(c)) for name, c in CRITERIA.items()]
    from setwise.tasks import TASKS

    return [(name, _first_line(t)) for name, t in TASKS.items()]


def _first_line(documented: object) -> str:
    return (documented.__doc__ or "").splitlines()[0].replace("``", "")
