"""Parameter groups, optimizers and schedules as factories that a task calls on its own parameters."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from setwise.errors import InvalidInput, choose

__all__ = ["NormalizedAdam", "lr_factor", "make_optimizer", "parameter_groups"]

SMALLEST_SQUARE = 1e-5
"""Below this sum of squares a gradient is not made longer (Meta-Dataset's code)."""


class NormalizedAdam(Adam):
    """Adam on the direction of the gradient: all gradients are first divided by their common norm.

    A constant-norm rescaling, not clipping: a step counts the same whether its episode was easy or hard. Weight decay
    is part of the gradient that is rescaled, so all parameter groups share one norm.

    Source: the official training code of CrossTransformers (Doersch et al., NeurIPS 2020, arXiv:2007.11498), which
    divides by the square root of the sum of squares of all gradients, at least 1e-5.

    >>> weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> optimizer = NormalizedAdam([weight], lr=0.1)
    >>> weight.square().sum().mul(50).backward()
    >>> optimizer.step()
    >>> round(float(optimizer.state[weight]["exp_avg"].norm()), 3)  # a tenth of a gradient of length 1
    0.1
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Rescale, then Adam's step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        decays = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            if group["weight_decay"] and moved:
                torch._foreach_add_([p.grad for p in moved], moved, alpha=group["weight_decay"])
            group["weight_decay"] = 0.0  # it is in the gradient now
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        try:
            if gradients:
                norm = torch.nn.utils.get_total_norm(gradients)
                torch._foreach_mul_(gradients, (1 / norm.clamp_min(SMALLEST_SQUARE**0.5)).to(gradients[0].dtype))
            super().step()
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay
        return loss


def parameter_groups(
    network: nn.Module,
    relation: nn.Module | None,
    *,
    lr: float,
    weight_decay: float,
    relation_lr_multiplier: float = 1.0,
    relation_weight_decay: float | None = None,
    decay_vectors: bool = True,
) -> list[dict[str, object]]:
    """Groups for the network and its relation, each split into weights and (where exempt) vectors.

    Args:
        network: everything that trains, the relation included.
        relation: its relation, if it has one; it gets its own learning rate and weight decay.
        lr: learning rate of the network.
        weight_decay: of the network.
        relation_lr_multiplier: learning rate of the relation over the network's. The authors' Balanced Softmax code:
            0.1; elsewhere 1.
        relation_weight_decay: of the relation; None: the network's.
        decay_vectors: biases and norms decay too, as under SGD in the long-tailed literature; otherwise neither they
            nor what timm's networks exempt by ``no_weight_decay()`` (class tokens, positions, a pool's query).
    """
    inside = {id(p) for p in relation.parameters()} if relation is not None else set()
    exempt = set() if decay_vectors else _exempt(network)
    groups: dict[tuple[str, float, float], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        related = id(parameter) in inside
        decay = relation_weight_decay if related and relation_weight_decay is not None else weight_decay
        if id(parameter) in exempt or (parameter.dim() < 2 and not decay_vectors):
            decay = 0.0
        rate = lr * relation_lr_multiplier if related else lr
        groups.setdefault(("relation" if related else "network", rate, decay), []).append(parameter)
    return [
        {"name": name, "params": parameters, "lr": rate, "weight_decay": decay}
        for (name, rate, decay), parameters in groups.items()
    ]


def _exempt(network: nn.Module) -> set[int]:
    """Parameters that timm's networks name, each by its name within the network."""
    found = set()
    for module in network.modules():
        named = getattr(module, "no_weight_decay", None)
        names = set(named()) if callable(named) else set()
        found |= {id(p) for name, p in module.named_parameters() if name in names}
    return found


def lr_factor(
    epoch: int,
    *,
    schedule: str,
    epochs: int,
    warmup_epochs: int = 0,
    warmup_start: float = 0.0,
    milestones: Sequence[int] = (),
    every: int = 1,
    gamma: float = 0.1,
    early_step: bool = False,
) -> float:
    """Factor on the learning rate in a 0-based epoch; ``early_step`` takes cosine's of the next one, as official code.

    Warm-up rises in equal steps from ``warmup_start``, where it stands before the first epoch, to 1 in its last one.

    >>> [round(lr_factor(e, schedule="cosine", epochs=4), 3) for e in range(4)]
    [1.0, 0.854, 0.5, 0.146]
    >>> [round(lr_factor(e, schedule="cosine", epochs=4, early_step=True), 3) for e in range(4)]
    [0.854, 0.5, 0.146, 0.0]
    >>> [lr_factor(e, schedule="constant", epochs=4, warmup_epochs=2) for e in range(4)]
    [0.5, 1.0, 1.0, 1.0]
    >>> [lr_factor(e, schedule="constant", epochs=4, warmup_epochs=2, warmup_start=0.5) for e in range(4)]
    [0.75, 1.0, 1.0, 1.0]
    >>> [lr_factor(e, schedule="staircase", epochs=5, every=2, gamma=0.5) for e in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """
    if epoch < warmup_epochs:
        return warmup_start + (1 - warmup_start) * (epoch + 1) / warmup_epochs
    if schedule == "cosine":
        step = epoch - warmup_epochs + early_step
        return 0.5 * (1 + math.cos(math.pi * step / max(1, epochs - warmup_epochs)))
    if schedule == "multistep":
        return gamma ** sum(epoch >= milestone for milestone in milestones)
    if schedule == "staircase":
        return gamma ** ((epoch - warmup_epochs) // every)
    return 1.0


def make_optimizer(
    name: str,
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    relation_lr_multiplier: float,
    relation_weight_decay: float | None,
    schedule: Callable[[int], float],
) -> Callable[[nn.Module, nn.Module | None], tuple[Optimizer, LambdaLR]]:
    """A factory: ``(network, relation) -> (optimizer, schedule)``, the schedule stepped once an epoch.

    Raises:
        InvalidInput: for a learning rate, multiplier, momentum or weight decay out of range.
    """
    for what, value in {
        "optimizer.lr": lr,
        "optimizer.weight_decay": weight_decay,
        "optimizer.momentum": momentum,
        "relation.lr_multiplier": relation_lr_multiplier,
        "relation.weight_decay": relation_weight_decay or 0.0,
    }.items():
        if value < 0 or not math.isfinite(value):
            raise InvalidInput(f"`{what}` must be a finite number of 0 or more, but it is {value}.")
    if momentum >= 1:
        raise InvalidInput(f"`optimizer.momentum` must be below 1, but it is {momentum}.")
    if nesterov and momentum == 0:
        raise InvalidInput("`optimizer.nesterov` needs an `optimizer.momentum` above 0, but it is 0.")
    return partial(
        _build,
        name=name,
        momentum=momentum,
        nesterov=nesterov,
        schedule=schedule,
        groups={
            "lr": lr,
            "weight_decay": weight_decay,
            "relation_lr_multiplier": relation_lr_multiplier,
            "relation_weight_decay": relation_weight_decay,
            "decay_vectors": name == "sgd",
        },
    )


def _build(
    network: nn.Module,
    relation: nn.Module | None,
    *,
    name: str,
    momentum: float,
    nesterov: bool,
    schedule: Callable[[int], float],
    groups: dict,
) -> tuple[Optimizer, LambdaLR]:
    parameters = parameter_groups(network, relation, **groups)
    optimizer: Optimizer
    if name == "sgd":
        optimizer = torch.optim.SGD(parameters, momentum=momentum, nesterov=nesterov)
    elif name == "lamb":
        from setwise.models.lamb import lamb  # timm, which the others do without

        optimizer = lamb(parameters, beta=momentum)
    else:
        kinds: dict[str, type[Adam]] = {"adamw": AdamW, "adam": Adam, "normalized-adam": NormalizedAdam}
        optimizer = choose(name, kinds, "optimizer")(parameters, betas=(momentum, 0.999))
    return optimizer, LambdaLR(optimizer, schedule)
