"""From a trained few-shot network to what a run reports: scores of episodes, metrics, the line of results."""

import json
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

__all__ = ["EpisodicModel", "episode_scores", "write_episode_results"]


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
    mine = [task.score(task.transfer_batch_to_device(batch, task.device, 0)) for batch in loader]
    every = {score.index: score for part in gather_objects(mine) for score in part}
    if not every:
        raise RunError("There is no episode to evaluate.")
    return [every[index] for index in sorted(every)]


def write_episode_results(
    recipe: Recipe,
    folder: RunFolder,
    model: EpisodicModel,
    found: Mapping[str, Sequence[EpisodeScore]],
    *,
    seconds: float,
) -> dict[str, Any]:
    """Write every episode's accuracy, the model file, and the line of results last.

    Args:
        recipe: of the run.
        folder: of the run.
        model: what the network must be told.
        found: scores of ``val`` and ``test``.
        seconds: the run took.
    """
    saved: dict[str, Any] = {}
    for name, scores in found.items():
        saved[f"{name}_episode_accuracy"] = [score.accuracy for score in scores]
        saved[f"{name}_num_classes"] = [score.num_classes for score in scores]
        saved[f"{name}_num_support"] = [score.num_support for score in scores]
    saved |= {f"val_{name}": value for name, value in FewShot.metrics(found["val"]).items()}
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in saved.items()}
    with writing(folder.predictions) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)
    write_whole(folder.model, json.dumps(asdict(model), indent=2) + "\n")
    return write_line(recipe, folder, FewShot.metrics(found["test"]), seconds=seconds)
