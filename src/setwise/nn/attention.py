"""Multi-head attention over any set, the encoder layer around it, and a way to read the weights out.

Letters: ``B`` samples of the set, ``N`` positions that are related separately, ``C`` channels.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from setwise.errors import InvalidInput
from setwise.nn.gather import gather_set, place
from setwise.nn.linear import Linear, linear

__all__ = ["EncoderLayer", "Recordable", "SetAttention", "is_half", "or_itself", "record_attention"]

# The fused CUDA kernels put (positions x heads) on a grid axis of 16 bits, and flash attention's backward pass indexes
# positions x heads x set (rounded up to 128) x head width (at least 32) with 31 bits; larger calls are cut into chunks.
# https://github.com/pytorch/pytorch/issues/142228 (torch 2.15: open)
MAX_GRID = 65535
MAX_INDEX = 2**31 - 1

Mask = Bool[Tensor, "B keys"] | Bool[Tensor, "N 1 1 keys"] | None
"""Who may attend to whom."""


class SetAttention(nn.Module):
    """Attend along the first axis, separately at every position of the second.

    Parameters are named and laid out as in :class:`torch.nn.MultiheadAttention`, so that state dicts are
    interchangeable.

    Args:
        dim: channels ``C``.
        num_heads: heads; must divide ``dim``.
        dropout: of the attention weights, in training. Above 0 the fused kernels are left
            (benchmarks/results/insertion.md).
        gather: take keys and values from all processes.
    """

    def __init__(self, dim: int, num_heads: int, *, dropout: float = 0.0, gather: bool = False) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise InvalidInput(f"`dim` ({dim}) must be divisible by `num_heads` ({num_heads}).")
        self.num_heads, self.dropout, self.gather = num_heads, dropout, gather
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, x: Float[Tensor, "B N C"], mask: Mask = None, others: Float[Tensor, "keys N C"] | None = None
    ) -> Float[Tensor, "B N C"]:
        """Relate ``x`` along its first axis.

        ``mask`` is True where a row may attend to a column: ``[B, keys]`` for all positions, or ``[N, 1, 1, keys]`` for
        all samples of each position, which must leave somebody. ``others`` is the set to attend to; None: ``x`` itself,
        with ``gather`` that of all processes.
        """
        query, key, value = self._project(x, others)
        mask = self._never_empty(mask)
        dropout = self.dropout if self.training else 0.0
        size = _chunk_size(query, key)
        if size >= query.shape[0]:
            y = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        else:
            count = -(-query.shape[0] // size)
            masks = mask.split(size) if mask is not None and mask.dim() == 4 else [mask] * count
            parts = zip(query.split(size), key.split(size), value.split(size), masks, strict=True)
            y = torch.cat([F.scaled_dot_product_attention(*p, dropout_p=dropout) for p in parts])
        return self.out_proj(y.permute(2, 0, 1, 3).flatten(2))  # [N, heads, B, d] -> [B, N, C]

    def weights(
        self, x: Float[Tensor, "B N C"], mask: Mask = None, others: Float[Tensor, "keys N C"] | None = None
    ) -> Float[Tensor, "N heads B keys"]:
        """The attention weights of ``forward`` before dropout; rows sum to 1."""
        query, key, _ = self._project(x, others)
        scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        mask = self._never_empty(mask)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return scores.softmax(-1)

    def _never_empty(self, mask: Tensor | None) -> Tensor | None:
        return mask if mask is None or mask.dim() == 4 else or_itself(mask, place()[0] if self.gather else 0)

    def _project(self, x: Tensor, others: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``[N, heads, B, d]``, keys and values ``[N, heads, keys, d]``, as views without a copy."""
        if self.gather and others is None:
            others = gather_set(x)
        if others is not None:
            dim = x.shape[-1]
            query = linear(x, self.in_proj_weight[:dim], self.in_proj_bias[:dim])
            packed = linear(others, self.in_proj_weight[dim:], self.in_proj_bias[dim:])
            key, value = packed.chunk(2, -1)
        else:  # cut along the channels, so that the gradient is put together in the layout the product needs
            query, key, value = linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        return self._split_heads(query), self._split_heads(key), self._split_heads(value)

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).permute(1, 2, 0, 3)  # [B, N, C] -> [N, heads, B, d]


class EncoderLayer(nn.Module):
    """The post-norm transformer encoder layer, its set on the first axis.

    Numerically and by parameter names :class:`torch.nn.TransformerEncoderLayer` with ReLU and ``batch_first=False``.
    For float16 input or float16 autocast it computes in float32, where neither scores nor squares can overflow.

    Args:
        dim: channels ``C``.
        num_heads: heads of the attention.
        mlp_ratio: width of the feed-forward part over ``dim``.
        dropout: on both residual branches and inside the feed-forward part.
        attention_dropout: on the attention weights.
        gather: attend to the samples of all processes.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float = 1.0,
        dropout: float = 0.5,
        attention_dropout: float = 0.5,
        gather: bool = False,
    ) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        if hidden < 1:
            raise InvalidInput(
                f"`mlp_ratio` ({mlp_ratio}) leaves no channel of `dim` ({dim}) in the feed-forward part."
            )
        self.self_attn = SetAttention(dim, num_heads, dropout=attention_dropout, gather=gather)
        self.linear1 = Linear(dim, hidden)
        self.linear2 = Linear(hidden, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.dropout1 = nn.Dropout(dropout)
        self.dropout2 = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "B C"] | Float[Tensor, "B N C"],
        mask: Mask = None,
        others: Float[Tensor, "keys C"] | Float[Tensor, "keys N C"] | None = None,
    ) -> Float[Tensor, "B C"] | Float[Tensor, "B N C"]:
        """Relate the samples of ``x``, ``[B, C]`` or ``[B, N, C]``, along the first axis; same shape back.

        ``others`` is the set to attend to, with as many axes; None: ``x`` itself.
        """
        if x.dim() == 2:
            return self.forward(x.unsqueeze(1), mask, None if others is None else others.unsqueeze(1)).squeeze(1)
        if is_half(x) or (others is not None and is_half(others)):
            return self._in_float32(x, mask, others)
        x = self.norm1(x + self.dropout1(self.self_attn(x, mask, others)))
        return self.norm2(x + self.dropout2(self.linear2(self.dropout(self.linear1(x).relu()))))

    def _in_float32(self, x: Tensor, mask: Tensor | None, others: Tensor | None) -> Tensor:
        weights = {name: weight.float() for name, weight in self.named_parameters()}
        others = None if others is None else others.float()
        with torch.autocast(x.device.type, enabled=False):
            return torch.func.functional_call(self, weights, (x.float(), mask, others)).to(x.dtype)


def or_itself(mask: Bool[Tensor, "B keys"], rank: int = 0) -> Bool[Tensor, "B keys"]:
    """Give a row that may attend to nobody itself: a softmax over nothing would be NaN.

    The keys begin with the samples of all processes, in the order of their ranks.
    """
    rows = torch.arange(mask.shape[0], device=mask.device)
    columns = torch.arange(mask.shape[1], device=mask.device)
    itself = rows[:, None] + rank * len(rows) == columns
    return mask | (itself & ~mask.any(1, keepdim=True))


def is_half(x: Tensor) -> bool:
    """Whether float16 would be computed in: bfloat16 has float32's range and needs no care."""
    if x.dtype == torch.float16:
        return True
    device = x.device.type
    if not torch.amp.is_autocast_available(device):  # the meta device
        return False
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16


def _chunk_size(query: Tensor, key: Tensor) -> int:
    """How many positions fit one call of the fused kernels."""
    _, heads, size, width = query.shape
    size = max(size, key.shape[2])  # gathered keys are more than queries
    index = heads * max(1, -(-size // 128)) * 128 * max(width, 32)
    return max(1, min(MAX_GRID // heads, MAX_INDEX // index))


class Recordable:
    """A module whose attention can be recorded: derive from ``torch.nn.Module`` and from this.

    Being one is said, not guessed from attributes: other people's modules have a ``record`` or ``options``, too.
    """

    record_options: ClassVar[frozenset[str]] = frozenset()
    """What :func:`record_attention` may be asked for."""

    def record(self, keep: Callable[[Tensor], None], **what: object) -> list[RemovableHandle]:
        """Hand every attention map to ``keep`` from now on, until the returned hooks are removed.

        Args:
            keep: called with a detached map.
            what: those of ``record_options`` that were asked for.
        """
        raise NotImplementedError


@contextmanager
def record_attention(model: nn.Module, **what: object) -> Iterator[dict[str, list[Tensor]]]:
    """Record who attends to whom while the model runs.

    Nothing is computed twice unless this context is open; outputs do not change, and the random state is not touched.

    Args:
        model: holds one or more relations, or is one.
        what: options of single kinds of modules; the relations over a batch have none, CrossTransformer needs
            ``positions=[(row, column), ...]``, the query locations to record.

    Yields:
        Module name -> list of detached maps, one per call and layer, rows summing to 1, before dropout:
        ``[heads, B, B]`` for BatchFormer (also in evaluation, where its output stays the input), ``[N, heads, B, B]``
        for BatchFormerV2, ``[positions, n_c, H', W']`` for every query and class of CrossTransformer, and for
        AttentionPool ``[B, heads, K, N]`` with several queries and ``[B, heads, 1, 1 + N]``, its own query first, with
        one.

    Raises:
        InvalidInput: if the model holds nothing that can be recorded, or ``what`` has an option nothing knows.

    >>> from setwise.nn import BatchFormer
    >>> relation = BatchFormer(dim=16)
    >>> with record_attention(relation) as maps:
    ...     _ = relation(torch.randn(8, 16))
    >>> maps[""][0].shape
    torch.Size([4, 8, 8])
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, Recordable)}
    if not found:
        raise InvalidInput(f"There is no relation in this {type(model).__name__} whose attention could be recorded.")
    known = frozenset[str]().union(*(module.record_options for module in found.values()))
    if unknown := sorted(set(what) - known):
        raise InvalidInput(f"Nothing in this model can record {unknown}; options: {sorted(known) or 'none'}.")
    maps: dict[str, list[Tensor]] = {name: [] for name in found}
    hooks: list[RemovableHandle] = []
    try:
        for name, module in found.items():
            hooks += module.record(maps[name].append, **{k: v for k, v in what.items() if k in module.record_options})
        yield maps
    finally:
        for hook in hooks:
            hook.remove()
