"""Attention pooling: learned queries gather the patches of an image, one for all classes or one for each class.

Letters: ``B`` images, ``N`` patches, ``C`` channels, ``H W`` map size, ``K`` queries.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from setwise.errors import InvalidInput
from setwise.nn.attention import Recordable
from setwise.nn.linear import Linear
from setwise.nn.recompute import recomputed

__all__ = ["AttentionPool", "PerClassLinear", "PoolLayer"]

EPS = 1e-6
"""Of every LayerNorm, as in the released models."""
INIT_STD = 0.02
"""Of queries and linear weights, as in the released models."""


class AttentionPool(nn.Module, Recordable):
    """Pool the patches of an image by attention: learned queries look at all patches, and one looks can be recorded.

    Each layer is a residual attention of the queries over the patches and a residual feed-forward part on the queries;
    the patches stay as they are. A final LayerNorm follows. There are no positions: the order of the patches means
    nothing. With several queries, those of the first layer are projected once for the whole batch, for they do not
    depend on the image. The attention is fused; :func:`setwise.nn.record_attention` computes the maps beside it.

    Args:
        dim: channels ``C``.
        num_queries: queries ``K``. Paper: 1, or one for each class.
        num_heads: attention heads; must divide ``dim``. Paper: 1.
        mlp_ratio: width of the feed-forward part over ``dim``. Paper: 3.
        query_in_keys: the queries are keys and values, too; None: as released, which is True for one query and False
            for several.
        channels_first: the input are maps ``[B, C, H, W]``; otherwise tokens ``[B, N, C]``.
        num_layers: layers one after another. Paper: 1.
        layer_scale: initial factor on both residual branches. Paper: 1e-4 for S60, else 1e-6 (released code).
        dropout: on what the attention gives and in the feed-forward part. Released: 0.
        attention_dropout: on the attention weights, in training. Released: 0.
        thrifty: in training, compute cheap activations again instead of keeping them; no value changes. With dropout
            everything is kept.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        InvalidInput: for arguments out of range, and for an input of another layout or width.

    Source: Touvron et al., Augmenting Convolutional Networks with Attention-based Aggregation, arXiv:2112.13692.

    >>> AttentionPool(dim=64)(torch.randn(8, 49, 64)).shape
    torch.Size([8, 64])
    >>> AttentionPool(dim=64, num_queries=10, channels_first=True)(torch.randn(8, 64, 7, 9)).shape
    torch.Size([8, 10, 64])
    """

    record_options: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self,
        dim: int,
        *,
        num_queries: int = 1,
        num_heads: int = 1,
        mlp_ratio: float = 3.0,
        query_in_keys: bool | None = None,
        channels_first: bool = False,
        num_layers: int = 1,
        layer_scale: float = 1e-4,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        thrifty: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        _check_arguments(dim=dim, num_queries=num_queries, num_heads=num_heads, num_layers=num_layers)
        self.dim, self.num_queries, self.channels_first = dim, num_queries, channels_first
        self.query = nn.Parameter(torch.empty(1, num_queries, dim, device=device, dtype=dtype))
        self.layers = nn.ModuleList(
            PoolLayer(
                dim,
                num_heads=num_heads,
                mlp_ratio=mlp_ratio,
                query_in_keys=num_queries == 1 if query_in_keys is None else query_in_keys,
                layer_scale=layer_scale,
                dropout=dropout,
                attention_dropout=attention_dropout,
                thrifty=thrifty,
                device=device,
                dtype=dtype,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim, eps=EPS, device=device, dtype=dtype)
        nn.init.trunc_normal_(self.query, std=INIT_STD)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """The queries, as released."""
        return {"query"}

    def extra_repr(self) -> str:  # noqa: D102  torch's hook for repr()
        return f"dim={self.dim}, num_queries={self.num_queries}, channels_first={self.channels_first}"

    # Plain `Tensor` in these signatures: torch.jit.script, which timm's users call, resolves no jaxtyping annotation.
    def forward(self, x: Tensor) -> Tensor:
        """Pool.

        Args:
            x: tokens ``[B, N, C]``, or maps ``[B, C, H, W]`` with ``channels_first``.

        Returns:
            ``[B, C]`` for one query, ``[B, K, C]`` for several.
        """
        if not torch.jit.is_scripting():
            self._check(x)
        if self.channels_first:
            x = x.flatten(2).transpose(1, 2)  # [B, C, H, W] -> [B, N, C]
        query = self.query
        for layer in self.layers:
            query = layer(query, x)  # [1, K, C], then [B, K, C]
        query = self.norm(query)
        return query.squeeze(1) if self.num_queries == 1 else query

    @torch.jit.ignore
    def reset_queries(self, num_queries: int) -> None:
        """Have ``num_queries`` queries from now on, all of them the mean of those there were.

        Raises:
            InvalidInput: for fewer than one.
        """
        _check_arguments(num_queries=num_queries)
        mean = self.query.detach().mean(1, keepdim=True).repeat(1, num_queries, 1)
        self.query = nn.Parameter(mean, requires_grad=self.query.requires_grad)
        self.num_queries = num_queries

    def record(self, keep: Callable[[Tensor], None], **what: object) -> list[RemovableHandle]:
        """Hand every attention map ``[B, heads, K, N]`` to ``keep``; see :func:`setwise.nn.record_attention`.

        Where the queries are keys, they come first: ``[B, heads, 1, 1 + N]`` for one query.
        """

        def weights(layer: nn.Module, args: tuple) -> None:
            with torch.no_grad():
                keep(layer.weights(*args))  # type: ignore[operator]

        return [layer.register_forward_pre_hook(weights) for layer in self.layers]

    def _check(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):  # torch.fx traces with a stand-in whose shape is not known
            return
        wanted, axis = ("[B, C, H, W]", 1) if self.channels_first else ("[B, N, C]", 2)
        other = "False" if self.channels_first else "True"
        if x.dim() != len(wanted.split()) or x.shape[axis] != self.dim:
            raise InvalidInput(
                f"AttentionPool takes {wanted} with C = `dim` ({self.dim}) for channels_first={self.channels_first}, "
                f"but the input has shape {list(x.shape)}. Pass channels_first={other} for the other layout."
            )
        if x.numel() == 0 and x.shape[0] > 0:
            raise InvalidInput(f"AttentionPool needs at least one patch, but the input has shape {list(x.shape)}.")


class PoolLayer(nn.Module):
    """One layer of :class:`AttentionPool`: queries attend to patches, then a feed-forward part follows.

    Args:
        dim: channels ``C``.
        num_heads: attention heads.
        mlp_ratio: width of the feed-forward part over ``dim``.
        query_in_keys: the queries are keys and values, too.
        layer_scale: initial factor on both residual branches.
        dropout: on both residual branches and inside the feed-forward part.
        attention_dropout: on the attention weights.
        thrifty: compute cheap activations again in training; not with dropout, which draws random numbers.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 1,
        mlp_ratio: float = 3.0,
        query_in_keys: bool = True,
        layer_scale: float = 1e-4,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        thrifty: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        if dim % num_heads:
            raise InvalidInput(f"`dim` ({dim}) must be divisible by `num_heads` ({num_heads}).")
        if hidden < 1:
            raise InvalidInput(
                f"`mlp_ratio` ({mlp_ratio}) leaves no channel of `dim` ({dim}) in the feed-forward part."
            )
        for name, value in (("dropout", dropout), ("attention_dropout", attention_dropout)):
            if not 0 <= value < 1:
                raise InvalidInput(f"`{name}` must be at least 0 and below 1, but it is {value}.")
        to = {"device": device, "dtype": dtype}
        self.num_heads, self.query_in_keys, self.attention_dropout = num_heads, query_in_keys, attention_dropout
        self.thrifty = thrifty and dropout == 0
        self.gamma_1 = nn.Parameter(torch.full((dim,), layer_scale, **to))
        self.gamma_2 = nn.Parameter(torch.full((dim,), layer_scale, **to))
        self.norm1 = nn.LayerNorm(dim, eps=EPS, **to)
        self.q = Linear(dim, dim, **to)
        self.k = Linear(dim, dim, **to)
        self.v = Linear(dim, dim, **to)
        self.proj = Linear(dim, dim, **to)
        self.norm2 = nn.LayerNorm(dim, eps=EPS, **to)
        self.fc1 = Linear(dim, hidden, **to)
        self.fc2 = Linear(hidden, dim, **to)
        self.dropout = nn.Dropout(dropout)
        for linear in (self.q, self.k, self.v, self.proj, self.fc1, self.fc2):
            nn.init.trunc_normal_(linear.weight, std=INIT_STD)
            nn.init.zeros_(linear.bias)

    def forward(self, query: Tensor, x: Tensor) -> Tensor:
        """``query`` ``[B, K, C]``, or ``[1, K, C]`` for all images, and patches ``x [B, N, C]`` -> ``[B, K, C]``."""
        q, keys = self._attending(query, x)
        q = q.expand(x.shape[0], -1, -1, -1)
        dropout = self.attention_dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, self._heads(self.k(keys)), self._heads(self.v(keys)), dropout_p=dropout)
        y = self.proj(y.transpose(1, 2).flatten(2))  # [B, heads, K, d] -> [B, K, C]
        query = query + self.gamma_1 * self.dropout(y)
        return query + self.gamma_2 * self.dropout(self._feed_forward(query))

    def weights(self, query: Tensor, x: Tensor) -> Tensor:
        """The attention weights of ``forward`` before dropout, ``[B, heads, K, keys]``; rows sum to 1."""
        q, keys = self._attending(query, x)
        scores = q @ self._heads(self.k(keys)).transpose(-2, -1) * q.shape[-1] ** -0.5
        return scores.softmax(-1)

    def _attending(self, query: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Projected queries ``[B or 1, heads, K, d]``, and what is attended to, ``[B, keys, C]``."""
        query, keys = self.norm1(query), self.norm1(x)
        if self.query_in_keys:
            keys = torch.cat([query.expand(x.shape[0], -1, -1), keys], dim=1)
        return self._heads(self.q(query)), keys

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, N, C] -> [B, heads, N, d]

    def _feed_forward(self, query: Tensor) -> Tensor:
        if not torch.jit.is_scripting():  # noqa: SIM102  torch.jit.script reads past this condition alone
            if self.thrifty and self.training:
                return recomputed(self._narrow, recomputed(self._widen, query))
        return self._narrow(self._widen(query))

    def _widen(self, query: Tensor) -> Tensor:
        return self.fc1(self.norm2(query))

    def _narrow(self, hidden: Tensor) -> Tensor:
        return self.fc2(self.dropout(F.gelu(hidden)))


class PerClassLinear(nn.Module):
    """Score the query of each class with that class's own weights: ``[B, K, C] -> [B, K]``.

    What the released code keeps as ``K`` linear layers of one output is one weight ``[K, C]`` and one bias ``[K]``
    here, named and shaped as those of ``torch.nn.Linear(C, K)``.

    Args:
        in_features: channels ``C``.
        out_features: classes ``K``.
        device: of the parameters.
        dtype: of the parameters.

    >>> PerClassLinear(64, 10)(torch.randn(8, 10, 64)).shape
    torch.Size([8, 10])
    """

    def __init__(self, in_features: int, out_features: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype))
        nn.init.trunc_normal_(self.weight, std=INIT_STD)

    def extra_repr(self) -> str:  # noqa: D102  torch's hook for repr()
        return f"in_features={self.in_features}, out_features={self.out_features}"

    def forward(self, x: Tensor) -> Tensor:
        """Class scores ``[B, K]`` of ``x [B, K, C]``: row ``k`` of the weight scores query ``k``."""
        return torch.linalg.vecdot(x, self.weight) + self.bias


def _check_arguments(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise InvalidInput(f"`{name}` must be at least 1, but it is {value}.")
