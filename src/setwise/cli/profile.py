"""``setwise profile``: what models cost, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from setwise.cli.bar import Bar
from setwise.cli.options import named_value, parse
from setwise.errors import InvalidInput

if TYPE_CHECKING:
    from setwise.profiling import Cost, Setting

__all__ = ["profile_"]

SUFFIXES = (".csv", ".json")


@dataclass
class _Profile:
    """Show what models cost, side by side: parameters, multiply-adds, peak memory and images a second.

    NAME is any of timm's models or one of ours, with random weights and its own classifier. Multiply-adds are those of
    one image's forward pass (convolutions, matrix products, attention). Memory is the peak of a fresh process over what
    it had before the model was built: weights, images, activations, and with --train gradients. Speed is the median
    step of the batch, in float32. Other work on the machine makes it slower.

    setwise profile patchconvnet_s60 resnet50 deit_small_patch16_224 --image-size 224 --train
    """

    names: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="NAME...")]
    """Models; `setwise list backbones PATTERN` searches the names."""
    batch_size: int | None = None
    """Images at a time; None: 256 on a GPU, 8 on a CPU."""
    image_size: int | None = None
    """Side of the images in pixels; None: what each model was made for."""
    train: bool = False
    """Measure a training step (forward and backward pass, no optimizer) instead of the forward pass."""
    options: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE...")] = ()
    """Arguments of the models, as timm names them: depth=12 num_heads=4 norm_layer=batchnorm2d"""
    device: Literal["cuda", "cpu"] | None = None
    """None: a GPU where there is one."""
    seconds: float = 3.0
    """Time that the speed of each model is measured for, and at least three steps."""
    out: Path | None = None
    """File for the table, new, ending in .csv or .json; unrounded."""


def profile_(args: Sequence[str]) -> None:
    """``setwise profile NAME...``."""
    options = parse("profile", _Profile, args)
    if not options.names:
        raise InvalidInput(
            "Name at least one model: setwise profile NAME... `setwise list backbones PATTERN` finds them."
        )
    if options.out is not None and (options.out.suffix not in SUFFIXES or options.out.exists()):
        rule = "exists already and is not overwritten" if options.out.exists() else "must end in .csv or .json"
        raise InvalidInput(f"--out {options.out} {rule}; name another file.")
    arguments = dict(map(named_value, options.options))
    from setwise.profiling import Setting, profile, write_costs

    setting = Setting.make(
        batch_size=options.batch_size,
        image_size=options.image_size,
        training=options.train,
        device=options.device,
        seconds=options.seconds,
        options=arguments,
    )
    with Bar("all measurements") as bar:
        costs = profile(options.names, setting, progress=bar.move)
    console = Console()
    console.print(_table(costs))
    console.print(_caption(setting), highlight=False)
    if options.out is not None:
        write_costs(costs, options.out)
        print(f"table  {options.out}")


def _table(costs: "Sequence[Cost]") -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("model", no_wrap=True)
    for heading in ("pixels", "parameters (M)", "multiply-adds (G)", "peak memory (MiB)", "images/s"):
        table.add_column(heading, justify="right")
    for cost in costs:
        counted = (f"{cost.parameters / 1e6:.2f}", f"{cost.multiply_adds / 1e9:.3f}")
        measured = (f"{cost.peak_memory:,.0f}" if cost.peak_memory else "unknown", f"{cost.images_per_second:,.1f}")
        table.add_row(cost.model, str(cost.image_size), *counted, *measured)
    return table


def _caption(setting: "Setting") -> str:
    import torch

    from setwise.machine import processor

    what = "Training steps" if setting.training else "Forward passes"
    where = processor() + f", {torch.get_num_threads()} threads"
    if setting.device == "cuda":
        where = torch.cuda.get_device_name()
    return f"{what} of {setting.batch_size} images in float32; {where}; torch {torch.__version__}."
