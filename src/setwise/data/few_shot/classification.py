"""The training classes of a few-shot set as an ordinary classification set: what a trunk learns before episodes."""

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Int64
from torch import Tensor

from setwise.data.dataset import Split, Splits
from setwise.data.few_shot.pool import FewShotSplits, Pool
from setwise.data.images import ImageFiles, Images, ListedImages, Pack, PackedImages, StackedImages
from setwise.data.long_tail import hold_out
from setwise.errors import DataError
from setwise.seeds import generator

__all__ = ["classes_of_training", "one_size"]

HELD_OUT = 0.1
"""Part of every training class for validation, and as much for test."""


def classes_of_training(splits: FewShotSplits, *, seed: int) -> Splits:
    """The images of the training pool in three parts, all with the same classes.

    A tenth of every class is the test part, the same for every seed, and a tenth is held out for validation by the
    seed. The pools of validation and test classes are not touched.

    Args:
        splits: the few-shot set.
        seed: draws the validation part.

    Raises:
        DataError: if there is no training class, or one has so few images that none is left to learn from.
    """
    pool = splits.train
    if not pool.num_classes:
        raise DataError("The set has no training class, so there is nothing to learn as classes.")
    rest, test = hold_out(pool.target, HELD_OUT, generator=generator("test part"))
    kept, val = hold_out(pool.target[rest], HELD_OUT / (1 - HELD_OUT), generator=generator(seed, "validation"))
    note = (
        f"The {pool.num_classes} training classes as a classification set: {len(kept)} images to learn from, a tenth "
        "of every class for validation and as much for test."
    )
    return Splits(
        train=_part(pool, rest[kept]),
        val=_part(pool, rest[val]),
        test=_part(pool, test),
        class_names=pool.class_names,
        mean=splits.mean,
        std=splits.std,
        val_from_train=True,
        val_by_seed=True,
        notes=(*splits.notes, note),
    )


def one_size(pool: Pool) -> int:
    """Side in pixels of the pool's images, which must all be squares of one size.

    Raises:
        DataError: if they are not, or lie in files that nobody has looked at.
    """
    if pool.image_size is not None:
        return pool.image_size
    if isinstance(pool.images, StackedImages):
        height, width = pool.images.tensor.shape[-2:]
        if height == width:
            return height
    raise DataError(
        "The images are no squares of one size: name the side that the network shall see, as --data.image-size 84."
    )


def _part(pool: Pool, places: Int64[Tensor, "m"]) -> Split:
    return Split(
        images=_at(pool.images, places),
        target=pool.target[places],
        names=tuple(pool.names[place] for place in places.tolist()),
        image_size=pool.image_size,
    )


def _at(images: Images, places: Tensor) -> Images:
    if isinstance(images, StackedImages):
        return StackedImages(images.tensor[places])
    if isinstance(images, ListedImages):
        return ListedImages([images.tensors[place] for place in places.tolist()])
    if isinstance(images, PackedImages):
        return PackedImages(_Chosen(images.pack, places.tolist()))
    return ImageFiles([Path(images.paths[place]) for place in places.tolist()])


@dataclass(frozen=True)
class _Chosen:
    """Some of the images of a pack."""

    pack: Pack
    places: list[int]

    def __len__(self) -> int:
        return len(self.places)

    def read(self, place: int) -> bytes:
        return self.pack.read(self.places[place])

    def name(self, place: int) -> str:
        return self.pack.name(self.places[place])
