"""Whether a map shows what a prediction rests on: the class's probability while pixels go or come in its order.

Letters: ``c`` channels, ``H W`` size of image and map, ``S`` steps.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

from setwise.errors import InvalidInput

__all__ = ["area", "blurred", "deletion", "insertion"]

Score = Callable[[Tensor], Tensor]
"""Images ``[n, c, H, W]`` -> probability of the class in question ``[n]``."""

STEPS = 224
"""A row of the image at a time for 224 pixels, as the authors' code."""
BLUR_TAPS, BLUR_SIGMA = 11, 5.0
"""Pixels of the blur for images of 224 pixels, of the authors' code."""


def deletion(
    score: Score,
    image: Float[Tensor, "c H W"],
    map_: Float[Tensor, "H W"],
    *,
    num_steps: int = STEPS,
    baseline: Float[Tensor, "c H W"] | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> Float64[Tensor, "s"]:
    """Probability while the map's highest pixels are taken away first; a faithful map makes it fall at once.

    Args:
        score: images to probabilities; called without a gradient.
        image: as the network takes it.
        map_: see :func:`setwise.metrics.to_pixels`.
        num_steps: steps ``S`` in which all pixels go. Authors' code: 224 for 224 pixels.
        baseline: what takes their place; None: 0, which is the mean of normalised pixels, as in the authors' code.
        batch_size: changed images scored at a time.
        seed: draws the order of pixels with one value, so that no corner comes first.

    Returns:
        ``[S + 1]``, from the whole image to none of it; :func:`area` makes one number of it, and lower is better.

    Raises:
        InvalidInput: if shapes do not fit, the map is not finite, or there are fewer steps than 1 or more than pixels.

    Source: Petsiuk et al., RISE, BMVC 2018, arXiv:1806.07421.

    >>> image, left = torch.ones(3, 4, 4), torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(4, 4)
    >>> deletion(lambda x: x[:, 0, :, :2].mean((1, 2)), image, left, num_steps=4).tolist()
    [1.0, 0.5, 0.0, 0.0, 0.0]
    """
    end = torch.zeros_like(image) if baseline is None else baseline
    return _curve(score, image, end, map_, num_steps=num_steps, batch_size=batch_size, seed=seed)


def insertion(
    score: Score,
    image: Float[Tensor, "c H W"],
    map_: Float[Tensor, "H W"],
    *,
    num_steps: int = STEPS,
    baseline: Float[Tensor, "c H W"] | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> Float64[Tensor, "s"]:
    """Probability while the map's highest pixels are put in first; a faithful map makes it rise at once.

    Args:
        score: see :func:`deletion`.
        image: see :func:`deletion`.
        map_: see :func:`deletion`.
        num_steps: see :func:`deletion`.
        baseline: what one begins with; None: the image blurred, as in the paper.
        batch_size: see :func:`deletion`.
        seed: see :func:`deletion`.

    Returns:
        ``[S + 1]``, from none of the image to all of it; higher is better.

    Raises:
        InvalidInput: see :func:`deletion`.

    Source: Petsiuk et al., RISE, BMVC 2018, arXiv:1806.07421.

    >>> image, left = torch.ones(3, 4, 4), torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(4, 4)
    >>> none = torch.zeros(3, 4, 4)
    >>> insertion(lambda x: x[:, 0, :, :2].mean((1, 2)), image, left, num_steps=4, baseline=none).tolist()
    [0.0, 0.5, 1.0, 1.0, 1.0]
    """
    start = blurred(image) if baseline is None else baseline
    return _curve(score, start, image, map_, num_steps=num_steps, batch_size=batch_size, seed=seed)


def area(curve: Float64[Tensor, "s"]) -> float:
    """Area under a curve over 0..1 by the trapezium rule; a constant curve has its value.

    >>> area(torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64))
    0.5
    """
    return float(torch.trapezoid(curve) / (len(curve) - 1))


def blurred(
    image: Float[Tensor, "*B c H W"], *, taps: int = BLUR_TAPS, sigma: float = BLUR_SIGMA
) -> Float[Tensor, "*B c H W"]:
    """An image under a Gaussian cut off after ``taps`` pixels; behind the border there is nothing, as in the code.

    Args:
        image: or several.
        taps: odd width of the window in pixels. Authors' code: 11.
        sigma: deviation in pixels. Authors' code: 5; that the weights inside the window sum to 1 is our choice.
    """
    place = torch.arange(taps, device=image.device, dtype=image.dtype) - taps // 2
    weights = torch.exp(-0.5 * (place / sigma) ** 2)
    weights = weights / weights.sum()
    flat = image.reshape(-1, 1, *image.shape[-2:])
    flat = F.conv2d(flat, weights[None, None, :, None], padding=(taps // 2, 0))
    return F.conv2d(flat, weights[None, None, None, :], padding=(0, taps // 2)).reshape(image.shape)


@torch.no_grad()
def _curve(
    score: Score, start: Tensor, end: Tensor, map_: Tensor, *, num_steps: int, batch_size: int, seed: int
) -> Tensor:
    """Scores while pixels of ``start`` become those of ``end``, from the map's highest to its lowest."""
    if start.shape != end.shape or start.shape[1:] != map_.shape:
        raise InvalidInput(
            f"Image, baseline and map must have one size, but have {list(end.shape)}, {list(start.shape)} and "
            f"{list(map_.shape)}: bring the map to the image's size with to_pixels."
        )
    if not bool(torch.isfinite(map_).all()):
        raise InvalidInput("`map_` has values that are no finite numbers, so its pixels have no order.")
    pixels = map_.numel()
    if not 1 <= num_steps <= pixels:
        raise InvalidInput(f"`num_steps` must be between 1 and the {pixels} pixels, but it is {num_steps}.")
    drawn = torch.randperm(pixels, generator=torch.Generator().manual_seed(seed)).to(map_.device)
    order = drawn[map_.flatten()[drawn].argsort(descending=True, stable=True)]
    rank = torch.empty_like(order).index_put_((order,), torch.arange(pixels, device=order.device)).view(map_.shape)
    scores = []
    for steps in torch.arange(num_steps + 1, device=rank.device).split(batch_size):
        changed = rank * num_steps < steps[:, None, None] * pixels  # whole numbers, so that the last step has all
        scores.append(score(torch.where(changed[:, None], end, start)))
    return torch.cat(scores).cpu().double()
