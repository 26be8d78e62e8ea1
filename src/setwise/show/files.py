"""Figures into a new folder; nothing that is there already is touched."""

import io
from pathlib import Path

from matplotlib.figure import Figure

from setwise.errors import RunError
from setwise.run_folder import unwritable

__all__ = ["DPI", "new_folder", "png"]

DPI = 100


def new_folder(folder: Path) -> Path:
    """``folder``, made if it is not there.

    Raises:
        RunError: if it holds something, or cannot be made.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} is not empty, and nothing is overwritten. Name another folder with --out.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    return folder


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file, the same every time."""
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return held.getvalue()
