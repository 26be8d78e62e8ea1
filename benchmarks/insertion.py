"""What an inserted relation costs: BatchFormerV2 in a ViT and in DETR, and our encoder layer against torch's own.

Three tables, each against what one would have without setwise; a step is forward and backward pass:

  vit    deit_tiny_patch16_224 with the relation behind block 8, over the same model without: the batch is doubled for
         the last 3 of 12 blocks, which alone is a quarter more, and the layer comes on top. At most 1.25 + 10 %.
  detr   DETR with a ResNet-50 and the relation behind encoder layer 0, images of 800 px with labels, over the same
         model without: the backbone runs once. At most 1.25.
  layer  attention and whole layer with the set on the first axis, over torch.nn.MultiheadAttention and
         torch.nn.TransformerEncoderLayer with the same weights, whose outputs must be equal. Aim: attention 0.85, layer
         0.90, and 1 for one token, where both are matrix products.

Both sides take turns, step by step, in one process; a ratio is the median of the ratios of the same turn. With one
thread the clock is that of the process (CPU time), so that other work on the machine counts less; with more it is the
wall's. glibc hands large blocks back to the system and pays for every page again when it takes new ones: whoever
allocates more pays more. "kept" is the ratio in a process told to keep its blocks, so without that cost. Memory is read
in fresh processes, as in step.py: growth of peak resident memory from before the layer is built. "saved" is what
autograd keeps for the backward pass, weights and input not counted.

On a GPU all runs in bfloat16 (the models under autocast), the clock is the card's, memory is torch's peak, and a column
tells the share of the card's rate in a large matrix product.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from insertion_steps import HEADS, make_detr, make_layers, make_vit
from measuring import (
    KEEP,
    RETURN,
    Step,
    clock_of,
    kept_by,
    matmul_rate,
    middle,
    peak_resident,
    processor,
    refuse_old,
    take_turns,
)

from setwise.nn.attention import SetAttention

SHAPES = ("64,197,192", "32,196,384", "16,1000,256", "512,1,2048")
"""[B, N, C] of the layers: two ViTs, a detector's encoder, pooled features."""
PARTS = ("attention", "layer")
DROPOUTS = (0.0, 0.5)
LIMITS = {"vit": 1.25 * 1.1, "detr": 1.25, "attention": 0.85, "layer": 0.90}
NOISE = 0.05
"""For one token the ratio must be within this of 1."""
MEMORY_STEPS = 3


def peak_memory(make: Callable[[], Step], device: torch.device) -> float:
    """MiB at the peak of training steps; to be called in a fresh process."""
    before = peak_resident()
    step = make()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(MEMORY_STEPS):
        step()
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else peak_resident() - before


def saved_memory(shape: tuple[int, int, int]) -> float:
    """MiB that our attention keeps for the backward pass without dropout, weights and input not counted."""
    attention, x = SetAttention(shape[-1], HEADS), torch.randn(shape, requires_grad=True)
    return kept_by(lambda: attention(x), (*attention.parameters(), x))


def operations(part: str, shape: tuple[int, int, int]) -> int:
    """Of the matrix products of forward (once) and backward pass (twice as many)."""
    samples, positions, dim = shape
    projections = 4 if part == "attention" else 6
    return 3 * (2 * projections * samples * positions * dim**2 + 4 * samples**2 * positions * dim)


def reading(what: list[str], arguments: argparse.Namespace) -> Any:
    """What one fresh process measures: times of a pair of layers, or the peak memory of one."""
    kind, part, sizes, dropout, *who = what
    shape, device = shape_of(sizes), torch.device(arguments.device)
    if kind == "time":
        return take_turns(make_layers(part, shape, float(dropout), device), arguments.turns, clock=clock_of(device))
    return peak_memory(lambda: make_layers(part, shape, float(dropout), device)[who[0]], device)


def in_fresh_process(arguments: argparse.Namespace, what: list[object], environment: dict[str, str]) -> Any:
    command = [sys.executable, __file__, "--threads", str(arguments.threads), "--device", arguments.device]
    command += ["--turns", str(arguments.turns), "--reading", *map(str, what)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | environment)
    return json.loads(done.stdout)


def shape_of(sizes: str) -> tuple[int, int, int]:
    samples, positions, dim = (int(size) for size in sizes.split(","))
    return samples, positions, dim


def row(*cells: object) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def ratios_of(taken: dict[str, list[float]]) -> list[float]:
    theirs, ours = taken.values()
    return [b / a for a, b in zip(theirs, ours, strict=True)]


def model_table(arguments: argparse.Namespace, *, limit: float, turns: int, makes: dict[str, Callable]) -> list[str]:
    """One row for each model: its name -> a step with or without the relation."""
    head = ["model", "plain, ms", "with BatchFormerV2, ms", "ratio", "limit", "holds"]
    lines = [row(*head), "|---" * len(head) + "|"]
    device = torch.device(arguments.device)
    for name, make in makes.items():
        taken = take_turns({"plain": make(False, device), "related": make(True, device)}, turns, clock=clock_of(device))
        ratios = ratios_of(taken)
        cells = [middle(taken["plain"], 0), middle(taken["related"], 0), middle(ratios, 3), f"{limit:.3f}"]
        lines.append(row(name, *cells, "yes" if median(ratios) <= limit else "**no**"))
        print(lines[-1], file=sys.stderr, flush=True)
    return lines


def vit_table(arguments: argparse.Namespace) -> list[str]:
    side, batch = size = tuple(arguments.vit_size)
    name = f"deit_tiny_patch16_224, behind block 8, {side} px, batch {batch}"
    makes = {name: lambda related, device: make_vit(related, size, device)}
    return model_table(arguments, limit=LIMITS["vit"], turns=arguments.turns, makes=makes)


def detr_table(arguments: argparse.Namespace) -> list[str]:
    side, batch = size = tuple(arguments.detr_size)
    name = f"DETR-R50, behind encoder layer 0, {side} px, batch {batch}"
    makes = {
        name: lambda related, device: make_detr(related, size, device),
        f"{name}, backbone frozen": lambda related, device: make_detr(related, size, device, frozen=True),
    }
    return model_table(arguments, limit=LIMITS["detr"], turns=arguments.detr_turns, makes=makes)


def layer_table(arguments: argparse.Namespace) -> list[str]:
    device = torch.device(arguments.device)
    rate = matmul_rate(device) if device.type == "cuda" else None
    head = ["part", "[B, N, C]", "dropout", "torch, ms", "ours, ms", "ratio", "kept", "aim", "holds"]
    head += ["torch, MiB", "ours, MiB", *(["share of matmul"] if rate else [])]
    lines = [row(*head), "|---" * len(head) + "|"]
    for part in PARTS:
        for sizes in SHAPES:
            for dropout in DROPOUTS:
                taken = in_fresh_process(arguments, ["time", part, sizes, dropout], {})
                kept = in_fresh_process(arguments, ["time", part, sizes, dropout], KEEP)
                cells = layer_cells(part, shape_of(sizes), taken, kept)
                for who in ("torch", "ours"):
                    cells.append(f"{in_fresh_process(arguments, ['memory', part, sizes, dropout, who], RETURN):.0f}")
                if rate:
                    share = operations(part, shape_of(sizes)) / (median(taken["ours"]) / 1000) / rate
                    cells.append(f"{share:.0%}")
                lines.append(row(part, sizes, dropout, *cells))
                print(lines[-1], file=sys.stderr, flush=True)
    return lines


def layer_cells(part: str, shape: tuple[int, int, int], taken: dict, kept: dict) -> list[str]:
    ratio = median(ratios_of(taken))
    if shape[1] == 1:
        aim, holds = f"1 ± {NOISE}", abs(ratio - 1) <= NOISE
    else:
        aim, holds = f"{LIMITS[part]:.2f}", ratio <= LIMITS[part]
    times = [f"{median(taken[who]):.0f}" for who in ("torch", "ours")]
    return [*times, middle(ratios_of(taken), 3), f"{median(ratios_of(kept)):.3f}", aim, "yes" if holds else "**no**"]


def growth_table(arguments: argparse.Namespace) -> list[str]:
    """Memory of our attention without dropout for twice the set: linear is 2, a kept [B, B] matrix would be 4."""
    head = ["attention, [B, N, C]", "saved, MiB", "at 2B", "ratio", "peak, MiB", "at 2B", "ratio"]
    lines = [row(*head), "|---" * len(head) + "|"]
    for sizes in SHAPES:
        samples, positions, dim = shape_of(sizes)
        shapes = [(samples, positions, dim), (2 * samples, positions, dim)]
        saved = [saved_memory(shape) for shape in shapes]
        peak = [
            in_fresh_process(arguments, ["memory", "attention", ",".join(map(str, shape)), 0.0, "ours"], RETURN)
            for shape in shapes
        ]
        cells = [f"{value:.1f}" for value in saved] + [f"{saved[1] / saved[0]:.2f}"]
        lines.append(row(sizes, *cells, *(f"{value:.0f}" for value in peak), f"{peak[1] / peak[0]:.2f}"))
    return lines


TABLES: dict[str, Callable[[argparse.Namespace], list[list[str]]]] = {
    "vit": lambda arguments: [vit_table(arguments)],
    "detr": lambda arguments: [detr_table(arguments)],
    "layer": lambda arguments: [layer_table(arguments), growth_table(arguments)],
}


def about(arguments: argparse.Namespace) -> list[str]:
    device = torch.device(arguments.device)
    where = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} CPU cores, {processor()}"
    )
    return [
        "# What an inserted relation costs",
        "",
        f"`python benchmarks/insertion.py {' '.join(arguments.given)}` at commit `{commit()}`, on {date.today()}:",
        f"{where}, {arguments.threads} thread{'s' * (arguments.threads > 1)}. Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "transformers"))
        + f". Medians of {arguments.turns} turns (DETR: {arguments.detr_turns}), quartiles in brackets.",
    ]


def commit() -> str:
    """With a plus where there are changes."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(git, stdout=subprocess.PIPE, text=True, check=False).stdout.strip() or "unknown"


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python benchmarks/insertion.py --only layer --turns 7 --out insertion.md",
    )
    parser.add_argument("--only", choices=TABLES, help="one of the three tables; default: all, half an hour")
    parser.add_argument("--turns", type=int, default=9, help="measured steps of each side (default 9)")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads on the CPU (default 1)")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)")
    parser.add_argument("--detr-turns", type=int, default=3, help="the same for DETR, minutes each (default 3)")
    pair: dict[str, Any] = {"type": int, "nargs": 2, "metavar": ("PIXELS", "BATCH")}
    parser.add_argument("--vit-size", **pair, default=(224, 8), help="of the ViT's images (default 224 8)")
    parser.add_argument("--detr-size", **pair, default=(800, 2), help="of DETR's images (default 800 2)")
    parser.add_argument("--out", type=Path, help="write the page to this new file as well; by default only printed")
    parser.add_argument("--reading", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if min(arguments.turns, arguments.detr_turns) < 2:
        parser.error("--turns and --detr-turns must be 2 or more, for one turn has no spread")
    refuse_old(parser, arguments.out)
    arguments.given = argv
    return arguments


def main() -> None:
    arguments = parse(sys.argv[1:])
    torch.set_num_threads(arguments.threads)
    if arguments.reading:
        print(json.dumps(reading(arguments.reading, arguments)))
        return
    head = about(arguments)  # before the measurements, whose commit it names
    tables = [table for name in ([arguments.only] if arguments.only else TABLES) for table in TABLES[name](arguments)]
    text = "\n".join([*head, *("\n" + "\n".join(table) for table in tables)])
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
