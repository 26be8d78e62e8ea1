"""``setwise data imagenet-lt`` and its like: where images and lists come from, and whether those that are there fit."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from setwise.cli.options import parse
from setwise.errors import DataError, InvalidInput, RunError

if TYPE_CHECKING:
    from setwise.data.known_sets import CheckedList, KnownSet

__all__ = ["show_known_set"]


@dataclass
class _KnownSet:
    """Say where images and lists of a benchmark come from, and check those that are there."""

    root: str | None = None
    """Folder that the paths in the lists are relative to; None: no image is looked for."""
    lists: Path | None = None
    """Folder of the lists, and for those that are made; None: the working directory, then the root."""
    train_json: Path | None = None
    """inaturalist2018: official annotations to make the training list of (train2018.json)."""
    val_json: Path | None = None
    """inaturalist2018: official annotations to make the validation list of (val2018.json)."""


def show_known_set(known: "KnownSet", args: Sequence[str]) -> None:
    """``setwise data NAME`` of a known set.

    Raises:
        DataError: if something is not there, or not as published.
    """
    from setwise.data.known_sets import check_lists

    options = parse(f"data {known.name}", _KnownSet, args)
    console = Console(markup=False, highlight=False, soft_wrap=True)
    _say(known, console)
    if made := {part: file for part, file in (("train", options.train_json), ("val", options.val_json)) if file}:
        _make_lists(known, made, options.lists or Path(), console)
    if options.root is None and options.lists is None and not made:
        console.print("to check yours: --root DIR, the folder of the images, and --lists DIR, that of the lists")
        return
    checked = check_lists(known, root=options.root, lists=options.lists)
    _show(known, checked, console)
    if problems := [problem for one in checked for problem in one.problems]:
        raise DataError(f"{known.name} is not as published: {'; '.join(problems)}.")
    files = {one.part: str(one.file) for one in checked}
    words = ["setwise", "train", known.recipe, "--data.root", options.root or "DIR"]
    for part in ("train", "val", "test"):
        name = "test" if part == "val" and known.val_is_test else part
        words += [f"--data.{name}-list", files[part]] if part in files else []
    what = "lists" if options.root is None else "lists and images"
    console.print(f"{what} are as published; to train: {shlex.join(words)}")


def _say(known: "KnownSet", console: Console) -> None:
    parts = ", ".join(f"{part} {size:,}" for part, size in known.sizes.items())
    many, medium, few = known.groups
    console.print(
        f"{known.name}: {known.summary}\nimages: {known.images}\nlayout: {known.layout}\nlists: {known.lists}\n"
        f"licence: {known.licence}\nsource: {known.source}\n"
        f"published: {known.num_classes:,} classes; images: {parts}; of a class in train {known.smallest:,} to "
        f"{known.largest:,}; {many} many-, {medium} medium-, {few} few-shot classes\n"
    )


def _make_lists(known: "KnownSet", made: dict[str, Path], folder: Path, console: Console) -> None:
    """Read all annotations before the first list is written."""
    from setwise.data.annotations import lines_of, write_list

    if not known.annotations:
        raise InvalidInput(f"The lists of {known.name} are published as they are ({known.lists}), not made from JSON.")
    paths = {part: folder / known.files[part] for part in made}
    if there := [str(path) for path in paths.values() if path.exists()]:
        raise RunError(f"{there[0]} exists already and is not overwritten; name another folder with --lists.")
    lines = {part: lines_of(file) for part, file in made.items()}
    for part, file in made.items():
        if len(lines[part]) != known.sizes[part]:
            raise DataError(
                f"{file} has {len(lines[part]):,} images, but the published {known.annotations[part]} has "
                f"{known.sizes[part]:,}: nothing was written."
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"The folder {folder} cannot be made: {error.strerror}.") from error
    for part, path in paths.items():
        write_list(lines[part], path)
        console.print(f"written {path}: {len(lines[part]):,} lines of {made[part]}")


def _show(known: "KnownSet", checked: "Sequence[CheckedList]", console: Console) -> None:
    import torch

    from setwise.metrics import by_count

    table = Table("part", "list", "images", "published", "of a class", "below the root", box=None, pad_edge=False)
    for one in checked:
        seen = [count for count in one.counts if count]
        of_a_class = f"{min(seen):,} to {max(seen):,}" if seen else "-"
        there = "-" if one.there is None else f"{one.there:,}"
        table.add_row(
            one.part,
            one.file.name if one.file else "not there",
            f"{one.num_images:,}",
            f"{known.sizes[one.part]:,}",
            of_a_class,
            there,
        )
    console.print(table)
    train = next(one for one in checked if one.part == "train")
    seen = [count for count in train.counts if count]
    if seen:
        groups = by_count(torch.tensor(train.counts))
        sizes = ", ".join(f"{int(classes.sum())} {name}" for name, classes in groups.items())
        console.print(
            f"imbalance of train: {max(seen) / min(seen):.4g} (largest over smallest class); classes: {sizes}"
        )
