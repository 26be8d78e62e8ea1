"""What contrastive learning with a momentum encoder keeps over time: the encoder itself, and past keys with labels."""

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from setwise.errors import InvalidInput
from setwise.nn.gather import gather_ragged
from setwise.nn.micro_batch import in_micro_batches

__all__ = ["Compared", "KeyQueue", "MomentumContrast", "follow"]


class KeyQueue(nn.Module):
    """The last ``size`` keys with their labels, first in, first out, without a gradient.

    It starts empty, which is our choice: MoCo's code starts with random keys, which have no true label. It is part of
    the state dict, so that a resumed run goes on with it.

    Args:
        size: keys that are kept. PaCo: 8192, on CIFAR 1024.
        dim: their width ``D``. PaCo: 128, on CIFAR 32.
        gather: write the keys of all processes, so that all hold the same queue.

    Raises:
        InvalidInput: if it has no room or no width, or what is written does not fit.

    Source: He et al., MoCo, CVPR 2020, arXiv:1911.05722, section 3.2; with labels: Cui et al., PaCo, ICCV 2021,
    arXiv:2107.12028.

    >>> queue = KeyQueue(size=3, dim=1)
    >>> queue.write(torch.tensor([[1.0], [2.0]]), torch.tensor([5, 6])); len(queue)
    2
    >>> queue.write(torch.tensor([[3.0], [4.0]]), torch.tensor([7, 8])); queue.read()[1].sort().values
    tensor([6, 7, 8])
    """

    keys: Tensor
    target: Tensor
    written: Tensor

    def __init__(self, size: int, dim: int, *, gather: bool = False) -> None:
        super().__init__()
        if size < 1 or dim < 1:
            raise InvalidInput(f"`size` ({size}) and `dim` ({dim}) of a queue must be at least 1.")
        self.size, self.dim, self.gather = size, dim, gather
        self.register_buffer("keys", torch.zeros(size, dim))
        self.register_buffer("target", torch.zeros(size, dtype=torch.long))
        self.register_buffer("written", torch.zeros((), dtype=torch.long))

    def __len__(self) -> int:
        """Keys that are kept so far."""
        return min(int(self.written), self.size)

    def read(self) -> tuple[Float[Tensor, "kept D"], Int64[Tensor, "kept"]]:
        """Copies of what is kept, in no particular order: later writing does not change them."""
        return self.keys[: len(self)].clone(), self.target[: len(self)].clone()

    @torch.no_grad()
    def write(self, keys: Float[Tensor, "B D"], target: Int64[Tensor, "B"]) -> None:
        """Keep a batch in place of the oldest; one with a number that is not finite is left out, it would harm others.

        Raises:
            InvalidInput: if there is not one label a key, or the width is another.
        """
        if keys.dim() != 2 or keys.shape[1] != self.dim or target.shape != (len(keys),):
            raise InvalidInput(
                f"`keys` must be [B, {self.dim}] and `target` [B], but they are {list(keys.shape)} and "
                f"{list(target.shape)}."
            )
        if self.gather:
            keys, target = gather_ragged(keys.detach()), gather_ragged(target)
        if not bool(torch.isfinite(keys).all()):
            return
        keys, target = keys[-self.size :], target[-self.size :]
        places = (self.written + torch.arange(len(keys), device=keys.device)) % self.size
        self.keys.index_copy_(0, places, keys.to(self.keys.dtype))
        self.target.index_copy_(0, places, target)
        self.written += len(keys)


@torch.no_grad()
def follow(follower: nn.Module, leader: nn.Module, *, momentum: float = 0.999) -> None:
    """Move the momentum encoder's parameters a step towards the encoder's, in place.

    Buffers (moving averages of batch norms) stay the follower's own, as in MoCo.

    Args:
        follower: ``momentum * follower + (1 - momentum) * leader`` when it is done.
        leader: a module with the same parameters.
        momentum: 0..1. MoCo and PaCo: 0.999.

    Raises:
        InvalidInput: if the two differ in their parameters or have some in half precision, or the momentum is out of
            range.

    Source: He et al., MoCo, CVPR 2020, arXiv:1911.05722, equation 2.

    >>> follower, leader = nn.Linear(1, 1), nn.Linear(1, 1)
    >>> follower.weight.data.fill_(1.0), leader.weight.data.fill_(0.0)
    (tensor([[1.]]), tensor([[0.]]))
    >>> follow(follower, leader, momentum=0.75); follower.weight.item()
    0.75
    """
    _check_momentum(momentum)
    mine, theirs = dict(follower.named_parameters()), dict(leader.named_parameters())
    if {n: p.shape for n, p in mine.items()} != {n: p.shape for n, p in theirs.items()}:
        raise InvalidInput(
            f"A momentum encoder has the parameters of its encoder, but {type(follower).__name__} and "
            f"{type(leader).__name__} differ in theirs: start from copy.deepcopy(encoder)."
        )
    if half := next((name for name, p in mine.items() if p.is_floating_point() and p.itemsize < 4), None):
        raise InvalidInput(
            f"A momentum encoder takes steps of {1 - momentum:g} of a difference, which {mine[half].dtype} rounds away "
            f"({half}), so it would never move: keep its weights in float32 (--trainer.precision bf16-mixed)."
        )
    for name, parameter in mine.items():
        parameter.lerp_(theirs[name], 1 - momentum)


class Compared(NamedTuple):
    """What a contrastive loss compares; all features are of length 1."""

    query: Float[Tensor, "B D"]
    """Of the batch, with a gradient."""
    others: Float[Tensor, "M D"]
    """Keys of the batch, then past keys, without one."""
    others_target: Int64[Tensor, "M"]


class MomentumContrast(nn.Module):
    """Queries of an encoder, keys of its slow copy, and past keys with their labels.

    Each call moves the slow copy a step towards the encoder, projects the queries, makes the keys of another view of
    the same images, and puts them into the queue. In training mode the copy normalises by the keys' own batch, as in
    MoCo. MoCo and PaCo shuffle keys over processes, so that batch norms cannot tell pairs by their device; we do not.
    Copy and queue are part of the state dict; with several processes all write into one queue.

    Letters: ``B`` images, ``C`` width of the encoder's features, ``D`` width of what is compared.

    Args:
        encoder: images -> features ``[B, C]``. It is copied as it is now, and not kept.
        feature_dim: ``C``.
        dim: ``D``. PaCo: 128, on CIFAR 32.
        size: keys that are kept. PaCo: 8192, on CIFAR 1024.
        momentum: 0..1, see :func:`follow`. PaCo: 0.999.

    Raises:
        InvalidInput: for sizes below 1, or a momentum out of range.

    Source: He et al., MoCo, CVPR 2020, arXiv:1911.05722, section 3; the projection of two layers is that of Chen et
    al., MoCo v2, 2020, arXiv:2003.04297, as Cui et al., PaCo, ICCV 2021, arXiv:2107.12028, use it.

    >>> encoder, image = nn.Linear(8, 4), torch.randn(2, 8)
    >>> contrast = MomentumContrast(encoder, 4, dim=3, size=5)
    >>> for _ in range(3):
    ...     compared = contrast(encoder, encoder(image), torch.randn(2, 8), torch.tensor([0, 1]))
    >>> compared.query.shape, compared.others.shape  # 2 keys of this batch, 4 past ones
    (torch.Size([2, 3]), torch.Size([6, 3]))
    """

    def __init__(
        self, encoder: nn.Module, feature_dim: int, *, dim: int = 128, size: int = 8192, momentum: float = 0.999
    ) -> None:
        super().__init__()
        _check_momentum(momentum)
        self.queue = KeyQueue(size, dim, gather=True)
        self.momentum = momentum
        self.project = nn.Sequential(nn.Linear(feature_dim, feature_dim), nn.ReLU(), nn.Linear(feature_dim, dim))
        self.slow_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.slow_project = copy.deepcopy(self.project).requires_grad_(False)

    def forward(
        self,
        encoder: nn.Module,
        feature: Float[Tensor, "B C"],
        view: Float[Tensor, "B ..."],
        target: Int64[Tensor, "B"],
        *,
        micro_batch: int | None = None,
    ) -> Compared:
        """Queries and keys of a training step.

        Args:
            encoder: the one that trains.
            feature: what it makes of one view of each image.
            view: another view of the same images, in the same order.
            target: their labels.
            micro_batch: images of which the copy's activations are held at a time; None: all.
        """
        query = _unit(self.project(feature))
        with torch.no_grad():
            follow(self.slow_encoder, encoder, momentum=self.momentum)
            follow(self.slow_project, self.project, momentum=self.momentum)
            key = _unit(self.slow_project(in_micro_batches(self.slow_encoder, view, micro_batch or len(view))))
            past, past_target = self.queue.read()
            self.queue.write(key, target)
            return Compared(query, torch.cat([key, past.to(key.dtype)]), torch.cat([target, past_target]))


def _unit(x: Tensor) -> Tensor:
    """Rows of length 1, in float32 or more."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)))


def _check_momentum(momentum: float) -> None:
    if not 0 <= momentum <= 1:
        raise InvalidInput(f"`momentum` ({momentum}) must be in 0..1.")
