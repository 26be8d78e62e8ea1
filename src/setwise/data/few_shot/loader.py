"""Pools -> batches of one episode each, that depend on nothing but the seed, the epoch and the number of the episode.

Everything about an episode has a key of its own: its images, whether it is a SimCLR episode, its augmentation. So any
number of worker processes gives the same episodes, and a resumed run goes on with those of an unbroken one.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms.v2 import functional as tv

from setwise.data.few_shot.episodes import Episode, EpisodeSampler
from setwise.data.few_shot.pool import Pool
from setwise.data.few_shot.simclr import SimCLRTransform, simclr_episode
from setwise.data.images import AT_A_TIME, Images, num_cores
from setwise.data.loader import of_whole_batches
from setwise.data.problems import settle
from setwise.data.transforms import normalise
from setwise.errors import DataError, InvalidInput, choose
from setwise.nn.gather import place
from setwise.seeds import generator

__all__ = ["EpisodeBatch", "EpisodeLoader", "EpisodeOrder", "Source", "make_episode_loader", "read_squashed", "squash"]

Source = tuple[Pool, EpisodeSampler]
"""A pool and what draws from it."""

Augment = Literal["none", "simclr"]

WAY_OUT = "Repair what is named, or leave it out of the set."


class EpisodeBatch(NamedTuple):
    """One episode, ready for a network."""

    support: Float32[Tensor, "s 3 h w"]
    """Normalised: zero mean, unit deviation per channel over the data set."""
    support_target: Int64[Tensor, "s"]
    """``0..C-1``, each at least once."""
    query: Float32[Tensor, "q 3 h w"]
    query_target: Int64[Tensor, "q"]
    index: int  # type: ignore[assignment]  # tuples have a method of that name, of no use here
    """Number of the episode in its epoch, among those of all processes."""
    simclr: bool
    """Every support image is a class of its own, and the queries are views of them."""
    views: Float32[Tensor, "two_s 3 h w"] | None = None
    """Two views of every support image, the first ones of all, then the second ones; where they were asked for."""
    numbers: Int64[Tensor, "s_and_q"] | None = None
    """Of each image, support set first, in evaluation: the same number is the same image in every episode."""


class Turn(NamedTuple):
    """Which episode comes."""

    epoch: int
    index: int  # type: ignore[assignment]  # as above


class EpisodeOrder(Sampler[Turn]):
    """Numbers the episodes of an epoch; of several processes every one takes each ``world``-th.

    In training all processes make equally many steps, so the episodes that do not go round are left out; in evaluation
    none is missed. :meth:`set_epoch`, which Lightning calls, chooses the epoch.
    """

    def __init__(self, episodes: int, *, train: bool) -> None:
        if episodes < 1:
            raise InvalidInput(f"`episodes` ({episodes}) must be at least 1.")
        self.episodes, self.train, self.epoch = episodes, train, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the episodes of the next pass; 0-based."""
        self.epoch = epoch

    def _own(self) -> range:
        rank, world = place()
        whole = self.episodes // world * world if self.train else self.episodes
        return range(rank, whole, world)

    def __len__(self) -> int:
        """Episodes of this process."""
        return len(self._own())

    def __iter__(self) -> Iterator[Turn]:
        return (Turn(self.epoch, index) for index in self._own())


class Fetched(NamedTuple):
    """An episode, or what of it could not be read."""

    batch: EpisodeBatch | None
    problems: tuple[str, ...]


class Episodes(Dataset[Fetched]):
    """Answers a :class:`Turn` with an episode. Built by :func:`make_episode_loader`."""

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int,
        train: bool,
        simclr_fraction: float,
        augment: Augment,
        views: bool = False,
    ) -> None:
        self.sources, self.image_size, self.mean, self.std = sources, image_size, mean, std
        self.firsts = [0, *accumulate(len(pool) for pool, _ in sources)]
        self.seed, self.train, self.augment = seed, train, augment
        self.simclr_fraction = simclr_fraction if train else 0.0
        self.views = views and train
        self.sharp, self.blurred = (SimCLRTransform(image_size, blur=blur) for blur in (False, True))

    def __getitem__(self, turn: Turn) -> Fetched:
        source, episode = self.draw(turn)
        simclr = bool(torch.rand((), generator=self._generator("simclr", turn)) < self.simclr_fraction)
        if simclr:
            episode = simclr_episode(episode)
        drawn = torch.cat([episode.support, episode.query])
        places, where = drawn.unique(return_inverse=True)
        images, problems = read_squashed(self.sources[source][0].images, places, self.image_size)
        if problems:
            return Fetched(None, problems)
        small = images[where]  # [S+Q, 3, h, w]
        support, query = small.split([len(episode.support), len(episode.query)])
        batch = EpisodeBatch(
            support=self._view(support, turn, "support", change=simclr),
            support_target=episode.support_target,
            query=self._view(query, turn, "query", change=simclr),
            query_target=episode.query_target,
            index=turn.index,
            simclr=simclr,
            views=self._two_views(support, turn) if self.views else None,
            numbers=None if self.train else drawn + self.firsts[source],
        )
        return Fetched(batch, ())

    def draw(self, turn: Turn) -> tuple[int, Episode]:
        """The place of a source and the images of an episode, before it may become a SimCLR episode."""
        source = 0
        if len(self.sources) > 1:
            source = int(torch.randint(len(self.sources), (), generator=self._generator("source", turn)))
        return source, self.sources[source][1].draw(self._generator("episode", turn))

    def _generator(self, purpose: str, turn: Turn) -> torch.Generator:
        if self.train:
            return generator(self.seed, purpose, turn.epoch, turn.index)
        return generator(self.seed, "evaluation", purpose, turn.index)  # the same in every epoch

    def _two_views(self, images: UInt8[Tensor, "n 3 h w"], turn: Turn) -> Tensor:
        return torch.cat([self._view(images, turn, f"{number} of two", change=True) for number in ("one", "other")])

    def _view(self, images: UInt8[Tensor, "n 3 h w"], turn: Turn, what: str, *, change: bool) -> Tensor:
        """Normalised; views of the images in SimCLR episodes and where all training images are augmented."""
        if not change and not (self.train and self.augment == "simclr"):
            return normalise(images, mean=self.mean, std=self.std)
        transform = self.blurred if what == "query" else self.sharp
        views = transform(images, self._generator(f"views of {what}", turn))
        mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (self.mean, self.std))
        return views.sub_(mean).div_(std)


def read_squashed(
    images: Images, places: Int64[Tensor, "n"], image_size: int
) -> tuple[UInt8[Tensor, "b 3 h w"], tuple[str, ...]]:
    """The images at ``places`` that can be read, as :func:`squash` makes them, and what is wrong with the others."""
    small, problems = [torch.empty(0, 3, image_size, image_size, dtype=torch.uint8)], list[str]()
    for few in places.split(max(1, len(places)) if images.in_memory else AT_A_TIME):
        taken = list(images.take(few))
        problems += [str(image) for image in taken if isinstance(image, DataError)]
        if good := [image for image in taken if isinstance(image, Tensor)]:
            small.append(squash(good, image_size))
    return small[1] if len(small) == 2 else torch.cat(small), tuple(problems)


def squash(images: Sequence[UInt8[Tensor, "_ _ _"]], image_size: int) -> UInt8[Tensor, "b 3 h w"]:
    """Bring images of any size to one square, whatever their aspect, and grey ones to three channels.

    Nothing is cut off, as in Meta-Dataset: with few images of a class, each is needed whole. An image that has the size
    already is not touched.
    """
    size = [image_size, image_size]
    return torch.stack(
        [
            (image if list(image.shape[-2:]) == size else tv.resize(image, size, antialias=True)).expand(3, -1, -1)
            for image in images
        ]
    )


class EpisodeLoader(DataLoader[Any]):
    """A DataLoader of :class:`EpisodeBatch`. Built by :func:`make_episode_loader`.

    With Lightning pass ``use_distributed_sampler=False`` to the Trainer: the sampler shares out the episodes itself.
    """

    dataset: Episodes

    def episode(self, index: int) -> tuple[EpisodeBatch, tuple[str, ...]]:
        """One episode by its number, and the names of its classes in label order.

        Raises:
            DataError: naming the images of it that cannot be read.
        """
        turn = Turn(0, index)
        batch, problems = self.dataset[turn]
        settle(problems, on_error="raise", what="images", way_out=WAY_OUT)
        assert batch is not None
        source, drawn = self.dataset.draw(turn)
        names = self.dataset.sources[source][0].class_names
        return batch, tuple(names[label] for label in drawn.classes.tolist())

    def __iter__(self) -> Iterator[EpisodeBatch]:  # type: ignore[override]
        """Episodes of one epoch.

        Raises:
            DataError: naming the images of an episode that cannot be read.
        """
        fetched = super().__iter__()
        try:
            for batch, problems in fetched:
                settle(problems, on_error="raise", what="images", way_out=WAY_OUT)
                yield batch
        except DataError:
            # Ends the workers now: torch waits five seconds for them where they are left to the garbage collector.
            del fetched
            self._iterator = None
            raise


def make_episode_loader(
    pool: Pool | Sequence[Source],
    sampler: EpisodeSampler | None = None,
    *,
    episodes: int,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int,
    train: bool,
    simclr_fraction: float = 0.0,
    augment: Augment = "none",
    views: bool = False,
    num_workers: int | None = None,
) -> EpisodeLoader:
    """Episodes of a part, the same for the same seed, whatever ran before and in however many processes.

    Args:
        pool: what to draw from; or several (pool, sampler), of which every episode draws one uniformly.
        sampler: draws from the pool; left out where there are several.
        episodes: of an epoch, of all processes together. Paper, evaluation: 600.
        image_size: side of what the network sees. Paper: 224.
        mean, std: of each channel, of pixels in 0..1.
        seed: keys images, SimCLR episodes and augmentation.
        train: other episodes in every epoch; or the same ones, which depend on the seed alone and have neither SimCLR
            episodes nor augmentation.
        simclr_fraction: probability that a training episode becomes a SimCLR episode. Paper: 0.5.
        augment: "simclr" changes all training images as those of SimCLR episodes are; "none" changes only those.
        views: give two of SimCLR's views of each training episode's support images, for a loss of their own.
        num_workers: processes that read and augment; None: the cores there are for images in files and for SimCLR's
            views, else none.

    Raises:
        InvalidInput: if a number is out of range, or pools and samplers do not go together.
        UnknownName: if there is no such augmentation.
    """
    sources = _as_sources(pool, sampler)
    if not 0 <= simclr_fraction <= 1:
        raise InvalidInput(f"`simclr_fraction` ({simclr_fraction:g}) is a probability: 0 to 1.")
    choose(augment, ("none", "simclr"), "augmentation of episodes")
    busy = train and (simclr_fraction > 0 or augment != "none" or views)
    idle = all(source.images.in_memory for source, _ in sources) and not busy
    workers = num_workers if num_workers is not None else 0 if idle else num_cores()
    dataset = Episodes(
        sources,
        image_size=image_size,
        mean=mean,
        std=std,
        seed=seed,
        train=train,
        simclr_fraction=simclr_fraction,
        augment=augment,
        views=views,
    )
    order = EpisodeOrder(episodes, train=train)
    return EpisodeLoader(dataset, sampler=order, **of_whole_batches(seed, num_workers=workers))


def _as_sources(pool: Pool | Sequence[Source], sampler: EpisodeSampler | None) -> list[Source]:
    """One pool with its sampler, or several, as a list."""
    if isinstance(pool, Pool) != (sampler is not None):
        raise InvalidInput("Pass a pool and its sampler, or a list of (pool, sampler) and no other sampler.")
    sources = [(pool, sampler)] if isinstance(pool, Pool) and sampler is not None else list(pool)  # type: ignore[arg-type]
    if not sources:
        raise InvalidInput("There is no (pool, sampler) to draw from.")
    return sources
