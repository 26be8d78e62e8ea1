"""What a data set is: three splits of images with their targets, and a table entry that says how to get them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from setwise.data.images import Images
from setwise.data.problems import shorten
from setwise.errors import DataError

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "STATISTICS", "DataSet", "Split", "Splits", "count_classes"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Per channel, of pixels in 0..1, over ImageNet's training images: what pretrained networks expect."""

IMAGENET_STD = (0.229, 0.224, 0.225)

STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "inaturalist2018": ((0.466, 0.471, 0.380), (0.195, 0.194, 0.192)),
}
"""Set -> mean and deviation of each channel, of pixels in 0..1; iNaturalist's as Balanced Softmax's code has them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """One part of a data set."""

    images: Images
    target: Int64[Tensor, "n"] | Float32[Tensor, "n k"]
    """Class ids; or a row of zeros and ones where an image may have several labels."""
    names: tuple[str, ...]
    """What to call an image in a message: mostly its path below the root."""
    image_size: int | None = None
    """Side in pixels of what the network sees; None: the images' own size."""

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, kw_only=True, eq=False)
class Splits:
    """A loaded data set; no image is in two of its splits, unless the user's own lists say so (then a note does)."""

    train: Split
    val: Split
    """Held out from train, for choosing: may be empty if no image could be spared."""
    test: Split
    """Looked at once, at the end."""
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    """One per channel, of pixels in 0..1."""
    std: tuple[float, ...]
    val_from_train: bool = False
    """Validation was held out of the training images, which the set has as one part with it."""
    val_by_seed: bool = False
    """Another seed would have trained on images that are validation here."""
    notes: tuple[str, ...] = ()
    """Sentences a user should be told: what was held out, what was skipped."""

    def __post_init__(self) -> None:
        empty = [name for name, count in zip(self.class_names, self.train_counts.tolist(), strict=True) if count == 0]
        if empty:
            raise DataError(f"No training image for class {shorten([repr(name) for name in empty], separator=', ')}.")

    @property
    def num_classes(self) -> int:
        """Number of classes ``K``."""
        return len(self.class_names)

    @property
    def train_counts(self) -> Int64[Tensor, "k"]:
        """Training images of each class."""
        return count_classes(self.train.target, num_classes=self.num_classes)

    @property
    def group_counts(self) -> Int64[Tensor, "k"]:
        """Training images of each class as the set has them, before validation was held out.

        What many-, medium- and few-shot are defined on: with a tenth of them held out, CIFAR-100-LT's 35, 35 and 30
        classes would be others. Equal to ``train_counts`` where validation comes from elsewhere.
        """
        if not self.val_from_train:
            return self.train_counts
        return self.train_counts + count_classes(self.val.target, num_classes=self.num_classes)


def count_classes(
    target: Int64[Tensor, "n"] | Float32[Tensor, "n k"], *, num_classes: int
) -> Int64[Tensor, "num_classes"]:
    """How many samples each class has; a sample with several labels counts for each of them.

    >>> count_classes(torch.tensor([0, 2, 2]), num_classes=4)
    tensor([1, 0, 2, 0])
    """
    if target.ndim == 1:
        return torch.bincount(target, minlength=num_classes)
    return target.sum(0).long()


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """One line of the table ``DATASETS``."""

    name: str
    summary: str
    """One line for ``setwise list datasets``."""
    licence: str
    source: str
    """What to cite, and where it comes from."""
    how_to_get: str
    """What to download and into which folders; nothing is downloaded unasked."""
    load: Callable[..., Splits]
    """Keyword-only; its parameters are ``seed`` and those fields of ``recipes.Data`` that this data set serves."""
