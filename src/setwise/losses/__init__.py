"""Criteria: ``criterion(logits [N, K], target) -> losses [N]``, one loss per sample, all called alike."""

from setwise.losses.assignment import ExpertAssignmentLoss, assignment_loss, assignment_target
from setwise.losses.class_weights import class_weights
from setwise.losses.contrastive import PaCo, nt_xent, parametric_contrastive
from setwise.losses.long_tailed import (
    LDAM,
    BalancedSoftmax,
    BinaryCrossEntropy,
    Criterion,
    CrossEntropy,
    FocalLoss,
    SoftmaxBinaryCrossEntropy,
)
from setwise.losses.mixture import GLMC, mixture_consistency, rare_class_weights
from setwise.losses.ride import RIDE, distillation

__all__ = [
    "CRITERIA",
    "GLMC",
    "LDAM",
    "RIDE",
    "BalancedSoftmax",
    "BinaryCrossEntropy",
    "Criterion",
    "CrossEntropy",
    "ExpertAssignmentLoss",
    "FocalLoss",
    "PaCo",
    "SoftmaxBinaryCrossEntropy",
    "assignment_loss",
    "assignment_target",
    "class_weights",
    "distillation",
    "mixture_consistency",
    "nt_xent",
    "parametric_contrastive",
    "rare_class_weights",
]

CRITERIA: dict[str, type[Criterion]] = {
    "cross-entropy": CrossEntropy,
    "balanced-softmax": BalancedSoftmax,
    "ldam": LDAM,
    "ride": RIDE,
    "expert-assignment": ExpertAssignmentLoss,
    "paco": PaCo,
    "glmc": GLMC,
    "focal": FocalLoss,
    "binary-cross-entropy": BinaryCrossEntropy,
    "softmax-binary": SoftmaxBinaryCrossEntropy,
}
"""Every criterion by its name; each takes ``class_weights`` and ``reweight_epoch``, and what its signature names."""
