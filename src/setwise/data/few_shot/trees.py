"""Image files by class and name, in a folder or in a zip archive that is read as it is, without extracting it."""

import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from setwise.data.folders import is_image, leaves_folder, visible_files
from setwise.data.images import ImageFiles, PackedImages
from setwise.data.problems import shorten
from setwise.errors import DataError, MissingFile

__all__ = ["Tree", "ZipMembers", "by_folder", "open_tree"]

MEMBER_BYTES = 2**26
"""An archive's member may be this large (64 MiB) when it is unpacked: no photograph is, and memory is kept."""

UNREADABLE = (KeyError, RuntimeError, NotImplementedError, OSError, EOFError, zipfile.BadZipFile, zlib.error)
"""What a damaged, encrypted or strangely compressed member makes zipfile raise."""


@dataclass(frozen=True, eq=False)
class Tree:
    """The image files below a folder or in an archive."""

    place: Path
    """Folder, or archive."""
    names: tuple[str, ...]
    """Paths below it, with slashes, sorted."""

    def images(self, names: Sequence[str]) -> ImageFiles | PackedImages:
        """The images of some of the names."""
        if self.place.is_dir():
            return ImageFiles([self.place / name for name in names])
        return PackedImages(ZipMembers(self.place, names))


def open_tree(place: Path) -> Tree:
    """List the images of a folder or of a zip archive; hidden files are passed over.

    Raises:
        MissingFile: if there is neither.
        DataError: if the archive is none, or a member would leave the folder into which it is extracted.
    """
    if place.is_dir():
        files = (path.relative_to(place).as_posix() for path in visible_files(place))
        return Tree(place, tuple(sorted(filter(is_image, files))))
    if not place.is_file():
        raise MissingFile(f"{place} is neither a folder nor an archive.")
    try:
        with zipfile.ZipFile(place) as archive:
            members = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"{place} cannot be read as a zip archive ({error}); download it again.") from error
    outside = [repr(name) for name in members if leaves_folder(name)]
    if outside:
        raise DataError(
            f"{place} has members that lead out of its folder ({shorten(outside, separator=', ')}): an archive of "
            "images has none, so do not trust it."
        )
    return Tree(place, tuple(sorted({name for name in members if is_image(name) and not _hidden(name)})))


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def by_folder(names: Sequence[str], *, depth: int) -> dict[str, list[str]]:
    """Paths by their first ``depth`` folders, in the order of the paths; those that are not so deep are left out.

    >>> by_folder(["a/1.png", "a/x/2.png", "b/3.png", "4.png"], depth=1)
    {'a': ['a/1.png', 'a/x/2.png'], 'b': ['b/3.png']}
    """
    found: dict[str, list[str]] = {}
    for name in names:
        parts = name.split("/")
        if len(parts) > depth:
            found.setdefault("/".join(parts[:depth]), []).append(name)
    return found


class ZipMembers:
    """Members of a zip archive, read when they are asked for; every process opens the archive for itself."""

    def __init__(self, archive: Path, members: Sequence[str]) -> None:
        self.archive, self.members = archive, list(members)
        self._open: tuple[int, zipfile.ZipFile] | None = None
        self._lock = Lock()  # zipfile counts its readers, and threads must not do so at once

    def __len__(self) -> int:
        return len(self.members)

    def __reduce__(self) -> tuple[type["ZipMembers"], tuple[Path, list[str]]]:
        return ZipMembers, (self.archive, self.members)

    def name(self, place: int) -> str:
        """Archive and member."""
        return f"{self.archive}/{self.members[place]}"

    def read(self, place: int) -> bytes:
        """The bytes of a member.

        Raises:
            DataError: if they are damaged, encrypted or too many.
        """
        with self._lock:
            return self._read(self._opened(), self.members[place])

    def _opened(self) -> zipfile.ZipFile:
        if self._open is None or self._open[0] != os.getpid():  # two processes must not share a place in a file
            try:
                self._open = (os.getpid(), zipfile.ZipFile(self.archive))
            except (zipfile.BadZipFile, OSError) as error:
                raise DataError(f"{self.archive} cannot be read as a zip archive ({error})") from error
        return self._open[1]

    def _read(self, archive: zipfile.ZipFile, member: str) -> bytes:
        try:
            size = archive.getinfo(member).file_size
            if size > MEMBER_BYTES:
                raise DataError(f"{self.archive}/{member} has {size:,} bytes, and an image at most {MEMBER_BYTES:,}")
            return archive.read(member)
        except UNREADABLE as error:
            raise DataError(f"{self.archive}/{member} cannot be read from the archive ({error})") from error
