"""Which processes train one model together, as the recipe says or as their launcher does; and when they end.

torchrun, SLURM's srun and Lightning's own ddp tell every process its rank in the environment. Only the first process
makes folders, writes and prints.
"""

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import parent_process
from typing import Any

from setwise.errors import InvalidInput, Stopped

__all__ = ["end_with_parent", "is_first", "started", "stopped_by_sigterm"]

RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
"""Where a launcher puts the rank of a process; the first that is set counts."""


def is_first(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the one that writes: rank 0, or the only one."""
    if "RANK" not in environment and not _under_slurm(environment):  # Lightning's own processes
        return all(environment.get(name, "0") == "0" for name in ("LOCAL_RANK", "NODE_RANK"))
    return next(environment[name] for name in RANKS if name in environment) == "0"


def started(devices: int | None, num_nodes: int | None, environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Processes on each machine and machines.

    Args:
        devices: what the recipe asks for; None: what the launcher started, else 1.
        num_nodes: the same for machines.
        environment: of this process.

    Raises:
        InvalidInput: if recipe and launcher contradict each other, or the launcher's numbers do not fit.

    >>> started(None, None, {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "RANK": "0"})
    (4, 2)
    """
    found = _of_launcher(environment)
    if found is None:
        return devices or 1, num_nodes or 1
    for name, wanted, given in zip(("devices", "num_nodes"), (devices, num_nodes), found, strict=True):
        if wanted is not None and wanted != given:
            raise InvalidInput(
                f"`trainer.{name}` is {wanted}, but the launcher started {given}. Leave it out: the launcher knows."
            )
    return found


def end_with_parent() -> None:
    """End this process when the one that spawned it is no more, however that ended; nothing happens in the first one.

    A worker whose parent was killed would finish its run, into a folder that a resumed comparison writes to as well.
    """
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)  # checkpoints are written whole

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Within, SIGTERM ends this process's work as an exception; afterwards it is heard as before.

    For a first process whose workers do not hear the signal; each of their runs goes on from its last checkpoint.

    Raises:
        Stopped: when it comes.
    """

    def stop(number: int, frame: Any) -> None:
        raise Stopped("Stopped by SIGTERM; continue with --resume.")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _of_launcher(environment: Mapping[str, str]) -> tuple[int, int] | None:
    if "WORLD_SIZE" in environment and "LOCAL_WORLD_SIZE" in environment:  # torchrun
        return _shared_out(int(environment["WORLD_SIZE"]), local=int(environment["LOCAL_WORLD_SIZE"]))
    if _under_slurm(environment):
        nodes = int(environment.get("SLURM_NNODES", environment.get("SLURM_JOB_NUM_NODES", "1")))
        tasks = int(environment["SLURM_NTASKS"])
        if tasks % nodes:
            raise InvalidInput(f"SLURM started {tasks} tasks on {nodes} nodes: ask for as many on each node.")
        return tasks // nodes, nodes
    return None


def _under_slurm(environment: Mapping[str, str]) -> bool:
    """Started by srun or sbatch; a shell that SLURM gave to a person is none of its tasks."""
    return "SLURM_NTASKS" in environment and environment.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def _shared_out(world: int, *, local: int) -> tuple[int, int]:
    if world % local:
        raise InvalidInput(f"The launcher started {world} processes, {local} here: start as many on each machine.")
    return local, world // local
