"""How large an episode is: Meta-Dataset's arithmetic, with the chance that goes into it as an argument.

Source: Triantafillou et al., Meta-Dataset, ICLR 2020, arXiv:1903.03096, section 3.2.
"""

import math
from collections.abc import Sequence

__all__ = ["choose_shots", "count_queries", "count_support"]

LOG_WEIGHTS = (math.log(0.5), math.log(2.0))
"""Range of the logarithm of the weight with which a class's images count when the support set is shared out."""


def count_queries(counts: Sequence[int], *, max_query: int = 10, n_shot: int | None = None) -> int:
    """Queries of every class: at most half of the smallest class, or what fixed shots leave of it.

    Args:
        counts: images of each class of the episode.
        max_query: paper: 10.
        n_shot: support images of every class, where they are fixed.

    >>> count_queries([20, 7]), count_queries([20, 7], n_shot=5)
    (3, 2)
    """
    smallest = min(counts)
    return min(max_query, smallest // 2 if n_shot is None else smallest - n_shot)


def count_support(left: Sequence[int], beta: float, *, max_support: int = 500, max_per_class: int = 100) -> int:
    """Size of the support set: the same part of every class, and at least one image of each.

    Args:
        left: images of each class that are no queries.
        beta: the part, drawn uniformly from 0 to below 1.
        max_support: paper: 500.
        max_per_class: of a class no more than these count. Paper: 100.

    >>> count_support([10, 200, 3], 0.5)
    59
    """
    return min(max_support, sum(math.floor(beta * min(max_per_class, number) + 1) for number in left))


def choose_shots(counts: Sequence[int], left: Sequence[int], uniform: Sequence[float], *, size: int) -> list[int]:
    """Support images of each class: one, and a share of the others by the size of the class times a random weight.

    Args:
        counts: images of each class.
        left: those that are no queries.
        uniform: a number from 0 to below 1 for each class, from which its weight between 1/2 and 2 comes.
        size: of the support set; the shots sum to at most this, as shares are rounded down.

    >>> choose_shots([20, 20, 20], [10, 10, 10], [0.5, 0.0, 0.99], size=15)
    [4, 2, 7]
    """
    low, high = LOG_WEIGHTS
    weights = [count * math.exp(low + (high - low) * u) for count, u in zip(counts, uniform, strict=True)]
    total = sum(weights)
    spare = size - len(counts)
    return [min(math.floor(weight / total * spare) + 1, most) for weight, most in zip(weights, left, strict=True)]
