"""TFRecords with one image each, read without TensorFlow.

A record is a length (8 bytes, little-endian), a checksum of it (4), so many bytes, and a checksum of these (4). The
bytes are a protocol buffer, ``tf.train.Example``, of which two fields are read here: ``image``, the bytes of an image
file, and ``label``, a whole number.
"""

import struct
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from setwise.data.few_shot.crc32c import masked_crc32c
from setwise.errors import DataError, MissingFile

__all__ = ["Records", "index_records", "parse_example"]

HEADER = struct.Struct("<QI")
FOOTER = struct.Struct("<I")

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5
"""Kinds of fields of a protocol buffer."""

MAX_VARINT_BYTES = 10

BYTES_LIST, INT64_LIST = 1, 3
"""Fields of ``tf.train.Feature``."""


def index_records(file: Path) -> np.ndarray:
    """Where the records of a file lie: ``[N, 2]``, first byte and number of bytes. Only headers are read.

    Raises:
        MissingFile: if there is no such file.
        DataError: if a header is damaged, or the file ends within a record.
    """
    if not file.is_file():
        raise MissingFile(f"{file} is missing.")
    size, start = file.stat().st_size, 0
    found: list[tuple[int, int]] = []
    with file.open("rb", buffering=0) as stream:
        while start < size:
            stream.seek(start)
            header = stream.read(HEADER.size)
            if len(header) < HEADER.size:
                raise DataError(f"{file} ends within the header of record {len(found)}; copy it again.")
            length, checksum = HEADER.unpack(header)
            if masked_crc32c(header[:8]) != checksum:
                raise DataError(f"{file} has a wrong checksum of the length of record {len(found)}; copy it again.")
            first = start + HEADER.size
            start = first + length + FOOTER.size
            if start > size:
                raise DataError(
                    f"{file} ends within record {len(found)}, which should have {length:,} bytes; copy it again."
                )
            found.append((first, length))
    return np.array(found, dtype=np.int64).reshape(-1, 2)


class Records:
    """Images in the records of several files; a file is open only while one of its records is read.

    Args:
        files: one for each class.
        labels: what the records of each file say their class is.
        which: place in ``files`` of every image.
        spans: ``[N, 2]``, first byte and number of bytes of every image's record, as :func:`index_records` finds them.
        check: compare the checksum of every record that is read.
    """

    def __init__(
        self, files: Sequence[Path], labels: Sequence[int], which: np.ndarray, spans: np.ndarray, *, check: bool = True
    ) -> None:
        self.files, self.labels, self.check = list(files), list(labels), check
        self.which, self.spans = which, spans

    def __len__(self) -> int:
        return len(self.which)

    def name(self, place: int) -> str:
        """File and first byte of the record."""
        return f"{self.files[self.which[place]]} at byte {self.spans[place, 0]}"

    def read(self, place: int) -> bytes:
        """The bytes of an image file.

        Raises:
            DataError: if the record is damaged, or is of another class than its file.
        """
        first, length = map(int, self.spans[place])
        number = int(self.which[place])
        try:
            with self.files[number].open("rb", buffering=0) as stream:
                stream.seek(first)
                content = stream.read(length + FOOTER.size)
        except OSError as error:
            raise DataError(f"{self.files[number]} cannot be read ({error})") from error
        if len(content) < length + FOOTER.size:
            raise DataError(f"{self.name(place)}: the file has become shorter since it was opened")
        payload = memoryview(content)[:length]
        if self.check and masked_crc32c(payload) != FOOTER.unpack(content[length:])[0]:
            raise DataError(f"{self.name(place)}: the checksum of the record is wrong; copy the file again")
        try:
            image, label = parse_example(payload)
        except ValueError as error:
            raise DataError(f"{self.name(place)}: the record is no image with a label ({error})") from error
        if label != self.labels[number]:
            raise DataError(f"{self.name(place)}: the record is of class {label}, its file of {self.labels[number]}")
        return image


def parse_example(payload: bytes | memoryview) -> tuple[bytes, int]:
    """``image`` and ``label`` of a ``tf.train.Example``.

    Raises:
        ValueError: if it is none, or one of them is missing.
    """
    image: bytes | None = None
    label: int | None = None
    for features in _nested(memoryview(payload), 1):
        for entry in _nested(features, 1):
            key = b"".join(map(bytes, _nested(entry, 1)))
            for feature in _nested(entry, 2):
                if key == b"image":
                    values = chain.from_iterable(_nested(found, 1) for found in _nested(feature, BYTES_LIST))
                    image = next(map(bytes, values), None)
                elif key == b"label":
                    label = next(chain.from_iterable(map(_integers, _nested(feature, INT64_LIST))), None)
    if image is None or label is None:
        raise ValueError(f"there is no {'image' if image is None else 'label'}")
    return image, label


def _integers(values: memoryview) -> Iterator[int]:
    """The numbers of an ``Int64List``, packed or not."""
    for number, value in _fields(values):
        if number != 1:
            continue
        if isinstance(value, int):
            yield value
        else:
            place = 0
            while place < len(value):
                integer, place = _varint(value, place)
                yield integer


def _nested(buffer: memoryview, wanted: int) -> Iterator[memoryview]:
    """The fields of one number that hold bytes."""
    return (value for number, value in _fields(buffer) if number == wanted and isinstance(value, memoryview))


def _fields(buffer: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Number and value of every field of a protocol buffer."""
    place = 0
    while place < len(buffer):
        tag, place = _varint(buffer, place)
        kind = tag & 7
        if kind == VARINT:
            value, place = _varint(buffer, place)
            yield tag >> 3, value
            continue
        if kind == LENGTH_DELIMITED:
            length, place = _varint(buffer, place)
        elif kind in (FIXED64, FIXED32):
            length = 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"a field of unknown kind {kind}")
        if length > len(buffer) - place:
            raise ValueError("a field is longer than what is left")
        yield tag >> 3, buffer[place : place + length]
        place += length


def _varint(buffer: memoryview, place: int) -> tuple[int, int]:
    """A whole number in as many bytes as it needs, seven bits in each, and the place after it."""
    value = 0
    for count, byte in enumerate(buffer[place : place + MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, place + count + 1
    raise ValueError("a number does not end")
