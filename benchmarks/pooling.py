"""What do the attention pool and the conv stem of PatchConvNet bring? CIFAR-10-LT at 96 pixels, a small network.

  class query     the pool of the paper: one query, one head, one block
  average         the mean over patches instead
  four heads      the class query with four heads
  two blocks      two pool blocks, one on the other
  linear stem     the class query on patches that one linear layer embeds, instead of four convolutions
  batch norm      the class query on a trunk with BatchNorm instead of LayerNorm

Every arm runs the recipe cifar10-pooling-short over the same seeds; nothing is tuned. The table has the recipe's
primary metric (balanced accuracy after logit adjustment of a strength chosen on validation) and differences to the
class query with 95 % intervals over seeds and test images. A run that stands in --out is not made again, so that a
broken benchmark goes on.
"""

import argparse
import os
from itertools import product
from pathlib import Path

import numpy as np
from arms import ask, carry_out, machine, seconds_of

from setwise import run
from setwise.metrics import contributions, paired_interval
from setwise.recipes import RECIPES, Recipe
from setwise.run_folder import RunFolder

DATA = Path(os.environ.get("SETWISE_DATA", Path(__file__).parents[2] / "shared" / "data")) / "cifar10-lt"
PAPER = "class query"
ARMS: dict[str, dict] = {
    PAPER: {},
    "average": {"global_pool": "avg"},
    "four heads": {"num_heads": 4},
    "two blocks": {"depth_token_only": 2},
    "linear stem": {"stem": "linear"},
    "batch norm": {"norm_layer": "batchnorm2d"},
}
"""Name -> options of the network."""


def recipe_of(arm: str, seed: int, epochs: int) -> Recipe:
    recipe = RECIPES["cifar10-pooling-short"]
    short = {"trainer.epochs": epochs, "trainer.val_every": epochs, "trainer.logger": ("csv",), "seed": seed}
    options = {**recipe.backbone.options, **ARMS[arm]}
    return recipe.override({**short, "data.root": str(DATA), "backbone.options": options})


def train(arm: str, seed: int, epochs: int, out: Path) -> str:
    folder = out / arm / f"seed-{seed}"
    recipe = recipe_of(arm, seed, epochs)
    line = run.fit(recipe, folder, resume=folder.is_dir(), progress=False, say=lambda text: None)
    return f"{arm}, seed {seed}: {line['seconds']:.0f} s"


def contributions_of(arm: str, arguments: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """What each test image adds to the balanced accuracy ``[seeds, images]``, and the images' classes."""
    correct, target = [], np.empty(0)
    for seed in range(arguments.seeds):
        with np.load(RunFolder(arguments.out / arm / f"seed-{seed}").predictions) as saved:
            chosen = int(np.abs(saved["taus"] - saved["tau"]).argmin())
            target = saved["target"]
            correct.append(saved["predicted"][chosen] == target)
    return contributions(np.stack(correct), target), target


def tables(arguments: argparse.Namespace) -> list[str]:
    parts = {arm: contributions_of(arm, arguments) for arm in ARMS}
    lines = ["| arm | adjusted balanced accuracy | minus class query, points | seconds a run |", "|---|---|---|---|"]
    for arm, (values, target) in parts.items():
        found = paired_interval(values, parts[PAPER][0], target)
        said = f"{100 * found.estimate:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]" if arm != PAPER else ""
        lines.append(f"| {arm} | {100 * values.sum(1).mean():.1f} | {said} | {seconds_of(arm, arguments):.0f} |")
    return lines


def main(argv: list[str] | None = None) -> None:
    arguments = ask(__doc__, argv, data=DATA, epochs=30)
    jobs = [(arm, seed, arguments.epochs, arguments.out) for seed, arm in product(range(arguments.seeds), ARMS)]
    carry_out(train, [jobs], workers=arguments.workers)
    print("\n".join([*tables(arguments), "", machine()]))


if __name__ == "__main__":
    main()
