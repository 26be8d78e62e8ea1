"""From lists of image files to splits: what is held out where a set brings no validation or test part, and decoding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from setwise.data.dataset import Split, Splits
from setwise.data.images import (
    Cache,
    ImageFiles,
    Images,
    ListedImages,
    StackedImages,
    as_text,
    decode_all,
    fits_in_memory,
    image_sizes,
)
from setwise.data.long_tail import hold_out
from setwise.data.problems import OnError, settle
from setwise.errors import DataError, InvalidInput
from setwise.seeds import generator

__all__ = ["Listing", "Parts", "arrange", "load_parts"]

TEST_FRACTION = 0.2
"""Part of every class that becomes the test part of a set which is not split at all."""


@dataclass(frozen=True, eq=False)
class Listing:
    """Image files with their labels, not yet read."""

    paths: Sequence[Path]
    target: Int64[Tensor, "n"] | Float32[Tensor, "n k"]

    def at(self, places: Int64[Tensor, "m"]) -> "Listing":
        """The files at ``places``."""
        return Listing([self.paths[place] for place in places.tolist()], self.target[places])


@dataclass(frozen=True, eq=False)
class Parts:
    """The files of the three splits, and what a user should be told about how they came about."""

    train: Listing
    val: Listing
    test: Listing
    val_from_train: bool = False
    """``val`` was held out of what ``train`` was; see :attr:`setwise.data.dataset.Splits.group_counts`."""
    val_by_seed: bool = False
    """As in :class:`setwise.data.dataset.Splits`."""
    notes: tuple[str, ...] = ()

    def noting(self, note: str | None) -> "Parts":
        """The same parts with one more note."""
        return replace(self, notes=(*self.notes, note)) if note else self


def arrange(
    train: Listing, *, val: Listing | None = None, test: Listing | None = None, val_fraction: float, seed: int
) -> Parts:
    """Complete the parts that a data set brings to three, so that no choice is ever made on the test part.

    With all three they are used as they are. With train and one other, that other is the test part and validation is
    carved out of train. With train alone, a fifth of every class becomes the test part first, whatever the seed.

    Args:
        train: the training part.
        val: the validation part, if the set has one.
        test: the test part, if the set has one.
        val_fraction: part of every class to hold out for validation, of all images that are given as ``train``.
        seed: draws the validation part.

    Raises:
        InvalidInput: if the fraction is out of range.
    """
    if val is not None and test is not None:
        return Parts(train, val, test)
    notes = []
    whole = 1.0
    held_out = test if test is not None else val
    if held_out is None:
        whole -= TEST_FRACTION
        if val_fraction >= whole:
            raise InvalidInput(f"`val_fraction` ({val_fraction:g}) must be below {whole:g}: the rest is the test part.")
        # Keyed by no seed: the runs of a comparison must be tested on the same images, or they could not be paired.
        kept, held = hold_out(train.target, TEST_FRACTION, generator=generator("test part"))
        train, held_out = train.at(kept), train.at(held)
        notes.append(
            f"The set is not split: {TEST_FRACTION:.0%} of every class, the same for every seed, is the test part."
        )
    elif test is None:
        notes.append("The set brings no third part: its val part is the test part here.")
    kept, held = hold_out(train.target, val_fraction / whole, generator=generator(seed, "validation"))
    if val_fraction:
        notes.append(
            f"Validation is {val_fraction:.0%} of every training class, drawn by the seed: {len(held)} images."
        )
    return Parts(train.at(kept), train.at(held), held_out, val_from_train=True, val_by_seed=True, notes=tuple(notes))


def load_parts(
    parts: Parts,
    *,
    root: Path,
    class_names: Sequence[str],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    image_size: int | None,
    cache: Cache,
    on_error: OnError,
) -> Splits:
    """Read the files of three parts, once into memory or whenever they are needed.

    Args:
        parts: the files.
        root: folder that names in messages are relative to.
        class_names: one per class, in label order.
        mean: of each channel, of pixels in 0..1.
        std: likewise.
        image_size: side of what the network sees; None: the images' own size.
        cache: ``"memory"``, ``"files"``, or ``"auto"``: memory up to 1 GiB of decoded images.
        on_error: name unreadable images in an error, or leave them out and say so in the notes. Images that stay in
            files are not opened here: the loader meets the unreadable ones.

    Raises:
        DataError: if images cannot be read, if they differ in size and no ``image_size`` is given, or if a class has
            no training image.
    """
    listings = {"train": parts.train, "val": parts.val, "test": parts.test}
    paths = [path for listing in listings.values() for path in listing.paths]
    in_memory = fits_in_memory(paths, cache)
    problems: list[str] = []
    images: dict[str, Images] = {}
    for name, listing in listings.items():
        if not in_memory:
            images[name] = ImageFiles(listing.paths)
            continue
        decoded = decode_all(listing.paths)
        good = [place for place, image in enumerate(decoded) if isinstance(image, Tensor)]
        problems += [str(image) for image in decoded if isinstance(image, DataError)]
        listings[name] = listing.at(torch.tensor(good, dtype=torch.long))
        images[name] = stack([image for image in decoded if isinstance(image, Tensor)])
    notes = parts.notes + shared_images(listings) + settle(problems, on_error=on_error, what="images")
    if image_size is None:
        require_one_size(list(images.values()), paths)
    return Splits(
        **as_splits(listings, images, root=root, image_size=image_size),
        class_names=tuple(class_names),
        mean=mean,
        std=std,
        val_from_train=parts.val_from_train,
        val_by_seed=parts.val_by_seed,
        notes=notes,
    )


def as_splits(
    listings: Mapping[str, Listing], images: Mapping[str, Images], *, root: Path, image_size: int | None
) -> dict[str, Split]:
    """Images and targets together, named by their paths below ``root``."""
    return {
        name: Split(
            images=images[name],
            target=listing.target,
            names=tuple(str(path.relative_to(root)) for path in listing.paths),
            image_size=image_size,
        )
        for name, listing in listings.items()
    }


def shared_images(listings: Mapping[str, Listing]) -> tuple[str, ...]:
    """Notes on images that are in two parts, which lists and links can bring about."""
    notes = []
    files = {part: _files(listing.paths) for part, listing in listings.items()}
    for (one, first), (other, second) in combinations(files.items(), 2):
        shared = first & second
        if shared:
            notes.append(f"Images both in {one} and in {other}: {len(shared)} (as {as_text(min(shared))}).")
    return tuple(notes)


def _files(paths: Sequence[Path]) -> set[Path]:
    """Where the paths lead to by links of folders; to look up millions of files would take minutes on a network."""
    folders = {folder: folder.resolve() for folder in {path.parent for path in paths}}
    return {folders[path.parent] / path.name for path in paths}


def stack(images: list[Tensor]) -> StackedImages | ListedImages:
    """One tensor where all images have one size."""
    one_size = len({image.shape for image in images}) == 1
    return StackedImages(torch.stack(images)) if one_size else ListedImages(images)


def require_one_size(images: Sequence[Images], paths: Sequence[Path]) -> None:
    """Refuse images of several sizes; of sets in files a sample is looked at, and the loader meets the rest."""
    sizes = set()
    for part in images:
        if isinstance(part, StackedImages):
            sizes.add((part.tensor.shape[-1], part.tensor.shape[-2]))
        elif isinstance(part, ListedImages):
            sizes |= {(image.shape[-1], image.shape[-2]) for image in part.tensors}
    sizes |= set() if sizes else set(image_sizes(paths))
    if len(sizes) > 1:
        (width, height), (other_width, other_height) = sorted(sizes)[0], sorted(sizes)[-1]
        raise DataError(
            f"The images differ in size ({width}x{height} ... {other_width}x{other_height} pixels); give the side that "
            f"the network shall see, for instance --data.image-size 224."
        )
