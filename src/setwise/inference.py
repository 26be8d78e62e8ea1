"""Predict with a trained run: images in, names and probabilities out, or metrics where folders name the classes."""

import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import torch

from setwise.data import IMAGE_EXTENSIONS, Loader, Split, make_loader
from setwise.data.folders import ClassFolders, is_image, scan, visible_files
from setwise.data.images import ImageFiles, StackedImages, decode
from setwise.data.problems import shorten
from setwise.data.transforms import to_grey
from setwise.errors import DataError, InvalidInput, MissingFile, RunError
from setwise.explained import explained
from setwise.metrics import adjust
from setwise.recipes import Recipe
from setwise.run import load_run
from setwise.scoring import Model, class_table, scores_of
from setwise.work import on_accelerator

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
    run: str | Path, inputs: Sequence[Path], *, top_k: int = 5, adjusted: bool = False, batch_size: int = 64
) -> list[Prediction]:
    """Classify images with the plain model of a run.

    Args:
        run: run folder.
        inputs: images and folders of images.
        top_k: classes per image.
        adjusted: add the logit adjustment that validation chose, as the adjusted metrics do.
        batch_size: images at a time; predictions do not depend on it, unless the run relates at test time.

    Returns:
        One prediction an image, in the order of the inputs.

    Raises:
        DataError: naming the images that cannot be read.
    """
    if top_k < 1:
        raise InvalidInput(f"`top-k` ({top_k}) must be at least 1.")
    recipe, task, model = load_run(run)
    if adjusted and task.multi_label:
        raise InvalidInput("--adjusted corrects class bias where one class excludes another; here it does not.")
    paths = find_images(inputs)
    with on_accelerator(task, recipe):
        scores = scores_of(task, _loader(_as_split(paths, model), model, recipe, batch_size=batch_size))["scores"]
    if adjusted:
        scores = adjust(scores, task.counts, model.tau)
    probabilities = scores.sigmoid() if task.multi_label else scores.softmax(1)
    best = probabilities.topk(min(top_k, len(model.class_names)), dim=1)
    return [
        Prediction(str(path), tuple(model.class_names[k] for k in classes), tuple(values))
        for path, values, classes in zip(paths, best.values.tolist(), best.indices.tolist(), strict=True)
    ]


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
    # Folders come class by class: predictions that depend on the batch must not have one that is all of one class.
    mixed = recipe.relation.relate_at_test and not recipe.relation.memory
    with explained(recipe, Path(run)), on_accelerator(task, recipe):
        scores = scores_of(task, _loader(split, model, recipe, batch_size=recipe.data.batch_size, mixed=mixed))
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
    writer.writerows([p.path, *_interleave(p)] for p in predictions)


def _interleave(prediction: Prediction) -> Iterator[object]:
    for name, probability in zip(prediction.classes, prediction.probabilities, strict=True):
        yield name
        yield f"{probability:.6f}"


def _loader(split: Split, model: Model, recipe: Recipe, *, batch_size: int, mixed: bool = False) -> Loader:
    return make_loader(
        split,
        batch_size=batch_size,
        transform="none",
        mean=model.mean,
        std=model.std,
        seed=recipe.seed,
        train=False,
        mixed=mixed,
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
