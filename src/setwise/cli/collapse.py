"""``setwise collapse``: whether new classes lie beside their own kind in the features of few-shot runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from setwise.cli.options import parse
from setwise.errors import InvalidInput, RunError
from setwise.run_folder import RunFolder, fresh_folder

__all__ = ["collapse_"]

SHOWN = Path("shown")


@dataclass
class _Collapse:
    """Show the nearest neighbours of images of classes that were never trained on, of one or more few-shot runs.

    Prints which share of the neighbours is of the same class, of the one commonest wrong class, and of training
    classes, for queries of test classes and (as a control) of training classes; writes the paper's figure, a page, and
    the numbers.
    """

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN...")]
    """Run folders, compared on the same images."""
    out: Path | None = None
    """Folder for the pictures, new or empty; by default shown/collapse-NAME, shown/collapse-NAME-2 ..."""
    root: str | None = None
    """Where the data set lies here; None: where it lay in training."""
    per_class: int = 130
    """Most images of a class to look among. Paper: 130."""
    num_neighbours: int = 9
    """Neighbours of each query. Paper: 9."""
    queries: int = 1000
    """Most queries, of test and of training classes each."""
    shown: int = 4
    """Queries in the figure."""
    batch_moments: bool = False
    """Normalise by the moments of batches of 256, as in the paper, instead of the running averages."""
    seed: int = 0
    """Draws images and queries."""


def collapse_(args: Sequence[str]) -> None:
    """``setwise collapse RUN...``."""
    options = parse("collapse", _Collapse, args)
    if not options.runs:
        raise InvalidInput("Name at least one few-shot run: setwise collapse RUN...")
    if options.per_class < 1:
        raise InvalidInput(f"`per-class` must be at least 1, but it is {options.per_class}.")
    if options.out is not None and options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise RunError(f"{options.out} is not empty, and nothing is overwritten. Name another folder with --out.")
    for run in options.runs:
        folder = RunFolder(run)
        folder.require(folder.weights, "weights")
    from setwise.collapse import examine, gather_images
    from setwise.show.neighbours import HEADS, shares_table, write_neighbours

    galleries = [
        gather_images(run, root=options.root, per_class=options.per_class, seed=options.seed) for run in options.runs
    ]
    for run, gallery in zip(options.runs, galleries, strict=True):
        if gallery.class_names != galleries[0].class_names or len(gallery.images) != len(galleries[0].images):
            raise InvalidInput(
                f"{run} was trained on other classes than {options.runs[0]}, so their neighbours are not those of the "
                "same images: show one run at a time."
            )
    found = [
        examine(
            run,
            gallery,
            num_neighbours=options.num_neighbours,
            queries=options.queries,
            shown=options.shown,
            batch_moments=options.batch_moments,
            seed=options.seed,
        )
        for run, gallery in zip(options.runs, galleries, strict=True)
    ]
    table = Table(*HEADS, box=None, pad_edge=False)
    for row in shares_table(found):
        table.add_row(*map(Text, row))
    Console().print(table)
    out = options.out or fresh_folder(SHOWN, f"collapse-{options.runs[0].resolve().name}")
    page = write_neighbours(found, galleries, out, batch_moments=options.batch_moments)
    print(f"pictures  {out}\npage      {page}")
