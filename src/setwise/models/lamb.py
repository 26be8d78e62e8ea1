"""LAMB, for large batches: timm's, through the one door to timm."""

from typing import Any

from timm.optim import Lamb
from torch.optim import Optimizer

__all__ = ["lamb"]


def lamb(groups: list[dict[str, Any]], *, beta: float) -> Optimizer:
    """LAMB as timm's: weight decay in the update, the gradient clipped to a norm of 1 before it.

    Args:
        groups: parameters with ``lr`` and ``weight_decay``.
        beta: of the first moment; that of the second is 0.999.

    Source: You et al., Large Batch Optimization for Deep Learning, ICLR 2020, arXiv:1904.00962.
    """
    return Lamb(groups, betas=(beta, 0.999))
