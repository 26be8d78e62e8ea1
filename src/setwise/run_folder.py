"""What a run leaves on disk, and where: one place that knows the names of the files.

::

    runs/digits-lt/
        recipe.yaml           the resolved recipe; `setwise train` takes it again
        before/               the run of the stage before, where the recipe has one
        environment.json      versions, commit, machine
        logs/                 TensorBoard and CSV curves
        checkpoints/          last.ckpt, or last-1.ckpt before it: what a killed run continues from (and best.ckpt)
        nan_batch.json        where a loss was no finite number: epoch, step and images
        weights.safetensors   the selected weights
        model.json            what the network must be told besides its weights: classes, image size, normalisation
        predictions.npz       predicted classes of the test part over the strengths of logit adjustment
        per_class.csv         accuracy of every class
        results.jsonl         one line: the result; its presence says that the run is complete
"""

import contextlib
import csv
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from setwise.errors import MissingFile, RunError
from setwise.machine import at_home
from setwise.recipes.schema import Recipe

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "PLAN",
    "RunFolder",
    "claimed",
    "commit",
    "fresh_folder",
    "read_classes",
    "read_lines",
    "unwritable",
    "versions",
    "write_line",
    "write_whole",
    "writing",
]


PLAN = "plan.json"
"""What a folder of a comparison has, and that of a run has not."""


class RunFolder:
    """The files of one run, by what they are."""

    def __init__(self, path: str | Path) -> None:
        self.path = at_home(path)  # as Lightning does with its part of the files
        self.recipe = self.path / "recipe.yaml"
        self.before = self.path / "before"
        self.environment = self.path / "environment.json"
        self.logs = self.path / "logs"
        self.checkpoints = self.path / "checkpoints"
        self.last = self.checkpoints / "last.ckpt"
        self.last_but_one = self.checkpoints / "last-1.ckpt"
        self.best = self.checkpoints / "best.ckpt"
        self.nan_batch = self.path / "nan_batch.json"
        self.model = self.path / "model.json"
        self.weights = self.path / "weights.safetensors"
        self.predictions = self.path / "predictions.npz"
        self.per_class = self.path / "per_class.csv"
        self.results = self.path / "results.jsonl"

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint to continue from; a kill between two moves leaves only the one before."""
        return self.last.is_file() or self.last_but_one.is_file()

    @property
    def complete(self) -> bool:
        """Whether the run ended and was evaluated."""
        return self.results.is_file() and self.results.stat().st_size > 0

    def require(self, file: Path, what: str) -> Path:
        """``file``, or an error that says what is missing from this folder."""
        if not file.is_file():
            known = "is no run folder" if not self.recipe.is_file() else f"has no {what} ({file.name})"
            raise MissingFile(f"{self.path} {known}. `setwise train NAME` makes one; an unfinished run needs --resume.")
        return file


def fresh_folder(root: Path, name: str) -> Path:
    """A folder that does not exist yet: ``root/name``, else ``root/name-2``, ``root/name-3`` ..., made here."""
    number = 1
    while True:
        path = root / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError as error:
            if not os.path.lexists(path):
                raise RunError(
                    f"The run folder {path} cannot be made: {root} is no folder, or a link to none. Choose another "
                    "with --out."
                ) from error
            number += 1
        except OSError as error:
            raise RunError(
                f"The run folder {path} cannot be made: {error.strerror}. Choose another with --out."
            ) from error
        else:
            return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of a results file; a torn last line is an error that names it."""
    lines = []
    for number, text in enumerate(path.read_bytes().splitlines(), 1):
        try:
            lines.append(json.loads(text))
            if not isinstance(lines[-1], dict):
                raise ValueError("no block of names and values")
        except (ValueError, RecursionError) as error:  # bytes that are no text are a ValueError, too
            raise RunError(
                f"{path}, line {number} is not JSON ({error}). Delete the file to evaluate the run again."
            ) from error
    return lines


def read_classes(path: str | Path) -> list[dict[str, Any]]:
    """The table of classes of a run, one row a class; empty for multi-label runs."""
    table = RunFolder(path).per_class
    if not table.is_file():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for row in rows:
        row["train_images"] = int(row["train_images"])
        row["accuracy"], row["adjusted_accuracy"] = float(row["accuracy"]), float(row["adjusted_accuracy"])
    return rows


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Another path to write to, which takes the place of ``path`` at the end: it is the old file or the whole new one.

    Raises:
        RunError: if the folder takes no more, a full disk among the reasons; nothing is left of the new file then.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise unwritable(path.parent, error) from error


def write_whole(path: Path, content: str | bytes, *, lasting: bool = False) -> None:
    """Write a file so that it is either the old one or the whole new one, whatever happens in between.

    Args:
        path: of the file.
        content: all of it.
        lasting: not even a power cut leaves the name on an empty file; takes milliseconds.

    Raises:
        RunError: if the folder takes no more.
    """
    with writing(path) as part, part.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        if lasting:
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def claimed(folder: Path, *, patience: float = 10.0) -> Iterator[None]:
    """Keep all other processes of this machine out of a run's folder until the end; a process that dies lets it go.

    Args:
        folder: made where it is missing.
        patience: seconds to wait for another process, whose readers of images outlive it by a few.

    Raises:
        RunError: if another process has it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        until = time.monotonic() + patience
        while not _locked(handle):
            if time.monotonic() > until:
                raise RunError(
                    f"Another process is training in {folder}. Let it end, or end it; then --resume continues. Or take "
                    "another --out."
                )
            time.sleep(0.2)
        yield
    finally:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_UN)  # for readers of images, too, which have inherited it
        os.close(handle)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def write_line(recipe: Recipe, folder: RunFolder, metrics: dict[str, float], *, seconds: float) -> dict[str, Any]:
    """Write the line of ``results.jsonl``, which says that the run is complete, and return it."""
    line = {
        "recipe": recipe.name,
        "variant": recipe.variant,
        "seed": recipe.seed,
        "metrics": metrics,
        "primary": recipe.primary,
        "seconds": round(seconds, 3),
        "versions": versions(),
        "commit": commit(),
    }
    write_whole(folder.results, json.dumps(line) + "\n")
    return line


def unwritable(path: Path, error: OSError) -> RunError:
    """The sentence about a folder that takes no more."""
    return RunError(
        f"The run folder {path} cannot be written: {error.strerror or error}. What was written is whole; make room or "
        "give the rights, and --resume continues (`setwise report` writes a report again)."
    )


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    found = {"python": platform.python_version()}
    for package in ("setwise", "torch", "torchvision", "timm", "lightning", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def commit() -> str | None:
    """Commit of setwise itself when it runs from its checkout ("+" if changed since), None from a wheel."""
    here = Path(__file__).resolve().parent
    if here.parent.name != "src" or not (here.parent.parent / ".git").exists():
        return None
    try:
        head, changed = (
            subprocess.run(command, cwd=here, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
            for command in (["git", "rev-parse", "--short=12", "HEAD"], ["git", "status", "--porcelain", "-uno", "."])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head + "+" * bool(changed)
