"""Accuracy over instances, classes and groups of classes; calibration; average precision for several labels.

All metrics are fractions in 0..1. torchmetrics is imported by the functions that use it, because it takes longer to
import than torch itself and the statistics of a comparison need neither.

Letters: ``N`` images, ``K`` classes.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Float64, Int64, Shaped
from torch import Tensor

from setwise.errors import InvalidInput

__all__ = [
    "classification_metrics",
    "confusion_matrix",
    "lower_is_better",
    "multilabel_metrics",
    "per_class_accuracy",
]

LESS_IS_BETTER = ("ece", "adjusted_ece", "experts_used")
"""Metrics of what is wrong, or what it costs; all others count what is right."""

NUM_BINS = 15  # Guo et al., On Calibration of Modern Neural Networks, ICML 2017, arXiv:1706.04599, section 5


def lower_is_better(name: str) -> bool:
    """Whether less of a metric is better: the one place that knows the direction of each.

    >>> lower_is_better("adjusted_ece"), lower_is_better("balanced_accuracy")
    (True, False)
    """
    return name in LESS_IS_BETTER


def classification_metrics(
    scores: Float[Tensor, "n k"], target: Int64[Tensor, "n"], *, groups: Mapping[str, Bool[Tensor, "k"]]
) -> dict[str, float]:
    """Metrics of one label per image, flat.

    Args:
        scores: class scores on the scale of log-probabilities ``[N, K]``; the highest is the prediction, their softmax
            the confidence.
        target: labels ``[N]``.
        groups: groups of classes by name, from :func:`~setwise.metrics.by_count` or :func:`~setwise.metrics.by_rank`.

    Returns:
        "accuracy" over images; "balanced_accuracy", the mean of the accuracies of the classes that are in ``target``;
        one value for each group, the same mean over its classes, absent where none of them is in ``target``; "ece", the
        expected calibration error of the top label in 15 bins of equal width.

    Raises:
        InvalidInput: if there are no images, a score is not a number, or a label is out of range.

    >>> scores = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    >>> groups = {"many": torch.tensor([True, False]), "few": torch.tensor([False, True])}
    >>> metrics = classification_metrics(scores, torch.tensor([0, 0, 0, 1]), groups=groups)
    >>> {name: round(value, 4) for name, value in metrics.items()}
    {'accuracy': 0.5, 'balanced_accuracy': 0.3333, 'many': 0.6667, 'few': 0.0, 'ece': 0.3835}
    """
    _check(scores, target)
    scores, target = scores.cpu(), target.cpu()  # Apple's GPUs have no float64
    accuracies = per_class_accuracy(scores, target)
    metrics = {
        "accuracy": (scores.argmax(1) == target).double().mean().item(),
        "balanced_accuracy": accuracies.nanmean().item(),
    }
    return metrics | _by_group(accuracies, groups) | {"ece": _calibration_error(scores, target)}


def per_class_accuracy(scores: Float[Tensor, "n k"], target: Int64[Tensor, "n"]) -> Float64[Tensor, "k"]:
    """Accuracy of every class ``[K]``, NaN for a class that is not in ``target``.

    >>> per_class_accuracy(torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), torch.tensor([0, 0]))
    tensor([0.5000,    nan,    nan], dtype=torch.float64)
    """
    _check(scores, target)
    # two counts instead of torchmetrics' K x K matrix, which for iNaturalist's 8,142 classes takes half a gigabyte
    num_classes = scores.shape[1]
    correct = target[scores.argmax(1) == target].bincount(minlength=num_classes)
    return correct.double() / target.bincount(minlength=num_classes)


def confusion_matrix(scores: Float[Tensor, "n k"], target: Int64[Tensor, "n"]) -> Int64[Tensor, "k k"]:
    """Number of images by true class (row) and predicted class (column), ``[K, K]``.

    >>> confusion_matrix(torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1, 1]))
    tensor([[1, 0],
            [1, 1]])
    """
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    _check(scores, target)
    return multiclass_confusion_matrix(scores.argmax(1), target, num_classes=scores.shape[1], validate_args=False)


def multilabel_metrics(
    scores: Float[Tensor, "n k"], target: Shaped[Tensor, "n k"], *, groups: Mapping[str, Bool[Tensor, "k"]]
) -> dict[str, float]:
    """Metrics of several labels per image, flat.

    Args:
        scores: class scores ``[N, K]``; only their order within a class matters.
        target: multi-hot, 0 and 1 of any dtype ``[N, K]``.
        groups: groups of classes by name, as for :func:`classification_metrics`.

    Returns:
        "mean_average_precision" over the classes that have a positive image, and one value for each group, the same
        mean over its classes, absent where none of them has one.

    Raises:
        InvalidInput: if no class has a positive image, a score is not a number, or the target is not 0 and 1.

    >>> scores, target = torch.tensor([[3.0], [2.0], [1.0]]), torch.tensor([[1], [0], [1]])
    >>> round(multilabel_metrics(scores, target, groups={})["mean_average_precision"], 4)  # (1/1 + 2/3) / 2
    0.8333
    """
    _check_scores(scores)
    if not bool(((target == 0) | (target == 1)).all()):
        raise InvalidInput("`target` must be multi-hot, only 0 and 1; average precision has no soft labels.")
    precisions = torch.tensor(
        [_average_precision(scores[:, c], target[:, c]) for c in range(scores.shape[1])], dtype=torch.float64
    )
    if bool(precisions.isnan().all()):
        raise InvalidInput("No class has a positive image in `target`, so there is no average precision.")
    return {"mean_average_precision": precisions.nanmean().item()} | _by_group(precisions, groups)


def _by_group(values: Float64[Tensor, "k"], groups: Mapping[str, Bool[Tensor, "k"]]) -> dict[str, float]:
    present = ~values.isnan()
    members = {name: group.to(values.device) & present for name, group in groups.items()}
    return {name: values[member].mean().item() for name, member in members.items() if bool(member.any())}


def _calibration_error(scores: Tensor, target: Tensor) -> float:
    from torchmetrics.functional.classification import multiclass_calibration_error

    # Rounding may leave a probability just above 1; torchmetrics would then take all of them for logits. It would put a
    # 1 into a bin of its own, so the largest is the float32 below.
    probabilities = scores.double().softmax(1).clamp(0, 1 - 2**-24)
    error = multiclass_calibration_error(
        probabilities, target, num_classes=scores.shape[1], n_bins=NUM_BINS, norm="l1", validate_args=False
    )
    return error.item()


def _average_precision(scores: Float[Tensor, "n"], target: Shaped[Tensor, "n"]) -> float:
    from torchmetrics.functional.classification import binary_average_precision

    if not bool(target.any()):
        return torch.nan
    # Ranks in 0..1 keep order and ties; torchmetrics would squash scores by a sigmoid, which makes large ones equal.
    _, rank = scores.unique(return_inverse=True)
    return binary_average_precision(rank.double() / len(rank), target.long(), validate_args=False).item()


def _check(scores: Tensor, target: Tensor) -> None:
    _check_scores(scores)
    low, high, num_classes = int(target.min()), int(target.max()), scores.shape[1]
    if low < 0 or high >= num_classes:
        raise InvalidInput(
            f"The label {low if low < 0 else high} is out of range: `scores` has {num_classes} classes, so labels run "
            f"from 0 to {num_classes - 1}."
        )


def _check_scores(scores: Tensor) -> None:
    if len(scores) == 0:
        raise InvalidInput("`scores` has no rows: there is no metric of no images.")
    bad = int(scores.isnan().any(1).sum())
    if bad:
        raise InvalidInput(
            f"`scores` is NaN for {bad} of {len(scores)} images: the training has diverged. A lower learning rate, "
            "longer warm-up or gradient clipping may keep it from doing so."
        )
