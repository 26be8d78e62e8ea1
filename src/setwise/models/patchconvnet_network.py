"""PatchConvNet: one column of convolutions at a sixteenth of the image's side, and attention that pools it.

Letters: ``B`` images, ``H W`` size of the map, ``C`` channels, ``K`` classes.
"""

from typing import Any

import torch
from timm.layers import get_device_dtype
from timm.models import checkpoint, checkpoint_seq
from timm.models._features import feature_take_indices  # what all of timm's own models call
from torch import Tensor, nn

from setwise.errors import InvalidInput
from setwise.models.patchconvnet_blocks import PATCH, ConvBlock, Stem
from setwise.nn import AttentionPool, PerClassLinear

__all__ = ["AveragePool", "PatchConvNet"]

POOLS = ("token", "avg", "")


class AveragePool(nn.Module):
    """Mean over the map and LayerNorm, ``[B, C, H, W] -> [B, C]``: the ablation of attention pooling.

    The paper averages and gives no details; that the norm follows the mean is our choice.
    """

    def __init__(self, dim: int, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102  the class says it
        return self.norm(x.mean((2, 3)))


class PatchConvNet(nn.Module):
    """A convolutional stem, ``depth`` residual blocks of one width at constant resolution, and attention pooling.

    There are no positions and no fixed size: any image from 1 pixel on, of any aspect ratio; the map has a sixteenth
    of each side, rounded up. The methods are timm's. :func:`setwise.nn.record_attention` reads the maps of ``pool``.

    Args:
        in_chans: channels of the image.
        num_classes: classes ``K``; 0 returns pooled features.
        global_pool: "token" pools by attention, "avg" averages, "" leaves the map (scores are then per position).
        embed_dim: channels ``C``. Paper: 384 (S), 768 (B), 1024 (L).
        depth: blocks of the trunk. Paper: 60 or 120.
        depth_token_only: layers of the attention pool. Paper: 1.
        num_heads: heads of the attention pool. Paper: 1.
        mlp_ratio: of the pool's feed-forward part. Paper: 3.
        per_class: one query for each class instead of one for all, whose score is that of its own query.
        stem: "conv", or "linear" as the paper's ablation.
        norm_layer: of the trunk alone; None: LayerNorm with eps 1e-6, as released. "batchnorm2d" for large batches, as
            the paper advises.
        init_values: initial layer scale, of trunk and pool. Released: 1e-4 for S60, else 1e-6.
        drop_rate: dropout on what the pool's attention gives and in its feed-forward part. Released: 0.
        attn_drop_rate: dropout on the pool's attention weights. Released: 0.
        drop_path_rate: of every block of the trunk, the same at all depths, as released.
        thrifty: in training, compute cheap activations again instead of keeping them; no value changes.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        InvalidInput: for arguments out of range.

    Source: Touvron et al., Augmenting Convolutional Networks with Attention-based Aggregation, arXiv:2112.13692.

    >>> model = PatchConvNet(embed_dim=32, depth=3, num_classes=10)
    >>> model(torch.randn(2, 3, 64, 100)).shape, model.forward_features(torch.randn(2, 3, 64, 100)).shape
    (torch.Size([2, 10]), torch.Size([2, 32, 4, 7]))
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        *,
        embed_dim: int = 384,
        depth: int = 60,
        depth_token_only: int = 1,
        num_heads: int = 1,
        mlp_ratio: float = 3.0,
        per_class: bool = False,
        stem: str = "conv",
        norm_layer: Any = None,
        init_values: float = 1e-4,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        thrifty: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise InvalidInput(f"`depth` must be at least 1, but it is {depth}.")
        if not 0 <= drop_path_rate < 1:
            raise InvalidInput(f"`drop_path_rate` must be at least 0 and below 1, but it is {drop_path_rate}.")
        to = {"device": device, "dtype": dtype}
        self.in_chans, self.num_classes, self.per_class = in_chans, num_classes, per_class
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.grad_checkpointing = False
        self._pool_options: dict[str, Any] = {
            "num_heads": num_heads,
            "mlp_ratio": mlp_ratio,
            "num_layers": depth_token_only,
            "layer_scale": init_values,
            "dropout": drop_rate,
            "attention_dropout": attn_drop_rate,
            "thrifty": thrifty,
        }
        self.stem = Stem(in_chans, embed_dim, kind=stem, thrifty=thrifty, **to)
        options: dict[str, Any] = {"norm_layer": norm_layer, "init_values": init_values, "thrifty": thrifty}
        self.blocks = nn.Sequential(
            *(ConvBlock(embed_dim, drop_path=drop_path_rate, **options, **to) for _ in range(depth))
        )
        # The stem counts as a level: a trunk of two blocks has the three that timm's tests and callers take by default.
        levels = ("stem", *(f"blocks.{i}" for i in range(depth)))
        self.feature_info = [{"num_chs": embed_dim, "reduction": PATCH, "module": level} for level in levels]
        self._set_pool(global_pool, to)
        self._set_head(to)

    # Plain annotations in what follows: torch.jit.script, which timm's users call, resolves no jaxtyping ones.
    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay besides those of one axis: the queries, as released."""
        return {"pool.query"}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters belong to which layer, for layer-wise learning rates."""
        return {"stem": r"^stem", "blocks": [(r"^blocks\.(\d+)", None), (r"^pool", (99999,))]}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only what passes between blocks for the backward pass, and compute the blocks again."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The last layer: linear, one linear row per class, or the identity where there are no classes."""
        return self.head

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier in the old one's place.

        Queries of the classes, where there are any, start anew from the mean of those there were; without classes they
        stay.

        Args:
            num_classes: its classes; 0 for pooled features.
            global_pool: "token", "avg" or ""; None: as it is.

        Raises:
            InvalidInput: for another pooling.
        """
        to = get_device_dtype(self)
        self.num_classes = num_classes
        if global_pool is not None and global_pool != self.global_pool:
            self._set_pool(global_pool, to)
        if self.per_class and self.global_pool == "token" and num_classes:
            self.pool.reset_queries(num_classes)  # type: ignore[operator]
        self._set_head(to)

    def _set_pool(self, global_pool: str, to: dict[str, Any]) -> None:
        if global_pool not in POOLS:
            raise InvalidInput(f"`global_pool` must be 'token', 'avg' or '', but it is {global_pool!r}.")
        self.global_pool = global_pool
        if global_pool == "token":
            self.pool: nn.Module = AttentionPool(
                self.embed_dim,
                num_queries=max(self.num_classes, 1) if self.per_class else 1,
                query_in_keys=not self.per_class,
                channels_first=True,
                **self._pool_options,
                **to,
            )
        else:
            self.pool = AveragePool(self.embed_dim, **to) if global_pool == "avg" else nn.Identity()
        self.pool.train(self.training)

    def _set_head(self, to: dict[str, Any]) -> None:
        self.many = isinstance(self.pool, AttentionPool) and self.pool.num_queries > 1
        if self.num_classes == 0:
            self.head: nn.Module = nn.Identity()
        elif self.many:
            self.head = PerClassLinear(self.embed_dim, self.num_classes, **to)
        else:
            self.head = nn.Linear(self.embed_dim, self.num_classes, **to)
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)
        self.head.train(self.training)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map: ``[B, in_chans, 16 H, 16 W] -> [B, C, H, W]``, in memory channels last; no norm follows it."""
        x = self.stem(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(self.blocks, x)
        else:
            x = self.blocks(x)
        return x.permute(0, 3, 1, 2)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify the map: ``[B, C, H, W] -> [B, K]``.

        With ``pre_logits``, or without classes, pooled features ``[B, C]``; those of several queries are averaged.
        """
        x = self.pool(x)  # [B, C], of several queries [B, K, C]
        if pre_logits or self.num_classes == 0:
            return x.mean(1) if self.many else x
        if self.global_pool == "":
            return self.head(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores ``[B, K]``."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps behind the stem (level 0) or chosen blocks (block ``i`` is level ``i + 1``), and the last one.

        Args:
            x: images ``[B, in_chans, 16 H, 16 W]``.
            indices: levels; the last so many for a number, None: all.
            norm: without effect: no norm follows the trunk but the pool's own.
            stop_early: end at the last chosen level.
            output_fmt: "NCHW" or "NHWC".
            intermediates_only: leave out the last map.
        """
        assert output_fmt in ("NCHW", "NHWC"), "Output format must be NCHW or NHWC."
        intermediates = []
        taken, last = feature_take_indices(len(self.blocks) + 1, indices)
        x = self.stem(x)
        if 0 in taken:
            intermediates.append(x.permute(0, 3, 1, 2) if output_fmt == "NCHW" else x)
        if torch.jit.is_scripting() or not stop_early:  # noqa: SIM108  torch.jit.script cannot slice
            blocks = self.blocks
        else:
            blocks = self.blocks[:last]
        for index, block in enumerate(blocks):
            if self.grad_checkpointing and not torch.jit.is_scripting():  # noqa: SIM108  and reads past this alone
                x = checkpoint(block, x)
            else:
                x = block(x)
            if index + 1 in taken:
                intermediates.append(x.permute(0, 3, 1, 2) if output_fmt == "NCHW" else x)
        if intermediates_only:
            return intermediates
        return x.permute(0, 3, 1, 2), intermediates

    @torch.jit.ignore
    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Cut off the blocks behind the last chosen level, and with ``prune_head`` pool and classifier.

        Returns:
            The chosen levels.
        """
        taken, last = feature_take_indices(len(self.blocks) + 1, indices)
        self.blocks = self.blocks[:last]
        if prune_head:
            self.reset_classifier(0, "")
        return taken
