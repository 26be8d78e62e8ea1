"""How every benchmark here trains its arms: many runs at a time, each a process of one thread, said as they end."""

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import processor

from setwise.launch import end_with_parent
from setwise.metrics import Interval, contributions
from setwise.report.wording import interval, points
from setwise.run_folder import RunFolder, commit

__all__ = ["ask", "carry_out", "contributions_of", "correct_of", "in_points", "machine", "mean_of", "seconds_of"]


def ask(
    about: str | None, argv: list[str] | None, *, data: Path, epochs: int, arms: Iterable[str] = ()
) -> argparse.Namespace:
    """The arguments of a benchmark that trains arms over seeds: out, epochs, seeds, workers, and arms.

    Args:
        about: its docstring.
        argv: None: those of the process.
        data: folder of the data set, which must be there.
        epochs: by default.
        arms: that may be chosen from, all by default; none: there is no choice.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs; new, or of a broken benchmark")
    parser.add_argument(
        "--epochs", type=int, default=epochs, help=f"passes over the training images (default {epochs})"
    )
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... (default 3)")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, of one thread each (default 2)")
    if arms:
        parser.add_argument("--arms", nargs="+", choices=[*arms], default=[*arms], help="only these (default all)")
    arguments = parser.parse_args(argv)
    if min(arguments.epochs, arguments.workers) < 1 or arguments.seeds < 2:
        parser.error("--epochs and --workers must be 1 or more, --seeds 2 or more")
    if not data.is_dir():
        raise SystemExit(f"There is no {data}; SETWISE_DATA names the folder that holds {data.name}.")
    return arguments


def mean_of(arm: str, arguments: argparse.Namespace, value: Callable[[dict[str, Any]], float]) -> float:
    """Mean of what ``value`` reads in the lines of results of an arm's runs, each in ``out/arm/seed-N``."""
    files = [RunFolder(arguments.out / arm / f"seed-{seed}").results for seed in range(arguments.seeds)]
    return sum(value(json.loads(file.read_text().splitlines()[-1])) for file in files) / len(files)


def seconds_of(arm: str, arguments: argparse.Namespace) -> float:
    """Mean seconds of an arm's runs."""
    return mean_of(arm, arguments, lambda line: line["seconds"])


def in_points(found: Interval) -> str:
    """A difference with its interval, in percentage points."""
    return f"{points(found.estimate)} {interval(found)}"


def contributions_of(arm: str, arguments: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """What each test image adds to an arm's adjusted balanced accuracy ``[seeds, images]``, and the images' classes."""
    found = [correct_of(RunFolder(arguments.out / arm / f"seed-{seed}")) for seed in range(arguments.seeds)]
    target = found[0][1]
    return contributions(np.stack([correct for correct, _ in found]), target), target


def correct_of(folder: RunFolder) -> tuple[np.ndarray, np.ndarray]:
    """Which test images a run predicts rightly, adjusted by the strength it chose on validation, and their classes."""
    with np.load(folder.predictions) as saved:
        chosen = int(np.abs(saved["taus"] - saved["tau"]).argmin())
        return saved["predicted"][chosen] == saved["target"], saved["target"]


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
    end_with_parent()


def machine() -> str:
    """The line below a table that says where its numbers come from."""
    versions = f"python {platform.python_version()}, torch {torch.__version__}"
    return f"{processor()}, one thread a run; {versions}; commit {commit()}, {date.today()}"
