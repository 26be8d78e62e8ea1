"""Folders of images, one per class: the layout that most people's own data has."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import NoReturn

import torch
from torchvision.datasets.folder import IMG_EXTENSIONS

from setwise.data.parts import Listing
from setwise.data.problems import shorten
from setwise.errors import DataError, InvalidInput, MissingFile
from setwise.machine import at_home

__all__ = ["IMAGE_EXTENSIONS", "ClassFolders", "existing_root", "leaves_folder", "list_classes", "scan"]

IMAGE_EXTENSIONS: tuple[str, ...] = IMG_EXTENSIONS
"""What files of images end in, in small letters, whatever the case in the folder: torchvision's list."""

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
    path = at_home(root)
    if not path.is_dir():
        raise MissingFile(f"`root` ({root}) of {data_set} is not a folder; say where it is with --data.root FOLDER.")
    return path


def list_classes(folder: Path) -> list[Path]:
    """Subfolders that are not hidden, in alphabetical order.

    Raises:
        DataError: if the folder cannot be read.
    """
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except PermissionError as error:
        _unreadable(error)


def is_image(name: str) -> bool:
    """Whether a file of this name is read as an image."""
    return name.lower().endswith(IMAGE_EXTENSIONS)


def has_images(folder: Path) -> bool:
    """Whether there is an image anywhere below a folder."""
    return any(is_image(path.name) for path in visible_files(folder))


def visible_files(folder: Path) -> Iterator[Path]:
    """All files below a folder, however deep, but for hidden ones and those in hidden folders; links are followed.

    A folder to which several links lead is read once, so that a ring of links ends.
    """
    seen = {_identity(folder)}
    for place, folders, files in os.walk(folder, onerror=_unreadable, followlinks=True):
        new = []
        for name in sorted(folders):
            if not name.startswith(".") and (found := _identity(os.path.join(place, name))) not in seen:
                new.append(name)
                seen.add(found)
        folders[:] = new
        yield from (Path(place, name) for name in files if not name.startswith("."))


def _unreadable(error: OSError) -> NoReturn:
    raise DataError(f"{error.filename} cannot be read: {error.strerror}.") from error


def _identity(folder: str | Path) -> tuple[int, int] | str:
    try:
        status = os.stat(folder)
    except OSError:  # it was there a moment ago
        return str(folder)
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)


def leaves_folder(name: str) -> bool:
    """Whether a path is absolute or goes upwards, on any system.

    >>> [leaves_folder(name) for name in ("a/b.png", "../b.png", "/b.png", "a\\\\..\\\\b.png", "c:/b.png", "a..b.png")]
    [False, True, True, True, True, False]
    """
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or name[1:2] == ":"


def scan(folder: Path) -> tuple[ClassFolders, int]:
    """All images below ``folder/<class>/``, however deep, and the number of other files that were ignored.

    Hidden files and folders are passed over and not counted; what is an image is decided by ``IMAGE_EXTENSIONS``.

    Raises:
        DataError: if there is no class folder, or one whose name is no text.
    """
    classes: dict[str, list[Path]] = {}
    ignored = 0
    for class_folder in list_classes(folder):
        _require_text(class_folder)
        visible = list(visible_files(class_folder))
        classes[class_folder.name] = sorted(path for path in visible if is_image(path.name))
        ignored += len(visible) - len(classes[class_folder.name])
    if not classes:
        raise DataError(f"{folder} has no class folders; expected one folder of images per class.")
    return classes, ignored


def _require_text(folder: Path) -> None:
    """Names of classes are written into results, which are UTF-8."""
    try:
        folder.name.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"The class folder {os.fsencode(folder.name)!r} of {folder.parent} has a name that is not UTF-8: rename it."
        ) from error


def to_listing(folders: ClassFolders, class_names: list[str], *, part: str) -> Listing:
    """Label images by the place of their class in ``class_names``.

    Raises:
        DataError: if there are classes that are not in ``class_names``.
    """
    unknown = [repr(name) for name in folders if name not in class_names]
    if unknown:
        raise DataError(
            f"Class {shorten(unknown, separator=', ')} of {part} is missing in train: add images of it there, or take "
            f"its folder out of {part}."
        )
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
        raise DataError(
            f"No image in {folder} for class {shorten(empty, separator=', ')}: put some there, or remove the folder."
        )
