"""The images of a split: in memory where they fit, in files where they do not, always 8-bit.

Four forms behind one interface (``len``, ``images[place]``, ``images.take(places)``, ``images.in_memory``):
:class:`StackedImages` is one tensor and by far the fastest, :class:`ListedImages` holds images of different sizes,
:class:`ImageFiles` decodes when asked, and :class:`PackedImages` does so with images that are parts of larger files.
"""

import io
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from setwise.errors import DataError

__all__ = [
    "AT_A_TIME",
    "Cache",
    "ImageFiles",
    "Images",
    "ListedImages",
    "Pack",
    "PackedImages",
    "StackedImages",
    "as_text",
    "decode",
    "decode_all",
    "fits_in_memory",
    "image_sizes",
]

Cache = Literal["auto", "memory", "files"]

MEMORY_BYTES = 2**30
"""Up to here (1 GiB, decoded) a set is kept in memory when ``cache`` is ``"auto"``."""

SAMPLED_SIZES = 64
"""Images whose header is read to estimate the size of a set."""

THREADED_PIXELS = 128 * 128
"""From this size on decoding with threads pays: Pillow releases the interpreter lock in the codec, but not while it
opens the file, which is most of the work for small images (32 px: twice as slow with two threads, 224 px: 1.8x faster).
"""


def decode(path: str | os.PathLike[str]) -> UInt8[Tensor, "3 h w"]:
    """Read an image file as 8-bit RGB.

    Grey, palette and CMYK images are converted, 16-bit images keep their upper 8 bits, transparency is dropped. Pixels
    stay as they are stored: a camera's note on how to turn them (EXIF) is not followed, as in the field's loaders.

    Raises:
        DataError: if the file is missing or is no readable image.
    """
    return decode_from(path, path)


AT_A_TIME = 8
"""Images that a thread or process holds as large as they were stored, where they are brought to size a few at a time:
photographs take 36 MB each."""


def as_text(name: object) -> str:
    r"""A name of a file that is no text, as files of other systems may have, with its bytes spelt out.

    >>> print(as_text(os.fsdecode(b"caf\xe9.jpg")))
    caf\xe9.jpg
    """
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def decode_from(source: str | os.PathLike[str] | io.BytesIO, name: object) -> UInt8[Tensor, "3 h w"]:
    """:func:`decode` of a file or of its bytes; ``name`` is what errors call it."""
    try:
        with Image.open(source) as image:
            pixels = to_rgb(image)
    except FileNotFoundError as error:
        raise DataError(f"{as_text(name)} is missing") from error
    except (
        Exception
    ) as error:  # a broken file makes Pillow's codecs raise OSError, SyntaxError, ValueError, struct.error
        reason = "no image format is recognised" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError(f"{as_text(name)} cannot be read as an image ({as_text(reason)})") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def to_rgb(image: Image.Image) -> np.ndarray:
    """A Pillow image as a fresh ``[H, W, 3]`` array.

    Raises:
        DataError: if its pixels are numbers of 32 bits, whose range no file says.
    """
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise DataError("its pixels are numbers of 32 bits, whose range nobody says: save it with 8 or 16")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow itself would clip at 255 instead of scaling
        wide = np.asarray(image).astype(np.int64).clip(0, 2**16 - 1)
        return np.repeat((wide >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Palette images with Transparency")
        return np.array(image.convert("RGB"))


def attempt(path: str | os.PathLike[str]) -> Tensor | DataError:
    """The image, or the error of :func:`decode` as a value, which can leave a worker process."""
    try:
        return decode(path)
    except DataError as error:
        return error


def decode_all(paths: Sequence[Path]) -> list[Tensor | DataError]:
    """Decode many files, with threads where that is faster; what cannot be read comes back as its error."""
    sizes = image_sizes(paths)
    if sizes and np.mean([width * height for width, height in sizes]) >= THREADED_PIXELS:
        with ThreadPoolExecutor(num_cores()) as pool:
            return list(pool.map(attempt, paths))
    return [attempt(path) for path in paths]


def image_sizes(paths: Sequence[Path]) -> list[tuple[int, int]]:
    """(width, height) of up to 64 files, evenly spaced, from their headers; unreadable ones are left out."""
    sizes = []
    for place in np.linspace(0, len(paths) - 1, min(len(paths), SAMPLED_SIZES)).astype(int):
        try:
            with Image.open(paths[place]) as image:
                sizes.append(image.size)
        except Exception:  # decoding says what is wrong with it, and has the choice to skip it
            continue
    return sizes


def fits_in_memory(paths: Sequence[Path], cache: Cache) -> bool:
    """Whether to decode a set once: as ``cache`` says, or by the estimated number of decoded bytes."""
    if cache != "auto":
        return cache == "memory"
    sizes = image_sizes(paths)
    mean_bytes = np.mean([3 * width * height for width, height in sizes]) if sizes else 0
    return bool(mean_bytes * len(paths) <= MEMORY_BYTES)


def num_cores() -> int:
    """Cores this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class StackedImages:
    """Images of one size as one tensor, ``[N, C, H, W]``."""

    in_memory = True

    def __init__(self, tensor: UInt8[Tensor, "n c h w"]) -> None:
        self.tensor = tensor

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, place: int) -> UInt8[Tensor, "c h w"]:
        return self.tensor[place]

    def take(self, places: Int64[Tensor, "b"]) -> UInt8[Tensor, "b c h w"]:
        """The images at ``places``, stacked."""
        return self.tensor[places]


class ListedImages:
    """Decoded images of different sizes."""

    in_memory = True

    def __init__(self, tensors: Sequence[UInt8[Tensor, "_ _ _"]]) -> None:
        self.tensors = list(tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, place: int) -> UInt8[Tensor, "c h w"]:
        return self.tensors[place]

    def take(self, places: Int64[Tensor, "b"]) -> list[Tensor]:
        """The images at ``places``."""
        return [self.tensors[place] for place in places.tolist()]


class ImageFiles:
    """Images that are decoded each time they are asked for."""

    in_memory = False

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = [str(path) for path in paths]  # a string is a quarter of a Path, and sets have a million of them

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> UInt8[Tensor, "3 h w"]:
        return decode(self.paths[place])

    def take(self, places: Int64[Tensor, "b"]) -> list[Tensor | DataError]:
        """The images at ``places``; a file that cannot be read comes back as its error."""
        return [attempt(self.paths[place]) for place in places.tolist()]


@runtime_checkable
class Pack(Protocol):
    """Image files inside of larger files: an archive's members, the records of a shard."""

    def __len__(self) -> int: ...

    def read(self, place: int) -> bytes:
        """The bytes of an image file; raises DataError where they cannot be had."""

    def name(self, place: int) -> str:
        """What to call it in a message."""


class PackedImages:
    """Images in larger files, decoded each time they are asked for."""

    in_memory = False

    def __init__(self, pack: Pack) -> None:
        self.pack = pack

    def __len__(self) -> int:
        return len(self.pack)

    def __getitem__(self, place: int) -> UInt8[Tensor, "3 h w"]:
        return decode_from(io.BytesIO(self.pack.read(place)), self.pack.name(place))

    def take(self, places: Int64[Tensor, "b"]) -> list[Tensor | DataError]:
        """The images at ``places``; one that cannot be read comes back as its error."""
        taken: list[Tensor | DataError] = []
        for place in places.tolist():
            try:
                taken.append(self[place])
            except DataError as error:
                taken.append(error)
        return taken


Images = StackedImages | ListedImages | ImageFiles | PackedImages
