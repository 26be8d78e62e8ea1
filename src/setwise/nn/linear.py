"""A linear layer whose product is computed by whichever of torch's libraries is faster on this processor."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from setwise.nn.rebuilding import convolutions_are_faster

__all__ = ["Linear", "linear"]

LEAST_PRODUCTS = 2**23
"""Multiply-adds from which a convolution repays its call."""
LEAST_INPUT = 1
"""Size of the input over the weights', which oneDNN lays out anew in every call: as many rows as channels come out."""


class Linear(nn.Linear):
    """``torch.nn.Linear``, computed as a 1x1 convolution where that is faster, which doubles the rate on AMD's AVX-512.

    torch multiplies float32 matrices on x86 with MKL, which keeps to AVX2 on processors that are not Intel's, and
    convolves with oneDNN, which does not (on Intel's with AVX-512 both have it, and it was not measured). Results
    differ by rounding; names of parameters and arguments are the same. Small products, other types and devices,
    autocast, scripted, traced and compiled code are left to torch.

    >>> layer = Linear(4, 3)
    >>> layer(torch.randn(2, 5, 4)).shape, sorted(layer.state_dict())
    (torch.Size([2, 5, 3]), ['bias', 'weight'])
    """

    # Plain `Tensor` in these signatures: torch.jit.script, which timm's users call, resolves no jaxtyping annotation.
    def forward(self, input: Tensor) -> Tensor:
        """``[..., in_features] -> [..., out_features]``."""
        if not torch.jit.is_scripting():
            y = linear(input, self.weight, self.bias)
        else:
            y = F.linear(input, self.weight, self.bias)
        return y


@torch.jit.unused
def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``torch.nn.functional.linear``, computed as :class:`Linear` is."""
    return _as_convolution(x, weight, bias) if _convolution_is_faster(x, weight) else F.linear(x, weight, bias)


def _convolution_is_faster(x: Tensor, weight: Tensor) -> bool:
    if torch.compiler.is_compiling() or not isinstance(x, Tensor):  # a tracer's stand-in is no tensor
        return False
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.shape[-1] == weight.shape[1]  # else let torch say what is wrong
        and x.numel() * weight.shape[0] >= LEAST_PRODUCTS
        and x.numel() >= LEAST_INPUT * weight.numel()
        and not torch.is_autocast_enabled("cpu")
        and convolutions_are_faster()
    )


def _as_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)  # [..., C] -> [1, C, 1, rows], channels last in memory
    # Dilation means nothing for one pixel, but without it torch does not ask oneDNN where it has a single thread
    # (`use_mkldnn` in ATen/native/Convolution.cpp, torch 2.15).
    y = F.conv2d(rows, weight[:, :, None, None], bias, dilation=2)
    return y.permute(0, 2, 3, 1).reshape(x.shape[:-1] + weight.shape[:1])
