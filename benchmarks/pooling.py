"""What do the attention pool and the conv stem of PatchConvNet bring? CIFAR-10-LT at 96 pixels, a small network.

  class query     the pool of the paper: one query, one head, one block
  average         the mean over patches instead
  four heads      the class query with four heads
  two blocks      two pool blocks, one on the other
  linear stem     the class query on patches that one linear layer embeds, instead of four convolutions
  batch norm      the class query on a trunk with BatchNorm instead of LayerNorm
  of 32, of 512   class query and batch norm with batches of 32 and 512 images, at the square root of the rate's ratio

Every arm runs the recipe cifar10-pooling-short over the same seeds; nothing is tuned. The table has the recipe's
primary metric (balanced accuracy after logit adjustment of a strength chosen on validation) and differences to the
class query of the same batch size with 95 % intervals over seeds and test images. A run that stands in --out is not
made again, so that a broken benchmark goes on.
"""

import argparse
import os
from itertools import product
from pathlib import Path

from arms import ask, carry_out, contributions_of, in_points, machine, seconds_of

from setwise import run
from setwise.metrics import paired_interval
from setwise.recipes import RECIPES, Recipe

DATA = Path(os.environ.get("SETWISE_DATA", Path(__file__).parents[2] / "shared" / "data")) / "cifar10-lt"
PAPER = "class query"
BATCH_NORM = {"norm_layer": "batchnorm2d"}
ARMS: dict[str, tuple[str, dict, int]] = {
    PAPER: (PAPER, {}, 128),
    "average": (PAPER, {"global_pool": "avg"}, 128),
    "four heads": (PAPER, {"num_heads": 4}, 128),
    "two blocks": (PAPER, {"depth_token_only": 2}, 128),
    "linear stem": (PAPER, {"stem": "linear"}, 128),
    "batch norm": (PAPER, BATCH_NORM, 128),
    **{
        arm: (f"class query, batches of {size}", options, size)
        for size in (32, 512)
        for arm, options in (
            (f"class query, batches of {size}", {}),
            (f"batch norm, batches of {size}", BATCH_NORM),
        )
    },
}
"""Name -> arm that it is compared with, options of the network, images of a batch."""


def recipe_of(arm: str, seed: int, epochs: int) -> Recipe:
    recipe = RECIPES["cifar10-pooling-short"]
    short = {"trainer.epochs": epochs, "trainer.val_every": epochs, "trainer.logger": ("csv",), "seed": seed}
    _, changes, batch_size = ARMS[arm]
    rate = recipe.optimizer.lr * (batch_size / recipe.data.batch_size) ** 0.5
    size = {"data.batch_size": batch_size, "optimizer.lr": rate} if batch_size != recipe.data.batch_size else {}
    options = {**recipe.backbone.options, **changes}
    return recipe.override({**short, **size, "data.root": str(DATA), "backbone.options": options})


def train(arm: str, seed: int, epochs: int, out: Path) -> str:
    folder = out / arm / f"seed-{seed}"
    recipe = recipe_of(arm, seed, epochs)
    line = run.fit(recipe, folder, resume=folder.is_dir(), progress=False, say=lambda text: None)
    return f"{arm}, seed {seed}: {line['seconds']:.0f} s"


def tables(arguments: argparse.Namespace) -> list[str]:
    parts = {arm: contributions_of(arm, arguments) for arm in ARMS}
    lines = ["| arm | adjusted balanced accuracy | minus class query, points | seconds a run |", "|---|---|---|---|"]
    for arm, (values, target) in parts.items():
        other = ARMS[arm][0]
        found = paired_interval(values, parts[other][0], target)
        said = in_points(found) if arm != other else ""
        lines.append(f"| {arm} | {100 * values.sum(1).mean():.1f} | {said} | {seconds_of(arm, arguments):.0f} |")
    return lines


def main(argv: list[str] | None = None) -> None:
    arguments = ask(__doc__, argv, data=DATA, epochs=30)
    jobs = [(arm, seed, arguments.epochs, arguments.out) for seed, arm in product(range(arguments.seeds), ARMS)]
    carry_out(train, [jobs], workers=arguments.workers)
    told = f"{arguments.epochs} epochs, seeds 0 to {arguments.seeds - 1}; {machine()}"
    print("\n".join([*tables(arguments), "", told]))


if __name__ == "__main__":
    main()
