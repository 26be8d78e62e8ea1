"""Changes of colour, each image by an amount of its own: RGB in 0..1 in, RGB out, not clipped."""

from collections.abc import Callable

import torch
from jaxtyping import Float32
from torch import Tensor

__all__ = ["CHANGES", "brightness", "contrast", "hue", "saturation", "to_grey"]

LUMA = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in grey: ITU-R BT.601, rounded as in the common libraries."""


def brightness(images: Float32[Tensor, "b 3 h w"], added: Float32[Tensor, "b"]) -> Float32[Tensor, "b 3 h w"]:
    """Add to every channel."""
    return images + added[:, None, None, None]


def contrast(images: Float32[Tensor, "b 3 h w"], factor: Float32[Tensor, "b"]) -> Float32[Tensor, "b 3 h w"]:
    """Stretch every channel about its mean over the image."""
    mean = images.mean((2, 3), keepdim=True)
    return mean + (images - mean) * factor[:, None, None, None]


def saturation(images: Float32[Tensor, "b 3 h w"], factor: Float32[Tensor, "b"]) -> Float32[Tensor, "b 3 h w"]:
    """Multiply HSV's saturation, up to 1, with hue and value kept.

    The distance of a channel from the largest is proportional to the saturation, so there is no need to leave RGB.
    """
    value = images.amax(1, keepdim=True)
    chroma = value - images.amin(1, keepdim=True)
    most = value / chroma.clamp_min(torch.finfo(images.dtype).tiny)  # the factor at which the saturation is 1
    return value - (value - images) * torch.minimum(factor[:, None, None, None], most)


def hue(images: Float32[Tensor, "b 3 h w"], turn: Float32[Tensor, "b"]) -> Float32[Tensor, "b 3 h w"]:
    """Turn HSV's hue by a part of the circle, with saturation and value kept."""
    red, green, blue = images.unbind(1)
    value = images.amax(1)
    chroma = value - images.amin(1)
    safe = torch.where(chroma > 0, chroma, 1)
    sector = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )  # in sixths of the circle, from red over green and blue back to red
    sector = sector + 6 * turn[:, None, None]
    turned = []
    for start in (5, 3, 1):  # where red, green and blue begin to fall below the value
        place = (sector + start).remainder(6)
        turned.append(value - chroma * torch.minimum(place, 4 - place).clamp(0, 1))
    return torch.stack(turned, 1)


def to_grey(images: Float32[Tensor, "b 3 h w"]) -> Float32[Tensor, "b 3 h w"]:
    """Three equal channels."""
    return torch.einsum("bchw,c->bhw", images, torch.tensor(LUMA)).unsqueeze(1).expand_as(images)


CHANGES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (brightness, contrast, saturation, hue)
"""In the order of their amounts."""
