"""How many experts an image needs: asked one after the other, until a small network says that it is enough.

Letters: ``B`` images, ``E`` experts, ``C`` channels of one expert, ``K`` classes.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from setwise.errors import InvalidInput

__all__ = ["ExpertAssignment", "Routed", "assignment_loss", "assignment_target", "route"]

POSITIVE_WEIGHT = 100.0
"""Of a sample that needs another expert, against one that does not (official RIDE code)."""


class Routed(NamedTuple):
    """What routing made of a batch."""

    logits: Float[Tensor, "B K"]
    """Mean over the experts that were asked."""
    used: Int64[Tensor, "B"]
    """How many of them, 1 to ``E``."""

    @property
    def mean_used(self) -> float:
        """Mean number of experts that were used, the cost that is reported beside accuracy."""
        return float(self.used.double().mean())


def route(logits: Float[Tensor, "B E K"], scores: Float[Tensor, "B steps"]) -> Routed:
    """Average each image's logits over the experts up to the first after which it need not go on.

    Args:
        logits: of all experts ``[B, E, K]``.
        scores: of going on after expert 1 .. ``E - 1``, ``[B, E - 1]``; an image goes on while the sigmoid is above one
            half, that is, the score above 0.

    Raises:
        InvalidInput: if the two do not fit, or there is no image.

    Source: Wang et al., RIDE, ICLR 2021, arXiv:2010.01809, section 3, as in the official code.

    >>> logits = torch.tensor([[[4.0, 0.0], [0.0, 2.0], [0.0, 4.0]]]).repeat(3, 1, 1)
    >>> routed = route(logits, torch.tensor([[-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]))
    >>> routed.used, routed.logits[1], routed.mean_used
    (tensor([1, 2, 3]), tensor([2., 1.]), 2.0)
    """
    _check(logits, scores)
    goes_on = (scores > 0).long().cumprod(1)  # 1 up to the first stop
    used = 1 + goes_on.sum(1)  # [B]
    asked = torch.arange(logits.shape[1], device=logits.device) < used[:, None]  # [B, E]
    return Routed((logits * asked[:, :, None]).sum(1) / used[:, None], used)


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

    Averaged over the steps; of this the source says nothing.

    Raises:
        InvalidInput: if scores and logits do not fit.
    """
    _check(logits, scores)
    wanted = assignment_target(logits, target).to(scores.dtype)
    weight = torch.tensor(POSITIVE_WEIGHT, device=scores.device, dtype=scores.dtype)
    return F.binary_cross_entropy_with_logits(scores, wanted, pos_weight=weight, reduction="none").mean(1)


class ExpertAssignment(nn.Module):
    """Scores of going on, one small network after each expert but the last; trained alone, on frozen experts.

    After expert ``e`` it sees that expert's feature, L2-normalised and mapped to ``hidden`` numbers, beside the
    ``top_k`` largest of the mean logits so far.

    Args:
        dim: width ``C`` of one expert's feature.
        num_experts: ``E``, at least 2.
        num_classes: ``K``.
        top_k: largest logits that are looked at, as far as there are so many classes. ResNet-10 and CIFAR: 30,
            ResNet-50: 50.
        hidden: width of the mapped feature. Official code: 16.

    Raises:
        InvalidInput: with a single expert, or without a logit to look at.

    >>> stop = ExpertAssignment(48, num_experts=3, num_classes=10)
    >>> stop(torch.randn(5, 3, 48), torch.randn(5, 3, 10)).shape
    torch.Size([5, 2])
    """

    def __init__(self, dim: int, *, num_experts: int, num_classes: int, top_k: int = 30, hidden: int = 16) -> None:
        super().__init__()
        if num_experts < 2 or top_k < 1:
            raise InvalidInput(
                f"Routing needs at least 2 `num_experts` ({num_experts}) and a `top_k` of at least 1 ({top_k})."
            )
        self.top_k = min(top_k, num_classes)
        steps = range(num_experts - 1)
        self.inward = nn.ModuleList(nn.Linear(dim, hidden) for _ in steps)
        self.outward = nn.ModuleList(nn.Linear(hidden + self.top_k, 1) for _ in steps)

    def forward(self, features: Float[Tensor, "B E C"], logits: Float[Tensor, "B E K"]) -> Float[Tensor, "B steps"]:
        """Scores of going on after expert 1 .. ``E - 1``; above 0: yes."""
        scores = []
        for step, (inward, outward) in enumerate(zip(self.inward, self.outward, strict=True)):
            feature = inward(F.normalize(features[:, step])).relu()
            best = logits[:, : step + 1].mean(1).topk(self.top_k, 1).values
            scores.append(outward(torch.cat([feature, best], 1)))
        return torch.cat(scores, 1)


def _check(logits: Tensor, scores: Tensor) -> None:
    if not len(logits) or scores.shape != (len(logits), logits.shape[1] - 1):
        raise InvalidInput(
            f"`scores` must be [B, E - 1], one after each expert but the last, for `logits` [B, E, K] of at least one "
            f"image, but they are {list(scores.shape)} and {list(logits.shape)}."
        )
