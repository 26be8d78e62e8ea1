"""``setwise show``: what a network attends to. Of a run, or of a model by name and its file of weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from setwise.cli.options import find_recipe, named_value, parse
from setwise.errors import InvalidInput, MissingFile, RunError
from setwise.recipes import RECIPES, Recipe
from setwise.run_folder import RunFolder, fresh_folder

if TYPE_CHECKING:
    from setwise.show import Subject

__all__ = ["show_"]

SHOWN = Path("shown")


@dataclass
class _Show:
    """Show what a network attended to: PNG files, and one HTML page.

    Which patches of images, when it pooled them: setwise show RUN IMAGES... takes a run folder whose backbone pools by
    attention; setwise show --model NAME --weights FILE IMAGES... takes weights from elsewhere. Which places of support
    images, when it classified a query: setwise show RUN takes a few-shot run with a CrossTransformer. Which samples of
    a batch, and whom the loss of each reaches, class by class: setwise show RUN takes a classifier with a relation.
    """

    inputs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[RUN] IMAGES...")]
    """Run folder first, unless --model is given; then images, and folders of images."""
    out: Path | None = None
    """Folder for the pictures, new or empty; by default shown/NAME, shown/NAME-2 ..."""
    top_k: int = 3
    """Likeliest classes; each has a map where each class has a query."""
    whole: bool = False
    """Show whole images, their shorter side as long as the network's image, instead of the central square."""
    layer: int = -1
    """Layer of the pool, where it has several; -1 is the last."""
    limit: int = 24
    """Most images on the page; the first ones are taken."""
    model: str | None = None
    """Name of one of timm's models or ours, PatchConvNets among them."""
    weights: Path | None = None
    """Its weights: .safetensors, or a file of torch that holds nothing but tensors."""
    options: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """Further arguments of the model, as timm names them."""
    classes: Path | None = None
    """Names of its classes, one a line."""
    image_size: int | None = None
    """Side of its images in pixels; None: what it was made for."""
    episode: int = 0
    """Few-shot runs: number of the test episode."""
    query: tuple[int, ...] = (0,)
    """Few-shot runs: numbers of the queries in it, each with its class's support images."""
    places: tuple[str, ...] = ()
    """Few-shot runs: ROW,COLUMN in the query's map; by default three, drawn by the run's seed."""
    root: str | None = None
    """Runs that bring their own images: where the data set lies here; None: where it lay in training."""
    part: Literal["test", "val", "train"] = "test"
    """Classifiers with a relation: whose images."""
    batches: int | None = None
    """Classifiers with a relation: most batches; None: all."""
    pool_heads: int = 1
    """--model: heads of an attention pool that stands in place of another pool, which weights do not tell; of a
    PatchConvNet --options num_heads=4."""
    pool: str | None = None
    """Name of the attention pool within the network, where it has several."""
    grid: str | None = None
    """HEIGHT,WIDTH of the map, where the pool takes tokens."""


def show_(args: Sequence[str]) -> None:
    """``setwise show RUN IMAGES...``."""
    options = parse("show", _Show, args)
    for name, value in (("limit", options.limit), ("top-k", options.top_k), ("image-size", options.image_size)):
        if value is not None and value < 1:
            raise InvalidInput(f"`{name}` must be at least 1, but it is {value}.")
    if options.out is not None and options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise RunError(f"{options.out} is not empty, and nothing is overwritten. Name another folder with --out.")
    images = options.inputs if options.model is not None else options.inputs[1:]
    name = _check(options)
    if options.model is None:
        recipe = find_recipe(str(options.inputs[0]))
        if recipe.task == "few-shot":
            _show_support(options, name, _as_it_lies(recipe, options))
            return
        if not images:
            _show_influence(options, name, _as_it_lies(recipe, options))
            return
    from setwise.inference import find_images
    from setwise.show import look_at, write_patches

    paths = find_images(images, usage="setwise show RUN IMAGES...")
    subject = _subject(options)
    notes = [f"{len(paths) - options.limit} further images are left out (--limit)."] * (len(paths) > options.limit)
    grid = None if options.grid is None else _pair(options.grid, "--grid takes HEIGHT,WIDTH, such as 14,14")
    how: dict[str, Any] = {"layer": options.layer, "whole": options.whole, "pool": options.pool, "grid": grid}
    looks = look_at(subject, paths[: options.limit], top_k=options.top_k, **how)
    out = options.out or fresh_folder(SHOWN, name)
    page = write_patches(looks, out, title=f"Where {subject.name} looks", notes=notes)
    for note in notes:
        print(note)
    print(f"pictures  {out} ({len(looks)})\npage      {page}")


def _as_it_lies(recipe: Recipe, options: _Show) -> Recipe:
    return recipe if options.root is None else recipe.override({"data.root": options.root})


def _show_influence(options: _Show, name: str, recipe: Recipe) -> None:
    """A classifier with a relation brings the images of its own data set."""
    from setwise.show.influence import GROUPS, measure
    from setwise.show.influence_page import write_influence

    path = options.inputs[0]
    found = measure(path, recipe, part=options.part, batches=options.batches)
    out = options.out or fresh_folder(SHOWN, name)
    page = write_influence(found, out, title=f"What samples of {recipe.name} ({path}) do to each other")
    means = zip(GROUPS, found.mean_of_groups, strict=True)
    told = ", ".join(f"{group} {mean:.3g}" for group, mean in means if mean == mean)
    print(f"mean absolute gradient of a sample's loss on the other samples' features, by its class: {told}")
    print(f"pictures  {out}\npage      {page}")


def _show_support(options: _Show, name: str, recipe: Recipe) -> None:
    """A few-shot run brings its own images: those of its test episodes."""
    path = options.inputs[0]
    if len(options.inputs) > 1:
        raise InvalidInput(f"{path} is a few-shot run, which shows its own test episodes: leave out the images.")
    from setwise.show.support import attend, write_support

    places = [_pair(text, "--places takes ROW,COLUMN, such as 3,4") for text in options.places]
    looks = [
        attend(path, recipe, episode=options.episode, query=query, places=places, seed=recipe.seed)
        for query in options.query
    ]
    out = options.out or fresh_folder(SHOWN, name)
    page = write_support(looks, out, title=f"Where {recipe.name} ({path}) looks, episode {options.episode}")
    print(f"pictures  {out} ({len(looks)})\npage      {page}")


def _pair(text: str, rule: str) -> tuple[int, int]:
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
        raise InvalidInput(f"{rule}, but it was given {text!r}.")
    return int(parts[0]), int(parts[1])


def _check(options: _Show) -> str:
    """Refuse what does not go together before anything is loaded; the name of what is shown."""
    if options.model is not None:
        if options.weights is None:
            raise InvalidInput("--model needs its weights, for an untrained network looks nowhere: --weights FILE.")
        if options.model.startswith("patchconvnet_") and options.pool_heads != 1:
            raise InvalidInput(
                f"--pool-heads is of a pool that was put into a network; of {options.model} it is --options "
                f"num_heads={options.pool_heads}."
            )
        return options.model
    only = {"weights": None, "options": (), "classes": None, "image_size": None, "pool_heads": 1}
    if given := [f"--{name.replace('_', '-')}" for name, none in only.items() if getattr(options, name) != none]:
        raise InvalidInput(f"{', '.join(given)} belong to --model NAME; a run folder says all that itself.")
    if not options.inputs:
        raise InvalidInput("Name a run folder and images: setwise show RUN IMAGES...")
    run = options.inputs[0]
    if str(run) in RECIPES:
        raise InvalidInput(
            f"{str(run)!r} is a recipe, and only what is trained looks somewhere: setwise train {run} first."
        )
    if not run.is_dir():
        raise MissingFile(f"There is no run folder {run}. (For a model by its name: --model NAME --weights FILE.)")
    folder = RunFolder(run)
    folder.require(folder.weights, "weights")
    return run.resolve().name or "run"


def _subject(options: _Show) -> "Subject":
    from setwise.show import of_checkpoint, of_run

    if options.model is None:
        return of_run(options.inputs[0])
    assert options.weights is not None
    return of_checkpoint(
        options.model,
        options.weights,
        options=dict(map(named_value, options.options)),
        classes=options.classes,
        image_size=options.image_size,
        pool_heads=options.pool_heads,
    )
