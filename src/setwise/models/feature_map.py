"""A backbone's last feature map instead of its pooled features: what few-shot heads compare."""

import contextlib

import torch
from torch import Tensor, nn

from setwise.errors import InvalidInput
from setwise.nn.evaluation import in_evaluation

__all__ = ["FeatureMap", "map_channels"]


class FeatureMap(nn.Module):
    """The last map of a timm model, ``[B, c, H, W]`` -> ``[B, C, h, w]``; of transformers the grid of patches.

    Args:
        backbone: a model of timm, or one of ours; its pool and classifier are not used, and taken off where it can be
            built without them.

    Raises:
        InvalidInput: if it returns no map.

    >>> import timm
    >>> trunk = FeatureMap(timm.create_model("test_resnet", num_classes=0))
    >>> trunk(torch.randn(2, 3, 64, 64)).dim()
    4
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        with contextlib.suppress(Exception):  # whoever has no such form keeps its pool, which nobody calls
            backbone.reset_classifier(0, "")  # type: ignore[operator]
        self.backbone = backbone

    def forward(self, image: Tensor) -> Tensor:
        """The last map, channels first."""
        x = self.backbone.forward_features(image)  # type: ignore[operator]
        if isinstance(x, Tensor) and x.dim() == 4:
            return x.permute(0, 3, 1, 2) if getattr(self.backbone, "output_fmt", "NCHW") == "NHWC" else x
        size_of = getattr(getattr(self.backbone, "patch_embed", None), "dynamic_feat_size", None)
        if isinstance(x, Tensor) and x.dim() == 3 and size_of is not None:
            patches = x[:, getattr(self.backbone, "num_prefix_tokens", 0) :]  # [B, hw, C]
            height, width = size_of(image.shape[-2:])
            if patches.shape[1] == height * width:
                return patches.transpose(1, 2).unflatten(2, (height, width))
        raise InvalidInput(
            f"A few-shot head compares feature maps [B, C, H, W], but the backbone {type(self.backbone).__name__} "
            f"returned {list(x.shape) if isinstance(x, Tensor) else type(x).__name__}; choose one with a map, such as "
            "a ResNet or a ViT."
        )


def map_channels(trunk: nn.Module, *, in_chans: int, image_size: int) -> int:
    """Channels ``C`` of the trunk's map, told by two zero images."""
    device = next((p.device for p in trunk.parameters()), None)
    with in_evaluation(trunk), torch.no_grad():  # norms keep their statistics, dropout draws nothing
        channels: int = trunk(torch.zeros(2, in_chans, image_size, image_size, device=device)).shape[1]
    return channels
