"""Contrastive losses: two views against all others, and views together with class centres.

Letters: ``N`` samples, ``M`` keys and past keys, ``D`` width of the projected features, ``K`` classes.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from setwise.errors import InvalidInput
from setwise.losses.long_tailed import BalancedSoftmax
from setwise.losses.targets import check_counts, check_labels, full
from setwise.nn import streams

__all__ = ["PaCo", "nt_xent", "parametric_contrastive"]

PRIOR_FLOOR = 1e-9  # added to a class's part of the training images before the logarithm (PaCo's code)


def nt_xent(
    one: Float[Tensor, "n d"], other: Float[Tensor, "m d"], *, temperature: float = 0.5
) -> Float[Tensor, "two_n"]:
    """Cross-entropy of finding a sample's other view among all other views of the batch, by cosine over temperature.

    Args:
        one: projected features of one view of each sample ``[N, D]``; any length, they are normalised here.
        other: of the other view, in the same order.
        temperature: the cosines are divided by it. Paper: 0.5 on CIFAR, 0.1 on ImageNet.

    Returns:
        ``[2N]``: the views of ``one``, then those of ``other``; their mean is the paper's loss.

    Raises:
        InvalidInput: if the views do not pair up, there is no sample, or the temperature is not above 0.

    Source: Chen et al., SimCLR, ICML 2020, arXiv:2002.05709, equation 1 and algorithm 1.

    >>> views = torch.eye(2)
    >>> nt_xent(views, views, temperature=1.0)  # 1 against 0 and 0: log(e + 2) - 1
    tensor([0.5514, 0.5514, 0.5514, 0.5514])
    """
    if one.shape != other.shape or not len(one):
        raise InvalidInput(
            f"Every sample has two views: `one` is {list(one.shape)} and `other` {list(other.shape)}, but both must be "
            "[N, D] of at least one sample."
        )
    _check_above_zero(temperature=temperature)
    views = F.normalize(torch.cat([full(one), full(other)]))
    with torch.autocast(views.device.type, enabled=False):  # cosines over 0.1 lose too much in half precision
        similarity = views @ views.T / temperature  # [2N, 2N]
    similarity = similarity.masked_fill(_itself(similarity), -torch.inf)
    partner = torch.arange(len(views), device=views.device).roll(len(one))
    return F.cross_entropy(similarity, partner, reduction="none")


def parametric_contrastive(
    class_logits: Float[Tensor, "n k"],
    query: Float[Tensor, "n d"],
    others: Float[Tensor, "m d"],
    target: Int64[Tensor, "n"],
    others_target: Int64[Tensor, "m"],
    *,
    counts: Int64[Tensor, "c"],
    temperature: float,
    alpha: float,
    beta: float = 1.0,
    gamma: float = 1.0,
    prior_temperature: float = 1.0,
) -> Float[Tensor, "n"]:
    """PaCo's loss: each sample against class centres, the other samples, their keys and past keys, all in one softmax.

    The logits of a sample are ``(class_logits + log prior) / prior_temperature`` for the centres and
    ``query . feature / temperature`` for the features of batch, keys and queue, without itself. Its loss is minus the
    weighted mean log-probability over its own centre, of weight ``beta``, and all features of its class, of weight
    ``alpha`` each; in the denominator features count ``gamma`` times.

    With a relation the classifier has two streams and the keys one: call it once for each stream's ``class_logits``,
    as :class:`PaCo` does. Nobody published code of PaCo with BatchFormer, so this is our choice.

    Args:
        class_logits: scores of the classifier, the learned centres, on the pooled features ``[N, K]``.
        query: projected features of the batch ``[N, D]``, of length 1.
        others: projected features of the momentum encoder's keys for the batch and of the queue ``[M, D]``, of length
            1; they get no gradient.
        target: labels of the batch ``[N]``.
        others_target: labels of the keys and of the queue ``[M]``.
        counts: training images of each class ``[K]``.
        temperature: of the features. Paper's code: 0.2 on ImageNet-LT (ResNet-50), 0.05 on CIFAR-100-LT.
        alpha: weight of a feature of the same class. Paper's code: 0.05, CIFAR 0.01.
        beta: weight of the own centre. Paper's code: 1.
        gamma: factor of the features in the denominator. Paper's code: 1.
        prior_temperature: of the centres. Paper's code: 1.

    Returns:
        ``[N]``; their mean is the loss.

    Raises:
        InvalidInput: for rows, labels or counts that do not fit, or weights and temperatures out of range.

    Source: Cui et al., Parametric Contrastive Learning, ICCV 2021, arXiv:2107.12028; the form of the official code.

    >>> unit, label = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    >>> options = {"counts": torch.tensor([1, 1]), "temperature": 1.0, "alpha": 0.5}
    >>> parametric_contrastive(torch.zeros(1, 2), unit, unit, label, label, **options).shape
    torch.Size([1])
    """
    _check_factors(temperature=temperature, prior_temperature=prior_temperature, beta=beta, alpha=alpha, gamma=gamma)
    _check_rows(class_logits, query, others, target, others_target, counts)
    query, features = full(query), torch.cat([full(query), full(others.detach())])
    centres = _with_prior(class_logits, counts) / prior_temperature  # [N, K]
    contrast = query @ features.T / temperature  # [N, N + M]
    itself = _itself(contrast)
    same = (target[:, None] == torch.cat([target, others_target])) & ~itself
    weights = torch.cat([beta * F.one_hot(target, len(counts)), alpha * same], 1).to(contrast.dtype)
    return -(weights * _log_shares(centres, contrast, itself, gamma)).sum(1) / weights.sum(1)


def _with_prior(class_logits: Tensor, counts: Tensor) -> Float[Tensor, "n k"]:
    """Scores at least in float32, and the logarithm of each class's share of the training images."""
    return full(class_logits) + (counts / counts.sum() + PRIOR_FLOOR).log().to(class_logits.device)


def _log_shares(centres: Tensor, contrast: Tensor, itself: Tensor, gamma: float) -> Float[Tensor, "n every"]:
    """Log-probabilities of centres and features ``[N, K + N + M]``; below the line features count ``gamma`` times."""
    counted = (contrast + torch.tensor(gamma).log().to(contrast)).masked_fill(itself, -torch.inf)
    together = torch.cat([centres, counted], 1).logsumexp(1, keepdim=True)
    return torch.cat([centres, contrast], 1) - together


def _check_factors(*, alpha: float, gamma: float, **above_zero: float) -> None:
    """Refuse negative weights, and temperatures or a weight of the centre that are not above 0."""
    _check_above_zero(**above_zero)
    if alpha < 0 or gamma < 0:
        raise InvalidInput(f"`alpha` ({alpha}) and `gamma` ({gamma}) are weights and must be 0 or more.")


def _check_rows(
    class_logits: Tensor, query: Tensor, others: Tensor, target: Tensor, others_target: Tensor, counts: Tensor
) -> None:
    """Refuse scores, features, labels and counts that do not belong together."""
    if target.is_floating_point():
        raise InvalidInput("PaCo compares labels, and has none in soft targets: switch mixup and cutmix off.")
    check_labels(class_logits, target)
    check_counts(counts)
    if len(counts) != class_logits.shape[1]:
        raise InvalidInput(f"`counts` has {len(counts)} classes but `class_logits` has {class_logits.shape[1]}.")
    if len(query) != len(target) or len(others) != len(others_target) or query.shape[1:] != others.shape[1:]:
        raise InvalidInput(
            f"Features and labels must pair up: `query` is {list(query.shape)} with {len(target)} labels, `others` "
            f"{list(others.shape)} with {len(others_target)}."
        )


class PaCo(BalancedSoftmax):
    """:func:`parametric_contrastive` as a criterion: class scores, and what samples are compared with.

    Called on scores alone, as criteria are, it is what is left of the loss without features: Balanced Softmax. A task
    that has features calls :meth:`contrast`.

    Args:
        counts: training images of each class ``[K]``, all positive.
        temperature: of the features. Paper's code: 0.2 on ImageNet-LT (ResNet-50), 0.05 on CIFAR-100-LT.
        alpha: weight of a feature of the same class against 1 of the own centre. Paper's code: 0.05, CIFAR 0.01.
        class_weights: see :class:`Criterion`; the paper uses none.
        reweight_epoch: see :class:`Criterion`.

    Source: Cui et al., Parametric Contrastive Learning, ICCV 2021, arXiv:2107.12028.

    >>> criterion, label = PaCo(counts=torch.tensor([3, 1])), torch.tensor([0])
    >>> unit = torch.tensor([[1.0, 0.0]])
    >>> criterion.contrast(torch.zeros(2, 2), label, query=unit, others=unit, others_target=label).shape  # two streams
    torch.Size([2])
    """

    def __init__(
        self,
        *,
        counts: Int64[Tensor, "k"],
        temperature: float = 0.2,
        alpha: float = 0.05,
        class_weights: Float[Tensor, "k"] | None = None,
        reweight_epoch: int | None = None,
    ) -> None:
        super().__init__(counts=counts, class_weights=class_weights, reweight_epoch=reweight_epoch)
        _check_above_zero(temperature=temperature)
        if alpha < 0:
            raise InvalidInput(f"`alpha` ({alpha}) is a weight and must be 0 or more.")
        self.counts, self.temperature, self.alpha = counts, temperature, alpha  # counts stay where they are checked

    def contrast(
        self,
        logits: Float[Tensor, "rows k"],
        target: Int64[Tensor, "n"],
        *,
        query: Float[Tensor, "n d"],
        others: Float[Tensor, "m d"],
        others_target: Int64[Tensor, "m"],
    ) -> Float[Tensor, "rows"]:
        """Losses of both streams' scores, each beside the same queries and keys, in float32 or more.

        Args:
            logits: class scores ``[S * N, K]``, plain stream first.
            target: labels of the batch ``[N]``, not doubled.
            query, others, others_target: see :func:`parametric_contrastive`.

        Raises:
            InvalidInput: if rows do not fit.
        """
        plain, related = streams.split(logits, like=target)
        with torch.autocast(logits.device.type, enabled=False):  # cosines over 0.05 lose too much in half precision
            losses = torch.cat(
                [
                    parametric_contrastive(
                        scores,
                        query,
                        others,
                        target,
                        others_target,
                        counts=self.counts,
                        temperature=self.temperature,
                        alpha=self.alpha,
                    )
                    for scores in (plain, related)
                    if scores is not None
                ]
            )
        weights = self.weights_now(losses.new_empty(1, logits.shape[1]))
        if weights is None:
            return losses
        of_rows = weights[streams.tile(target, like=losses)]
        return losses * of_rows / of_rows.mean()


def _itself(table: Tensor) -> Tensor:
    """Where row and column are one sample; columns may go on beyond the rows."""
    return torch.eye(*table.shape, dtype=torch.bool, device=table.device)


def _check_above_zero(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise InvalidInput(f"`{name}` ({value}) must be above 0.")
