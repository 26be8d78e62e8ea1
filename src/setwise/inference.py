"""Predict with a trained run: images in, names and probabilities out, or metrics where folders name the classes."""

import csv
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from setwise.data import IMAGE_EXTENSIONS, Loader, Split, make_loader
from setwise.data.few_shot import read_squashed
from setwise.data.folders import ClassFolders, is_image, require_images, scan, visible_files
from setwise.data.images import ImageFiles, StackedImages, as_text, decode
from setwise.data.problems import settle, shorten
from setwise.data.transforms import normalise, to_grey
from setwise.errors import DataError, InvalidInput, MissingFile, RunError, out_of_memory
from setwise.explained import dead_reader, explained
from setwise.metrics import adjust
from setwise.recipes import Recipe, yaml_file
from setwise.run import load_run
from setwise.run_folder import RunFolder
from setwise.scoring import Model, class_table, scores_of
from setwise.work import for_evaluation, load_few_shot, on_accelerator

__all__ = ["Prediction", "evaluate_folder", "find_images", "predict", "write_csv"]


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one image, best first."""

    path: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


def find_images(inputs: Sequence[Path], *, usage: str = "setwise predict RUN IMAGES...") -> list[Path]:
    """Files as they are named, folders as the images below them in order of their names.

    Raises:
        MissingFile: if an input is not there.
        InvalidInput: if there is no image among them.
    """
    if not inputs:
        raise InvalidInput(f"Name at least one image or folder: {usage}")
    found: list[Path] = []
    for path in inputs:
        if path.is_dir():
            found += sorted(p for p in visible_files(path) if is_image(p.name))
        elif path.is_file():
            found.append(path)
        else:
            raise MissingFile(f"There is no image or folder {path}.")
    if not found:
        raise InvalidInput(
            f"There is no image in {', '.join(map(str, inputs))} (looked for {', '.join(IMAGE_EXTENSIONS)})."
        )
    return found


def predict(
    run: str | Path,
    inputs: Sequence[Path],
    *,
    top_k: int = 5,
    adjusted: bool = False,
    batch_size: int = 64,
    num_workers: int | None = None,
    support: Path | None = None,
) -> list[Prediction]:
    """Classify images with the plain model of a run, or by the support images of a few-shot run.

    Args:
        run: run folder.
        inputs: images and folders of images.
        top_k: classes per image.
        adjusted: add the logit adjustment that validation chose, as the adjusted metrics do.
        batch_size: images at a time; predictions do not depend on it, unless the run relates at test time.
        num_workers: processes that read images, where there is no ``support``; None: one a core.
        support: of a few-shot run: a folder with a few images of each class, ``support/<class>/``.

    Returns:
        One prediction an image, in the order of the inputs.

    Raises:
        DataError: naming the images that cannot be read.
    """
    if top_k < 1:
        raise InvalidInput(f"`top-k` ({top_k}) must be at least 1.")
    if batch_size < 1:
        raise InvalidInput(f"`batch-size` ({batch_size}) must be at least 1.")
    if num_workers is not None and num_workers < 0:
        raise InvalidInput(f"`num-workers` ({num_workers}) must be at least 0.")
    if support is not None and adjusted:
        raise InvalidInput("--adjusted corrects what training made of class sizes; --support has classes of its own.")
    if support is not None:
        return _predict_by_support(RunFolder(run), support, find_images(inputs), top_k=top_k, batch_size=batch_size)
    recipe, task, model = load_run(run)
    if adjusted and task.multi_label:
        raise InvalidInput("--adjusted corrects class bias where one class excludes another; here it does not.")
    paths = find_images(inputs)
    loader = _loader(_as_split(paths, model), model, recipe, batch_size=batch_size, num_workers=num_workers)
    with _fitting(batch_size), on_accelerator(task, recipe):
        scores = scores_of(task, loader)["scores"]
    if adjusted:
        scores = adjust(scores, task.counts, model.tau)
    probabilities = scores.sigmoid() if task.multi_label else scores.softmax(1)
    return _best(probabilities, paths, model.class_names, top_k)


@contextmanager
def _fitting(batch_size: int) -> Iterator[None]:
    """Say what to do where memory does not suffice, or a process that reads images dies of it."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if dead := dead_reader(str(error)):
            raise RunError(f"{dead} Take fewer (--num-workers 1) or none (--num-workers 0).") from error
        if not out_of_memory(error):
            raise
        raise RunError(
            f"Memory does not suffice for {batch_size} images at a time: lower --batch-size, or leave a GPU that is in "
            "use alone (CUDA_VISIBLE_DEVICES= setwise predict ...)."
        ) from error


def _best(probabilities: Tensor, paths: Sequence[Path], names: Sequence[str], top_k: int) -> list[Prediction]:
    best = probabilities.topk(min(top_k, len(names)), dim=1)
    return [
        Prediction(str(path), tuple(names[k] for k in classes), tuple(values))
        for path, values, classes in zip(paths, best.values.tolist(), best.indices.tolist(), strict=True)
    ]


@torch.inference_mode()
def _predict_by_support(
    folder: RunFolder, support: Path, paths: Sequence[Path], *, top_k: int, batch_size: int
) -> list[Prediction]:
    recipe = yaml_file.read(folder.require(folder.recipe, "recipe"))
    if recipe.task != "few-shot":
        raise InvalidInput(f"--support shows a few-shot run new classes; {folder.path} knows its own: leave it out.")
    task, model = load_few_shot(folder, recipe)
    if not support.is_dir():
        raise MissingFile(f"There is no folder {support} (--support).")
    folders, _ = scan(support)
    require_images(folders, support)
    known = [path for images in folders.values() for path in images]
    target = torch.tensor([label for label, images in enumerate(folders.values()) for _ in images])

    def images_of(files: Sequence[Path]) -> Tensor:
        square, problems = read_squashed(ImageFiles(files), torch.arange(len(files)), model.image_size)
        settle(problems, on_error="raise", what="images", way_out="Repair it or leave it out.")
        return normalise(square, mean=model.mean, std=model.std).to(task.device)

    with _fitting(batch_size), on_accelerator(task, recipe):
        shown, target = images_of(known), target.to(task.device)
        starts = range(0, len(paths), batch_size)
        scores = [task(shown, target, images_of(paths[start : start + batch_size])).float().cpu() for start in starts]
    return _best(torch.cat(scores).softmax(1), paths, list(folders), top_k)


def evaluate_folder(
    run: str | Path, folder: Path, *, recipe: Recipe | None = None
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Evaluate the plain model of a run on other images than its data set's: ``folder/<class>/``.

    Folders have the names of the run's classes, or their numbers in its order, 0 .. K - 1, as those of ImageNet-V2.
    Classes without a folder are left out of the means.

    Args:
        run: run folder.
        folder: of class folders.
        recipe: the run's recipe with fields that differ here (``data.batch_size`` ...); None: as it was trained.

    Returns:
        As :func:`setwise.run.evaluate`: the metrics, and the table of classes.

    Raises:
        MissingFile: if there is no such folder.
        DataError: if it holds no class folders, other classes or no image, or images cannot be read.
        InvalidInput: if the run has several labels an image, or no classifier.
    """
    recipe, task, model = load_run(run, recipe=recipe)
    if task.multi_label:
        raise InvalidInput(f"A class folder says one label an image, but {run} was trained on several.")
    if not folder.is_dir():
        raise MissingFile(f"There is no folder {folder}.")
    folders, _ = scan(folder)
    label = _labels(folders, model.class_names, folder)
    paths = [path for name in folders for path in folders[name]]
    if not paths:
        raise DataError(f"There is no image in the class folders of {folder}.")
    target = torch.tensor([label[name] for name in folders for _ in folders[name]])
    split = replace(_as_split(paths, model), target=target)
    batch_size, num_workers = for_evaluation(recipe).data.batch_size, recipe.data.num_workers
    loader = _loader(split, model, recipe, batch_size=batch_size, num_workers=num_workers)
    with explained(recipe, RunFolder(run).path), on_accelerator(task, recipe):
        scores = scores_of(task, loader)
    metrics = task.metrics(scores["scores"], scores["target"], tau=model.tau) | task.further_metrics(scores)
    return metrics, class_table(task, model.class_names, scores, model.tau)


def _labels(folders: ClassFolders, class_names: Sequence[str], place: Path) -> dict[str, int]:
    """Label of each folder, by its name or its number."""
    known = {name: k for k, name in enumerate(class_names)}
    if all(name in known for name in folders):
        return {name: known[name] for name in folders}
    numbers = {str(k): k for k in range(len(class_names))}
    if all(name in numbers for name in folders):
        return {name: numbers[name] for name in folders}
    strange = [repr(name) for name in folders if name not in known]
    raise DataError(
        f"The class folders of {place} must have the names of the run's {len(class_names)} classes "
        f"({', '.join(class_names[:3])} ...) or their numbers from 0, but there is {shorten(strange, separator=', ')}."
    )


def write_csv(predictions: Sequence[Prediction], path: Path | None) -> None:
    """One line an image: path, then class and probability of each rank.

    Args:
        predictions: at least one.
        path: a file that does not exist yet; None: standard output.

    Raises:
        RunError: if the file exists, or cannot be written.
    """
    if path is None:
        _write_rows(predictions, sys.stdout)
        return
    try:
        with path.open("x", newline="", encoding="utf-8") as file:
            _write_rows(predictions, file)
    except FileExistsError as error:
        raise RunError(f"{path} exists already and is not overwritten; name another file with --out.") from error
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}.") from error


def _write_rows(predictions: Sequence[Prediction], file: TextIO) -> None:
    ranks = range(1, len(predictions[0].classes) + 1)
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["path", *(column for rank in ranks for column in (f"class_{rank}", f"probability_{rank}"))])
    writer.writerows([as_text(p.path), *_interleave(p)] for p in predictions)


def _interleave(prediction: Prediction) -> Iterator[object]:
    for name, probability in zip(prediction.classes, prediction.probabilities, strict=True):
        yield name
        yield f"{probability:.6f}"


def _loader(split: Split, model: Model, recipe: Recipe, *, batch_size: int, num_workers: int | None) -> Loader:
    return make_loader(
        split,
        batch_size=batch_size,
        transform="none",
        mean=model.mean,
        std=model.std,
        seed=recipe.seed,
        train=False,
        num_workers=num_workers,
        # Folders come class by class: predictions that depend on the batch must not have one that is all of one class.
        mixed=recipe.relation.relate_at_test and not recipe.relation.memory,
        num_classes=len(model.class_names),
        way_out="Repair it or leave it out.",
    )


def _as_split(paths: Sequence[Path], model: Model) -> Split:
    """Files read batch by batch; grey networks get grey images, which are few and small enough to decode at once."""
    images: ImageFiles | StackedImages = ImageFiles(paths)
    if len(model.mean) == 1:
        images = StackedImages(torch.stack([to_grey(decode(path), model.image_size) for path in paths]))
    return Split(
        images=images,
        target=torch.zeros(len(paths), dtype=torch.int64),
        names=tuple(map(str, paths)),
        image_size=model.image_size,
    )
