"""Class counts: the exponential long tail, and parts that are held out class by class."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from setwise.errors import InvalidInput

__all__ = ["exponential_counts", "hold_out", "largest_long_tail", "pick"]


def exponential_counts(
    n_max: int, *, num_classes: int, imbalance_factor: float, rounding: Callable[[float], int] = int
) -> list[int]:
    """Class sizes that fall exponentially from ``n_max`` to ``n_max / imbalance_factor``.

    Args:
        n_max: images of the largest class.
        num_classes: classes ``K``.
        imbalance_factor: largest class over smallest; 100 in most papers on CIFAR, 1 keeps all classes equal.
        rounding: how a size becomes whole; ``int`` as in the papers.

    Raises:
        InvalidInput: if the factor is below 1, or so large that the smallest class would have no image.

    Source: Cui et al., Class-Balanced Loss, CVPR 2019, arXiv:1901.05555, section 5.1; rounding as in the code of
    Cao et al., LDAM, NeurIPS 2019.

    >>> exponential_counts(5000, num_classes=10, imbalance_factor=100.0)
    [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    """
    _check_factor(imbalance_factor)
    falls = [rank / max(num_classes - 1, 1) for rank in range(num_classes)]
    counts = [rounding(n_max * (1 / imbalance_factor) ** fall) for fall in falls]
    if counts[-1] < 1:
        raise InvalidInput(
            f"`imbalance_factor` ({imbalance_factor:g}) leaves the smallest class without an image; with {n_max} "
            f"images in the largest it must be below {n_max}."
        )
    return counts


def _check_factor(imbalance_factor: float) -> None:
    if not imbalance_factor >= 1:
        raise InvalidInput(f"`imbalance_factor` ({imbalance_factor:g}) must be 1 (balanced) or larger.")


def largest_long_tail(counts: Sequence[int], *, imbalance_factor: float) -> list[int]:
    """The largest exponential long tail that classes of these sizes can fill, the largest class as its head.

    >>> largest_long_tail([40, 100, 100], imbalance_factor=4.0)
    [25, 100, 50]
    """
    _check_factor(imbalance_factor)
    order = sorted(range(len(counts)), key=lambda label: -counts[label])  # stable: equal classes stay in label order
    for n_max in range(counts[order[0]], 0, -1):
        if int(n_max * (1 / imbalance_factor)) < 1:  # as the smallest class below; 49 * (1 / 49) is less than 1
            break
        tail = exponential_counts(n_max, num_classes=len(counts), imbalance_factor=imbalance_factor)
        if all(size <= counts[label] for size, label in zip(tail, order, strict=True)):
            sizes = dict(zip(order, tail, strict=True))
            return [sizes[label] for label in range(len(counts))]
    raise InvalidInput(
        f"No long tail of `imbalance_factor` {imbalance_factor:g} fits classes of {min(counts)} to {max(counts)} "
        "images: lower it."
    )


def pick(target: Int64[Tensor, "n"], counts: Sequence[int], *, generator: torch.Generator) -> Int64[Tensor, "m"]:
    """Places of ``counts[k]`` samples of every class ``k``, drawn without replacement, in ascending order."""
    shuffled = torch.randperm(len(target), generator=generator)
    places = [shuffled[target[shuffled] == label][:count] for label, count in enumerate(counts)]
    return torch.cat(places).sort().values


def hold_out(
    target: Int64[Tensor, "n"] | Float32[Tensor, "n k"], fraction: float, *, generator: torch.Generator
) -> tuple[Int64[Tensor, "kept"], Int64[Tensor, "held"]]:
    """Split places in two, class by class.

    Every class with two or more samples has at least one on either side; a single sample stays. Samples with several
    labels are stratified by their rarest one, and no class loses its last sample.

    Args:
        target: labels of all samples.
        fraction: part to hold out, in 0..1 (1 excluded); 0 holds nothing out.
        generator: draws the samples.

    Returns:
        Places kept and places held out, ascending.

    Raises:
        InvalidInput: if the fraction is out of range.
    """
    if not 0 <= fraction < 1:
        raise InvalidInput(f"`val_fraction` ({fraction:g}) must be at least 0 and below 1.")
    label = target if target.ndim == 1 else rarest_label(target)
    counts = torch.bincount(label).tolist()
    wanted = [min(max(1, round(count * fraction)), count - 1) if fraction and count else 0 for count in counts]
    held = torch.zeros(len(target), dtype=torch.bool)
    held[pick(label, wanted, generator=generator)] = True
    if target.ndim == 2:
        for lost in ((target[~held].sum(0) == 0) & (target.sum(0) > 0)).nonzero().flatten().tolist():
            held[int((target[:, lost] > 0).nonzero()[0])] = False
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def rarest_label(target: Float32[Tensor, "n k"]) -> Int64[Tensor, "n"]:
    """For every row of zeros and ones the class, among its ones, that has the fewest samples."""
    return target.sum(0).expand_as(target).masked_fill(target == 0, float("inf")).argmin(1)
