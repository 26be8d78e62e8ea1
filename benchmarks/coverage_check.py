"""What holds of a model with a relation in it: the check behind ``coverage.py``, one model and one relation at a time.

The relation's dropout and the model's own are 0, so that both streams can be compared number for number.
"""

import gc
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from setwise.nn import insert, remove
from setwise.nn.insertion.places import find_layers

__all__ = ["Case", "Result", "check"]

TOLERANCE = 1e-6
"""Largest difference of the plain streams, over the largest number of the output."""
ROUNDING = 1e-6
"""A gradient below this part of the largest one is none."""
CALIBRATION = 8
"""Samples whose statistics the BatchNorms of an untrained model get, or its signal would die away in evaluation."""
PREDICTIONS = ("logits", "pred_boxes", "pred_masks")
"""What is compared of a mapping that a transformers model returns."""

Arguments = tuple[tuple, dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """A model to put relations into.

    Attributes:
        library: "timm", "torchvision" or "transformers".
        family: file of the library, or name of its configuration.
        name: the model.
        build: makes it.
        batch: samples -> positional and named arguments.
        relations: which are tried.
        example: give ``insert`` a batch, and do not let it make up one.
        options: what ``insert`` is told of "batchformer-v2" where it asks: the name of a layer, the axis of channels.
    """

    library: str
    family: str
    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[int], Arguments]
    relations: tuple[str, ...] = ("batchformer", "batchformer-v2")
    example: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Result:
    """What was found; ``problems`` is empty if all holds.

    Attributes:
        place: where the relation went.
        difference: of the plain streams in training mode, over the largest number.
        batchnorm: a BatchNorm in training mode saw both streams, so ``difference`` was taken with all in evaluation.
        float64: rounding in float32 is larger than the tolerance, so ``difference`` was taken in float64.
    """

    place: str = ""
    difference: float = float("nan")
    batchnorm: bool = False
    float64: bool = False
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


def check(case: Case) -> dict[str, Result]:
    """Put each relation into a copy of the model of ``case``: does everything hold that ``insert`` promises?"""
    results = {}
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # a relation warns about sets of fewer than eight samples
        torch.manual_seed(0)
        plain = _prepare(case.build(), case.batch(CALIBRATION), lively=case.library == "transformers")
        for relation in case.relations:
            result, start = Result(), time.perf_counter()
            try:
                _check(plain, case, relation, result)
            except Exception as error:
                result.problems.append(f"{type(error).__name__}: {' '.join(str(error).split())}")
            result.seconds = time.perf_counter() - start
            results[relation] = result
    gc.collect()
    return results


def _check(plain: nn.Module, case: Case, relation: str, result: Result) -> None:
    batch = case.batch
    options: dict[str, Any] = {"dropout": 0.0} | ({"example": _unlabelled(batch(1))} if case.example else {})
    if relation == "batchformer-v2":
        layers = find_layers(plain)
        options["at"] = [len(layers) // 2]
        options |= case.options
        result.place = case.options.get("at") or (layers[len(layers) // 2] if layers else "")
    model = insert(deepcopy(plain), relation, **options)
    say = result.problems.append
    if not _equal(model.eval(), plain.eval(), batch(2)):
        say("evaluation is not bit-equal")
    for samples in (2, 3):
        _check_training(plain, model, batch(samples), samples, result)
    _check_streams_are_apart(model, batch, say)
    remove(model)
    fresh = deepcopy(plain)
    fresh.load_state_dict(model.state_dict(), strict=True)
    if type(model) is not type(plain) or not _equal(model.eval(), fresh.eval(), batch(2)):
        say("removed, it is not the plain model")


def _check_training(plain: nn.Module, model: nn.Module, batch: Arguments, samples: int, result: Result) -> None:
    """One training step of copies: rows, gradients, and the plain stream against the plain model."""
    say = result.problems.append
    control, learner = deepcopy(plain).train(), deepcopy(model).train()
    with _rows_of_batchnorms(control) as plain_rows:
        wanted, wanted_loss = _run(control, batch)
    with _rows_of_batchnorms(learner) as rows:
        got, loss = _run(learner, batch)
    for one, both in zip(wanted, got, strict=True):
        if both.shape != (2 * one.shape[0], *one.shape[1:]):
            say(f"B={samples}: {tuple(both.shape)} comes out in training, and {tuple(one.shape)} of the plain model")
            return
    wanted_loss.backward()
    loss.backward()
    for part in _without_gradient(control, learner):
        say(f"B={samples}: no gradient reaches {part}")
    torch.optim.SGD(learner.parameters(), lr=1e-3).step()
    if not all(bool(p.isfinite().all()) for p in learner.parameters()):
        say(f"B={samples}: a step makes weights that are not finite")
    if any(count > plain_rows.get(name, count) for name, count in rows.items()):
        result.batchnorm = True
        with torch.no_grad():
            wanted, got = _run(_freeze(plain.train()), batch)[0], _run(_freeze(model.train()), batch)[0]
    found = max(_difference(both[: len(one)], one) for one, both in zip(wanted, got, strict=True))
    if found > TOLERANCE:  # rounding is as large in a deep model that was never trained; it vanishes in float64
        result.float64 = True
        found = _difference_in_float64(plain, model, batch, result.batchnorm)
    result.difference = found if result.difference != result.difference else max(found, result.difference)
    if not found <= TOLERANCE:
        say(f"B={samples}: the plain stream differs by {found:.1e}")


def _difference_in_float64(plain: nn.Module, model: nn.Module, batch: Arguments, frozen: bool) -> float:
    found = []
    for part in (plain, model):
        double = deepcopy(part).double().train()
        with torch.no_grad():
            found.append(_run(_freeze(double) if frozen else double, _as_float64(batch))[0])
    return max(_difference(both[: len(one)], one) for one, both in zip(*found, strict=True))


def _check_streams_are_apart(model: nn.Module, batch: Callable[[int], Arguments], say: Callable[[str], None]) -> None:
    """Change the second of three samples: the first one's related row changes, its plain row does not."""
    model = _freeze(model.train())
    given, other = batch(3), batch(4)  # of another size, so of other numbers
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith("setwise_relation") and name.endswith("in_proj_weight"):
                weight[: -len(weight) // 3] = 0  # attends evenly: of large features each would see but itself
        before = _run(model, given)[0]
        after = _run(model, _with_second_of(given, other))[0]
    row = [len(one) // 2 // 3 for one in before]  # rows a sample
    plain = max(_difference(b[:n], a[:n]) for a, b, n in zip(before, after, row, strict=True))
    related = max(_difference(b[3 * n : 4 * n], a[3 * n : 4 * n]) for a, b, n in zip(before, after, row, strict=True))
    if plain > TOLERANCE:
        say(f"the plain row of a sample changes by {plain:.1e} with another sample")
    if not related > plain:  # a NaN is no change, either
        say("the related row of a sample does not change with another sample")


# ------------------------------------------------------------------------------------------------- running a model
def _run(model: nn.Module, batch: Arguments) -> tuple[list[Tensor], Tensor]:
    """Predictions, and the model's own loss or else a random projection of them."""
    torch.manual_seed(1)
    output = model(*batch[0], **batch[1])
    found = _predictions(output)
    loss = output.get("loss") if isinstance(output, Mapping) else None
    if loss is None:
        loss = sum((x * torch.randn_like(x[:1])).square().mean() for x in found)
    return found, loss  # type: ignore[return-value]


def _predictions(output: Any) -> list[Tensor]:
    if isinstance(output, Mapping):
        kept = [output[name] for name in PREDICTIONS if output.get(name) is not None]
        return kept or _predictions(list(output.values()))
    if isinstance(output, tuple | list):
        return [x for item in output for x in _predictions(item)]
    return [output] if isinstance(output, Tensor) and output.dim() > 0 else []


def _as_float64(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {key: _as_float64(item) for key, item in value.items()}
    return type(value)(map(_as_float64, value)) if isinstance(value, tuple | list) else value


def _equal(one: nn.Module, other: nn.Module, batch: Arguments) -> bool:
    with torch.no_grad():
        pairs = zip(_run(one, batch)[0], _run(other, batch)[0], strict=True)
        return all(torch.equal(a, b) and bool(a.isfinite().all()) for a, b in pairs)


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max().clamp_min(torch.finfo(b.dtype).tiny))


def _unlabelled(batch: Arguments) -> tuple | dict[str, Any]:
    return batch[0] or {name: value for name, value in batch[1].items() if name != "labels"}


def _with_second_of(batch: Arguments, other: Arguments) -> Arguments:
    def change(a: Any, b: Any) -> Any:
        return torch.cat([a[:1], b[1:2], a[2:]]) if isinstance(a, Tensor) else a

    return tuple(map(change, batch[0], other[0])), {k: change(v, other[1][k]) for k, v in batch[1].items()}


def _without_gradient(plain: nn.Module, model: nn.Module) -> Iterator[str]:
    """What learns in the plain model, or belongs to the relation, and has no gradient now."""
    gradients = {name: float(p.grad.abs().max()) for name, p in plain.named_parameters() if p.grad is not None}
    least = ROUNDING * max(gradients.values())  # a shift before a BatchNorm has a gradient of rounding alone
    learns = {name for name, gradient in gradients.items() if gradient > least}
    lost = [
        name
        for name, p in model.named_parameters()
        if (name in learns or name.startswith("setwise_relation")) and (p.grad is None or not bool(p.grad.any()))
    ]
    if lost:
        yield f"{len(lost)} of {len(learns)} weights, first {lost[0]}"


# ----------------------------------------------------------------------------------------------- preparing a model
def _prepare(model: nn.Module, batch: Arguments, lively: bool) -> nn.Module:
    """Nothing random in training, no weight matrix of zeros, and BatchNorms that know their statistics."""
    for part in [*model.modules(), *_configs(getattr(model, "config", None))]:
        random = "drop" in type(part).__name__.lower() or "StochasticDepth" in type(part).__name__
        for name, value in list(vars(part).items()):
            if isinstance(value, float) and ("drop" in name or (random and name == "p")):
                setattr(part, name, 0.0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if lively and weight.dim() > 1:  # transformers starts with 0.02, by which tiny models pass on nothing
                nn.init.kaiming_normal_(weight, generator=generator)
            elif weight.is_floating_point() and weight.dim() > 1 and not bool(weight.any()):
                weight.normal_(std=0.02, generator=generator)
    norms = {module: module.momentum for module in model.modules() if isinstance(module, _BatchNorm)}
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        _run(model.train(), batch)
    for norm, momentum in norms.items():
        norm.momentum = momentum
    return model


def _configs(config: Any) -> Iterator[Any]:
    if hasattr(config, "to_dict"):
        yield config
        for value in vars(config).values():
            yield from _configs(value)


def _freeze(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if _is_batchnorm(module):
            module.eval()
    return model


def _is_batchnorm(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) or "running_mean" in module._buffers


@contextmanager
def _rows_of_batchnorms(model: nn.Module) -> Iterator[dict[str, int]]:
    """The rows that each BatchNorm in training mode sees, all its calls together."""
    rows: dict[str, int] = {}

    def note(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple) -> None:
            if module.training:
                rows[name] = rows.get(name, 0) + len(args[0])

        return hook

    hooks = [m.register_forward_pre_hook(note(name)) for name, m in model.named_modules() if _is_batchnorm(m)]
    try:
        yield rows
    finally:
        for hook in hooks:
            hook.remove()
