"""The support set of an episode: which images belong to which class, and the same of all processes."""

from typing import NamedTuple

import torch
from torch import Tensor

from setwise.errors import InvalidInput

__all__ = ["SupportOrder", "check_maps", "order_support"]

MOST_NAMED = 5


class SupportOrder(NamedTuple):
    """The support images put class by class."""

    order: Tensor
    """``[S]``: places of the images of class 0, then of class 1, ..., within a class as they came."""
    shots: list[int]
    """Images of each class; none is 0."""


def order_support(support_target: Tensor, num_images: int) -> SupportOrder:
    """Put support images class by class, whatever order they came in.

    Args:
        support_target: labels ``[S]``, whole numbers from 0 to ``K - 1``, each of which occurs.
        num_images: support images ``S``.

    Raises:
        InvalidInput: if labels and images differ in number, there are none, or a class has no image.

    >>> order_support(torch.tensor([1, 0, 1]), 3)
    SupportOrder(order=tensor([1, 0, 2]), shots=[1, 2])
    """
    if support_target.dim() != 1 or len(support_target) != num_images:
        raise InvalidInput(
            f"`support_target` of shape {list(support_target.shape)} must hold one label for each of the {num_images} "
            "support images."
        )
    if support_target.is_floating_point() or support_target.is_complex() or support_target.dtype == torch.bool:
        raise InvalidInput(f"`support_target` must hold whole numbers, but its dtype is {support_target.dtype}.")
    if not num_images:
        raise InvalidInput("The support set is empty: there is no class to score queries against.")
    smallest, largest = (int(extreme) for extreme in support_target.aminmax())
    if smallest < 0:
        raise InvalidInput(f"`support_target` must hold labels from 0 on, but it holds {smallest}.")
    if largest >= num_images:  # then there is a gap for sure, and a count per label might not fit into memory
        present = set(support_target.tolist())
        missing = [label for label in range(num_images + 1) if label not in present]
    else:
        shots = torch.bincount(support_target, minlength=largest + 1).tolist()
        missing = [label for label, count in enumerate(shots) if not count]
    if missing:
        named = ", ".join(map(str, missing[:MOST_NAMED])) + (" and more" if len(missing) > MOST_NAMED else "")
        raise InvalidInput(
            f"`support_target` must hold every label from 0 to its largest ({largest}), but class {named} has no "
            "support image; number the classes of the episode without gaps."
        )
    return SupportOrder(torch.argsort(support_target, stable=True), shots)


def check_maps(query: Tensor, support: Tensor, dim: int) -> None:
    """Refuse what are no feature maps of the head's width.

    Raises:
        InvalidInput: naming the shape.
    """
    for name, maps in (("query", query), ("support", support)):
        if maps.dim() != 4 or not (maps.shape[2] and maps.shape[3]):
            raise InvalidInput(f"`{name}` must be feature maps [images, C, H, W], but its shape is {list(maps.shape)}.")
    if query.shape[1] != support.shape[1]:
        raise InvalidInput(
            f"`query` and `support` must have the same number of channels, but have {query.shape[1]} and "
            f"{support.shape[1]}."
        )
    if query.shape[1] != dim:
        raise InvalidInput(f"`query` and `support` have {query.shape[1]} channels, but this head was made for {dim}.")
