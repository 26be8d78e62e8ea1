"""Re-train a classifier on draws whose class rates are learned beside it."""

from typing import Any

import torch
from torch import Tensor

from setwise import seeds
from setwise.data import Batch, BatchOfViews
from setwise.nn import MetaSampler, in_micro_batches, streams
from setwise.nn.meta_sampler import meta_gradient
from setwise.tasks.classification import Classification

__all__ = ["MetaSampled"]


class MetaSampled(Classification):
    """The second stage of Balanced Meta-Softmax: a classifier on a frozen backbone, with a learned sampler.

    A batch holds ``pool`` times as many images as a step learns from, of all classes alike. From every other one of it
    the step's images are drawn by the learned rates; the rest is the balanced set on which the rates are judged. The
    source draws from the whole training set instead. With a relation both streams of the draws are the loss, here and
    in the step that the rates look ahead by; the balanced half is classified as at test, without a relation. Of that
    the source says nothing.

    Args:
        parts: of :class:`Classification`.
        pool: images of a batch over draws of a step, at least 2.
        rate: learning rate of the class rates, by Adam. Official code: 1e-3 on ImageNet-LT, 1e-2 on CIFAR.
        power: of :class:`setwise.nn.MetaSampler`. Official code: 0.1 on ImageNet-LT, 0 on CIFAR.
        options: of :class:`Classification`, ``frozen`` among them.

    Source: Ren et al., Balanced Meta-Softmax, NeurIPS 2020, arXiv:2007.10740, section 3.3.
    """

    def __init__(self, *parts: Any, pool: int, rate: float = 1e-3, power: float = 0.1, **options: Any) -> None:
        super().__init__(*parts, **options)
        self.pool, self.rate = pool, rate
        self.sampler = MetaSampler(self.counts, power=power)

    def training_step(self, batch: Batch | BatchOfViews, batch_idx: int) -> Tensor:
        """Draw, learn from the draws, and see to the rates."""
        with torch.no_grad():
            z = in_micro_batches(self.backbone, batch.image, self.micro_batch or len(batch.image))
        size = max(1, len(z) // self.pool)
        # Every other image: draws come four of a class in a row, and both halves are to have the same classes.
        (from_, target), balanced = ((z[first::2], batch.target[first::2]) for first in (0, 1))
        random = seeds.generator(self.seed, "meta", self.current_epoch, batch_idx, self.global_rank)
        looking = self.sampler(target, size, random)
        seen = target[looking.place]
        rows = self._related(from_[looking.place], seen, batch_idx)
        of_rows = streams.tile(seen, like=rows)
        gradient = meta_gradient(
            looking,
            self.head,
            lambda logits: self._weighted(self.criterion(logits, of_rows), seen),
            rows,
            lr=self.trainer.optimizers[0].param_groups[0]["lr"],
            balanced=balanced,
        )
        self.sampler.descend(gradient, lr=self.rate)
        drawn = self.sampler(target, size, random)  # by the new rates
        chosen = target[drawn.place]
        logits = self.head(self._related(from_[drawn.place], chosen, batch_idx))
        losses = self.criterion(logits, streams.tile(chosen, like=logits))
        self._keep_curves(logits.detach(), losses.detach(), chosen)
        return self._mean(losses, chosen)
