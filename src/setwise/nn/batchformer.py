"""BatchFormer and BatchFormerV2: samples of a batch learn from each other in training, and not at test time.

Letters: ``B`` samples, ``N`` token positions, ``C`` channels, ``H W`` map size.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from setwise.errors import InvalidInput
from setwise.nn import streams
from setwise.nn.gather import gather_set, place
from setwise.nn.memory import Memory
from setwise.nn.relation import Relation

__all__ = ["BatchFormer", "BatchFormerV2"]


class BatchFormer(Relation):
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
        num_inducing: relate through so many learned points, for sets of thousands: linear in the set and not exact,
            see :class:`setwise.nn.induced.InducedLayer`. None: all to all. Paper: None.
        memory: features of so many past samples that are related to as well, without a gradient; for small batches,
            with one layer. They are kept in the state dict. Paper: 0.
        gather: relate the samples of all processes (each returns its own ``[2B, C]``). Without an initialised process
            group nothing changes.

    Raises:
        InvalidInput: for arguments out of range, a wrong axis, another width, an empty batch, or a mask with a memory.

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
        num_inducing: int | None = None,
        memory: int = 0,
        gather: bool = False,
    ) -> None:
        super().__init__(
            dim,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
            attention_dropout=attention_dropout,
            num_layers=num_layers,
            num_inducing=num_inducing,
            gather=gather,
        )
        if memory and num_layers > 1:
            raise InvalidInput(
                f"`memory` ({memory}) goes with one layer, but `num_layers` is {num_layers}: what the first layer "
                "made of past samples was not kept."
            )
        self.memory = Memory(memory, dim) if memory else None

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
        if not self.training:
            return x
        if self.memory is None:
            return streams.join(x, self._relate(x, mask))
        batch = gather_set(x) if self.gather else x
        related = self._relate(x, None, self.memory.join(batch))
        self.memory.write(batch)
        return streams.join(x, related)

    def relate(self, x: Float[Tensor, "B C"], mask: Bool[Tensor, "B keys"] | None = None) -> Float[Tensor, "B C"]:
        """The related rows alone, in training and evaluation, for tests that keep the relation; the paper has none.

        Without a memory samples are related to each other (transductive). With one, each is related to itself and to
        the memory alone, so that a prediction does not depend on the rest of the batch.
        """
        self._check(x, mask)
        if self.memory is None:
            return self._relate(x, mask)
        joined = self.memory.join(x)
        mask = torch.ones(len(x), len(joined), dtype=torch.bool, device=x.device)
        mask[:, : len(x)] = torch.eye(len(x), dtype=torch.bool, device=x.device)
        return self._relate(x, mask, joined)

    def _remembered(self) -> int:
        return 0 if self.memory is None else len(self.memory)

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
        if mask is not None and self.memory is not None:
            raise InvalidInput(
                f"A `mask` says who of the batch attends to whom, and there is none for the memory of "
                f"{self.memory.size} past samples: use one of both."
            )
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


class BatchFormerV2(Relation):
    """BatchFormer at every token: at each position, the images of the batch learn from each other.

    Goes between the layers of a transformer; one set of weights serves all positions. The first insertion doubles the
    batch, each later one (``first=False``) relates the second half only, and all layers between see both streams.

    Args:
        dim: channels ``C``.
        channels_first: maps come as ``[B, C, H, W]``; otherwise ``[B, N, C]`` or ``[B, H, W, C]``.
        num_heads: attention heads; None: the largest divisor of ``dim`` up to 4. Paper: 4.
        mlp_ratio: width of the feed-forward part over ``dim``. Paper: 1.
        dropout: on the residual branches and in the feed-forward part. Paper: 0.5.
        attention_dropout: on the attention weights; None: as ``dropout``. Above 0 the fused kernels are left
            (benchmarks/results/insertion.md).
        num_layers: encoder layers. Paper: 1.
        num_inducing: relate through so many learned points at every position; None: all to all. Paper: None.
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
        num_inducing: int | None = None,
        gather: bool = False,
    ) -> None:
        super().__init__(
            dim,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
            attention_dropout=attention_dropout,
            num_layers=num_layers,
            num_inducing=num_inducing,
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
        nothing = padding.unsqueeze(-1)
        related = self._relate(x.masked_fill(nothing, 0), mask[:, None, None])  # a NaN in padding would reach everybody
        return torch.where(nothing, x, related)

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
