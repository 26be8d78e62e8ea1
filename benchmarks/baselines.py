"""Plain baselines on CIFAR-100-LT, without any relation: what a gain would have to be measured against.

  cross-entropy       and, from the same runs, post-hoc logit adjustment: the column "adjusted"
  weight decay        ten times the usual one at a tenth of the rate
  mixup               alpha 1
  balanced softmax
  max-norm            weight decay, then its classifier with class weights and a longest class weight
  GLMC                mixup and CutMix drawn to each other, a classifier that leans towards rare classes
  GLMC, max-norm      the latter's second stage on it

Every arm runs its recipe (cifar100-lt and its kin) with the usual ResNet-32 over the same seeds, with the schedule
shortened; nothing is tuned.
A second stage starts from the run of its first arm. Raw balanced accuracy is that of the scores as they are, the
adjusted one that after a logit adjustment whose strength each run chooses on validation; the difference is of the
adjusted one to cross-entropy, with a 95 % interval over seeds and test images. The last column has the literature's
accuracy at full length, on the whole official test set. A run that stands in --out is not made again, so that a broken
benchmark goes on.
"""

import argparse
import os
from itertools import product
from pathlib import Path

from arms import ask, carry_out, contributions_of, in_points, machine, mean_of, seconds_of

from setwise import run
from setwise.metrics import paired_interval
from setwise.recipes import RECIPES, Recipe
from setwise.run_folder import RunFolder

DATA = Path(os.environ.get("SETWISE_DATA", Path(__file__).parents[2] / "shared" / "data")) / "cifar100-lt"
ARMS = {
    "cross-entropy": "cifar100-lt",
    "weight decay": "cifar100-lt-weight-decay",
    "mixup": "cifar100-lt-mixup",
    "balanced softmax": "cifar100-lt-balanced-softmax",
    "max-norm": "cifar100-lt-max-norm",
    "GLMC": "cifar100-lt-glmc",
    "GLMC, max-norm": "cifar100-lt-glmc-max-norm",
}
"""Arm -> recipe."""
AFTER = {"max-norm": "weight decay", "GLMC, max-norm": "GLMC"}
"""Second stage -> arm that is its first."""
FIRST = "cross-entropy"
LITERATURE = {
    "cross-entropy": "38 to 39",
    "weight decay": "46.1 (tuned; ResNet-34)",
    "balanced softmax": "50.8 (AutoAugment, 13,000 iterations of 512)",
    "max-norm": "about 53 (ResNet-34)",
    "GLMC": "58.0 (four times the channels)",
    "GLMC, max-norm": "58.4 (four times the channels)",
}
"""Percent."""
RAW = "balanced_accuracy"
WARMUP = 2
"""Epochs, of every arm."""


def recipe_of(arm: str, seed: int, epochs: int, out: Path) -> Recipe:
    recipe = RECIPES[ARMS[arm]].as_variant("plain")
    shared = {"trainer.precision": "bf16-mixed", "trainer.logger": ("csv",), "seed": seed, "data.root": str(DATA)}
    shared |= {"trainer.channels_last": True}  # takes a quarter of the time off on a CPU
    shared |= {"backbone.options": {}}  # GLMC's too has the channels of all others
    if arm in AFTER:
        first = RunFolder(out / AFTER[arm] / f"seed-{seed}")
        return recipe.override(shared | {"before.recipe": None, "backbone.weights": str(first.weights)})
    short = {"trainer.epochs": epochs, "trainer.val_every": epochs, "optimizer.warmup_epochs": WARMUP}
    return recipe.override(shared | short)


def train(arm: str, seed: int, epochs: int, out: Path) -> str:
    folder = out / arm / f"seed-{seed}"
    recipe = recipe_of(arm, seed, epochs, out)
    line = run.fit(recipe, folder, resume=folder.is_dir(), progress=False, say=lambda text: None)
    return f"{arm}, seed {seed}: {line['seconds']:.0f} s"


def tables(arguments: argparse.Namespace) -> list[str]:
    heads = [
        "arm",
        "raw",
        "adjusted",
        f"adjusted - that of {FIRST}, points",
        "seconds a run",
        "literature, full length",
    ]
    lines = [f"| {' | '.join(heads)} |", f"|{len(heads) * '---|'}"]
    first, target = contributions_of(FIRST, arguments)
    for arm in arguments.arms:
        values, _ = contributions_of(arm, arguments)
        found = paired_interval(values, first, target)
        said = in_points(found) if arm != FIRST else ""
        raw = mean_of(arm, arguments, lambda line: line["metrics"][RAW])
        cells = [arm, f"{100 * raw:.1f}", f"{100 * values.sum(1).mean():.1f}", said]
        lines.append(f"| {' | '.join([*cells, f'{seconds_of(arm, arguments):.0f}', LITERATURE.get(arm, '')])} |")
    return lines


def main(argv: list[str] | None = None) -> None:
    arguments = ask(__doc__, argv, data=DATA, epochs=30, arms=ARMS)
    if missing := {FIRST, *(AFTER.get(arm, arm) for arm in arguments.arms)} - {*arguments.arms}:
        raise SystemExit(f"These need {' and '.join(sorted(missing))} among the --arms as well.")
    pairs = product(range(arguments.seeds), arguments.arms)
    jobs = [(arm, seed, arguments.epochs, arguments.out) for seed, arm in pairs]
    stages = [[job for job in jobs if (job[0] in AFTER) is second] for second in (False, True)]
    carry_out(train, stages, workers=arguments.workers)
    told = f"{arguments.epochs} epochs, seeds 0 to {arguments.seeds - 1}; {machine()}"
    print("\n".join([*tables(arguments), "", told]))


if __name__ == "__main__":
    main()
