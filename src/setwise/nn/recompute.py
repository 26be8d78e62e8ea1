"""Keep less for the backward pass: what is cheap is computed again from what is dear."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["recomputed"]


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """``function(*inputs)``, of which only ``inputs`` are kept for the backward pass.

    For a few element-wise steps that end in *one* product with weights: the backward pass needs the input of that
    product, repeats the steps before it, and stops there, so that no product is computed twice. The values are the
    same bit for bit. ``function`` must draw no random numbers: the random state is not replayed.

    Without gradients, and while torch.fx traces or torch.compile compiles (which decides by itself what to keep), it is
    a plain call. In code that torch.jit.script reads it must stand behind ``torch.jit.is_scripting()``.

    >>> weight = torch.randn(4, 4, requires_grad=True)
    >>> recomputed(lambda x: torch.nn.functional.gelu(x) @ weight, torch.randn(2, 4)).shape
    torch.Size([2, 4])
    """
    plain = torch.compiler.is_compiling() or not torch.is_grad_enabled()
    if plain or not all(isinstance(x, Tensor) for x in inputs):  # a tracer's stand-in is no tensor
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
