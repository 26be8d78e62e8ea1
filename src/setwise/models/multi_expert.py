"""Networks of several experts: one stem, then later stages and a classifier for each expert."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from timm.models import register_model
from torch import Tensor, nn

from setwise.errors import InvalidInput
from setwise.models.cifar_resnet import make_stage
from setwise.models.pooled import PooledNetwork

__all__ = ["ExpertHead", "MultiExpertCifarResNet", "ride_resnet32", "split_experts"]


class MultiExpertCifarResNet(PooledNetwork):
    """ResNet for 32-pixel images with a shared stem and first stage, and a second and third stage for each expert.

    Features of the experts stand side by side, ``[B, E * C]``.

    Args:
        num_experts: ``E``. RIDE: 2 to 4.
        depth: blocks a stage; ResNet-32 has 5.
        width: channels of the shared first stage. Paper: 16.
        expert_widths: channels of each expert's two stages, the second of which is ``C``; None: 1.5 and 3 times
            ``width``, as RIDE reduces them (24 and 48 where ResNet-32 has 32 and 64).
        in_chans: channels of the image.
        num_classes: classes of a linear classifier on all features; 0 returns the features.

    Raises:
        InvalidInput: without an expert.

    Source: Wang et al., RIDE, ICLR 2021, arXiv:2010.01809; widths of the official code.

    >>> MultiExpertCifarResNet(num_experts=3, depth=1, num_classes=0)(torch.randn(2, 3, 32, 32)).shape
    torch.Size([2, 144])
    """

    def __init__(
        self,
        *,
        num_experts: int = 3,
        depth: int = 5,
        width: int = 16,
        expert_widths: tuple[int, int] | None = None,
        in_chans: int = 3,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        if num_experts < 1:
            raise InvalidInput(f"`num_experts` must be at least 1, but it is {num_experts}.")
        first, last = expert_widths or (width * 3 // 2, width * 3)
        self.num_experts = num_experts
        self.num_features = self.head_hidden_size = num_experts * last
        self.conv1 = nn.Conv2d(in_chans, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = make_stage(width, width, depth, stride=1)
        self.experts = nn.ModuleList(
            nn.Sequential(make_stage(width, first, depth, stride=2), make_stage(first, last, depth, stride=2))
            for _ in range(num_experts)
        )
        self.reset_classifier(num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward_features(self, x: Tensor) -> Tensor:
        """The experts' last maps side by side: ``[B, in_chans, H, W]`` -> ``[B, E * C, H / 4, W / 4]``."""
        x = self.layer1(self.bn1(self.conv1(x)).relu())
        maps = []
        for expert in self.experts:
            maps.append(expert(x))  # a loop: TorchScript has no comprehension over modules
        return torch.cat(maps, 1)


class ExpertHead(nn.Module):
    """One classifier an expert: in training the scores of each, in evaluation their mean, which is what ships.

    Args:
        make: makes one expert's classifier, ``[B, C]`` -> ``[B, K]``.
        num_experts: ``E``.

    >>> head = ExpertHead(lambda: nn.Linear(48, 10), num_experts=3)
    >>> head(torch.randn(5, 144)).shape, head.eval()(torch.randn(5, 144)).shape
    (torch.Size([5, 3, 10]), torch.Size([5, 10]))
    """

    def __init__(self, make: Callable[[], nn.Module], *, num_experts: int) -> None:
        super().__init__()
        self.classifiers = nn.ModuleList(make() for _ in range(num_experts))

    def scores(self, x: Float[Tensor, "B experts_C"]) -> Float[Tensor, "B E K"]:
        """Scores of each expert, from features side by side."""
        parts = split_experts(x, num_experts=len(self.classifiers)).unbind(1)
        return torch.stack([classify(part) for classify, part in zip(self.classifiers, parts, strict=True)], 1)

    def forward(self, x: Float[Tensor, "B experts_C"]) -> Float[Tensor, "B *experts K"]:
        """In training ``[B, E, K]``, in evaluation the mean over the experts, ``[B, K]``."""
        scores = self.scores(x)
        return scores if self.training else scores.mean(1)


def split_experts(x: Float[Tensor, "B experts_C"], *, num_experts: int) -> Float[Tensor, "B E C"]:
    """Features side by side -> features by expert.

    Raises:
        InvalidInput: if the width is no multiple of the number of experts.
    """
    if x.shape[1] % num_experts:
        raise InvalidInput(f"Features of width {x.shape[1]} cannot be those of {num_experts} experts side by side.")
    return x.unflatten(1, (num_experts, -1))


@register_model
def ride_resnet32(
    pretrained: bool = False,
    pretrained_cfg: object = None,
    pretrained_cfg_overlay: object = None,
    cache_dir: object = None,
    **options: Any,
) -> MultiExpertCifarResNet:
    """ResNet-32 of three experts (num_experts) with stages of reduced width of their own, 3 x 48 features."""
    if pretrained:
        raise InvalidInput("ride_resnet32 has no published weights; start from your own with --backbone.weights FILE.")
    return MultiExpertCifarResNet(**options)  # what stands by name above is timm's own, and means nothing without
