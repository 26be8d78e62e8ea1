"""Where a network looks when it pools: the maps of its AttentionPool, beside its scores.

Letters: ``B`` images, ``K`` classes, ``Q`` queries, ``H' W'`` size of the pooled map.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from setwise.errors import InvalidInput
from setwise.nn.attention import record_attention
from setwise.nn.attention_pool import AttentionPool
from setwise.nn.evaluation import in_evaluation

__all__ = ["PoolMaps", "find_pool", "pool_maps"]


@dataclass(frozen=True)
class PoolMaps:
    """What a network says of images, and where it looked.

    Attributes:
        logits: ``[B, K]``, as the network returns them.
        maps: weights of the patches, ``[B, H', W']`` of one query, ``[B, Q, H', W']`` of several, best class first
            where the best were asked for. What a map lacks to a sum of 1 went to ``own``.
        classes: class of every map ``[B, Q]`` where each class has its query; None for one query for all.
        own: weight that went to the queries themselves, ``[B]`` or ``[B, Q]``; 0 where they are no keys.
    """

    logits: Tensor
    maps: Tensor
    classes: Tensor | None
    own: Tensor

    @property
    def probabilities(self) -> Tensor:
        """Softmax of the scores, ``[B, K]``."""
        return self.logits.float().softmax(-1)


def pool_maps(
    model: nn.Module,
    images: Tensor,
    *,
    top_k: int | None = None,
    layer: int = -1,
    pool: str | None = None,
    grid: tuple[int, int] | None = None,
) -> PoolMaps:
    """Run a network on images and read where its attention pool looks.

    The network runs in evaluation, without a gradient, and is as it was afterwards. The maps are computed beside the
    fused attention, so they are there whatever kernel runs. Those of several heads are averaged.

    Args:
        model: a network with an AttentionPool: a PatchConvNet, or any after :func:`setwise.nn.attention_pooling`.
        images: what the network takes, usually ``[B, c, H, W]``, of any aspect ratio that it takes.
        top_k: with a query for each class, maps of so many likeliest classes alone; None: of all, in their order.
        layer: of the pool, where it has several.
        pool: name of the AttentionPool where the network has several.
        grid: ``H', W'`` where the pool takes tokens ``[B, N, C]``, row by row, whose map is not known to it.

    Raises:
        InvalidInput: if the network has no AttentionPool or several, or an argument does not fit it.

    Source: Touvron et al., Augmenting Convolutional Networks with Attention-based Aggregation, arXiv:2112.13692. That
    heads are averaged is ours; the paper has one.

    >>> layers = nn.Conv2d(3, 16, 4, 4), AttentionPool(16, channels_first=True), nn.Linear(16, 5)
    >>> found = pool_maps(nn.Sequential(*layers), torch.randn(2, 3, 32, 48))
    >>> found.maps.shape, found.logits.shape
    (torch.Size([2, 8, 12]), torch.Size([2, 5]))
    >>> torch.allclose(found.maps.sum((1, 2)) + found.own, torch.ones(2))
    True
    """
    name, module = find_pool(model, pool)
    if not -len(module.layers) <= layer < len(module.layers):
        raise InvalidInput(f"`layer` must be one of the {len(module.layers)} layers of the pool, but it is {layer}.")
    if top_k is not None and top_k < 1:
        raise InvalidInput(f"`top_k` must be at least 1, but it is {top_k}.")
    logits, weights, shape = _run(model, module, images)
    if len(weights) != len(module.layers):
        times = len(weights) // len(module.layers)
        raise InvalidInput(
            f"The pool {name or type(module).__name__} ran {times} times for these images, so none has one map."
        )
    height, width = _grid(module, shape, grid)
    attention = weights[layer].mean(1)  # [B, heads, Q, keys] -> [B, Q, keys]
    own, patches = attention.split([attention.shape[-1] - height * width, height * width], dim=-1)
    maps, mass = patches.unflatten(-1, (height, width)), own.sum(-1)
    if module.num_queries == 1:
        return PoolMaps(logits, maps.squeeze(1), None, mass.squeeze(1))
    if logits.dim() != 2 or logits.shape[1] != module.num_queries:
        raise InvalidInput(
            f"The pool has {module.num_queries} queries, but the network returned {list(logits.shape)}: a map is that "
            "of a class where each class has one query and one score."
        )
    classes = _best(logits, top_k)
    rows = torch.arange(len(logits), device=logits.device)[:, None]
    return PoolMaps(logits, maps[rows, classes], classes, mass[rows, classes])


def find_pool(model: nn.Module, name: str | None = None) -> tuple[str, AttentionPool]:
    """The one AttentionPool of a network and its name, or the one that is named.

    Raises:
        InvalidInput: if there is none, there are several and none is named, or no pool has that name.
    """
    found = {path: module for path, module in model.named_modules() if isinstance(module, AttentionPool)}
    if not found:
        raise InvalidInput(
            f"This {type(model).__name__} does not pool by attention, so it has no map to show. It takes a "
            'PatchConvNet (with global_pool="token"), or a convolutional network that was trained after '
            "setwise.nn.attention_pooling(model)."
        )
    if name is None and len(found) > 1:
        raise InvalidInput(f"There are several pools in this {type(model).__name__}: name one of {sorted(found)}.")
    if name is not None and name not in found:
        raise InvalidInput(f"There is no AttentionPool {name!r} in this {type(model).__name__}, but {sorted(found)}.")
    return next(iter(found.items())) if name is None else (name, found[name])


def _run(model: nn.Module, module: AttentionPool, images: Tensor) -> tuple[Tensor, list[Tensor], torch.Size]:
    """Scores, one ``[B, heads, Q, keys]`` a layer and call, and the shape of what was pooled."""
    shapes: list[torch.Size] = []

    def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
        shapes.append(args[0].shape)

    hook = module.register_forward_pre_hook(keep)
    try:
        with in_evaluation(model), torch.no_grad(), record_attention(module) as maps:
            logits = model(images)
    finally:
        hook.remove()
    if not shapes:
        raise InvalidInput(f"The AttentionPool of this {type(model).__name__} did not run for these images.")
    return logits, [weights.float() for weights in maps[""]], shapes[0]


def _grid(module: AttentionPool, shape: torch.Size, grid: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of the map; never guessed from a number of tokens, which many maps share."""
    if module.channels_first:
        if grid not in (None, tuple(shape[2:])):
            raise InvalidInput(f"`grid` is {grid}, but what is pooled is a map of {tuple(shape[2:])}: leave it out.")
        return shape[2], shape[3]
    if grid is None or grid[0] * grid[1] != shape[1]:
        raise InvalidInput(
            f"The pool takes {shape[1]} tokens, so `grid` must be the height and width of their map, with as many "
            f"places, but it is {grid}."
        )
    return grid


def _best(logits: Tensor, top_k: int | None) -> Tensor:
    if top_k is None:
        return torch.arange(logits.shape[1], device=logits.device).expand(logits.shape)
    return logits.topk(min(top_k, logits.shape[1])).indices
