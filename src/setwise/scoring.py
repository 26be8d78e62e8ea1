"""From a trained network to what a run reports: scores of a part, metrics, tables, the line of results."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from setwise.data import Split, Splits
from setwise.errors import DataError, InvalidInput, RunError
from setwise.metrics import TAUS, adjust, per_class_accuracy, predictions_over_taus
from setwise.nn.gather import gather_objects
from setwise.recipes import Recipe
from setwise.run_folder import RunFolder, write_line, write_whole, writing
from setwise.tasks import Classification

__all__ = ["Model", "class_table", "scores_of", "write_results"]


@dataclass(frozen=True)
class Model:
    """What a network must be told besides its weights; ``model.json`` of a run."""

    class_names: list[str]
    counts: list[int]
    """Training images per class."""
    group_counts: list[int]
    """The same before validation was held out."""
    mean: list[float]
    std: list[float]
    image_size: int
    tau: float = 0.0
    """Strength of logit adjustment that validation chose."""

    def __post_init__(self) -> None:
        """Refuse numbers that do not fit each other."""
        lengths = {len(self.class_names), len(self.counts), len(self.group_counts)}
        whole = (
            len(lengths) == 1 and 0 not in lengths and all(0 <= n < 2**53 for n in (*self.counts, *self.group_counts))
        )
        if not (whole and self.mean and len(self.mean) == len(self.std) and 0 < self.image_size < 2**31):
            raise InvalidInput(
                "a network has a name and two counts for each of its classes, a mean and a deviation for each channel, "
                "and an image size above 0"
            )

    @classmethod
    def of(cls, splits: Splits) -> "Model":
        """What the training data says about the network."""
        size = splits.train.image_size
        if size is None:
            height, size = _first_readable(splits.train).shape[-2:]
            if height != size:
                raise DataError(f"The images are {size} x {height} pixels: name a square with --data.image-size.")
        return cls(
            class_names=list(splits.class_names),
            counts=splits.train_counts.tolist(),
            group_counts=splits.group_counts.tolist(),
            mean=list(splits.mean),
            std=list(splits.std),
            image_size=size,
        )

    def check_classes(self, splits: Splits, path: str | Path) -> None:
        """Refuse data of other classes than those of the run in ``path``, which this describes."""
        if list(splits.class_names) != self.class_names:
            raise InvalidInput(
                f"{path} was trained on {len(self.class_names)} classes ({', '.join(self.class_names[:3])} ...), but "
                f"the data has {len(splits.class_names)} ({', '.join(splits.class_names[:3])} ...): name the folder "
                "that it was trained on (--data.root; of `setwise show` --root)."
            )


def _first_readable(split: Split) -> Tensor:
    """An image of the part; what is to be done about others is the loader's business."""
    for place in range(len(split)):
        try:
            return split.images[place]
        except DataError as error:
            problem = error
    raise problem


@torch.inference_mode()
def scores_of(task: Classification, loader: DataLoader[Any]) -> dict[str, Tensor]:
    """Scores, targets and indices of one part in its order, on the CPU; computed in the precision of the weights.

    Several processes compute a share each, and all of them get the whole.

    Returns:
        ``scores [N, K]``, ``target [N]`` or ``[N, K]``, ``index [N]``, and what else the task keeps of an image.

    Raises:
        RunError: if there is no image in the part.
    """
    task.eval()
    parts: dict[str, list[Tensor]] = {}
    for batch in loader:
        found = task.per_image(batch.image.to(task.device)) | {"target": batch.target, "index": batch.index}
        found["scores"] = found["scores"].float()
        for name, tensor in found.items():
            parts.setdefault(name, []).append(tensor.cpu())
    if not parts:
        raise RunError("There is no image to evaluate: this part of the data set is empty.")
    mine = {name: torch.cat(tensors) for name, tensors in parts.items()}
    joined = {name: torch.cat([of_rank[name] for of_rank in gather_objects(mine)]) for name in mine}
    order = joined["index"].argsort()  # a transductive evaluation is mixed
    return {name: tensor[order] for name, tensor in joined.items()}


def class_table(
    task: Classification, class_names: Sequence[str], test: dict[str, Tensor], tau: float
) -> list[dict[str, Any]]:
    """One row a class: name, training images, group, accuracy and adjusted accuracy (absent where not tested)."""
    if task.multi_label:
        return []
    raw, adjusted = (per_class_accuracy(adjust(test["scores"], task.counts, t), test["target"]) for t in (0.0, tau))
    group_of = {int(k): name for name, classes in task.groups.items() for k in classes.nonzero().flatten()}
    return [
        {
            "class": name,
            "train_images": int(task.counts[k]),
            "group": group_of[k],
            "accuracy": round(float(raw[k]), 6),
            "adjusted_accuracy": round(float(adjusted[k]), 6),
        }
        for k, name in enumerate(class_names)
    ]


def write_results(
    recipe: Recipe,
    folder: RunFolder,
    task: Classification,
    model: Model,
    *,
    val: dict[str, Tensor],
    test: dict[str, Tensor],
    seconds: float,
) -> dict[str, Any]:
    """Choose the strength of logit adjustment on validation, evaluate on test, and write what the run reports.

    Returns:
        The line of ``results.jsonl``, which is written last: its presence says that the run is complete.
    """
    tau = task.choose_tau(val["scores"], val["target"])
    metrics = task.metrics(test["scores"], test["target"], tau=tau) | task.further_metrics(test)
    saved: dict[str, Any] = {"tau": tau, "counts": task.counts, "target": test["target"], "index": test["index"]}
    saved |= {f"group_{name}": classes for name, classes in task.groups.items()}
    saved |= {f"val_{name}": value for name, value in task.metrics(val["scores"], val["target"], tau=tau).items()}
    if not task.multi_label:
        over_taus = predictions_over_taus(test["scores"], task.counts, TAUS)
        saved |= {"taus": TAUS, "predicted": over_taus.to(torch.int32)}
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in saved.items()}
    with writing(folder.predictions) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)
    write_whole(folder.model, json.dumps(asdict(replace(model, tau=tau)), indent=2) + "\n")
    if table := class_table(task, model.class_names, test, tau):
        text = io.StringIO()
        writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
        write_whole(folder.per_class, text.getvalue())
    return write_line(recipe, folder, metrics, seconds=seconds)
