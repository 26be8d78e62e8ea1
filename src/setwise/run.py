"""Train, continue and evaluate one run; thin over lightning.Trainer."""

import json
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch import loggers
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader

from setwise.build import build_data, build_loader, build_task
from setwise.data import Splits
from setwise.errors import InvalidInput, RunError, choose
from setwise.metrics import TAUS, adjust, per_class_accuracy, predictions_over_taus
from setwise.nn.gather import gather_objects
from setwise.recipes import Recipe, yaml_file
from setwise.run_folder import RunFolder, commit, versions, write_whole
from setwise.tasks import Classification

__all__ = ["Model", "evaluate", "fit", "load_run", "scores_of"]

Say = Callable[[str], None]
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "bad_alloc")


@dataclass(frozen=True)
class Model:
    """What a network must be told besides its weights; ``model.json`` of a run."""

    class_names: list[str]
    counts: list[int]
    """Training images per class."""
    mean: list[float]
    std: list[float]
    image_size: int
    tau: float = 0.0
    """Strength of logit adjustment that validation chose."""

    @classmethod
    def of(cls, splits: Splits) -> "Model":
        """What the training data says about the network."""
        size = splits.train.image_size or splits.train.images[0].shape[-1]
        mean, std = list(splits.mean), list(splits.std)
        return cls(list(splits.class_names), splits.train_counts.tolist(), mean, std, size)


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

    Returns:
        The run's line of ``results.jsonl``.

    Raises:
        RunError: if the folder holds another run, memory does not suffice, or the loss is no number.
    """
    folder = _prepare(RunFolder(out), recipe, resume=resume)
    if resume and folder.complete:
        say(f"{folder.path} is complete already; nothing to do.")
        return json.loads(folder.results.read_text(encoding="utf-8").splitlines()[-1])
    start = time.perf_counter()
    _quiet()
    splits = build_data(recipe)
    for note in splits.notes:
        say(note)
    model = Model.of(splits)
    task = _task(recipe, model, say)
    trainer = make_trainer(recipe, folder, progress=progress, callbacks=callbacks)
    try:
        trainer.fit(
            task,
            build_loader(recipe, splits, "train"),
            build_loader(recipe, splits, "val"),
            ckpt_path=folder.last if resume and folder.last.is_file() else None,
            weights_only=True,
        )
        if trainer.interrupted:
            raise KeyboardInterrupt
        if recipe.trainer.select != "last":
            task.load_state_dict(torch.load(folder.best, "cpu", weights_only=True)["state_dict"])
        val, test = (scores_of(task, build_loader(recipe, splits, part), trainer) for part in ("val", "test"))
    except RuntimeError as error:
        _explain_memory(error, recipe)
        raise
    if trainer.is_global_zero:
        save_file({name: tensor.contiguous() for name, tensor in task.state_dict().items()}, folder.weights)
        _write_results(recipe, folder, task, model, val, test, seconds=time.perf_counter() - start)
    trainer.strategy.barrier()
    return json.loads(folder.results.read_text(encoding="utf-8").splitlines()[-1])


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
    mode = "min" if recipe.primary.endswith("ece") else "max"
    watch: dict[str, Any] = {"monitor": f"val/{recipe.primary}", "mode": mode}
    if part.select != "last":
        saved.append(ModelCheckpoint(folder.checkpoints, "best", save_top_k=1, enable_version_counter=False, **watch))
    if part.select == "early-stopping":
        saved.append(EarlyStopping(patience=part.patience, **watch))
    if progress:
        from lightning.pytorch.callbacks import RichProgressBar

        saved.append(RichProgressBar())
    return L.Trainer(
        accelerator=part.accelerator,
        devices=part.devices,
        strategy="ddp" if part.devices > 1 else "auto",
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
        enable_progress_bar=progress,
        use_distributed_sampler=False,  # our sampler slices by rank itself, keyed by seed and epoch
    )


@torch.inference_mode()
def scores_of(task: Classification, loader: DataLoader, trainer: L.Trainer | None = None) -> dict[str, Tensor]:
    """Scores, targets and indices of one part in its order, on the CPU, from all processes.

    Returns:
        ``scores [N, K]``, ``target [N]`` or ``[N, K]``, ``index [N]``.
    """
    task.eval()
    parts: dict[str, list[Tensor]] = {"scores": [], "target": [], "index": []}
    for batch in loader:
        image = batch.image.to(task.device)
        if trainer is None:
            scores = task(image)
        else:
            with trainer.precision_plugin.forward_context():
                scores = task(image)
        for name, tensor in (("scores", scores.float()), ("target", batch.target), ("index", batch.index)):
            parts[name].append(tensor.cpu())
    if not parts["index"]:
        raise RunError("There is no image to evaluate: this part of the data set is empty.")
    whole = gather_objects({name: torch.cat(tensors) for name, tensors in parts.items()})
    joined = {name: torch.cat([rank[name] for rank in whole]) for name in parts}
    order = joined["index"].argsort()
    return {name: tensor[order] for name, tensor in joined.items()}


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


def class_table(
    task: Classification, class_names: Sequence[str], test: dict[str, Tensor], tau: float
) -> list[dict[str, Any]]:
    """One row a class: name, training images, group, accuracy and adjusted accuracy (absent where not tested)."""
    if task.multi_label:
        return []
    raw, adjusted = (per_class_accuracy(adjust(test["scores"], task.counts, t), test["target"]) for t in (0.0, tau))
    group_of = {int(k): name for name, classes in task.groups.items() for k in classes.nonzero().flatten()}
    return [
        {
            "class": name,
            "train_images": int(task.counts[k]),
            "group": group_of[k],
            "accuracy": round(float(raw[k]), 6),
            "adjusted_accuracy": round(float(adjusted[k]), 6),
        }
        for k, name in enumerate(class_names)
    ]


def _prepare(folder: RunFolder, recipe: Recipe, *, resume: bool) -> RunFolder:
    if resume and folder.recipe.is_file():
        if yaml_file.read(folder.recipe) != recipe.override({"smoke": {}, "ran": ()}):
            raise RunError(
                f"{folder.path} was started with another recipe, so it cannot be resumed with this one. "
                f"Resume it as it is (`setwise train {folder.path} --resume`), or train into a new folder."
            )
        return folder
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        if any(folder.path.iterdir()):
            raise RunError(
                f"{folder.path} is not empty, and a run never overwrites. Choose another --out, or --resume."
            )
        yaml_file.write(recipe, folder.recipe)
        environment = {"versions": versions(), "commit": commit(), "threads": torch.get_num_threads()}
        write_whole(folder.environment, json.dumps(environment, indent=2) + "\n")
    except OSError as error:
        raise RunError(f"The run folder {folder.path} cannot be written: {error.strerror}.") from error
    return folder


def _task(recipe: Recipe, model: Model, say: Say) -> Classification:
    return build_task(
        recipe,
        counts=torch.tensor(model.counts),
        class_names=tuple(model.class_names),
        in_chans=len(model.mean),
        image_size=model.image_size,
        say=say,
    )


def _write_results(
    recipe: Recipe,
    folder: RunFolder,
    task: Classification,
    model: Model,
    val: dict[str, Tensor],
    test: dict[str, Tensor],
    *,
    seconds: float,
) -> None:
    tau = task.choose_tau(val["scores"], val["target"])
    metrics = task.metrics(test["scores"], test["target"], tau=tau)
    if recipe.primary not in metrics:
        choose(recipe.primary, metrics, "metric (primary)")
    saved: dict[str, Any] = {"tau": tau, "counts": task.counts, "target": test["target"], "index": test["index"]}
    saved |= {f"group_{name}": classes for name, classes in task.groups.items()}
    saved |= {f"val_{name}": value for name, value in task.metrics(val["scores"], val["target"], tau=tau).items()}
    if not task.multi_label:
        over_taus = predictions_over_taus(test["scores"], task.counts, TAUS)
        saved |= {"taus": TAUS, "predicted": over_taus.to(torch.int32)}
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in saved.items()}
    np.savez_compressed(folder.predictions, **arrays)
    write_whole(folder.model, json.dumps(asdict(replace(model, tau=tau)), indent=2) + "\n")
    table = class_table(task, model.class_names, test, tau)
    if table:
        rows = [",".join(table[0]), *(",".join(_quoted(value) for value in row.values()) for row in table)]
        write_whole(folder.per_class, "\n".join(rows) + "\n")
    line = {
        "recipe": recipe.name,
        "variant": recipe.variant,
        "seed": recipe.seed,
        "metrics": metrics,
        "primary": recipe.primary,
        "seconds": round(seconds, 3),
        "versions": versions(),
        "commit": commit(),
    }
    write_whole(folder.results, json.dumps(line) + "\n")


def _quoted(value: object) -> str:
    text = str(value)
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\n') else text


def _logger(name: str, folder: RunFolder) -> Any:
    if name == "csv":
        return loggers.CSVLogger(folder.logs, name="csv")
    if name == "tensorboard":
        return loggers.TensorBoardLogger(folder.logs, name="tensorboard")
    known = {"csv": None, "tensorboard": None} | {n: getattr(loggers, n) for n in loggers.__all__}
    return choose(name, known, "logger")(save_dir=folder.logs)  # type: ignore[operator]


def _explain_memory(error: RuntimeError, recipe: Recipe) -> None:
    if isinstance(error, torch.OutOfMemoryError) or any(text in str(error).lower() for text in OUT_OF_MEMORY):
        raise RunError(
            f"Memory does not suffice for a batch of {recipe.data.batch_size}. Lower --data.batch-size (the relation "
            f"then sees fewer samples), --data.image-size ({recipe.data.image_size or 'as the images are'}), or "
            "compute in half the memory with --trainer.precision bf16-mixed."
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
