"""Networks of several experts for images of 224 pixels: ResNet-10, ResNet-50 and ResNeXt-50 on a shared stem."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from setwise.errors import InvalidInput
from setwise.models.pooled import PooledNetwork

__all__ = ["MultiExpertResNet", "ride_resnet10", "ride_resnet50", "ride_resnext50_32x4d"]

SHARED = ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2")
CHANNELS = (64, 128, 192, 384)
"""Planes of the four stages: RIDE takes a quarter off the last two, which each expert has for itself."""


class MultiExpertResNet(PooledNetwork):
    """ResNet with a shared stem and first two stages, and a third and fourth stage for each expert.

    Features of the experts stand side by side, ``[B, E * C]``, with ``C`` the last planes times the block's expansion.
    The stages are timm's.

    Args:
        block: timm's residual block.
        layers: blocks of the four stages.
        num_experts: ``E``. RIDE: 2 to 4.
        channels: planes of the four stages. RIDE: 192 and 384 in the last two, where ResNet has 256 and 512.
        in_chans: channels of the image.
        num_classes: classes of a linear classifier on all features; 0 returns the features.
        options: further arguments of timm's ResNet (drop_path_rate, cardinality ...). All norms begin at 1, as in the
            official code, unless ``zero_init_last`` says otherwise.

    Raises:
        InvalidInput: without an expert.

    Source: Wang et al., RIDE, ICLR 2021, arXiv:2010.01809; widths of the official code.

    >>> model = MultiExpertResNet(BasicBlock, (1, 1, 1, 1), num_experts=2, channels=(8, 8, 12, 16), num_classes=0)
    >>> model(torch.randn(2, 3, 64, 64)).shape
    torch.Size([2, 32])
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: tuple[int, int, int, int],
        *,
        num_experts: int = 3,
        channels: Sequence[int] = CHANNELS,
        in_chans: int = 3,
        num_classes: int = 1000,
        **options: Any,
    ) -> None:
        super().__init__()
        if num_experts < 1:
            raise InvalidInput(f"`num_experts` must be at least 1, but it is {num_experts}.")

        def one() -> dict[str, nn.Module]:
            kind: Any = block  # timm's annotation says a block, and means its class
            more = {"zero_init_last": False} | options
            network = ResNet(kind, layers, num_classes=0, in_chans=in_chans, channels=tuple(channels), **more)
            return dict(network.named_children())

        shared = one()
        self.stem = nn.Sequential(*(shared[name] for name in SHARED))
        whole = (shared, *(one() for _ in range(num_experts - 1)))
        self.experts = nn.ModuleList(nn.Sequential(parts["layer3"], parts["layer4"]) for parts in whole)
        self.num_experts = num_experts
        self.num_features = self.head_hidden_size = num_experts * channels[3] * block.expansion
        self.reset_classifier(num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """The experts' last maps side by side: ``[B, in_chans, H, W]`` -> ``[B, E * C, H / 32, W / 32]``."""
        x = self.stem(x)
        maps = []
        for expert in self.experts:
            maps.append(expert(x))  # a loop: TorchScript has no comprehension over modules
        return torch.cat(maps, 1)


def _build(name: str, block: Any, layers: tuple[int, int, int, int], pretrained: bool, **options: Any) -> nn.Module:
    if pretrained:
        raise InvalidInput(f"{name} has no published weights; start from your own with --backbone.weights FILE.")
    of_timm = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")  # which mean nothing without weights
    return MultiExpertResNet(block, layers, **{key: value for key, value in options.items() if key not in of_timm})


@register_model
def ride_resnet10(pretrained: bool = False, **options: Any) -> nn.Module:
    """ResNet-10 of three experts (num_experts) with last stages of reduced width of their own, 3 x 384 features."""
    return _build("ride_resnet10", BasicBlock, (1, 1, 1, 1), pretrained, **options)


@register_model
def ride_resnet50(pretrained: bool = False, **options: Any) -> nn.Module:
    """ResNet-50 of three experts (num_experts) with last stages of reduced width of their own, 3 x 1536 features."""
    return _build("ride_resnet50", Bottleneck, (3, 4, 6, 3), pretrained, **options)


@register_model
def ride_resnext50_32x4d(pretrained: bool = False, **options: Any) -> nn.Module:
    """ResNeXt-50 32x4d of three experts (num_experts) with last stages of reduced width, 3 x 1536 features."""
    cardinal = {"cardinality": 32, "base_width": 4} | options
    return _build("ride_resnext50_32x4d", Bottleneck, (3, 4, 6, 3), pretrained, **cardinal)
