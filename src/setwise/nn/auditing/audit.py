"""Does a prediction depend on its batch-mates? Give one sample others, and find the module where they come in.

How it is measured: a model runs on the batch as it is, on the batch with other mates beside sample 0, and on the batch
with another sample 0. An element of a tensor that changes both times is made of several samples. A module call whose
output has such elements while its input has none is where mates come in. This needs to know nothing of axes: sequences
that stand before the batch, windows, maps, and a batch as large as some other axis are told apart by what they follow.

Letters: ``B`` samples, ``k`` rows of a sample.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from setwise.errors import InvalidInput
from setwise.nn.attention import Recordable
from setwise.nn.auditing.calls import Call, calls_below, run
from setwise.nn.auditing.mates import Arguments, as_arguments, count, leaves, other_mates, other_sample
from setwise.nn.auditing.mixing import change_of_sample, find_mixed, half

__all__ = ["Answer", "Audit", "Entry", "audit"]

Calls = tuple[Call, Call, Call]
"""One call in the three runs: as the batch is, with other mates, with another sample 0."""

Mixed = list[tuple[Tensor, Tensor]]
"""Tensors made of several samples, as the batch is and with other mates."""

PLAIN, RELATED = 0, 1
"""The two streams, as halves of the rows."""

FINER = 0.01
"""Within the model this part of the tolerance is a change: what comes in small may be amplified."""


@dataclass(frozen=True)
class Entry:
    """Where batch-mates come in.

    Attributes:
        name: of the module within the model; "" is the model itself.
        module: its class.
        kind: "relation", "batch-norm", "padding" or "code".
        reason: what it does, as a clause.
    """

    name: str
    module: str
    kind: str
    reason: str

    def __str__(self) -> str:
        return f"{f'`{self.name}`' if self.name else 'the model itself'} ({self.module}), {self.reason}"


@dataclass(frozen=True)
class Answer:
    """How much the prediction of sample 0 changed, at most, when its batch-mates were swapped.

    Attributes:
        change: largest absolute change; infinite where the shape changed (another number of boxes).
        relative: the same over the largest absolute value of that output.
        output: which output; "" if the model returns one tensor.
        mates: which mates did it.
        entry: where they come in; None if the prediction does not depend on them.
    """

    change: float
    relative: float
    output: str
    mates: str
    entry: Entry | None = None

    @property
    def depends(self) -> bool:
        """Whether the change is more than the tolerance."""
        return self.entry is not None

    def __str__(self) -> str:
        if self.change == 0:
            return "with others it is the same, bit for bit."
        output = f"of its output {self.output} " if self.output else ""
        change = f"by {self.change:.2g} ({100 * self.relative:.3g} % {output}at its largest)"
        if math.isinf(self.change):
            change = f"the shape {output}or between finite and infinite values"
        if self.entry is None:
            return f"with {self.mates} it changes {change}, which is numerical noise."
        return f"with {self.mates} it changes {change}. They come in at {self.entry}."


@dataclass(frozen=True)
class Audit:
    """What :func:`audit` found; printed, it is a few sentences.

    Attributes:
        evaluation: of the prediction in evaluation mode.
        training: of the prediction in training mode, its plain row where there are two streams; None if not audited.
        related: of the related row in training mode, which is meant to depend; None without a second stream.
        notes: what could not be run, and why.
    """

    evaluation: Answer
    training: Answer | None = None
    related: Answer | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        row = "prediction" if self.related is None else "plain row"
        lines = [_sentence("In evaluation the prediction", self.evaluation)]
        if self.training is not None:
            lines.append(_sentence(f"In training the {row}", self.training))
        if self.related is not None:
            remark = ", as a related row is meant to" if self.related.depends else " and learns nothing from them"
            lines.append(_sentence("In training the related row", self.related, remark))
        return "\n".join([*lines, *self.notes])


def _sentence(subject: str, answer: Answer, remark: str = "") -> str:
    verb = "depends" if answer.depends else "does not depend"
    return f"{subject} {verb} on its batch-mates{remark}: {answer}"


def audit(model: nn.Module, batch: Any, *, tolerance: float = 1e-4) -> Audit:
    """Find out whether a prediction depends on its batch-mates, in evaluation and in training, and where they come in.

    Sample 0 stays and its mates are replaced: by copies of sample 0; by themselves, mirrored along the axis behind the
    batch (which permutes tokens) and, if floating-point, with noise of their own deviation; and for lists of images, in
    evaluation, by themselves three times as high or as wide, so that padding changes. The largest change counts.

    Outputs hold ``B`` rows on axis 0, or ``k * B``, those of a sample together, or are a list of ``B`` dictionaries;
    twice the rows of evaluation are two streams, plain rows first. Where the rows are others, an output is found
    independent if no element follows both sample 0 and its mates. Tensors without axes (a loss) are left out.

    All runs of a mode start from one random state, so that dropout is the same; what comes in only by way of elements
    that this one draw drops is not found. Modes, buffers, attributes, gradients and the random state (torch's and
    Python's) stay as they were; only what a forward writes into a list or dictionary of its own stays. The mode in
    which the model is found is audited as it is, with submodules that are frozen or were forgotten; the other one after
    ``train()`` or ``eval()``.

    Args:
        model: is called as ``model(batch)``.
        batch: a tensor ``[B, ...]``; a tuple of positional, a dictionary of named arguments; a list of images
            ``[C, H, W]`` or of a dictionary a sample, as detectors take them; other lists are as tuples. ``B`` is that
            of the first, at least 2, better 3 or more. Tensors of ``B`` rows and lists of ``B`` entries belong to the
            samples; all else stays.
        tolerance: part of the prediction's largest absolute value up to which a change is numerical noise.

    Returns:
        The answers for evaluation, for training, and for the related row in training; printed, a few sentences.

    Raises:
        InvalidInput: if there are fewer than two samples, they are all alike, nothing returned can be compared, or the
            model is scripted or has no weights yet.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    >>> found = audit(model, torch.randn(6, 4))
    >>> found.evaluation.depends, found.training.entry.name, found.training.entry.kind
    (False, '1', 'batch-norm')
    """
    if not tolerance >= 0:
        raise InvalidInput(f"`tolerance` is a part of the largest value, at least 0, but it is {tolerance}.")
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps, and whose modules can be watched
    _check(model)
    given = as_arguments(batch)
    evaluation = _Mode(model, given, count(given), tolerance, training=False)
    answer = evaluation.answer()
    if answer is None:
        raise InvalidInput(
            "Nothing that the model returns follows sample 0, so there is no prediction to compare. It must return "
            "tensors with rows for each sample, or a list of one dictionary a sample; they must not be empty (is a "
            "detector's threshold too high?) or constant (are the last layer's weights zero?)."
        )
    return _with_training(answer, evaluation)


def _check(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise InvalidInput(
                f"`model` must hold plain modules, but {name or 'it'} is scripted or traced, and what goes on inside "
                "cannot be watched: audit the model that it was made from."
            )
        if any(map(is_lazy, (*module.parameters(recurse=False), *module.buffers(recurse=False)))):
            raise InvalidInput(
                f"`model` must have its weights, but {name or 'it'} ({type(module).__name__}) makes them in its first "
                "call: call the model on a batch once."
            )


def _with_training(answer: Answer, evaluation: "_Mode") -> Audit:
    try:
        training = _Mode(evaluation.model, evaluation.given, evaluation.size, evaluation.tolerance, training=True)
    except Exception as error:  # whatever a model says that wants targets in training, or cannot be trained
        return Audit(answer, notes=(*evaluation.notes, f"Training was not audited: {_first_line(error)}"))
    doubled = training.doubled(evaluation)
    trained = training.answer(PLAIN if doubled else None, doubled)
    related = training.answer(RELATED, doubled) if doubled else None
    notes = dict.fromkeys((*evaluation.notes, *training.notes))
    if trained is None:
        notes["Training was not audited: what the model returns then has nothing that follows sample 0."] = None
    return Audit(answer, trained, related, tuple(notes))


@dataclass(frozen=True)
class _Output:
    """A tensor of an output; ``alone`` if it is of sample 0 alone."""

    tensor: Tensor
    alone: bool = False


class _Mode:
    """The runs of one mode, and what they say."""

    def __init__(self, model: nn.Module, given: Arguments, size: int, tolerance: float, *, training: bool) -> None:
        self.model, self.given, self.size, self.tolerance, self.training = model, given, size, tolerance, training
        self.noise = FINER * tolerance
        self.names = {module: name for name, module in model.named_modules()}
        self.sample = other_sample(given, size)
        # In training another padding draws other dropout, which would look like dependence.
        self.mates = other_mates(given, size, sizes_too=not training)
        self.base, self.followed = self._outputs(given), self._outputs(self.sample)
        self.outputs: dict[str, dict[str, _Output]] = {}
        self.notes: list[str] = []
        for name, batch in self.mates.items():
            try:
                self.outputs[name] = self._outputs(batch)
            except Exception as error:  # a model that stacks its images takes no other sizes
                self.notes.append(f"Not tried, since the model does not take them: {name} ({_first_line(error)}).")
                failed = error
        if not self.outputs:
            raise failed

    def _outputs(self, batch: Arguments) -> dict[str, _Output]:
        output = run(self.model, batch, training=self.training)
        alone = isinstance(output, list | tuple) and len(output) == self.size
        if alone and all(isinstance(entry, Mapping) for entry in output):
            return {path: _Output(tensor, alone=True) for path, tensor in leaves(output[0])}
        return {path: _Output(tensor) for path, tensor in leaves(output)}

    def doubled(self, evaluation: "_Mode") -> frozenset[str]:
        """Outputs with two streams: those of twice the rows that they have in evaluation."""
        rows = {path: len(output.tensor) for path, output in evaluation.base.items()}
        if not rows.keys() & self.base.keys() and any(isinstance(m, Recordable) for m in self.names):
            rows = dict.fromkeys(self.base, self.size)  # it returns something else in training
        return frozenset(path for path, out in self.base.items() if len(out.tensor) == 2 * rows.get(path, -1))

    def answer(self, stream: int | None = None, doubled: frozenset[str] = frozenset()) -> Answer | None:
        """The largest change over all mates and outputs; None if there is nothing to compare."""
        found = []
        for mates, outputs in self.outputs.items():
            for path, base in self.base.items():
                if stream == RELATED and path not in doubled:
                    continue
                rows = stream if path in doubled else None
                others = [half(out[path].tensor, rows) if path in out else None for out in (outputs, self.followed)]
                changes = change_of_sample(
                    half(base.tensor, rows), *others, size=self.size, noise=self.noise, alone=base.alone
                )
                if changes is not None:
                    found.append((changes[1], changes[0], path, mates))
        if not found:
            return None
        relative, change, path, mates = max(found, key=lambda entry: entry[:2])
        entry = self._entry(mates, stream) if relative > self.tolerance else None
        return Answer(change, relative, path.lstrip("."), mates, entry)

    def _entry(self, mates: str, stream: int | None) -> Entry:
        """Go down from the model, at each level into the first call that mixes what came in unmixed."""
        batches = (self.given, self.mates[mates], self.sample)
        module, inside = self.model, None
        place: tuple[int, ...] = ()
        while (relation := self._relation_of(module)) is None:
            levels = (calls_below(self.model, batch, place, training=self.training) for batch in batches)
            below = list(zip(*levels, strict=False))  # with other boxes a detector may make other calls
            found = next((n for n, calls in enumerate(below) if self._comes_in(calls, stream)), None)
            if found is None:
                return self._describe(module, inside, below, stream)
            inside, place = below[found], (*place, found)
            module = inside[0].module
        left = "" if self.training else ", also in evaluation: the paper has none there"
        reason = f"a relation, which makes every sample of all{left}"
        return Entry(self.names[relation], type(relation).__name__, "relation", reason)

    def _comes_in(self, calls: Calls, stream: int | None) -> bool:
        module = calls[0].module
        if any(call.module is not module for call in calls):
            return False
        if stream == PLAIN and self._relation_of(module) not in (None, module):
            return False  # the layers of a relation, called one by one, hold no plain rows
        return not self._mixed(calls, "given", stream) and bool(self._mixed(calls, "result", stream))

    def _mixed(self, calls: Calls, side: str, stream: int | None) -> Mixed:
        base, mates, sample = (getattr(call, side) for call in calls)
        return find_mixed(base, mates, sample, noise=self.noise, stream=stream)

    def _relation_of(self, module: nn.Module) -> nn.Module | None:
        """The relation that a module is, or is a layer of."""
        parts = self.names[module].split(".")
        above = (self.model.get_submodule(".".join(parts[:n])) for n in range(len(parts) + 1))
        return next((relation for relation in above if isinstance(relation, Recordable)), None)

    def _describe(self, module: nn.Module, inside: Calls | None, below: list[Calls], stream: int | None) -> Entry:
        """Why ``module`` mixes samples, where nothing that it calls does."""
        entry = partial(Entry, self.names[module], type(module).__name__)
        first = next((calls for calls in below if self._mixed(calls, "given", stream)), None)
        mixed = self._mixed(inside, "result", stream) if inside else []
        mixed += self._mixed(first, "given", stream) if first else []
        shapes = ((list(base.shape[1:]), list(mates.shape[1:])) for base, mates in mixed)
        if padded := next((pair for pair in shapes if pair[0] != pair[1]), None):
            return entry("padding", "which pads to the largest image of the batch: {} became {}".format(*padded))
        training = self.training if inside is None else inside[0].training
        if isinstance(module, _BatchNorm) and (training or module.running_mean is None):
            return entry("batch-norm", _why(training, self.training))
        before = f", before it calls `{self.names[first[0].module]}`" if first else ""
        return entry("code", f"whose forward has code that computes across samples{before}")


def _why(training: bool, model_training: bool) -> str:
    if not training:
        return "which has no running statistics (track_running_stats=False) and normalises with those of the batch"
    if model_training:
        return "which normalises with the statistics of the batch in training mode, as it is meant to"
    return "which is in training mode, though the model is not, and normalises with the statistics of the batch"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'without a reason')}"
