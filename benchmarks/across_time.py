"""Does a memory of past samples help small batches, and what do inducing points cost? CIFAR-10-LT, a short schedule.

For batches of 4, 8 and 16 images, all for the compute of --epochs passes over the training images:

  plain      no relation
  related    BatchFormer on the batch
  memory     BatchFormer on the batch and the last 4,096 features
  at test    the same models, predicting from what each test image makes of itself and the memory of training features
  micro      BatchFormer on 128 samples in micro-batches of the small size: one forward pass more for each image, so
             three quarters of the passes

and, with batches of 128, all to all against 64 inducing points. The learning rate is 0.1 for 128 images and
proportional to the batch; nothing is tuned. The network is a ResNet-8 (three blocks of the CIFAR ResNet), so that this
ends on two cores; BatchNorm sees the small batch in every arm but the last two.

The table has the recipe's primary metric (balanced accuracy after logit adjustment of a strength chosen on validation),
the mean over the seeds, and paired differences with 95 % intervals over seeds and test images. A run that stands in
--out is not made again, so that a broken benchmark goes on.
"""

import argparse
import os
from itertools import product
from pathlib import Path

import numpy as np
from arms import ask, carry_out, machine, seconds_of
from arms import correct_of as correct_of_run

from setwise import run
from setwise.build import build_data, build_loader
from setwise.metrics import adjust, contributions, paired_interval
from setwise.recipes import RECIPES, Recipe
from setwise.run_folder import RunFolder
from setwise.scoring import scores_of

SMALL, LARGE, MEMORY = (4, 8, 16), 128, 4096
DATA = Path(os.environ.get("SETWISE_DATA", Path(__file__).parents[2] / "shared" / "data")) / "cifar10-lt"


def arms(epochs: int) -> dict[str, dict]:
    """Name -> what it changes of the recipe; "at test" is an evaluation of "memory"."""
    found: dict[str, dict] = {}
    for size in SMALL:
        batch = {"data.batch_size": size, "optimizer.lr": 0.1 * size / LARGE, "trainer.epochs": epochs}
        found[f"plain {size}"] = batch | {"relation.name": "none"}
        found[f"related {size}"] = batch
        found[f"memory {size}"] = batch | {"relation.memory": MEMORY}
        passes = max(1, round(epochs * 3 / 4))
        found[f"micro {size}"] = {"data.batch_size": LARGE, "data.micro_batch": size, "trainer.epochs": passes}
    found["all to all"] = {"data.batch_size": LARGE, "trainer.epochs": epochs}
    found["inducing points"] = found["all to all"] | {"relation.num_inducing": 64}
    return found


DIFFERENCES = (
    *((f"{a} {size}", f"{b} {size}") for size in SMALL for a, b in (
        ("related", "plain"), ("memory", "related"), ("at test", "memory"), ("micro", "related"), ("memory", "micro"),
    )),
    ("inducing points", "all to all"),
)  # fmt: skip


def recipe_of(arm: str, seed: int, epochs: int) -> Recipe:
    short = {"trainer.val_every": 1000, "trainer.checkpoint_every": 1000, "optimizer.warmup_epochs": 1, "seed": seed}
    short |= {"data.root": str(DATA), "backbone.options": {"depth": 1}, "trainer.logger": ("csv",)}
    return RECIPES["cifar10-lt"].override(short | {"name": f"across-time-{epochs}"} | arms(epochs)[arm])


def train(arm: str, seed: int, epochs: int, out: Path) -> str:
    """One run; with a memory also its evaluation with the relation kept at test."""
    recipe, folder = recipe_of(arm, seed, epochs), out / arm / f"seed-{seed}"
    line = run.fit(recipe, folder, resume=folder.is_dir(), progress=False, say=lambda text: None)
    if arm.startswith("memory") and not (folder / "at_test.npz").is_file():
        evaluate_at_test(recipe, folder)
    return f"{arm}, seed {seed}: {line['seconds']:.0f} s"


def evaluate_at_test(recipe: Recipe, folder: Path) -> None:
    related = recipe.override({"relation.relate_at_test": True})
    _, task, _ = run.load_run(folder, recipe=related)
    splits = build_data(related)
    val, test = (scores_of(task, build_loader(related, splits, part)) for part in ("val", "test"))
    tau = task.choose_tau(val["scores"], val["target"])
    predicted = adjust(test["scores"], task.counts, tau).argmax(1)
    np.savez_compressed(folder / "at_test.npz", predicted=predicted, target=test["target"])


def correct_of(arm: str, seed: int, out: Path) -> tuple[np.ndarray, np.ndarray]:
    """Which test images were predicted rightly after the adjustment, and their classes."""
    if arm.startswith("at test"):
        with np.load(out / arm.replace("at test", "memory") / f"seed-{seed}" / "at_test.npz") as saved:
            return saved["predicted"] == saved["target"], saved["target"]
    return correct_of_run(RunFolder(out / arm / f"seed-{seed}"))


def contributions_of(arm: str, seeds: int, out: Path) -> tuple[np.ndarray, np.ndarray]:
    found = [correct_of(arm, seed, out) for seed in range(seeds)]
    return contributions(np.stack([correct for correct, _ in found]), found[0][1]), found[0][1]


def tables(arguments: argparse.Namespace) -> list[str]:
    names = list(dict.fromkeys(name for pair in DIFFERENCES for name in pair))
    parts = {name: contributions_of(name, arguments.seeds, arguments.out) for name in names}
    lines = ["| arm | adjusted balanced accuracy | seconds a run |", "|---|---|---|"]
    for name, (values, _) in parts.items():
        spent = "" if name.startswith("at test") else f"{seconds_of(name, arguments):.0f}"
        lines.append(f"| {name} | {100 * values.sum(1).mean():.1f} | {spent} |")
    lines += ["", "| difference | points | 95 % interval |", "|---|---|---|"]
    for a, b in DIFFERENCES:
        found = paired_interval(parts[a][0], parts[b][0], parts[a][1])
        lines.append(f"| {a} - {b} | {100 * found.estimate:+.1f} | [{100 * found.low:+.1f}, {100 * found.high:+.1f}] |")
    return lines


def main(argv: list[str] | None = None) -> None:
    arguments = ask(__doc__, argv, data=DATA, epochs=4)
    wanted = product(range(arguments.seeds), arms(arguments.epochs))
    jobs = [(arm, seed, arguments.epochs, arguments.out) for seed, arm in wanted]
    carry_out(train, [jobs], workers=arguments.workers)
    print("\n".join([*tables(arguments), "", machine()]))


if __name__ == "__main__":
    main()
