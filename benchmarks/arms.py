"""How every benchmark here trains its arms: many runs at a time, each a process of one thread, said as they end."""

import platform
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
from measuring import processor

__all__ = ["carry_out", "machine"]


def carry_out(train: Callable[..., str], stages: Sequence[Sequence[tuple[Any, ...]]], *, workers: int) -> None:
    """Call ``train(*job)`` for every job, one stage after the other, and print what it returns.

    Args:
        train: makes one run, or finds it made; at the top of its module, so that a process of its own can import it.
        stages: of jobs; those of a stage may run side by side.
        workers: jobs at a time.
    """
    count, done = sum(map(len, stages)), 0
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        for stage in stages:
            for future in [pool.submit(train, *job) for job in stage]:
                done += 1
                print(f"[{done}/{count}] {future.result()}", file=sys.stderr, flush=True)


def _one_thread() -> None:
    torch.set_num_threads(1)


def machine() -> str:
    """The line below a table that says where its numbers come from."""
    return f"{processor()}, one thread a run; python {platform.python_version()}, torch {torch.__version__}"
