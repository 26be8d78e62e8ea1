"""Batch norms that look at the support images of an episode and normalise the queries alike."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from setwise.errors import InvalidInput

__all__ = ["support_moments"]


@contextmanager
def support_moments(trunk: nn.Module, num_support: int, *, running: bool = True) -> Iterator[None]:
    """Within, the batch norms of ``trunk`` normalise all images by mean and variance of the first ``num_support``.

    So queries are not seen by each other (as they would be by a batch norm in training), nor by the support set, and
    both are normalised alike: predictions stay non-transductive. Gradients flow through the moments. In training the
    running averages take in the support images alone, with their biased variance as the official code does (torch's
    own take the unbiased one).

    Args:
        trunk: called within on ``[support, query]``, support images first; its norms that train or have no running
            averages are concerned, and in evaluation mode those of all.
        num_support: images ``S`` of the support set, at least 1.
        running: whether the running averages take in these moments in training; not those of images that no test shows.

    Raises:
        InvalidInput: if there is no support image, or a trunk in training recomputes its layers (gradient
            checkpointing).

    Source: Doersch et al., CrossTransformers, NeurIPS 2020, arXiv:2007.11498, and Meta-Dataset's code of batch
    normalisation for support and query.

    >>> norm = nn.BatchNorm2d(4)
    >>> support, query = torch.randn(6, 4, 3, 3), torch.randn(2, 4, 3, 3)
    >>> with support_moments(norm, 6):
    ...     alone, both = norm(support), norm(torch.cat([support, query]))
    >>> torch.allclose(alone, both[:6], atol=1e-6)
    True
    """
    if num_support < 1:
        raise InvalidInput(f"`num_support` ({num_support}) must be at least 1: moments need images.")
    if trunk.training and any(getattr(module, "grad_checkpointing", False) for module in trunk.modules()):
        raise InvalidInput(
            "Gradient checkpointing runs the trunk again in the backward pass, where the moments of the support images "
            "are gone: switch it off (set_grad_checkpointing(False))."
        )
    norms = [
        module
        for module in trunk.modules()
        if isinstance(module, _BatchNorm)
        and (module.training or module.running_mean is None or not trunk.training)  # else it is frozen
    ]
    try:
        for norm in norms:
            norm.forward = partial(_normalize, norm, num_support, running)  # type: ignore[method-assign]
        yield
    finally:
        for norm in norms:
            del norm.forward


def _normalize(norm: _BatchNorm, num_support: int, running: bool, x: Tensor) -> Tensor:
    """A batch norm's forward, and the activation that timm's norms carry."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    dims = [0, *range(2, x.dim())]
    variance, mean = torch.var_mean(wide[:num_support], dims, correction=0)
    if running and norm.training and norm.track_running_stats:
        _take_in(norm, mean.detach(), variance.detach())
    scale = torch.rsqrt(variance + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight.to(wide.dtype)
    shift = -mean * scale if norm.bias is None else norm.bias.to(wide.dtype) - mean * scale
    shape = [1, -1, *[1] * (x.dim() - 2)]
    y = torch.addcmul(shift.view(shape), wide, scale.view(shape)).to(x.dtype)
    for name in ("drop", "act"):  # timm's BatchNormAct2d
        part = getattr(norm, name, None)
        y = part(y) if isinstance(part, nn.Module) else y
    return y


@torch.no_grad()
def _take_in(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    assert norm.num_batches_tracked is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.num_batches_tracked.add_(1)
    part = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), part)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype), part)
