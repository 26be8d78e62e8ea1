"""Who may attend to whom in training: the masks behind ``relation.attend``.

Each kind isolates one answer to "what do samples learn from each other?": everybody, oneself alone (the control),
one's own class, the other classes, a set as large as one's class but drawn without regard to it, or everybody with
equal weights.
"""

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from setwise.errors import choose
from setwise.nn.attention import SetAttention
from setwise.nn.induced import InducedLayer

__all__ = ["ATTEND", "attend_mask", "make_control", "make_uniform"]

ATTEND = ("all", "self", "same-class", "other-class", "shuffled", "uniform")


def attend_mask(kind: str, target: Tensor, *, generator: torch.Generator | None = None) -> Bool[Tensor, "B B"] | None:
    """The mask of one batch.

    Args:
        kind: one of :data:`ATTEND`. "shuffled" is the same-class pattern of permuted labels, so every sample has about
            as many neighbours as with "same-class", but of any class. "uniform" has no mask; see :func:`make_uniform`.
        target: labels ``[B]``; soft or multi-label targets ``[B, K]`` (soft: the likeliest class counts; multi-label,
            several ones in a row: a shared label makes two samples of one class).
        generator: of the permutation, on the CPU.

    Returns:
        ``[B, B]`` boolean, True where row may attend to column; None where everybody may attend to everybody. Every
        sample may attend to itself, except under "other-class".

    Raises:
        UnknownName: if there is no such kind.

    >>> attend_mask("same-class", torch.tensor([0, 1, 0])).int()
    tensor([[1, 0, 1],
            [0, 1, 0],
            [1, 0, 1]], dtype=torch.int32)
    """
    choose(kind, ATTEND, "kind of neighbour (relation.attend)")
    if kind in ("all", "uniform"):
        return None
    if kind == "self":
        return torch.eye(len(target), dtype=torch.bool, device=target.device)
    if kind == "shuffled":
        order = torch.randperm(len(target), generator=generator).to(target.device)
        itself = torch.eye(len(target), dtype=torch.bool, device=target.device)
        return _same_class(target[order]) | itself
    same = _same_class(target)
    return same if kind == "same-class" else ~same


def make_control(relation: nn.Module) -> None:
    """Where each sample has itself alone: no dropout of its attention, and no gradient of query and key weights.

    Dropout on a single weight of one would be noise on the sample itself. Nor has softmax a slope there; the fused
    kernels leave rounding errors, which an optimizer that normalises gradients would blow up. Attention to inducing
    points keeps both, whomever they have seen.
    """
    to_points = {m.distribute.self_attn for m in relation.modules() if isinstance(m, InducedLayer)}
    for module in relation.modules():
        if isinstance(module, SetAttention) and module not in to_points:
            module.dropout = 0.0
            for parameter in (module.in_proj_weight, module.in_proj_bias):
                parameter.register_hook(_without_query_and_key)


def _without_query_and_key(gradient: Tensor) -> Tensor:
    gradient = gradient.clone()
    gradient[: 2 * len(gradient) // 3] = 0  # rows of in_proj: query, key, value
    return gradient


def make_uniform(relation: nn.Module) -> None:
    """Zero query and key weights, so that every sample attends to all others equally, and always will.

    At zero both gradients vanish (each is a product with the other), and weight decay leaves zero alone: the weights
    stay where they are without being frozen.
    """
    for module in relation.modules():
        if isinstance(module, SetAttention):
            dim = module.in_proj_weight.shape[1]
            with torch.no_grad():
                module.in_proj_weight[: 2 * dim] = 0
                module.in_proj_bias[: 2 * dim] = 0


def _same_class(target: Tensor) -> Tensor:
    if target.dim() == 1:
        return target[:, None] == target[None, :]
    target = target.float()
    if bool(((target.sum(1) - 1).abs() > 0.5).any()):  # several labels in a row, or none; a mixed target sums to 1
        itself = torch.eye(len(target), dtype=torch.bool, device=target.device)
        return ((target @ target.T) > 0) | itself
    return _same_class(target.argmax(1))
