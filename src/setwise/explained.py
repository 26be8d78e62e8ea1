"""What torch, Lightning and the system say in their own words, as a sentence with the way out."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch.utilities.exceptions import SIGTERMException

from setwise.errors import RunError, SetwiseError, Stopped, out_of_memory
from setwise.recipes import Recipe
from setwise.run_folder import unwritable

__all__ = ["dead_reader", "explained"]

DEAD_WORKER = "DataLoader worker"
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
UNWRITABLE |= {errno.ENOTDIR, errno.EEXIST, errno.EISDIR}


@contextmanager
def explained(recipe: Recipe, folder: Path) -> Iterator[None]:
    """Say what to change where something else says what it could not do.

    Args:
        recipe: of the run.
        folder: of the run.

    Raises:
        RunError: for memory that does not suffice, a folder that cannot be written, a dead reader of images.
        Stopped: for a SIGTERM that came before the first step.
        KeyboardInterrupt: as it came.
    """
    try:
        yield
    except SIGTERMException as stop:
        raise Stopped("Stopped by SIGTERM before the first step; continue with --resume.") from stop
    except SystemExit as stop:  # how Lightning ends on Ctrl-C, without a word for the caller
        raise KeyboardInterrupt from stop
    except SetwiseError:
        raise
    except (MemoryError, OSError) as error:
        if isinstance(error, MemoryError) or error.errno == errno.ENOMEM:
            raise RunError(_sentence("", recipe, memory=True) or "Memory does not suffice.") from error
        if error.errno not in UNWRITABLE:
            raise
        named = isinstance(error.filename, str | bytes)
        if named and not Path(os.fsdecode(error.filename)).resolve().is_relative_to(folder.resolve()):
            raise RunError(f"{os.fsdecode(error.filename)} cannot be read or written: {error.strerror}.") from error
        raise unwritable(folder, error) from error
    except RuntimeError as error:
        if said := _sentence(str(error), recipe, memory=out_of_memory(error)):
            raise RunError(said) from error
        raise


def dead_reader(error: str) -> str | None:
    """What happened, where torch says that a process that reads images is gone; None for another error."""
    if not error.startswith(DEAD_WORKER):
        return None
    said = error.splitlines()[0].rstrip(".")
    return f"A process that reads images died ({said}): most often memory, or the shared memory in /dev/shm, ran out."


def _sentence(error: str, recipe: Recipe, *, memory: bool) -> str | None:
    data = recipe.data
    if dead := dead_reader(error):
        return (
            f"{dead} Take fewer (--data.num-workers 1) or none (--data.num-workers 0); a training continues with "
            "--resume. For a comparison change data.num_workers in its recipe.yaml."
        )
    if recipe.task == "few-shot" and memory:
        return (
            "Memory does not suffice for an episode. Make episodes smaller (--episodes.n-way 5 --episodes.n-shot 5 "
            "--episodes.n-query 10), compute in half the memory with --trainer.precision bf16-mixed, train the head "
            f"alone (--episodes.freeze-trunk), or lower --data.image-size ({data.image_size or 'as the images are'})."
        )
    if memory:
        return (
            f"Memory does not suffice for a batch of {data.batch_size}. Set --data.micro-batch "
            f"{max(1, (data.micro_batch or data.batch_size) // 4)} (the relation still sees the whole "
            "batch; 4/3 of the time), compute in half the memory with --trainer.precision bf16-mixed, or lower "
            f"--data.batch-size or --data.image-size ({data.image_size or 'as the images are'})."
        )
    return None
