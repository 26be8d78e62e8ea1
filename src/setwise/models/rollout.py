"""Attention rollout: what patches reach a vision transformer's output through all its layers, to compare with.

Letters: ``B`` images, ``N`` tokens, ``h w`` size of the map of patches.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from setwise.errors import InvalidInput
from setwise.nn.evaluation import in_evaluation

__all__ = ["rollout"]


@torch.no_grad()
def rollout(model: nn.Module, images: Float[Tensor, "B c H W"]) -> Float[Tensor, "B h w"]:
    """Multiply the attention of all layers, averaged over heads and with the identity for the skip connection.

    What comes back is the row of the class token, or the mean of the rows that the network averages, over the patches.
    It knows no class. The fused kernels are left while it runs.

    Args:
        model: one of timm's vision transformers, with ``blocks`` whose ``attn`` relates all tokens.
        images: what it takes.

    Raises:
        InvalidInput: if the network is another one.

    Source: Abnar and Zuidema, Quantifying Attention Flow in Transformers, ACL 2020, arXiv:2005.00928.
    """
    layers = [block.attn for block in getattr(model, "blocks", ()) if _readable(getattr(block, "attn", None))]
    patches = getattr(getattr(model, "patch_embed", None), "proj", None)
    if not layers or not isinstance(patches, nn.Conv2d):
        raise InvalidInput(
            f"Attention rollout takes timm's vision transformers, with blocks of attention over all patches, and not "
            f"{type(model).__name__}."
        )
    weights: list[Tensor] = []
    sizes: list[torch.Size] = []
    hooks = [layer.attn_drop.register_forward_hook(lambda m, a, out: weights.append(out)) for layer in layers]
    hooks.append(patches.register_forward_hook(lambda m, a, out: sizes.append(out.shape[2:])))
    try:
        with in_evaluation(model), _unfused(layers):
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    prefix, (height, width) = int(getattr(model, "num_prefix_tokens", 0)), sizes[0]
    number = prefix + height * width
    heads = [getattr(layer, "num_heads", None) for layer in layers]
    if len(weights) == len(layers) and [w.shape[1] for w in weights] != heads:
        raise InvalidInput(
            f"Attention rollout needs one map a head, but the layers of {type(model).__name__} make "
            f"{weights[0].shape[1]} of {heads[0]} heads: differential attention has no weights that sum to 1."
        )
    if len(weights) != len(layers) or any(w.shape[-2:] != (number, number) for w in weights):
        raise InvalidInput(
            f"Attention rollout needs every layer to relate the same {number} tokens, but those of "
            f"{type(model).__name__} relate {sorted({tuple(w.shape[-2:]) for w in weights})}."
        )
    flow = torch.eye(number, device=images.device)
    for attention in weights:
        step = 0.5 * attention.float().mean(1) + 0.5 * torch.eye(number, device=images.device)
        flow = step @ flow  # [B, N, N]: rows sum to 1
    rows = flow[:, 0] if getattr(model, "global_pool", "token") == "token" and prefix else flow[:, prefix:].mean(1)
    return rows[:, prefix:].unflatten(1, (height, width))


def _readable(layer: object) -> bool:
    return isinstance(layer, nn.Module) and hasattr(layer, "fused_attn") and hasattr(layer, "attn_drop")


@contextmanager
def _unfused(layers: list[nn.Module]) -> Iterator[None]:
    """Have layers compute their weights, which the fused kernels never hold."""
    before = [layer.fused_attn for layer in layers]
    for layer in layers:
        layer.fused_attn = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for layer, fused in zip(layers, before, strict=True):
            layer.fused_attn = fused
