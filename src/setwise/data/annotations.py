"""Lists from annotations in COCO's format, as iNaturalist gives them out: images, and one category for each."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from setwise.data.image_list import parse_line
from setwise.data.problems import settle
from setwise.errors import DataError, MissingFile, RunError

__all__ = ["lines_of", "write_list"]

GZIP = b"\x1f\x8b"
WAY_OUT = "Download the file again, or name another one."


def lines_of(file: Path) -> list[str]:
    """One "path label" line an image, in the order of the file's images; the label is the category's id.

    Args:
        file: JSON with ``images`` (``id``, ``file_name``) and ``annotations`` (``image_id``, ``category_id``).

    Raises:
        MissingFile: if there is no such file.
        DataError: if it is no such JSON, or an image has no category, several, or a path that no line can hold.
    """
    content = _read(file)
    images, annotations = (_entries(content, name, file) for name in ("images", "annotations"))
    labels: dict[int, int] = {}
    problems: list[str] = []
    for number, one in enumerate(annotations):
        image, label = _whole(one, "image_id"), _whole(one, "category_id")
        if image is None or label is None:
            problems.append(
                f"annotation {number} of {file} has no whole number, 0 or more, for image_id or category_id"
            )
        elif labels.setdefault(image, label) != label:
            problems.append(f"image {image} of {file} has two categories, {labels[image]} and {label}")
    lines, seen = [], set[int]()
    for number, one in enumerate(images):
        image, path = _whole(one, "id"), one.get("file_name") if isinstance(one, dict) else None
        if image is None or not isinstance(path, str):
            problems.append(f"image {number} of {file} has no id or no file_name")
        elif image in seen:
            problems.append(f"two images of {file} have the id {image}")
        elif image not in labels:
            problems.append(f"image {image} of {file} has no annotation")
        elif not _can_stand(path, labels[image]):
            problems.append(f"the path {path!r} in {file} cannot stand in a list")
        else:
            lines.append(f"{path} {labels[image]}")
        if image is not None:
            seen.add(image)
    problems += [f"an annotation of {file} is of image {image}, which is not there" for image in labels.keys() - seen]
    settle(problems, on_error="raise", what="entries", way_out=WAY_OUT)
    return lines


def write_list(lines: Sequence[str], path: Path) -> None:
    """Write a list to a file that does not exist yet.

    Raises:
        RunError: if it exists, or cannot be written.
    """
    try:
        with path.open("x", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{line}\n" for line in lines)
    except FileExistsError as error:
        raise RunError(f"{path} exists already and is not overwritten; name another folder with --lists.") from error
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()  # made here, and not whole
        raise RunError(f"{path} cannot be written: {error.strerror}.") from error


def _read(file: Path) -> Any:
    if not file.is_file():
        raise MissingFile(f"There is no file of annotations {file}.")
    try:
        with file.open("rb") as opened:
            begins = opened.read(len(GZIP))  # an archive of the images has 120 GB
            if begins == GZIP:
                raise DataError(f"{file} is an archive: extract it (tar -xf {file.name}) and name the JSON file in it.")
            content = begins + opened.read()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}. {WAY_OUT}") from error
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # bytes that are no text are a ValueError, too
        raise DataError(f"{file} is not JSON ({error}). {WAY_OUT}") from error


def _entries(content: Any, name: str, file: Path) -> list[Any]:
    entries = content.get(name) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(
            f'{file} has no list "{name}", so it is no file of annotations: one has "images" and "annotations".'
        )
    return entries


def _whole(one: Any, name: str) -> int | None:
    value = one.get(name) if isinstance(one, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _can_stand(path: str, label: int) -> bool:
    """Whether a reader of the line gets back this path and label."""
    try:
        raw = f"{path} {label}".encode()
        return len(raw.splitlines()) == 1 and parse_line(raw.decode(), multi_label=False) == (path, (label,))
    except ValueError:  # what cannot be encoded is one, too
        return False
