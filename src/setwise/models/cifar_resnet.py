"""ResNet for 32-pixel images, as the long-tailed literature trains it on CIFAR."""

from typing import Any

import torch.nn.functional as F
from timm.models import register_model
from torch import Tensor, nn

from setwise.errors import InvalidInput
from setwise.models.pooled import PooledNetwork

__all__ = ["CifarResNet", "cifar_resnet32", "make_stage"]


class CifarResNet(PooledNetwork):
    """A 3x3 stem and three stages of ``depth`` basic blocks, averaged over the map.

    Shortcuts are option A: where a stage halves the map, the shortcut takes every second pixel and pads the new
    channels with zeros, so it has no weights.

    Args:
        depth: blocks a stage; ResNet-32 has 5 (6 * 5 + 2 layers with weights).
        width: channels of the first stage, doubled in each following one. Paper: 16.
        in_chans: channels of the image.
        num_classes: classes of the linear classifier; 0 returns the pooled features ``[B, 4 * width]``.

    Source: He et al., Deep Residual Learning, CVPR 2016, arXiv:1512.03385, section 4.2.

    >>> import torch
    >>> CifarResNet(depth=1, num_classes=0)(torch.randn(2, 3, 32, 32)).shape
    torch.Size([2, 64])
    """

    def __init__(self, *, depth: int = 5, width: int = 16, in_chans: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        self.num_features = self.head_hidden_size = 4 * width
        self.conv1 = nn.Conv2d(in_chans, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = make_stage(width, width, depth, stride=1)
        self.layer2 = make_stage(width, 2 * width, depth, stride=2)
        self.layer3 = make_stage(2 * width, 4 * width, depth, stride=2)
        self.reset_classifier(num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map, a quarter of the image's side: ``[B, in_chans, H, W]`` -> ``[B, 4 * width, H / 4, W / 4]``."""
        x = self.bn1(self.conv1(x)).relu()
        return self.layer3(self.layer2(self.layer1(x)))


class _BasicBlock(nn.Module):
    def __init__(self, dim: int, dim_out: int, stride: int) -> None:
        super().__init__()
        self.stride, self.padding = stride, dim_out - dim
        self.conv1 = nn.Conv2d(dim, dim_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(dim_out)
        self.conv2 = nn.Conv2d(dim_out, dim_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(dim_out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self._shortcut(x)).relu()

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1 and not self.padding:
            return x
        before = self.padding // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.padding - before))


def make_stage(dim: int, dim_out: int, depth: int, *, stride: int) -> nn.Sequential:
    """``depth`` basic blocks, ``[B, dim, H, W]`` -> ``[B, dim_out, H / stride, W / stride]``."""
    first = _BasicBlock(dim, dim_out, stride)
    return nn.Sequential(first, *(_BasicBlock(dim_out, dim_out, 1) for _ in range(depth - 1)))


@register_model
def cifar_resnet32(
    pretrained: bool = False,
    pretrained_cfg: object = None,
    pretrained_cfg_overlay: object = None,
    cache_dir: object = None,
    **options: Any,
) -> CifarResNet:
    """ResNet-32 with option-A shortcuts: 0.46 M parameters, 69 M multiply-adds at 32 pixels, 64 features."""
    if pretrained:
        raise InvalidInput("cifar_resnet32 has no published weights; start from your own with --backbone.weights FILE.")
    return CifarResNet(**options)  # what stands by name above is timm's own, and means nothing without weights
