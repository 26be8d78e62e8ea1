"""Train, continue and load one run; thin over lightning.Trainer."""

import json
import logging
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from functools import reduce
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback, Timer
from safetensors.torch import save
from torch import nn

from setwise.build import Say, build_data, build_episode_data, build_loader
from setwise.checkpoints import OutOfReach, read_checkpoint
from setwise.data import Loader
from setwise.episodes import episode_metrics, score_sets
from setwise.errors import RunError
from setwise.explained import explained
from setwise.guards import NoNumber, Unreadable
from setwise.launch import is_first
from setwise.nn.gather import place
from setwise.recipes import Recipe, yaml_file
from setwise.recipes.stages import stage_before
from setwise.run_folder import PLAN, RunFolder, claimed, commit, read_lines, unwritable, versions, write_whole
from setwise.scoring import Model, class_table, scores_of
from setwise.tasks import Classification
from setwise.trainer import make_trainer, meet_again
from setwise.work import (
    for_evaluation,
    load_classification,
    load_few_shot,
    loaders_of,
    make_work,
    on_accelerator,
    say_nothing,
)

__all__ = ["evaluate", "fit", "load_run", "make_trainer", "rehearse"]

OF_A_START = {"environment.json", "environment.json.part", "recipe.yaml.part"}
"""What a run leaves that was killed before it had written its recipe."""
OF_NO_RESULT = ("summary", "paper", "reported", "data.root", "data.num_workers", "trainer.on_nan")
"""Fields of a recipe that may differ when a run continues: its result does not depend on them."""


def fit(
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    progress: bool = True,
    say: Say = print,
    callbacks: tuple[Callback, ...] = (),
) -> dict[str, Any]:
    """Train ``recipe`` in the folder ``out`` and evaluate it there; the stages before it first, in ``out/before``.

    Args:
        recipe: what to train.
        out: its run folder; must be empty or new, unless resumed.
        resume: continue from the last checkpoint in ``out`` (from the start if there is none); a complete run is
            returned as it is.
        progress: show Lightning's rich progress bar.
        say: told what a person should know.
        callbacks: further Lightning callbacks, for each stage.

    Several processes train together where the recipe's trainer asks for several devices, or torchrun or SLURM started
    several; the first one writes.

    Returns:
        The run's line of ``results.jsonl``.

    Raises:
        RunError: if the folder holds another run or cannot be written, no checkpoint can be read, memory does not
            suffice, a process that reads images dies, or the loss is no number.
        Stopped: after SIGTERM.
    """
    line, _ = _fit(recipe, out, resume=resume, progress=progress, say=say, callbacks=callbacks)
    return line


def _fit(
    recipe: Recipe, out: str | Path, *, resume: bool, progress: bool, say: Say, callbacks: tuple[Callback, ...]
) -> tuple[dict[str, Any], RunFolder]:
    """The line of results, and the folder where the first process made it, which is the one that is told."""
    folder, first = RunFolder(out), is_first()
    if first:
        _check_folder(folder, recipe, resume=resume)
    else:
        say = say_nothing
    if folder.complete:
        say(f"{folder.path} is complete already; nothing to do.")
        return read_lines(folder.results)[-1], folder
    _quiet()
    before = stage_before(recipe)
    ready, earlier = recipe, 0.0
    if before is not None:
        told: dict[str, Any] = {"progress": progress, "say": say, "callbacks": callbacks}
        ready, earlier = _after(before, recipe, folder, resume=resume, told=told)
    start = time.monotonic()
    work = make_work(ready, say)
    task, loaders = work.task, work.loaders
    timer = Timer()  # a checkpoint has its state, so it knows of the time before a crash
    unreadable = Unreadable({part: loader for part, loader in loaders.items() if isinstance(loader, Loader)})
    trainer = make_trainer(recipe, folder, progress=progress, callbacks=(unreadable, timer, *callbacks), say=say)
    meet_again(recipe.trainer.accelerator)
    with claimed(folder.path) if first else nullcontext(), explained(recipe, folder.path):
        if first:
            # Again, for another process may have come before; ours may have trained the first stage there.
            _check_folder(folder, recipe, resume=resume or before is not None)
            if folder.complete:
                raise RunError(f"Another process has completed {folder.path} in the meantime; nothing is left to do.")
            _write_head(folder, recipe, work.notes)
        last = folder.last if folder.begun else None
        if any(parameter.requires_grad for parameter in task.parameters()):
            trainer.fit(task, loaders["train"], loaders["val"], ckpt_path=last, weights_only=True)
        else:
            say("Nothing is trained in this stage.")
        folder = RunFolder(trainer.strategy.broadcast(folder.path))  # where the first process made it
        if recipe.trainer.select != "last":
            _load_best(task, folder, say)
        _ready_for_evaluation(task, trainer)
        scores = work.evaluate()
        for note in (found := _notes_of(trainer) + work.remarks(scores)):
            say(note)
        line = {}
        if first:
            _write_environment(folder, work.notes + found)
            weights = save({name: tensor.contiguous() for name, tensor in task.cpu().state_dict().items()})
            write_whole(folder.weights, weights, lasting=True)
            seconds = earlier + _before_resuming(timer) + time.monotonic() - start
            line = work.write(folder, scores, seconds=seconds)
    return trainer.strategy.broadcast(line), folder


def _after(
    before: Recipe, recipe: Recipe, folder: RunFolder, *, resume: bool, told: dict[str, Any]
) -> tuple[Recipe, float]:
    """Train the stage before; the recipe that goes on from it, and the seconds it took."""
    if not RunFolder(folder.before).complete:
        rehearse(recipe, say=say_nothing)  # what is wrong with the last stage is said before the first
        if is_first():
            with claimed(folder.path):
                _check_folder(folder, recipe, resume=resume)  # again, for another process may have come before
                _write_head(folder, recipe, ())
    told["say"](f"Before {recipe.name}: {before.name}, in {folder.before}.")
    line, made = _fit(before, folder.before, resume=True, **told)
    starts = {"backbone.weights": str(made.weights)} if recipe.before.use == "start" else None
    return recipe.override(starts or {"criterion.teacher": str(made.path)}), line["seconds"]


def _ready_for_evaluation(task: nn.Module, trainer: L.Trainer) -> None:
    """Back to where Lightning has taken it from, in the precision of the images, and the same in all processes."""
    if trainer.precision.endswith("-true") and trainer.precision != "32-true":
        task.float()
    task.to(trainer.strategy.root_device)
    if place()[1] > 1:  # the running statistics of norms are each process's own since its last step
        for buffer in task.buffers():
            dist.broadcast(buffer, src=0)


def _before_resuming(timer: Timer) -> float:
    """Seconds of training that a checkpoint brought along."""
    began, ended = timer.start_time(), timer.end_time()
    return timer.time_elapsed() - (0 if began is None or ended is None else ended - began)


def _notes_of(trainer: L.Trainer) -> tuple[str, ...]:
    """What was left out in training: steps without a number, images that could not be read."""
    guards = [c for c in trainer.callbacks if isinstance(c, NoNumber | Unreadable)]  # type: ignore[attr-defined]
    return tuple(note for guard in guards for note in guard.notes)


def rehearse(recipe: Recipe, *, others: Sequence[Recipe] = (), say: Say = print) -> None:
    """Build everything that a run of ``recipe`` needs and write nothing, so that what is wrong with it is said before.

    Args:
        recipe: what is to be trained.
        others: recipes of classifiers on the same data, of which the networks are built, too.
        say: told what a person should know.

    Raises:
        SetwiseError: what :func:`fit` would raise before its first step.
    """
    _quiet()
    work = make_work(recipe, say)
    for other in others:
        work.build(other)
    make_trainer(recipe, RunFolder("unused"), progress=False)


def _load_best(task: nn.Module, folder: RunFolder, say: Say) -> None:
    if folder.best.is_file():
        try:
            task.load_state_dict(read_checkpoint(folder.best)["state_dict"])
        except OutOfReach:
            raise
        except RunError as error:
            raise RunError(
                f"The selected weights are lost. {error} Train into a new folder; or delete the file, and --resume "
                "keeps the last weights instead."
            ) from error
    else:
        say("No weights have been selected by a validation, so the last ones are kept.")


def load_run(path: str | Path, *, recipe: Recipe | None = None) -> tuple[Recipe, Classification, Model]:
    """A trained run: its recipe, its network with the selected weights in evaluation mode, and what it classifies.

    Args:
        path: run folder.
        recipe: the run's recipe with fields that differ here and now (``data.root`` ...); None: as it was trained.

    Raises:
        MissingFile: if the folder is no run, or not a finished one.
    """
    folder = RunFolder(path)
    recipe = recipe or yaml_file.read(folder.require(folder.recipe, "recipe"))
    return recipe, *load_classification(folder, recipe)


def evaluate(
    path: str | Path, *, part: str = "test", recipe: Recipe | None = None
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Evaluate a trained run again on one part of its data, at the strength of logit adjustment chosen in training.

    Returns:
        The metrics, and the table of classes: name, training images, group, accuracy, adjusted accuracy.
    """
    folder = RunFolder(path)
    recipe = recipe or yaml_file.read(folder.require(folder.recipe, "recipe"))
    if recipe.task == "few-shot":
        few_shot, described = load_few_shot(folder, recipe)
        with explained(recipe, folder.path):
            loaders = loaders_of(recipe, build_episode_data(recipe), part, described)
            with on_accelerator(few_shot, recipe):
                return episode_metrics(score_sets(few_shot, loaders)), []
    task, model = load_classification(folder, recipe)
    splits = build_data(recipe)
    model.check_classes(splits, path)
    with explained(recipe, folder.path), on_accelerator(task, recipe):
        scores = scores_of(task, build_loader(for_evaluation(recipe), splits, part))
    return (
        task.metrics(scores["scores"], scores["target"], tau=model.tau) | task.further_metrics(scores),
        class_table(task, model.class_names, scores, model.tau),
    )


def _check_folder(folder: RunFolder, recipe: Recipe, *, resume: bool) -> None:
    """Refuse a folder with something else in it, before anything is loaded.

    Where the data lies and how it is read may change, and what to do about a loss that is no number: a run that was
    stopped so may go on.
    """
    if (folder.path / PLAN).is_file():
        raise RunError(f"{folder.path} is a comparison, which `setwise compare {folder.path} --resume` finishes.")
    of_a_start = OF_A_START if resume else set()
    if resume and folder.recipe.is_file():
        begun = yaml_file.read(folder.recipe)
        same: dict[str, Any] = {"smoke": {}, "ran": ()} | {path: _value(begun, path) for path in OF_NO_RESULT}
        if begun != recipe.override(same):
            raise RunError(
                f"{folder.path} was started with another recipe, so it cannot be resumed with this one. "
                f"Resume it as it is (`setwise train {folder.path} --resume`), or train into a new folder."
            )
    elif folder.path.exists() and (not folder.path.is_dir() or {f.name for f in folder.path.iterdir()} - of_a_start):
        raise RunError(f"{folder.path} is not empty, and a run never overwrites. Choose another --out, or --resume.")


def _value(recipe: Recipe, path: str) -> Any:
    return reduce(getattr, path.split("."), recipe)


def _write_head(folder: RunFolder, recipe: Recipe, notes: Sequence[str]) -> None:
    """Write what the run is made of, before its first step."""
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        if not folder.recipe.is_file():
            _write_environment(folder, notes)
        yaml_file.write(recipe, folder.recipe)
    except OSError as error:
        raise unwritable(folder.path, error) from error


def _write_environment(folder: RunFolder, notes: Sequence[str]) -> None:
    """Versions, commit and threads, and what the data had to say."""
    environment = {"versions": versions(), "commit": commit(), "threads": torch.get_num_threads(), "notes": list(notes)}
    write_whole(folder.environment, json.dumps(environment, indent=2) + "\n")


def _quiet() -> None:
    """Lightning's remarks on things that are decided here are no help to a reader."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*LeafSpec.*",
        ".*Checkpoint directory.*",
        ".*log_every_n_steps.*",
        ".*in eval mode at the start of training.*",  # a frozen backbone
    ):
        warnings.filterwarnings("ignore", message)
