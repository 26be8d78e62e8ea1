"""How every benchmark here takes time and memory: turns, fresh processes, and the name and rate of the machine."""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import median, quantiles

import torch
from torch import Tensor

from setwise.machine import RETURN, peak_resident, processor, resident

__all__ = [
    "KEEP",
    "RETURN",
    "Step",
    "clock_of",
    "fresh",
    "kept_by",
    "matmul_rate",
    "middle",
    "milliseconds",
    "peak_resident",
    "processor",
    "refuse_old",
    "resident",
    "take_turns",
    "wall",
]

Step = Callable[[], object]

KEEP = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**40)}
"""Environment in which glibc's allocator keeps freed blocks; by default it does something between this and RETURN."""


def refuse_old(parser: argparse.ArgumentParser, out: Path | None) -> None:
    """End with the parser's own message where the file to write to is there already."""
    if out is not None and out.exists():
        parser.error(f"--out {out} exists and is not overwritten")


def wall(step: Step) -> float:
    """Milliseconds on the wall's clock."""
    before = time.perf_counter()
    step()
    return 1000 * (time.perf_counter() - before)


def milliseconds(step: Step) -> float:
    """The process's own CPU time where all work is in one thread, so that other work on the machine counts less."""
    if torch.get_num_threads() > 1:
        return wall(step)
    before = time.process_time()
    step()
    return 1000 * (time.process_time() - before)


def on_gpu(step: Step) -> float:
    """Milliseconds on the card's own clock."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def clock_of(device: torch.device) -> Callable[[Step], float]:
    """The card's own clock, or that of the process."""
    return on_gpu if device.type == "cuda" else milliseconds


def take_turns(
    steps: Mapping[str, Step], turns: int, *, warmup: int = 1, clock: Callable[[Step], float] = milliseconds
) -> dict[str, list[float]]:
    """What ``clock`` says of every step after ``warmup`` turns; who begins rotates, so all meet the same machine."""
    names = list(steps)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(warmup + turns):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            spent = clock(steps[name])
            if turn >= warmup:
                taken[name].append(spent)
    return taken


def matmul_rate(device: torch.device) -> float:
    """Operations a second of a large product in bfloat16."""
    side = 8192
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    taken = take_turns({"product": lambda: torch.mm(a, b, out=out)}, 10, clock=clock_of(device))["product"]
    return 2 * side**3 / (median(taken) / 1000)


def kept_by(forward: Callable[[], Tensor], given: Iterable[Tensor]) -> float:
    """MiB that autograd keeps of a forward pass for the backward pass, beside the storage of ``given``."""
    known = {tensor.untyped_storage().data_ptr() for tensor in given}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # an output that its own step keeps would hold the graph for ever

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = forward()  # held, or its storage could be given to another tensor
    del out
    return sum(kept.values()) / 2**20


def middle(values: list[float], digits: int) -> str:
    """Median and quartiles."""
    low, _, high = quantiles(values, n=4, method="inclusive")
    return f"{median(values):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def fresh(script: str, *arguments: str) -> float:
    """The figure that ``script`` prints in a process of its own, whose allocator gives freed blocks back."""
    command = [sys.executable, script, *arguments]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | RETURN).stdout)
