"""Squared distance between query locations and their rebuilding from each class, without ever holding all scores.

Two ways to the same numbers, each with gradients:

* :func:`in_tiles` computes one class's scores for one tile of query rows, uses them and forgets them; the backward
  pass computes them again. Products run as 1x1 convolutions where that is faster.
* :func:`fused` leaves the attention to torch's fused kernels, classes of equal shots together.

Letters: ``N`` query locations (of all queries), ``M`` support locations (of all images, class by class), ``K`` classes,
``k`` width of keys, ``v`` width of values.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

__all__ = ["fused", "in_tiles", "squared_distances"]

KEPT_BYTES = 2**30
"""Up to here (1 GiB) rebuilt queries are kept for the backward pass; more are rebuilt there once more.

An episode of the paper's mean size (23 classes, 233 queries, 14x14, 128 wide) keeps 0.5 GiB; as a SimCLR episode (400
classes) it would keep 8."""

TILE_SCORES = 2**18
"""Scores of one class held at a time (1 MiB in float32: they stay in a core's cache), where rows are not too few."""

LEAST_ROWS = 384
"""A product with fewer rows spends its time on laying out the other factor."""

PIECE_BYTES = {"cpu": 2**21, "cuda": 2**26}
"""Prototypes that a fused kernel writes at once: few on a CPU (2 MiB), so that they stay in the cache and little is
held; a GPU wants more work in a call (64 MiB), and other devices are taken for one."""

IMAGES = 16
"""Rows of a product are given to the convolution as so many images: with fewer torch does not ask oneDNN
(``use_mkldnn`` in ATen/native/Convolution.cpp, torch 2.15)."""


def squared_distances(query: Tensor, value: Tensor, keys: Tensor, values: Tensor, sizes: Sequence[int]) -> Tensor:
    """Rebuild every query location from each class by attention, and return how far it is from itself.

    Args:
        query: queries of the query locations ``[N, k]``.
        value: their values ``[N, v]``.
        keys: keys of the support locations ``[M, k]``, class by class.
        values: their values ``[M, v]``.
        sizes: support locations of each class; they sum to ``M``.

    Returns:
        ``[K, N]``, summed over the ``v`` channels; at least in float32.
    """
    device = query.device.type
    known = torch.amp.is_autocast_available(device)  # not for the meta device
    with torch.autocast(device, enabled=False) if known else nullcontext():  # or distances would be halves
        if device == "cpu" and (convolutions_are_faster() or query.shape[1] != value.shape[1]):
            wide = [x.float() if x.itemsize < 4 else x for x in (query, value, keys, values)]
            return in_tiles(wide[0], wide[1], wide[2], wide[3], sizes)
        return fused(query, value, keys, values, sizes)


def convolutions_are_faster() -> bool:
    """Whether a 1x1 convolution beats the product that it is.

    torch multiplies float32 matrices on x86 with MKL, which keeps to AVX2 on processors that are not Intel's, and
    convolves with oneDNN, which does not; ``benchmarks/cross_transformer.py`` prints the share of torch.mm's rate.
    """
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def in_tiles(query: Tensor, value: Tensor, keys: Tensor, values: Tensor, sizes: Sequence[int]) -> Tensor:
    """:func:`squared_distances` by one class and one tile of query locations at a time."""
    return _InTiles.apply(query, value, keys, values, tuple(sizes))


class _InTiles(torch.autograd.Function):
    """Keeps, at most, the difference between the queries and their rebuilding; never weights or scores."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, value: Tensor, keys: Tensor, values: Tensor, sizes: tuple[int, ...]) -> Tensor:
        kept_bytes = len(sizes) * value.numel() * value.itemsize
        keep = any(ctx.needs_input_grad) and kept_bytes <= KEPT_BYTES
        kept = value.new_empty(len(sizes), *value.shape) if keep else None
        distances = value.new_empty(len(sizes), len(value))
        for c, (key, val) in enumerate(zip(keys.split(sizes), values.split(sizes), strict=True)):
            key, val = key * query.shape[1] ** -0.5, val.t().contiguous()
            for rows in tiles(len(query), len(key)):
                rebuilt = product(softmax_(product(query[rows], key)), val)  # [rows, v]
                difference = rebuilt.sub_(value[rows])
                distances[c, rows] = torch.linalg.vecdot(difference, difference)
                if kept is not None:
                    kept[c, rows] = difference
        ctx.save_for_backward(query, value, keys, values, kept)
        ctx.sizes = sizes
        return distances

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, value, keys, values, kept = ctx.saved_tensors
        scale = query.shape[1] ** -0.5
        to_query, to_value, to_keys, to_values = (torch.zeros_like(x) for x in (query, value, keys, values))
        by_class = (x.split(ctx.sizes) for x in (keys, values, to_keys, to_values))
        for c, (key, val, to_key, to_val) in enumerate(zip(*by_class, strict=True)):
            key = key * scale
            key_t, val_t = key.t().contiguous(), val.t().contiguous() if kept is None else val
            for rows in tiles(len(query), len(key)):
                weights = softmax_(product(query[rows], key))  # [rows, M_c]
                difference = product(weights, val_t).sub_(value[rows]) if kept is None else kept[c, rows]
                to_rebuilt = difference * (2 * gradient[c, rows, None])  # [rows, v]
                to_value[rows] -= to_rebuilt
                to_val.addmm_(weights.t(), to_rebuilt)
                # The softmax's gradient needs sum(weights * to_weights) of every row, which is to_rebuilt . rebuilt.
                mean = torch.linalg.vecdot(to_rebuilt, difference) + torch.linalg.vecdot(to_rebuilt, value[rows])
                to_scores = product(to_rebuilt, val).sub_(mean[:, None]).mul_(weights)
                to_query[rows] += product(to_scores, key_t)
                to_key.addmm_(to_scores.t(), query[rows], alpha=scale)
        return to_query, to_value, to_keys, to_values, None


def tiles(rows: int, size: int) -> Iterator[slice]:
    """Slices of rows whose scores against ``size`` locations stay in the cache; all but the last fit ``IMAGES``."""
    length = max(LEAST_ROWS, TILE_SCORES // size) // IMAGES * IMAGES
    whole = rows - rows % IMAGES
    for start in range(0, whole, length):
        yield slice(start, min(start + length, whole))
    if whole < rows:
        yield slice(whole, rows)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T`` for ``[rows, c]`` and ``[d, c]``, as a 1x1 convolution where that is faster."""
    if x.dtype != torch.float32 or len(x) % IMAGES or not convolutions_are_faster():
        return x @ weight.t()
    images = x.view(IMAGES, -1, 1, x.shape[1]).permute(0, 3, 1, 2)  # rows of channels: the layout "channels last"
    y = F.conv2d(images, weight[:, :, None, None])
    return y.permute(0, 2, 3, 1).reshape(len(x), len(weight))


def softmax_(scores: Tensor) -> Tensor:
    """Softmax over the last axis, in place."""
    return torch.softmax(scores, -1, out=scores)


def fused(query: Tensor, value: Tensor, keys: Tensor, values: Tensor, sizes: Sequence[int]) -> Tensor:
    """:func:`squared_distances` by torch's fused attention, classes of equal shots together."""
    by_key, by_value = keys.split(tuple(sizes)), values.split(tuple(sizes))
    row_bytes = value.shape[1] * value.itemsize
    piece_bytes = PIECE_BYTES.get(query.device.type) or PIECE_BYTES["cuda"]
    again = torch.is_grad_enabled() and len(sizes) * len(value) * row_bytes > KEPT_BYTES
    order: list[int] = []
    parts = []
    for size in sorted(set(sizes)):
        group = [c for c, other in enumerate(sizes) if other == size]
        count = max(1, piece_bytes // max(1, len(query) * row_bytes))  # classes at a time
        for classes in (group[start : start + count] for start in range(0, len(group), count)):
            key = torch.stack([by_key[c] for c in classes])[:, None]  # [classes, 1, M_c, k]
            val = torch.stack([by_value[c] for c in classes])[:, None]
            chunks = max(1, -(-len(classes) * len(query) * row_bytes // piece_bytes))
            rows = []
            for q, v in zip(query.chunk(chunks), value.chunk(chunks), strict=True):
                if again:
                    rows.append(checkpoint(_piece, q, v, key, val, use_reentrant=False, preserve_rng_state=False))
                else:
                    rows.append(_piece(q, v, key, val))
            parts.append(torch.cat(rows, 1))
            order += classes
    place = torch.tensor(order, device=query.device).argsort()
    return torch.cat(parts)[place]


def _piece(query: Tensor, value: Tensor, key: Tensor, val: Tensor) -> Tensor:
    rebuilt = F.scaled_dot_product_attention(query.expand(len(key), 1, -1, -1), key, val)[:, 0]
    return _Distance.apply(rebuilt, value)


class _Distance(torch.autograd.Function):
    """Squared distance ``[classes, rows]`` of ``[classes, rows, v]`` to ``[rows, v]``, at least in float32.

    Keeps what attention keeps anyway; torch would keep the difference as well.
    """

    @staticmethod
    def forward(ctx: Any, rebuilt: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(rebuilt, value)
        difference = _difference(rebuilt, value)
        return torch.linalg.vecdot(difference, difference)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        rebuilt, value = ctx.saved_tensors
        to_rebuilt = _difference(rebuilt, value).mul_(2 * gradient[..., None])
        return to_rebuilt.to(rebuilt.dtype), to_rebuilt.sum(0).neg_().to(value.dtype)


def _difference(rebuilt: Tensor, value: Tensor) -> Tensor:
    wide = torch.promote_types(rebuilt.dtype, torch.float32)  # squares of halves overflow
    return rebuilt.to(wide) - value.to(wide)
