"""Split -> batches that depend on nothing but the seed and the epoch.

The sampler draws whole batches (``order.py``) and the data set answers each with a finished batch, so that images in
memory are picked, augmented and normalised together, and a worker process, where there is one, sends one message per
batch. What a worker cannot read comes back as a sentence, which the main process raises or counts.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from setwise.data.batch import Batch, BatchOfViews
from setwise.data.dataset import Split
from setwise.data.images import AT_A_TIME, StackedImages, num_cores
from setwise.data.mix import make_mix
from setwise.data.order import Draw, EpochSampler
from setwise.data.problems import WAY_OUT, OnError, settle
from setwise.data.samplers import draw_epoch
from setwise.data.transforms import TRANSFORMS, Transform, fit_image, normalise
from setwise.errors import DataError, InvalidInput, choose
from setwise.seeds import generator, key

__all__ = ["Loader", "make_loader", "of_whole_batches"]


class Fetched(NamedTuple):
    """A batch, and what of it could not be read."""

    batch: Batch | BatchOfViews | DataError | None
    """None if nothing could be read; an error where the images do not go together."""
    problems: tuple[str, ...]


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
        self.split, self.transform, self.mean, self.std = split, transform, mean, std
        self.seed, self.mix, self.on_error, self.way_out = seed, mix, on_error, way_out
        self.skipped: dict[str, None] = {}  # an ordered set, filled in the main process
        self.changes = (transform, *views)
        # Photographs in files are brought to size a few at a time: as they are read, or by what chooses a part of each,
        # unless another view needs all of a batch together.
        large = not split.images.in_memory and split.image_size is not None
        crops = any(change.chooses_crop for change in self.changes)
        alone = all(change.batched is None for change in self.changes)
        self._fits = large and not crops
        self._at_a_time = AT_A_TIME if large and crops and alone else None

    def __getitem__(self, draw: Draw) -> Fetched:
        found: list[list[Tensor]] = []
        kept, problems = [torch.empty(0, dtype=torch.int64)], list[str]()
        for few in torch.arange(len(draw.indices)).split(self._at_a_time or max(1, len(draw.indices))):
            images, good, wrong = self.read(draw.indices[few])
            part = draw._replace(indices=draw.indices[few][good], turns=draw.turns[few][good])
            problems += wrong
            if not len(part.indices):
                continue
            kept.append(part.indices)
            try:
                found.append(
                    [self.augmented(images, part, change=change, view=view) for view, change in enumerate(self.changes)]
                )
            except DataError as error:  # images of several sizes
                return Fetched(error, tuple(problems))
        return self._batch(draw, torch.cat(kept), found, tuple(problems))

    def _batch(self, draw: Draw, index: Tensor, found: list[list[Tensor]], problems: tuple[str, ...]) -> Fetched:
        if not found:
            return Fetched(None, problems)
        together = found[0] if len(found) == 1 else (torch.cat(parts) for parts in zip(*found, strict=True))
        image, *views = (normalise(seen, mean=self.mean, std=self.std) for seen in together)
        target = self.split.target[index]
        if views:
            return Fetched(BatchOfViews(image, target, index, tuple(views)), problems)
        if self.mix is not None:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(key(self.seed, "mix", draw.epoch, draw.step))
                image, target = self.mix(image, target)
        return Fetched(Batch(image, target, index), problems)

    def augmented(self, images: Tensor | list[Tensor], draw: Draw, *, change: Transform, view: int) -> Tensor:
        """One view of the images of a batch."""
        return change(
            images,
            image_size=self.split.image_size,
            seed=self.seed,
            epoch=draw.epoch,
            step=draw.step,
            index=draw.indices,
            turns=draw.turns,
            view=view,
        )

    def read(self, indices: Tensor) -> tuple[Tensor | list[Tensor], Tensor, tuple[str, ...]]:
        """The images that can be read, which they are ``[b]``, and what is wrong with the others."""
        images = self._taken(indices)
        if isinstance(images, Tensor):
            return images, torch.ones(len(images), dtype=torch.bool), ()
        good = torch.tensor([isinstance(image, Tensor) for image in images], dtype=torch.bool)
        problems = tuple(str(image) for image in images if isinstance(image, DataError))
        return [image for image in images if isinstance(image, Tensor)], good, problems

    def _taken(self, indices: Tensor) -> Tensor | Sequence[Tensor | DataError]:
        if not self._fits:
            return self.split.images.take(indices)
        few = (image for part in indices.split(AT_A_TIME) for image in self.split.images.take(part))
        return [image if isinstance(image, DataError) else fit_image(image, self.split.image_size) for image in few]


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
