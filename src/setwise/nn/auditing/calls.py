"""Run a model and leave no trace, and look at the calls of its modules one level at a time."""

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from setwise.nn.auditing.mates import Arguments, copied, leaves

__all__ = ["Call", "calls_below", "run"]

Place = tuple[int, ...]
"""A call among the calls of a run: the how-manieth of its caller, the caller the how-manieth of its own, and so on."""


@dataclass
class Call:
    """One call of a module.

    Attributes:
        module: what was called.
        training: its mode then.
        given: tensors that went in, by their places in the arguments.
        result: tensors that came out; empty until it returns.
    """

    module: nn.Module
    training: bool
    given: dict[str, Tensor]
    result: dict[str, Tensor]


def run(model: nn.Module, arguments: Arguments, *, training: bool) -> Any:
    """Call the model in a mode, without gradients and without a trace; see :func:`setwise.nn.audit`."""
    args, kwargs = copied(arguments)
    with _left_as_found(model):
        if model.training != training:  # else as it is found: frozen and forgotten submodules are part of the answer
            model.train(training)
        return model(*args, **kwargs)


def calls_below(model: nn.Module, arguments: Arguments, place: Place, *, training: bool) -> list[Call]:
    """The calls that the code of one call makes itself, in order. One level at a time, since copies take memory.

    Args:
        model: what is run.
        arguments: what it is called with.
        place: of the calling call; ``()`` is that of the model itself.
        training: the mode.
    """
    tape = _Tape(place)
    hooks = []
    try:
        for module in model.modules():
            hooks.append(module.register_forward_pre_hook(tape.enter, with_kwargs=True))
            hooks.append(module.register_forward_hook(tape.leave))
        run(model, arguments, training=training)
    finally:
        for hook in hooks:
            hook.remove()
    return tape.calls


class _Tape:
    """Counts the calls of modules within each other, and copies what goes in and out of those below ``place``."""

    def __init__(self, place: Place) -> None:
        self.place, self.calls = place, list[Call]()
        self._open: list[tuple[Place, Call | None]] = []  # the calls that have not returned, outermost first
        self._made: dict[Place, int] = {}  # how many calls each of them has made

    def enter(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if not self._open:
            self._open.append(((), None))
            return
        caller, _ = self._open[-1]
        number = self._made.get(caller, 0)
        self._made[caller] = number + 1
        call = Call(module, module.training, _copies((args, kwargs)), {}) if caller == self.place else None
        if call is not None:
            self.calls.append(call)
        self._open.append(((*caller, number), call))

    def leave(self, module: nn.Module, args: tuple, output: Any) -> None:
        _, call = self._open.pop()
        if call is not None:
            call.result = _copies(output)


def _copies(value: Any) -> dict[str, Tensor]:
    """Copies: the next module may write into what this one gave, as an in-place ReLU does."""
    return {path: tensor.detach().clone() for path, tensor in leaves(value)}


@contextmanager
def _left_as_found(model: nn.Module) -> Iterator[None]:
    """Work on copies of the buffers and put everything else back: attributes, modes, random state."""
    modules = list(model.modules())
    attributes = [dict(vars(module)) for module in modules]
    buffers = [dict(module._buffers) for module in modules]
    copies = {id(b): b.clone() for held in buffers for b in held.values() if b is not None}  # a shared one stays shared
    drawn = random.getstate()
    devices = {t.device for t in (*model.parameters(), *model.buffers()) if t.device.type == "cuda"}
    try:
        for module, held in zip(modules, buffers, strict=True):
            module._buffers.update({name: b if b is None else copies[id(b)] for name, b in held.items()})
        with torch.random.fork_rng(list(devices)), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a relation's, of so few samples: it is to come when they are trained
            yield
    finally:
        for module, kept, held in zip(modules, attributes, buffers, strict=True):
            vars(module).clear()
            vars(module).update(kept)
            module._buffers.clear()
            module._buffers.update(held)
        random.setstate(drawn)
