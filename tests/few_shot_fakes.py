"""Tiny pools, and tiny copies of every few-shot data set in its real layout, so that the tests need no download.

``write(name, root)`` writes one and returns the options that load it; ``LAYOUTS[name]`` lists the layouts there are.
"""

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import fakes
import torch
from PIL import Image

from setwise.data.few_shot import Pool
from setwise.data.images import StackedImages
from setwise.seeds import generator

__all__ = [
    "DATA",
    "LAYOUTS",
    "bitwise_crc32c",
    "encoded",
    "example",
    "field",
    "masked",
    "pool_of",
    "record",
    "varint",
    "write",
    "zip_folder",
]

DATA = Path(os.environ.get("SETWISE_DATA", Path(__file__).parents[2] / "shared" / "data"))
"""Where real data sets are, if they are."""

COUNTS = {"train": 8, "val": 6, "test": 6}
"""Classes of each part; every class has ``PER_CLASS`` images."""

PER_CLASS = 4


def pool_of(counts: list[int], *, side: int = 1, **changes) -> Pool:
    """A pool of noise with ``counts[c]`` images of class ``c``."""
    number = sum(counts)
    options = {
        "images": StackedImages(
            torch.randint(0, 256, (number, 3, side, side), dtype=torch.uint8, generator=generator("noise"))
        ),
        "target": torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)),
        "class_names": tuple(f"class {label:02d}" for label in range(len(counts))),
        "names": tuple(map(str, range(number))),
    }
    return Pool(**(options | changes))


def write(name: str, root: Path, layout: str | None = None) -> dict[str, object]:
    """Write a tiny copy of a data set below ``root`` in one of its layouts (the first if none is named)."""
    layouts = LAYOUTS[name]
    return layouts[layout or next(iter(layouts))](root)


def encoded(label: int, number: int, *, kind: str = "PNG", side: int = fakes.SIDE) -> bytes:
    """A picture as the bytes of a file."""
    file = io.BytesIO()
    Image.fromarray(fakes.picture(label, number, side=side)).save(file, kind)
    return file.getvalue()


def zip_folder(folder: Path, archive: Path, *, below: str = "") -> None:
    """Put a folder into an archive."""
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*.*")):
            file.write(path, below + path.relative_to(folder).as_posix())
    shutil.rmtree(folder)


def class_names(part: str) -> list[str]:
    return [f"{part}-{label:02d}" for label in range(COUNTS[part])]


def write_all_classes(root: Path, *, below: str = "{part}") -> None:
    for first, part in enumerate(COUNTS):
        fakes.write_classes(
            root / below.format(part=part), dict.fromkeys(class_names(part), PER_CLASS), first=100 * first
        )


def omniglot(*, zipped: bool) -> Callable[[Path], dict[str, object]]:
    """``images_<part>/<alphabet>/<character>/<number>.png``: two alphabets to train, the five of val, two for test."""
    from setwise.data.few_shot.omniglot import VAL_ALPHABETS

    def writer(root: Path) -> dict[str, object]:
        alphabets = {"images_background": ["Greek", "Latin", *VAL_ALPHABETS], "images_evaluation": ["Angelic", "Oriya"]}
        for part, names in alphabets.items():
            for place, alphabet in enumerate(names):
                characters = {f"character{number:02d}": PER_CLASS for number in range(1, 7)}
                first = 1000 * len(part) + 10 * place
                fakes.write_classes(root / "omniglot-py" / part / alphabet, characters, first=first)
            for path in (root / "omniglot-py" / part).rglob("*.png"):
                Image.open(path).convert("1").save(path)
            if zipped:
                zip_folder(root / "omniglot-py" / part, root / "omniglot-py" / f"{part}.zip", below=f"{part}/")
        return {"root": str(root if zipped else root / "omniglot-py")}

    return writer


def csv_lists(*, images: str, header: str = "filename,label") -> Callable[[Path], dict[str, object]]:
    """``train.csv``, ``val.csv``, ``test.csv``, and images where ``images`` says."""

    def writer(root: Path) -> dict[str, object]:
        folder = root if images == "root" else root / "images"
        write_all_classes(folder, below="" if header.startswith("class") else "{part}")
        for part in COUNTS:
            lines = [header]
            for name in class_names(part):
                for path in sorted(folder.rglob(f"{name}/*.png")):
                    plain = path.relative_to(folder).as_posix()
                    lines.append(f"{name},{path.name}" if header.startswith("class") else f"{plain},{name}")
            (root / f"{part}.csv").write_text("\n".join(lines) + "\n")
        if images == "zip":
            zip_folder(folder, root / "images.zip")
        return {"root": str(root)}

    return writer


def class_folders(*, images: str = ".", val: str = "val") -> Callable[[Path], dict[str, object]]:
    def writer(root: Path) -> dict[str, object]:
        write_all_classes(root / images, below="")
        lists = {{"val": val}.get(part, part): class_names(part) for part in COUNTS}
        (root / "splits.json").write_text(json.dumps(lists | {"note": "of no meaning here"}))
        return {"root": str(root)}

    return writer


def part_folders(root: Path) -> dict[str, object]:
    write_all_classes(root)
    return {"root": str(root)}


def cub(root: Path) -> dict[str, object]:
    names = {f"{number:03d}.Bird_{number}": PER_CLASS for number in range(1, 23)}
    fakes.write_classes(root / "CUB_200_2011" / "images", names, suffix=".jpg")
    return {"root": str(root)}


def bitwise_crc32c(data: bytes) -> int:
    """By polynomial division, a bit at a time."""
    register = 0xFFFFFFFF
    for byte in data:
        for bit in range(8):
            feedback = (register ^ (byte >> bit)) & 1
            register = (register >> 1) ^ (0x82F63B78 if feedback else 0)
    return register ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    crc = bitwise_crc32c(data)
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32).to_bytes(4, "little")


def varint(number: int) -> bytes:
    low, rest = number % 128, number // 128
    return bytes([low + 128]) + varint(rest) if rest else bytes([low])


def field(number: int, content: bytes) -> bytes:
    """A field of a protocol buffer that holds bytes."""
    return varint(number * 8 + 2) + varint(len(content)) + content


def example(image: bytes, label: int, *, packed: bool = True) -> bytes:
    """A ``tf.train.Example`` with the two features of Meta-Dataset, and one that nobody asked for."""
    number = field(1, varint(label)) if packed else varint(8) + varint(label)
    features = {b"image": field(1, field(1, image)), b"label": field(3, number), b"extra": field(2, field(1, b"1234"))}
    entries = (field(1, field(1, key) + field(2, feature)) for key, feature in features.items())
    return field(1, b"".join(entries))


def record(payload: bytes) -> bytes:
    length = len(payload).to_bytes(8, "little")
    return length + masked(length) + payload + masked(payload)


def meta_dataset(kind: str) -> Callable[[Path], dict[str, object]]:
    """``dataset_spec.json`` and ``<class id>.tfrecords``, the ids of train first."""

    def writer(root: Path) -> dict[str, object]:
        root.mkdir(exist_ok=True)
        names = [name for part in COUNTS for name in class_names(part)]
        for label in range(len(names)):
            pictures = (encoded(label, number, kind="JPEG", side=6) for number in range(PER_CLASS))
            content = b"".join(record(example(picture, label)) for picture in pictures)
            (root / f"{label}.tfrecords").write_bytes(content)
        spec = {
            "name": "tiny",
            "__class__": f"{kind}DatasetSpecification",
            "path": "/somewhere/else",
            "file_pattern": "{}.tfrecords",
            "class_names": {str(label): name for label, name in enumerate(names)},
            "images_per_class": {str(label): PER_CLASS for label in range(len(names))},
        }
        splits = dict(zip(COUNTS, ("TRAIN", "VALID", "TEST"), strict=True))
        if kind == "":
            spec["classes_per_split"] = {splits[part]: number for part, number in COUNTS.items()}
        elif kind == "BiLevel":
            spec["superclasses_per_split"] = dict.fromkeys(splits.values(), 1)
            spec["classes_per_superclass"] = {str(place): number for place, number in enumerate(COUNTS.values())}
            spec["superclass_names"] = {"0": "Greek", "1": "Latin", "2": "Oriya"}
        else:
            spec["split_subgraphs"] = {splits[part]: subgraph(part) for part in COUNTS}
            spec["images_per_class"] = {
                splits[part]: dict.fromkeys(class_names(part), PER_CLASS) | {"top": 99} for part in COUNTS
            }
        (root / "dataset_spec.json").write_text(json.dumps(spec))
        return {"root": str(root)}

    return writer


def subgraph(part: str) -> list[dict[str, object]]:
    """All classes below the top, and all but the first below another node as well."""
    leaves = class_names(part)
    nodes = {"top": ["most", leaves[0]], "most": leaves[1:], **{leaf: [] for leaf in leaves}}
    return [
        {"wn_id": node, "words": node, "children_ids": below, "parents_ids": [n for n in nodes if node in nodes[n]]}
        for node, below in nodes.items()
    ]


LAYOUTS: dict[str, dict[str, Callable[[Path], dict[str, object]]]] = {
    "omniglot": {"zip files": omniglot(zipped=True), "folders": omniglot(zipped=False)},
    "tinyimagenet-few-shot": {"zip file": csv_lists(images="zip"), "folder": csv_lists(images="root")},
    "miniimagenet": {
        "folder": csv_lists(images="images"),
        "other columns": csv_lists(images="images", header="class_name,image_name"),
    },
    "cub": {"as released": cub, "with lists": class_folders(images="images")},
    "class-folders": {
        "lists": class_folders(),
        "lists with valid": class_folders(val="valid", images="images"),
        "folders of parts": part_folders,
    },
    "meta-dataset": {
        "flat": meta_dataset(""),
        "two levels": meta_dataset("BiLevel"),
        "a graph": meta_dataset("Hierarchical"),
    },
}
"""Data set -> layout -> what writes it."""
