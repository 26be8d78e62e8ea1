"""How numbers and names are written, the same in the terminal, the picture and the page."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from setwise.judge import Comparison
from setwise.metrics import Interval, lower_is_better
from setwise.recipes import Recipe
from setwise.recipes.stages import stages

__all__ = [
    "ADJUSTED",
    "P_LEGEND",
    "Names",
    "direction",
    "duration",
    "interval",
    "names_of",
    "ordered",
    "p_value",
    "percent",
    "points",
    "selected",
    "selecting_part",
    "selection_warning",
    "signed",
]

ADJUSTED = "adjusted_"
NOTHING = "–"
ONE_SEED = "one seed"
FINE = 0.05
"""Below this many percentage points one decimal would show nothing but 0.0 or 0.1."""

NAMES = {
    "balanced_accuracy": "balanced accuracy",
    "many": "many-shot",
    "medium": "medium-shot",
    "few": "few-shot",
    "ece": "calibration error",
    "mean_average_precision": "mean average precision",
    "experts_used": "experts asked, of all",
    "accuracy_interval": "half of its 95 % interval over episodes",
}
P_LEGEND = "p: the primary's (related - control) stands as it is, all others are corrected for their number (Holm)."
ORDER = ("mean_average_precision", "balanced_accuracy", "accuracy", "many", "medium", "few", "ece")
"""Of the metrics of one kind: from the whole to its parts."""


@dataclass(frozen=True)
class Names:
    """Names of metrics; "raw" and "adjusted" are told apart where there are both."""

    adjusted: frozenset[str] = frozenset()
    """Metrics that are there after logit adjustment, too."""

    def __call__(self, metric: str) -> str:
        """The metric in words.

        >>> names = Names(frozenset({"adjusted_ece"}))
        >>> names("adjusted_ece"), names("ece"), names("experts_used")
        ('calibration error, adjusted', 'calibration error, raw', 'experts asked, of all')
        """
        name = NAMES.get(metric.removeprefix(ADJUSTED), metric.removeprefix(ADJUSTED).replace("_", " "))
        if metric.startswith(ADJUSTED):
            return f"{name}, adjusted"
        return f"{name}, raw" if ADJUSTED + metric in self.adjusted else name


def names_of(metrics: Iterable[str]) -> Names:
    """Names fit for these metrics."""
    return Names(frozenset(metric for metric in metrics if metric.startswith(ADJUSTED)))


def direction(metrics: Iterable[str]) -> str:
    """Which of the metrics are better when lower, in a sentence; nothing where none is.

    >>> direction(["accuracy", "ece", "adjusted_ece"])
    'Of calibration error less is better.'
    """
    less = [names_of([])(metric.removeprefix(ADJUSTED)) for metric in metrics if lower_is_better(metric)]
    return f"Of {' and '.join(dict.fromkeys(less))} less is better." if less else ""


def ordered(comparison: Comparison) -> list[str]:
    """The metrics that have a difference: the primary, then its kind (adjusted or raw), then the other kind."""
    primary = comparison.plan.recipe.primary
    found = {primary} | {d.metric for d in comparison.others}

    def place(metric: str) -> tuple[bool, bool, int, str]:
        name = metric.removeprefix(ADJUSTED)
        rank = ORDER.index(name) if name in ORDER else len(ORDER)
        return metric != primary, metric.startswith(ADJUSTED) != primary.startswith(ADJUSTED), rank, name

    return sorted(found, key=place)


def selection_warning(recipe: Recipe) -> str:
    """What must stand beside the numbers of what the test part chose; nothing elsewhere."""
    if recipe.select_on != "test":
        return ""
    return f"Warning: {selected(recipe)} selected on the test part, so every number of it is too good."


def selected(recipe: Recipe) -> str:
    """What the selecting part selects, with its verb."""
    chosen = ["weights"] * any(stage.trainer.select != "last" for stage in stages(recipe))
    chosen += ["class weights' exponent"] * (recipe.head.name == "tau") + ["logit adjustment"]
    return f"{', '.join(chosen[:-1])} and {chosen[-1]} were" if len(chosen) > 1 else f"{chosen[0]} was"


def selecting_part(recipe: Recipe) -> str:
    """The part that selects, as it stands in sentences."""
    return "test" if recipe.select_on == "test" else "validation"


def percent(fraction: float | None) -> str:
    """A fraction as percent with one decimal.

    >>> percent(0.7345)
    '73.5'
    """
    return NOTHING if fraction is None or math.isnan(fraction) else f"{100 * fraction:.1f}"


def points(fraction: float) -> str:
    """A difference of fractions in percentage points: sign, one decimal, two where one would show next to nothing.

    >>> points(0.0123), points(-0.0002), points(0.0)
    ('+1.2', '-0.02', '+0.0')
    """
    return signed(100 * fraction)


def signed(value: float) -> str:
    """Percentage points with sign; see :func:`points`."""
    if math.isnan(value):
        return NOTHING
    if abs(value) < 0.005:  # nothing left at two decimals
        return "+0.0"
    return f"{value:+.2f}" if abs(value) < FINE else f"{value:+.1f}"


def interval(found: Interval) -> str:
    """The two ends in percentage points, or that one seed has none.

    >>> interval(Interval(0.01, -0.002, 0.022, 0.1, num_seeds=5))
    '[-0.2, +2.2]'
    """
    return ONE_SEED if math.isnan(found.low) else f"[{points(found.low)}, {points(found.high)}]"


def p_value(p: float) -> str:
    """Three decimals, or below the smallest of them.

    >>> p_value(0.0342), p_value(0.0002)
    ('0.034', '<0.001')
    """
    if math.isnan(p):
        return NOTHING
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever a person would say.

    >>> duration(42), duration(200), duration(9000)
    ('42 s', '3.3 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
