"""BatchFormer and BatchFormerV2: samples of a batch learn from each other in training, and not at test time.

Letters: ``B`` samples, ``N`` token positions, ``C`` channels, ``H W`` map size.
"""

import warnings
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from setwise.errors import InvalidInput
from setwise.nn import streams
from setwise.nn.attention import EncoderLayer, Recordable, SetAttention
from setwise.nn.gather import gather_set, place

__all__ = ["BatchFormer", "BatchFormerV2"]

FEW_SAMPLES = 8
"""A set smaller than this is warned about: attention over it has next to nothing to attend to."""


class _Relation(nn.Module, Recordable):
    """What both versions share: the layers over the set, the checks, and the recording."""

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int | None,
        mlp_ratio: float,
        dropout: float,
        attention_dropout: float | None,
        num_layers: int,
        gather: bool,
    ) -> None:
        super().__init__()
        _check_positive(dim=dim, mlp_ratio=mlp_ratio, num_layers=num_layers)
        _check_probability(dropout=dropout, attention_dropout=attention_dropout)
        self.dim, self.gather = dim, gather
        self.layers = nn.ModuleList(
            EncoderLayer(
                dim,
                _default_heads(dim) if num_heads is None else num_heads,
                mlp_ratio=mlp_ratio,
                dropout=dropout,
                attention_dropout=dropout if attention_dropout is None else attention_dropout,
                gather=gather,
            )
            for _ in range(num_layers)
        )
        self._warned = False

    def extra_repr(self) -> str:
        return f"dim={self.dim}, gather={self.gather}"

    def _relate(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        related = x
        for layer in self.layers:
            related = layer(related, mask)
        return related.to(x.dtype)  # under bfloat16 autocast on a GPU the norms return float32

    def _check_set(self, size: int) -> None:
        if size == 0:
            raise InvalidInput("A relation needs at least one sample, but the batch is empty.")
        if not self.training or self._warned or torch.compiler.is_compiling():
            return
        joined = size * (place()[1] if self.gather else 1)
        if joined < FEW_SAMPLES:
            self._warned = True
            warnings.warn(
                f"{type(self).__name__} relates only {joined} sample{'s' * (joined > 1)}: there is little to learn "
                "from so few others. Use a larger batch, or gather=True over several processes.",
                stacklevel=3,
            )

    def record(self, keep: Callable[[Tensor], None], **what: object) -> list[RemovableHandle]:
        """Hand every attention map to ``keep``; see :func:`setwise.nn.record_attention`."""

        def weights(attention: nn.Module, args: tuple, kwargs: dict) -> None:
            with torch.no_grad():
                keep(self._as_map(attention.weights(*args, **kwargs)))  # type: ignore[operator]

        def relate_anyway(module: nn.Module, args: tuple, kwargs: dict) -> None:
            # In evaluation forward() does not call the layers; call them here so that their hooks see the weights.
            if not module.training:
                with torch.no_grad():
                    self._relate_input(*args, **kwargs)

        attentions = [module for module in self.layers.modules() if isinstance(module, SetAttention)]
        hooks = [attention.register_forward_pre_hook(weights, with_kwargs=True) for attention in attentions]
        return [*hooks, self.register_forward_pre_hook(relate_anyway, with_kwargs=True)]

    def _as_map(self, weights: Tensor) -> Tensor:
        raise NotImplementedError

    def _relate_input(self, *args: object, **kwargs: object) -> None:
        raise NotImplementedError


class BatchFormer(_Relation):
    """Let the samples of a mini-batch learn from each other: an encoder layer over the batch axis of features.

    In training the output holds every sample twice, plain and related, for one shared classifier; double the target
    with :func:`setwise.nn.streams.tile`. In evaluation the input comes back and the module can be thrown away. There
    are no positions: the order of a batch means nothing.

    Args:
        dim: width ``C`` of the features.
        num_heads: attention heads; None: the largest divisor of ``dim`` up to 4. Paper: 4.
        mlp_ratio: width of the feed-forward part over ``dim``. Paper: 1.
        dropout: on the residual branches and in the feed-forward part. Paper: 0.5.
        attention_dropout: on the attention weights; None: as ``dropout``. At 0 no ``[B, B]`` matrix is kept; above 0
            the fused kernels are left, which matters from about a thousand samples on.
        num_layers: encoder layers. Paper: 1.
        gather: relate the samples of all processes (each returns its own ``[2B, C]``). Without an initialised process
            group nothing changes.

    Raises:
        InvalidInput: for arguments out of range, a wrong axis, another width, or an empty batch.

    Source: Hou, Yu, Tao, BatchFormer, CVPR 2022, arXiv:2203.01522, section 3.2.

    >>> relation = BatchFormer(dim=64)
    >>> relation(torch.randn(32, 64)).shape
    torch.Size([64, 64])
    >>> relation.eval()(torch.randn(32, 64)).shape
    torch.Size([32, 64])
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int | None = None,
        mlp_ratio: float = 1.0,
        dropout: float = 0.5,
        attention_dropout: float | None = None,
        num_layers: int = 1,
        gather: bool = False,
    ) -> None:
        super().__init__(
            dim,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
            attention_dropout=attention_dropout,
            num_layers=num_layers,
            gather=gather,
        )

    def forward(self, x: Float[Tensor, "B C"], mask: Bool[Tensor, "B keys"] | None = None) -> Float[Tensor, "rows C"]:
        """Relate features.

        Args:
            x: features ``[B, C]``.
            mask: ``[B, B]`` boolean, True where a row may attend to a column; a row that may attend to nobody attends
                to itself. With ``gather``: ``[B, world_size * B]``.

        Returns:
            In training ``[2B, C]``: ``x`` unchanged, then the related rows. In evaluation ``x`` itself.
        """
        self._check(x, mask)
        return streams.join(x, self._relate(x, mask)) if self.training else x

    def relate(self, x: Float[Tensor, "B C"], mask: Bool[Tensor, "B keys"] | None = None) -> Float[Tensor, "B C"]:
        """The related rows alone, in training and evaluation: for transductive tests, where the paper has none."""
        self._check(x, mask)
        return self._relate(x, mask)

    def _check(self, x: Tensor, mask: Tensor | None) -> None:
        if x.dim() != 2:
            raise InvalidInput(
                f"BatchFormer relates features [B, C], one row a sample, but the input has shape {tuple(x.shape)}. "
                "Pool maps or tokens first, or use BatchFormerV2, which relates every position."
            )
        if x.shape[1] != self.dim:
            raise InvalidInput(
                f"The last axis of the features must be `dim` ({self.dim}), but the input has shape {tuple(x.shape)}"
                + (": is the batch on the last axis? Transpose it." if x.shape[0] == self.dim else ".")
            )
        self._check_set(x.shape[0])
        wanted = (x.shape[0], x.shape[0] * (place()[1] if self.gather else 1))
        if mask is not None and (mask.dtype != torch.bool or mask.shape != wanted):
            raise InvalidInput(
                f"`mask` must be boolean with one row a sample and one column a sample of the set, {list(wanted)}, but "
                f"it is {mask.dtype} of shape {list(mask.shape)}."
            )

    def _as_map(self, weights: Tensor) -> Tensor:
        return weights.squeeze(0)  # [1, heads, B, B] -> [heads, B, B]

    def _relate_input(self, x: Tensor, mask: Tensor | None = None) -> None:  # type: ignore[override]
        self.relate(x, mask)


class BatchFormerV2(_Relation):
    """BatchFormer at every token: at each position, the images of the batch learn from each other.

    Goes between the layers of a transformer; one set of weights serves all positions. The first insertion doubles the
    batch, each later one (``first=False``) relates the second half only, and all layers between see both streams.

    Args:
        dim: channels ``C``.
        channels_first: maps come as ``[B, C, H, W]``; otherwise ``[B, N, C]`` or ``[B, H, W, C]``.
        num_heads: attention heads; None: the largest divisor of ``dim`` up to 4. Paper: 4.
        mlp_ratio: width of the feed-forward part over ``dim``. Paper: 1.
        dropout: on the residual branches and in the feed-forward part. Paper: 0.5.
        attention_dropout: on the attention weights; None: as ``dropout``. Above 0 the fused kernels are left: 2.2x the
            time and 3x the memory of the attention on a CPU.
        num_layers: encoder layers. Paper: 1.
        gather: relate the samples of all processes.

    Raises:
        InvalidInput: for arguments out of range, a wrong axis, another width, an empty batch, or an odd number of rows
            with ``first=False``.

    Source: Hou et al., BatchFormerV2, arXiv:2204.01254, section 3.

    >>> relation = BatchFormerV2(dim=64)
    >>> tokens = relation(torch.randn(8, 49, 64))
    >>> relation(tokens, first=False).shape
    torch.Size([16, 49, 64])
    """

    def __init__(
        self,
        dim: int,
        *,
        channels_first: bool = False,
        num_heads: int | None = None,
        mlp_ratio: float = 1.0,
        dropout: float = 0.5,
        attention_dropout: float | None = None,
        num_layers: int = 1,
        gather: bool = False,
    ) -> None:
        super().__init__(
            dim,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
            attention_dropout=attention_dropout,
            num_layers=num_layers,
            gather=gather,
        )
        self.channels_first = channels_first

    def extra_repr(self) -> str:  # noqa: D102  torch's hook for repr()
        return f"{super().extra_repr()}, channels_first={self.channels_first}"

    def forward(
        self, x: Float[Tensor, "B ..."], first: bool = True, padding: Bool[Tensor, "samples ..."] | None = None
    ) -> Float[Tensor, "rows ..."]:
        """Relate tokens or maps.

        Args:
            x: ``[B, N, C]`` or ``[B, H, W, C]``; ``[B, C, H, W]`` with ``channels_first``. With ``first=False`` it
                holds 2B rows, both streams.
            first: this is the first insertion: the batch is doubled.
            padding: ``[B, N]`` or ``[B, H, W]`` of one stream, True where a sample is padding: it is attended by
                nobody there and keeps its input. Paper: none, padding is attended like anything else.

        Returns:
            In training the layout of ``x`` with 2B rows; in evaluation ``x`` itself.
        """
        self._check(x, first, padding)
        if not self.training:
            return x
        plain, related = (x, x) if first else x.chunk(2)
        return streams.join(plain, self._relate_layout(related, padding))

    def _relate_layout(self, x: Tensor, padding: Tensor | None) -> Tensor:
        if self.channels_first:
            tokens = x.flatten(2).transpose(1, 2)  # [B, C, H, W] -> [B, N, C]
            return self._relate_tokens(tokens, padding).transpose(1, 2).unflatten(2, x.shape[2:])
        if x.dim() == 4:  # [B, H, W, C] -> [B, N, C] and back
            return self._relate_tokens(x.flatten(1, 2), padding).unflatten(1, x.shape[1:3])
        return self._relate_tokens(x, padding)

    def _relate_tokens(self, x: Tensor, padding: Tensor | None) -> Tensor:
        if padding is None:
            return self._relate(x)
        padding = padding.flatten(1)  # [B, H, W] -> [B, N]
        of_all = gather_set(padding.to(x.dtype)) > 0 if self.gather else padding
        real = ~of_all.T  # [N, keys]
        # Where all are padding nobody would be left to attend to, and a softmax over nothing is NaN: attend to all, and
        # keep the input below.
        mask = real | ~real.any(1, keepdim=True)
        return torch.where(padding.unsqueeze(-1), x, self._relate(x, mask[:, None, None]))

    def _check(self, x: Tensor, first: bool, padding: Tensor | None) -> None:
        wanted = "[B, C, H, W]" if self.channels_first else "[B, N, C] or [B, H, W, C]"
        shape = tuple(x.shape)
        if x.dim() != 4 and (self.channels_first or x.dim() != 3):
            raise InvalidInput(
                f"BatchFormerV2 with channels_first={self.channels_first} relates {wanted}, but the input has shape "
                f"{shape}. For features [B, C] use BatchFormer."
            )
        if x.shape[1 if self.channels_first else -1] != self.dim:
            raise InvalidInput(
                f"The channels of {wanted} must be `dim` ({self.dim}), but the input has shape {shape}; "
                f"channels_first is {self.channels_first}."
            )
        if self.training and not first and x.shape[0] % 2:
            raise InvalidInput(
                f"With first=False the input holds both streams, so an even number of rows, but it has {x.shape[0]}. "
                "Was the first insertion left out?"
            )
        samples = x.shape[0] if first or not self.training else x.shape[0] // 2
        self._check_set(samples)
        positions = x.shape[2:] if self.channels_first else x.shape[1:-1]
        if padding is not None and (padding.dtype != torch.bool or padding.shape != (samples, *positions)):
            raise InvalidInput(
                f"`padding` must be boolean with one row a sample of one stream, {[samples, *positions]}, but it is "
                f"{padding.dtype} of shape {list(padding.shape)}."
            )

    def _as_map(self, weights: Tensor) -> Tensor:
        return weights  # [N, heads, B, B]

    def _relate_input(self, x: Tensor, first: bool = True, padding: Tensor | None = None) -> None:  # type: ignore[override]
        self._check(x, first, padding)
        self._relate_layout(x, padding)


def _default_heads(dim: int) -> int:
    return next(heads for heads in (4, 3, 2, 1) if dim % heads == 0)


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if value <= 0:
            raise InvalidInput(f"`{name}` must be above 0, but it is {value}.")


def _check_probability(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not 0 <= value <= 1:
            raise InvalidInput(f"`{name}` is a probability in 0..1, but it is {value}.")
