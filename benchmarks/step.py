"""What the relation costs: time and peak memory of a training step with it, over the same step without it.

Variants, all of one network with one linear classifier:

  plain                    no relation
  BatchFormer              as in the paper, dropout 0.5 on the attention weights as well
  BatchFormer, fused       attention_dropout=0, which keeps torch's fused attention kernels
  by hand                  what one would write instead: torch.nn.TransformerEncoderLayer, squeeze, cat, doubled target

The variants take turns, step by step, in one process, so that whatever else the machine does meets all of them; the
ratio is the median of the ratios to the plain step of the same turn. Memory is read in fresh processes, one a reading:
on a CPU the growth of peak resident memory from before the network is built (glibc told to give freed blocks back, or
fragments would drown the difference), on a GPU torch's peak of allocated memory. The project's aim is a ratio of at
most 1.03.
"""

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from measuring import fresh, middle, peak_resident, processor, refuse_old, take_turns
from torch import Tensor, nn

from setwise.models import create_backbone, feature_dim
from setwise.nn import BatchFormer, streams

CASES = {
    "resnet32": ("cifar_resnet32", 32, 128),
    "resnet18": ("resnet18", 128, 32),
}
"""Name -> backbone, side of the images in pixels, batch."""
VARIANTS = ("plain", "BatchFormer", "BatchFormer, fused", "by hand")
CLASSES = 100
MEMORY_STEPS = 3
"""Enough for the optimizer's state and the allocator's second pass."""


class ByHand(nn.Module):
    """The ten lines of the paper's pseudo-code, around torch's own layer."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(dim, 4, dim, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.encoder(x.unsqueeze(1)).squeeze(1)]) if self.training else x


def make_relation(variant: str, dim: int) -> nn.Module:
    if variant == "BatchFormer":
        return BatchFormer(dim)
    if variant == "BatchFormer, fused":
        return BatchFormer(dim, attention_dropout=0.0)
    return ByHand(dim) if variant == "by hand" else nn.Identity()


def make_step(case: str, variant: str, device: torch.device) -> Callable[[], None]:
    """One training step: forward, backward, optimizer."""
    name, side, batch = CASES[case]
    torch.manual_seed(0)
    backbone = create_backbone(name)
    dim = feature_dim(backbone, in_chans=3, image_size=side)
    model = nn.ModuleList([backbone, make_relation(variant, dim), nn.Linear(dim, CLASSES)]).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    image = torch.randn(batch, 3, side, side, device=device)
    target = torch.randint(CLASSES, (batch,), device=device)

    def step() -> None:
        logits = model[2](model[1](model[0](image)))
        loss = F.cross_entropy(logits, streams.tile(target, like=logits))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def seconds_of(step: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def time_case(case: str, *, steps: int, warmup: int, device: torch.device) -> dict[str, list[float]]:
    """Milliseconds of every step of every variant; the order within a turn rotates."""
    run = {variant: make_step(case, variant, device) for variant in VARIANTS}
    return take_turns(run, steps, warmup=warmup, clock=lambda step: 1000 * seconds_of(step, device))


def measure_memory(case: str, variant: str, device: torch.device) -> float:
    """MiB that a training step takes at its peak; to be called in a fresh process."""
    before = peak_resident()
    step = make_step(case, variant, device)
    for _ in range(MEMORY_STEPS):
        step()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return peak_resident() - before


def memory_in_fresh_processes(case: str, variant: str, arguments: argparse.Namespace) -> float:
    """The median reading of several processes."""
    what = ["--memory-of", case, variant, "--threads", str(arguments.threads), "--device", arguments.device]
    return median(fresh(__file__, *what) for _ in range(arguments.memory_readings))


def rows_of(case: str, arguments: argparse.Namespace) -> list[str]:
    name, side, batch = CASES[case]
    taken = time_case(case, steps=arguments.steps, warmup=arguments.warmup, device=torch.device(arguments.device))
    memory = {variant: memory_in_fresh_processes(case, variant, arguments) for variant in VARIANTS}
    rows = []
    for variant in VARIANTS:
        ratios = [ours / plain for ours, plain in zip(taken[variant], taken["plain"], strict=True)]
        cells = [f"{name}, {side} px, batch {batch}", variant, middle(taken[variant], 1), middle(ratios, 3)]
        cells += [f"{memory[variant]:.0f}", f"{memory[variant] / memory['plain']:.3f}"]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def about(arguments: argparse.Namespace) -> list[str]:
    device = torch.device(arguments.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return [
        f"* machine: {where}, {arguments.threads} threads, {platform.system()} {platform.machine()}",
        f"* python {platform.python_version()}, torch {torch.__version__}",
        f"* {arguments.steps} steps a variant after {arguments.warmup} of warm-up, medians with quartiles; memory: "
        f"median of {arguments.memory_readings} processes",
    ]


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python benchmarks/step.py --steps 30 --threads 2 --out step.md",
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="networks; default: both")
    parser.add_argument("--steps", type=int, default=30, help="measured steps of each variant (default 30)")
    parser.add_argument("--warmup", type=int, default=5, help="steps before, not measured (default 5)")
    parser.add_argument("--memory-readings", type=int, default=3, help="processes a memory figure (default 3)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch's threads on the CPU")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default cpu)")
    parser.add_argument("--out", type=Path, help="write the table to this new file as well; by default only printed")
    parser.add_argument("--memory-of", nargs=2, metavar=("CASE", "VARIANT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.steps < 2 or arguments.memory_readings < 1:
        parser.error("--steps must be 2 or more, for one step has no spread, and --memory-readings 1 or more")
    if torch.device(arguments.device).type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {arguments.device}: this torch finds no such GPU")
    refuse_old(parser, arguments.out)
    return arguments


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print(measure_memory(*arguments.memory_of, torch.device(arguments.device)))
        return
    head = "| network | variant | step, ms | time over plain | peak memory, MiB | memory over plain |"
    rows = [row for case in arguments.cases for row in rows_of(case, arguments)]
    text = "\n".join([head, "|---|---|---|---|---|---|", *rows, "", *about(arguments)])
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
