"""Tiny copies of every data set in its real layout on disk, so that the tests need no download.

``write(name, root)`` writes one and returns the options that load it; ``LAYOUTS[name]`` lists the layouts there are.
The pictures are noise around a colour of their class: small, different from each other, and learnable.
"""

import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

__all__ = ["LAYOUTS", "picture", "write", "write_classes"]

CLASSES = ("bee", "cat", "dog", "owl")
SIDE = 12


def write(name: str, root: Path, layout: str | None = None) -> dict[str, object]:
    """Write a tiny copy of a data set below ``root`` in one of its layouts (the first if none is named)."""
    layouts = LAYOUTS[name]
    return layouts[layout or next(iter(layouts))](root)


def picture(label: int, number: int, *, side: int = SIDE) -> np.ndarray:
    """A ``[side, side, 3]`` picture, another one for every label and number."""
    rng = np.random.default_rng([label, number])
    colour = np.random.default_rng(label).integers(40, 216, 3)
    return (colour + rng.integers(-40, 40, (side, side, 3))).astype(np.uint8)


def write_classes(
    folder: Path, counts: dict[str, int], *, first: int = 0, suffix: str = ".png", side: int = SIDE
) -> None:
    """Write ``folder/<class>/<number>.png``; ``first`` is the first number, so that parts do not share pictures."""
    for label, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for number in range(first, first + count):
            Image.fromarray(picture(label, number, side=side)).save(folder / name / f"{number:04d}{suffix}")


def digits(root: Path) -> dict[str, object]:
    return {}


def one_folder(root: Path) -> dict[str, object]:
    write_classes(root, {"bee": 20, "cat": 12, "dog": 6, "owl": 4})
    return {"root": str(root)}


def parts(*names: str) -> Callable[[Path], dict[str, object]]:
    def writer(root: Path) -> dict[str, object]:
        sizes = {"train": (20, 12, 6, 4), "val": (3, 3, 3, 3), "test": (4, 4, 4, 4)}
        for name in names:
            first = 100 * list(sizes).index(name)
            write_classes(root / name, dict(zip(CLASSES, sizes[name], strict=True)), first=first)
        return {"root": str(root)}

    return writer


def list_lines(root: Path, *, multi_label: bool) -> dict[str, object]:
    options: dict[str, object] = {"root": str(root / "images"), "multi_label": multi_label}
    for first, (part, counts) in enumerate({"train": (9, 6, 4, 2), "val": (2,) * 4, "test": (3,) * 4}.items()):
        write_classes(root / "images" / part, dict(zip(CLASSES, counts, strict=True)), first=100 * first)
        lines = []
        for label, name in enumerate(CLASSES):
            for path in sorted((root / "images" / part / name).iterdir()):
                more = f" {(label + 1) % len(CLASSES)}" if multi_label and path.stem.endswith(("1", "3")) else ""
                lines.append(f"{part}/{name}/{path.name} {label}{more}\n")
        (root / f"{part}.txt").write_text("".join(lines))
        options[f"{part}_list"] = str(root / f"{part}.txt")
    return options


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes strings as Python 2 did when it wrote the official CIFAR files."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_bytes(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes

    def save_global(self, value: Any, name: str | None = None) -> None:
        module = value.__module__.replace("numpy._core", "numpy.core")
        self.write(pickle.GLOBAL + f"{module}\n{value.__name__}\n".encode())
        self.memoize(value)

    dispatch[type] = save_global
    dispatch[type(write)] = save_global
    dispatch[type(len)] = save_global


def write_python2_pickle(path: Path, content: dict[bytes, object]) -> None:
    with path.open("wb") as file:
        Python2Pickler(file, protocol=2).dump(content)


def official_cifar(num_classes: int) -> Callable[[Path], dict[str, object]]:
    """The pickles of the official archive, with 12 (or 4) images per class instead of 6,000 (600)."""

    def writer(root: Path) -> dict[str, object]:
        ten = num_classes == 10
        folder = root / ("cifar-10-batches-py" if ten else "cifar-100-python")
        files = [f"data_batch_{number}" for number in range(1, 6)] if ten else ["train"]
        folder.mkdir(parents=True)
        per_file = 2 if ten else 3
        for place, file in enumerate([*files, "test_batch" if ten else "test"]):
            labels = [label for _ in range(per_file) for label in range(num_classes)]
            numbers = [place * per_file + number for number in range(per_file) for _ in range(num_classes)]
            pixels = [
                picture(label, n, side=32).transpose(2, 0, 1).ravel() for label, n in zip(labels, numbers, strict=True)
            ]
            content = {
                b"data": np.stack(pixels),
                b"labels" if ten else b"fine_labels": labels,
                b"filenames": [f"{label}_{n}.png".encode() for label, n in zip(labels, numbers, strict=True)],
            }
            write_python2_pickle(folder / file, content)
        names = [f"class {label:02d}".encode() for label in range(num_classes)]
        key = b"label_names" if ten else b"fine_label_names"
        write_python2_pickle(folder / ("batches.meta" if ten else "meta"), {key: names})
        return {"root": str(root), "imbalance_factor": 5.0 if ten else 2.0}

    return writer


def cifar_folders(num_classes: int, largest: int, suffix: str) -> Callable[[Path], dict[str, object]]:
    """Class folders as in the shared copies: long-tailed in train, equal in test."""

    def writer(root: Path) -> dict[str, object]:
        names = [f"class {label:02d}" for label in range(num_classes)]
        train = {name: max(2, largest * (num_classes - label) // num_classes) for label, name in enumerate(names)}
        write_classes(root / "train", train, suffix=suffix, side=32)
        write_classes(root / "test", dict.fromkeys(names, 1), first=100, suffix=suffix, side=32)
        return {"root": str(root)}

    return writer


LAYOUTS: dict[str, dict[str, Callable[[Path], dict[str, object]]]] = {
    "digits-lt": {"embedded": digits},
    "cifar10-lt": {"folders": cifar_folders(10, 8, ".jpg"), "official": official_cifar(10)},
    "cifar100-lt": {"folders": cifar_folders(100, 3, ".webp"), "official": official_cifar(100)},
    "image-folder": {
        "train-val-test": parts("train", "val", "test"),
        "train-val": parts("train", "val"),
        "train-test": parts("train", "test"),
        "one-folder": one_folder,
    },
    "image-list": {
        "one-label": lambda root: list_lines(root, multi_label=False),
        "several-labels": lambda root: list_lines(root, multi_label=True),
    },
}
"""Data set -> layout -> what writes it."""
