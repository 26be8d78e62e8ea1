"""Post-hoc logit adjustment: take class bias out of scores, with a strength chosen on the validation part.

Letters: ``N`` images, ``K`` classes, ``T`` strengths. ``counts`` has the axis ``c`` in annotations, although it must be
``K`` long: counts of another data set are answered in a sentence.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from setwise.errors import InvalidInput

__all__ = ["TAUS", "adjust", "choose_tau", "predictions_over_taus"]

TAUS = tuple(step / 10 for step in range(-5, 26))
"""The grid of strengths, -0.5 to 2.5 in steps of 0.1; 0 (raw scores) and 1 (the paper's default) are exactly in it."""

CHUNK = 1 << 20  # numbers in a block of rows: 4 MiB, which stays in the cache while all strengths pass over it
SAME = 12  # decimals up to which two balanced accuracies are one: the order of a sum must not decide


def adjust(logits: Float[Tensor, "n k"], counts: Int64[Tensor, "c"], tau: float) -> Float[Tensor, "n k"]:
    """Subtract ``tau`` times the log prior of the classes.

    Args:
        logits: class scores on the scale of log-probabilities ``[N, K]``.
        counts: training images of each class ``[K]``, all positive; the prior is ``counts / counts.sum()``.
        tau: strength; 0 changes nothing, 1 makes well calibrated scores those of equally frequent classes.

    Returns:
        ``[N, K]``, float32 or the wider dtype of ``logits``.

    Raises:
        InvalidInput: if a class has no training image.

    Source: Menon et al., Long-Tail Learning via Logit Adjustment, ICLR 2021, arXiv:2007.07314, the post-hoc form.

    >>> adjust(torch.zeros(1, 2), torch.tensor([75, 25]), 1.0).exp()
    tensor([[1.3333, 4.0000]])
    """
    log_prior = _log_prior(logits, counts)
    return logits.to(log_prior.dtype) - tau * log_prior


def choose_tau(
    logits: Float[Tensor, "n k"],
    target: Int64[Tensor, "n"],
    counts: Int64[Tensor, "c"],
    *,
    taus: Sequence[float] = TAUS,
) -> float:
    """The strength with the best balanced accuracy, to be called with scores of the validation part.

    Strengths of equal balanced accuracy are told apart by the lower class-balanced negative log-likelihood, then by the
    order of ``taus``.

    Args:
        logits: class scores of the validation images ``[N, K]``.
        target: their labels ``[N]``; classes that are not among them are left out of both means.
        counts: training images of each class ``[K]``, all positive.
        taus: strengths to choose from.

    Returns:
        One of ``taus``.

    Raises:
        InvalidInput: if there are no images or strengths, or a class has no training image.

    >>> logits = torch.tensor([[2.0, 0.0], [1.0, 0.0]])  # the second image is right once 1 - tau * log 9 < 0
    >>> choose_tau(logits, torch.tensor([0, 1]), torch.tensor([90, 10]))
    0.7
    """
    if len(target) == 0 or len(taus) == 0:
        raise InvalidInput("Choosing tau needs at least one validation image and one strength.")
    weight = 1 / target.bincount(minlength=len(counts)).double()[target]  # [N]: the same in total for every class
    correct = predictions_over_taus(logits, counts, taus) == target  # [T, N]
    balanced = [round((row * weight).sum().item(), SAME) for row in correct]
    best = [tau for tau, value in zip(taus, balanced, strict=True) if value == max(balanced)]
    if len(best) == 1:
        return best[0]
    return min(best, key=lambda tau: _negative_log_likelihood(logits, target, counts, tau, weight))


def predictions_over_taus(
    logits: Float[Tensor, "n k"], counts: Int64[Tensor, "c"], taus: Sequence[float] = TAUS
) -> Int64[Tensor, "t n"]:
    """The predicted classes at every strength ``[T, N]``, for the curve of many- against few-shot accuracy.

    >>> predictions_over_taus(torch.tensor([[1.0, 0.0]]), torch.tensor([90, 10]), (0.0, 1.0))
    tensor([[0],
            [1]])
    """
    log_prior = _log_prior(logits, counts)
    blocks = [
        torch.stack([(block - tau * log_prior).argmax(1) for tau in taus])
        for _, block in _blocks(logits, log_prior.dtype)
    ]
    return torch.cat(blocks, dim=1)


def _negative_log_likelihood(logits: Tensor, target: Tensor, counts: Tensor, tau: float, weight: Tensor) -> float:
    log_prior, total = _log_prior(logits, counts), 0.0
    for rows, block in _blocks(logits, log_prior.dtype):
        losses = torch.nn.functional.cross_entropy(block - tau * log_prior, target[rows], reduction="none")
        total += (losses * weight[rows]).sum().item()
    return total


def _blocks(logits: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    height = max(1, CHUNK // logits.shape[1])
    for start in range(0, len(logits), height):
        rows = slice(start, start + height)
        yield rows, logits[rows].to(dtype)


def _log_prior(logits: Tensor, counts: Tensor) -> Float[Tensor, "k"]:
    if len(counts) != logits.shape[1]:
        raise InvalidInput(f"`counts` has {len(counts)} classes but `logits` has {logits.shape[1]}.")
    if bool((counts <= 0).any()):
        index = int((counts <= 0).nonzero()[0])
        raise InvalidInput(
            f"`counts` must be positive, but class {index} has {int(counts[index])} training images: its prior has no "
            "logarithm. Leave classes without images out."
        )
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return (counts.double() / counts.sum()).log().to(logits.device, dtype)
