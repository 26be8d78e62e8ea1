"""Which classes are many-, medium- and few-shot, from their numbers of training images."""

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from setwise.errors import InvalidInput

__all__ = ["by_count", "by_rank"]


def by_count(counts: Int64[Tensor, "k"], *, many: int = 100, few: int = 20) -> dict[str, Bool[Tensor, "k"]]:
    """Groups by thresholds on the number of training images.

    Args:
        counts: training images of each class ``[K]``.
        many: classes with more images than this are many-shot. ImageNet-LT, Places-LT, iNaturalist, CIFAR-LT: 100.
        few: classes with fewer images than this are few-shot. The same sets: 20.

    Returns:
        ``{"many", "medium", "few"}``, each ``[K]`` boolean; every class is in exactly one.

    Raises:
        InvalidInput: if a class could be both many- and few-shot.

    Source: Liu et al., Large-Scale Long-Tailed Recognition in an Open World, CVPR 2019, arXiv:1904.05160; the bounds
    20 and 100 themselves are medium, as in the code of Balanced Softmax and RIDE.

    >>> {name: group.tolist() for name, group in by_count(torch.tensor([101, 100, 20, 19])).items()}
    {'many': [True, False, False, False], 'medium': [False, True, True, False], 'few': [False, False, False, True]}
    """
    if few > many + 1:
        raise InvalidInput(
            f"`few` ({few}) must be at most `many` + 1 ({many + 1}), or classes in between would be in both groups."
        )
    return _three(counts > many, counts < few)


def by_rank(counts: Int64[Tensor, "k"], *, many: int = 3, few: int = 3) -> dict[str, Bool[Tensor, "k"]]:
    """Groups by rank, for sets too small for thresholds: the largest classes, the smallest, and the rest.

    Args:
        counts: training images of each class ``[K]``.
        many: so many of the largest classes are many-shot; of equal classes the one with the lower index is larger.
        few: so many of the smallest classes are few-shot.

    Returns:
        ``{"many", "medium", "few"}``, each ``[K]`` boolean; every class is in exactly one.

    Raises:
        InvalidInput: if ``many`` and ``few`` are negative or do not fit in the number of classes.

    >>> {name: group.tolist() for name, group in by_rank(torch.tensor([5, 9, 5, 1]), many=1, few=2).items()}
    {'many': [False, True, False, False], 'medium': [True, False, False, False], 'few': [False, False, True, True]}
    """
    if many < 0 or few < 0 or many + few > len(counts):
        raise InvalidInput(
            f"`many` ({many}) and `few` ({few}) must not be negative, nor together exceed the {len(counts)} classes."
        )
    rank = torch.empty_like(counts)
    rank[counts.argsort(descending=True, stable=True)] = torch.arange(len(counts), device=counts.device)
    return _three(rank < many, rank >= len(counts) - few)


def _three(many: Tensor, few: Tensor) -> dict[str, Bool[Tensor, "k"]]:
    return {"many": many, "medium": ~(many | few), "few": few}
