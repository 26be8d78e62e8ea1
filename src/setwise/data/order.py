"""Which samples form the batches of an epoch, and in which order: from seed and epoch alone."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import Sampler

from setwise.errors import InvalidInput
from setwise.nn.gather import place
from setwise.seeds import generator

__all__ = ["Draw", "EpochSampler"]


class Draw(NamedTuple):
    """Which samples form a batch."""

    epoch: int
    step: int
    """Number of the batch among all that are drawn in the epoch, by all processes together."""
    indices: Int64[Tensor, "b"]
    turns: Int64[Tensor, "b"]
    """How often each has been drawn before in the epoch: samplers that repeat an image show it in another way."""


class EpochSampler(Sampler[Draw]):
    """Draws batches: in training every epoch in another order, in evaluation in the order of the split, or mixed.

    The order comes from (seed, epoch) alone; :meth:`set_epoch`, which Lightning calls, chooses it. With several
    processes every rank draws its own batches: in training equally many and equally large ones from one common order,
    in evaluation every ``world``-th sample, so that no sample is missed or seen twice. Training leaves out what does
    not fill a batch; a set smaller than a batch is one batch, or no step would ever be made.

    Args:
        size: samples in the split.
        batch_size: samples of a batch, per process.
        seed: of the run.
        train: shuffle and leave out the rest, or go through everything once.
        mixed: evaluate in one fixed random order, the same for every seed; training is shuffled anyway. Where
            predictions depend on the batch (relations at test time), the order of the split would give labels away:
            folders are listed class by class, so whole batches would be of one class.
        draw: epoch -> the images of a training epoch in their order ``[size]``; None: each once, shuffled.
    """

    def __init__(
        self,
        size: int,
        *,
        batch_size: int,
        seed: int,
        train: bool,
        mixed: bool = False,
        draw: Callable[[int], Tensor] | None = None,
    ) -> None:
        if batch_size < 1:
            raise InvalidInput(f"`batch_size` ({batch_size}) must be at least 1.")
        self.size, self.batch_size, self.seed, self.train, self.mixed = size, batch_size, seed, train, mixed
        self.draw = draw
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass; 0-based."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches of this process."""
        rank, world = place()
        if not self.train:
            return -(-len(range(rank, self.size, world)) // self.batch_size)
        share = self.size // world
        return share // min(self.batch_size, share) if share else 0

    def __iter__(self) -> Iterator[Draw]:
        rank, world = place()
        if self.train:
            batch_size = min(self.batch_size, self.size // world)
            shuffled = generator(self.seed, "order", self.epoch)
            order = self.draw(self.epoch) if self.draw else torch.randperm(self.size, generator=shuffled)
        else:
            batch_size = self.batch_size
            # Keyed by no seed: the runs of a comparison must be tested on the same batches.
            whole = torch.randperm(self.size, generator=generator("mixed")) if self.mixed else torch.arange(self.size)
            order = whole[rank::world]
        turns = occurrences(order)
        for number in range(len(self)):
            step = number * world + rank
            start = (step if self.train else number) * batch_size
            rows = slice(start, start + batch_size)
            yield Draw(self.epoch, step, order[rows], turns[rows])


def occurrences(order: Int64[Tensor, "n"]) -> Int64[Tensor, "n"]:
    """How often each number stood before.

    >>> occurrences(torch.tensor([5, 2, 5, 5, 2]))
    tensor([0, 0, 1, 2, 1])
    """
    together, places = order.sort(stable=True)
    starts = torch.searchsorted(together, together)
    return torch.empty_like(order).scatter_(0, places, torch.arange(len(order)) - starts)
