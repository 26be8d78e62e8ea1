"""What each verb does, in a page: parse, call the library, show."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
import yaml
from rich.console import Console

from setwise.cli.audit import audit_
from setwise.cli.bar import Bar
from setwise.cli.collapse import collapse_
from setwise.cli.data import data_
from setwise.cli.listing import list_
from setwise.cli.options import NAMELESS, find_recipe, parse, parse_with_recipe, take_name
from setwise.cli.profile import profile_
from setwise.cli.rank import rank_
from setwise.cli.show import show_
from setwise.errors import InvalidInput, RunError
from setwise.launch import is_first
from setwise.recipes import Recipe
from setwise.recipes.schema import Variant
from setwise.run_folder import PLAN, RunFolder, fresh_folder, read_classes

if TYPE_CHECKING:
    from setwise.judge import Plan

__all__ = [
    "audit_",
    "collapse_",
    "compare_",
    "data_",
    "export_",
    "list_",
    "predict_",
    "profile_",
    "rank_",
    "report_",
    "show_",
    "test_",
    "train_",
]

RUNS = Path("runs")
TOLD = ".told-by-the-first"
"""Where a process that is not the first takes its run to be until it is told; never there, so never complete."""


@dataclass
class _Train:
    """Train a recipe into a new run folder, evaluate it on test, and report it."""

    out: Path | None = None
    """Run folder, new or empty; by default runs/NAME, runs/NAME-2 ..."""
    resume: bool = False
    """Continue an unfinished run: the folder that stands first, --out, or the latest of this name under runs/."""
    variant: Variant = "related"
    """Train the recipe itself, its plain twin, or its control, where every sample attends to itself alone."""


def train_(args: Sequence[str]) -> None:
    """``setwise train NAME``, a recipe, a YAML file or a run folder."""
    name, rest = take_name("train", args, "a recipe, a recipe.yaml or a run folder")
    options, recipe = parse_with_recipe("train", name, _Train, find_recipe(name), rest)
    recipe = recipe.as_variant(options.variant)
    folder = _train_folder(name, recipe, options)
    from setwise.report import reported_of_variant, run_table, selection_warning, write_run_report
    from setwise.run import fit

    with _no_empty_folder(folder):
        line = fit(recipe, folder, resume=options.resume, progress=sys.stderr.isatty())
    if not is_first():
        return
    Console().print(run_table(line["metrics"], read_classes(folder)))
    for sentence in (selection_warning(recipe), *reported_of_variant(recipe)):
        if sentence:
            print(sentence)
    if (before := RunFolder(folder).before).is_dir():
        print(f"before  {before}")
    print(f"run     {folder}\nreport  {write_run_report(folder)}")


def _train_folder(name: str, recipe: Recipe, options: _Train) -> Path:
    if options.out is not None:
        return options.out
    if not options.resume:
        return fresh_folder(RUNS, recipe.name) if is_first() else RUNS / TOLD
    if Path(name).is_dir():
        return Path(name)
    unfinished = [
        path
        for path in RUNS.glob(f"{recipe.name}*")
        if re.fullmatch(re.escape(recipe.name) + r"(-\d+)?", path.name)
        and RunFolder(path).recipe.is_file()
        and not RunFolder(path).complete
    ]
    if not unfinished:
        raise RunError(f"There is no unfinished run of {recipe.name} under {RUNS}/ to resume; leave --resume out.")
    return max(unfinished, key=lambda path: path.stat().st_mtime)


@contextmanager
def _no_empty_folder(folder: Path) -> Iterator[None]:
    """A command that is refused before its first step leaves no folder behind."""
    try:
        yield
    finally:
        with suppress(OSError):  # it is not empty, or was never made
            folder.rmdir()


@dataclass
class _Test:
    """Evaluate a trained run again; --data.root and the like say where its data lies here."""

    part: Literal["test", "val"] = "test"
    """Which part of the data."""
    images: Path | None = None
    """Other images instead: a folder of class folders, named as the run's classes or numbered in their order
    (ImageNet-V2)."""


def test_(args: Sequence[str]) -> None:
    """``setwise test RUN``."""
    name, rest = take_name("test", args, "a run folder")
    folder = RunFolder(name)
    if name != NAMELESS:
        folder.require(folder.weights, "weights")
    options, recipe = parse_with_recipe("test", name, _Test, find_recipe(name), rest)
    from setwise.report import run_table
    from setwise.run import evaluate

    if options.images is not None:
        from setwise.inference import evaluate_folder

        if options.part != "test":
            raise InvalidInput(f"--images is a part of its own: leave out --part {options.part}.")
        Console().print(run_table(*evaluate_folder(name, options.images, recipe=recipe)))
        return
    Console().print(run_table(*evaluate(name, part=options.part, recipe=recipe)))


@dataclass
class _Predict:
    """Classify images with the plain model of a run, or by the support images of a few-shot run."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    inputs: tyro.conf.Positional[tuple[Path, ...]]
    """Images, and folders of images."""
    out: Path | None = None
    """CSV file, new; by default the table is printed."""
    top_k: int = 5
    """Classes per image."""
    adjusted: bool = False
    """Add the logit adjustment that validation chose in training."""
    batch_size: int = 64
    """Images at a time."""
    num_workers: int | None = None
    """Processes that read images, without --support; none named: one a core."""
    support: Path | None = None
    """Few-shot runs: folder with a few images of each new class, SUPPORT/<class>/."""


def predict_(args: Sequence[str]) -> None:
    """``setwise predict RUN IMAGES...``."""
    options = parse("predict", _Predict, args)
    from setwise.inference import predict, write_csv

    how = {name: getattr(options, name) for name in ("top_k", "adjusted", "batch_size", "num_workers", "support")}
    found = predict(options.run, options.inputs, **how)
    write_csv(found, options.out)
    if options.out is not None:
        print(f"{len(found)} predictions  {options.out}")


@dataclass
class _Compare:
    """Run plain, related and control over the same seeds, and judge related - control on the primary metric."""

    out: Path | None = None
    """Folder of the comparison, new or empty; by default runs/compare-NAME, runs/compare-NAME-2 ..."""
    resume: bool = False
    """Finish a comparison that was broken off: the folder that stands first, or --out."""
    seeds: int | None = None
    """Number of seeds, fixed before the first run; None: the recipe's."""
    attend: tuple[str, ...] = ()
    """Kinds of neighbours (relation.attend): the first is the related arm's, each further one an arm of its own."""
    tune: tuple[str, ...] = ()
    """Fields to tune on validation first, each arm over the same grid: optimizer.weight_decay=5e-4,1e-3,2e-3"""
    workers: int | None = None
    """Runs at a time, each a process, taking turns among the GPUs; None: one a core on a CPU, one a GPU."""


def compare_(args: Sequence[str]) -> None:
    """``setwise compare NAME``, a recipe, a YAML file, or with --resume the folder of a comparison."""
    name, rest = take_name("compare", args, "a recipe, a recipe.yaml or the folder of a comparison")
    options, recipe = parse_with_recipe("compare", name, _Compare, find_recipe(name), rest)
    plan, folder = _plan(name, recipe, options)
    from setwise.compare import compare
    from setwise.judge import judge
    from setwise.report import comparison_table, write_report

    with _no_empty_folder(folder), Bar() as bar:
        compare(plan, folder, workers=options.workers, progress=bar.move, say=bar.say)
    comparison = judge(folder)
    Console().print(comparison_table(comparison))
    print(f"runs     {folder}\npicture  {folder / 'comparison.png'}\nreport   {write_report(comparison, folder)}")


def _plan(name: str, recipe: Recipe, options: _Compare) -> "tuple[Plan | None, Path]":
    if options.resume:
        folder = Path(name) if Path(name).is_dir() else options.out
        if folder is None:
            raise InvalidInput("--resume needs the folder of the comparison: setwise compare FOLDER --resume.")
        if recipe != find_recipe(name) or options.seeds is not None or options.attend or options.tune:
            raise InvalidInput(
                "--resume finishes a comparison as it was planned, so it takes no fields of the recipe, --seeds, "
                "--attend or --tune. Start another one for them."
            )
        return None, folder
    from setwise.compare import make_plan

    if options.seeds is not None:
        recipe = recipe.override({"num_seeds": options.seeds})
    tune = [_tuned(text) for text in options.tune]
    if len(twice := {name for name, _ in tune}) < len(tune):
        raise InvalidInput(f"--tune names each field once, with all its values: {', '.join(sorted(twice))}.")
    plan = make_plan(recipe, attend=options.attend, tune=dict(tune))
    return plan, options.out or fresh_folder(RUNS, f"compare-{recipe.name}")


def _tuned(text: str) -> tuple[str, list[Any]]:
    name, given, values = text.partition("=")
    if not given or "." not in name:
        raise InvalidInput(f"--tune takes group.field=value,value,..., but it was given {text!r}.")
    from setwise.recipes import yaml_file

    path = name.replace("-", "_")
    try:  # a list of lists, [160,180],[150,170], is one of YAML's as well
        found = yaml.safe_load(f"[{values}]") if "[" in values else [yaml.safe_load(v) for v in values.split(",")]
    except yaml.YAMLError as error:
        raise InvalidInput(f"--tune: the values of {text!r} cannot be read.") from error
    return path, [yaml_file.read_field(path, value) for value in found]


@dataclass
class _Report:
    """Judge a comparison again, or show a run, and write its report."""

    folder: tyro.conf.Positional[Path]
    """Folder of a run or a comparison."""


def report_(args: Sequence[str]) -> None:
    """``setwise report FOLDER``."""
    folder = parse("report", _Report, args).folder
    from setwise.judge import judge
    from setwise.report import comparison_table, write_report, write_run_report

    if (folder / PLAN).is_file():
        comparison = judge(folder)
        Console().print(comparison_table(comparison))
        print(f"report  {write_report(comparison, folder)}")
        return
    run = RunFolder(folder)
    run.require(run.results, "results")
    print(f"report  {write_run_report(folder)}")


@dataclass
class _Export:
    """Write the plain model of a run and check every file against the evaluated model."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    out: Path | None = None
    """Folder for the files; by default RUN/export."""
    formats: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME")] = field(default=("safetensors", "torch"))
    """safetensors: weights; torch: torch.export program; onnx: needs pip install 'setwise[export]'."""


def export_(args: Sequence[str]) -> None:
    """``setwise export RUN``."""
    options = parse("export", _Export, args)
    from setwise.export import export

    for written in export(options.run, options.out or options.run / "export", options.formats):
        print(f"{written.format:<12}{written.path}  largest difference {written.difference:.1e} of the largest score")
