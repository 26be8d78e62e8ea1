"""Few-shot sets in one folder per class: the user's own, and CUB's birds."""

from collections.abc import Mapping
from pathlib import Path

from setwise.data.dataset import IMAGENET_MEAN, IMAGENET_STD
from setwise.data.few_shot.pool import FewShotSet, FewShotSplits
from setwise.data.few_shot.reading import PARTS, PartFiles, class_lists, load_pools, read_json
from setwise.data.few_shot.trees import by_folder, open_tree
from setwise.data.folders import existing_root, list_classes
from setwise.data.images import Cache
from setwise.data.problems import shorten
from setwise.errors import DataError, MissingFile

__all__ = ["CLASS_FOLDERS", "CUB"]

LISTS = "splits.json"


def load(*, root: str | None = None, seed: int, image_size: int | None = None, cache: Cache = "auto") -> FewShotSplits:
    """Read ``root/<class>/`` with ``root/splits.json``, or ``root/train/<class>/``, ``root/val/<class>/`` and test.

    The lists are ``{"train": [...], "val": [...], "test": [...]}``, names of class folders; Meta-Dataset's are such
    lists. A slash in a name, which no folder can have, stands for an underscore ("F-16A/B" is ``F-16A_B``). The
    classes may lie in ``root/images``. Pixels are normalised with ImageNet's mean and deviation.

    Args:
        root: the folder.
        seed: of no effect: the parts are given.
        image_size: side to which images are brought; None: they are kept as they are.
        cache: decode once into memory, read every time, or decide by size.

    Raises:
        InvalidInput: if no root is given.
        MissingFile: if there are neither lists nor folders of parts.
        DataError: if a listed class has no folder or no image, or is in two parts.
    """
    folder = existing_root(root, data_set="class-folders")
    file = folder / LISTS
    if file.is_file():
        parts, notes = by_lists(images_folder(folder), class_lists(file, read_json(file)), source=file)
    else:
        parts, notes = by_part_folders(folder), ()
    return load_pools(parts, mean=IMAGENET_MEAN, std=IMAGENET_STD, image_size=image_size, cache=cache, notes=notes)


def images_folder(root: Path) -> Path:
    """Where the class folders lie."""
    return root / "images" if (root / "images").is_dir() else root


def by_lists(
    folder: Path, lists: Mapping[str, list[str]], *, source: Path
) -> tuple[dict[str, PartFiles], tuple[str, ...]]:
    """The parts as lists of classes have them, and a note on folders that are in none.

    Raises:
        DataError: if a listed class has no images.
    """
    tree = open_tree(folder)
    found = by_folder(tree.names, depth=1)
    lists = {part: [_folder_of(name, found) for name in classes] for part, classes in lists.items()}
    for part, classes in lists.items():
        missing = [repr(name) for name in classes if name not in found]
        if missing:
            raise DataError(
                f"{source} lists classes of {part} that have no folder of images in {folder}: "
                f"{shorten(missing, separator=', ')}. Take them out of the list, or bring them."
            )
    listed = {name for classes in lists.values() for name in classes}
    unlisted = [name for name in found if name not in listed]
    notes = (
        (f"Class folders that are in no list, left out: {len(unlisted)} ({shorten(unlisted, separator=', ')}).",)
        if unlisted
        else ()
    )
    return {part: PartFiles(tree, {name: found[name] for name in classes}) for part, classes in lists.items()}, notes


def _folder_of(name: str, found: Mapping[str, object]) -> str:
    written = name.replace("/", "_")
    return written if name not in found and written in found else name


def by_part_folders(root: Path) -> dict[str, PartFiles]:
    """The parts as folders have them.

    Raises:
        MissingFile: if one of the three is missing.
    """
    parts = {}
    for part, names in PARTS.items():
        folder = next((root / name for name in names if (root / name).is_dir()), None)
        if folder is None:
            raise MissingFile(
                f"{root} has no {LISTS} that says which classes are for train, val and test, and no folder {part}/ of "
                "classes either: bring one or the other."
            )
        tree = open_tree(folder)
        parts[part] = PartFiles(tree, by_folder(tree.names, depth=1))
        empty = [repr(path.name) for path in list_classes(folder) if path.name not in parts[part].classes]
        if empty:
            raise DataError(f"No image in {folder} for class {shorten(empty, separator=', ')}: remove the folder.")
    return parts


def load_cub(
    *, root: str | None = None, seed: int, image_size: int | None = None, cache: Cache = "auto"
) -> FewShotSplits:
    """Read CUB's birds, split by ``splits.json`` or by the rule of Chen et al.

    By that rule every second class, in the order of their folders, is for training, beginning with the first; the
    others are in turn for validation and test: 100, 50 and 50 of the 200 species.

    Args:
        root: folder that holds ``images/<class>/``, or that holds ``CUB_200_2011``, which does.
        seed: of no effect: the parts are fixed.
        image_size: side to which images are brought; None: they are kept as they are.
        cache: decode once into memory, read every time, or decide by size.

    Raises:
        InvalidInput: if no root is given.
        MissingFile: if there are no images.
        DataError: if a listed class has no folder, or is in two parts.

    Source of the rule: Chen et al., A Closer Look at Few-shot Classification, ICLR 2019, arXiv:1904.04232, their code.
    """
    folder = existing_root(root, data_set="cub")
    folder = folder / "CUB_200_2011" if (folder / "CUB_200_2011").is_dir() else folder
    if not (folder / "images").is_dir():
        raise MissingFile(f"cub finds no images/ in {folder}; extract CUB_200_2011.tgz there.")
    file = folder / LISTS
    said: tuple[str, ...] = ()
    if file.is_file() and "train" in read_json(file):
        lists, source = class_lists(file, read_json(file)), file
    else:
        classes = [path.name for path in list_classes(folder / "images")]
        lists, source = {"train": classes[::2], "val": classes[1::4], "test": classes[3::4]}, folder / "images"
        why = f"{LISTS} has no list 'train'" if file.is_file() else f"there is no {LISTS}"
        said = (f"Classes are split by the rule of Chen et al. (2019), because {why}.",)
    parts, notes = by_lists(folder / "images", lists, source=source)
    return load_pools(
        parts, mean=IMAGENET_MEAN, std=IMAGENET_STD, image_size=image_size, cache=cache, notes=said + notes
    )


CLASS_FOLDERS = FewShotSet(
    name="class-folders",
    summary="your own images, one folder per class, and which classes are for training, validation and test",
    licence="yours",
    source="your own folder",
    how_to_get="Put the images of every class into a folder of their own, root/<class>/, and into root/splits.json "
    'which classes are new at test: {"train": ["cat", "dog"], "val": ["owl"], "test": ["bee"]}. Or without it: '
    "root/train/<class>/, root/val/<class>/ and root/test/<class>/.",
    load=load,
)

CUB = FewShotSet(
    name="cub",
    summary="11,788 photographs of 200 species of birds: 100 for training, 50 for validation, 50 for test",
    licence="non-commercial research and education",
    source="Wah et al., The Caltech-UCSD Birds-200-2011 Dataset, 2011; split as in Chen et al., A Closer Look at "
    "Few-shot Classification, ICLR 2019, arXiv:1904.04232",
    how_to_get="Download CUB_200_2011.tgz from https://www.vision.caltech.edu/datasets/cub_200_2011/ and extract it: "
    "--data.root is the folder in which CUB_200_2011/ lies, or that folder. Another split: splits.json in it.",
    load=load_cub,
)
