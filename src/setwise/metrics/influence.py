"""What the samples of a batch do to each other through a relation: gradients across samples, and attention by class.

Letters: ``B`` samples of a batch, ``C`` channels, ``K`` classes.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from setwise.errors import InvalidInput
from setwise.nn import record_attention, streams
from setwise.nn.attention import Recordable
from setwise.nn.induced import InducedLayer

__all__ = ["Influence", "cross_gradients", "influence"]


@dataclass(frozen=True)
class Influence:
    """What the samples of each class do to the others, on average; NaN where there was nothing to average."""

    gradient: Float64[Tensor, "K"]
    """Mean absolute gradient of the loss of a sample of the class on the features of all other samples."""
    gradient_between: Float64[Tensor, "K K"]
    """The same from the loss of a sample of the row's class on the features of another one of the column's."""
    attention: Float64[Tensor, "K K"] | None
    """Mean attention weight between samples of two classes, in both directions; None where it cannot be recorded."""
    samples: Int64[Tensor, "K"]
    """Samples of each class that were looked at."""
    uniform: float
    """Attention weight if all were attended to alike: one over the size of the set, averaged over batches."""


def cross_gradients(losses: Callable[[Tensor], Tensor], x: Float[Tensor, "B C"]) -> Float[Tensor, "B B"]:
    """Mean absolute gradient of each sample's loss on each sample's features.

    Args:
        losses: features ``[B, C]`` -> one loss a sample ``[B]``.
        x: where the gradient is taken.

    Returns:
        Row ``i``, column ``j``: the mean over channels of ``|d losses(x)_i / d x_j|``. Without a relation it is
        zero off the diagonal.

    Raises:
        InvalidInput: if there is not one loss for each sample.

    >>> cross_gradients(lambda x: x.sum(1) + 2 * x[0].sum(), torch.zeros(3, 4)).int()
    tensor([[3, 0, 0],
            [2, 1, 0],
            [2, 0, 1]], dtype=torch.int32)
    """
    x = x.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        found = losses(x)
    if found.shape != x.shape[:1]:
        raise InvalidInput(
            f"`losses` must give one loss for each of the {len(x)} samples, but it gave shape {list(found.shape)}."
        )
    rows = [torch.autograd.grad(loss, x, retain_graph=True)[0].abs().mean(1) for loss in found]
    return torch.stack(rows)  # [B, B]


def influence(
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    relation: nn.Module,
    head: nn.Module,
    criterion: Callable[[Tensor, Tensor], Tensor],
    num_classes: int,
    mask: Callable[[Tensor], Tensor | None] | None = None,
) -> Influence:
    """Measure on whole batches what samples of each class do to the others of their batch.

    Each sample's loss on its related feature is differentiated on the features that the relation was given. Relation,
    head and criterion do what they do in training, modules inside them what they do in evaluation, which is without
    dropout; all are copied, so that nothing is changed and a memory stays as it is.
    Both values shrink as the set grows: compare networks by batches of one size.

    Args:
        batches: features before the relation ``[B, C]`` and labels ``[B]``, of two samples or more each.
        relation: features ``[B, C]``, and a mask if there is one, -> both streams ``[2B, C]``.
        head: features -> what the criterion takes.
        criterion: ``(logits of 2B rows, target [2B]) -> losses [2B]``.
        num_classes: ``K``.
        mask: labels -> who may attend to whom, as in training; None: everybody to everybody.

    Raises:
        InvalidInput: if there is no batch, one is too small, labels are out of range, or the relation returns one
            stream.

    Source: Hou, Yu, Tao, BatchFormer, CVPR 2022, arXiv:2203.01522, section 3.3; definitions as in the official code,
    whose attention is that of one layer: of several layers, or experts, this is the mean. There dropout stays on in the
    relation while it measures; here it is off. As there, attention to oneself counts among one's own class.

    >>> from setwise.nn import BatchFormer
    >>> criterion = nn.CrossEntropyLoss(reduction="none")
    >>> batch = torch.randn(8, 16), torch.tensor([0, 0, 0, 0, 0, 1, 1, 2])
    >>> found = influence([batch], relation=BatchFormer(16), head=nn.Linear(16, 3), criterion=criterion, num_classes=3)
    >>> found.gradient.shape, found.attention.shape, found.samples.tolist()
    (torch.Size([3]), torch.Size([3, 3]), [5, 2, 1])
    """
    totals = _Totals(num_classes)
    head = _without_dropout(head)
    criterion = _without_dropout(criterion) if isinstance(criterion, nn.Module) else criterion
    attends = not any(isinstance(module, InducedLayer) for module in relation.modules())
    attends = attends and any(isinstance(module, Recordable) for module in relation.modules())
    for features, target in batches:
        _check(features, target, num_classes)
        copied = _without_dropout(relation)  # anew for every batch: a memory writes down what it has seen
        allowed = () if mask is None else (mask(target),)
        losses = partial(_related_losses, target, copied, allowed, head, criterion)
        if attends:
            with record_attention(copied) as maps:
                gradients = cross_gradients(losses, features)
            totals.add(target, gradients, [map_ for found in maps.values() for map_ in found])
        else:
            totals.add(target, cross_gradients(losses, features), [])
    return totals.means()


def _related_losses(
    target: Tensor,
    relation: nn.Module,
    allowed: tuple[Tensor | None, ...],
    head: nn.Module,
    criterion: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
) -> Tensor:
    """As in a training step, the losses of the related stream."""
    z = relation(x, *allowed)  # [2B, C]
    _, related = streams.split(criterion(head(z), streams.tile(target, like=z)), like=target)
    if related is None:
        raise InvalidInput(
            f"The relation must return both streams, {2 * len(x)} rows, but it returned {len(z)}: "
            f"{type(relation).__name__} relates nothing in training."
        )
    return related


def _without_dropout(module: nn.Module) -> nn.Module:
    """A copy that does what the module itself does in training, and its parts in evaluation, without dropout."""
    copied = copy.deepcopy(module).eval()
    copied.training = True
    return copied


def _check(features: Tensor, target: Tensor, num_classes: int) -> None:
    if target.dim() != 1 or features.dim() != 2 or len(features) != len(target) or len(target) < 2:
        raise InvalidInput(
            "A batch must be features [B, C] and one label a sample [B] of two samples or more, but features have "
            f"shape {list(features.shape)} and target {list(target.shape)}."
        )
    if int(target.min()) < 0 or int(target.max()) >= num_classes:
        raise InvalidInput(
            f"Labels must be in 0..{num_classes - 1} (`num_classes` is {num_classes}), but there are some from "
            f"{int(target.min())} to {int(target.max())}."
        )


class _Totals:
    """Sums over batches; pairs are added cell by cell, for thousands of classes have few pairs in a batch."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.gradient = torch.zeros(num_classes, dtype=torch.float64)
        self.samples = torch.zeros(num_classes, dtype=torch.int64)
        self.between, self.attention, self.pairs = (torch.zeros(num_classes**2, dtype=torch.float64) for _ in range(3))
        self.uniform: list[float] = []
        self.batches = 0

    def add(self, target: Tensor, gradients: Tensor, maps: list[Tensor]) -> None:
        """Add a batch: its ``[B, B]`` gradients, and attention maps ``[heads, B, keys]``, the batch's keys first."""
        target, size = target.cpu(), len(target)
        gradients = gradients.cpu().double().fill_diagonal_(0)
        self.gradient.index_add_(0, target, gradients.sum(1) / (size - 1))
        self.samples += torch.bincount(target, minlength=self.num_classes)
        cells = (target[:, None] * self.num_classes + target).flatten()
        self.between.index_add_(0, cells, gradients.flatten())
        self.pairs.index_add_(0, cells, torch.ones(len(cells), dtype=torch.float64))
        self.batches += 1
        if maps:
            mean = torch.stack([map_[..., :size].cpu().double().mean(0) for map_ in maps]).mean(0)  # [B, B]
            self.attention.index_add_(0, cells, ((mean + mean.T) / 2).flatten())
            self.uniform.append(1 / maps[0].shape[2])

    def means(self) -> Influence:
        if not self.batches:
            raise InvalidInput("There is no batch to measure on.")
        square = (self.num_classes, self.num_classes)
        pairs, between, attention = (total.view(square) for total in (self.pairs, self.between, self.attention))
        if self.uniform:
            attention /= pairs
        pairs.diagonal().sub_(self.samples)  # nobody is another to himself; in place, for K may be thousands
        between /= pairs
        return Influence(
            gradient=self.gradient / self.samples,
            gradient_between=between,
            attention=attention if self.uniform else None,
            samples=self.samples,
            uniform=sum(self.uniform) / len(self.uniform) if self.uniform else float("nan"),
        )
