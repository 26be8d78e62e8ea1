"""What a training step receives."""

from typing import NamedTuple

from jaxtyping import Float32, Int64
from torch import Tensor

__all__ = ["Batch", "BatchOfViews"]


class Batch(NamedTuple):
    """Some images of a split, ready for a network; the set that a relation attends over.

    ``index`` says which sample of the split a row is, so that predictions can be put back in order and results of two
    runs compared image by image.
    """

    image: Float32[Tensor, "b c h w"]
    """Normalised: zero mean, unit deviation per channel over the data set."""
    target: Int64[Tensor, "b"] | Float32[Tensor, "b k"]
    """Class ids; or one weight per class where an image has several labels, or was mixed by mixup or CutMix."""
    index: Int64[Tensor, "b"]  # type: ignore[assignment]  # tuples have a method of that name, of no use here
    """Place of the image in its split."""


class BatchOfViews(NamedTuple):
    """The same where each training image is seen in several ways; :class:`Batch` keeps its three fields for loops."""

    image: Float32[Tensor, "b c h w"]
    """The first view of each image, normalised."""
    target: Int64[Tensor, "b"] | Float32[Tensor, "b k"]
    """As in a :class:`Batch`; the views of an image share it."""
    index: Int64[Tensor, "b"]  # type: ignore[assignment]
    """Place of the image in its split."""
    views: tuple[Float32[Tensor, "b c h w"], ...]
    """The further views, each of all images, in the order of the rows."""
