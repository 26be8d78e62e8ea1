"""Meta-Dataset: ten sets of images as TFRecords, one file a class, and a specification of their classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from setwise.data.dataset import IMAGENET_MEAN, IMAGENET_STD
from setwise.data.few_shot.class_graph import ClassGraph
from setwise.data.few_shot.pool import FewShotSet, FewShotSplits, Pool
from setwise.data.few_shot.reading import in_memory, read_json
from setwise.data.few_shot.records import Records, index_records
from setwise.data.folders import existing_root
from setwise.data.images import Cache, Images, PackedImages
from setwise.data.problems import shorten
from setwise.errors import DataError, InvalidInput

__all__ = ["META_DATASET", "PartClasses", "find_sources", "load_sources", "read_specification"]

SPECIFICATION = "dataset_spec.json"
SPLITS: Mapping[str, str] = {"train": "TRAIN", "val": "VALID", "test": "TEST"}
FILE_PATTERN = "{}.tfrecords"


@dataclass(frozen=True, eq=False)
class PartClasses:
    """The classes of a part, as the specification has them."""

    ids: tuple[int, ...]
    names: tuple[str, ...]
    superclasses: tuple[str, ...] | None = None
    graph: ClassGraph | None = None


def load(*, root: str | None = None, seed: int, image_size: int | None = None, cache: Cache = "auto") -> FewShotSplits:
    """Read one set of Meta-Dataset: ``root/dataset_spec.json`` and ``root/<class id>.tfrecords``.

    Classes have an alphabet (Omniglot) or a graph (ImageNet) over them if the specification says so. Pixels are
    normalised with ImageNet's mean and deviation. A set may have no class for training (MSCOCO, traffic signs).

    Args:
        root: folder of the set; a folder with several sets is what :func:`load_sources` reads.
        seed: of no effect: the parts are fixed.
        image_size: side to which images are brought; None: they are kept as they are.
        cache: decode once into memory, read every time, or decide by size.

    Raises:
        InvalidInput: if no root is given, or it holds several sets.
        MissingFile: if the specification or the file of a class is missing.
        DataError: if files are not what they should be.
    """
    folder = existing_root(root, data_set="meta-dataset")
    if several := find_sources(folder):
        listed = shorten([source.name for source in several], separator=", ")
        raise InvalidInput(
            f"{folder} holds {len(several)} data sets ({listed}): name one, --data.root {several[0]}, or read all with "
            "setwise.data.few_shot.load_sources."
        )
    return load_source(folder, image_size=image_size, cache=cache)


def find_sources(root: Path) -> list[Path]:
    """The folders below a root that hold a specification, in alphabetical order; none where the root has one itself."""
    if (root / SPECIFICATION).is_file():
        return []
    return sorted(file.parent for file in root.glob(f"*/{SPECIFICATION}"))


def load_sources(root: str, *, image_size: int | None = None, cache: Cache = "auto") -> dict[str, FewShotSplits]:
    """All sets of Meta-Dataset below a folder, by the names of their folders.

    To train on several, pass the list of their training pools, each with its sampler, to
    :func:`setwise.data.few_shot.make_episode_loader`.

    Raises:
        MissingFile: if there is no such folder, or a file of a set is missing.
        DataError: if there is no set or the folder is one itself, or files are not what they should be.
    """
    folder = existing_root(root, data_set="meta-dataset")
    sources = find_sources(folder)
    if (folder / SPECIFICATION).is_file():
        raise DataError(f"{folder} is one data set itself: FEW_SHOT['meta-dataset'].load reads it.")
    if not sources:
        raise DataError(f"{folder} has no folder with a {SPECIFICATION}.")
    return {source.name: load_source(source, image_size=image_size, cache=cache) for source in sources}


def load_source(folder: Path, *, image_size: int | None, cache: Cache) -> FewShotSplits:
    """One set of Meta-Dataset."""
    parts, counts = read_specification(folder / SPECIFICATION)
    packs: dict[str, PackedImages] = {}
    notes = []
    numbers: dict[str, np.ndarray] = {}
    for part, classes in parts.items():
        files = [folder / FILE_PATTERN.format(label) for label in classes.ids]
        spans = [index_records(file) for file in files]
        numbers[part] = np.array([len(found) for found in spans], dtype=np.int64)
        which = np.repeat(np.arange(len(files)), numbers[part])
        packs[part] = PackedImages(Records(files, classes.ids, which, np.concatenate([np.empty((0, 2), int), *spans])))
        other = [
            f"{name!r} ({number} for {counts[label]})"
            for label, name, number in zip(classes.ids, classes.names, numbers[part].tolist(), strict=True)
            if counts.get(label, number) != number
        ]
        if other:
            notes.append(f"Classes of {part} whose number of images is not that of {SPECIFICATION}: {shorten(other)}.")
        if not files:
            notes.append(f"The set has no class for {part}.")
    images: Mapping[str, Images] = in_memory(packs, image_size=image_size, cache=cache)
    pools = {
        part: Pool(
            images=images[part],
            target=torch.arange(len(classes.ids)).repeat_interleave(torch.from_numpy(numbers[part])),
            class_names=classes.names,
            names=tuple(
                f"{FILE_PATTERN.format(label)} record {place} ({name})"
                for label, name, number in zip(classes.ids, classes.names, numbers[part].tolist(), strict=True)
                for place in range(number)
            ),
            superclasses=classes.superclasses,
            graph=classes.graph,
            image_size=image_size,
        )
        for part, classes in parts.items()
    }
    return FewShotSplits(**pools, mean=IMAGENET_MEAN, std=IMAGENET_STD, notes=tuple(notes))


def read_specification(file: Path) -> tuple[dict[str, PartClasses], dict[int, int]]:
    """The classes of each part, and how many images the specification says each class has.

    Class ids count from 0, first those of train, then of val, then of test.

    Raises:
        MissingFile: if there is no such file.
        DataError: if it is no specification of a kind that is known.
    """
    content = read_json(file)
    kind = content.get("__class__")
    readers = {
        "DatasetSpecification": _flat,
        "BiLevelDatasetSpecification": _of_two_levels,
        "HierarchicalDatasetSpecification": _of_a_graph,
    }
    if not isinstance(kind, str) or kind not in readers:
        raise DataError(f"{file} has `__class__` {kind!r}; known are {', '.join(readers)}.")
    if content.get("file_pattern", FILE_PATTERN) != FILE_PATTERN:
        raise DataError(f"{file} has `file_pattern` {content['file_pattern']!r}; only {FILE_PATTERN!r} can be read.")
    try:
        parts = readers[kind](content)
        images = content["images_per_class"]
        if kind == "HierarchicalDatasetSpecification":
            named = {name: label for part in parts.values() for name, label in zip(part.names, part.ids, strict=True)}
            images = {named[name]: n for split in images.values() for name, n in split.items() if name in named}
        return parts, {int(label): int(number) for label, number in images.items()}
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        if isinstance(error, DataError):
            raise DataError(f"{file}: {error}") from error
        raise DataError(f"{file} is no specification of Meta-Dataset ({error!r}).") from error


def _flat(content: Mapping[str, Any]) -> dict[str, PartClasses]:
    parts, first = {}, 0
    for part, split in SPLITS.items():
        ids = _ids(first, content["classes_per_split"].get(split, 0), content)
        parts[part] = PartClasses(ids, tuple(content["class_names"][str(label)] for label in ids))
        first += len(ids)
    return parts


def _ids(first: int, number: int, content: Mapping[str, Any]) -> tuple[int, ...]:
    """The next so many class ids; a mistyped number may be huge, so it is compared with the names first."""
    if not 0 <= number <= len(content["class_names"]) - first:
        raise ValueError(f"{number} classes from {first} on, but {len(content['class_names'])} `class_names`")
    return tuple(range(first, first + number))


def _of_two_levels(content: Mapping[str, Any]) -> dict[str, PartClasses]:
    parts, superclass, first = {}, 0, 0
    for part, split in SPLITS.items():
        superclasses = range(superclass, superclass + content["superclasses_per_split"].get(split, 0))
        sizes = [content["classes_per_superclass"][str(number)] for number in superclasses]
        if min(sizes, default=0) < 0:
            raise ValueError(f"a superclass of {split} has {min(sizes)} classes")
        ids = _ids(first, sum(sizes), content)
        above = chain.from_iterable(
            [content["superclass_names"][str(number)]] * size for number, size in zip(superclasses, sizes, strict=True)
        )
        parts[part] = PartClasses(ids, tuple(content["class_names"][str(label)] for label in ids), tuple(above))
        superclass, first = superclasses.stop, first + len(ids)
    return parts


def _of_a_graph(content: Mapping[str, Any]) -> dict[str, PartClasses]:
    parts, first = {}, 0
    for part, split in SPLITS.items():
        children = {node["wn_id"]: tuple(node["children_ids"]) for node in content["split_subgraphs"].get(split, ())}
        leaves = tuple(sorted(node for node, below in children.items() if not below))
        ids = tuple(range(first, first + len(leaves)))
        wrong = [name for label, name in zip(ids, leaves, strict=True) if content["class_names"][str(label)] != name]
        if wrong:
            raise ValueError(f"leaf {wrong[0]} has another class id in `class_names`")
        graph = ClassGraph({node: below for node, below in children.items() if below}, leaves) if leaves else None
        parts[part] = PartClasses(ids, leaves, graph=graph)
        first += len(ids)
    return parts


META_DATASET = FewShotSet(
    name="meta-dataset",
    summary="a set of Meta-Dataset (Omniglot, Aircraft, Birds ...) as TFRecords; TensorFlow is not needed",
    licence="that of each set",
    source="Triantafillou et al., Meta-Dataset, ICLR 2020, arXiv:1903.03096",
    how_to_get="Convert the sets as github.com/google-research/meta-dataset describes. --data.root is the folder of "
    "one of them, with dataset_spec.json and the files 0.tfrecords, 1.tfrecords ...",
    load=load,
)
