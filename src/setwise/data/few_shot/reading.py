"""From lists of image files by class to pools: decoded once into memory, or whenever they are drawn."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from setwise.data.few_shot.loader import WAY_OUT, squash
from setwise.data.few_shot.pool import FewShotSplits, Pool
from setwise.data.few_shot.trees import Tree
from setwise.data.images import (
    AT_A_TIME,
    MEMORY_BYTES,
    SAMPLED_SIZES,
    Cache,
    Images,
    ListedImages,
    StackedImages,
    num_cores,
)
from setwise.data.problems import settle, shorten
from setwise.errors import DataError, InvalidInput, MissingFile

__all__ = ["PARTS", "PartFiles", "class_lists", "in_memory", "load_pools", "read_json"]

PARTS: Mapping[str, tuple[str, ...]] = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
"""What a part is called in lists and folders."""

CHUNK = 256
"""Images that a thread is given at a time."""


@dataclass(frozen=True, eq=False)
class PartFiles:
    """The files of a part, not yet read."""

    tree: Tree
    classes: Mapping[str, Sequence[str]]
    """Names of the images of every class."""
    superclasses: tuple[str, ...] | None = None


def load_pools(
    parts: Mapping[str, PartFiles],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    image_size: int | None,
    cache: Cache,
    grey: bool = False,
    notes: tuple[str, ...] = (),
) -> FewShotSplits:
    """Read the files of train, val and test.

    Args:
        parts: the files of each.
        mean, std: of each channel, of pixels in 0..1.
        image_size: side to which images are brought, whatever their aspect; None: they are kept as they are.
        cache: ``"memory"``, ``"files"``, or ``"auto"``: memory up to 1 GiB of decoded images.
        grey: keep one channel of images whose three are equal; the loader makes it three again.
        notes: sentences a user should be told.

    Raises:
        InvalidInput: if the size is below 1.
        DataError: if images cannot be read, a class has no image, or a class is in two parts.
    """
    names = {part: [name for group in files.classes.values() for name in group] for part, files in parts.items()}
    lazy = {part: files.tree.images(names[part]) for part, files in parts.items()}
    images = in_memory(lazy, image_size=image_size, cache=cache, grey=grey)
    pools = {
        part: Pool(
            images=images[part],
            target=torch.arange(len(files.classes)).repeat_interleave(
                torch.tensor([len(group) for group in files.classes.values()], dtype=torch.long)
            ),
            class_names=tuple(files.classes),
            names=tuple(names[part]),
            superclasses=files.superclasses,
            image_size=image_size,
        )
        for part, files in parts.items()
    }
    return FewShotSplits(**pools, mean=mean, std=std, notes=notes)


def in_memory(
    images: Mapping[str, Images], *, image_size: int | None, cache: Cache, grey: bool = False
) -> Mapping[str, Images]:
    """The images of all parts decoded, where ``cache`` says so or they fit; else as they are.

    Raises:
        InvalidInput: if the size is below 1.
        DataError: naming the images that cannot be read.
    """
    if image_size is not None and image_size < 1:
        raise InvalidInput(f"`image_size` ({image_size}) must be at least 1.")
    if cache == "files" or (cache == "auto" and _num_bytes(images, image_size, grey=grey) > MEMORY_BYTES):
        return images
    return {part: decoded(lazy, image_size=image_size, grey=grey) for part, lazy in images.items()}


def _num_bytes(images: Mapping[str, Images], image_size: int | None, *, grey: bool) -> float:
    """About how much memory the decoded images take: those that cannot be read are somebody else's to name."""
    number = sum(map(len, images.values()))
    if image_size is not None:
        return number * (1 if grey else 3) * image_size**2
    sizes = []
    for part in images.values():
        places = np.linspace(0, len(part) - 1, min(len(part), SAMPLED_SIZES)).astype(int)
        for few in torch.from_numpy(places).split(AT_A_TIME):
            sizes += [image.numel() for image in part.take(few) if isinstance(image, Tensor)]
    return number * float(np.mean(sizes or [0])) / (3 if grey else 1)


def decoded(images: Images, *, image_size: int | None, grey: bool = False) -> StackedImages | ListedImages:
    """All images in memory, as one tensor where they have one size.

    Raises:
        DataError: naming the images that cannot be read.
    """

    def chunk(places: Tensor) -> list[Tensor | DataError]:
        few = places.split(AT_A_TIME)
        return [_ready(image, image_size, grey=grey) for part in few for image in images.take(part)]

    with ThreadPoolExecutor(num_cores()) as pool:
        found = [image for part in pool.map(chunk, torch.arange(len(images)).split(CHUNK)) for image in part]
    settle([str(image) for image in found if isinstance(image, DataError)], on_error="raise", what="", way_out=WAY_OUT)
    tensors = [image for image in found if isinstance(image, Tensor)]
    if len({len(image) for image in tensors}) > 1:  # a coloured one among grey ones
        tensors = [image.expand(3, -1, -1) for image in tensors]
    one_size = len({image.shape for image in tensors}) == 1
    return StackedImages(torch.stack(tensors)) if one_size else ListedImages(tensors)


def _ready(image: Tensor | DataError, image_size: int | None, *, grey: bool) -> Tensor | DataError:
    if isinstance(image, DataError):
        return image
    image = image[:1] if grey and bool((image == image[:1]).all()) else image
    return image if image_size is None else squash([image], image_size)[0, : len(image)].clone()


def read_json(file: Path) -> dict[str, Any]:
    """What a JSON file holds.

    Raises:
        MissingFile: if there is none.
        DataError: if it is no JSON or no object.
    """
    if not file.is_file():
        raise MissingFile(f"{file} is missing.")
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise DataError(f"{file} must hold one JSON object, {{...}}, but holds a {type(content).__name__}.")
    return content


def class_lists(file: Path, content: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names of the classes of train, val and test; "valid" may stand for "val", and other keys are passed over.

    Args:
        file: where they stand, for messages.
        content: of the file.

    Raises:
        DataError: if there is no list of a part, or it names a class twice.
    """
    lists: dict[str, list[str]] = {}
    for part, keys in PARTS.items():
        classes = next((content[key] for key in keys if key in content), None)
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise DataError(
                f'{file} must hold {{"train": [...], "val": [...], "test": [...]}}, but has no list of names {part!r}.'
            )
        twice = sorted(name for name, number in Counter(classes).items() if number > 1)
        if twice:
            raise DataError(f"{file} names a class of {part} twice: {shorten(twice, separator=', ')}.")
        lists[part] = classes
    return lists
