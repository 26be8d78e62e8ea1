"""A network for 8-pixel digits, small enough that a hundred runs of it are a coffee break."""

from typing import Any

from timm.models import register_model
from torch import Tensor, nn

from setwise.errors import InvalidInput
from setwise.models.pooled import PooledNetwork

__all__ = ["DigitsCNN", "digits_cnn"]


class DigitsCNN(PooledNetwork):
    """Three 3x3 convolutions with batch norm, the last two on half the map, averaged.

    Args:
        width: channels of the first convolution; the features have 4 * width.
        in_chans: channels of the image.
        num_classes: classes of the linear classifier; 0 returns the pooled features.

    >>> import torch
    >>> DigitsCNN(num_classes=0)(torch.randn(2, 1, 8, 8)).shape
    torch.Size([2, 64])
    """

    def __init__(self, *, width: int = 16, in_chans: int = 1, num_classes: int = 10) -> None:
        super().__init__()
        self.num_features = self.head_hidden_size = 4 * width
        self.trunk = nn.Sequential(
            *_conv(in_chans, width, stride=1),
            *_conv(width, 2 * width, stride=2),
            *_conv(2 * width, 4 * width, stride=1),
        )
        self.reset_classifier(num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map, half the image's side: ``[B, in_chans, H, W]`` -> ``[B, 4 * width, H / 2, W / 2]``."""
        return self.trunk(x)


def _conv(dim: int, dim_out: int, *, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(dim, dim_out, 3, stride, 1, bias=False), nn.BatchNorm2d(dim_out), nn.ReLU(inplace=True)]


@register_model
def digits_cnn(
    pretrained: bool = False,
    pretrained_cfg: object = None,
    pretrained_cfg_overlay: object = None,
    cache_dir: object = None,
    **options: Any,
) -> DigitsCNN:
    """Three convolutions for 8-pixel digits: 64 features, 24 thousand parameters."""
    if pretrained:
        raise InvalidInput("digits_cnn has no published weights; start from your own with --backbone.weights FILE.")
    return DigitsCNN(**options)  # what stands by name above is timm's own, and means nothing without weights
