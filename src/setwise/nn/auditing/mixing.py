"""What in a tensor follows one sample, what follows its batch-mates, and what follows both.

Three runs are compared: as it is, with other mates, with another sample 0. Letters: ``B`` samples, ``k`` rows of each.
"""

import math

import torch
from torch import Tensor

__all__ = ["change_of_sample", "find_mixed", "half"]

Tensors = dict[str, Tensor]


def find_mixed(
    base: Tensors, mates: Tensors, sample: Tensors, *, noise: float, stream: int | None
) -> list[tuple[Tensor, Tensor]]:
    """The tensors with an element that follows sample 0 and its mates, both.

    Args:
        base: tensors by their places, in the run as it is.
        mates: the same with other mates.
        sample: the same with another sample 0.
        noise: changes up to this part of a tensor's largest value are none.
        stream: look at the first half of the rows, the second, or all (None); odd ones are not halved. Half of the
            samples will do where rows are not doubled: sample 0 follows its mates, or mates of the other half it.

    Returns:
        Pairs of ``base`` and ``mates``.
    """
    found = []
    for path in base:
        if path in mates and path in sample:
            both = _follows(base[path], mates[path], noise) & _follows(base[path], sample[path], noise)
            if half(both, stream).any():
                found.append((base[path], mates[path]))
    return found


def change_of_sample(
    base: Tensor, mates: Tensor | None, sample: Tensor | None, *, size: int, noise: float, alone: bool
) -> tuple[float, float] | None:
    """How much the rows of sample 0 change with other mates.

    Args:
        base: an output in the run as it is.
        mates: the same with other mates; None: it is missing there.
        sample: the same with another sample 0.
        size: samples ``B``. Sample 0 has the first of ``k * B`` rows. Where the number of rows is no such, or no
            element follows sample 0 and mates and others than these follow sample 0, it has those that follow it.
        noise: as above.
        alone: the output is of sample 0 alone.

    Returns:
        Absolute, and relative to the largest value; both infinite if the shape changes. None if the output is empty or
        does not follow sample 0, so that it is no prediction for it.
    """
    followed = torch.ones_like(base, dtype=torch.bool) if sample is None else _follows(base, sample, noise)
    if not alone and not followed.any():
        return None
    if mates is None or mates.shape[1:] != base.shape[1:] or (alone and mates.shape != base.shape):
        return math.inf, math.inf
    chosen = torch.zeros_like(followed)
    rows = len(base) if alone else len(base) // size * (len(base) % size == 0)
    chosen[:rows] = True
    mixed = (followed & _follows(base, mates, noise)).any()
    if not alone and (not rows or (not mixed and (followed & ~chosen).any())):
        chosen = followed
    common = _common(base, mates)
    chosen, base, mates = chosen[:common], base[:common], mates[:common]
    if not chosen.any():
        return None
    change = float(_difference(base, mates)[chosen].max())
    largest = _largest(base[chosen], mates[chosen])
    return change, change / largest if largest else change  # nothing, or infinite


def half(x: Tensor, stream: int | None) -> Tensor:
    """The rows of one of two streams; all rows for None, and where they cannot be halved."""
    return x if stream is None or len(x) % 2 else x.chunk(2)[stream]


def _follows(x: Tensor, other: Tensor, noise: float) -> Tensor:
    """Which elements of ``x`` change: all if the shape does, at most the first row's if the number of rows does."""
    if x.shape[1:] != other.shape[1:]:
        return torch.ones_like(x, dtype=torch.bool)
    follows = torch.zeros_like(x, dtype=torch.bool)
    common = _common(x, other)
    x, other = x[:common], other[:common]
    follows[:common] = _difference(x, other) > noise * _largest(x, other)
    return follows


def _common(x: Tensor, other: Tensor) -> int:
    """Rows that can be compared: where their number changes (boxes of all images), the first is still sample 0's."""
    return len(x) if len(x) == len(other) else min(1, len(x), len(other))


def _difference(x: Tensor, other: Tensor) -> Tensor:
    """Absolute difference; infinite where one is no number or infinite and the other is not."""
    if not x.is_floating_point() and not x.is_complex():
        return (x.long() - other.long()).abs().float()
    same = (x == other) | (x.isnan() & other.isnan())
    return (x - other).abs().masked_fill(same, 0).nan_to_num(nan=math.inf, posinf=math.inf)


def _largest(*tensors: Tensor) -> float:
    """The largest finite absolute value."""
    values = torch.cat([(x if x.is_complex() else x.double()).abs().flatten() for x in tensors])
    values = values[values.isfinite()]
    return float(values.max()) if values.numel() else 0.0
