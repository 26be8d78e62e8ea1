"""The user's own images in one folder per class, split beforehand or not."""

from dataclasses import replace
from pathlib import Path

import torch

from setwise.data.dataset import IMAGENET_MEAN, IMAGENET_STD, DataSet, Splits
from setwise.data.folders import existing_root, list_classes, require_images, scan, to_listing
from setwise.data.images import Cache
from setwise.data.long_tail import largest_long_tail, pick
from setwise.data.parts import Listing, Parts, arrange, load_parts
from setwise.data.problems import OnError
from setwise.errors import DataError
from setwise.seeds import generator

__all__ = ["IMAGE_FOLDER"]


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

    Of train, val and test the latter two may be missing: see :func:`setwise.data.parts.arrange`. Classes are numbered
    in alphabetical order. Pixels are normalised with ImageNet's mean and deviation.

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
        DataError: if a class is empty or not in train, or images are unreadable or differ in size.
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
    train_folder = root / "train" if is_split(root) else root
    folders, ignored = scan(train_folder)
    require_images(folders, train_folder)
    class_names = list(folders)
    others: dict[str, Listing] = {}
    for name in ("val", "test"):
        if is_split(root) and (root / name).is_dir():
            found, ignored_here = scan(root / name)
            others[name] = to_listing(found, class_names, part=name)
            ignored += ignored_here
    train = to_listing(folders, class_names, part="train")
    parts = arrange(train, val=others.get("val"), test=others.get("test"), val_fraction=val_fraction, seed=seed)
    return parts.noting(f"Ignored files that are no images: {ignored}." if ignored else None), class_names


def is_split(root: Path) -> bool:
    """Whether ``root/train`` holds class folders; a *class* called train holds images."""
    return (root / "train").is_dir() and bool(list_classes(root / "train"))


def make_long_tailed(parts: Parts, *, imbalance_factor: float, num_classes: int, seed: int) -> Parts:
    """Thin out the training part to the largest exponential long tail that its classes can fill."""
    counts = torch.bincount(parts.train.target, minlength=num_classes).tolist()
    if 0 in counts:
        raise DataError("A class has no training image left to make long-tailed.")
    wanted = largest_long_tail(counts, imbalance_factor=imbalance_factor)
    places = pick(parts.train.target, wanted, generator=generator(seed, "long tail"))
    note = f"Train is made long-tailed: {len(places)} of its {len(parts.train.paths)} images, drawn by the seed."
    return replace(parts, train=parts.train.at(places)).noting(note)


IMAGE_FOLDER = DataSet(
    name="image-folder",
    summary="your own images, one folder per class: root/train/<class>/, root/val/<class>/, or just root/<class>/",
    licence="yours",
    source="your own folder",
    how_to_get="Put the images of every class into a folder of their own: root/train/<class>/ and root/val/<class>/ "
    "(root/test/<class>/ too, if you have it), or root/<class>/ alone, which is then split: "
    "a fifth of every class for test, the same for every seed, and a tenth, drawn by the seed, for validation.",
    load=load,
)
