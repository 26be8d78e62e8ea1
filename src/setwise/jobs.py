"""Runs side by side in processes of their own, each of which continues where it was broken off."""

import multiprocessing
import os
import queue
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from setwise.data.images import num_cores
from setwise.errors import RunError, SetwiseError, Stopped
from setwise.launch import end_with_parent, stopped_by_sigterm
from setwise.recipes import Recipe
from setwise.recipes.stages import stages
from setwise.run import fit
from setwise.run_folder import RunFolder
from setwise.work import say_nothing

__all__ = ["Job", "Progress", "run_jobs"]

Progress = Callable[[str, float], None]
"""Told which run moved, and how many of the epochs of all runs are done, 0..1."""


@dataclass(frozen=True)
class Job:
    """One run."""

    name: str
    """What it is called in messages."""
    recipe: Recipe
    folder: Path
    """Its run folder."""


def run_jobs(jobs: Sequence[Job], workers: int | None, progress: Progress) -> None:
    """Run all jobs that are not complete; those already begun continue from their checkpoints.

    Args:
        jobs: the runs, in the order in which they begin.
        workers: processes that train at a time, taking turns among the GPUs; None: one a core on a CPU, one a GPU.
        progress: told about every epoch.

    Raises:
        RunError: if runs failed; the others are complete.
        Stopped: after SIGTERM.
    """
    todo = [job for job in jobs if not RunFolder(job.folder).complete]
    if not todo:
        return
    asked = workers or _default_workers(todo[0].recipe)
    # Of all workers, also where few runs are left: sums round otherwise with more threads, and a resumed comparison
    # is to end as an unbroken one.
    threads = max(1, num_cores() // asked)
    workers = min(len(todo), asked)
    share = 1 / len(jobs)
    finished = len(jobs) - len(todo)
    if asked == 1:
        failed: dict[str, BaseException] = {}
        for number, job in enumerate(todo):
            base = (finished + number) * share
            try:
                _train(job, _EpochReport(job, partial(_move, progress, base, share)))
            except Stopped:
                raise
            except Exception as error:  # as a worker's is; the others go on
                if not isinstance(error, SetwiseError):
                    traceback.print_exception(error)
                failed[job.name] = error.with_traceback(None)  # which holds the network and its memory
            progress(job.name, base + share)
        _raise_failures(failed, len(todo))
        return
    with stopped_by_sigterm():
        _in_parallel(todo, workers, threads, _Share(finished, share), progress)


def _move(progress: Progress, base: float, share: float, name: str, part: float) -> None:
    progress(name, base + part * share)


@dataclass(frozen=True)
class _Share:
    """Jobs that were complete before, and the part that one job is of all."""

    finished: int
    of_one: float


def _in_parallel(todo: Sequence[Job], workers: int, threads: int, share: _Share, progress: Progress) -> None:
    context = multiprocessing.get_context("spawn")  # a forked child would inherit torch's threads in any state
    messages = context.Queue()
    parts = {job.name: 0.0 for job in todo}
    others = set(multiprocessing.active_children())  # of a program that calls us
    failed: dict[str, BaseException] = {}
    gpus = context.Queue()
    for gpu in _gpus(todo[0].recipe, workers):
        gpus.put(gpu)
    with ProcessPoolExecutor(workers, context, _start_worker, (messages, threads, gpus)) as pool:
        try:
            futures: dict[Future[None], str] = {pool.submit(_train_in_worker, job): job.name for job in todo}
            pending = set(futures)
            while pending:
                done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                for name, part in [*_drain(messages), *((futures[future], 1.0) for future in done)]:
                    parts[name] = max(parts[name], part)
                    progress(name, (share.finished + sum(parts.values())) * share.of_one)
                failed |= {futures[future]: error for future in done if (error := future.exception()) is not None}
                if any(isinstance(error, BrokenProcessPool) for error in failed.values()):
                    _end(pool, others)  # else the other workers would go on unseen
        except (KeyboardInterrupt, Stopped):
            _end(pool, others)
            raise
    _raise_failures(failed, len(todo))


def _end(pool: ProcessPoolExecutor, others: Set[BaseProcess]) -> None:
    pool.shutdown(wait=False, cancel_futures=True)
    for child in set(multiprocessing.active_children()) - others:
        child.kill()  # Lightning answers a mere SIGTERM when its epoch is over; checkpoints are written whole


def _raise_failures(failed: Mapping[str, BaseException], number: int) -> None:
    if not failed:
        return
    name, error = next(iter(failed.items()))
    if isinstance(error, BrokenProcessPool):
        reason = "a worker process was ended from outside; if memory ran out, lower --workers or --data.batch-size"
    else:
        reason = f"{name}: {error}"
    raise RunError(
        f"{len(failed)} of {number} runs did not finish ({reason}). The others are kept; --resume continues."
    ) from error


def _drain(messages: "multiprocessing.Queue[tuple[str, float]]") -> Iterator[tuple[str, float]]:
    while True:
        try:
            yield messages.get_nowait()
        except queue.Empty:
            return


def _default_workers(recipe: Recipe) -> int:
    on_cpu = recipe.trainer.accelerator == "cpu" or (
        recipe.trainer.accelerator == "auto" and not torch.accelerator.is_available()
    )
    return num_cores() if on_cpu else max(1, torch.accelerator.device_count())


def _gpus(recipe: Recipe, workers: int) -> list[str | None]:
    """What each worker may see, as ``CUDA_VISIBLE_DEVICES`` names it: they take turns; None: whatever there is."""
    if recipe.trainer.accelerator == "cpu" or torch.cuda.device_count() < 2:
        return [None] * workers
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[: torch.cuda.device_count()]
    names = named if named[0] else [str(k) for k in range(torch.cuda.device_count())]
    return [names[k % len(names)] for k in range(workers)]


class _EpochReport(Callback):
    """Says after every epoch which part of a run is done; its stages count alike."""

    def __init__(self, job: Job, tell: Callable[[str, float], None]) -> None:
        self.name, self.tell = job.name, tell
        self.stages, self.begun, folder = len(stages(job.recipe)), 0, RunFolder(job.folder)
        for _ in range(self.stages - 1):  # those that a broken comparison has finished already
            folder = RunFolder(folder.before)
            self.begun += folder.complete

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.begun += 1

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        part = (trainer.current_epoch + 1) / (trainer.max_epochs + 1)
        self.tell(self.name, (self.begun - 1 + part) / self.stages)


def _train(job: Job, report: _EpochReport) -> None:
    # What a run has to say was said once, at the rehearsal.
    fit(job.recipe, job.folder, resume=True, progress=False, say=say_nothing, callbacks=(report,))


_messages: Any = None


def _start_worker(messages: Any, threads: int, gpus: Any) -> None:
    global _messages
    _messages = messages
    end_with_parent()
    if (gpu := gpus.get()) is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # CUDA reads it at its first use, which is not yet
    torch.set_num_threads(threads)


def _train_in_worker(job: Job) -> None:
    _train(job, _EpochReport(job, lambda name, part: _messages.put((name, part))))
