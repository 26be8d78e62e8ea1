"""The set across micro-batches: features of a large batch in the memory of a small one, with exact gradients."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from setwise.errors import InvalidInput

__all__ = ["in_micro_batches"]


def in_micro_batches(backbone: nn.Module, x: Tensor, size: int) -> Tensor:
    """Features of ``x``, computed micro-batch by micro-batch, so that a relation can see more samples than fit at once.

    The features of each micro-batch are computed without keeping activations; relation, head and loss work on all of
    them; in the backward pass each micro-batch is computed again with its slice of the gradient. The graph is an
    ordinary one, so that autocast, loss scaling, gradient clipping, DistributedDataParallel and ``gather=True`` need
    nothing of their own. It costs one more forward pass: about 4/3 of the time.

    Exact: gradients are those of the same micro-batches in one graph, with the same dropout (the random state is
    replayed). For backbones without BatchNorm that is the gradient of the whole batch. BatchNorm normalises each
    micro-batch by its own statistics, as it does on several devices, and updates its running ones once for each.

    Args:
        backbone: samples ``[b, ...]`` -> features ``[b, ...]``.
        x: ``[B, ...]``.
        size: samples of a micro-batch; the last one may be smaller.

    Returns:
        ``[B, ...]``, the micro-batches in their order.

    Raises:
        InvalidInput: if ``size`` is below 1 or the batch is empty.

    Source: Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, 2021, arXiv:2101.06983.

    >>> backbone = nn.Linear(8, 4)
    >>> in_micro_batches(backbone, torch.randn(512, 8), size=64).shape
    torch.Size([512, 4])
    """
    if size < 1:
        raise InvalidInput(f"`size` of a micro-batch must be at least 1, but it is {size}.")
    if not len(x):
        raise InvalidInput("There are no micro-batches in an empty batch.")
    if len(x) <= size:
        return backbone(x)
    if not torch.is_grad_enabled():
        return torch.cat([backbone(part) for part in x.split(size)])
    return torch.cat(
        [
            checkpoint(
                backbone, part, use_reentrant=False, context_fn=lambda: (nullcontext(), _StatisticsKept(backbone))
            )
            for part in x.split(size)
        ]
    )


class _StatisticsKept:
    """Leave BatchNorm's running statistics and counters as they are, while it normalises as in training.

    A context that can be entered again, once for each backward pass through a graph that is retained.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone = backbone
        self.kept: list[tuple[_BatchNorm, float | None, Tensor | None]] = []

    def __enter__(self) -> None:
        for norm in self.backbone.modules():
            if isinstance(norm, _BatchNorm) and norm.training and norm.track_running_stats:
                counter = norm.num_batches_tracked
                self.kept.append((norm, norm.momentum, None if counter is None else counter.clone()))
                norm.momentum = 0.0  # what is mixed in has no weight

    def __exit__(self, *error: object) -> None:
        for norm, momentum, count in self.kept:
            norm.momentum = momentum
            if norm.num_batches_tracked is not None and count is not None:
                norm.num_batches_tracked.copy_(count)
        self.kept.clear()
