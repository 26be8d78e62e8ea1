"""What passes at a place of somebody's model: measured, by running it in evaluation on two and on three blank samples.

Two sizes of a batch tell which axis is the batch, whatever the number of channels, positions or levels.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from setwise.errors import InvalidInput
from setwise.nn.evaluation import in_evaluation
from setwise.nn.insertion.hooks import Entry, Relate
from setwise.nn.insertion.places import is_transformers, width_of

__all__ = ["Place", "Seen", "entries", "forks", "measure", "observe", "runs_by_itself"]

Shape = tuple[int, ...]


@dataclass
class Seen:
    """What went through a module for two and for three samples.

    Attributes:
        inputs: shape of the first tensor, for each number of samples.
        outputs: shapes of the output's entries (None: not a tensor), for each number of samples.
        calls: how often the module ran for two samples.
        order: when it ended, among the observed modules.
        example: positional and named arguments of the model that ran.
    """

    inputs: list[Shape] = field(default_factory=list)
    outputs: list[list[Shape | None]] = field(default_factory=list)
    calls: int = 0
    order: int = -1
    example: tuple[tuple, dict] = ((), {})


@dataclass(frozen=True)
class Place:
    """A module where something is related, and the tensors that pass there.

    Attributes:
        name: the submodule.
        widths: channels of each entry of what passes; None: an entry that is only repeated; 0: one that is left.
        channels_first: for each entry, whether it is a map ``[B, C, H, W]``.
    """

    name: str
    widths: tuple[int | None, ...]
    channels_first: tuple[bool, ...]


def measure(
    model: nn.Module, name: str, seen: Seen | None, before: bool, dim: int | None, channels_first: bool | None
) -> Place:
    """What passes at a place: said by the caller, read off the classifier, or measured."""
    module = model.get_submodule(name)
    if before:
        convolution = isinstance(module, nn.Conv2d) or getattr(module, "weight", torch.empty(0)).dim() == 4
        return Place(name, (dim or width_of(module),), (convolution,))
    if seen is None or seen.calls != 1 or len(seen.outputs) != 2:
        return _unmeasured(model, name, seen, dim, channels_first)
    widths: list[int | None] = []
    firsts: list[bool] = []
    for two, three in zip(*seen.outputs, strict=True):
        width, first = _passing(name, two, three, dim, channels_first)
        widths.append(width)
        firsts.append(first)
    if not any(widths):
        raise InvalidInput(
            f"What {name} gives, {seen.outputs[0]} for two samples, holds nothing [B, C], [B, N, C], [B, H, W, C] or "
            "[B, C, H, W] with the batch on the first axis. Name another layer with `at`."
        )
    if sum(map(bool, widths)) > 1:  # several branches; or what is kept for whoever asks for it, as FocalNet's layers do
        read = [not width or _is_read(model, name, index, seen.example) for index, width in enumerate(widths)]
        widths = [width if used else None for width, used in zip(widths, read, strict=True)] if any(read) else widths
    if dim is not None and dim not in widths:
        raise InvalidInput(
            f"`dim` is {dim}, but {name} gives {seen.outputs[0]} for two samples, with {[w for w in widths if w]} "
            "channels. Pass example=<a batch it runs on> if images of that size are not what you train on."
        )
    return Place(name, tuple(widths), tuple(firsts))


def _unmeasured(model: nn.Module, name: str, seen: Seen | None, dim: int | None, channels_first: bool | None) -> Place:
    if seen is not None and seen.calls != 1:
        raise InvalidInput(
            f"A relation can follow a layer that runs once in a forward pass, but {name} ran {seen.calls} times. Name "
            "another layer with `at`."
        )
    if dim is None and is_transformers(model):
        sizes = (getattr(model.config, key, None) for key in ("d_model", "hidden_size"))
        dim = next((size for size in sizes if isinstance(size, int)), None)
    if dim is None:
        raise InvalidInput(
            f"{type(model).__name__} did not run on blank images of any size tried, so what passes at {name} is not "
            "known. Pass example=<a batch it runs on>, or `dim` (and channels_first=True for maps [B, C, H, W])."
        )
    return Place(name, (dim,), (bool(channels_first),))


def _passing(
    name: str, two: tuple | None, three: tuple | None, dim: int | None, channels_first: bool | None
) -> tuple[int | None, bool]:
    """Width and layout of one entry, from its shapes for two and for three samples."""
    if two is None or three is None or not two or two[1:] != three[1:] or two[0] * 3 != three[0] * 2:
        return 0, False  # not a tensor, or the same for all samples
    if two[0] != 2 or len(two) not in (2, 3, 4):
        return None, False  # several rows a sample, as the pixels of TNT: repeated
    if channels_first is None and len(two) == 4:
        height, middle, last = two[1:]
        if height == middle != last or middle == last != height:
            channels_first = middle == last
        elif dim in two[1:] and two[1:].count(dim) == 1 and dim != middle:
            channels_first = height == dim
        else:
            raise InvalidInput(
                f"{name} gives {two} for two samples, and it cannot be told which axis holds the channels. Pass "
                "channels_first=True for [B, C, H, W] or False for [B, H, W, C]."
            )
    first = bool(channels_first) and len(two) == 4
    return two[1 if first else -1], first


def observe(model: nn.Module, names: Iterable[str], example: Any = None) -> dict[str, Seen] | None:
    """Run the model in evaluation on two, then three samples, and note what passes through the named modules.

    Args:
        model: is left as it was; nothing is learned and no random number is drawn by it in evaluation.
        names: submodules; "" is the model itself.
        example: a batch: a tensor, a tuple for positional or a dictionary for named arguments. None: blank ones, by
            what the model says of itself.

    Returns:
        None if the model does not run on any example that can be made up.
    """
    for candidate in _examples(model) if example is None else [_as_arguments(example)]:
        try:
            return _observe(model, list(names), *candidate)
        except Exception:
            if example is not None:
                raise
    return None


def _observe(model: nn.Module, names: list[str], args: tuple, kwargs: dict) -> dict[str, Seen]:
    seen = {name: Seen(example=(args, kwargs)) for name in names}
    order = iter(range(10**9))
    batch = 2

    def note(name: str, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        entry = seen[name]
        given = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        entry.inputs.append(() if given is None else tuple(given.shape))
        entry.outputs.append([tuple(v.shape) if isinstance(v, Tensor) else None for v in entries(output)])
        entry.order = next(order)
        entry.calls += batch == 2

    hooks = [model.get_submodule(name).register_forward_hook(partial(note, name), with_kwargs=True) for name in names]
    try:
        with in_evaluation(model), torch.no_grad():
            for batch in (2, 3):
                model(*(_resize(v, batch) for v in args), **{k: _resize(v, batch) for k, v in kwargs.items()})
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def forks(model: nn.Module, place: Place, seen: Mapping[str, Seen]) -> bool:
    """Whether what follows a place takes twice the rows from it: not if it joins them with what went around the place.

    Measured in evaluation, with different samples. A classifier that runs in training only cannot be, so it counts as
    one that does not.

    Args:
        model: is left as it was.
        place: where the batch is to fork.
        seen: what :func:`observe` saw there and in the model's classifiers.
    """
    if not all(entry.calls for entry in seen.values()):
        return False
    args, kwargs = _each_differs(seen[place.name].example)
    repeat = Relate(nn.Identity(), tuple(None if width == 0 else Entry(None) for width in place.widths), first=True)
    with in_evaluation(model), torch.no_grad():
        plain = _tensors(model(*args, **kwargs))
        hook = model.get_submodule(place.name).register_forward_hook(repeat.output, with_kwargs=True)
        try:
            both = _tensors(model(*args, **kwargs))
        except Exception:
            return False
        finally:
            hook.remove()
    return len(plain) == len(both) and all(
        two.shape == (2 * len(one), *one.shape[1:])
        and (two.is_meta or torch.allclose(two, torch.cat([one, one]), 1e-3, 1e-5))
        for one, two in zip(plain, both, strict=True)
    )


def runs_by_itself(model: nn.Module, name: str, example: tuple[tuple, dict]) -> bool:
    """Whether a model runs a submodule that none of its code names, as those do that go through all their children."""
    met: list[str] = []
    hook = model.get_submodule(name).register_forward_hook(lambda *_: met.append(name))
    try:
        with in_evaluation(model), torch.no_grad():
            model(*example[0], **example[1])
    except Exception:  # the model ran on this before the submodule was there
        return True
    finally:
        hook.remove()
    return bool(met)


def _is_read(model: nn.Module, name: str, index: int, example: tuple[tuple, dict]) -> bool:
    """Whether the model's output depends on one entry of what a module gives: what nobody reads is not related."""
    args, kwargs = _each_differs(example)

    def change(module: nn.Module, args: tuple, output: Any) -> Any:
        if not isinstance(output, tuple | list):
            return output
        given = [*output]
        given[index] = x + torch.linspace(0, 1, x.numel()).to(x).view(x.shape) if (x := given[index]) is not None else x
        return type(output)(*given) if hasattr(output, "_fields") else type(output)(given)

    with in_evaluation(model), torch.no_grad():
        plain = _tensors(model(*args, **kwargs))
        hook = model.get_submodule(name).register_forward_hook(change)
        try:
            changed = _tensors(model(*args, **kwargs))
        finally:
            hook.remove()
    return any(not torch.equal(a, b) for a, b in zip(plain, changed, strict=True))


def _each_differs(example: tuple[tuple, dict]) -> tuple[tuple, dict]:
    def change(value: Any) -> Any:
        two = _resize(value, 2)
        return torch.cat([two[:1], two[1:] + 1]) if isinstance(two, Tensor) and two.is_floating_point() else two

    return tuple(map(change, example[0])), {name: change(value) for name, value in example[1].items()}


def _tensors(output: Any) -> list[Tensor]:
    return [x for x in entries(output) if isinstance(x, Tensor) and x.dim() > 0]


def entries(output: Any) -> list[Any]:
    """The entries of what a layer returns: itself, or those of a tuple, list or mapping."""
    if isinstance(output, Mapping):
        return list(output.values())
    return list(output) if isinstance(output, tuple | list) else [output]


def _resize(value: Any, rows: int) -> Any:
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    return value[:1].expand(rows, *value.shape[1:]).contiguous()


def _as_arguments(example: Any) -> tuple[tuple, dict]:
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example) if isinstance(example, tuple | list) else (example,)), {}


def _examples(model: nn.Module) -> list[tuple[tuple, dict]]:
    """Blank inputs to try, the likeliest first."""
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    first = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)), 3)
    channels = dict.fromkeys((first, 3))  # the first layer may be behind a change of colours
    images = [weight.new_zeros(1, count, *size) for count in channels for size in _image_sizes(model)]
    if not is_transformers(model):
        return [((image,), {}) for image in images]
    if getattr(model, "main_input_name", "") != "input_ids":
        return [((), {"pixel_values": image}) for image in images]
    tokens = torch.ones(1, 8, dtype=torch.long, device=weight.device)
    end = getattr(model.config, "eos_token_id", None)
    if isinstance(end, int) and end < getattr(model.config, "vocab_size", 0):
        tokens[:, -1] = end  # encoder-decoder classifiers pool at the end of the sentence
    return [((), {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}), ((), {"input_ids": tokens})]


def _image_sizes(model: nn.Module) -> list[tuple[int, int]]:
    config = getattr(model, "pretrained_cfg", None) or {}
    sizes = [
        getattr(getattr(model, "patch_embed", None), "img_size", None),
        getattr(model, "img_size", None),
        getattr(model, "image_size", None),
        getattr(getattr(model, "config", None), "image_size", None),
        tuple(config.get("input_size", ()))[-2:] or None if isinstance(config, Mapping) else None,
        224,
        64,
        32,
    ]
    pairs = [(size, size) if isinstance(size, int) else tuple(size) for size in sizes if size is not None]
    return list(dict.fromkeys(pair for pair in pairs if len(pair) == 2))
