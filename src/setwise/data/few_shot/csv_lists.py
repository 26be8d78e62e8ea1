"""Lists in CSV files, one a part, with a line for every image: the layout of miniImageNet and of sets made after it."""

import csv
import io
from functools import partial
from pathlib import Path

from setwise.data.dataset import IMAGENET_MEAN, IMAGENET_STD
from setwise.data.few_shot.pool import FewShotSet, FewShotSplits
from setwise.data.few_shot.reading import PARTS, PartFiles, load_pools
from setwise.data.few_shot.trees import Tree, open_tree
from setwise.data.folders import existing_root, leaves_folder
from setwise.data.images import Cache
from setwise.data.problems import settle
from setwise.errors import DataError, MissingFile

__all__ = ["MINIIMAGENET", "TINYIMAGENET_FEW_SHOT", "read_csv"]

COLUMNS = (("filename", "label"), ("image_name", "class_name"))
"""Names of the columns of file and class: of Ravi and Larochelle's lists, and of those of other libraries."""

WAY_OUT = "Take such lines out of the lists, or bring the images."


def load(
    name: str, *, root: str | None = None, seed: int, image_size: int | None = None, cache: Cache = "auto"
) -> FewShotSplits:
    """Read ``train.csv``, ``val.csv`` and ``test.csv``, and images from ``images.zip``, ``images/`` or the root.

    Pixels are normalised with ImageNet's mean and deviation.

    Args:
        name: of the set.
        root: the folder of the lists.
        seed: of no effect: the parts are fixed.
        image_size: side to which images are brought; None: they are kept as they are.
        cache: decode once into memory, read every time, or decide by size.

    Raises:
        InvalidInput: if no root is given.
        MissingFile: if a list is missing.
        DataError: if a list has no such columns, or names images that are not there or outside of the folder.
    """
    folder = existing_root(root, data_set=name)
    listed = {part: read_csv(find_list(folder, part)) for part in PARTS}
    places = [place for place in (folder / "images.zip", folder / "images") if place.exists()]
    tree = open_tree(places[0] if places else folder)
    problems: list[str] = []
    free = set(tree.names)
    parts = {part: find_images(classes, tree, free, problems) for part, classes in listed.items()}
    settle(problems, on_error="raise", what="lines", way_out=WAY_OUT)
    return load_pools(parts, mean=IMAGENET_MEAN, std=IMAGENET_STD, image_size=image_size, cache=cache)


def find_list(root: Path, part: str) -> Path:
    """The list of a part.

    Raises:
        MissingFile: if there is none.
    """
    for name in PARTS[part]:
        if (root / f"{name}.csv").is_file():
            return root / f"{name}.csv"
    raise MissingFile(f"{root / part}.csv is missing: a list with the columns {','.join(COLUMNS[0])} for every part.")


def read_csv(file: Path) -> dict[str, list[str]]:
    """Images by class, both in the order of the list.

    Raises:
        DataError: if the file is no such list.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(file.read_bytes().decode("utf-8-sig"), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} cannot be read as a list ({error}).") from error
    columns = next((pair for pair in COLUMNS if rows and set(pair) <= set(rows[0])), None)
    if columns is None:
        raise DataError(f"{file} must begin with the line {','.join(COLUMNS[0])}, and an image must follow.")
    classes: dict[str, list[str]] = {}
    for number, row in enumerate(rows, start=2):
        name, label = row[columns[0]], row[columns[1]]
        if not name or not label:
            raise DataError(f"{file} line {number}: expected {','.join(columns)}, found {row}.")
        classes.setdefault(label, []).append(name)
    return classes


def find_images(classes: dict[str, list[str]], tree: Tree, free: set[str], problems: list[str]) -> PartFiles:
    """The files that a list names, as they are or in a folder of their class.

    Args:
        classes: names of the images of every class.
        tree: where they are.
        free: those that no list has named yet; what is named here is taken out.
        problems: gets a clause for each that cannot be had.
    """
    known = set(tree.names)
    found: dict[str, list[str]] = {}
    for label, names in classes.items():
        found[label] = []
        for name in names:
            path = next((path for path in (name, f"{label}/{name}") if path in known), None)
            if path in free:
                found[label].append(path)
                free.remove(path)
            elif path is not None:
                problems.append(f"{name} is listed twice")
            elif leaves_folder(name):
                problems.append(f"{name} must be relative to {tree.place} and must not leave it")
            else:
                problems.append(f"{name} is not in {tree.place}")
    return PartFiles(tree, found)


TINYIMAGENET_FEW_SHOT = FewShotSet(
    name="tinyimagenet-few-shot",
    summary="photographs of 64x64 pixels from Tiny ImageNet in classes for training, validation and test; CSV lists",
    licence="ImageNet's terms: non-commercial research and education",
    source="Tiny ImageNet, Stanford CS231N; after miniImageNet: Vinyals et al., Matching Networks, NeurIPS 2016, "
    "arXiv:1606.04080",
    how_to_get="Put train.csv, val.csv and test.csv (columns filename,label) into one folder, --data.root, and the "
    "images into images.zip or images/ beside them. Filenames are paths in there.",
    load=partial(load, "tinyimagenet-few-shot"),
)

MINIIMAGENET = FewShotSet(
    name="miniimagenet",
    summary="60,000 photographs of 100 classes of ImageNet: 64 for training, 16 for validation, 20 for test",
    licence="ImageNet's terms: non-commercial research and education",
    source="Vinyals et al., Matching Networks, NeurIPS 2016, arXiv:1606.04080; classes as in Ravi and Larochelle, "
    "Optimization as a Model for Few-Shot Learning, ICLR 2017",
    how_to_get="Get the images and the lists train.csv, val.csv and test.csv of Ravi and Larochelle (columns "
    "filename,label). --data.root is the folder of the lists; the images are in images/ or images.zip beside them.",
    load=partial(load, "miniimagenet"),
)
