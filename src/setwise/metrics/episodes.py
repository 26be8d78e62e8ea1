"""What is said of many few-shot episodes: their mean with its interval, and the mean rank of methods over data sets."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import rankdata

from setwise.errors import InvalidInput

__all__ = ["mean_interval", "mean_rank"]

NORMAL_95 = 1.96
"""Deviations of a normal distribution on either side of its mean that hold 95 %, as the field rounds it."""


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval: 1.96 standard deviations over the root of the number.

    The deviation is the population's (divided by ``n``), as in Meta-Dataset's evaluation. It says how the mean would
    vary over other episodes of the same trained network and classes, not over other trainings.

    Raises:
        InvalidInput: if there is no value.

    >>> mean, half = mean_interval([0.5, 0.7, 0.6, 0.6])
    >>> round(mean, 3), round(half, 3)
    (0.6, 0.069)
    """
    if not len(values):
        raise InvalidInput("There is no episode to take the mean of.")
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(NORMAL_95 * array.std() / math.sqrt(len(array)))


def mean_rank(accuracies: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean over data sets of each method's rank there; 1 is best, shared places share their ranks' mean.

    Args:
        accuracies: method -> data set -> accuracy; a data set counts where every method has it.

    Raises:
        InvalidInput: if no data set is common to all methods.

    Source: Triantafillou et al., Meta-Dataset, ICLR 2020, arXiv:1903.03096; its intervals' overlap is not looked at
    here.

    >>> mean_rank({"a": {"birds": 0.7, "signs": 0.5}, "b": {"birds": 0.6, "signs": 0.5}})
    {'a': 1.25, 'b': 1.75}
    """
    common = sorted(set.intersection(*(set(row) for row in accuracies.values()))) if accuracies else []
    if not common:
        raise InvalidInput("Ranks need at least one data set that every method was evaluated on.")
    table = np.array([[row[data_set] for data_set in common] for row in accuracies.values()])  # [methods, data sets]
    ranks = np.stack([rankdata(-column) for column in table.T], axis=1)
    return dict(zip(accuracies, ranks.mean(1).tolist(), strict=True))
