"""What contrastive learning with a momentum encoder keeps over time: the encoder itself, and past keys with labels."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from setwise.errors import InvalidInput
from setwise.nn.gather import gather_set

__all__ = ["KeyQueue", "follow"]


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
            keys, target = gather_set(keys.detach()), gather_set(target)
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
        InvalidInput: if the two differ in their parameters, or the momentum is out of range.

    Source: He et al., MoCo, CVPR 2020, arXiv:1911.05722, equation 2.

    >>> follower, leader = nn.Linear(1, 1), nn.Linear(1, 1)
    >>> follower.weight.data.fill_(1.0), leader.weight.data.fill_(0.0)
    (tensor([[1.]]), tensor([[0.]]))
    >>> follow(follower, leader, momentum=0.75); follower.weight.item()
    0.75
    """
    if not 0 <= momentum <= 1:
        raise InvalidInput(f"`momentum` ({momentum}) must be in 0..1.")
    mine, theirs = dict(follower.named_parameters()), dict(leader.named_parameters())
    if {n: p.shape for n, p in mine.items()} != {n: p.shape for n, p in theirs.items()}:
        raise InvalidInput(
            f"A momentum encoder has the parameters of its encoder, but {type(follower).__name__} and "
            f"{type(leader).__name__} differ in theirs: start from copy.deepcopy(encoder)."
        )
    for name, parameter in mine.items():
        parameter.lerp_(theirs[name], 1 - momentum)
