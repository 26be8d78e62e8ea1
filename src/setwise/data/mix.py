"""Images mixed with other images of their batch, and their labels with theirs: torchvision's mixup and CutMix."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torchvision.transforms import v2

from setwise.errors import InvalidInput

__all__ = ["make_mix"]


def make_mix(
    *, mixup: float, cutmix: float, num_classes: int
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """mixup, CutMix, one of both for every batch, or None.

    Source: Zhang et al., mixup, ICLR 2018, arXiv:1710.09412; Yun et al., CutMix, ICCV 2019, arXiv:1905.04899.
    """
    for name, alpha in (("mixup", mixup), ("cutmix", cutmix)):
        if alpha < 0:
            raise InvalidInput(f"`{name}` ({alpha:g}) must be 0 (off) or larger.")
    mixes: list[Any] = []
    if mixup:
        mixes.append(v2.MixUp(alpha=mixup, num_classes=num_classes))
    if cutmix:
        mixes.append(v2.CutMix(alpha=cutmix, num_classes=num_classes))
    return v2.RandomChoice(mixes) if len(mixes) > 1 else mixes[0] if mixes else None
