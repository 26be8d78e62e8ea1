"""Classify with a teacher: a trained network whose predictions are to be matched beside the labels."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from setwise.data import Batch, BatchOfViews
from setwise.losses import distillation
from setwise.nn import Compared, in_micro_batches, streams
from setwise.tasks.classification import Classification

__all__ = ["Distilled"]


class Distilled(Classification):
    """Classification with a term that draws the scores to a teacher's; RIDE's is a network of six experts.

    Both streams are drawn to what the teacher says of the image; the source has one stream. The teacher is no part of
    the network: it is neither trained nor saved with it.

    Args:
        parts: of :class:`Classification`.
        teacher: images -> scores ``[B, K]``.
        temperature: divides both scores. RIDE: 1.5.
        options: of :class:`Classification`.

    Source: Wang et al., RIDE, ICLR 2021, arXiv:2010.01809, section 3, as in the official code.
    """

    def __init__(self, *parts: Any, teacher: nn.Module, temperature: float = 1.5, **options: Any) -> None:
        super().__init__(*parts, **options)
        self._teacher = (teacher.requires_grad_(False).eval(),)  # in a tuple, so that it is no submodule
        self._temperature = temperature

    def _losses(self, logits: Tensor, batch: Batch | BatchOfViews, compared: Compared | None) -> Float[Tensor, "rows"]:
        teacher = self._teacher[0].to(batch.image.device, batch.image.dtype)
        with torch.no_grad():
            taught = in_micro_batches(teacher, batch.image, self.micro_batch or len(batch.image))
        wanted = streams.tile(taught, like=logits)
        return super()._losses(logits, batch, compared) + distillation(logits, wanted, temperature=self._temperature)
