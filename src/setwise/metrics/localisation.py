"""Whether a map points at a thing whose boxes are known: the share of its mass inside, and where its peak lies.

A map is judged in pixels of the image. Letters: ``n`` boxes, ``H W`` size of image and map.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from setwise.errors import InvalidInput

__all__ = ["box_mask", "energy_inside", "points_inside", "to_pixels"]


def to_pixels(maps: Float[Tensor, "*B h w"], size: tuple[int, int]) -> Float[Tensor, "*B H W"]:
    """Maps at the size of their image, bilinear between the centres of their cells.

    Args:
        maps: of any size.
        size: height and width of the image.

    >>> to_pixels(torch.ones(2, 3, 3), (6, 9)).shape
    torch.Size([2, 6, 9])
    """
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    large = F.interpolate(flat, size, mode="bilinear", align_corners=False)
    return large.reshape(*maps.shape[:-2], *size)


def box_mask(boxes: Float[Tensor, "n 4"], size: tuple[int, int]) -> Bool[Tensor, "H W"]:
    """Pixels whose centre lies in at least one box.

    Args:
        boxes: left, top, right, bottom in pixels; the parts outside the image count for nothing.
        size: height and width of the image.

    Raises:
        InvalidInput: if there is no box, or one ends before it begins.

    >>> box_mask(torch.tensor([[1.0, 0.0, 3.0, 1.0]]), (2, 4)).int().tolist()
    [[0, 1, 1, 0], [0, 0, 0, 0]]
    """
    if len(boxes) == 0:
        raise InvalidInput("`boxes` must hold at least one box, but it is empty.")
    if bool((boxes[:, 2:] < boxes[:, :2]).any()):
        raise InvalidInput("`boxes` are (left, top, right, bottom), but one of them ends before it begins.")
    y = torch.arange(size[0], device=boxes.device) + 0.5
    x = torch.arange(size[1], device=boxes.device) + 0.5
    left, top, right, bottom = boxes[:, :, None].unbind(1)
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)  # [n, H], [n, W]
    return (rows[:, :, None] & columns[:, None, :]).any(0)


def energy_inside(map_: Float[Tensor, "H W"], inside: Bool[Tensor, "H W"]) -> float:
    """Share of a map's mass inside the boxes; NaN where there is no mass.

    A uniform map has the share of the area, so what is above that share was found.

    Args:
        map_: not negative anywhere.
        inside: see :func:`box_mask`.

    Raises:
        InvalidInput: if the map has negative or non-finite values: a share would mean nothing.

    Source: Wang et al., Score-CAM, CVPR Workshops 2020, arXiv:1910.01279 (energy-based pointing game).

    >>> energy_inside(torch.tensor([[3.0, 1.0]]), torch.tensor([[True, False]]))
    0.75
    """
    _check(map_, inside)
    if bool((map_ < 0).any()):
        raise InvalidInput("`map_` must not be negative, for a share of its mass would mean nothing: clamp it at 0.")
    map_ = map_.cpu().double()  # Apple's GPUs have no float64
    return float(map_[inside.cpu()].sum() / map_.sum())


def points_inside(map_: Float[Tensor, "H W"], inside: Bool[Tensor, "H W"], *, tolerance: int = 0) -> float:
    """The pointing game: 1 if the map's maximum lies in a box, else 0.

    Several equal maxima count a share each, so that a uniform map scores the share of the area.

    Args:
        map_: any finite values.
        inside: see :func:`box_mask`.
        tolerance: a maximum so many pixels (Euclidean) outside a box still hits. Paper: 15.

    Raises:
        InvalidInput: if the map has non-finite values, or the tolerance is negative.

    Source: Zhang et al., Top-down Neural Attention by Excitation Backprop, ECCV 2016, arXiv:1608.00507.

    >>> points_inside(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([[False, True, False]]))
    0.0
    >>> points_inside(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([[False, True, False]]), tolerance=1)
    1.0
    """
    _check(map_, inside)
    if tolerance < 0:
        raise InvalidInput(f"`tolerance` must be 0 or more pixels, but it is {tolerance}.")
    map_, inside = map_.cpu(), inside.cpu()  # Apple's GPUs have no float64
    return float(_grown(inside, tolerance)[map_ == map_.max()].double().mean())


def _grown(inside: Tensor, radius: int) -> Tensor:
    """Pixels at most ``radius`` away from one that is inside: a disc is one run of pixels in each of its rows."""
    height, width = inside.shape
    grown = inside.clone()
    for down in range(-radius, radius + 1):
        if abs(down) >= height:
            continue
        reach = min(int((radius**2 - down**2) ** 0.5), width)
        row = F.max_pool2d(inside[None].float(), (1, 2 * reach + 1), stride=1, padding=(0, reach))[0].bool()
        first, last = max(0, down), height + min(0, down)
        grown[first:last] |= row[first - down : last - down]
    return grown


def _check(map_: Tensor, inside: Tensor) -> None:
    if map_.shape != inside.shape:
        raise InvalidInput(
            f"Map and boxes are of one image, but have {list(map_.shape)} and {list(inside.shape)} pixels: bring the "
            "map to the image's size with to_pixels."
        )
    if not bool(torch.isfinite(map_).all()):
        raise InvalidInput("`map_` has values that are no finite numbers, so it points nowhere.")
