"""Which patches a network looked at: its maps of one image, and the pixels of the pictures made of them.

Letters: ``H W`` size of the picture, ``h w`` size of a map, ``k`` maps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from matplotlib.colors import to_rgb

from setwise.data.images import decode
from setwise.errors import InvalidInput
from setwise.nn import pool_maps
from setwise.show.subject import Subject

__all__ = ["COLOURS", "Look", "colour_of", "look_at", "multiplied", "overlaid", "smooth", "tinted"]

COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Of classes laid over each other: Okabe and Ito, Color Universal Design, 2008."""
GOLDEN = 0.618034
"""Multiples of the golden section stay apart on a circle."""
TINT = "inferno"
STRONGEST = 0.75
"""Share of the colour where a map is highest."""
LONGEST = 16
"""Times as long as wide: beyond, the enlarged picture would fill the memory."""
LUMINANCE = (0.299, 0.587, 0.114)
"""Of red, green and blue: ITU-R BT.601."""

Picture = Float[np.ndarray, "H W 3"]


@dataclass(frozen=True)
class Look:
    """What a network said of one image, and where it looked.

    Attributes:
        path: of the image.
        image: ``[H, W, 3]``, 8-bit, as the network saw it.
        classes: names of the likeliest classes, best first.
        probabilities: theirs.
        maps: ``[k, h, w]``: one for each of ``classes`` where each class has a query, else one for all.
        per_class: whether each class has a map of its own.
        own: weight that went to each query itself instead of to a patch.
    """

    path: Path
    image: UInt8[np.ndarray, "H W 3"]
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    maps: Float[np.ndarray, "k h w"]
    per_class: bool
    own: tuple[float, ...]


def look_at(
    subject: Subject,
    paths: Sequence[Path],
    *,
    top_k: int = 3,
    layer: int = -1,
    whole: bool = False,
    pool: str | None = None,
    grid: tuple[int, int] | None = None,
) -> list[Look]:
    """Run the network on one image after the other, and keep where it looked.

    Args:
        subject: what is looked with.
        paths: images.
        top_k: likeliest classes that are kept.
        layer: of the pool, where it has several.
        whole: keep the aspect ratio, and cut nothing off; else the central square, as in evaluation.
        pool: name of the pool within the network, where it has several.
        grid: height and width of the map, where the pool takes tokens.

    Raises:
        DataError: naming the first image that cannot be read.
        InvalidInput: if the network does not take images of their size, or a whole one is far too long.
    """
    if top_k < 1:
        raise InvalidInput(f"`top-k` must be at least 1, but it is {top_k}.")
    return [_look(subject, path, whole=whole, top_k=top_k, layer=layer, pool=pool, grid=grid) for path in paths]


def _look(subject: Subject, path: Path, *, whole: bool, top_k: int, **how: Any) -> Look:
    picture = decode(path)
    height, width = picture.shape[-2:]
    if whole and max(height, width) > LONGEST * min(height, width):
        raise InvalidInput(
            f"{path} is {height} x {width} pixels, too long to be shown whole (sides at most 1 to {LONGEST})."
        )
    image = subject.fit(picture, whole=whole)
    try:
        found = pool_maps(subject.network, subject.normalise(image), top_k=top_k, **how)
    except (AssertionError, RuntimeError) as error:  # what torch and timm raise about sizes
        height, width = image.shape[-2:]
        raise InvalidInput(f"{subject.name} does not run on {path} at {height} x {width} pixels ({error}).") from error
    logits = found.logits[0].float()
    probabilities = logits.sigmoid() if subject.multi_label else logits.softmax(0)
    best = probabilities.topk(min(top_k, len(logits)))
    per_class = found.classes is not None
    numbers = best.indices if found.classes is None else found.classes[0]
    return Look(
        path=path,
        image=image.expand(3, -1, -1).permute(1, 2, 0).numpy(),
        classes=tuple(subject.class_name(k) for k in numbers.tolist()),
        probabilities=tuple(probabilities[numbers].tolist()),
        maps=(found.maps[0] if per_class else found.maps).numpy(),
        per_class=per_class,
        own=tuple(found.own.flatten().tolist()),
    )


def smooth(map_: Float[np.ndarray, "h w"], size: tuple[int, int]) -> Float[np.ndarray, "H W"]:
    """A map at the size of a picture, bicubic, its highest place 1 and nothing below 0."""
    tensor = torch.from_numpy(np.ascontiguousarray(map_, dtype=np.float32))[None, None]
    large = F.interpolate(tensor, size, mode="bicubic", align_corners=False)[0, 0].clamp(min=0).numpy()
    top = float(large.max())
    return large / top if top > 0 else large


def tinted(look: Look, map_: Float[np.ndarray, "h w"]) -> Picture:
    """The grey image, the more coloured the more weight a place has."""
    weight = smooth(map_, look.image.shape[:2])
    share = STRONGEST * weight[..., None]
    return (1 - share) * _grey(look) + share * colormaps[TINT](weight)[..., :3]


def multiplied(look: Look, map_: Float[np.ndarray, "h w"]) -> Picture:
    """The image, dark where the map is low."""
    return look.image / 255 * smooth(map_, look.image.shape[:2])[..., None]


def overlaid(look: Look) -> Picture:
    """The grey image with all maps over it, a colour each; where several are high their colours mix."""
    weights = np.stack([smooth(map_, look.image.shape[:2]) for map_ in look.maps])  # [k, H, W]
    colours = np.array([colour_of(number) for number in range(len(weights))])
    total = weights.sum(0)
    mixed = np.einsum("khw,kc->hwc", weights, colours) / np.maximum(total, np.finfo(float).tiny)[..., None]
    share = STRONGEST * np.minimum(weights.max(0), 1)[..., None]
    return (1 - share) * _grey(look) + share * mixed


def colour_of(number: int) -> tuple[float, float, float]:
    """Of the map with this number: one of ``COLOURS``, beyond them a hue that no other has."""
    if number < len(COLOURS):
        return to_rgb(COLOURS[number])
    red, green, blue, _ = colormaps["hsv"](number * GOLDEN % 1)
    return red, green, blue


def _grey(look: Look) -> Picture:
    return (look.image / 255 @ np.array(LUMINANCE))[..., None].repeat(3, axis=2)
