"""Classify images that are mixed in two ways, whose features are drawn to each other."""

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.transforms import v2

from setwise.data import Batch, BatchOfViews
from setwise.errors import InvalidInput
from setwise.losses import GLMC, mixture_consistency
from setwise.nn import in_micro_batches, streams
from setwise.tasks.classification import Classification

__all__ = ["Mixtures"]

PROJECTED = 128
"""Channels of the projections."""


class Mixtures(Classification):
    """Classification by GLMC: two views of a batch, one mixed by mixup, the other by CutMix.

    Projections of both mixtures are drawn to each other: one linear layer to 128 channels, and one that predicts the
    other mixture's from it. Two linear classifiers score the features; ``head`` is the one that is evaluated. With a
    relation, each mixture is a set of its own, both classifiers score both streams, and the projections are of the
    plain features: where the relation stands is our choice.

    Each image is mixed with the one before it in its batch, and each mixture draws a share of its own; the authors'
    code mixes with images of a second pass over the training set and draws one share for both, which CutMix does not
    correct where its square is cut off at the border.

    Args:
        parts: of :class:`Classification`, the criterion :class:`setwise.losses.GLMC` among them.
        dim: width of the features.
        epochs: of the whole training.
        options: of :class:`Classification`.

    Source: Du et al., GLMC, CVPR 2023, arXiv:2305.08661, and their code, ynu-yangpeng/GLMC at df7e2da.
    """

    def __init__(self, *parts: Any, dim: int, epochs: int, **options: Any) -> None:
        super().__init__(*parts, **options)
        num_classes = len(self.counts)
        self.beside = nn.Linear(dim, num_classes)
        self.project = nn.Linear(dim, PROJECTED)
        self.predict = nn.Linear(PROJECTED, PROJECTED)
        self._epochs = epochs
        # Not in the step, where half precision would be the default of what they draw.
        how = {"alpha": cast(GLMC, self.criterion).mixture, "num_classes": num_classes}
        self._mixes = (v2.MixUp(**how), v2.CutMix(**how))  # in a tuple, so that they are no submodules

    def training_step(self, batch: Batch | BatchOfViews, batch_idx: int) -> Tensor:
        """Mix, score both mixtures in both streams, and draw their projections to each other."""
        if not isinstance(batch, BatchOfViews):
            raise InvalidInput("GLMC mixes two views of each image: make_loader(..., views=[...]).")
        criterion = cast(GLMC, self.criterion)
        size = self.micro_batch or len(batch.image)
        by_pixel, by_patch = self._mixes
        mixed = [by_pixel(batch.image, batch.target), by_patch(batch.views[0], batch.target)]
        features = [in_micro_batches(self.backbone, image, size) for image, _ in mixed]
        total = self._drawn_together(features) * criterion.consistency
        for z, (_, shares) in zip(features, mixed, strict=True):
            rows = self._related(z, batch.target, batch_idx)
            logits = self.head(rows)
            wanted = streams.tile(shares, like=logits)
            losses = criterion.mixed(
                logits, self.beside(rows), wanted, progress=self.current_epoch / max(1, self._epochs)
            )
            self._keep_curves(logits.detach(), losses.detach(), shares)
            total = total + self._mean(losses, shares)
        return total

    def _drawn_together(self, features: list[Float[Tensor, "B C"]]) -> Tensor:
        projected = [self.project(z) for z in features]
        predicted = [self.predict(h) for h in projected]
        pairs = zip(predicted, reversed(projected), strict=True)
        return torch.stack([mixture_consistency(u, h).mean() for u, h in pairs]).sum()
