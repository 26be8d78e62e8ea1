"""Handwritten digits that come with scikit-learn, made long-tailed: the data set that needs no download."""

import torch

from setwise.data.dataset import DataSet, Split, Splits
from setwise.data.images import StackedImages
from setwise.data.long_tail import exponential_counts, pick
from setwise.seeds import generator

__all__ = ["DIGITS_LT"]

NUM_CLASSES = 10

INK = 16
"""The images count ink in steps of 0..16."""

TEST_PER_CLASS = 50
VAL_PER_CLASS = 24
LARGEST_CLASS = 100
"""What the rarest of the ten digits (174 images) has left after test and validation."""

IMBALANCE_FACTOR = 50.0
"""100 images of the largest class, 2 of the smallest."""

MEAN, STD = (0.3053,), (0.3760,)
"""Over all 1,797 images."""


def load(*, seed: int, imbalance_factor: float | None = None, image_size: int | None = None) -> Splits:
    """Split the digits: a fixed balanced test part, a balanced validation part, a long-tailed rest for training.

    Args:
        seed: draws validation, the order of the classes from large to small, and the training images. The test part
            (50 images per class) is the same for every seed.
        imbalance_factor: largest training class over smallest; None: 50, which is 100 images down to 2.
        image_size: side of what the network sees; None: 8 pixels, as they are.

    Raises:
        InvalidInput: if the imbalance factor is below 1 or leaves a class empty.
    """
    from sklearn.datasets import load_digits  # costs a second of import that the other data sets need not pay

    digits = load_digits()
    images = torch.from_numpy(digits.images * (255 / INK)).round().to(torch.uint8)[:, None]  # [1797, 1, 8, 8]
    target = torch.from_numpy(digits.target).long()

    def draw(free: torch.Tensor, counts: list[int], *key: int | str) -> tuple[torch.Tensor, torch.Tensor]:
        drawn = free[pick(target[free], counts, generator=generator(*key))]
        return drawn, free[~torch.isin(free, drawn)]

    order = torch.randperm(NUM_CLASSES, generator=generator(seed, "class order")).tolist()
    sizes = exponential_counts(
        LARGEST_CLASS,
        num_classes=NUM_CLASSES,
        imbalance_factor=IMBALANCE_FACTOR if imbalance_factor is None else imbalance_factor,
        rounding=round,
    )
    counts = [sizes[order.index(label)] for label in range(NUM_CLASSES)]
    test, free = draw(torch.arange(len(target)), [TEST_PER_CLASS] * NUM_CLASSES, "digits-lt", "test")
    val, free = draw(free, [VAL_PER_CLASS] * NUM_CLASSES, seed, "validation")
    train, _ = draw(free, counts, seed, "long tail")

    def split(places: torch.Tensor) -> Split:
        names = tuple(f"digit {place}" for place in places.tolist())
        return Split(images=StackedImages(images[places]), target=target[places], names=names, image_size=image_size)

    return Splits(
        train=split(train),
        val=split(val),
        test=split(test),
        class_names=tuple(str(label) for label in range(NUM_CLASSES)),
        mean=MEAN,
        std=STD,
        val_by_seed=True,
    )


DIGITS_LT = DataSet(
    name="digits-lt",
    summary="1,797 handwritten digits of 8x8 pixels, long-tailed in training; embedded, no download",
    licence="BSD-3-Clause (as part of scikit-learn); the original is CC BY 4.0",
    source="Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI 1998, doi:10.24432/C50P49; "
    "the copy in scikit-learn (sklearn.datasets.load_digits)",
    how_to_get="Nothing to do: it comes with scikit-learn.",
    load=load,
)
