"""Losses for long-tailed recognition, one number per sample, with class weights that may start late.

Letters: ``N`` rows of logits (both streams, if there are two), ``K`` classes, ``n_j`` training images of class ``j``.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from setwise.errors import InvalidInput
from setwise.losses.targets import check_counts, check_labels, check_multi_hot, full

__all__ = [
    "LDAM",
    "BalancedSoftmax",
    "BinaryCrossEntropy",
    "Criterion",
    "CrossEntropy",
    "FocalLoss",
    "SoftmaxBinaryCrossEntropy",
]

LARGEST_LOG = 100.0
"""torch.nn.BCELoss lets no logarithm be below minus this."""


class Criterion(nn.Module):
    """What all criteria share: class weights, from the first epoch or from a later one on (deferred re-weighting).

    A criterion is called as ``criterion(logits [N, K], target) -> losses [N]``, with ``target [N]`` int64 labels or
    ``[N, K]`` class probabilities. ``losses.mean()`` is the usual loss; with class weights it is torch's weighted mean,
    because each sample's weight is divided by the mean weight of the batch.

    Nothing here is saved with a model: weights come from the training counts again, and whether they count depends on
    the epoch alone, so a resumed run continues exactly.

    Args:
        class_weights: ``[K]`` positive, see :func:`setwise.losses.class_weights`; None: all classes weigh the same.
        reweight_epoch: the weights count from this epoch (0-based) on; None: always. LDAM-DRW, 200 epochs: 160.

    Raises:
        InvalidInput: if ``reweight_epoch`` is given without weights, or a weight is not positive.
    """

    class_weights: Tensor | None

    def __init__(self, *, class_weights: Float[Tensor, "k"] | None = None, reweight_epoch: int | None = None) -> None:
        super().__init__()
        if class_weights is None and reweight_epoch is not None:
            raise InvalidInput(
                f"`reweight_epoch` ({reweight_epoch}) has no effect without class weights: set them, or leave it None."
            )
        if class_weights is not None and not bool((class_weights > 0).all()):
            raise InvalidInput(f"`class_weights` must be positive, but the smallest is {class_weights.min().item()}.")
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.reweight_epoch = reweight_epoch
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch (0-based) is being trained; call it at the start of each."""
        self.epoch = epoch

    def weights_now(self, logits: Float[Tensor, "n k"]) -> Float[Tensor, "k"] | None:
        """The class weights, in the dtype of the logits, if this epoch uses them."""
        weights = self.class_weights
        if weights is None or self.epoch < (self.reweight_epoch or 0):
            return None
        _check_classes("class_weights", weights, logits)
        return weights.to(logits.dtype)


class CrossEntropy(Criterion):
    """Cross-entropy with label smoothing; takes labels or class probabilities (mixup, cutmix).

    For labels the mean over the samples is ``torch.nn.CrossEntropyLoss``. For probabilities torch divides the weighted
    sum by ``N``; we divide by the samples' mean weight, so that a one-hot target and its label have one loss.

    Args:
        label_smoothing: part of the target spread evenly over all classes, 0..1. DeiT: 0.1.
        class_weights: see :class:`Criterion`.
        reweight_epoch: see :class:`Criterion`.

    >>> logits, target = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
    >>> CrossEntropy()(logits, target)
    tensor([0.1269, 1.3133])
    """

    def __init__(
        self,
        *,
        label_smoothing: float = 0.0,
        class_weights: Float[Tensor, "k"] | None = None,
        reweight_epoch: int | None = None,
    ) -> None:
        super().__init__(class_weights=class_weights, reweight_epoch=reweight_epoch)
        if not 0 <= label_smoothing <= 1:
            raise InvalidInput(f"`label_smoothing` ({label_smoothing}) must be in 0..1.")
        self.label_smoothing = label_smoothing

    def forward(self, logits: Float[Tensor, "n k"], target: Shaped[Tensor, "..."]) -> Float[Tensor, "n"]:
        """Losses ``[N]``; raises InvalidInput if the target does not fit the logits."""
        check_labels(logits, target)
        logits = full(logits)
        return _cross_entropy(logits, target, self.weights_now(logits), label_smoothing=self.label_smoothing)


class BalancedSoftmax(Criterion):
    """Cross-entropy after adding ``log n_j`` to the logits, in training only.

    So the raw logits learn what the classes would score if all were equally frequent, and evaluation uses them as they
    are: in evaluation mode this is plain cross-entropy.

    Args:
        counts: training images ``n_j`` of each class ``[K]``, all positive.
        class_weights: see :class:`Criterion`; the paper uses none.
        reweight_epoch: see :class:`Criterion`.

    Source: Ren et al., Balanced Meta-Softmax, NeurIPS 2020, arXiv:2007.10740, equations 3 and 4.

    >>> criterion = BalancedSoftmax(counts=torch.tensor([75, 25]))
    >>> criterion(torch.zeros(2, 2), torch.tensor([0, 1])).exp()  # 1 / prior of the true class
    tensor([1.3333, 4.0000])
    """

    log_counts: Tensor

    def __init__(
        self,
        *,
        counts: Int64[Tensor, "k"],
        class_weights: Float[Tensor, "k"] | None = None,
        reweight_epoch: int | None = None,
    ) -> None:
        super().__init__(class_weights=class_weights, reweight_epoch=reweight_epoch)
        check_counts(counts)
        self.register_buffer("log_counts", counts.double().log().float(), persistent=False)

    def forward(self, logits: Float[Tensor, "n k"], target: Shaped[Tensor, "..."]) -> Float[Tensor, "n"]:
        """Losses ``[N]``; raises InvalidInput if the target or the counts do not fit the logits."""
        check_labels(logits, target)
        _check_classes("counts", self.log_counts, logits)
        logits = full(logits)
        adjusted = logits + self.log_counts if self.training else logits
        return _cross_entropy(adjusted, target, self.weights_now(logits))


class LDAM(Criterion):
    """Cross-entropy with a margin taken off the true class's logit, wider for rarer classes.

    The margins are proportional to ``n_j ** (-1/4)``, the largest being ``max_margin``. They are in units of the
    cosine; the logits are cosines times the head's scale, so ``scale`` times the margin is taken off. The paper's code
    applies the scale in the loss; here the head does, so that all criteria take the same logits. Soft targets are
    refused, because the margin belongs to one true class. Margins are there in training only, so that the loss on
    validation data compares with other criteria's; the paper's code keeps them in evaluation.

    Args:
        counts: training images ``n_j`` of each class ``[K]``, all positive.
        max_margin: margin of the rarest class, in units of the cosine. Paper: 0.5.
        scale: the head's scale, so that margins are in units of the cosine. Paper's code: 30.
        class_weights: see :class:`Criterion`. LDAM-DRW: "effective-number".
        reweight_epoch: see :class:`Criterion`. LDAM-DRW, 200 epochs: 160.

    Source: Cao et al., Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss, NeurIPS 2019,
    arXiv:1906.07413, equation 13; deferred re-weighting: algorithm 1.

    >>> criterion = LDAM(counts=torch.tensor([1600, 100]))
    >>> criterion.margins
    tensor([0.2500, 0.5000])
    >>> criterion(30 * torch.tensor([[0.25, 0.0]]), torch.tensor([0]))  # 0.25 - 0.25 against 0: log 2
    tensor([0.6931])
    """

    margins: Tensor

    def __init__(
        self,
        *,
        counts: Int64[Tensor, "k"],
        max_margin: float = 0.5,
        scale: float = 30.0,
        class_weights: Float[Tensor, "k"] | None = None,
        reweight_epoch: int | None = None,
    ) -> None:
        super().__init__(class_weights=class_weights, reweight_epoch=reweight_epoch)
        check_counts(counts)
        if max_margin < 0 or scale <= 0:
            raise InvalidInput(f"`max_margin` ({max_margin}) must not be negative and `scale` ({scale}) be above 0.")
        width = counts.double() ** -0.25  # equation 13's exponent
        self.register_buffer("margins", (max_margin * width / width.max()).float(), persistent=False)
        self.scale = scale

    def forward(self, logits: Float[Tensor, "n k"], target: Shaped[Tensor, "..."]) -> Float[Tensor, "n"]:
        """Losses ``[N]``; raises InvalidInput if target or counts do not fit the logits, or the target is soft."""
        check_labels(logits, target, soft=False)
        _check_classes("counts", self.margins, logits)
        logits = full(logits)
        if self.training:
            margin = self.scale * self.margins.to(logits.dtype)[target]  # [N]
            logits = logits.scatter_add(1, target[:, None], -margin[:, None])
        return _cross_entropy(logits, target, self.weights_now(logits))


class FocalLoss(Criterion):
    """Cross-entropy times ``(1 - p) ** gamma``, which takes weight off samples that are already right.

    The paper has two classes and a sigmoid; we take ``p`` from the softmax, and class weights are the paper's alpha.
    Class probabilities as target: the focal terms of the classes, weighted with them.

    Args:
        gamma: exponent; 0 gives cross-entropy. Paper: 2.
        class_weights: see :class:`Criterion`.
        reweight_epoch: see :class:`Criterion`.

    Source: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, arXiv:1708.02002, equations 4 and 5.

    >>> FocalLoss(gamma=2.0)(torch.zeros(1, 2), torch.tensor([1]))  # (1 - 1/2) ** 2 * log 2
    tensor([0.1733])
    """

    def __init__(
        self,
        *,
        gamma: float = 2.0,
        class_weights: Float[Tensor, "k"] | None = None,
        reweight_epoch: int | None = None,
    ) -> None:
        super().__init__(class_weights=class_weights, reweight_epoch=reweight_epoch)
        if gamma < 0:
            raise InvalidInput(f"`gamma` ({gamma}) must not be negative.")
        self.gamma = gamma

    def forward(self, logits: Float[Tensor, "n k"], target: Shaped[Tensor, "..."]) -> Float[Tensor, "n"]:
        """Losses ``[N]``; raises InvalidInput if the target does not fit the logits."""
        check_labels(logits, target)
        logits = full(logits)
        log_p = logits.log_softmax(1)
        # 1 - p = 0 has no gradient for a gamma below 1; the smallest normal number stands in for it
        rest = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
        terms = -(rest**self.gamma) * log_p  # [N, K]: the loss if that class were the true one
        weights = self.weights_now(logits)
        if weights is not None:
            terms = terms * weights
        losses = _expect(terms, target)  # [N]
        return losses if weights is None else losses / _mean_weight(weights, target)


class BinaryCrossEntropy(Criterion):
    """Multi-label: sigmoid cross-entropy of every class, averaged over the classes.

    The mean over the samples is ``torch.nn.BCEWithLogitsLoss``. Class weights make the mean over the classes a weighted
    one.

    Args:
        class_weights: see :class:`Criterion`.
        reweight_epoch: see :class:`Criterion`.

    >>> BinaryCrossEntropy()(torch.zeros(2, 3), torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))
    tensor([0.6931, 0.6931])
    """

    def forward(self, logits: Float[Tensor, "n k"], target: Shaped[Tensor, "..."]) -> Float[Tensor, "n"]:
        """Losses ``[N]``; raises InvalidInput unless the target is floating-point ``[N, K]``."""
        check_multi_hot(logits, target)
        logits = full(logits)
        losses = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")  # [N, K]
        weights = self.weights_now(logits)
        return losses.mean(1) if weights is None else (losses * weights).sum(1) / weights.sum()


class SoftmaxBinaryCrossEntropy(Criterion):
    """Binary cross-entropy of the softmax's probabilities, averaged over the classes: "is it this class?" for each.

    What code of weight balancing (and of the PyTorch port of the class-balanced loss that it uses) calls its softmax
    loss. It is smaller than cross-entropy by about the number of classes, so weight decay counts for more beside it.
    Class weights multiply the samples' losses and are **not** divided by the mean weight of the batch, as there.

    Args:
        class_weights: see :class:`Criterion`; there: effective-number.
        reweight_epoch: see :class:`Criterion`.

    Source: the code of Alshammari et al., CVPR 2022, ShadeAlsha/LTR-weight-balancing at 11f438a; no paper states it.

    >>> SoftmaxBinaryCrossEntropy()(torch.zeros(1, 2), torch.tensor([1]))  # -(log 1/2 + log 1/2) / 2
    tensor([0.6931])
    """

    def forward(self, logits: Float[Tensor, "n k"], target: Shaped[Tensor, "..."]) -> Float[Tensor, "n"]:
        """Losses ``[N]``; raises InvalidInput if the target does not fit the logits."""
        check_labels(logits, target)
        log_p = full(logits).log_softmax(1)
        # 1 - p by expm1, which keeps its digits; its logarithm has no gradient at 0, where the floor takes over
        rest = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
        log_p, log_rest = log_p.clamp_min(-LARGEST_LOG), rest.log().clamp_min(-LARGEST_LOG)
        terms = -(log_p + log_rest.sum(1, keepdim=True) - log_rest) / logits.shape[1]  # [N, K]: if that were the class
        weights = self.weights_now(log_p)
        return _expect(terms if weights is None else terms * weights, target)


def _cross_entropy(
    logits: Tensor, target: Tensor, weights: Tensor | None, *, label_smoothing: float = 0.0
) -> Float[Tensor, "n"]:
    if target.is_floating_point():
        target = target.to(logits.dtype)
    losses = F.cross_entropy(logits, target, weights, label_smoothing=label_smoothing, reduction="none")
    return losses if weights is None else losses / _mean_weight(weights, target)


def _expect(terms: Tensor, target: Tensor) -> Float[Tensor, "n"]:
    if target.is_floating_point():
        return (terms * target.to(terms.dtype)).sum(1)
    return terms.gather(1, target[:, None])[:, 0]


def _mean_weight(weights: Tensor, target: Tensor) -> Float[Tensor, ""]:
    if target.is_floating_point():
        return (target.to(weights.dtype) * weights).sum(1).mean()  # not a matmul, which autocast would do in half
    return weights[target].mean()


def _check_classes(name: str, values: Tensor, logits: Tensor) -> None:
    if len(values) != logits.shape[1]:
        raise InvalidInput(f"`{name}` has {len(values)} classes but `logits` has {logits.shape[1]}.")
