"""The paper's pseudo-code as one function, for a training loop that already has an encoder layer."""

from collections.abc import Callable
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor, nn

from setwise.errors import InvalidInput
from setwise.nn import streams
from setwise.nn.batchformer import BatchFormer, BatchFormerV2

__all__ = ["batchformer"]

T = TypeVar("T")


def batchformer(
    x: Float[Tensor, "B C"], y: T, encoder: Callable[[Tensor], Tensor], is_training: bool
) -> tuple[Float[Tensor, "rows C"], T]:
    """Double features and target: the plain samples, then the same after an encoder layer over the batch.

    Args:
        x: features ``[B, C]``.
        y: target of the ``B`` samples, anything :func:`setwise.nn.streams.tile` takes.
        encoder: called on ``[B, 1, C]`` with the set on the first axis: ``torch.nn.TransformerEncoderLayer(C, 4, C,
            0.5)`` as in the paper, or ``BatchFormer(C).layers[0]``.
        is_training: False returns ``x`` and ``y`` themselves.

    Returns:
        ``(x, y)`` of 2B samples in training.

    Raises:
        InvalidInput: if the encoder would attend along another axis, doubles by itself, or changes the shape.

    Source: Hou, Yu, Tao, BatchFormer, CVPR 2022, arXiv:2203.01522, algorithm 1.

    >>> import torch
    >>> encoder = torch.nn.TransformerEncoderLayer(64, 4, 64, 0.5)
    >>> x, y = batchformer(torch.randn(32, 64), torch.arange(32), encoder, True)
    >>> x.shape, y.shape
    (torch.Size([64, 64]), torch.Size([64]))
    """
    if not is_training:
        return x, y
    if x.dim() != 2:
        raise InvalidInput(f"`x` must be features [B, C], but it has shape {tuple(x.shape)}.")
    if len(x) == 0:
        raise InvalidInput("A relation needs at least one sample, but the batch is empty.")
    _check_encoder(encoder)
    related = encoder(x.unsqueeze(1))  # [B, C] -> [B, 1, C]: the batch is the set, one position
    kept, found = (
        (len(x), 1, x.shape[1]),
        tuple(related.shape) if isinstance(related, Tensor) else type(related).__name__,
    )
    if found != kept:
        raise InvalidInput(
            f"`encoder` must return a tensor of the shape {kept} it was called on, but it returned {found}."
        )
    x = streams.join(x, related.squeeze(1))
    return x, streams.tile(y, like=x)


def _check_encoder(encoder: Callable[[Tensor], Tensor]) -> None:
    if isinstance(encoder, BatchFormer | BatchFormerV2):
        raise InvalidInput(
            f"`encoder` is one layer, but it is a whole {type(encoder).__name__}, which doubles the batch itself: "
            "pass its `layers[0]`, or call it instead of this function."
        )
    modules = encoder.modules() if isinstance(encoder, nn.Module) else ()
    if any(isinstance(module, nn.MultiheadAttention) and module.batch_first for module in modules):
        raise InvalidInput(
            "`encoder` has batch_first=True, so it would attend along the single position and no sample would see "
            "another. Build it with batch_first=False."
        )
