"""BatchFormer for several experts: one layer, shared by all, relates the features of each expert by themselves."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from setwise.errors import InvalidInput
from setwise.nn.batchformer import BatchFormer

__all__ = ["ExpertBatchFormer", "check_decisions"]


class ExpertBatchFormer(BatchFormer):
    """Relate samples within each expert's features, with the same weights for all experts.

    Features of the experts stand side by side, ``[B, E * C]``. Expert by expert a :class:`BatchFormer` of width ``C``
    is called; no expert sees another's features.

    Args:
        dim: width ``C`` of one expert's features.
        num_experts: ``E``. RIDE: 3.
        options: of :class:`BatchFormer`. The official RIDE code has one head where ``C`` is 128 or less.

    Raises:
        InvalidInput: for what BatchFormer refuses, a width that is not ``E * C``, or a memory, which would hold the
            features of different experts as if they were alike.

    Source: Hou, Yu, Tao, BatchFormer, CVPR 2022, arXiv:2203.01522, with RIDE as in its official code; that replaces the
    features by the related ones, here both streams go to one shared classifier as everywhere else.

    >>> relation = ExpertBatchFormer(48, num_experts=3, num_heads=1)
    >>> relation(torch.randn(16, 3 * 48)).shape
    torch.Size([32, 144])
    """

    def __init__(self, dim: int, *, num_experts: int, **options: Any) -> None:
        if num_experts < 1:
            raise InvalidInput(f"`num_experts` must be at least 1, but it is {num_experts}.")
        if options.get("memory"):
            raise InvalidInput(
                f"`memory` ({options['memory']}) cannot hold the features of several experts as one set: leave it 0."
            )
        super().__init__(dim, **options)
        self.num_experts = num_experts

    def forward(
        self, x: Float[Tensor, "B experts_C"], mask: Bool[Tensor, "B keys"] | None = None
    ) -> Float[Tensor, "rows experts_C"]:
        """As :meth:`BatchFormer.forward`: in training ``[2B, E * C]``, plain rows first; in evaluation ``x`` itself."""
        parts = self._split(x)
        if not self.training:
            return x
        return torch.cat([BatchFormer.forward(self, part, mask) for part in parts], 1)

    def relate(
        self, x: Float[Tensor, "B experts_C"], mask: Bool[Tensor, "B keys"] | None = None
    ) -> Float[Tensor, "B experts_C"]:
        """As :meth:`BatchFormer.relate`, for each expert."""
        return torch.cat([BatchFormer.relate(self, part, mask) for part in self._split(x)], 1)

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        if x.dim() != 2 or x.shape[1] != self.num_experts * self.dim:
            raise InvalidInput(
                f"The features must be [B, {self.num_experts} * {self.dim}], the experts side by side, but they have "
                f"shape {list(x.shape)}."
            )
        return x.split(self.dim, 1)


def check_decisions(logits: Tensor, scores: Tensor) -> None:
    """Refuse scores of going on ``[B, E - 1]`` that do not fit the logits of all experts ``[B, E, K]``.

    Raises:
        InvalidInput: if they do not fit, or there is no image.
    """
    images, experts = logits.shape[:2]  # len() would fix the batch size of an export
    if images == 0 or scores.shape != (images, experts - 1):
        raise InvalidInput(
            f"`scores` must be [B, E - 1], one after each expert but the last, for `logits` [B, E, K] of at least one "
            f"image, but they are {list(scores.shape)} and {list(logits.shape)}."
        )
