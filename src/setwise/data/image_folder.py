"""The user's own images in one folder per class, split beforehand or not."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from setwise.data.dataset import IMAGENET_MEAN, IMAGENET_STD, DataSet, Splits
from setwise.data.folders import existing_root, has_images, list_classes, require_images, scan, to_listing
from setwise.data.images import Cache
from setwise.data.long_tail import largest_long_tail, pick
from setwise.data.parts import Listing, Parts, arrange, load_parts
from setwise.data.problems import OnError, shorten
from setwise.errors import DataError
from setwise.seeds import generator

__all__ = ["IMAGE_FOLDER"]

PART_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""What the folder of a part may be called, in small letters or large."""

ACCEPTED = "Parts are called " + "; ".join(" or ".join(f"{n}/" for n in names) for names in PART_NAMES.values()) + "."


def load(
    *,
    root: str | None = None,
    seed: int,
    imbalance_factor: float | None = None,
    val_fraction: float = 0.1,
    image_size: int | None = None,
    cache: Cache = "auto",
    on_error: OnError = "raise",
) -> Splits:
    """Read ``root/train/<class>/``, ``root/val/<class>/``, ``root/test/<class>/``, or ``root/<class>/``.

    Of train, val and test the latter two may be missing: see :func:`setwise.data.parts.arrange`. They may have any of
    the names in ``PART_NAMES``, in small letters or large. Classes are numbered in alphabetical order. Pixels are
    normalised with ImageNet's mean and deviation.

    Args:
        root: the folder.
        seed: draws the validation part and, with an imbalance factor, the training images.
        imbalance_factor: make the training part long-tailed, with the largest class as head; None: as it is.
        val_fraction: part of every class held out where the set has no validation part.
        image_size: side of what the network sees; None: the images' own size, which must then be the same.
        cache: decode once into memory, read from files every epoch, or decide by size.
        on_error: what an unreadable image does.

    Raises:
        InvalidInput: if an option is out of range, or no root is given.
        MissingFile: if the root is missing.
        DataError: if folders beside train cannot be told apart, a class is empty or not in train, or images are
            unreadable or differ in size.
    """
    folder = existing_root(root, data_set="image-folder")
    parts, class_names = find_parts(folder, val_fraction=val_fraction, seed=seed)
    if imbalance_factor is not None:
        parts = make_long_tailed(parts, imbalance_factor=imbalance_factor, num_classes=len(class_names), seed=seed)
    return load_parts(
        parts,
        root=folder,
        class_names=class_names,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        image_size=image_size,
        cache=cache,
        on_error=on_error,
    )


def find_parts(root: Path, *, val_fraction: float, seed: int) -> tuple[Parts, list[str]]:
    """The three parts of a folder in any of its layouts, and the names of the classes."""
    part_folders = find_part_folders(root)
    train_folder = part_folders.pop("train", root)
    folders, ignored = scan(train_folder)
    require_images(folders, train_folder)
    class_names = list(folders)
    others: dict[str, Listing] = {}
    for name, folder in part_folders.items():
        found, ignored_here = scan(folder)
        others[name] = to_listing(found, class_names, part=folder.name)
        ignored += ignored_here
    train = to_listing(folders, class_names, part="train")
    parts = arrange(train, val=others.get("val"), test=others.get("test"), val_fraction=val_fraction, seed=seed)
    return parts.noting(f"Ignored files that are no images: {ignored}." if ignored else None), class_names


def find_part_folders(root: Path) -> dict[str, Path]:
    """The folders of train, val and test; none where ``root`` holds the classes themselves.

    A part holds class folders; a *class* called train holds images. What is not understood is refused: read as a class,
    a folder called "dev" would be a wrong answer, and left out, a loss that nobody notices.

    Raises:
        DataError: if there are parts without train, two folders of one part, or class folders in any other folder.
    """
    named: dict[str, list[Path]] = {part: [] for part in PART_NAMES}
    strangers: list[Path] = []
    for folder in list_classes(root):
        part = next((part for part, names in PART_NAMES.items() if folder.name.lower() in names), None)
        (strangers if part is None else named[part]).append(folder)
    all_named = [folder for folders in named.values() for folder in folders]
    if not any(map(list_classes, all_named)) and (strangers or len(all_named) < 2):
        return {}
    for part, folders in named.items():
        if len(folders) > 1:
            raise DataError(f"{root} has {listed(folders)}, but a set has one {part} part: leave one of them there.")
    found = {part: folders[0] for part, folders in named.items() if folders}
    if "train" not in found or not list_classes(found["train"]):
        raise DataError(f"{root} has {listed(all_named)}, but no class folders in a training part. {ACCEPTED}")
    unknown = [folder for folder in strangers if any(map(has_images, list_classes(folder)))]
    if unknown:
        raise DataError(
            f"{root} has class folders in {listed(unknown)} beside {found['train'].name}/: rename or move what is no "
            f"class. {ACCEPTED}"
        )
    return found


def listed(folders: Sequence[Path]) -> str:
    """Names of folders, as they stand in a message."""
    return shorten([f"{folder.name}/" for folder in folders], separator=", ")


def make_long_tailed(parts: Parts, *, imbalance_factor: float, num_classes: int, seed: int) -> Parts:
    """Thin out the training part to the largest exponential long tail that its classes can fill.

    Validation is not part of that long tail any more, so the groups are defined on what is left for training.
    """
    counts = torch.bincount(parts.train.target, minlength=num_classes).tolist()
    if 0 in counts:
        raise DataError("A class has no training image left to make long-tailed.")
    wanted = largest_long_tail(counts, imbalance_factor=imbalance_factor)
    places = pick(parts.train.target, wanted, generator=generator(seed, "long tail"))
    note = f"Train is made long-tailed: {len(places)} of its {len(parts.train.paths)} images, drawn by the seed."
    return replace(parts, train=parts.train.at(places), val_from_train=False).noting(note)


IMAGE_FOLDER = DataSet(
    name="image-folder",
    summary="your own images, one folder per class: root/train/<class>/, root/val/<class>/, or just root/<class>/",
    licence="yours",
    source="your own folder",
    how_to_get="Put the images of every class into a folder of their own: root/train/<class>/ and root/val/<class>/ "
    "(root/test/<class>/ too, if you have it; valid/ and validation/ are val/), or root/<class>/ alone, which is then "
    "split: "
    "a fifth of every class for test, the same for every seed, and a tenth, drawn by the seed, for validation.",
    load=load,
)
