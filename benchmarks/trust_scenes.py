"""Pictures whose boxes are known: grids of held-out photographs, and COCO's with the boxes of its things."""

import csv
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from setwise.metrics import box_mask
from setwise.seeds import generator

__all__ = ["HELD_OUT", "Photographs", "Scene", "coco", "grids", "read_photographs", "write_samples"]

HELD_OUT = 20
"""Photographs of every class that no network is trained on."""
SAMPLES = 12
LEAST, MOST = 0.02, 0.7
"""Share of a COCO picture inside boxes: below there is too little to find, above too little to miss."""


@dataclass(frozen=True)
class Photographs:
    """Tiny-ImageNet's 64 training classes of the few-shot split: ``[N, 3, 64, 64]``, 8-bit, and labels."""

    train: Tensor
    train_target: Tensor
    held_out: Tensor
    held_out_target: Tensor
    num_classes: int
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Scene:
    """One picture ``[3, H, W]``, 8-bit, what to find in it, and where that is.

    Attributes:
        name: for the results.
        image: the picture.
        inside: pixels in the boxes ``[H, W]``.
        label: class to be found; None: whatever the network says.
    """

    name: str
    image: Tensor
    inside: Tensor
    label: int | None


def read_photographs(root: Path) -> Photographs:
    """Read ``images.zip``; the last ``HELD_OUT`` photographs of every class in the list are held out."""
    with (root / "train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = sorted({row["label"] for row in rows})
    with (root / "classes.csv").open(newline="") as file:
        words = {row["wnid"]: row["words"].split(",")[0] for row in csv.DictReader(file)}
    images, labels = [], []
    with zipfile.ZipFile(root / "images.zip") as archive:
        for row in rows:
            with Image.open(io.BytesIO(archive.read(row["filename"]))) as image:
                images.append(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1))
            labels.append(names.index(row["label"]))
    target, seen, last = torch.tensor(labels), [0] * len(names), []
    for label in reversed(labels):
        seen[label] += 1
        last.append(seen[label] <= HELD_OUT)
    held = torch.tensor(last[::-1])
    stacked = torch.stack(images)
    known = tuple(words[name] for name in names)
    return Photographs(stacked[~held], target[~held], stacked[held], target[held], len(names), known)


def write_samples(photographs: Photographs, folder: Path, *, side: int) -> None:
    """Write one held-out photograph of each of ``SAMPLES`` classes, and the names of all, for `setwise show`."""
    (folder / "photographs").mkdir(exist_ok=True)
    (folder / "classes.txt").write_text("\n".join(photographs.class_names) + "\n")
    drawn = torch.randperm(photographs.num_classes, generator=generator(0, "samples"))[:SAMPLES]
    for label in drawn.tolist():
        place = int((photographs.held_out_target == label).nonzero()[0])
        image = tv.to_pil_image(tv.resize(photographs.held_out[place], [side, side], antialias=True))
        image.save(folder / "photographs" / f"{photographs.class_names[label]}.png")


def grids(photographs: Photographs, *, count: int, side: int) -> list[Scene]:
    """Four held-out photographs of different classes, two by two; the box is the cell of the one to be found.

    As in the grid pointing game (Boehle et al., Convolutional Dynamic Alignment Networks, CVPR 2021), which takes three
    by three and the pictures that a network is surest of; here they are drawn, whatever the network says.
    """
    rng = generator(0, "grids")
    scenes = []
    for number in range(count):
        classes = torch.randperm(photographs.num_classes, generator=rng)[:4]
        cells = []
        for label in classes.tolist():
            places = (photographs.held_out_target == label).nonzero().flatten()
            place = places[torch.randint(len(places), (1,), generator=rng)]
            cells.append(tv.resize(photographs.held_out[place][0], [side, side], antialias=True))
        image = torch.cat([torch.cat(cells[:2], 2), torch.cat(cells[2:], 2)], 1)
        cell = int(torch.randint(4, (1,), generator=rng))
        left, top = side * (cell % 2), side * (cell // 2)
        inside = box_mask(torch.tensor([[left, top, left + side, top + side]]).float(), (2 * side, 2 * side))
        scenes.append(Scene(f"grid {number}", image, inside, int(classes[cell])))
    return scenes


def coco(root: Path, *, count: int, side: int) -> list[Scene]:
    """Central squares of COCO's pictures with the boxes of all things in them, crowds left out."""
    scenes: list[Scene] = []
    for part in ("val2017", "train2017"):
        listed = json.loads((root / "annotations" / f"instances_{part}.json").read_text())
        boxes: dict[int, list[list[float]]] = {}
        for thing in listed["annotations"]:
            if not thing["iscrowd"]:
                boxes.setdefault(thing["image_id"], []).append(thing["bbox"])
        for about in sorted(listed["images"], key=lambda image: image["id"]):
            if len(scenes) < count and about["id"] in boxes:
                scenes += _coco_scene(root / part / about["file_name"], boxes[about["id"]], side)
    return scenes


def _coco_scene(path: Path, boxes: list[list[float]], side: int) -> list[Scene]:
    """One scene, or none where the boxes fill the square or leave it."""
    with Image.open(path) as file:
        image = torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)
    height, width = image.shape[1:]
    short = min(height, width)
    left, top, scale = (width - short) / 2, (height - short) / 2, side / short
    corners = torch.tensor([[x - left, y - top, x + w - left, y + h - top] for x, y, w, h in boxes]) * scale
    inside = box_mask(corners, (side, side))
    if not LEAST <= float(inside.float().mean()) <= MOST:
        return []
    square = tv.center_crop(image, [short, short])
    return [Scene(f"coco {path.stem}", tv.resize(square, [side, side], antialias=True), inside, None)]
