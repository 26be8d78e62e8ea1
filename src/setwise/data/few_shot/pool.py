"""What few-shot learning draws from: pools of images with disjoint classes, and the entry of a set in the table."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Int64
from torch import Tensor

from setwise.data.few_shot.class_graph import ClassGraph
from setwise.data.images import Images
from setwise.data.problems import shorten
from setwise.errors import DataError

__all__ = ["FewShotSet", "FewShotSplits", "Pool"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """The images of one part (train, val or test), and how its classes belong together.

    Raises:
        DataError: if images, targets and names differ in number, a target is no class, or a class has no image.
    """

    images: Images
    target: Int64[Tensor, "n"]
    """Class of each image, ``0..K-1`` within this pool."""
    class_names: tuple[str, ...]
    names: tuple[str, ...]
    """What to call an image in a message: mostly its path below the root."""
    superclasses: tuple[str, ...] | None = None
    """Of each class, Omniglot's alphabet say: an episode then stays within one."""
    graph: ClassGraph | None = None
    """Over the classes, WordNet say: an episode then takes what is below one node."""
    image_size: int | None = None
    """Side in pixels of the images, where they were brought to one; None: as they are."""

    def __post_init__(self) -> None:
        if not len(self.images) == len(self.target) == len(self.names):
            raise DataError(
                f"A pool needs a target and a name for every image, but has {len(self.images)} images, "
                f"{len(self.target)} targets and {len(self.names)} names."
            )
        if len(self.target) and not 0 <= int(self.target.min()) <= int(self.target.max()) < self.num_classes:
            low, high = int(self.target.min()), int(self.target.max())
            raise DataError(f"Targets must be in 0..{self.num_classes - 1}, but are in {low}..{high}.")
        empty = [repr(name) for name, count in zip(self.class_names, self.counts.tolist(), strict=True) if not count]
        if empty:
            raise DataError(f"No image for class {shorten(empty, separator=', ')}: leave it out of its list.")
        for what, number in (
            ("superclasses", self.num_classes if self.superclasses is None else len(self.superclasses)),
            ("leaves of the class graph", self.num_classes if self.graph is None else len(self.graph.leaves)),
        ):
            if number != self.num_classes:
                raise DataError(f"A pool has one entry a class, but {number} {what} for {self.num_classes} classes.")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def num_classes(self) -> int:
        """Number of classes ``K``."""
        return len(self.class_names)

    @property
    def counts(self) -> Int64[Tensor, "k"]:
        """Images of each class."""
        return torch.bincount(self.target, minlength=self.num_classes)


@dataclass(frozen=True, kw_only=True, eq=False)
class FewShotSplits:
    """A loaded set; no class is in two of its pools, and a pool may be empty (some sets are for test alone).

    Raises:
        DataError: if a class is in two pools.
    """

    train: Pool
    val: Pool
    """For choosing."""
    test: Pool
    """Looked at once, at the end."""
    mean: tuple[float, ...]
    """One per channel, of pixels in 0..1."""
    std: tuple[float, ...]
    notes: tuple[str, ...] = ()
    """Sentences a user should be told."""

    def __post_init__(self) -> None:
        pools = {"train": self.train, "val": self.val, "test": self.test}
        for (one, first), (other, second) in combinations(pools.items(), 2):
            shared = sorted(set(first.class_names) & set(second.class_names))
            if shared:
                listed = shorten([repr(name) for name in shared], separator=", ")
                raise DataError(
                    f"Few-shot learning is tested on new classes, but {listed} is both in {one} and in {other}: leave "
                    "it in one of them."
                )


@dataclass(frozen=True, kw_only=True)
class FewShotSet:
    """One line of the table ``FEW_SHOT``."""

    name: str
    summary: str
    """One line for a list of data sets."""
    licence: str
    source: str
    """What to cite, and where it comes from."""
    how_to_get: str
    """What to download and into which folders; nothing is downloaded unasked."""
    load: Callable[..., FewShotSplits]
    """Keyword-only; its parameters are ``seed`` and those fields of ``recipes.Data`` that this set serves."""
