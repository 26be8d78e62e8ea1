"""Folders of images, one per class: the layout that most people's own data has."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torchvision.datasets.folder import IMG_EXTENSIONS

from setwise.data.parts import Listing
from setwise.data.problems import shorten
from setwise.errors import DataError, InvalidInput, MissingFile

__all__ = ["ClassFolders", "existing_root", "list_classes", "scan"]

ClassFolders = Mapping[str, list[Path]]
"""Images by class name, both in alphabetical order."""


def existing_root(root: str | None, *, data_set: str) -> Path:
    """The folder of a data set.

    Raises:
        InvalidInput: if none is given.
        MissingFile: if there is no such folder.
    """
    if root is None:
        raise InvalidInput(f"{data_set} needs `root`, its folder: --data.root FOLDER.")
    path = Path(root).expanduser()
    if not path.is_dir():
        raise MissingFile(f"`root` ({root}) of {data_set} is not a folder; say where it is with --data.root FOLDER.")
    return path


def list_classes(folder: Path) -> list[Path]:
    """Subfolders that are not hidden, in alphabetical order."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def scan(folder: Path) -> tuple[ClassFolders, int]:
    """All images below ``folder/<class>/``, however deep, and the number of other files that were ignored.

    Hidden files and folders are passed over and not counted; what is an image is decided by torchvision's list of file
    extensions.

    Raises:
        DataError: if there is no class folder.
    """
    classes: dict[str, list[Path]] = {}
    ignored = 0
    for class_folder in list_classes(folder):
        images: list[Path] = []
        for place, folders, files in os.walk(class_folder, followlinks=True):
            folders[:] = [name for name in folders if not name.startswith(".")]
            visible = [name for name in files if not name.startswith(".")]
            images += [Path(place, name) for name in visible if name.lower().endswith(IMG_EXTENSIONS)]
            ignored += sum(not name.lower().endswith(IMG_EXTENSIONS) for name in visible)
        classes[class_folder.name] = sorted(images)
    if not classes:
        raise DataError(f"{folder} has no class folders; expected one folder of images per class.")
    return classes, ignored


def to_listing(folders: ClassFolders, class_names: list[str], *, part: str) -> Listing:
    """Label images by the place of their class in ``class_names``.

    Raises:
        DataError: if there are classes that are not in ``class_names``.
    """
    unknown = [repr(name) for name in folders if name not in class_names]
    if unknown:
        raise DataError(f"Class {shorten(unknown, separator=', ')} of {part} is missing in train.")
    label = {name: place for place, name in enumerate(class_names)}
    paths = [path for images in folders.values() for path in images]
    target = [label[name] for name, images in folders.items() for _ in images]
    return Listing(paths, torch.tensor(target, dtype=torch.long))


def require_images(folders: ClassFolders, folder: Path) -> None:
    """Refuse a class without images.

    Raises:
        DataError: naming the classes.
    """
    empty = [repr(name) for name, images in folders.items() if not images]
    if empty:
        raise DataError(f"No image in {folder} for class {shorten(empty, separator=', ')}.")
