"""What a larger set costs: in micro-batches, across two processes, and as the set itself grows.

  micro    256 samples in micro-batches of 16: peak memory over that of one step of 16 samples plus the features, and
           time over sixteen plain steps of 16 samples, which see the same images
  set      forward and backward pass of one layer of width 512 as the set grows from 32 to 8,192 samples, all to all
           and through 64 inducing points
  gather   a step of two processes (gloo) with gather over the same step without
  loader   images a second of the training loader over those of a training step, without workers and with two

Times are medians of turns in which the variants alternate: of the process's own CPU time where all work is in one
thread (micro and set), so that other work on the machine counts less, and else of the wall's. Memory is the growth of
peak resident memory in a fresh process; that of micro counts weights and gradients, and stands over one step, whose
gradients come when the activations go, and over sixteen whose gradients add up as ours do. The project's aims: micro at
most 1.3x the memory of one step and 1.4x the time (1.6x where random numbers are drawn in the backbone); memory of the
set linear; the loader never slower than the step, and two workers not slower than none.
"""

import argparse
import gc
import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from measuring import Step, fresh, milliseconds, peak_resident, processor, refuse_old, resident, take_turns, wall
from torch import nn

from setwise.nn import BatchFormer, in_micro_batches, streams
from setwise.nn.attention import EncoderLayer
from setwise.nn.induced import InducedLayer

BATCH, MICRO, SIDE = 256, 16, 128
"""Samples, of a micro-batch, and side of the images in pixels, where --side does not say another one."""
SIZES = (32, 128, 512, 2048, 8192)
WIDTH = 512
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "all to all": lambda: EncoderLayer(WIDTH, 4, attention_dropout=0.0),
    "64 inducing points": lambda: InducedLayer(WIDTH, 4, 64, attention_dropout=0.0),
}


def vit(side: int, **options: float) -> nn.Module:
    return timm.create_model("deit_tiny_patch16_224", img_size=side, depth=6, num_classes=0, **options)


BACKBONES: dict[str, Callable[[int], nn.Module]] = {
    "ViT, 6 blocks": vit,
    "the same with drop path and dropout": lambda side: vit(side, drop_path_rate=0.2, proj_drop_rate=0.1),
    "ResNet-18 with GroupNorm": lambda side: timm.create_model("resnet18", num_classes=0, norm_layer="groupnorm"),
}


# ---------------------------------------------------------------------------------------------------- micro-batches
def micro_step(name: str, samples: int, size: int, side: int) -> Step:
    """Forward and backward pass of ``samples`` in micro-batches of ``size``."""
    torch.manual_seed(0)
    backbone = BACKBONES[name](side).train()
    relation, head = BatchFormer(backbone.num_features, attention_dropout=0.0), nn.Linear(backbone.num_features, 100)
    image, target = torch.randn(samples, 3, side, side), torch.randint(100, (samples,))

    def step() -> None:
        logits = head(relation(in_micro_batches(backbone, image, size)))
        F.cross_entropy(logits, streams.tile(target, like=logits)).backward()

    return step


def memory_of_micro(name: str, samples: int, side: int, steps: int) -> float:
    """MiB that ``steps`` steps need at their peak: weights, gradients, activations; for a fresh process.

    The images are left out, and what torch keeps for itself: a step on two samples comes before.
    """
    micro_step(name, 2, 2, side)()
    gc.collect()
    images = samples * 3 * side * side * 4 / 2**20
    before = resident()
    step = micro_step(name, samples, MICRO, side)
    for _ in range(steps):
        step()
    return peak_resident() - before - images


def micro(arguments: argparse.Namespace) -> list[str]:
    lines = [
        "| backbone | memory, one step | 16, gradients added up | 16 as one set | over one | over 16 | time over 16 |",
        "|---|---|---|---|---|---|---|",
    ]
    count = BATCH // MICRO
    for name in (name for name in BACKBONES if arguments.backbone in name):
        one, added, many = (
            memory_of(arguments, "micro", name, str(samples), str(steps))
            for samples, steps in ((MICRO, 1), (MICRO, count), (BATCH, 1))
        )
        features = BATCH * BACKBONES[name](arguments.side).num_features * 4 / 2**20
        plain, ours = (micro_step(name, samples, MICRO, arguments.side) for samples in (MICRO, BATCH))

        def sixteen(plain: Step = plain) -> None:
            for _ in range(count):
                plain()

        ratio = medians({"plain": sixteen, "ours": ours}, arguments.turns)
        cells = [name, *(f"{mib:.0f} MiB" for mib in (one, added, many))]
        cells += [f"{many / (least + features):.2f}" for least in (one, added)]
        lines.append(f"| {' | '.join(cells)} | {ratio['ours'] / ratio['plain']:.2f} |")
    return lines


# ----------------------------------------------------------------------------------------------------------- the set
def set_step(samples: int, kind: str) -> Step:
    torch.manual_seed(0)
    layer, x = LAYERS[kind](), torch.randn(samples, WIDTH, requires_grad=True)

    def step() -> None:
        layer(x).square().mean().backward()

    return step


def memory_of_set(kind: str, samples: int) -> float:
    set_step(32, kind)()
    before = peak_resident()
    set_step(samples, kind)()
    return peak_resident() - before


def the_set(arguments: argparse.Namespace) -> list[str]:
    lines = ["| samples | relation | step, ms | over the size before | memory, MiB |", "|---|---|---|---|---|"]
    steps = {f"{kind} {size}": set_step(size, kind) for kind in LAYERS for size in SIZES}
    taken = medians(steps, arguments.turns)
    for kind in LAYERS:
        before = None
        for size in SIZES:
            now = taken[f"{kind} {size}"]
            growth = "" if before is None else f"{now / before:.1f}x"
            memory = memory_of(arguments, "set", kind, str(size))
            lines.append(f"| {size:,} | {kind} | {now:.1f} | {growth} | {memory:.0f} |")
            before = now
    return lines


# -------------------------------------------------------------------------------------------------------- the gather
def gather_process(rank: int, folder: str, turns: int) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    steps = {}
    for name, gather in (("alone", False), ("gathered", True)):
        torch.manual_seed(0)
        backbone = timm.create_model("resnet18", num_classes=0)
        model = nn.Sequential(backbone, BatchFormer(512, attention_dropout=0.0, gather=gather), nn.Linear(512, 100))
        ddp = nn.parallel.DistributedDataParallel(model)
        image = torch.randn(32, 3, 64, 64)
        steps[name] = lambda ddp=ddp, image=image: ddp(image).square().mean().backward()
    taken = medians(steps, turns, wall)
    if rank == 0:
        (Path(folder) / "ratio").write_text(str(taken["gathered"] / taken["alone"]))
    dist.destroy_process_group()


def gather(arguments: argparse.Namespace) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(gather_process, (folder, arguments.turns), nprocs=2)
        ratio = float((Path(folder) / "ratio").read_text())
    return [f"ResNet-18, 64 px, 32 images in each of two processes: a step takes {ratio:.2f}x that without gather."]


# -------------------------------------------------------------------------------------------------------- the loader
def loader(arguments: argparse.Namespace) -> list[str]:
    from setwise.build import build_data, build_loader
    from setwise.models import create_backbone
    from setwise.recipes import RECIPES

    root = Path(os.environ.get("SETWISE_DATA", Path(__file__).parents[2] / "shared" / "data")) / "cifar100-lt"
    if not root.is_dir():
        return [f"The loader was not measured: there is no {root}; SETWISE_DATA names the folder of data sets."]
    recipe = RECIPES["cifar100-lt"].override({"data.root": str(root)})
    splits = build_data(recipe)
    changes = (recipe.data.augment, "cifar-autoaugment")  # of whole batches, and image by image
    backbone = create_backbone("cifar_resnet32")
    image = torch.randn(recipe.data.batch_size, 3, 32, 32)

    def epoch_of(change: str, workers: int) -> Step:
        asked = recipe.override({"data.num_workers": workers, "data.augment": change})
        batches = build_loader(asked, splits, "train")
        return lambda: [None for _ in batches] and None

    asked = {"no worker": 0, "two workers": 2}
    passes = {f"{change}, {name}": epoch_of(change, n) for change in changes for name, n in asked.items()}
    taken = medians(passes, max(3, arguments.turns // 2), wall)
    step = medians({"step": lambda: backbone(image).square().mean().backward()}, arguments.turns, wall)["step"]
    images = len(splits.train) // recipe.data.batch_size * recipe.data.batch_size
    lines = ["| | images a second |", "|---|---|"]
    lines += [f"| loader, {name} | {1000 * images / spent:,.0f} |" for name, spent in taken.items()]
    return [*lines, f"| training step of ResNet-32 | {1000 * len(image) / step:,.0f} |"]


# ---------------------------------------------------------------------------------------------------------- measuring
def medians(steps: dict[str, Step], turns: int, clock: Callable[[Step], float] = milliseconds) -> dict[str, float]:
    """Of each step, milliseconds."""
    return {name: median(values) for name, values in take_turns(steps, turns, clock=clock).items()}


def memory_of(arguments: argparse.Namespace, *what: str) -> float:
    options = ["--threads", str(arguments.threads), "--side", str(arguments.side)]
    return fresh(__file__, "--memory-of", *what, *options)


PARTS = {"micro": micro, "set": the_set, "gather": gather, "loader": loader}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python benchmarks/scale.py --only set micro --turns 5 --threads 1",
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts; default: all")
    parser.add_argument("--turns", type=int, default=5, help="measured turns (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads (default 1)")
    parser.add_argument("--side", type=int, default=SIDE, help="micro: side of the images in pixels (default 128)")
    parser.add_argument("--backbone", default="", help="micro: only those with this in their name (default: all)")
    parser.add_argument("--out", type=Path, help="write the tables to this new file as well")
    parser.add_argument("--memory-of", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.turns < 1:
        parser.error("--turns must be 1 or more")
    refuse_old(parser, arguments.out)
    return arguments


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        kind, name, samples, *steps = arguments.memory_of
        if kind == "micro":
            print(memory_of_micro(name, int(samples), arguments.side, int(steps[0])))
        else:
            print(memory_of_set(name, int(samples)))
        return
    text = "\n".join(line for part in arguments.only for line in (f"## {part}", "", *PARTS[part](arguments), ""))
    text += (
        f"\n{processor()}, {arguments.threads} threads; python {platform.python_version()}, torch {torch.__version__}"
    )
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
