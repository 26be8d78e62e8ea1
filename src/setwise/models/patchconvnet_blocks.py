"""The parts of PatchConvNet: the stem and the trunk's block. The trunk keeps channels last, ``[B, H, W, C]``.

A 1x1 convolution is a linear layer on the last axis then, LayerNorm needs no reshape, and nothing is copied between
blocks. Letters: ``B`` images, ``H W`` map size, ``C`` channels.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, get_norm_layer
from torch import Tensor, nn

from setwise.errors import InvalidInput
from setwise.nn.linear import Linear
from setwise.nn.recompute import recomputed

__all__ = ["PATCH", "ConvBlock", "Stem"]

PATCH = 16
"""Pixels of the image on a side of a patch."""
SQUEEZE = 4
"""Channels over those of the squeeze-and-excitation's hidden layer, as released."""


class Stem(nn.Sequential):
    """Image -> patches: ``[B, in_chans, 16 H, 16 W] -> [B, H, W, C]``.

    Args:
        in_chans: channels of the image.
        dim: channels ``C``.
        kind: "conv" is the paper's: four 3x3 convolutions of stride 2 without bias, each doubling the channels, GELU
            between them and none behind. Sides that are no multiple of 16 are rounded up. "linear" is its ablation: one
            projection of 16x16 pixels with bias, as in a ViT; sides are padded with zeros to a multiple of 16.
        thrifty: in training, compute GELU again instead of keeping its result.
        device: of the parameters.
        dtype: of the parameters.

    >>> Stem(3, 64)(torch.randn(2, 3, 64, 100)).shape
    torch.Size([2, 4, 7, 64])
    """

    def __init__(
        self,
        in_chans: int,
        dim: int,
        *,
        kind: str = "conv",
        thrifty: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        to = {"device": device, "dtype": dtype}
        if kind not in ("conv", "linear"):
            raise InvalidInput(f"`stem` must be 'conv' or 'linear', but it is {kind!r}.")
        if dim % 8:
            raise InvalidInput(f"`embed_dim` ({dim}) must be divisible by 8: the stem starts with an eighth of it.")
        if kind == "linear":
            super().__init__(nn.Conv2d(in_chans, dim, PATCH, PATCH, **to))
        else:
            widths = [dim // 8, dim // 4, dim // 2, dim]
            following = [
                nn.Sequential(nn.GELU(), nn.Conv2d(narrow, wide, 3, 2, 1, bias=False, **to))
                for narrow, wide in pairwise(widths)
            ]
            super().__init__(nn.Conv2d(in_chans, widths[0], 3, 2, 1, bias=False, **to), *following)
        self.pad_to, self.thrifty = PATCH if kind == "linear" else 1, thrifty

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102  the class says it
        x = F.pad(x, [0, -x.shape[3] % self.pad_to, 0, -x.shape[2] % self.pad_to])
        x = x.contiguous(memory_format=torch.channels_last)
        if torch.jit.is_scripting() or not (self.thrifty and self.training):
            for step in self:
                x = step(x)
        else:
            for step in self:
                x = recomputed(step, x)
        return x.permute(0, 2, 3, 1)  # [B, C, H, W] -> [B, H, W, C]


class ConvBlock(nn.Module):
    """One block of the trunk: a residual branch of convolutions with squeeze-and-excitation, and no feed-forward part.

    ``x + gamma * conv2(excite(GELU(dwconv(GELU(conv1(norm(x)))))))``, where ``conv1`` and ``conv2`` are 1x1, ``dwconv``
    is 3x3 and depthwise, and ``excite`` weighs channels by their means over the map. Shape ``[B, H, W, C]`` stays.

    Args:
        dim: channels ``C``.
        norm_layer: None: LayerNorm with eps 1e-6, as released; or a class, a partial of it, or one of timm's names,
            such as "batchnorm2d", which the paper advises for large batches.
        init_values: initial ``gamma``. Released: 1e-4 for S60, else 1e-6.
        drop_path: probability with which the branch is dropped for an image, in training.
        thrifty: in training, compute norm, GELU and the excitation's product again in the backward pass instead of
            keeping their results, which halves what a block keeps.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        InvalidInput: if timm knows no norm of that name.

    >>> ConvBlock(16)(torch.randn(2, 5, 7, 16)).shape
    torch.Size([2, 5, 7, 16])
    """

    def __init__(
        self,
        dim: int,
        *,
        norm_layer: Any = None,
        init_values: float = 1e-4,
        drop_path: float = 0.0,
        thrifty: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        to = {"device": device, "dtype": dtype}
        squeezed = round(dim / SQUEEZE)
        self.gamma = nn.Parameter(torch.full((dim,), init_values, **to))
        self.norm = _norm_of(norm_layer)(dim, **to)
        self.conv1 = Linear(dim, dim, **to)
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **to)
        self.squeeze = nn.Linear(dim, squeezed, **to)
        self.excite = nn.Linear(squeezed, dim, **to)
        self.conv2 = Linear(dim, dim, **to)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.drops = drop_path > 0
        self.norm_channels_first = _wants_channels_first(self.norm)
        self.thrifty = thrifty
        self.norm_again = not list(self.norm.buffers())  # running statistics must not see a batch twice

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102  the class says it
        y = self._branch(x)
        if self.drops:
            return x + self.drop_path(self.gamma * y)
        return torch.addcmul(x, self.gamma, y)

    def _branch(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():  # noqa: SIM102  torch.jit.script reads past this condition alone
            if self.thrifty and self.training:
                y = recomputed(self._enter, x) if self.norm_again else self._enter(x)
                return recomputed(self._leave, recomputed(self._mix, y))
        return self._leave(self._mix(self._enter(x)))

    # Each step ends in the one product whose input need not be kept.
    def _enter(self, x: Tensor) -> Tensor:
        if self.norm_channels_first:
            return self.conv1(self.norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return self.conv1(self.norm(x))

    def _mix(self, y: Tensor) -> Tensor:
        return self.dwconv(F.gelu(y).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def _leave(self, y: Tensor) -> Tensor:
        y = F.gelu(y)
        weights = self.excite(F.relu(self.squeeze(y.mean((1, 2), keepdim=True)))).sigmoid()  # [B, 1, 1, C]
        return self.conv2(y * weights)


def _norm_of(norm_layer: Any) -> Callable[..., nn.Module]:
    if norm_layer is None:
        return partial(nn.LayerNorm, eps=1e-6)
    of_maps = not (isinstance(norm_layer, str) and "1d" in norm_layer.lower())
    try:
        found = get_norm_layer(norm_layer) if of_maps else None
    except KeyError:
        found = None
    if found is None:
        raise InvalidInput(
            f"`norm_layer` must be a class, a function, or timm's name of a norm of maps, such as 'layernorm' or "
            f"'batchnorm2d', but it is {norm_layer!r}."
        )
    return found


def _wants_channels_first(norm: nn.Module) -> bool:
    """Norms of maps, torch's and timm's, take ``[B, C, H, W]``; all others the channels on the last axis."""
    return isinstance(norm, nn.modules.batchnorm._BatchNorm | nn.GroupNorm) or "2d" in type(norm).__name__.lower()
