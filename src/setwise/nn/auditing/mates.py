"""Batches in which one sample keeps its place and its batch-mates are others.

Letters: ``B`` samples, ``k`` rows of a sample, ``C`` channels, ``H W`` image size.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from setwise.errors import InvalidInput

__all__ = ["Arguments", "as_arguments", "copied", "count", "leaves", "other_mates", "other_sample"]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and named arguments of a model."""

LONGER = 3
"""Times that images grow: beyond the aspect ratios of a detector's resizing, which would undo a smaller one."""


def as_arguments(batch: Any) -> Arguments:
    """A batch as a model is called with it; see :func:`setwise.nn.audit`."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, list) and batch and all(_is_image(x) or isinstance(x, Mapping) for x in batch):
        return (batch,), {}
    return (tuple(batch) if isinstance(batch, tuple | list) else (batch,)), {}


def count(arguments: Arguments) -> int:
    """Samples ``B`` of a batch: rows of its first tensor, or entries of its first list.

    Raises:
        InvalidInput: if there is neither, or only one sample.
    """
    values = [value for part in (arguments[0], arguments[1].values()) for value in part]
    sizes = [len(v) for v in values if isinstance(v, list) or (isinstance(v, Tensor) and v.dim() > 0)]
    if not sizes:
        raise InvalidInput(
            "`batch` must be a tensor [B, ...], a tuple or dictionary of them, or a list of images [C, H, W], but none "
            f"of what it holds has a batch axis: {', '.join(type(value).__name__ for value in values) or 'nothing'}."
        )
    if sizes[0] < 2:
        raise InvalidInput(f"`batch` must have at least 2 samples, so that one has batch-mates, but it has {sizes[0]}.")
    return sizes[0]


def other_mates(given: Arguments, size: int, *, sizes_too: bool) -> dict[str, Arguments]:
    """Batches with sample 0 as it is and other mates, by what these are.

    Args:
        given: the batch.
        size: its samples ``B``.
        sizes_too: also give images of lists other sizes.

    Raises:
        InvalidInput: if none differs from the batch.
    """
    batches = {
        "copies of sample 0 as mates": _swap(given, size, lambda x: x[:1].expand_as(x), lambda x: [x[0]] * size),
        "altered mates": _swap(given, size, _alter_mates, partial(_but_first, _alter_entry)),
    }
    if not any(_differ(given, batch) for batch in batches.values()):
        raise InvalidInput(
            f"The {size} samples of `batch` are all alike, so there are no other mates. Give a real batch."
        )
    if sizes_too and any(map(_has_images, (*given[0], *given[1].values()))):
        for axis, name in ((-2, "high"), (-1, "wide")):
            grow = partial(_longer, axis=axis)
            batches[f"mates three times as {name}"] = _swap(given, size, lambda x: x, partial(_but_first, grow))
    return batches


def other_sample(given: Arguments, size: int) -> Arguments:
    """The batch with its mates as they are and another sample 0, of the same size."""
    return _swap(given, size, _alter_sample, lambda x: [_alter_entry(x[0]), *x[1:]])


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors with axes in arguments or an output, by their places: dictionaries, sequences, objects."""
    if isinstance(value, Tensor):
        if value.dim() > 0:
            yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from leaves(item, f"{path}[{number}]")
    elif not isinstance(value, nn.Module | type) and hasattr(value, "__dict__"):
        deep = dataclasses.is_dataclass(value)  # other objects may hold each other in circles
        for name, item in vars(value).items():
            if deep or isinstance(item, Tensor):
                yield from leaves(item, f"{path}.{name}")


def copied(value: Any) -> Any:
    """The same containers with copies of the tensors, which a model may write into."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(copied(item) for item in value)
    return value


def _swap(value: Any, size: int, rows: Callable[[Tensor], Tensor], entries: Callable[[list], list]) -> Any:
    """Change what belongs to the samples: tensors of ``size`` rows and lists of ``size`` entries."""
    if isinstance(value, Tensor):
        return rows(value) if value.dim() > 0 and len(value) == size else value
    if isinstance(value, Mapping):
        return {key: _swap(item, size, rows, entries) for key, item in value.items()}
    if isinstance(value, list):
        return entries(value) if len(value) == size else value
    return tuple(_swap(item, size, rows, entries) for item in value) if type(value) is tuple else value


def _altered(x: Tensor) -> Tensor:
    """``[B, ...]``, mirrored along axis 1, and with noise that no permutation of the mates can undo."""
    mirrored = x.flip(1) if x.dim() > 1 else x
    if not x.is_floating_point():
        return mirrored
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    return mirrored + noise * (float(x.float().std(correction=0)) or 1.0)


def _alter_mates(x: Tensor) -> Tensor:
    return torch.cat([x[:1], _altered(x[1:])])


def _alter_sample(x: Tensor) -> Tensor:
    if x.is_floating_point():
        return torch.cat([_altered(x[:1]), x[1:]])
    others = [row for row in x[1:] if not torch.equal(row, x[0])]  # whole numbers mean something: borrow real ones
    return torch.cat([others[0][None] if others else _altered(x[:1]), x[1:]])


def _but_first(change: Callable[[Any], Any], entries: list) -> list:
    return [entries[0], *map(change, entries[1:])]


def _alter_entry(entry: Any) -> Any:
    return _in_images(entry, lambda image: _altered(image[None])[0])


def _longer(entry: Any, axis: int) -> Any:
    return _in_images(entry, lambda image: torch.cat([image] * LONGER, axis))


def _in_images(entry: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Change an image, or the images of a dictionary; boxes and labels stay, so that they stay legal."""
    if isinstance(entry, Mapping):
        return {key: _in_images(item, change) for key, item in entry.items()}
    return change(entry) if _is_image(entry) else entry


def _is_image(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 3


def _has_images(value: Any) -> bool:
    return isinstance(value, list) and any(_is_image(x) for entry in value for x in _items(entry))


def _items(entry: Any) -> list[Any]:
    return list(entry.values()) if isinstance(entry, Mapping) else [entry]


def _differ(one: Arguments, other: Arguments) -> bool:
    return any(not torch.equal(a, b) for (_, a), (_, b) in zip(leaves(one), leaves(other), strict=True))
