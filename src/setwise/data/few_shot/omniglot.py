"""Omniglot: 1,623 handwritten characters of 50 alphabets, 20 drawings of each."""

from pathlib import Path

from setwise.data.few_shot.pool import FewShotSet, FewShotSplits
from setwise.data.few_shot.reading import PartFiles, class_lists, load_pools, read_json
from setwise.data.few_shot.trees import Tree, by_folder, open_tree
from setwise.data.folders import existing_root
from setwise.data.images import Cache
from setwise.data.problems import shorten
from setwise.errors import DataError, MissingFile

__all__ = ["OMNIGLOT"]

VAL_ALPHABETS = (
    "Alphabet_of_the_Magi",
    "Blackfoot_(Canadian_Aboriginal_Syllabics)",
    "Inuktitut_(Canadian_Aboriginal_Syllabics)",
    "Ojibwe_(Canadian_Aboriginal_Syllabics)",
    "Tagalog",
)
"""Of the 30 background alphabets, those of Meta-Dataset's validation part."""

MEAN, STD = (0.9213,) * 3, (0.2693,) * 3
"""Of the drawings of the 25 training alphabets at 105 pixels."""

EVALUATION_ALPHABETS = 20


def load(*, root: str | None = None, seed: int, image_size: int | None = None, cache: Cache = "auto") -> FewShotSplits:
    """Read Omniglot's zip files as they are, or their folders.

    Train are 25 of the background alphabets, val the five others, test the evaluation alphabets, unless ``splits.json``
    lists other alphabets. A class is a character of one alphabet, and the alphabet is its superclass.

    Args:
        root: folder that holds ``images_background.zip`` and ``images_evaluation.zip``, or the folders of these names;
            or holds ``omniglot-py``, which holds them.
        seed: of no effect: the parts are fixed.
        image_size: side to which drawings are brought; None: 105 pixels, as they are.
        cache: decode once into memory, read every time, or decide by size.

    Raises:
        InvalidInput: if no root is given.
        MissingFile: if a part is missing.
        DataError: if files are not what they should be.
    """
    folder = existing_root(root, data_set="omniglot")
    trees = [find_tree(folder, name) for name in ("images_background", "images_evaluation")]
    characters = [by_folder_of(tree) for tree in trees]
    notes: tuple[str, ...] = ()
    if (folder / "splits.json").is_file():
        lists = class_lists(folder / "splits.json", read_json(folder / "splits.json"))
    else:
        background, evaluation = (sorted(groups) for groups in characters)
        lists = {
            "train": [name for name in background if name not in VAL_ALPHABETS],
            "val": [name for name in background if name in VAL_ALPHABETS],
            "test": evaluation,
        }
    if len(characters[1]) < EVALUATION_ALPHABETS:
        notes = (
            f"The evaluation part has {len(characters[1])} of the official {EVALUATION_ALPHABETS} alphabets: say so "
            "beside numbers from the literature.",
        )
    parts = {}
    for part, alphabets in lists.items():
        places = {place for place, groups in enumerate(characters) for name in alphabets if name in groups}
        unknown = [repr(name) for name in alphabets if not any(name in groups for groups in characters)]
        if unknown or len(places) > 1:
            raise DataError(
                f"Alphabets of {part} must be all among the background or all among the evaluation alphabets in "
                f"{folder}: {shorten(unknown or sorted(map(repr, alphabets)), separator=', ')}."
            )
        place = min(places, default=0)
        parts[part] = part_of(trees[place], characters[place], alphabets)
    return load_pools(parts, mean=MEAN, std=STD, image_size=image_size, cache=cache, grey=True, notes=notes)


def find_tree(root: Path, name: str) -> Tree:
    """The drawings of one of the two parts.

    Raises:
        MissingFile: naming where it was looked for.
    """
    for folder in (root, root / "omniglot-py"):
        for place in (folder / name, folder / f"{name}.zip"):
            if place.exists():
                return open_tree(place)
    raise MissingFile(f"omniglot finds neither {name}.zip nor {name}/ in {root} or in its omniglot-py/.")


def by_folder_of(tree: Tree) -> dict[str, dict[str, list[str]]]:
    """Drawings by alphabet and character; an archive, and a folder it was unpacked to, may hold them below its name.

    Raises:
        DataError: if the folders are not those of Omniglot.
    """
    inside = f"{tree.place.stem}/"
    prefix = inside if all(name.startswith(inside) for name in tree.names) else ""
    characters = by_folder([name.removeprefix(prefix) for name in tree.names], depth=2)
    if not characters:
        raise DataError(f"{tree.place} has no drawings in <alphabet>/<character>/.")
    found: dict[str, dict[str, list[str]]] = {}
    for character, names in characters.items():
        alphabet = character.split("/")[0]
        found.setdefault(alphabet, {})[character] = [prefix + name for name in names]
    return found


def part_of(tree: Tree, characters: dict[str, dict[str, list[str]]], alphabets: list[str]) -> PartFiles:
    """The characters of some alphabets."""
    classes = {name: files for alphabet in alphabets for name, files in characters[alphabet].items()}
    return PartFiles(tree, classes, superclasses=tuple(name.split("/")[0] for name in classes))


OMNIGLOT = FewShotSet(
    name="omniglot",
    summary="1,623 handwritten characters of 50 alphabets, 20 drawings of each, 105x105 pixels",
    licence="MIT (github.com/brendenlake/omniglot)",
    source="Lake, Salakhutdinov, Tenenbaum, Human-level concept learning through probabilistic program induction, "
    "Science 2015; validation alphabets as in Triantafillou et al., Meta-Dataset, ICLR 2020, arXiv:1903.03096",
    how_to_get="Download images_background.zip and images_evaluation.zip from github.com/brendenlake/omniglot "
    "(folder python) into one folder, which is --data.root. They are read as they are.",
    load=load,
)
