"""What models cost: parameters, multiply-adds, peak memory, images a second, each model in a process of its own."""

import csv
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from setwise.errors import InvalidInput, RunError, SetwiseError
from setwise.machine import RETURN, peak_resident
from setwise.models import create_backbone

__all__ = ["Cost", "Setting", "count", "profile", "write_costs"]

UNKNOWN_SIZE = 32
"""Side in pixels for models that do not say what they were made for: ours, which take any."""
CHANNELS = 3
BATCH_SIZES = {"cuda": 256, "cpu": 8}
"""Images at a time where nobody says; 256 is what the table of PatchConvNet's paper was measured with."""
WARM_UP = 1
MIN_STEPS = 3
MEMORY_STEPS = 2
"""The second meets the gradients' memory as the first left it."""
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "bad_alloc", "memoryerror")
KILLED = (-9, 137)
"""Status of a process that the system ended, which it does when memory runs out."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured, and how; the same for all models of a table.

    Args:
        batch_size: images at a time.
        image_size: side in pixels; None: what each model was made for.
        training: measure a training step, which is forward and backward pass without an optimizer; else the forward
            pass alone.
        device: "cpu" or "cuda".
        seconds: that time is taken for, and at least three steps.
        options: arguments of the models, as timm names them.
    """

    batch_size: int
    image_size: int | None = None
    training: bool = False
    device: str = "cpu"
    seconds: float = 3.0
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def channels(self) -> int:
        """Of the images."""
        return int(self.options.get("in_chans", CHANNELS))

    @classmethod
    def make(cls, *, batch_size: int | None = None, device: str | None = None, **fields: Any) -> "Setting":
        """Choose for the machine what is None: a GPU where there is one, and 256 images on it, 8 on a CPU.

        Raises:
            InvalidInput: for a value out of range, or a device that is not there.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if device not in BATCH_SIZES:
            raise InvalidInput(f"`device` must be 'cuda' or 'cpu', but it is {device!r}.")
        if device == "cuda" and not torch.cuda.is_available():
            raise InvalidInput("`device` is 'cuda', but PyTorch finds no such GPU here; use 'cpu'.")
        setting = cls(batch_size=BATCH_SIZES[device] if batch_size is None else batch_size, device=device, **fields)
        for name, value in (("batch-size", setting.batch_size), ("image-size", setting.image_size)):
            if value is not None and value < 1:
                raise InvalidInput(f"`{name}` must be at least 1, but it is {value}.")
        return setting


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one model costs."""

    model: str
    image_size: int
    """Side in pixels."""
    parameters: int
    multiply_adds: int
    """Of one image's forward pass: products of convolutions, matrices and attention."""
    peak_memory: float
    """MiB at the peak: weights, images, activations, and gradients in training. 0 where the system does not tell."""
    images_per_second: float
    batch_size: int
    training: bool
    device: str


def count(name: str, setting: Setting) -> tuple[int, int, int]:
    """Side of the image, parameters, and multiply-adds of one image's forward pass, mostly without computing them.

    Raises:
        UnknownName: if there is no such model.
        InvalidInput: if it does not take the options, or images of that size.

    >>> count("patchconvnet_s60", Setting(batch_size=1, options={"depth": 1}))
    (224, 3113176, 524792064)
    """
    for device in ("meta", "cpu"):  # some models compute with values as they are built or run
        try:
            return _count(name, setting, torch.device(device))
        except SetwiseError:
            raise
        except (AssertionError, RuntimeError, TypeError) as error:  # what torch and timm raise
            reason = error
    size = f"{setting.image_size} pixels" if setting.image_size else "its own size"
    raise InvalidInput(f"{name} does not run on images of {size} ({reason}). Try --image-size.")


def _count(name: str, setting: Setting, device: torch.device) -> tuple[int, int, int]:
    with device, torch.random.fork_rng(devices=[]):
        model, side = _build(name, setting)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.eval()(torch.zeros(1, setting.channels, side, side))
    operations = counter.get_total_flops()
    return side, sum(p.numel() for p in model.parameters()), operations // 2  # a multiply-add is two operations


def _build(name: str, setting: Setting) -> tuple[nn.Module, int]:
    model = create_backbone(name, image_size=setting.image_size, num_classes=None, options=setting.options)
    made_for = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (UNKNOWN_SIZE,))
    return model, setting.image_size or made_for[-1]


def profile(
    names: Sequence[str], setting: Setting, progress: Callable[[str, float], None] = lambda name, done: None
) -> list[Cost]:
    """Measure models one after another; what is wrong with any of them is said before the first is measured.

    Args:
        names: any of timm's models, ours among them.
        setting: what is measured.
        progress: is told the model at work, and how much of all is done.

    Raises:
        UnknownName: if there is no such model.
        InvalidInput: if one does not take the options, or images of that size.
        RunError: if one cannot be measured, above all for want of memory.
    """
    counted = [count(name, setting) for name in names]
    costs = []
    for done, (name, (side, parameters, multiply_adds)) in enumerate(zip(names, counted, strict=True)):
        progress(name, done / len(names))
        if setting.device == "cuda":
            peak, speed = _fresh("both", name, setting, {})
        else:  # an allocator that gives everything back is slower
            peak, _ = _fresh("memory", name, setting, RETURN)
            progress(name, (done + 0.5) / len(names))
            _, speed = _fresh("time", name, setting, {})
        costs.append(
            Cost(
                model=name,
                image_size=side,
                parameters=parameters,
                multiply_adds=multiply_adds,
                peak_memory=peak,
                images_per_second=speed,
                batch_size=setting.batch_size,
                training=setting.training,
                device=setting.device,
            )
        )
    progress("done", 1.0)
    return costs


def _fresh(what: str, name: str, setting: Setting, environment: dict[str, str]) -> tuple[float, float]:
    """Peak memory and images a second, as a process of its own measures them; 0 for what it was not asked."""
    command = [sys.executable, "-W", "ignore", "-m", "setwise.profiling", what, name]
    asked = json.dumps(dataclasses.asdict(setting))
    done = subprocess.run([*command, asked], capture_output=True, text=True, check=False, env=os.environ | environment)
    if done.returncode == 0:
        peak, speed = json.loads(done.stdout.splitlines()[-1])
        return peak, speed
    said = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
    if done.returncode in KILLED or any(text in done.stderr.lower() for text in OUT_OF_MEMORY):
        raise RunError(
            f"{name} needs more memory than there is for {setting.batch_size} images on {setting.device}. Try a "
            "smaller --batch-size."
        )
    raise RunError(f"{name} cannot be measured with {setting.batch_size} images on {setting.device}: {said}")


def _measure(what: str, name: str, setting: Setting) -> tuple[float, float]:
    device = torch.device(setting.device)
    _warm_up(device)
    before = peak_resident()
    model, side = _build(name, setting)
    model = model.to(device).train(setting.training)
    images = torch.randn(setting.batch_size, setting.channels, side, side, device=device)

    def step() -> None:
        with torch.set_grad_enabled(setting.training):
            output = model(images)
        if setting.training:
            model.zero_grad()
            outputs = output if isinstance(output, list | tuple) else [output]  # several heads, in training
            sum(o.float().square().mean() for o in outputs).backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    peak = speed = 0.0
    if what in ("memory", "both"):
        for _ in range(MEMORY_STEPS):
            step()
        peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else peak_resident() - before
    if what in ("time", "both"):
        speed = setting.batch_size / median(_seconds(step, setting.seconds))
    return peak, speed


def _warm_up(device: torch.device) -> None:
    """Load what is loaded at the first step, which is no model's own."""
    layers = nn.Sequential(nn.Conv2d(CHANNELS, 8, 3), nn.Flatten(), nn.LazyLinear(8)).to(device)
    layers(torch.randn(2, CHANNELS, 8, 8, device=device)).sum().backward()
    if device.type == "cuda":
        del layers
        torch.cuda.reset_peak_memory_stats(device)


def _seconds(step: Callable[[], None], at_least: float) -> list[float]:
    for _ in range(WARM_UP):
        step()
    taken: list[float] = []
    while len(taken) < MIN_STEPS or sum(taken) < at_least:
        before = time.perf_counter()
        step()
        taken.append(time.perf_counter() - before)
    return taken


def write_costs(costs: Sequence[Cost], path: Path) -> None:
    """Write all that was measured, unrounded.

    Args:
        costs: at least one.
        path: a file that does not exist yet, ending in .csv or .json.

    Raises:
        RunError: if the file exists, or cannot be written.
    """
    rows = [dataclasses.asdict(cost) for cost in costs]
    try:
        with path.open("x", newline="", encoding="utf-8") as file:
            if path.suffix == ".json":
                json.dump(rows, file, indent=1)
                return
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    except FileExistsError as error:
        raise RunError(f"{path} exists already and is not overwritten; name another file with --out.") from error
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}.") from error


if __name__ == "__main__":
    what_, name_, asked_ = sys.argv[1:]
    print(json.dumps(_measure(what_, name_, Setting(**json.loads(asked_)))))
