"""How a comparison was judged, in sentences that fit the comparison at hand."""

from setwise.judge import Comparison, Plan
from setwise.metrics import lower_is_better
from setwise.metrics.judgement import TOLERANCE
from setwise.report.wording import ADJUSTED, names_of, selected, selecting_part, selection_warning

__all__ = ["how_judged"]


def how_judged(comparison: Comparison) -> list[str]:
    """Six points: what was estimated, against what, how, and when it is called a gain."""
    primary = comparison.plan.recipe.primary
    name = names_of([primary])(primary)
    number = len(comparison.plan.seeds)
    return [
        f"The question is what samples learned from each other: the difference related - control in {name}, the one "
        f"primary metric, fixed before the first run together with the number of seeds ({number}).",
        "The control has the parameters and the two streams of the related arm, but each of its samples may attend to "
        f"itself alone{_but_for_tuned(comparison.plan)}. By design its attention has no dropout and its query and key "
        "weights are not trained, because attention to a single sample has one weight of one. related - plain also "
        "holds what the additional parameters and the second stream bring.",
        _class_bias(comparison),
        _pairing(number),
        "The p value of the primary metric stands as it is; those of all other metrics and pairs of arms are corrected "
        "together for their number (Holm), so that looking at many of them does not make a finding. Classes are a "
        "family of their own, corrected apart from these.",
        f"It is called a gain only if the primary interval lies {_gain(primary)} and many-shot accuracy is not worse "
        f"by more than {100 * TOLERANCE:.1f} points.",
    ]


def _but_for_tuned(plan: Plan) -> str:
    """Fields in which arms differ because each was tuned."""
    fields = dict.fromkeys(field for arm in plan.arms for field in arm.settings if field in plan.tune)
    differ = [field for field in fields if len({str(arm.settings.get(field)) for arm in plan.arms}) > 1]
    return f"; the arms differ as well in what was tuned for each ({', '.join(differ)})" if differ else ""


def _gain(primary: str) -> str:
    return "below zero (less is better)" if lower_is_better(primary) else "above zero"


def _class_bias(comparison: Comparison) -> str:
    primary = comparison.plan.recipe.primary
    if not comparison.curves:
        return "Scores are compared as they are: class bias is not adjusted for where an image may have several labels."
    means = {curve.arm: sum(curve.chosen) / len(curve.chosen) for curve in comparison.curves}
    part = selecting_part(comparison.plan.recipe)
    strengths = ", ".join(f"{arm} {tau:.2f}" for arm, tau in means.items())
    first = "Class bias is taken out first" if primary.startswith(ADJUSTED) else "Beside raw scores stand adjusted ones"
    return (
        f"{first}: post-hoc logit adjustment with the strength τ that the {part} part of each run prefers (mean "
        f"over seeds: {strengths}); {_chosen_by_test(comparison)}."
    )


def _chosen_by_test(comparison: Comparison) -> str:
    if selection_warning(comparison.plan.recipe):
        return f"{selected(comparison.plan.recipe)} selected on the test part, which makes its numbers too good"
    return "the test part chooses nothing"


def _pairing(number: int) -> str:
    shared = "The arms of a seed share initial weights, order of the data and augmentation, so differences are paired"
    if number == 1:
        return f"{shared}; one seed gives no interval, because it cannot tell an effect from the luck of a run."
    return (
        f"{shared}; their 95 % intervals come from a bootstrap over seeds and test images (over seeds alone "
        "for what is no mean over images: calibration error, average precision). p is the smallest level at which the "
        "interval leaves zero out; where too few resamples lie beyond zero to count, it goes on along a tail of "
        "Student's t fitted to them."
    )
