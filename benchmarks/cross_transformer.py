"""CrossTransformer's head against what one would write instead: time, peak memory, share of the matrix-product rate.

All do the same work, from feature maps of 512 channels to scores, both projections included; a training step is cross
entropy and its backward pass to features and weights. Variants:

  ours          setwise.nn.CrossTransformer
  ours, fused   the same on its other way, which is taken on GPUs and on processors without AVX-512
  loop          the yardstick: torch's fused attention class by class, which is five lines and takes unequal shots
  einsum        explicit scores in einsum for all queries at once (equal shots only)
  einsum, each  the same for one query at a time

The variants take turns in one process, the order rotating; a ratio is the median of the ratios of the same turn. With
one thread the clock is that of the process (CPU time), so that other work on the machine counts less. Memory is the
growth of resident memory at its peak, over the inputs, in a fresh process each, after a small step that loads
whatever is loaded lazily. "of product" is the rate of the products that cannot be left out (two in the forward pass,
four in the backward pass, and the projections) over the rate of torch.mm on 1024 x 1024 in the same turn.

`--paper` measures one episode of the size the paper trains on instead: 23 classes, 400 support images, 233 queries.
"""

import argparse
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch
import torch.nn.functional as F
from measuring import Step, fresh, middle, processor, refuse_old, take_turns
from torch import Tensor

from setwise.nn import CrossTransformer
from setwise.nn.rebuilding import fused

DIM, KEY = 512, 128
RAGGED = (1, 2, 3, 5, 8, 12, 16, 20)
PAPER = (11, 11, 11, 11, 12, 12, 13, 14, 14, 15, 16, 17, 18, 19, 20, 20, 21, 22, 23, 24, 25, 25, 26)
assert sum(PAPER) == 400


@dataclass(frozen=True)
class Case:
    """One episode."""

    shots: tuple[int, ...]
    grid: int
    value: int
    queries: int = 50

    def __str__(self) -> str:
        equal = len(set(self.shots)) == 1
        shots = f"{len(self.shots)}-way {self.shots[0]}-shot" if equal else f"{len(self.shots)}-way, {min(self.shots)} "
        shots += "" if equal else f"to {max(self.shots)} shots"
        return f"{shots}, {self.grid}x{self.grid}, dv {self.value}"

    def flops(self, training: bool) -> float:
        """Of the products that cannot be left out."""
        rows, keys = self.queries * self.grid**2, sum(self.shots) * self.grid**2
        forward = 2 * rows * keys * (KEY + self.value) + 2 * (rows + keys) * DIM * (KEY + self.value)
        return forward * (3 if training else 1)


CASES = {
    f"{kind}-{grid}-{value}": Case(shots, grid, value)
    for kind, shots in (("5x5", (5,) * 5), ("ragged", RAGGED))
    for grid in (14, 7)
    for value in (128, 512)
} | {"paper": Case(PAPER, 14, 128, queries=233)}
VARIANTS = ("ours", "ours, fused", "loop", "einsum", "einsum, each")
OF_ANY_SHOTS = VARIANTS[:3]
Score = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def loop(query: Tensor, support: Tensor, target: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Fused attention class by class."""
    project = [F.conv2d(x, w[:, :, None, None]).flatten(2).mT for x in (query, support) for w in (key, value)]
    queries, values, support_keys, support_values = project  # [images, HW, width]
    distances = []
    for c in range(int(target.max()) + 1):
        k, v = support_keys[target == c].flatten(0, 1), support_values[target == c].flatten(0, 1)
        rebuilt = F.scaled_dot_product_attention(queries.flatten(0, 1)[None, None], k[None, None], v[None, None])
        distances.append((rebuilt.view_as(values) - values).square().sum(2).mean(1))
    return -torch.stack(distances, 1)


def einsum(
    query: Tensor, support: Tensor, target: Tensor, key: Tensor, value: Tensor, queries_at_once: int | None = None
) -> Tensor:
    """Explicit scores, all classes at once, which must have equal shots."""
    classes = int(target.max()) + 1
    support = support[target.argsort()].unflatten(0, (classes, -1))
    keys, support_values = (torch.einsum("knchw,dc->knhwd", support, weight) for weight in (key, value))
    queries, values = (torch.einsum("qchw,dc->qhwd", query, weight) for weight in (key, value))
    distances = []
    for q, v in zip(*(x.split(queries_at_once or len(query)) for x in (queries, values)), strict=True):
        scores = torch.einsum("qhwd,knijd->qkhwnij", q, keys) * key.shape[0] ** -0.5
        weights = scores.flatten(4).softmax(-1).view_as(scores)
        rebuilt = torch.einsum("qkhwnij,knijd->qkhwd", weights, support_values)
        distances.append((rebuilt - v[:, None]).square().sum(-1).mean((2, 3)))
    return -torch.cat(distances)


def ours(query: Tensor, support: Tensor, target: Tensor, key: Tensor, value: Tensor) -> Tensor:
    head = CrossTransformer(DIM, dim_key=len(key), dim_value=len(value))
    return torch.func.functional_call(head, {"key.weight": key, "value.weight": value}, (query, support, target))


def ours_fused(*inputs: Tensor) -> Tensor:
    with patch("setwise.nn.cross_transformer.squared_distances", fused):
        return ours(*inputs)


SCORE: dict[str, Score] = {
    "ours": ours,
    "ours, fused": ours_fused,
    "loop": loop,
    "einsum": einsum,
    "einsum, each": partial(einsum, queries_at_once=1),
}


def make_step(case: Case, variant: str, *, training: bool) -> Callable[[], Tensor]:
    """Scores of one episode, or a whole training step; the support comes in no order."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    target = torch.repeat_interleave(torch.tensor(case.shots))
    target = target[torch.randperm(len(target), generator=generator)]
    maps = [draw(n, DIM, case.grid, case.grid).relu_() for n in (case.queries, len(target))]
    weights = [0.05 * draw(width, DIM) for width in (KEY, case.value)]
    labels = torch.arange(case.queries) % len(case.shots)
    inputs = [x.requires_grad_(training) for x in (*maps, *weights)]

    def step() -> Tensor:
        for x in inputs:
            x.grad = None
        if not training:
            with torch.no_grad():
                return SCORE[variant](inputs[0], inputs[1], target, inputs[2], inputs[3])
        scores = SCORE[variant](inputs[0], inputs[1], target, inputs[2], inputs[3])
        F.cross_entropy(scores, labels).backward()
        return scores.detach()

    return step


def variants_of(case: Case) -> list[str]:
    return list(VARIANTS if len(set(case.shots)) == 1 else OF_ANY_SHOTS)


def check_equal(case: Case) -> None:
    """All variants compute the same, or their times mean nothing."""
    small = Case(case.shots, 4, case.value, queries=3)
    results = [make_step(small, variant, training=False)() for variant in variants_of(small)]
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-4, atol=1e-4)


def time_case(case: Case, *, training: bool, turns: int, slow: bool) -> dict[str, list[float]]:
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    variants = variants_of(case) if slow else OF_ANY_SHOTS
    steps: dict[str, Step] = {v: make_step(case, v, training=training) for v in variants}
    return take_turns(steps | {"product": lambda: a @ b}, turns)


def resident(line: str) -> float:
    """MiB that /proc/self/status states."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(text for text in status if text.startswith(line)).split()[1]) / 1024


def measure_memory(case: Case, variant: str, *, training: bool) -> float:
    """MiB over the inputs at the peak of a step; to be called in a fresh process."""
    make_step(Case(case.shots, 2, case.value, queries=17), variant, training=training)()
    step = make_step(case, variant, training=training)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    step()
    return resident("VmHWM") - before


def memory_in_fresh_process(name: str, variant: str, training: bool, threads: int) -> float:
    return fresh(__file__, "--memory-of", name, variant, str(int(training)), "--threads", str(threads))


def rows_of(name: str, arguments: argparse.Namespace) -> list[str]:
    case = CASES[name]
    check_equal(case)
    rows = []
    for training in (False, True):
        taken = time_case(case, training=training, turns=arguments.turns, slow=arguments.slow)
        product = [2 * 1024**3 / spent for spent in taken.pop("product")]  # flops a millisecond
        for variant, spent in taken.items():
            ratios = [own / other for own, other in zip(spent, taken["loop"], strict=True)]
            share = [case.flops(training) / own / rate for own, rate in zip(spent, product, strict=True)]
            memory = memory_in_fresh_process(name, variant, training, arguments.threads)
            cells = [str(case), "training" if training else "inference", variant, middle(spent, 0), middle(ratios, 2)]
            rows.append(f"| {' | '.join(cells)} | {100 * median(share):.0f} % | {memory:.0f} |")
            print(rows[-1], flush=True)
    return rows


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[name for name in CASES if name != "paper"])
    parser.add_argument("--paper", action="store_true", help="the episode of the paper's size instead")
    parser.add_argument("--turns", type=int, default=7, help="measured turns of each cell (default 7)")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads (default 1)")
    parser.add_argument("--fast", dest="slow", action="store_false", help="leave out the einsum variants")
    parser.add_argument("--out", type=Path, help="write the table to this new file as well")
    parser.add_argument("--memory-of", nargs=3, metavar=("CASE", "VARIANT", "TRAINING"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.turns < 2:
        parser.error("--turns must be 2 or more, for one turn has no spread")
    refuse_old(parser, arguments.out)
    return arguments


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        name, variant, training = arguments.memory_of
        print(measure_memory(CASES[name], variant, training=training == "1"))
        return
    head = "| episode | | variant | ms | over loop | of product | extra MiB |"
    print(head, flush=True)
    rows = [row for name in (["paper"] if arguments.paper else arguments.cases) for row in rows_of(name, arguments)]
    about = [f"* {processor()}, {arguments.threads} threads; python {platform.python_version()}, torch "]
    about[0] += f"{torch.__version__}; {arguments.turns} turns a cell, medians with quartiles; load {os.getloadavg()}"
    print(*about)
    if arguments.out is not None:
        arguments.out.write_text("\n".join([head, "|---|---|---|---|---|---|---|", *rows, "", *about]) + "\n")


if __name__ == "__main__":
    main()
