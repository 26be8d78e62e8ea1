"""Which of BatchFormer's settings matter on CIFAR-100-LT? Each changed alone, against a control of the same setting.

  base                as in the paper: one layer, four heads, dropout 0.5, batches of 128, one classifier for both
  layers 2, layers 4  more layers
  heads 1, heads 16   other numbers of heads
  dropout 0, 0.1      in the layer
  batch 32, batch 512 images that see each other, at a learning rate proportional to the batch
  rate x0.1, x10      the layer's learning rate over the network's
  replaced            features are replaced by related ones in training, so that the classifier sees no plain stream
                      (what the official RIDE code does on the large sets)

A control's relation may attend to itself alone and is otherwise alike, so that the difference is what comes from
others. The network is a ResNet-8 (three blocks of the CIFAR ResNet), so that this ends on two cores; nothing is tuned.
The table has the recipe's primary metric (balanced accuracy after logit adjustment of a strength chosen on validation)
and related minus control with 95 % intervals over seeds and test images. Twelve differences are twelve chances to be
wrong: one column says which differs from zero after Holm's correction. A run that stands in --out is not made again,
so that a broken benchmark goes on.
"""

import argparse
import os
from itertools import product
from pathlib import Path

from arms import ask, carry_out, contributions_of, in_points, machine, seconds_of

from setwise import run
from setwise.metrics import holm, paired_interval
from setwise.recipes import RECIPES, Recipe

DATA = Path(os.environ.get("SETWISE_DATA", Path(__file__).parents[2] / "shared" / "data")) / "cifar100-lt"
BATCH, RATE = 128, 0.1
SETTINGS: dict[str, dict] = {
    "base": {},
    "layers 2": {"relation.num_layers": 2},
    "layers 4": {"relation.num_layers": 4},
    "heads 1": {"relation.num_heads": 1},
    "heads 16": {"relation.num_heads": 16},
    "dropout 0": {"relation.dropout": 0.0},
    "dropout 0.1": {"relation.dropout": 0.1},
    **{f"batch {size}": {"data.batch_size": size, "optimizer.lr": RATE * size / BATCH} for size in (32, 512)},
    "rate x0.1": {"relation.lr_multiplier": 0.1},
    "rate x10": {"relation.lr_multiplier": 10.0},
    "replaced": {"relation.official_replace": True},
}
"""Name -> what it changes of the recipe."""
WHO = {"related": "all", "control": "self"}


def recipe_of(setting: str, who: str, seed: int, epochs: int) -> Recipe:
    short = {"trainer.epochs": epochs, "trainer.val_every": epochs, "trainer.logger": ("csv",), "seed": seed}
    short |= {"optimizer.warmup_epochs": 1, "data.root": str(DATA), "backbone.options": {"depth": 1}}
    base = {"data.batch_size": BATCH, "optimizer.lr": RATE, "relation.attend": WHO[who], "name": f"ablation-{epochs}"}
    return RECIPES["cifar100-lt-short"].override(short | base | SETTINGS[setting])


def train(setting: str, who: str, seed: int, epochs: int, out: Path) -> str:
    folder = out / f"{setting} {who}" / f"seed-{seed}"
    recipe = recipe_of(setting, who, seed, epochs)
    line = run.fit(recipe, folder, resume=folder.is_dir(), progress=False, say=lambda text: None)
    return f"{setting}, {who}, seed {seed}: {line['seconds']:.0f} s"


def tables(arguments: argparse.Namespace) -> list[str]:
    heads = ["setting", "related", "control", "related - control, points", "after Holm", "seconds a run"]
    lines = [f"| {' | '.join(heads)} |", f"|{len(heads) * '---|'}"]
    rows, p_values = {}, {}
    for setting in SETTINGS:
        (related, target), (control, _) = (contributions_of(f"{setting} {who}", arguments) for who in WHO)
        found = paired_interval(related, control, target)
        cells = [*(f"{100 * values.sum(1).mean():.1f}" for values in (related, control))]
        cells.append(in_points(found))
        rows[setting], p_values[setting] = cells, found.p
    for setting, p in holm(p_values).items():
        seconds = f"{seconds_of(f'{setting} related', arguments):.0f}"
        said = "differs" if p < 0.05 else "no difference"
        lines.append(f"| {' | '.join([setting, *rows[setting], said, seconds])} |")
    return lines


def main(argv: list[str] | None = None) -> None:
    arguments = ask(__doc__, argv, data=DATA, epochs=10)
    wanted = product(range(arguments.seeds), SETTINGS, WHO)
    jobs = [(setting, who, seed, arguments.epochs, arguments.out) for seed, setting, who in wanted]
    carry_out(train, [jobs], workers=arguments.workers)
    told = f"{arguments.epochs} epochs, seeds 0 to {arguments.seeds - 1}; {machine()}"
    print("\n".join([*tables(arguments), "", told]))


if __name__ == "__main__":
    main()
