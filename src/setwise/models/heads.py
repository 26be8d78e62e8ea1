"""Feature -> class scores: the one classifier that both streams share."""

from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from setwise.errors import InvalidInput
from setwise.models.decoupled import LearnableScale, TauNormalized
from setwise.models.expert_routing import ExpertAssignment, RoutedExperts
from setwise.models.multi_expert import ExpertHead
from setwise.models.patchconvnet import PatchConvNet
from setwise.nn import AttentionPool, PerClassLinear

__all__ = ["CosineClassifier", "create_head", "has_class_queries", "without_classifier"]


class CosineClassifier(nn.Module):
    """Cosine between feature and class weight, times a scale: no class wins by the length of its weight.

    Args:
        dim: width ``C`` of the features.
        num_classes: classes ``K``.
        scale: factor on the cosine. LDAM and RIDE: 30.

    Source: Gidaris and Komodakis, Dynamic Few-Shot Visual Learning, CVPR 2018, arXiv:1804.09458, section 3.2.

    >>> scores = CosineClassifier(8, 3, scale=30.0)(torch.randn(5, 8))
    >>> scores.shape, bool(scores.abs().max() <= 30)
    (torch.Size([5, 3]), True)
    """

    def __init__(self, dim: int, num_classes: int, *, scale: float = 30.0) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(num_classes, dim))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, x: Float[Tensor, "B C"]) -> Float[Tensor, "B K"]:
        """Scores in ``-scale .. scale``, in float32 under autocast: 30 cosines in bfloat16 go in steps of 0.125."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.weight.dtype)
            return self.scale * F.linear(F.normalize(x), F.normalize(self.weight))


def create_head(
    name: str, dim: int, num_classes: int, *, scale: float, top_k: int = 30, num_experts: int = 1
) -> nn.Module:
    """A head by name: features ``[B, C]``, for "per-class" ``[B, K, C]``, -> scores ``[B, K]``.

    With several experts each has one of its own on its part of the features, see :class:`ExpertHead`; "routed" asks as
    many of their cosine classifiers as an image needs, see :class:`setwise.models.RoutedExperts`.
    """
    if name == "routed":
        experts = create_head("cosine", dim, num_classes, scale=scale, num_experts=num_experts)
        assign = ExpertAssignment(dim // num_experts, num_experts=num_experts, num_classes=num_classes, top_k=top_k)
        return RoutedExperts(cast(ExpertHead, experts), assign)
    if num_experts > 1:
        return ExpertHead(
            lambda: create_head(name, dim // num_experts, num_classes, scale=scale), num_experts=num_experts
        )
    if name == "per-class":
        return PerClassLinear(dim, num_classes)
    if name == "lws":
        return LearnableScale(dim, num_classes)
    if name == "tau":
        return TauNormalized(dim, num_classes)
    return CosineClassifier(dim, num_classes, scale=scale) if name == "cosine" else nn.Linear(dim, num_classes)


def has_class_queries(backbone: nn.Module) -> bool:
    """Whether a network was asked for a query for each class."""
    return isinstance(backbone, PatchConvNet) and backbone.per_class


def without_classifier(backbone: nn.Module) -> nn.Module:
    """Have a network with a query for each class return what each query gathered, ``[B, K, C]``.

    Raises:
        InvalidInput: if it has not these queries.
    """
    pool = getattr(backbone, "pool", None)
    if not has_class_queries(backbone) or not isinstance(pool, AttentionPool):
        raise InvalidInput(
            f"--head.name per-class needs a backbone with a query for each class, which {type(backbone).__name__} has "
            'not: take patchconvnet_s60_multi or its kin, with global_pool "token".'
        )
    backbone.head = nn.Identity()
    return backbone
