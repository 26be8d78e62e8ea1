"""From intervals to words: corrected p values, and the one sentence a comparison ends with."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from setwise.metrics.paired import Interval

__all__ = ["Verdict", "holm", "verdict"]

TOLERANCE = 0.005  # half a percentage point of many-shot accuracy may be paid for a gain


@dataclass(frozen=True)
class Verdict:
    """One word, and the sentence with its numbers in percentage points."""

    word: Literal["gain", "no gain", "loss", "trade-off", "undecided"]
    sentence: str


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """P values corrected for their number, so that the chance of any false finding among them stays below the level.

    Args:
        p: p values of one family by name: what one looks through together; NaN (one seed) is not counted and stays NaN.

    Returns:
        Corrected p values, by name in the order of ``p``: the smallest times ``m``, the next times ``m - 1``, and so
        on, none below its predecessor or above 1.

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 1979.

    >>> holm({"few": 0.01, "many": 0.5, "ece": 0.02})
    {'few': 0.03, 'many': 0.5, 'ece': 0.04}
    """
    corrected = dict(p)
    names = sorted((name for name in p if not math.isnan(p[name])), key=p.__getitem__)
    floor = 0.0
    for rank, name in enumerate(names):
        floor = max(floor, min(1.0, (len(names) - rank) * p[name]))
        corrected[name] = floor
    return corrected


def verdict(
    primary: Interval, many: Interval | None, *, tolerance: float = TOLERANCE, lower_is_better: bool = False
) -> Verdict:
    """Judge a comparison by the interval of its primary metric, fixed before the runs.

    Args:
        primary: difference in the primary metric.
        many: difference in many-shot accuracy; None where there is no such group.
        tolerance: loss of many-shot accuracy that a gain may cost, as a fraction.
        lower_is_better: of the primary metric; see :func:`~setwise.metrics.lower_is_better`. The sentence keeps the
            sign of the difference and says that less is better.

    Returns:
        "gain": the interval is above 0 (below, where less is better) and many-shot accuracy not worse by more than
        ``tolerance``; "trade-off": the same, but many-shot accuracy is worse by more; "no gain": the interval contains
        0; "loss": it is on the other side of 0; "undecided": one seed, which has no interval.

    >>> print(verdict(Interval(0.012, 0.004, 0.02, 0.004, num_seeds=50), None).sentence)
    Gain: +1.2 points (95 % interval +0.4 to +2.0, 50 seeds).
    """
    if math.isnan(primary.low):
        told = "one seed; less is better, and" if lower_is_better else "one seed;"
        return Verdict(
            "undecided", f"Undecided: {_points(primary.estimate)} points from {told} an interval needs two or more."
        )
    numbers = (
        f"{_points(primary.estimate)} points ({100 * primary.confidence:g} % interval {_points(primary.low)} to "
        f"{_points(primary.high)}, {primary.num_seeds} seeds{'; less is better' * lower_is_better})"
    )
    least, most = (-primary.high, -primary.low) if lower_is_better else (primary.low, primary.high)  # of improvement
    if most < 0:
        return Verdict("loss", f"Loss: {numbers}.")
    if least <= 0:
        return Verdict("no gain", f"No gain here: {numbers}; the interval contains 0.")
    if many is None:
        return Verdict("gain", f"Gain: {numbers}.")
    if many.estimate < -tolerance:
        return Verdict(
            "trade-off",
            f"Trade-off, not a gain: {numbers}, but many-shot accuracy is worse by {100 * -many.estimate:.2g} points, "
            f"more than the {100 * tolerance:g} that a gain may cost.",
        )
    return Verdict("gain", f"Gain: {numbers}; many-shot accuracy {_points(many.estimate)} points.")


def _points(fraction: float) -> str:
    """Percentage points with sign, a second decimal for what would be no more than 0.0; zero itself is +0.0."""
    small = 0.005 <= abs(100 * fraction) < 0.05
    return f"{100 * fraction + 0.0:+.2f}" if small else f"{100 * fraction + 0.0:+.1f}"
