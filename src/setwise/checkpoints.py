"""The checkpoints of a run: written whole or not at all, the one before kept, read without unpickling objects."""

import contextlib
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO

from setwise.errors import RunError, out_of_memory
from setwise.run_folder import RunFolder, unwritable

__all__ = ["Checkpoints", "OutOfReach", "read_checkpoint"]

PARTS: dict[str, type] = {"state_dict": dict, "optimizer_states": list, "lr_schedulers": list, "loops": dict}
PARTS |= {"callbacks": dict, "epoch": int, "global_step": int}
"""What Lightning writes into every checkpoint of a training run."""


class Checkpoints(CheckpointIO):
    """Writes a checkpoint under another name and moves it into place, and keeps the last one but one.

    Whatever ends the process, ``last.ckpt`` or ``last-1.ckpt`` is whole. A damaged last checkpoint, from a file system
    that lost it, is passed over for the one before. Given to Lightning's Trainer as a plugin.

    Args:
        folder: of the run.
        say: told when the last checkpoint is passed over.
    """

    def __init__(self, folder: RunFolder, say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say
        self._last_is_good = True

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``checkpoint``.

        Raises:
            RunError: if the disk is full or the folder cannot be written; the checkpoints that were there still are.
        """
        path = Path(path)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        part = path.with_name(f"{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(part, buffer)
            if path.name == self.folder.last.name and path.is_file() and self._last_is_good:
                os.replace(path, self.folder.last_but_one)
            os.replace(part, path)
        except OSError as error:
            with contextlib.suppress(OSError):  # it takes the room of what could be written instead
                part.unlink(missing_ok=True)
            raise unwritable(self.folder.path, error) from error
        self._last_is_good = True

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The last checkpoint that is whole, on the CPU.

        Raises:
            RunError: if there is none.
        """
        problems = []
        for candidate in (Path(path), self.folder.last_but_one):
            try:
                checkpoint = read_checkpoint(candidate)
            except OutOfReach:
                raise
            except RunError as error:
                problems.append(str(error))
                self._last_is_good = False  # and must not take the place of the good one before
                continue
            if problems:
                self.say(f"{problems[0]} The one before is taken, of the end of epoch {checkpoint['epoch']}.")
            return checkpoint
        raise RunError(
            f"No checkpoint can be read. {' '.join(problems)} Delete {self.folder.checkpoints}, and --resume starts "
            "this run from the beginning; or train into a new folder."
        )

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint, if it is there."""
        Path(path).unlink(missing_ok=True)


class OutOfReach(RunError):
    """A checkpoint of which nothing is known."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of Lightning's, on the CPU; no object in it can run code.

    Raises:
        RunError: if it is missing, damaged, or no checkpoint of a training run.
    """
    if not path.is_file():
        raise RunError(f"{path} is missing.")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch compares no checksums: a flipped bit would be a wrong weight
        if damaged is not None:
            raise RunError(f"{path} is damaged: {damaged} has another checksum than was written.")
        checkpoint = torch.load(path, "cpu", weights_only=True)
    except RunError:
        raise
    except Exception as error:  # a damaged file ends in any of a dozen kinds of errors
        if isinstance(error, PermissionError) or out_of_memory(error):
            raise _out_of_reach(path, error) from error
        raise RunError(f"{path} cannot be read as a checkpoint: it is damaged ({type(error).__name__}).") from error
    if not isinstance(checkpoint, dict) or not all(isinstance(checkpoint.get(n), kind) for n, kind in PARTS.items()):
        raise RunError(f"{path} is no checkpoint of a training run: it must hold {', '.join(PARTS)}.")
    return checkpoint


def _out_of_reach(path: Path, error: Exception) -> OutOfReach:
    reason = error.strerror if isinstance(error, PermissionError) else "memory does not suffice"
    return OutOfReach(f"{path} cannot be read: {reason}. It may be whole: leave it where it is.")


def _write(path: Path, buffer: io.BytesIO) -> None:
    with path.open("wb") as file:
        file.write(buffer.getbuffer())
        file.flush()
        os.fsync(file.fileno())  # or a power cut could leave the new name on an empty file
