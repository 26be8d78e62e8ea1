"""PatchConvNet against a straightforward twin of equal weights: time of a forward pass and of a training step, memory.

The twin (patchconvnet_twin.py) hands tokens from block to block and turns them into maps in each, channels first, with
unfused attention and a linear layer for each class. Cells:

  s60         patchconvnet_s60 at 224 pixels
  s60_multi   patchconvnet_s60_multi, one query for each of 1000 classes
  pool        the latter's pool and classifier alone, on maps of 14 x 14
  head        its classifier alone, on 1000 pooled queries: one weight against 1000 layers

Variants: ours; ours, whole (`thrifty=False`, so nothing is computed twice in training); twin; and twin, channels last
(weights and images in that memory format). All must agree in scores before any is timed.

The variants take turns in one process, the order rotating; a ratio is the median of the ratios of the same turn. With
one thread the clock is that of the process (CPU time), so that other work on the machine counts less. Memory is the
growth of peak resident memory from before the model is built, weights and input included, in fresh processes; the last
column has what the forward pass of a training step keeps of each image for the backward pass. A training step is cross
entropy and its backward pass. Aims: forward pass 1.3 times as fast as the twin, training memory at most 0.8 of it, the
head five times as fast.

With --device cuda: both networks, channels last, under bfloat16 autocast, as they are and compiled, on the card's own
clock; images a second, the share of the card's rate in a large matrix product, and torch's peak of memory. Compiling
takes minutes for each.
"""

import argparse
import os
import platform
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median

import timm
import torch
import torch.nn.functional as F
from measuring import (
    Step,
    clock_of,
    fresh,
    kept_by,
    matmul_rate,
    middle,
    peak_resident,
    processor,
    refuse_old,
    take_turns,
)
from patchconvnet_twin import TokenNetwork, TokenPool
from torch import Tensor, nn

from setwise.models.patchconvnet import checkpoint_filter_fn
from setwise.nn import AttentionPool, PerClassLinear
from setwise.profiling import Setting, count

DIM, DEPTH, CLASSES, SIDE = 384, 60, 1000, 224
CELLS = ("s60", "s60_multi", "pool", "head")
VARIANTS = ("ours", "ours, whole", "twin", "twin, channels last")
YARDSTICK = "twin"
NETWORKS = ("s60", "s60_multi")
ON_GPU = ("ours", "ours, compiled", "twin", "twin, compiled")


class Layers(nn.Module):
    """A linear layer for each class: the twin's classifier alone."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.ModuleList(nn.Linear(DIM, 1) for _ in range(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([score(x[:, k]) for k, score in enumerate(self.head)], dim=1)


def make_twin(cell: str, depth: int) -> nn.Module:
    if cell == "head":
        return Layers()
    if cell == "pool":
        return TokenPool(DIM, CLASSES, per_class=True)
    return TokenNetwork(DIM, depth, CLASSES, per_class=cell == "s60_multi")


def make_own(cell: str, depth: int, *, thrifty: bool) -> nn.Module:
    if cell == "head":
        return nn.ModuleDict({"head": PerClassLinear(DIM, CLASSES)})
    if cell == "pool":
        pool = AttentionPool(DIM, num_queries=CLASSES, channels_first=True)
        pool.layers[0].thrifty = thrifty
        return nn.ModuleDict({"pool": pool, "head": PerClassLinear(DIM, CLASSES)})
    return timm.create_model(f"patchconvnet_{cell}", depth=depth, num_classes=CLASSES, thrifty=thrifty)


def make(cell: str, variant: str, depth: int, *, alike: bool) -> nn.Module:
    """One variant; ``alike``: with the weights that all variants of the cell have."""
    torch.manual_seed(0)
    if variant.startswith("twin"):
        twin = make_twin(cell, depth)
        return twin.to(memory_format=torch.channels_last) if "last" in variant else twin
    own = make_own(cell, depth, thrifty=variant == "ours")
    if alike:
        translator = own if cell.startswith("s60") else timm.create_model("patchconvnet_s60_multi", depth=1)
        torch.manual_seed(0)
        own.load_state_dict(checkpoint_filter_fn(make_twin(cell, depth).state_dict(), translator), strict=True)
    return own


def scores_of(model: nn.Module, cell: str, x: Tensor) -> Tensor:
    """Each part gets its input as its own network has it."""
    if isinstance(model, nn.ModuleDict):
        return model["head"](model["pool"](x) if cell == "pool" else x)
    if cell == "pool":
        return model(x.flatten(2).transpose(1, 2))
    return model(x)


def make_input(cell: str, variant: str, *, batch: int, training: bool) -> Tensor:
    shapes = {"pool": (batch, DIM, SIDE // 16, SIDE // 16), "head": (batch, CLASSES, DIM)}
    x = torch.randn(shapes.get(cell, (batch, 3, SIDE, SIDE)), generator=torch.Generator().manual_seed(1))
    if variant == "twin, channels last" or cell == "pool":
        x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    return x.requires_grad_(training and cell in shapes)


def make_step(
    cell: str, variant: str, *, batch: int, training: bool, depth: int = DEPTH, alike: bool = True
) -> Callable[[], Tensor]:
    """A forward pass, or a whole training step; it returns the scores."""
    model = make(cell, variant, depth, alike=alike).train(training)
    x = make_input(cell, variant, batch=batch, training=training)
    target = torch.arange(batch) % CLASSES

    def step() -> Tensor:
        if not training:
            with torch.no_grad():
                return scores_of(model, cell, x)
        model.zero_grad()
        x.grad = None
        out = scores_of(model, cell, x)
        F.cross_entropy(out, target).backward()
        return out.detach()

    return step


def check_equal(cell: str, depth: int) -> None:
    """All variants compute the same, or their times mean nothing."""
    for training in (False, True):
        results = [make_step(cell, variant, batch=2, training=training, depth=depth)() for variant in VARIANTS]
        for other in results[1:]:
            torch.testing.assert_close(other, results[0], rtol=1e-3, atol=1e-4)


def memory_of(cell: str, variant: str, training: bool, batch: int, depth: int) -> float:
    """MiB; to be called in a fresh process."""
    torch.nn.Linear(4, 4)(torch.randn(2, 4)).sum().backward()  # what is loaded at the first step
    before = peak_resident()
    step = make_step(cell, variant, batch=batch, training=training, depth=depth, alike=False)
    for _ in range(2):  # the second with the gradients' memory as the first left it
        step()
    return peak_resident() - before


def kept_of(cell: str, variant: str, *, batch: int, depth: int) -> float:
    """MiB an image that the forward pass of a training step keeps for the backward pass, beside weights and input."""
    model = make(cell, variant, depth, alike=False).train()
    x = make_input(cell, variant, batch=batch, training=True)
    return kept_by(lambda: scores_of(model, cell, x), (*model.parameters(), x)) / batch


def rows_of(cell: str, arguments: argparse.Namespace) -> list[str]:
    check_equal(cell, arguments.depth)
    rows = []
    for training in (False, True):
        steps = {
            variant: make_step(cell, variant, batch=arguments.batch_size, training=training, depth=arguments.depth)
            for variant in VARIANTS
        }
        taken = take_turns(steps, arguments.turns)
        del steps
        memory = {}
        for variant in VARIANTS:
            what = ("--memory-of", cell, variant, str(int(training)), "--threads", str(arguments.threads))
            sizes = ("--batch-size", str(arguments.batch_size), "--depth", str(arguments.depth))
            readings = range(arguments.memory_readings)
            memory[variant] = median(fresh(__file__, *what, *sizes) for _ in readings)
        for variant, spent in taken.items():
            ratios = [other / own for own, other in zip(spent, taken[YARDSTICK], strict=True)]
            cells = [cell, "training" if training else "forward", variant, middle(spent, 1), middle(ratios, 2)]
            share = memory[variant] / memory[YARDSTICK]
            kept = (
                f"{kept_of(cell, variant, batch=arguments.batch_size, depth=arguments.depth):.1f}" if training else ""
            )
            rows.append(f"| {' | '.join(cells)} | {memory[variant]:.0f} | {share:.2f} | {kept} |")
            print(rows[-1], flush=True)
    return rows


def step_on(device: torch.device, cell: str, variant: str, *, batch: int, training: bool, depth: int) -> Step:
    """A forward pass or a training step in bfloat16, channels last."""
    name, _, compiled = variant.partition(", ")
    model = make(cell, name, depth, alike=False).train(training).to(device, memory_format=torch.channels_last)
    run = torch.compile(model) if compiled else model
    x = torch.randn(batch, 3, SIDE, SIDE, device=device).contiguous(memory_format=torch.channels_last)
    target = torch.arange(batch, device=device) % CLASSES

    def step() -> None:
        model.zero_grad()
        with torch.set_grad_enabled(training), torch.autocast(device.type, torch.bfloat16):
            out = run(x)
        if training:
            F.cross_entropy(out.float(), target).backward()

    return step


def gpu_rows_of(cell: str, arguments: argparse.Namespace, device: torch.device, rate: float) -> list[str]:
    """Variants take turns as on the CPU; memory is of each alone, before."""
    _, _, forward = count(f"patchconvnet_{cell}", Setting(batch_size=1, options={"depth": arguments.depth}))
    rows = []
    for training in (False, True):
        steps, memory = {}, {}
        for variant in ON_GPU:
            before = torch.cuda.memory_allocated(device)
            how = {"batch": arguments.batch_size, "training": training, "depth": arguments.depth}
            steps[variant] = step_on(device, cell, variant, **how)
            steps[variant]()  # which compiles
            torch.cuda.reset_peak_memory_stats(device)
            steps[variant]()
            memory[variant] = (torch.cuda.max_memory_allocated(device) - before) / 2**20
        taken = take_turns(steps, arguments.turns, warmup=3, clock=clock_of(device))
        for variant, spent in taken.items():
            ratios = [other / own for own, other in zip(spent, taken[YARDSTICK], strict=True)]
            speed = arguments.batch_size / (median(spent) / 1000)
            share = 2 * forward * (3 if training else 1) * speed / rate
            cells = [cell, "training" if training else "forward", variant, f"{speed:.0f}", middle(ratios, 2)]
            cells += [f"{share:.0%}", f"{memory[variant]:.0f}", f"{memory[variant] / memory[YARDSTICK]:.2f}"]
            rows.append(f"| {' | '.join(cells)} |")
            print(rows[-1], flush=True)
    return rows


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", choices=CELLS, help="default: all; on a GPU the two networks")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default cpu)")
    parser.add_argument("--batch-size", type=int, help="images (default 8; on a GPU 128)")
    parser.add_argument("--depth", type=int, default=DEPTH, help="blocks of the trunk (default 60)")
    parser.add_argument("--turns", type=int, default=7, help="measured turns of each cell (default 7)")
    parser.add_argument("--memory-readings", type=int, default=1, help="fresh processes of each figure (default 1)")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads (default 1)")
    parser.add_argument("--out", type=Path, help="write the table to this new file as well")
    parser.add_argument("--memory-of", nargs=3, metavar=("CELL", "VARIANT", "TRAINING"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.turns < 2:
        parser.error("--turns must be 2 or more, for one turn has no spread")
    refuse_old(parser, arguments.out)
    gpu = torch.device(arguments.device).type == "cuda"
    arguments.cells = arguments.cells or (NETWORKS if gpu else CELLS)
    arguments.batch_size = arguments.batch_size or (128 if gpu else 8)
    if gpu and set(arguments.cells) - set(NETWORKS):
        parser.error(f"--device {arguments.device} takes the cells {', '.join(NETWORKS)}")
    return arguments


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        cell, variant, training = arguments.memory_of
        print(memory_of(cell, variant, training == "1", arguments.batch_size, arguments.depth))
        return
    device = torch.device(arguments.device)
    if device.type == "cuda":
        head = "| network | step | variant | images/s | times as fast | of torch.mm's rate | MiB | of the twin's |"
        rate = matmul_rate(device)
        where, how = torch.cuda.get_device_name(device), f"; torch.mm: {rate / 1e12:.0f} TFLOP/s"
    else:
        head = "| network | step | variant | ms | times as fast | MiB | of the twin's | kept an image, MiB |"
        where, how = f"{processor()}, {arguments.threads} threads, no GPU", f"; load {os.getloadavg()}"
    print(head, flush=True)
    rows = []
    for cell in arguments.cells:
        rows += gpu_rows_of(cell, arguments, device, rate) if device.type == "cuda" else rows_of(cell, arguments)
    about = f"* {date.today()}, {where}; python {platform.python_version()}, torch {torch.__version__}; batch "
    about += f"{arguments.batch_size}, {SIDE} pixels, {arguments.depth} blocks; {arguments.turns} turns a cell, "
    about += f"medians with quartiles{how}"
    print(about)
    if arguments.out is not None:
        arguments.out.write_text("\n".join([head, f"|{8 * '---|'}", *rows, "", about]) + "\n")


if __name__ == "__main__":
    main()
