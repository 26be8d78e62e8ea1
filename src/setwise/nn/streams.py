"""All there is about two streams: how plain and related samples stand in one batch.

In training a relation turns ``B`` samples into ``2B``: the plain ones first, unchanged, then the related ones in the
same order. One head scores both, so the target must be doubled as well; :func:`tile` does it and refuses to guess.
"""

from collections.abc import Callable, Mapping, Sequence
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
        target: of ``B`` samples: a tensor (labels, soft targets), a list or tuple with one entry an image (mostly a
            dictionary), or a dictionary or named tuple of such tensors, lists and tuples.
        like: what the target is compared with, of ``S * B`` rows: usually the logits.

    Returns:
        The target itself where ``S = 1``; ``[target, target]`` on the first axis where ``S = 2``, of the same type
        (a plain dictionary where a mapping cannot be built from one, as a defaultdict).

    Raises:
        InvalidInput: for any other ratio, naming both numbers, and for an entry of another type, naming its key.

    >>> tile(torch.tensor([3, 1]), like=torch.zeros(4, 10))
    tensor([3, 1, 3, 1])
    """
    _check_entries(target, "target")
    rows, samples = _length(like, "like"), _length(target, "target")
    if rows == samples and samples > 0:
        return target
    if rows != 2 * samples or samples == 0:
        raise InvalidInput(
            f"`like` must have as many rows as the target has samples, or twice as many (plain and related stream), "
            f"but it has {rows} and the target {samples}. Pass the target of the batch as the loader gave it."
        )
    return _each(target, _twice)


def split(x: T, *, like: Any) -> tuple[T, T | None]:
    """Take the streams apart again: the inverse of :func:`join` and :func:`tile`.

    Args:
        x: ``S * B`` rows: a tensor, a list or tuple, or a dictionary or named tuple of them.
        like: the undoubled input or target, of ``B`` samples.

    Returns:
        ``(plain, related)``; ``related`` is None where there is one stream.

    Raises:
        InvalidInput: if ``x`` has neither ``B`` nor ``2B`` rows, naming both numbers, or has an entry of another type.

    >>> plain, related = split(torch.arange(4), like=torch.zeros(2))
    >>> plain, related
    (tensor([0, 1]), tensor([2, 3]))
    """
    _check_entries(x, "x")
    rows, samples = _length(x, "x"), _length(like, "like")
    if rows == samples and samples > 0:
        return x, None
    if rows != 2 * samples or samples == 0:
        raise InvalidInput(
            f"`x` must have as many rows as `like`, or twice as many (plain and related stream), but it has {rows} "
            f"and `like` {samples}. Pass the undoubled input or target as `like`."
        )
    return _each(x, lambda entry: entry[:samples]), _each(x, lambda entry: entry[samples:])


def _twice(rows: Any) -> Any:
    return torch.cat([rows, rows]) if isinstance(rows, Tensor) else rows + rows


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    """Apply ``change`` to the rows, or to those of every entry of a dictionary or named tuple."""
    entries = _entries(value)
    if entries is None:
        return change(value)
    changed = {key: change(item) for key, item in entries.items()}
    if isinstance(value, tuple):
        return type(value)(*changed.values())
    try:
        return type(value)(changed)
    except TypeError:  # a defaultdict, say, wants a function first
        return changed


def _check_entries(value: Any, name: str) -> None:
    """Refuse what cannot be repeated or cut image by image."""
    entries = _entries(value)
    allowed = "a tensor, or a list or tuple with one entry an image"
    if entries is None:
        entries, allowed = {None: value}, "a tensor, a list, a tuple or a dictionary"
    for key, item in entries.items():
        if not isinstance(item, Tensor | list | tuple) or _entries(item) is not None:
            place = name if key is None else f"{name}[{key!r}]"
            raise InvalidInput(f"`{place}` must be {allowed}, but it is of type {type(item).__name__}.")


def _entries(value: Any) -> Mapping[Any, Any] | None:
    """What a dictionary or a named tuple holds by name; None for anything else."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    return value if isinstance(value, Mapping) else None


def _length(value: Any, name: str) -> int:
    if isinstance(value, Tensor):
        if value.dim() == 0:
            raise InvalidInput(f"`{name}` must have a batch axis, but it is a tensor without any.")
        return value.shape[0]
    entries = _entries(value)
    if entries is not None:
        lengths = {key: _length(item, f"{name}[{key!r}]") for key, item in entries.items()}
        if not lengths:
            raise InvalidInput(f"`{name}` must have entries, but it is an empty {type(value).__name__}.")
        if len(set(lengths.values())) != 1:
            raise InvalidInput(f"All entries of `{name}` must have one length, but they have {lengths}.")
        return next(iter(lengths.values()))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return len(value)
    raise InvalidInput(
        f"`{name}` must be a tensor, a list, a tuple or a dictionary, but it is of type {type(value).__name__}."
    )
