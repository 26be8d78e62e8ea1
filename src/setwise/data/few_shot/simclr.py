"""SimCLR episodes: find the image that a view was taken of, among the views of all others.

An ordinary episode becomes one by relabelling alone (:func:`simclr_episode`); :class:`SimCLRTransform` makes the views.

Letters: ``B`` images, ``S`` support images, ``h w`` size of the views.
"""

import math

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from setwise.data.few_shot import colour
from setwise.data.few_shot.episodes import Episode
from setwise.errors import InvalidInput

__all__ = ["SimCLRTransform", "simclr_episode"]

AREA = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)
"""Of a crop, width over height; area and logarithm of the aspect are uniform."""

ATTEMPTS = 100
"""Draws of a crop before the whole image is taken."""

JITTER_PROBABILITY = 0.8
GREY_PROBABILITY = 0.2
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.8, 0.8, 0.8, 0.2
"""At strength 1: added up to +-0.8, multiplied by 0.2 to 1.8, turned by up to a fifth of the circle."""

BLUR_SIGMA = (0.1, 2.0)
"""In pixels."""

SIDE_OVER_BLUR = 10
"""The blur's kernel covers a tenth of the image: 23 taps at 224 pixels."""


def simclr_episode(episode: Episode) -> Episode:
    """Make every support image a class of its own, and copies of support images the queries.

    Of each class as many support images become queries as it had queries, the first ones, or all if it has fewer. The
    queries themselves are left out. Pixels do not change here: views of an image differ by :class:`SimCLRTransform`.

    Args:
        episode: an ordinary one.

    Returns:
        An episode of ``S`` classes with one shot; ``classes`` still says which class of the pool an image is of.

    Source: Doersch, Gupta, Zisserman, CrossTransformers, NeurIPS 2020, arXiv:2007.11498, section 3.1. The paper draws
    as many queries as before at random from the support set; we follow its code, which is stratified by class.
    """
    queries = torch.bincount(episode.query_target, minlength=len(episode.classes))
    rank = _rank_within_class(episode.support_target)
    (kept,) = torch.nonzero(rank < queries[episode.support_target], as_tuple=True)
    return Episode(
        support=episode.support,
        support_target=torch.arange(len(episode.support)),
        query=episode.support[kept],
        query_target=kept,
        classes=episode.classes[episode.support_target],
    )


def _rank_within_class(target: Int64[Tensor, "s"]) -> Int64[Tensor, "s"]:
    """How many images of its class stand before an image."""
    order = torch.argsort(target, stable=True)
    counts = torch.bincount(target)
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)
    rank = torch.empty_like(target)
    rank[order] = torch.arange(len(target)) - first
    return rank


class SimCLRTransform:
    """SimCLR's views: a random part of the image, mirrored or not, in other colours, grey or not, blurred or not.

    Every image is cropped (8 to 100 % of the area, aspect 3/4 to 4/3) and resized bicubically, mirrored in half of the
    cases, and with probability 0.8 its brightness, contrast, saturation and hue are changed in a random order, clipped
    to 0..1 after each. A fifth of the images becomes grey. Blur, where it is on, is for every image: sigma of 0.1 to 2
    pixels.

    Args:
        image_size: side of the views in pixels. Paper: 224.
        blur: SimCLR episodes blur queries and leave support images sharp.
        strength: of the change of colours. Paper: 1.

    Raises:
        InvalidInput: if the size is below 1 or the strength below 0.

    Source: Chen et al., SimCLR, ICML 2020, arXiv:2002.05709, appendix A, first version of its code, which adds to the
    brightness; all images are blurred as in CrossTransformers' code, where SimCLR blurs half of them.

    >>> views = SimCLRTransform(8, blur=True)(torch.zeros(2, 3, 12, 10, dtype=torch.uint8), torch.Generator())
    >>> views.shape, views.dtype
    (torch.Size([2, 3, 8, 8]), torch.float32)
    """

    def __init__(self, image_size: int, *, blur: bool = False, strength: float = 1.0) -> None:
        if image_size < 1:
            raise InvalidInput(f"`image_size` ({image_size}) must be at least 1.")
        if strength < 0:
            raise InvalidInput(f"`strength` ({strength:g}) must be 0 (colours are kept) or larger.")
        self.image_size, self.blur, self.strength = image_size, blur, strength

    def __call__(
        self, images: UInt8[Tensor, "*b _ _ _"] | list[UInt8[Tensor, "_ _ _"]], generator: torch.Generator
    ) -> Float32[Tensor, "*b 3 h w"]:
        """A view of each image, with pixels in 0..1; the same generator state gives the same views."""
        single = isinstance(images, Tensor) and images.ndim == 3
        batch: list[Tensor] = [images] if isinstance(images, Tensor) and single else list(images)
        if not batch:
            return torch.empty(0, 3, self.image_size, self.image_size)
        views = torch.stack([self._crop(image, generator) for image in batch])  # [B, 3, h, w]
        mirrored = torch.rand(len(views), generator=generator) < 0.5
        views = torch.where(mirrored[:, None, None, None], views.flip(-1), views)
        views = self._jitter(views, generator)
        grey = torch.rand(len(views), generator=generator) < GREY_PROBABILITY
        views = torch.where(grey[:, None, None, None], colour.to_grey(views), views).clamp_(0, 1)
        if self.blur:
            low, high = BLUR_SIGMA
            views = blur(views, low + (high - low) * torch.rand(len(views), generator=generator))
        return views[0] if single else views

    def _crop(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """A random part of an image, at the size of the views, with three channels."""
        top, left, height, width = draw_crop(image.shape[-2], image.shape[-1], generator)
        part = image[:, top : top + height, left : left + width].float() / 255
        size = [self.image_size, self.image_size]
        # Antialiasing changes nothing where a part is enlarged, which is the rule, and chooses the kernel of the
        # authors' library (a = -0.5).
        view = tv.resize(part, size, interpolation=tv.InterpolationMode.BICUBIC, antialias=True)
        return view.clamp_(0, 1).expand(3, -1, -1)

    def _jitter(self, views: Tensor, generator: torch.Generator) -> Tensor:
        """Change the colours of most images, each image's four in an order of its own."""
        number = len(views)
        spread = self.strength * torch.tensor([BRIGHTNESS, CONTRAST, SATURATION, HUE])
        drawn = (2 * torch.rand(number, 4, generator=generator) - 1) * spread  # [B, 4]
        amounts = drawn + torch.tensor([0.0, 1.0, 1.0, 0.0])
        amounts[:, 1:3].clamp_(min=0)
        order = torch.rand(number, 4, generator=generator).argsort(1)
        order[torch.rand(number, generator=generator) >= JITTER_PROBABILITY] = -1
        views = views.clone()
        for step in range(4):
            for change, apply in enumerate(colour.CHANGES):
                (chosen,) = torch.nonzero(order[:, step] == change, as_tuple=True)
                if len(chosen):
                    views[chosen] = apply(views[chosen], amounts[chosen, change]).clamp_(0, 1)
        return views


def draw_crop(height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random part of an image; all of it where 100 draws do not fit."""
    uniform = torch.rand(ATTEMPTS, 2, generator=generator, dtype=torch.float64)
    corner = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    area = (AREA[0] + (AREA[1] - AREA[0]) * uniform[:, 0]) * height * width
    aspect = torch.exp(math.log(ASPECT[0]) + (math.log(ASPECT[1]) - math.log(ASPECT[0])) * uniform[:, 1])
    heights, widths = (area / aspect).sqrt().round(), (area * aspect).sqrt().round()
    (fitting,) = torch.nonzero((heights >= 1) & (widths >= 1) & (heights <= height) & (widths <= width), as_tuple=True)
    if not len(fitting):
        return 0, 0, height, width
    tall, wide = int(heights[fitting[0]]), int(widths[fitting[0]])
    return int(corner[0] * (height - tall + 1)), int(corner[1] * (width - wide + 1)), tall, wide


def blur(images: Float32[Tensor, "b c h w"], sigma: Float32[Tensor, "b"]) -> Float32[Tensor, "b c h w"]:
    """Gaussian blur of every image with a deviation of its own, zeros around.

    As two products with a band matrix, along columns and rows: at 224 pixels much faster on a processor than a
    convolution whose every channel has a kernel of its own.
    """
    radius = images.shape[-2] // SIDE_OVER_BLUR // 2
    down, along = (_band(side, radius, sigma) for side in images.shape[-2:])
    return down @ images @ along


def _band(side: int, radius: int, sigma: Float32[Tensor, "b"]) -> Float32[Tensor, "b 1 n n"]:
    """Weight of every place of a line for every other: symmetric, 0 beyond the radius."""

    def weight(distance: Tensor) -> Tensor:
        return torch.exp(-(distance**2) / (2 * sigma[:, None] ** 2)) * (distance.abs() <= radius)  # [B, ...]

    place = torch.arange(side)
    weights = weight((place[:, None] - place).flatten()) / weight(torch.arange(-radius, radius + 1)).sum(1, True)
    return weights.view(-1, 1, side, side)
