"""The set across processes."""

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from setwise.errors import InvalidInput

__all__ = ["gather_objects", "gather_ragged", "gather_set", "place"]

T = TypeVar("T")

MAX_AXES = 8
"""Of what is gathered: all ranks tell as many numbers, whatever their shapes are."""


def gather_set(x: Tensor) -> Tensor:
    """Join the samples of all processes, in the order of their ranks, with exact gradients.

    Each rank computes the loss of its own samples; DistributedDataParallel's average of the gradients is then that of
    one process on the joined batch, because the backward pass sums what every rank's loss says about a sample.

    Args:
        x: ``[B, ...]``, the same shape on every rank.

    Returns:
        ``[world_size * B, ...]``; ``x`` itself without an initialised process group.

    Raises:
        InvalidInput: on every rank, if the ranks hold different numbers of samples, or of another shape.
    """
    if not _several_processes():
        return x
    shapes = _shapes(x)
    if len(counts := {shape[0] for shape in shapes}) > 1:
        raise InvalidInput(
            f"Gathering needs as many samples on every process, but they hold {[shape[0] for shape in shapes]}. Give "
            f"all the same batch size ({max(counts)}), and drop the last incomplete batch in training (drop_last=True)."
        )
    if len(set(shapes)) > 1:
        raise InvalidInput(
            f"Gathering needs samples of one shape on every process, but they hold {shapes}. Pad all batches to one "
            "length."
        )
    return _Gather.apply(x)


def gather_ragged(x: Tensor) -> Tensor:
    """:func:`gather_set` for ranks that hold unequal numbers of samples, as the shares of an episode's support do.

    Args:
        x: ``[B, ...]``; only ``B`` may differ between ranks, and be 0.

    Returns:
        The samples of all ranks, in their order; ``x`` itself without an initialised process group.
    """
    if not _several_processes():
        return x
    counts = [shape[0] for shape in _shapes(x)]
    most = max(counts)
    padded = torch.cat([x, x.new_zeros(most - len(x), *x.shape[1:])])
    parts = _Gather.apply(padded).split(most) if most else [x]
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=bool(most))])


def _shapes(x: Tensor) -> list[tuple[int, ...]]:
    """The shape of what each rank holds."""
    size = torch.tensor([*x.shape, *[-1] * (MAX_AXES - x.dim())], device=x.device)
    sizes = [torch.empty_like(size) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, size)
    return [tuple(length for length in s.tolist() if length >= 0) for s in sizes]


class _Gather(torch.autograd.Function):
    """Every rank gets the samples of all; in the backward pass, what all of them say about its own.

    torch's own differentiable gather does the same and is deprecated in favour of a private one (torch 2.15).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = x.shape[0]
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()  # reduced in place, and not ours
        dist.all_reduce(gradient)
        first = dist.get_rank() * ctx.rows
        return gradient[first : first + ctx.rows]


def gather_objects(value: T) -> list[T]:
    """Whatever every process holds, in the order of their ranks, without gradients: scores of unequal slices, say."""
    if not _several_processes():
        return [value]
    values: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def place() -> tuple[int, int]:
    """Rank and number of processes; ``(0, 1)`` without an initialised process group."""
    return (dist.get_rank(), dist.get_world_size()) if _several_processes() else (0, 1)


def _several_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
