"""What BatchFormer and BatchFormerV2 share."""

import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from setwise.errors import InvalidInput
from setwise.nn.attention import EncoderLayer, Recordable, SetAttention
from setwise.nn.gather import place
from setwise.nn.induced import InducedLayer

__all__ = ["Relation"]

FEW_SAMPLES = 8
"""A set smaller than this is warned about: attention over it has next to nothing to attend to."""


class Relation(nn.Module, Recordable):
    """The layers over the set, the checks and the recording; BatchFormer and BatchFormerV2 say what the set is."""

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int | None,
        mlp_ratio: float,
        dropout: float,
        attention_dropout: float | None,
        num_layers: int,
        num_inducing: int | None,
        gather: bool,
    ) -> None:
        super().__init__()
        _check_positive(dim=dim, mlp_ratio=mlp_ratio, num_layers=num_layers)
        _check_probability(dropout=dropout, attention_dropout=attention_dropout)
        self.dim, self.gather = dim, gather
        layer = EncoderLayer if num_inducing is None else partial(InducedLayer, num_inducing=num_inducing)
        self.layers = nn.ModuleList(
            layer(
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

    def extra_repr(self) -> str:  # noqa: D102  torch's hook for repr()
        return f"dim={self.dim}, gather={self.gather}"

    def _relate(self, x: Tensor, mask: Tensor | None = None, others: Tensor | None = None) -> Tensor:
        related = x
        for layer in self.layers:
            related = layer(related, mask, others)
        return related.to(x.dtype)  # under bfloat16 autocast on a GPU the norms return float32

    def _check_set(self, size: int) -> None:
        if size == 0:
            raise InvalidInput("A relation needs at least one sample, but the batch is empty.")
        if not self.training or self._warned or torch.compiler.is_compiling():
            return
        joined = size * (place()[1] if self.gather else 1) + self._remembered()
        if joined < FEW_SAMPLES:
            self._warned = True
            warnings.warn(
                f"{type(self).__name__} relates only {joined} sample{'s' * (joined > 1)}: there is little to learn "
                "from so few others. Use a larger batch, or gather=True over several processes.",
                stacklevel=3,
            )

    def _remembered(self) -> int:
        """Samples that are related to besides those of the batch."""
        return 0

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
