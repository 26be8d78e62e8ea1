"""A recipe made into what a run needs, whatever its task: network, loaders, evaluation, results."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from setwise.build import (
    Say,
    build_data,
    build_episode_data,
    build_episode_loader,
    build_few_shot,
    build_loader,
    build_task,
    check_start,
    too_late,
    training_sources,
)
from setwise.build.data_checks import check_gathered, check_primary, check_processes
from setwise.data.few_shot import EpisodeLoader, FewShotSplits
from setwise.episodes import EpisodicModel, episode_scores, score_sets, write_episode_results
from setwise.errors import DataError, InvalidInput, RunError, SetwiseError, choose
from setwise.models import TauNormalized
from setwise.models.weights import read_state
from setwise.recipes import Recipe, yaml_file
from setwise.recipes.schema import Criterion
from setwise.run_folder import RunFolder
from setwise.scoring import Model, scores_of, write_results
from setwise.tasks import TASKS, Classification, EpisodeScore, FewShot

__all__ = [
    "Work",
    "for_evaluation",
    "load_classification",
    "load_few_shot",
    "loaders_of",
    "make_work",
    "on_accelerator",
    "say_nothing",
]

Task = TypeVar("Task", Classification, FewShot)
Described = TypeVar("Described", Model, EpisodicModel)
PARTS = ("train", "val", "test")


class Work(Protocol):
    """What :func:`setwise.run.fit` needs to know of a task."""

    @property
    def task(self) -> Classification | FewShot:
        """What is trained."""

    @property
    def loaders(self) -> Mapping[str, DataLoader[Any]]:
        """Batches of train and val, and what else is read."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the data had to say."""

    def build(self, recipe: Recipe) -> None:
        """Build the network of another recipe on the same data and drop it, for the errors of doing so."""

    def evaluate(self) -> Any:
        """Score validation and test; on all processes."""

    def remarks(self, found: Any) -> tuple[str, ...]:
        """What of it a person should know beside the metrics."""

    def write(self, folder: RunFolder, found: Any, *, seconds: float) -> dict[str, Any]:
        """Write what ``evaluate`` found into the folder, the line of results last; on the first process."""


@dataclass(frozen=True)
class _Classifying:
    recipe: Recipe
    task: Classification
    loaders: Mapping[str, DataLoader[Any]]
    notes: tuple[str, ...]
    model: Model

    def build(self, recipe: Recipe) -> None:
        _classification(recipe, self.model, say_nothing)

    def evaluate(self) -> dict[str, dict[str, Tensor]]:
        if isinstance(self.task.head, TauNormalized):
            found = scores_of(self.task, self.loaders["val"])
            self.task.head.choose(found["scores"], found["target"])
        return {part: scores_of(self.task, self.loaders[part]) for part in ("val", "test")}

    def remarks(self, found: dict[str, dict[str, Tensor]]) -> tuple[str, ...]:
        return self.task.remarks(found["test"])

    def write(self, folder: RunFolder, found: dict[str, dict[str, Tensor]], *, seconds: float) -> dict[str, Any]:
        return write_results(
            self.recipe, folder, self.task, self.model, val=found["val"], test=found["test"], seconds=seconds
        )


@dataclass(frozen=True)
class _Episodic:
    recipe: Recipe
    task: FewShot
    loaders: Mapping[str, EpisodeLoader]
    notes: tuple[str, ...]
    model: EpisodicModel
    tests: Mapping[str, EpisodeLoader]
    """Test episodes of each set."""

    def build(self, recipe: Recipe) -> None:
        _few_shot(recipe, self.model, say_nothing)

    def evaluate(self) -> tuple[list[EpisodeScore], dict[str, list[EpisodeScore]]]:
        return episode_scores(self.task, self.loaders["val"]), score_sets(self.task, self.tests)

    def remarks(self, found: tuple[list[EpisodeScore], dict[str, list[EpisodeScore]]]) -> tuple[str, ...]:
        return ()

    def write(
        self, folder: RunFolder, found: tuple[list[EpisodeScore], dict[str, list[EpisodeScore]]], *, seconds: float
    ) -> dict[str, Any]:
        val, tests = found
        return write_episode_results(self.recipe, folder, self.model, val=val, tests=tests, seconds=seconds)


def say_nothing(text: str) -> None:
    """What was said before, or is another process's to say."""


def for_evaluation(recipe: Recipe) -> Recipe:
    """With batches that fit where those of training need ``data.micro_batch``; predictions do not depend on it."""
    if recipe.data.micro_batch is None or recipe.relation.relate_at_test:
        return recipe
    return recipe.override({"data.batch_size": min(recipe.data.micro_batch, recipe.data.batch_size)})


@contextmanager
def on_accelerator(task: nn.Module, recipe: Recipe) -> Iterator[None]:
    """Compute where training would, and bring the network back."""
    accelerator = None if recipe.trainer.accelerator == "cpu" else torch.accelerator.current_accelerator(True)
    if accelerator is not None:
        task.to(accelerator)
    try:
        yield
    finally:
        task.cpu()


def make_work(recipe: Recipe, say: Say) -> Work:
    """Load the data, build the network, and make the loaders.

    Raises:
        SetwiseError: whatever is wrong with recipe or data.
    """
    choose(recipe.task, TASKS, "task")
    if recipe.select_on == "test" and recipe.task != "classification":
        raise InvalidInput(
            f"`select_on` test is of classification recipes; {recipe.name} ({recipe.task}) selects on val."
        )
    work = _episodic(recipe, say) if recipe.task == "few-shot" else _classifying(recipe, say)
    choose(recipe.primary, work.task.metric_names, "metric (primary)")
    if recipe.trainer.channels_last:
        work.task.to(memory_format=torch.channels_last)
    return work


def _classifying(recipe: Recipe, say: Say) -> _Classifying:
    check_start(recipe)
    splits = build_data(recipe)
    notes = (*splits.notes, *too_late(recipe), *_of_another_seed(recipe, drawn=splits.val_by_seed))
    for note in notes:
        say(note)
    for part in ("val", "test"):
        if not len(getattr(splits, part)):
            raise DataError(
                f"No image is left for the {part} part of {recipe.data.name}: bring more images or a part of its own, "
                "or raise --data.val-fraction."
            )
    processes = check_processes(recipe, {part: len(getattr(splits, part)) for part in PARTS}, "images")
    check_gathered(recipe, splits, processes)
    model = Model.of(splits)
    loaders = {
        part: build_loader(recipe if part == "train" else for_evaluation(recipe), splits, part) for part in PARTS
    }
    task = _classification(recipe, model, say, teacher=_teacher_of(recipe, model, drawn=splits.val_by_seed))
    for part in ("test", *["val"] * (recipe.trainer.select != "last")):
        check_primary(recipe, task, getattr(splits, part).target, part)
    return _Classifying(recipe, task, loaders, notes, model)


def _of_another_seed(recipe: Recipe, *, drawn: bool) -> tuple[str, ...]:
    """A warning where the weights to start from have seen what this run's seed holds out for validation."""
    folder = RunFolder(Path(recipe.backbone.weights or "").parent)
    if not (drawn and recipe.backbone.weights and folder.recipe.is_file()):
        return ()
    before = yaml_file.read(folder.recipe)
    if before.data.name != recipe.data.name or before.seed == recipe.seed:
        return ()
    return (
        f"The weights in {recipe.backbone.weights} are of a run of seed {before.seed}, this is seed {recipe.seed}: "
        "they have learned from images that are held out for validation here, so what it chooses is chosen too surely.",
    )


def _teacher_of(recipe: Recipe, model: Model, *, drawn: bool) -> nn.Module | None:
    """The teacher, if there is one; ``drawn`` says that the seed decides which images validation has."""
    if recipe.criterion.teacher is None:
        return None
    folder = RunFolder(recipe.criterion.teacher)
    learned = yaml_file.read(folder.require(folder.recipe, "recipe"))
    if drawn and learned.seed != recipe.seed:
        raise InvalidInput(
            f"The teacher in {folder.path} (criterion.teacher) has seed {learned.seed}, this run {recipe.seed}: it has "
            "learned from images that this run holds out for validation. Train it with the same --seed, as "
            "--before.use teacher does."
        )
    teacher, taught = load_classification(folder, learned)
    same = ("class_names", "mean", "std", "image_size")
    for name in same:
        if getattr(taught, name) != getattr(model, name):
            raise InvalidInput(
                f"The teacher in {folder.path} (criterion.teacher) does not see what this run sees: its {name} "
                "differ. Train it on the same data set, seed and image size, as --before.use teacher does."
            )
    return teacher.plain()


def _episodic(recipe: Recipe, say: Say) -> _Episodic:
    check_start(recipe)
    sets = build_episode_data(recipe)
    notes = tuple(note if len(sets) == 1 else f"{name}: {note}" for name, s in sets.items() for note in s.notes)
    for note in notes:
        say(note)
    check_processes(recipe, {part: getattr(recipe.episodes, part) for part in PARTS}, "episodes")
    trained = list(training_sources(recipe, sets).values())
    model = EpisodicModel.of(trained[0], recipe.data.image_size)
    loaders = {part: build_episode_loader(recipe, trained, part) for part in ("train", "val")}
    tests = loaders_of(recipe, sets, "test", model)
    return _Episodic(recipe, _few_shot(recipe, model, say), loaders, notes, model, tests)


def loaders_of(
    recipe: Recipe, sets: Mapping[str, FewShotSplits], part: str, model: EpisodicModel
) -> dict[str, EpisodeLoader]:
    """Episodes of each set that has classes for this part, as the network was trained: normalised, and of its size."""
    mean, std = tuple(model.mean), tuple(model.std)
    recipe = recipe.override({"data.image_size": recipe.data.image_size or model.image_size})
    return {
        name: build_episode_loader(recipe, [replace(splits, mean=mean, std=std)], part)
        for name, splits in sets.items()
        if getattr(splits, part).num_classes
    }


def _classification(recipe: Recipe, model: Model, say: Say, teacher: nn.Module | None = None) -> Classification:
    return build_task(
        recipe,
        teacher=teacher,
        counts=torch.tensor(model.counts),
        group_counts=torch.tensor(model.group_counts),
        class_names=tuple(model.class_names),
        in_chans=len(model.mean),
        image_size=model.image_size,
        say=say,
    )


def _few_shot(recipe: Recipe, model: EpisodicModel, say: Say) -> FewShot:
    return build_few_shot(recipe, in_chans=len(model.mean), image_size=model.image_size, say=say)


def load_classification(folder: RunFolder, recipe: Recipe) -> tuple[Classification, Model]:
    """The classifier of a finished run with its selected weights, in evaluation mode, and what else it must be told.

    Raises:
        MissingFile: if the folder is no run, or not a finished one.
        RunError: if its model file is damaged.
        InvalidInput: if the run is of another task.
    """
    if recipe.task != "classification":
        raise InvalidInput(
            f"{folder.path} is a {recipe.task} run, whose classes come with each episode: `setwise test` evaluates it, "
            "`setwise predict --support FOLDER` classifies by images of yours, but there is no classifier to export or "
            "to audit."
        )
    model = _read(Model, folder.require(folder.model, "model file"))
    return _with_weights(_classification(_bare(recipe), model, print), folder), model


def load_few_shot(folder: RunFolder, recipe: Recipe) -> tuple[FewShot, EpisodicModel]:
    """Trunk and head of a finished few-shot run; raises as :func:`load_classification` does."""
    model = _read(EpisodicModel, folder.require(folder.model, "model file"))
    return _with_weights(_few_shot(_bare(recipe), model, print), folder), model


def _bare(recipe: Recipe) -> Recipe:
    """Whose weights come from the run, and not from where the run had its first ones; nothing of it trains."""
    start = {"backbone.pretrained": False, "backbone.weights": None, "backbone.trained": ()}
    taught = {"criterion.teacher": None, "criterion.teacher_temperature": Criterion().teacher_temperature}
    return recipe.override(start | taught)


def _with_weights(task: Task, folder: RunFolder) -> Task:
    task.load_state_dict(read_state(folder.require(folder.weights, "weights")))
    return task.eval()


def _read(kind: type[Described], path: Path) -> Described:
    try:
        described: Described = yaml_file.from_dict(kind, json.loads(path.read_bytes()))
        return described
    except (ValueError, RecursionError, SetwiseError) as error:
        raise RunError(
            f"{path} does not describe a network ({error}). Delete the run's results and --resume."
        ) from error
