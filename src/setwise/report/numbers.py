"""The numbers of a comparison as data, for whoever wants to draw or test them otherwise."""

import math
from dataclasses import asdict
from typing import Any

from setwise.judge import Comparison, Difference
from setwise.report.literature import reported_of

__all__ = ["comparison_data"]


def comparison_data(comparison: Comparison) -> dict[str, Any]:
    """Everything the report is made of, fractions in 0..1; what is not defined (the interval of one seed) is None."""
    plan = comparison.plan
    return _json(
        {
            "recipe": plan.recipe.name,
            "primary": plan.recipe.primary,
            "seeds": list(plan.seeds),
            "arms": [asdict(arm) for arm in plan.arms],
            "tune": plan.tune,
            "verdict": asdict(comparison.verdict),
            "means": {
                arm: {metric: {"mean": mean, "deviation": deviation} for metric, (mean, deviation) in metrics.items()}
                for arm, metrics in comparison.means.items()
            },
            "primary_difference": _difference(comparison.primary),
            "differences": [_difference(found) for found in comparison.others],
            "classes": [_difference(found) for found in comparison.classes],
            "curves": [asdict(curve) for curve in comparison.curves],
            "reported": [asdict(number) for number in reported_of(plan)],
            "seconds": comparison.seconds,
            "versions": comparison.versions,
            "commit": comparison.commit,
        }
    )


def _difference(found: Difference) -> dict[str, Any]:
    return {
        "metric": found.metric,
        "arm": found.arm,
        "against": found.against,
        **asdict(found.interval),
        "p_holm": found.p_holm,
    }


def _json(value: Any) -> Any:
    """NaN is no JSON."""
    if isinstance(value, dict):
        return {str(name): _json(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_json(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
