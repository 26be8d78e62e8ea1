"""The one door to timm: backbones by name, ours among them.

Importing this module registers with timm what it does not have: ``cifar_resnet32``, ``ride_resnet*``,
``ride_resnext50_32x4d``, ``digits_cnn``, ``patchconvnet_*``.
"""

from setwise.models.backbone import OURS, create_backbone, feature_dim, list_backbones, pretrained_statistics
from setwise.models.checkpoint import create_trained
from setwise.models.cifar_resnet import CifarResNet
from setwise.models.class_maps import cam, grad_cam
from setwise.models.decoupled import (
    LearnableScale,
    TauNormalized,
    choose_exponent,
    limit_norm,
    norm_between,
    tau_normalize,
)
from setwise.models.digits_cnn import DigitsCNN
from setwise.models.expert_resnet import MultiExpertResNet
from setwise.models.expert_routing import ExpertAssignment, Routed, RoutedExperts, route
from setwise.models.feature_map import FeatureMap, map_channels
from setwise.models.heads import CosineClassifier, create_head, has_class_queries, without_classifier
from setwise.models.multi_expert import ExpertHead, MultiExpertCifarResNet, split_experts
from setwise.models.patchconvnet import PatchConvNet
from setwise.models.rollout import rollout
from setwise.models.weights import LoadReport, load_classifier, load_weights, read_state

__all__ = [
    "OURS",
    "CifarResNet",
    "CosineClassifier",
    "DigitsCNN",
    "ExpertAssignment",
    "ExpertHead",
    "FeatureMap",
    "LearnableScale",
    "LoadReport",
    "MultiExpertCifarResNet",
    "MultiExpertResNet",
    "PatchConvNet",
    "Routed",
    "RoutedExperts",
    "TauNormalized",
    "cam",
    "choose_exponent",
    "create_backbone",
    "create_head",
    "create_trained",
    "feature_dim",
    "grad_cam",
    "has_class_queries",
    "limit_norm",
    "list_backbones",
    "load_classifier",
    "load_weights",
    "map_channels",
    "norm_between",
    "pretrained_statistics",
    "read_state",
    "rollout",
    "route",
    "split_experts",
    "tau_normalize",
    "without_classifier",
]
