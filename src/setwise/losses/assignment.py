"""The loss of deciding how many experts an image needs.

Letters: ``B`` images, ``E`` experts, ``K`` classes.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from setwise.losses.long_tailed import CrossEntropy
from setwise.nn.experts import check_decisions

__all__ = ["ExpertAssignmentLoss", "assignment_loss", "assignment_target"]

POSITIVE_WEIGHT = 100.0
"""Of a sample that needs another expert, against one that does not (official RIDE code)."""


def assignment_target(logits: Float[Tensor, "B E K"], target: Int64[Tensor, "B"]) -> Bool[Tensor, "B steps"]:
    """Which images should go on after expert 1 .. ``E - 1``: wrong so far, and right with some later expert.

    "So far" and "later" are the mean logits of the first 1, 2 .. ``E`` experts.
    """
    count = torch.arange(1, logits.shape[1] + 1, device=logits.device, dtype=logits.dtype)
    so_far = logits.cumsum(1) / count[:, None]  # [B, E, K]
    right = so_far.argmax(2) == target[:, None]  # [B, E]
    right_from_here = right.flip(1).cummax(1).values.flip(1)  # at e: with e or some later expert
    return ~right[:, :-1] & right_from_here[:, 1:]


def assignment_loss(
    scores: Float[Tensor, "B steps"], logits: Float[Tensor, "B E K"], target: Int64[Tensor, "B"]
) -> Float[Tensor, "B"]:
    """Binary cross-entropy of going on, where images that should weigh a hundred times as much.

    Averaged over the steps, as in the official code.

    Raises:
        InvalidInput: if scores and logits do not fit.
    """
    check_decisions(logits, scores)
    wanted = assignment_target(logits, target).to(scores.dtype)
    weight = torch.tensor(POSITIVE_WEIGHT, device=scores.device, dtype=scores.dtype)
    return F.binary_cross_entropy_with_logits(scores, wanted, pos_weight=weight, reduction="none").mean(1)


class ExpertAssignmentLoss(CrossEntropy):
    """:func:`assignment_loss` as a criterion, for ``--head.name routed``.

    Called on the routed scores alone, as criteria are, it is cross-entropy; a task that has the decisions calls
    :meth:`decided`.

    Args:
        class_weights: see :class:`Criterion`; RIDE uses none.
        reweight_epoch: see :class:`Criterion`.

    Source: Wang et al., RIDE, ICLR 2021, arXiv:2010.01809, section 3, as in the official code.

    >>> criterion, label = ExpertAssignmentLoss(), torch.tensor([1])
    >>> logits = torch.tensor([[[1.0, 0.0], [0.0, 3.0]]])  # the second expert puts the first one right
    >>> low, high = (float(criterion.decided(torch.tensor([[s]]), logits, label)) for s in (-1.0, 1.0))
    >>> low > high
    True
    """

    def __init__(self, *, class_weights: Float[Tensor, "k"] | None = None, reweight_epoch: int | None = None) -> None:
        super().__init__(class_weights=class_weights, reweight_epoch=reweight_epoch)

    def decided(
        self, scores: Float[Tensor, "B steps"], logits: Float[Tensor, "B E K"], target: Int64[Tensor, "B"]
    ) -> Float[Tensor, "B"]:
        """Losses ``[B]``; see :func:`assignment_loss`."""
        losses, weights = assignment_loss(scores, logits, target), self.weights_now(logits[:, 0])
        return losses if weights is None else losses * weights[target] / weights[target].mean()
