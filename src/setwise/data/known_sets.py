"""The long-tailed benchmarks that come as lists: where images and lists are, what they must hold, and whether yours do.

They are loaded as ``image-list``; nothing is downloaded unasked.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch

from setwise.data.image_list import ImageList, check_path, find_list, read_list
from setwise.data.problems import shorten
from setwise.errors import MissingFile
from setwise.machine import at_home

__all__ = ["KNOWN_SETS", "CheckedList", "KnownSet", "check_lists"]

OF_DECOUPLING = "github.com/facebookresearch/classifier-balancing (BSD)"
OLTR = "Liu et al., Large-Scale Long-Tailed Recognition in an Open World, CVPR 2019, arXiv:1904.05160"


@dataclass(frozen=True, kw_only=True)
class KnownSet:
    """A published set of lists, and what is published about it."""

    name: str
    summary: str
    images: str
    """What to download, and where."""
    layout: str
    """What must lie below the root."""
    lists: str
    """Where the lists are."""
    licence: str
    source: str
    """What to cite."""
    files: Mapping[str, str]
    """Part -> usual name of its list."""
    sizes: Mapping[str, int]
    """Part -> images, as published."""
    num_classes: int
    largest: int
    """Training images of the largest class."""
    smallest: int
    groups: tuple[int, int, int]
    """Classes with more than 100 training images, 20 to 100, and fewer."""
    annotations: Mapping[str, str]
    """Part -> official JSON that its list is made of; none where the list itself is published."""
    recipe: str
    """One that trains on it."""
    val_is_test: bool = False
    """What is called validation is what everybody tests on."""


IMAGENET_LT = KnownSet(
    name="imagenet-lt",
    summary="1,000 classes of ImageNet thinned out to a long tail; test is ImageNet's validation part",
    images="ILSVRC 2012, training and validation images: image-net.org/download (needs an account)",
    layout="train/n01440764/n01440764_762.JPEG ..., val/n01440764/ILSVRC2012_val_00029930.JPEG ...: a folder a class "
    "in both; the official archive of validation images has none, they must be sorted into them",
    lists=f"{OF_DECOUPLING}, data/ImageNet_LT",
    licence="ImageNet's terms of access: non-commercial research and education; the copyright of the images is others'",
    source=OLTR,
    files={"train": "ImageNet_LT_train.txt", "val": "ImageNet_LT_val.txt", "test": "ImageNet_LT_test.txt"},
    sizes={"train": 115_846, "val": 20_000, "test": 50_000},
    num_classes=1000,
    largest=1280,
    smallest=5,
    groups=(385, 479, 136),
    annotations={},
    recipe="imagenet-lt-balanced-softmax-resnet10",
)

PLACES_LT = KnownSet(
    name="places-lt",
    summary="365 classes of Places365-Standard thinned out to a long tail; test is its validation part",
    images="Places365-Standard in folders (places365standard_easyformat.tar): places2.csail.mit.edu/download.html",
    layout="train/airfield/00004851.jpg ..., val/airfield/Places365_val_00003597.jpg ...; lists that begin "
    "with data_256/ belong to another archive of the same images",
    lists=f"{OF_DECOUPLING}, data/Places_LT",
    licence="the terms on the download page; the copyright of the images stays with their owners",
    source=f"{OLTR}; Zhou et al., Places: A 10 Million Image Database for Scene Recognition, TPAMI 2017",
    files={"train": "Places_LT_train.txt", "val": "Places_LT_val.txt", "test": "Places_LT_test.txt"},
    sizes={"train": 62_500, "val": 7_300, "test": 36_500},
    num_classes=365,
    largest=4980,
    smallest=5,
    groups=(131, 163, 71),
    annotations={},
    recipe="places-lt-balanced-softmax-resnet152",
)

INATURALIST_2018 = KnownSet(
    name="inaturalist2018",
    summary="8,142 species, long-tailed as observed; tested on its validation part, for test has no public labels",
    images="train_val2018.tar.gz (120 GB): github.com/visipedia/inat_comp/tree/master/2018",
    layout="train_val2018/Plantae/7291/9f8ecb39e5f767e39e9b28e34488f179.jpg ...",
    lists="made from train2018.json and val2018.json of the same page: setwise data inaturalist2018 --train-json "
    "train2018.json --val-json val2018.json --lists DIR",
    licence="its terms of use: non-commercial research and education, images must not be passed on; iNaturalist's "
    "terms of service hold, and each image has a licence of its own in the JSON",
    source="Van Horn et al., The iNaturalist Species Classification and Detection Dataset, CVPR 2018, arXiv:1707.06642",
    files={"train": "iNaturalist18_train.txt", "val": "iNaturalist18_val.txt"},
    sizes={"train": 437_513, "val": 24_426},
    num_classes=8142,
    largest=1000,
    smallest=2,
    groups=(842, 4076, 3224),
    annotations={"train": "train2018.json", "val": "val2018.json"},
    recipe="inaturalist-balanced-softmax-resnet50",
    val_is_test=True,
)

KNOWN_SETS = {known.name: known for known in (IMAGENET_LT, PLACES_LT, INATURALIST_2018)}
"""Published lists by name."""


@dataclass(frozen=True)
class CheckedList:
    """What a list of a part holds, and what is wrong with it."""

    part: str
    file: Path | None
    """None: it is not there."""
    counts: tuple[int, ...]
    """Images of each class up to the largest label."""
    there: int | None
    """Images that lie below the root; None: there is no root to look in."""
    problems: tuple[str, ...]
    """Sentences without their full stop."""

    @property
    def num_images(self) -> int:
        """Lines that can be read."""
        return sum(self.counts)


def check_lists(known: KnownSet, *, root: str | None, lists: Path | None) -> list[CheckedList]:
    """Look whether lists and images of a known set are there, and whether they are as published.

    Args:
        known: what they should be.
        root: folder that the paths of the lists are relative to; None: images are not looked for.
        lists: folder of the lists; None: they are looked for in the working directory, then below the root.

    Returns:
        One for each part that the set has a list of.

    Raises:
        MissingFile: if the root or the folder of lists is not there.
    """
    folder = None if root is None else at_home(root)
    for what, place in (("root", folder), ("lists", lists)):
        if place is not None and not place.is_dir():
            raise MissingFile(f"`{what}` of {known.name} must be a folder, but {place} is none.")
    read = {part: _read(file, lists, folder) for part, file in known.files.items()}
    doubled = _in_two(read)
    return [_checked(known, part, *read[part], folder, doubled.get(part, ())) for part in known.files]


def _read(file: str, lists: Path | None, root: Path | None) -> tuple[Path | None, ImageList | None]:
    try:
        path = find_list(file, Path() if root is None else root) if lists is None else lists / file
        return path, read_list(path)
    except MissingFile:
        return None, None


def _checked(
    known: KnownSet,
    part: str,
    path: Path | None,
    found: ImageList | None,
    root: Path | None,
    more: tuple[str, ...],
) -> CheckedList:
    if path is None or found is None:
        return CheckedList(part, None, (), None, (f"the list {known.files[part]} is not there ({known.lists})",))
    problems = [*_as_lines(found, path), *more]
    labels = [image.labels[0] for image in found.images if image.labels[0] < known.num_classes]
    if beyond := [image for image in found.images if image.labels[0] >= known.num_classes]:
        problems.append(
            f"{path.name} line {beyond[0].line} has label {beyond[0].labels[0]}, but the {known.num_classes:,} classes "
            f"are 0 to {known.num_classes - 1}"
        )
    counts = torch.bincount(torch.tensor(labels, dtype=torch.int64), minlength=known.num_classes)
    if absent := int((counts == 0).sum()):
        problems.append(f"{path.name} has no image of {absent:,} of the {known.num_classes:,} classes")
    if len(found.images) != known.sizes[part]:
        problems.append(f"{path.name} has {len(found.images):,} images, but the published list {known.sizes[part]:,}")
    if part == "train" and not problems:
        problems += _not_as_published(known, counts, path)
    there = None
    if root is not None:
        there, missing = _look_for(found, root)
        problems += missing
    return CheckedList(part, path, tuple(counts.tolist()), there, tuple(problems))


def _not_as_published(known: KnownSet, counts: torch.Tensor, path: Path) -> list[str]:
    """The sizes of classes, where the number of all images is right.

    Groups are those of ``metrics.by_count``, which data does not know; they are defined here by what was published.
    """
    groups = tuple(int(classes.sum()) for classes in (counts > 100, (counts >= 20) & (counts <= 100), counts < 20))
    found = (int(counts.max()), int(counts.min()), groups)
    if found == (known.largest, known.smallest, known.groups):
        return []
    return [
        f"classes of {path.name} have {found[1]:,} to {found[0]:,} images, {groups[0]} many-, {groups[1]} medium- and "
        f"{groups[2]} few-shot ones, but the published list {known.smallest:,} to {known.largest:,} and "
        f"{known.groups[0]}, {known.groups[1]} and {known.groups[2]}"
    ]


def _as_lines(found: ImageList, path: Path) -> list[str]:
    if not found.problems:
        return []
    return [f"lines of {path.name} that cannot be read: {len(found.problems):,} ({shorten(found.problems)})"]


def _look_for(found: ImageList, root: Path) -> tuple[int, list[str]]:
    """How many images there are, and one sentence about the others."""
    inside, parents = root.resolve(), dict[str, bool]()
    wrong = [image.path for image in found.images if check_path(image.path, inside, parents)]
    if not wrong:
        return len(found.images), []
    name, listed = Path(found.file).name, len(found.images)
    if len(wrong) == listed:
        return 0, [f"no image of {name} lies below {root}: the root must be the folder that {wrong[0]} is relative to"]
    return listed - len(wrong), [
        f"{len(wrong):,} of {listed:,} images of {name} are not below {root} ({shorten(wrong, separator=', ')})"
    ]


def _in_two(read: Mapping[str, tuple[Path | None, ImageList | None]]) -> dict[str, tuple[str, ...]]:
    """What stands in a list and, too, in that of a part before it, or twice in one."""
    paths = {part: [image.path for image in found.images] for part, (_, found) in read.items() if found is not None}
    said: dict[str, list[str]] = {part: [] for part in paths}
    for part, all_ in paths.items():
        if twice := [path for path, times in Counter(all_).items() if times > 1]:
            said[part].append(f"images that stand twice in {part}: {len(twice):,} ({shorten(twice, separator=', ')})")
    for one, other in combinations(paths, 2):
        if both := sorted(set(paths[one]) & set(paths[other])):
            said[other].append(
                f"images that stand in {one} and {other}: {len(both):,} ({shorten(both, separator=', ')})"
            )
    return {part: tuple(sentences) for part, sentences in said.items()}
