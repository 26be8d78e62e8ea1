"""Do CrossTransformers and SimCLR episodes help on new classes? Omniglot and Tiny-ImageNet's few-shot split, small.

Of every seed one trunk (a ResNet-8 of 16 to 64 channels at 32 pixels) learns the training classes as a classifier, and
all arms start from it, with the same number of episodes and steps:

  prototypical             prototypical network
  prototypical + simclr    half of its episodes are SimCLR episodes
  prototypical + augment   SimCLR's transforms as plain augmentation of every training image
  prototypical + loss      SimCLR's loss between two views of the support images, beside the episode's
  ctx                      CrossTransformer
  ctx + simclr             CrossTransformer, half of its episodes SimCLR episodes

Training episodes are 5-way 5-shot with 10 queries a class. Every network is tested on episodes of new classes: 600
5-way 1-shot, 600 5-way 5-shot, and 600 that vary as Meta-Dataset's do, the same ones for all arms of a seed. Nothing
is tuned; the weights of the best check on validation classes are kept. Steps are alike, work is not: "loss" shows the
trunk two views of the support images more in each step. Differences are paired over seeds, with 95 % intervals over
seeds; with so few seeds they are wide. Of three arms a last table has supervision collapse: what the nine nearest
neighbours of images are, among up to 130 images of each training and test class (`setwise collapse`). A run that
stands in --out is not made again, so that a broken benchmark goes on.
"""

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from arms import carry_out, in_points, machine

from setwise import run
from setwise.build import build_episode_data
from setwise.collapse import Gallery, examine, gather_images
from setwise.data.few_shot import FewShotSplits
from setwise.episodes import episode_metrics, score_sets
from setwise.metrics import seed_interval
from setwise.recipes import RECIPES, Recipe
from setwise.run_folder import RunFolder, write_whole
from setwise.work import load_few_shot, loaders_of

DATA = Path(os.environ.get("SETWISE_DATA", Path(__file__).parents[2] / "shared" / "data"))
SETS = {"omniglot": "omniglot", "tinyimagenet-few-shot": "tinyimagenet-fewshot"}
"""Name of the set -> its folder below SETWISE_DATA."""
ARMS: dict[str, dict] = {
    "prototypical": {"head.name": "prototypical"},
    "prototypical + simclr": {"head.name": "prototypical", "episodes.simclr_fraction": 0.5},
    "prototypical + augment": {"head.name": "prototypical", "data.augment": "simclr"},
    "prototypical + loss": {"head.name": "prototypical", "episodes.contrastive_weight": 1.0},
    "ctx": {"head.name": "cross-transformer"},
    "ctx + simclr": {"head.name": "cross-transformer", "episodes.simclr_fraction": 0.5},
}
TESTS: dict[str, dict] = {
    "5-way 1-shot": {"episodes.n_way": 5, "episodes.n_shot": 1, "episodes.n_query": 10},
    "5-way 5-shot": {"episodes.n_way": 5, "episodes.n_shot": 5, "episodes.n_query": 10},
    "varying": {"episodes.n_way": None, "episodes.n_shot": None, "episodes.n_query": None},
}
DIFFERENCES = (
    ("prototypical + simclr", "prototypical"),
    ("prototypical + augment", "prototypical"),
    ("prototypical + loss", "prototypical"),
    ("ctx", "prototypical"),
    ("ctx + simclr", "ctx"),
    ("ctx + simclr", "prototypical + simclr"),
)
COLLAPSE = ("prototypical", "ctx", "ctx + simclr")
SHARES = ("same_class", "modal_wrong", "from_train", "any_correct")
PRETRAIN = "trunk"


def common(data_set: str, seed: int) -> dict:
    return {
        "data.name": data_set,
        "data.root": str(DATA / SETS[data_set]),
        "data.num_workers": 0,
        "backbone.options": {"depth": 1, "width": 16},
        "seed": seed,
        "trainer.logger": ("csv",),
    }


def trunk_recipe(data_set: str, seed: int, arguments: argparse.Namespace) -> Recipe:
    length = {"trainer.epochs": arguments.trunk_epochs, "trainer.val_every": arguments.trunk_epochs}
    augment = {"data.augment": "none"} if data_set == "omniglot" else {}  # a mirrored letter is another
    return RECIPES["tinyimagenet-pretrain"].override(common(data_set, seed) | length | augment)


def arm_recipe(data_set: str, arm: str, seed: int, trunk: Path, arguments: argparse.Namespace) -> Recipe:
    length = {"trainer.epochs": arguments.epochs, "episodes.train": arguments.episodes}
    start = {"backbone.weights": str(RunFolder(trunk).weights)}
    return RECIPES["tinyimagenet-ctx"].override(common(data_set, seed) | length | start | ARMS[arm])


def folder_of(data_set: str, arm: str, seed: int, arguments: argparse.Namespace) -> Path:
    return arguments.out / data_set / arm / f"seed-{seed}"


KEPT: dict = {}
"""What a process has read of the set that it read last, for its next run."""


def kept(what: str, data_set: str, read: Callable[[], Any]) -> Any:
    if KEPT.setdefault("set", data_set) != data_set:
        KEPT.clear()
        KEPT["set"] = data_set
    return KEPT[what] if what in KEPT else KEPT.setdefault(what, read())


def sets_of(data_set: str, arguments: argparse.Namespace) -> dict[str, FewShotSplits]:
    """The pools, which are the same for every arm and seed."""
    recipe = arm_recipe(data_set, "ctx", 0, folder_of(data_set, PRETRAIN, 0, arguments), arguments)
    return kept("sets", data_set, lambda: build_episode_data(recipe))


def gallery_of(data_set: str, arguments: argparse.Namespace) -> Gallery:
    return kept(
        "gallery", data_set, lambda: gather_images(folder_of(data_set, COLLAPSE[0], 0, arguments), per_class=130)
    )


def train(data_set: str, arm: str, seed: int, arguments: argparse.Namespace) -> str:
    folder, trunk = (folder_of(data_set, name, seed, arguments) for name in (arm, PRETRAIN))
    if arm == PRETRAIN:
        recipe = trunk_recipe(data_set, seed, arguments)
    else:
        recipe = arm_recipe(data_set, arm, seed, trunk, arguments)
    line = run.fit(recipe, folder, resume=folder.is_dir(), progress=False, say=lambda text: None)
    if arm != PRETRAIN and not (folder / "tests.json").is_file():
        task, model = load_few_shot(RunFolder(folder), recipe)
        sets = sets_of(data_set, arguments)
        found = {}
        for name, test in TESTS.items():
            loaders = loaders_of(recipe.override(test), sets, "test", model)
            found[name] = episode_metrics(score_sets(task, loaders))
        write_whole(folder / "tests.json", json.dumps(found))
    if arm in COLLAPSE and not (folder / "collapse.json").is_file():
        neighbours = examine(folder, gallery_of(data_set, arguments))
        kinds = {"test classes": neighbours.of_test, "training classes": neighbours.of_train}
        write_whole(folder / "collapse.json", json.dumps({kind: asdict(found) for kind, found in kinds.items()}))
    return f"{data_set}, {arm}, seed {seed}: {line['seconds']:.0f} s"


def accuracies(data_set: str, arm: str, test: str, arguments: argparse.Namespace) -> np.ndarray:
    files = (folder_of(data_set, arm, seed, arguments) / "tests.json" for seed in range(arguments.seeds))
    return np.array([json.loads(file.read_text())[test]["accuracy"] for file in files])


def of_seeds(values: np.ndarray) -> str:
    """Mean, lowest and highest over seeds, in percent."""
    mean, low, high = (100 * float(value) for value in (values.mean(), values.min(), values.max()))
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def shares(data_set: str, arguments: argparse.Namespace) -> list[str]:
    """What the nearest neighbours are."""
    heads = ["arm", "queries of", "same class", "one wrong class", "of training classes", "any right", "by chance same"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for arm in COLLAPSE:
        files = (folder_of(data_set, arm, seed, arguments) / "collapse.json" for seed in range(arguments.seeds))
        read = [json.loads(file.read_text()) for file in files]
        for kind in read[0]:
            cells = (of_seeds(np.array([one[kind][name] for one in read])) for name in (*SHARES, "chance_same_class"))
            lines.append(f"| {arm} | {kind} | {' | '.join(cells)} |")
    return lines


def tables(data_set: str, arguments: argparse.Namespace) -> list[str]:
    head = " | ".join(TESTS)
    lines = [
        f"### {data_set}",
        "",
        f"| arm, % of queries, mean [lowest, highest seed] | {head} |",
        "|---" * (1 + len(TESTS)) + "|",
    ]
    for arm in ARMS:
        cells = (of_seeds(accuracies(data_set, arm, test, arguments)) for test in TESTS)
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    lines += ["", f"| difference, points | {head} |", "|---" * (1 + len(TESTS)) + "|"]
    for a, b in DIFFERENCES:
        cells = []
        for test in TESTS:
            found = seed_interval(*(accuracies(data_set, arm, test, arguments) for arm in (a, b)))
            cells.append(in_points(found))
        lines.append(f"| ({a}) - ({b}) | {' | '.join(cells)} |")
    return [*lines, "", *shares(data_set, arguments), ""]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs; new, or of a broken benchmark")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS, help="data sets (default: both)")
    parser.add_argument("--trunk-epochs", type=int, default=10, help="passes of the classifier (default 10)")
    parser.add_argument("--epochs", type=int, default=10, help="checks on validation classes (default 10)")
    parser.add_argument("--episodes", type=int, default=100, help="training episodes between them (default 100)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... (default 3)")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, of one thread each (default 2)")
    arguments = parser.parse_args(argv)
    if min(arguments.epochs, arguments.episodes, arguments.trunk_epochs, arguments.workers) < 1 or arguments.seeds < 2:
        parser.error("epochs, episodes and --workers must be 1 or more, --seeds 2 or more")
    for data_set in arguments.sets:
        if not (DATA / SETS[data_set]).is_dir():
            raise SystemExit(f"There is no {DATA / SETS[data_set]}; SETWISE_DATA names the folder that holds it.")
    stages = [[PRETRAIN], list(ARMS)]
    wanted = [
        [
            (data_set, arm, seed, arguments)
            for data_set, seed, arm in product(arguments.sets, range(arguments.seeds), stage)
        ]
        for stage in stages
    ]
    carry_out(train, wanted, workers=arguments.workers)
    print("\n".join(line for data_set in arguments.sets for line in tables(data_set, arguments)))
    print(machine())


if __name__ == "__main__":
    main()
