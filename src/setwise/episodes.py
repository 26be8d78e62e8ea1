"""From a trained few-shot network to what a run reports: scores of episodes, metrics, the line of results."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from setwise.data.few_shot import FewShotSplits, one_size
from setwise.errors import RunError
from setwise.nn.gather import gather_objects
from setwise.recipes import Recipe
from setwise.run_folder import RunFolder, write_line, write_whole, writing
from setwise.tasks import EpisodeScore, FewShot

__all__ = ["EpisodicModel", "episode_metrics", "episode_scores", "score_sets", "write_episode_results"]


@dataclass(frozen=True)
class EpisodicModel:
    """What a few-shot network must be told besides its weights; ``model.json`` of a run."""

    mean: list[float]
    std: list[float]
    image_size: int

    @classmethod
    def of(cls, splits: FewShotSplits, image_size: int | None) -> "EpisodicModel":
        """What the training images say about the network; ``image_size`` is the recipe's."""
        return cls(mean=list(splits.mean), std=list(splits.std), image_size=image_size or one_size(splits.train))


@torch.inference_mode()
def episode_scores(task: FewShot, loader: DataLoader[Any]) -> list[EpisodeScore]:
    """Every episode of one part, in their order; several processes score a share each, and all get the whole.

    Raises:
        RunError: if there is no episode.
    """
    task.eval()
    with task.keeping_maps():
        mine = [task.score(task.transfer_batch_to_device(batch, task.device, 0)) for batch in loader]
    loader._iterator = None  # ends its readers, of which each of ten sets would keep some
    every = {score.index: score for part in gather_objects(mine) for score in part}
    if not every:
        raise RunError("There is no episode to evaluate.")
    return [every[index] for index in sorted(every)]


def score_sets(task: FewShot, loaders: Mapping[str, DataLoader[Any]]) -> dict[str, list[EpisodeScore]]:
    """Every episode of several parts or sets, by their names."""
    return {name: episode_scores(task, loader) for name, loader in loaders.items()}


def episode_metrics(found: Mapping[str, Sequence[EpisodeScore]]) -> dict[str, float]:
    """Mean accuracy and half of its 95 % interval; of several sets of each, and the mean over sets.

    >>> score = EpisodeScore(0, 0.5, 5, 5)
    >>> episode_metrics({"omniglot": [score]})
    {'accuracy': 0.5, 'accuracy_interval': 0.0}
    >>> sorted(episode_metrics({"omniglot": [score], "birds": [score]}))[:3]
    ['accuracy', 'accuracy/birds', 'accuracy/omniglot']
    """
    of_sets = {name: FewShot.metrics(scores) for name, scores in found.items()}
    if len(of_sets) == 1:
        return next(iter(of_sets.values()))
    halves = [metrics["accuracy_interval"] for metrics in of_sets.values()]
    metrics = {
        "accuracy": sum(metrics["accuracy"] for metrics in of_sets.values()) / len(of_sets),
        "accuracy_interval": math.sqrt(sum(half**2 for half in halves)) / len(of_sets),
    }
    return metrics | {f"{metric}/{name}": value for name, m in of_sets.items() for metric, value in m.items()}


def write_episode_results(
    recipe: Recipe,
    folder: RunFolder,
    model: EpisodicModel,
    *,
    val: Sequence[EpisodeScore],
    tests: Mapping[str, Sequence[EpisodeScore]],
    seconds: float,
) -> dict[str, Any]:
    """Write every episode's accuracy, the model file, and the line of results last.

    Args:
        recipe: of the run.
        folder: of the run.
        model: what the network must be told.
        val: validation episodes.
        tests: test episodes of each set, by its name.
        seconds: the run took.
    """
    saved: dict[str, Any] = {f"val_{name}": value for name, value in FewShot.metrics(val).items()}
    for of, scores in (("val", val), *((f"test/{name}", scores) for name, scores in tests.items())):
        saved[f"{of}_episode_accuracy"] = [score.accuracy for score in scores]
        saved[f"{of}_num_classes"] = [score.num_classes for score in scores]
        saved[f"{of}_num_support"] = [score.num_support for score in scores]
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in saved.items()}
    with writing(folder.predictions) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)
    write_whole(folder.model, json.dumps(asdict(model), indent=2) + "\n")
    return write_line(recipe, folder, episode_metrics(tests), seconds=seconds)
