"""Train, continue and load one run; thin over lightning.Trainer."""

import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import loggers
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from safetensors.torch import load_file, save_file

from setwise.build import build_data, build_loader, build_task
from setwise.data import Loader
from setwise.errors import DataError, InvalidInput, RunError, SetwiseError, choose
from setwise.launch import is_first, started
from setwise.metrics import lower_is_better
from setwise.nn.gather import gather_objects
from setwise.recipes import Recipe, yaml_file
from setwise.run_folder import RunFolder, commit, read_lines, versions, write_whole
from setwise.scoring import Model, class_table, scores_of, write_results
from setwise.tasks import Classification

__all__ = ["evaluate", "fit", "load_run", "make_trainer", "rehearse"]

Say = Callable[[str], None]
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "bad_alloc")


def fit(
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    progress: bool = True,
    say: Say = print,
    callbacks: tuple[Callback, ...] = (),
) -> dict[str, Any]:
    """Train ``recipe`` in the folder ``out`` and evaluate it there.

    Args:
        recipe: what to train.
        out: its run folder; must be empty or new, unless resumed.
        resume: continue from the last checkpoint in ``out`` (from the start if there is none); a complete run is
            returned as it is.
        progress: show Lightning's rich progress bar.
        say: told what a person should know.
        callbacks: further Lightning callbacks.

    Several processes train together where the recipe's trainer asks for several devices, or torchrun or SLURM started
    several; the first one writes.

    Returns:
        The run's line of ``results.jsonl``.

    Raises:
        RunError: if the folder holds another run, memory does not suffice, or the loss is no number.
    """
    folder, first = RunFolder(out), is_first()
    if first:
        _check_folder(folder, recipe, resume=resume)
    else:
        say = _say_nothing
    if folder.complete:
        say(f"{folder.path} is complete already; nothing to do.")
        return read_lines(folder.results)[-1]
    start = time.perf_counter()
    model, task, loaders, notes = _build(recipe, say)
    trainer = make_trainer(recipe, folder, progress=progress, callbacks=callbacks)
    if first:
        _write_head(folder, recipe, notes)
    with _explained(recipe):
        last = folder.last if folder.last.is_file() else None
        trainer.fit(task, loaders["train"], loaders["val"], ckpt_path=last, weights_only=True)
        folder = RunFolder(trainer.strategy.broadcast(folder.path))  # where the first process made it
        if recipe.trainer.select != "last":
            _load_best(task, folder, say)
        task.to(trainer.strategy.root_device)  # from which Lightning has taken it
        val, test = scores_of(task, loaders["val"]), scores_of(task, loaders["test"])
    line: dict[str, Any] = {}
    notes += tuple(_skipped(loaders, say))
    if first:
        _write_environment(folder, notes)
        save_file({name: tensor.contiguous() for name, tensor in task.cpu().state_dict().items()}, folder.weights)
        line = write_results(recipe, folder, task, model, val=val, test=test, seconds=time.perf_counter() - start)
    return trainer.strategy.broadcast(line)


def _skipped(loaders: dict[str, Loader], say: Say) -> Iterator[str]:
    """One sentence on each part of which images could not be read, by whichever process."""
    for part, loader in loaders.items():
        if names := [name for names in gather_objects(loader.skipped) for name in names]:
            note = f"Unreadable images of {part}, skipped: {len(names)}; the first: {names[0]}."
            say(note)
            yield note


def _say_nothing(text: str) -> None:
    """All processes but the first are silent."""


def rehearse(recipe: Recipe, *, say: Say = print) -> None:
    """Build everything that a run of ``recipe`` needs and write nothing, so that what is wrong with it is said before.

    Raises:
        SetwiseError: what :func:`fit` would raise before its first step.
    """
    _build(recipe, say)
    make_trainer(recipe, RunFolder("unused"), progress=False)


def _build(recipe: Recipe, say: Say) -> tuple[Model, Classification, dict[str, Loader], tuple[str, ...]]:
    _quiet()
    splits = build_data(recipe)
    for note in splits.notes:
        say(note)
    for part in ("val", "test"):
        if not len(getattr(splits, part)):
            raise DataError(
                f"No image is left for the {part} part of {recipe.data.name}: bring more images or a part of its own, "
                "or raise --data.val-fraction."
            )
    model = Model.of(splits)
    task = _task(recipe, model, say)
    choose(recipe.primary, task.metric_names, "metric (primary)")
    loaders = {part: build_loader(recipe, splits, part) for part in ("train", "val", "test")}
    return model, task, loaders, splits.notes


def _load_best(task: Classification, folder: RunFolder, say: Say) -> None:
    if folder.best.is_file():
        task.load_state_dict(torch.load(folder.best, "cpu", weights_only=True)["state_dict"])
    else:
        say("Training ended before its first validation, so the last weights are kept.")


def make_trainer(
    recipe: Recipe, folder: RunFolder, *, progress: bool, callbacks: tuple[Callback, ...] = ()
) -> L.Trainer:
    """Lightning's Trainer as the recipe sets it, with its checkpoints and logs in ``folder``."""
    part = recipe.trainer
    saved: list[Callback] = [
        ModelCheckpoint(
            folder.checkpoints,
            "last",
            save_top_k=1,
            every_n_epochs=part.checkpoint_every,
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        )
    ]
    mode = "min" if lower_is_better(recipe.primary) else "max"
    watch: dict[str, Any] = {"monitor": f"val/{recipe.primary}", "mode": mode}
    if part.select != "last":
        saved.append(ModelCheckpoint(folder.checkpoints, "best", save_top_k=1, enable_version_counter=False, **watch))
    if part.select == "early-stopping":
        saved.append(EarlyStopping(patience=part.patience, **watch))
    if progress and is_first():
        from lightning.pytorch.callbacks import RichProgressBar

        saved.append(RichProgressBar())
    devices, num_nodes = started(part.devices, part.num_nodes)
    try:
        return L.Trainer(
            accelerator=part.accelerator,
            devices=devices,
            num_nodes=num_nodes,
            strategy="ddp" if devices * num_nodes > 1 else "auto",
            precision=part.precision,  # type: ignore[arg-type]
            max_epochs=part.epochs,
            max_steps=part.max_steps or -1,
            gradient_clip_val=part.gradient_clip,
            check_val_every_n_epoch=part.val_every,
            callbacks=[*saved, *callbacks],
            logger=[_logger(name, folder) for name in part.logger],
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            enable_model_summary=False,
            enable_progress_bar=progress and is_first(),
            use_distributed_sampler=False,  # our sampler slices by rank itself, keyed by seed and epoch
        )
    except (ImportError, ValueError, MisconfigurationException) as error:
        if isinstance(error, SetwiseError):
            raise
        raise InvalidInput(f"Lightning cannot be set up as the recipe's trainer says: {error}") from error


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
    model = Model(**json.loads(folder.require(folder.model, "model file").read_text(encoding="utf-8")))
    weights = load_file(folder.require(folder.weights, "weights"))
    task = _task(recipe.override({"backbone.pretrained": False, "backbone.weights": None}), model, print)
    task.load_state_dict(weights)
    return recipe, task.eval(), model


def evaluate(
    path: str | Path, *, part: str = "test", recipe: Recipe | None = None
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Evaluate a trained run again on one part of its data, at the strength of logit adjustment chosen in training.

    Returns:
        The metrics, and the table of classes: name, training images, group, accuracy, adjusted accuracy.
    """
    recipe, task, model = load_run(path, recipe=recipe)
    splits = build_data(recipe)
    if list(splits.class_names) != model.class_names:
        raise InvalidInput(
            f"{path} was trained on {len(model.class_names)} classes ({', '.join(model.class_names[:3])} ...), but the "
            f"data has {len(splits.class_names)} ({', '.join(splits.class_names[:3])} ...)."
        )
    scores = scores_of(task, build_loader(recipe, splits, part))
    return (
        task.metrics(scores["scores"], scores["target"], tau=model.tau),
        class_table(task, model.class_names, scores, model.tau),
    )


def _check_folder(folder: RunFolder, recipe: Recipe, *, resume: bool) -> None:
    """Refuse a folder with something else in it, before anything is loaded."""
    if resume and folder.recipe.is_file():
        if yaml_file.read(folder.recipe) != recipe.override({"smoke": {}, "ran": ()}):
            raise RunError(
                f"{folder.path} was started with another recipe, so it cannot be resumed with this one. "
                f"Resume it as it is (`setwise train {folder.path} --resume`), or train into a new folder."
            )
    elif folder.path.exists() and (not folder.path.is_dir() or any(folder.path.iterdir())):
        raise RunError(f"{folder.path} is not empty, and a run never overwrites. Choose another --out, or --resume.")


def _write_head(folder: RunFolder, recipe: Recipe, notes: Sequence[str]) -> None:
    """Write what the run is made of, before its first step."""
    if folder.recipe.is_file():
        return
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        _write_environment(folder, notes)
        yaml_file.write(recipe, folder.recipe)
    except OSError as error:
        raise RunError(f"The run folder {folder.path} cannot be written: {error.strerror}.") from error


def _write_environment(folder: RunFolder, notes: Sequence[str]) -> None:
    """Versions, commit and threads, and what the data had to say."""
    environment = {"versions": versions(), "commit": commit(), "threads": torch.get_num_threads(), "notes": list(notes)}
    write_whole(folder.environment, json.dumps(environment, indent=2) + "\n")


def _task(recipe: Recipe, model: Model, say: Say) -> Classification:
    return build_task(
        recipe,
        counts=torch.tensor(model.counts),
        group_counts=torch.tensor(model.group_counts),
        class_names=tuple(model.class_names),
        in_chans=len(model.mean),
        image_size=model.image_size,
        say=say,
    )


def _logger(name: str, folder: RunFolder) -> Any:
    if name == "csv":
        return loggers.CSVLogger(folder.logs, name="csv")
    if name == "tensorboard":
        return loggers.TensorBoardLogger(folder.logs, name="tensorboard")
    known = {"csv": None, "tensorboard": None} | {n: getattr(loggers, n) for n in loggers.__all__}
    return choose(name, known, "logger")(save_dir=folder.logs)


@contextmanager
def _explained(recipe: Recipe) -> Iterator[None]:
    """Say what to change where torch says what it could not do."""
    try:
        yield
    except SystemExit as stop:  # how Lightning ends on Ctrl-C, without a word for the caller
        raise KeyboardInterrupt from stop
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not any(t in str(error).lower() for t in OUT_OF_MEMORY):
            raise
        raise RunError(
            f"Memory does not suffice for a batch of {recipe.data.batch_size}. Set --data.micro-batch "
            f"{max(1, (recipe.data.micro_batch or recipe.data.batch_size) // 4)} (the relation still sees the whole "
            "batch; 4/3 of the time), compute in half the memory with --trainer.precision bf16-mixed, or lower "
            f"--data.batch-size or --data.image-size ({recipe.data.image_size or 'as the images are'})."
        ) from error


def _quiet() -> None:
    """Lightning's remarks on things that are decided here are no help to a reader."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*LeafSpec.*",
        ".*Checkpoint directory.*",
        ".*log_every_n_steps.*",
    ):
        warnings.filterwarnings("ignore", message)
