"""Feature -> class scores: the one classifier that both streams share."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["CosineClassifier", "create_head"]


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
        """Scores in ``-scale .. scale``."""
        return self.scale * F.linear(F.normalize(x), F.normalize(self.weight))


def create_head(name: str, dim: int, num_classes: int, *, scale: float) -> nn.Module:
    """A head by name: features ``[B, dim]`` -> scores ``[B, num_classes]``."""
    return CosineClassifier(dim, num_classes, scale=scale) if name == "cosine" else nn.Linear(dim, num_classes)
