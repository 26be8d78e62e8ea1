"""Text files with one "path label" line per image: ImageNet-LT, Places-LT, iNaturalist 2018, and one's own."""

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import torch

from setwise.data.dataset import IMAGENET_MEAN, IMAGENET_STD, DataSet, Splits
from setwise.data.folders import existing_root, leaves_folder
from setwise.data.images import Cache
from setwise.data.parts import Listing, arrange, load_parts
from setwise.data.problems import MOST_LISTED, OnError, settle
from setwise.errors import DataError, InvalidInput, MissingFile
from setwise.machine import at_home

__all__ = ["IMAGE_LIST", "ListedImage", "check_path", "parse_line", "read_list"]


@dataclass(frozen=True)
class ListedImage:
    """One line of a list."""

    path: str
    """Relative to the root."""
    labels: tuple[int, ...]
    line: int
    """Counted from 1."""


@dataclass
class ImageList:
    """A list file: its usable lines, and what is wrong with the others."""

    file: str
    images: list[ListedImage] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def reject(self, line: int, reason: str) -> None:
        """Note what is wrong with a line."""
        self.problems.append(f"{self.file} line {line}: {reason}")


def load(
    *,
    root: str | None = None,
    train_list: str | None = None,
    seed: int,
    val_list: str | None = None,
    test_list: str | None = None,
    multi_label: bool = False,
    val_fraction: float = 0.1,
    image_size: int | None = None,
    cache: Cache = "auto",
    on_error: OnError = "raise",
) -> Splits:
    """Read lists of images; where one is not given, parts are held out as :func:`setwise.data.parts.arrange` says.

    Labels are whole numbers from 0; the largest in the training list tells the number of classes. Pixels are
    normalised with ImageNet's mean and deviation.

    Args:
        root: folder that the paths in the lists are relative to; no path may lead out of it.
        train_list: list of training images; like the others it is looked for in the working directory, then below the
            root.
        seed: draws what is held out.
        val_list: list of validation images.
        test_list: list of test images.
        multi_label: a line has one label or more, and the target is one row of zeros and ones per image.
        val_fraction: part of every class held out where there is no validation part.
        image_size: side of what the network sees; None: the images' own size, which must then be the same.
        cache: decode once into memory, read from files every epoch, or decide by size.
        on_error: what an unreadable line, a missing or an unreadable image does.

    Raises:
        InvalidInput: if an option is out of range, or root or training list are not given.
        MissingFile: if the root or a list is missing.
        DataError: if lines are unreadable or lead out of the root, images are missing or unreadable, or a class has no
            training image.
    """
    folder = existing_root(root, data_set="image-list")
    if train_list is None:
        raise InvalidInput('image-list needs `train_list`, a file of "path label" lines: --data.train-list FILE.')
    given = {"train": train_list, "val": val_list, "test": test_list}
    files = {part: find_list(file, folder) for part, file in given.items() if file is not None}
    listings, num_classes, notes = read_lists(files, root=folder, multi_label=multi_label, on_error=on_error)
    parts = arrange(
        listings["train"], val=listings.get("val"), test=listings.get("test"), val_fraction=val_fraction, seed=seed
    )
    return load_parts(
        replace(parts, notes=parts.notes + notes),
        root=folder,
        class_names=[str(label) for label in range(num_classes)],
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        image_size=image_size,
        cache=cache,
        on_error=on_error,
    )


def find_list(file: str, root: Path) -> Path:
    """The list in the working directory, or else below the root.

    Raises:
        MissingFile: if it is in neither place.
    """
    here = at_home(file)
    places = [here] if here.is_absolute() else [here, root / here]
    for place in places:
        if place.is_file():
            return place
    sought = f", neither in the working directory ({Path.cwd()}) nor below `root` ({root})" if len(places) > 1 else ""
    raise MissingFile(f"The list {file} is not a file{sought}.")


def read_lists(
    files: Mapping[str, Path], *, root: Path, multi_label: bool, on_error: OnError
) -> tuple[dict[str, Listing], int, tuple[str, ...]]:
    """The images of every part, the number of classes, and what was skipped."""
    lists = {part: read_list(file, multi_label=multi_label) for part, file in files.items()}
    for found in lists.values():
        keep_inside(found, root)
    keep_once(lists["train"])
    num_classes = 1 + max((label for image in lists["train"].images for label in image.labels), default=-1)
    for found in lists.values():
        keep_known(found, num_classes)
        keep_once(found)  # of lines that are known: a bad one does not take the place of a good one
    problems = [problem for found in lists.values() for problem in found.problems]
    notes = settle(problems, on_error=on_error, what="lines")
    require_every_class(lists["train"], num_classes)
    listings = {part: to_listing(found, root, num_classes, multi_label) for part, found in lists.items()}
    return listings, num_classes, notes


def read_list(file: Path, *, multi_label: bool = False) -> ImageList:
    """Read the lines of a list; images are not looked for. Empty lines are passed over.

    Raises:
        MissingFile: if there is no such file.
    """
    if not file.is_file():
        raise MissingFile(f"The list {file} is not a file.")
    found = ImageList(str(file))
    for number, raw in enumerate(file.read_bytes().splitlines(), start=1):
        if not raw.strip():
            continue
        try:
            path, labels = parse_line(raw.decode("utf-8-sig"), multi_label=multi_label)
        except ValueError as error:  # undecodable bytes are one, too
            found.reject(number, str(error))
        else:
            found.images.append(ListedImage(path, labels, number))
    return found


def parse_line(line: str, *, multi_label: bool) -> tuple[str, tuple[int, ...]]:
    """Path and labels of a line; a path may contain spaces.

    Raises:
        ValueError: saying what is wrong with the line.

    >>> parse_line("train/sea gull/3.jpg 7", multi_label=False)
    ('train/sea gull/3.jpg', (7,))
    >>> parse_line("street.jpg 3 17 42", multi_label=True)
    ('street.jpg', (3, 17, 42))
    """
    path, labels = line.strip(), list[int]()
    while True:
        head, _, last = path.rpartition(" ")
        if not head or not last.removeprefix("-").isdecimal():
            break
        path = head.rstrip()
        labels.insert(0, int(last))
    if not labels:
        raise ValueError(f'expected "path label", found {line.strip()!r}')
    if len(labels) > 1 and not multi_label:
        raise ValueError(f"{len(labels)} labels; several need --data.multi-label True")
    if min(labels) < 0:
        raise ValueError(f"label {min(labels)} is negative")
    return path, tuple(labels)


def keep_inside(found: ImageList, root: Path) -> None:
    """Reject the lines whose image is missing or lies outside the root."""
    inside = root.resolve()
    parents: dict[str, bool] = {}
    kept = []
    for image in found.images:
        reason = check_path(image.path, inside, parents)
        if reason:
            found.reject(image.line, reason)
        else:
            kept.append(image)
    found.images = kept


def check_path(path: str, root: Path, parents: dict[str, bool]) -> str | None:
    """Say what is wrong with a path, or None.

    Args:
        path: as it stands in the list.
        root: resolved.
        parents: memory of which folders lie inside the root: resolving every path anew takes seconds for a long list.
    """
    parts = path.split("/")
    if leaves_folder(path):
        return f"{path} must be relative to the root and must not leave it"
    folder = "/".join(parts[:-1])
    file = root / path
    try:
        if folder not in parents:
            parents[folder] = (root / folder).resolve().is_relative_to(root)
        if not parents[folder] or (file.is_symlink() and not file.resolve().is_relative_to(root)):
            return f"{path} leads out of the root through a link"
        return None if file.is_file() else f"{file} is missing"
    except (OSError, ValueError, RuntimeError) as error:  # too long a name, a zero byte, a ring of links
        return f"{path!r} is no path of a file ({error})"


def keep_once(found: ImageList) -> None:
    """Reject lines whose image an earlier one names: it could be trained on and held out, or count twice."""
    first: dict[str, ListedImage] = {}
    kept = []
    for image in found.images:
        earlier = first.setdefault(posixpath.normpath(image.path), image)
        if earlier is image:
            kept.append(image)
        else:
            other = "" if set(earlier.labels) == set(image.labels) else ", with another label"
            found.reject(image.line, f"{image.path} stands in line {earlier.line} already{other}")
    found.images = kept


def keep_known(found: ImageList, num_classes: int) -> None:
    """Reject the lines with a label that no training image has."""
    kept = []
    for image in found.images:
        if max(image.labels) >= num_classes:
            found.reject(
                image.line, f"label {max(image.labels)} is out of range: train has labels 0 to {num_classes - 1}"
            )
        else:
            kept.append(image)
    found.images = kept


def to_listing(found: ImageList, root: Path, num_classes: int, multi_label: bool) -> Listing:
    """The files and their targets."""
    paths = [root / image.path for image in found.images]
    if not multi_label:
        return Listing(paths, torch.tensor([image.labels[0] for image in found.images], dtype=torch.long))
    target = torch.zeros(len(paths), num_classes)
    for row, image in zip(target, found.images, strict=True):
        row[list(image.labels)] = 1
    return Listing(paths, target)


def require_every_class(train: ImageList, num_classes: int) -> None:
    """Refuse gaps between the labels.

    Raises:
        DataError: naming the labels without a training image.
    """
    present = {label for image in train.images for label in image.labels}
    if not present:
        raise DataError(f"{train.file} has no image for any label: every line is the path of an image and its label.")
    absent = (str(label) for label in range(num_classes) if label not in present)
    if num_classes > len(present):
        first, number = list(islice(absent, MOST_LISTED)), num_classes - len(present)  # a mistyped label may be huge
        more = f" and {number - len(first)} more" if number > len(first) else ""
        raise DataError(
            f"{train.file} has no image for label {', '.join(first)}{more}; labels must be 0, 1, 2 ... without gaps."
        )


IMAGE_LIST = DataSet(
    name="image-list",
    summary='lists of "path label" lines: ImageNet-LT, Places-LT, iNaturalist 2018, your own; one label or several',
    licence="that of the images",
    source="ImageNet-LT and Places-LT: Liu et al., Large-Scale Long-Tailed Recognition in an Open World, CVPR 2019, "
    "arXiv:1904.05160; iNaturalist 2018: Van Horn et al., CVPR 2018, arXiv:1707.06642",
    how_to_get="`setwise data imagenet-lt`, `places-lt` and `inaturalist2018` say where images and lists are. "
    "--data.root is the folder that the paths in the lists are "
    "relative to; --data.train-list, --data.val-list and --data.test-list are the lists.",
    load=load,
)
