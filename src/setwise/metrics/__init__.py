"""How good predictions are, by groups of classes; whether arms differ; what a map is worth; who acts on whom."""

from setwise.metrics.classification import (
    classification_metrics,
    confusion_matrix,
    lower_is_better,
    multilabel_metrics,
    per_class_accuracy,
)
from setwise.metrics.episodes import mean_interval, mean_rank
from setwise.metrics.faithfulness import area, blurred, deletion, insertion
from setwise.metrics.groups import by_count, by_rank
from setwise.metrics.influence import Influence, cross_gradients, influence
from setwise.metrics.judgement import Verdict, holm, verdict
from setwise.metrics.localisation import box_mask, energy_inside, points_inside, to_pixels
from setwise.metrics.logit_adjustment import TAUS, adjust, choose_tau, predictions_over_taus
from setwise.metrics.neighbours import Collapse, collapse, nearest
from setwise.metrics.paired import (
    Interval,
    contributions,
    instance_contributions,
    paired_interval,
    seed_interval,
)

__all__ = [
    "TAUS",
    "Collapse",
    "Influence",
    "Interval",
    "Verdict",
    "adjust",
    "area",
    "blurred",
    "box_mask",
    "by_count",
    "by_rank",
    "choose_tau",
    "classification_metrics",
    "collapse",
    "confusion_matrix",
    "contributions",
    "cross_gradients",
    "deletion",
    "energy_inside",
    "holm",
    "influence",
    "insertion",
    "instance_contributions",
    "lower_is_better",
    "mean_interval",
    "mean_rank",
    "multilabel_metrics",
    "nearest",
    "paired_interval",
    "per_class_accuracy",
    "points_inside",
    "predictions_over_taus",
    "seed_interval",
    "to_pixels",
    "verdict",
]
