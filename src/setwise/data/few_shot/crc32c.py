"""CRC-32C, the checksum of TFRecords, for long messages in numpy: no package has to be compiled for it.

A message is cut into rows of 256 bytes, whose checksums are computed side by side and then joined in pairs. That works
because the register depends linearly on bytes and start: the register after two parts is that after the first, moved on
by as many zeros as the second part is long, plus that after the second alone.
"""

from functools import cache

import numpy as np

__all__ = ["crc32c", "masked_crc32c"]

POLYNOMIAL = 0x82F63B78
"""Castagnoli's, with the lowest bit first."""

ALL_ONES = 0xFFFFFFFF
MASK_DELTA = 0xA282EAD8
"""What TFRecords add to a checksum, so that records can hold records."""

ROW = 256
SHORT = 1024
"""Below so many bytes a plain loop is faster."""


def masked_crc32c(data: bytes | memoryview) -> int:
    """The checksum as TFRecords store it: rotated by 15 bits, plus a constant."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + MASK_DELTA) & ALL_ONES


def crc32c(data: bytes | memoryview) -> int:
    """The checksum of some bytes.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    if len(data) < SHORT:
        return _loop(data) ^ ALL_ONES
    rows = 1 << (-(-len(data) // ROW) - 1).bit_length()
    padded = np.zeros(rows * ROW, dtype=np.uint8)  # zeros in front change nothing where the start is zero
    first = padded.size - len(data)
    padded[first:] = np.frombuffer(data, dtype=np.uint8)
    padded[first : first + 4] ^= 0xFF  # a start of all ones is the same as these bytes flipped
    table, state = _table(), np.zeros(rows, dtype=np.uint32)
    for column in np.ascontiguousarray(padded.reshape(rows, ROW).T):
        state = table[(state ^ column) & 0xFF] ^ (state >> 8)
    level = 0
    while len(state) > 1:
        state = _moved(_moving(level), state[::2]) ^ state[1::2]
        level += 1
    return int(state[0]) ^ ALL_ONES


def _loop(data: bytes | memoryview) -> int:
    state, table = ALL_ONES, _as_list()
    for byte in bytes(data):
        state = table[(state ^ byte) & 0xFF] ^ (state >> 8)
    return state


@cache
def _table() -> np.ndarray:
    """The register after each of the 256 bytes."""
    state: np.ndarray = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        state = (state >> 1) ^ np.where(state & 1, np.uint32(POLYNOMIAL), np.uint32(0))
    return state


@cache
def _as_list() -> list[int]:
    return list(map(int, _table()))


@cache
def _moving(level: int) -> np.ndarray:
    """What ``2**level`` rows of zeros make of a register, by each of its four bytes: ``[4, 256]``."""
    values = np.arange(256, dtype=np.uint32)
    moved = np.stack([values << np.uint32(8 * byte) for byte in range(4)])
    if level:
        half = _moving(level - 1)
        return _moved(half, _moved(half, moved))
    for _ in range(ROW):
        moved = _table()[moved & 0xFF] ^ (moved >> 8)
    return moved


def _moved(by: np.ndarray, state: np.ndarray) -> np.ndarray:
    return by[0][state & 0xFF] ^ by[1][state >> 8 & 0xFF] ^ by[2][state >> 16 & 0xFF] ^ by[3][state >> 24]
