"""Split -> batches that depend on nothing but the seed and the epoch.

The sampler draws whole batches (:class:`Draw`) and the data set answers each with a finished batch, so that images in
memory are picked, augmented and normalised together, and a worker process, where there is one, sends one message per
batch. What a worker cannot read comes back as a sentence, which the main process raises or counts.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from setwise.data.batch import Batch, BatchOfViews
from setwise.data.dataset import Split
from setwise.data.images import StackedImages, num_cores
from setwise.data.mix import make_mix
from setwise.data.problems import WAY_OUT, OnError, settle
from setwise.data.samplers import draw_epoch
from setwise.data.transforms import TRANSFORMS, Transform, normalise
from setwise.errors import DataError, InvalidInput, choose
from setwise.nn.gather import place
from setwise.seeds import generator, key

__all__ = ["Draw", "EpochSampler", "Loader", "make_loader", "of_whole_batches"]


class Draw(NamedTuple):
    """Which samples form a batch."""

    epoch: int
    step: int
    """Number of the batch among all that are drawn in the epoch, by all processes together."""
    indices: Int64[Tensor, "b"]
    turns: Int64[Tensor, "b"]
    """How often each has been drawn before in the epoch: samplers that repeat an image show it in another way."""


class Fetched(NamedTuple):
    """A batch, and what of it could not be read."""

    batch: Batch | BatchOfViews | DataError | None
    """None if nothing could be read; an error where the images do not go together."""
    problems: tuple[str, ...]


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


class BatchedSplit(Dataset[Fetched]):
    """Answers a :class:`Draw` with a finished batch. Built by :func:`make_loader`."""

    def __init__(
        self,
        split: Split,
        *,
        transform: Transform,
        views: Sequence[Transform],
        mean: Sequence[float],
        std: Sequence[float],
        seed: int,
        mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None,
        on_error: OnError,
        way_out: str,
    ) -> None:
        self.split, self.transform, self.views, self.mean, self.std = split, transform, views, mean, std
        self.seed, self.mix, self.on_error, self.way_out = seed, mix, on_error, way_out
        self.skipped: dict[str, None] = {}  # an ordered set, filled in the main process

    def __getitem__(self, draw: Draw) -> Fetched:
        images, kept, problems = self.read(draw.indices)
        draw = draw._replace(indices=draw.indices[kept], turns=draw.turns[kept])
        index = draw.indices
        if not len(index):
            return Fetched(None, problems)
        try:
            image, *views = (
                self.augmented(images, draw, change=change, view=view)
                for view, change in enumerate((self.transform, *self.views))
            )
        except DataError as error:  # images of several sizes
            return Fetched(error, problems)
        target = self.split.target[index]
        if views:
            return Fetched(BatchOfViews(image, target, index, tuple(views)), problems)
        if self.mix is not None:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(key(self.seed, "mix", draw.epoch, draw.step))
                image, target = self.mix(image, target)
        return Fetched(Batch(image, target, index), problems)

    def augmented(self, images: Tensor | list[Tensor], draw: Draw, *, change: Transform, view: int) -> Tensor:
        """One view of the images of a batch, normalised."""
        changed = change(
            images,
            image_size=self.split.image_size,
            seed=self.seed,
            epoch=draw.epoch,
            step=draw.step,
            index=draw.indices,
            turns=draw.turns,
            view=view,
        )
        return normalise(changed, mean=self.mean, std=self.std)

    def read(self, indices: Tensor) -> tuple[Tensor | list[Tensor], Tensor, tuple[str, ...]]:
        """The images that can be read, which they are ``[b]``, and what is wrong with the others."""
        images = self.split.images.take(indices)
        if isinstance(images, Tensor):
            return images, torch.ones(len(images), dtype=torch.bool), ()
        good = torch.tensor([isinstance(image, Tensor) for image in images], dtype=torch.bool)
        problems = tuple(str(image) for image in images if isinstance(image, DataError))
        return [image for image in images if isinstance(image, Tensor)], good, problems


class Loader(DataLoader[Any]):
    """A DataLoader of :class:`Batch` that knows what could not be read. Built by :func:`make_loader`.

    Where images are seen in several views, training batches are a :class:`BatchOfViews`.

    With Lightning pass ``use_distributed_sampler=False`` to the Trainer: the sampler shares out the data itself.
    """

    dataset: BatchedSplit

    @property
    def skipped(self) -> tuple[str, ...]:
        """What was left out so far, one clause per image.

        Of images in files nothing is known before they are read, so after one pass this is complete and before it
        empty; class counts, which are taken from the split, still count what is listed here.
        """
        return tuple(self.dataset.skipped)

    def __iter__(self) -> Iterator[Batch | BatchOfViews]:  # type: ignore[override]
        """Batches of one epoch.

        Raises:
            DataError: naming the images of a batch that cannot be read, unless they are to be skipped; a training
                batch of which none can be read is an error all the same, for a step without images is none.
        """
        fetched = super().__iter__()
        try:
            for batch, problems in fetched:
                settle(problems, on_error=self.dataset.on_error, what="images", way_out=self.dataset.way_out)
                self.dataset.skipped.update(dict.fromkeys(problems))
                if isinstance(batch, DataError):
                    raise batch
                if batch is not None:
                    yield batch
                elif isinstance(self.sampler, EpochSampler) and self.sampler.train:
                    raise DataError(
                        f"No image of a training batch can be read; the first: {problems[0]}. Repair what is named or "
                        "remove it, or raise --data.batch-size."
                    )
        except DataError:
            # Ends the workers now: torch waits five seconds for them where they are left to the garbage collector.
            del fetched
            self._iterator = None
            raise


def make_loader(
    split: Split,
    *,
    batch_size: int,
    transform: str,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int,
    train: bool,
    num_classes: int,
    views: Sequence[str] = (),
    num_workers: int | None = None,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    mixed: bool = False,
    sampler: str = "shuffle",
    epochs: int = 1,
    on_error: OnError = "raise",
    way_out: str = WAY_OUT,
) -> Loader:
    """Batches of a split, the same for the same seed and epoch, whatever ran before and in however many processes.

    Args:
        split: what to read.
        batch_size: samples of a batch, per process.
        transform: training augmentation, one of ``TRANSFORMS``; evaluation always uses "none", resize and centre crop.
        mean, std: of each channel, of pixels in 0..1.
        seed: keys order, augmentation and mixing.
        train: shuffled, augmented, with mixup and CutMix, without the last incomplete batch; or everything, as it is.
        num_classes: width of mixed targets.
        views: further augmentations of each training image, drawn by themselves; batches are then a ``BatchOfViews``.
        num_workers: processes that read and augment; None: none for images in memory, else the cores there are. Where
            images of one size are in memory and augmented in whole batches there is none, whatever is asked for.
        mixup, cutmix: alpha of its Beta distribution; 0 switches it off. DeiT: 0.8, 1. With both, a batch draws one.
        mixed: evaluate in one fixed random order; see :class:`EpochSampler`. ``Batch.index`` says which image a row is.
        sampler: which images a training epoch shows, one of ``setwise.data.samplers.SAMPLERS``.
        epochs: of the whole training, over which the sampler "progressive" goes from one way of drawing to the other.
        on_error: an unreadable image raises, or is left out of its batch and listed in ``Loader.skipped``.
        way_out: sentence that ends the error about unreadable images.

    Raises:
        UnknownName: if there is no such transform or sampler.
        InvalidInput: if a number is out of range, images of several labels are to be drawn by class, or views mixed.
    """
    shown = _shown(transform, views, mixed=bool(mixup or cutmix), train=train)
    draw = partial(_drawn, sampler, split.target, seed=seed, epochs=epochs)
    draw(0)  # what is wrong with it is said now
    batches = BatchedSplit(
        split,
        transform=shown[0],
        views=shown[1:],
        mean=mean,
        std=std,
        seed=seed,
        mix=make_mix(mixup=mixup, cutmix=cutmix, num_classes=num_classes) if train else None,
        on_error=on_error,
        way_out=way_out,
    )
    order = EpochSampler(len(split), batch_size=batch_size, seed=seed, train=train, mixed=mixed, draw=draw)
    return Loader(batches, sampler=order, **of_whole_batches(seed, num_workers=_workers(split, shown, num_workers)))


def _shown(transform: str, views: Sequence[str], *, mixed: bool, train: bool) -> list[Transform]:
    """How each view of an image is changed."""
    chosen = choose(transform, TRANSFORMS, "transform")
    further = [choose(view, TRANSFORMS, "transform (views)") for view in views]
    if further and mixed:
        raise InvalidInput("`views` show one image each, which mixup and cutmix would mix: switch these off.")
    return [chosen, *further] if train else [TRANSFORMS["none"]]


def _drawn(sampler: str, target: Tensor, epoch: int, *, seed: int, epochs: int) -> Tensor:
    return draw_epoch(sampler, target, seed=seed, epoch=epoch, epochs=epochs)


def _workers(split: Split, shown: Sequence[Transform], asked: int | None) -> int:
    if isinstance(split.images, StackedImages) and not any(change.per_image for change in shown):
        return 0  # handing a batch over from a process takes four times as long as making it
    if asked is not None:
        return asked
    return 0 if split.images.in_memory else num_cores()


def of_whole_batches(seed: int, *, num_workers: int) -> dict[str, Any]:
    """Options of a DataLoader whose sampler draws whole batches, and whose data set answers each with a finished one.

    Args:
        seed: of the run.
        num_workers: processes that read.
    """
    return {
        "batch_size": None,  # a draw is a batch already
        "num_workers": num_workers,
        "persistent_workers": num_workers > 0,
        "collate_fn": as_it_is,
        "pin_memory": torch.cuda.is_available(),
        "generator": generator(seed, "workers"),  # without it every pass draws from the global random state
    }


def as_it_is(fetched: Any) -> Any:
    """Collate nothing; a lambda could not be sent to a worker."""
    return fetched
