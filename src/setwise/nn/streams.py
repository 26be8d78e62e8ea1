"""All there is about two streams: how plain and related samples stand in one batch.

In training a relation turns ``B`` samples into ``2B``: the plain ones first, unchanged, then the related ones in the
same order. One head scores both, so the target must be doubled as well; :func:`tile` does it and refuses to guess.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from setwise.errors import InvalidInput

__all__ = ["join", "split", "tile"]

T = TypeVar("T")


def join(plain: Tensor, related: Tensor) -> Tensor:
    """Stack the two streams, plain rows first: ``[B, ...]`` and ``[B, ...]`` -> ``[2B, ...]``.

    Raises:
        InvalidInput: if the shapes differ.
    """
    if plain.shape != related.shape:
        raise InvalidInput(
            f"Both streams must have one shape, but plain has {tuple(plain.shape)} and related {tuple(related.shape)}."
        )
    return torch.cat([plain, related])


def tile(target: T, *, like: Any) -> T:
    """Repeat a target as often as there are streams in ``like``; never interleaved.

    Args:
        target: of ``B`` samples: a tensor (labels, soft targets), a list or tuple of per-image dictionaries, or a
            dictionary of tensors.
        like: what the target is compared with, of ``S * B`` rows: usually the logits.

    Returns:
        The target itself where ``S = 1``; ``[target, target]`` on the first axis where ``S = 2``.

    Raises:
        InvalidInput: for any other ratio, naming both numbers.

    >>> tile(torch.tensor([3, 1]), like=torch.zeros(4, 10))
    tensor([3, 1, 3, 1])
    """
    rows, samples = _length(like, "like"), _length(target, "target")
    if rows == samples and samples > 0:
        return target
    if rows != 2 * samples or samples == 0:
        raise InvalidInput(
            f"`like` must have as many rows as the target has samples, or twice as many (plain and related stream), "
            f"but it has {rows} and the target {samples}. Pass the target of the batch as the loader gave it."
        )
    if isinstance(target, Tensor):
        return torch.cat([target, target])  # type: ignore[return-value]
    if isinstance(target, Mapping):
        return type(target)({name: torch.cat([value, value]) for name, value in target.items()})  # type: ignore[call-arg]
    return target + target  # type: ignore[operator]


def split(x: T, *, like: Any) -> tuple[T, T | None]:
    """Take the streams apart again: the inverse of :func:`join` and :func:`tile`.

    Args:
        x: ``S * B`` rows: a tensor, a list or tuple, or a dictionary of tensors.
        like: the undoubled input or target, of ``B`` samples.

    Returns:
        ``(plain, related)``; ``related`` is None where there is one stream.

    Raises:
        InvalidInput: if ``x`` has neither ``B`` nor ``2B`` rows, naming both numbers.

    >>> plain, related = split(torch.arange(4), like=torch.zeros(2))
    >>> plain, related
    (tensor([0, 1]), tensor([2, 3]))
    """
    rows, samples = _length(x, "x"), _length(like, "like")
    if rows == samples and samples > 0:
        return x, None
    if rows != 2 * samples or samples == 0:
        raise InvalidInput(
            f"`x` must have as many rows as `like`, or twice as many (plain and related stream), but it has {rows} "
            f"and `like` {samples}. Pass the undoubled input or target as `like`."
        )
    if isinstance(x, Mapping):
        parts = [
            type(x)({name: value[rows_of] for name, value in x.items()})  # type: ignore[call-arg]
            for rows_of in (slice(samples), slice(samples, None))
        ]
        return parts[0], parts[1]  # type: ignore[return-value]
    return x[:samples], x[samples:]  # type: ignore[index]


def _length(value: Any, name: str) -> int:
    if isinstance(value, Tensor):
        if value.dim() == 0:
            raise InvalidInput(f"`{name}` must have a batch axis, but it is a tensor without any.")
        return value.shape[0]
    if isinstance(value, Mapping):
        lengths = {key: _length(item, f"{name}[{key!r}]") for key, item in value.items()}
        if len(set(lengths.values())) != 1:
            raise InvalidInput(f"All entries of `{name}` must have one length, but they have {lengths}.")
        return next(iter(lengths.values()))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return len(value)
    raise InvalidInput(
        f"`{name}` must be a tensor, a list, a tuple or a dictionary, but it is a {type(value).__name__}."
    )
