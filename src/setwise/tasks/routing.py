"""Decide for each image how many experts it needs, on experts that are trained already."""

from typing import cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from setwise.data import Batch, BatchOfViews
from setwise.losses import ExpertAssignmentLoss
from setwise.models import RoutedExperts, route
from setwise.nn import in_micro_batches
from setwise.tasks.classification import Classification

__all__ = ["Routing"]


class Routing(Classification):
    """The second stage of RIDE: backbone and classifiers stay as they are, and expert assignment is learned.

    A prediction is the mean of the experts that were asked. There is no relation: the features do not change.

    Source: Wang et al., RIDE, ICLR 2021, arXiv:2010.01809, section 3, as in the official code.
    """

    head: RoutedExperts

    def training_step(self, batch: Batch | BatchOfViews, batch_idx: int) -> Tensor:
        """Binary cross-entropy of going on to the next expert."""
        with torch.no_grad():
            z = in_micro_batches(self.backbone, batch.image, self.micro_batch or len(batch.image))
        logits, scores = self.head.decide(z)
        losses = cast(ExpertAssignmentLoss, self.criterion).decided(scores, logits, batch.target)
        self._keep_curves(route(logits, scores.detach()).logits, losses.detach(), batch.target)
        return losses.mean()

    def per_image(self, image: Float[Tensor, "B c H W"]) -> dict[str, Tensor]:
        """The scores, and how many experts they are the mean of."""
        routed = route(*self.head.decide(self.backbone(image)))
        return {"scores": routed.logits, "used": routed.used}

    def further_metrics(self, found: dict[str, Tensor]) -> dict[str, float]:
        """``experts_used``: the mean number of experts that were asked, as a part of all of them."""
        return {"experts_used": _mean(found["used"]) / len(self.head.experts.classifiers)}

    def remarks(self, found: dict[str, Tensor]) -> tuple[str, ...]:
        """The mean number itself."""
        return (f"Experts asked: {_mean(found['used']):.2f} of {len(self.head.experts.classifiers)} on average.",)


def _mean(used: Int64[Tensor, "B"]) -> float:
    return float(used.double().mean())
