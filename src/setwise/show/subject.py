"""What is shown: a trained network, how it takes images, and what its classes are called."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from setwise.data.dataset import IMAGENET_MEAN, IMAGENET_STD
from setwise.data.transforms import fit_image, fit_whole, normalise, to_grey
from setwise.errors import InvalidInput, MissingFile
from setwise.models import create_trained
from setwise.nn import AttentionPool
from setwise.nn.pool_maps import find_pool
from setwise.run import load_run

__all__ = ["Subject", "of_checkpoint", "of_run"]

DEFAULT_SIZE = 224
"""Pixels a side for models that do not say what they were made for."""


@dataclass(frozen=True)
class Subject:
    """A trained network, in evaluation, and what it must be told.

    Attributes:
        name: as it stands in titles.
        network: images -> class scores.
        class_names: in the order of the scores; None: the classes have numbers.
        mean: of pixels in 0..1, for each channel.
        std: their deviation.
        image_size: side in pixels of what it sees.
        multi_label: several classes may be right.
    """

    name: str
    network: nn.Module
    class_names: Sequence[str] | None
    mean: Sequence[float]
    std: Sequence[float]
    image_size: int
    multi_label: bool = False

    def fit(self, image: Tensor, *, whole: bool) -> Tensor:
        """An 8-bit image ``[3, h, w]`` as the network sees it, its channels and size: the central square, or all."""
        grey = len(self.mean) == 1
        if not whole:
            return to_grey(image, self.image_size) if grey else fit_image(image, self.image_size)
        image = fit_whole(image, self.image_size)
        return to_grey(image, None) if grey else image

    def normalise(self, image: Tensor) -> Tensor:
        """A batch of one for the network."""
        return normalise(image[None], mean=self.mean, std=self.std)

    def class_name(self, number: int) -> str:
        """What a class is called."""
        return f"class {number}" if self.class_names is None else self.class_names[number]


def of_run(path: Path) -> Subject:
    """The network of a run folder.

    Raises:
        MissingFile: if the folder is no finished run.
        InvalidInput: if its backbone does not pool by attention, or its predictions depend on other images.
    """
    recipe, task, model = load_run(path)
    if recipe.relation.relate_at_test:
        raise InvalidInput(
            f"{path} relates images at test (relation.relate_at_test), so a prediction is not that of one image."
        )
    if not any(isinstance(module, AttentionPool) for module in task.modules()):
        raise InvalidInput(
            f"The backbone of {path}, {recipe.backbone.name}, does not pool by attention, so there is no map to show. "
            "`setwise show` takes a run whose backbone does (--backbone.name patchconvnet_s60 and its kin, with "
            "global_pool token), or --model NAME --weights FILE."
        )
    return Subject(
        name=f"{recipe.name} ({path})",
        network=task.plain(),  # without what training has beside it, a momentum encoder's pool among it
        class_names=model.class_names,
        mean=model.mean,
        std=model.std,
        image_size=model.image_size,
        multi_label=task.multi_label,
    )


def of_checkpoint(
    name: str,
    weights: Path,
    *,
    options: Mapping[str, Any] | None = None,
    classes: Path | None = None,
    image_size: int | None = None,
    pool_heads: int = 1,
) -> Subject:
    """A network by its name in timm and its file of weights.

    Args:
        name: see :func:`setwise.models.create_trained`.
        weights: see there.
        options: see there.
        classes: text file with the name of one class a line, in the order of the scores; None: they have numbers.
        image_size: side in pixels; None: what the model was made for.
        pool_heads: see there.

    Raises:
        SetwiseError: if there is no such model or file, they do not fit, or it does not pool by attention.
    """
    network = create_trained(name, weights, image_size=image_size, options=options, pool_heads=pool_heads)
    find_pool(network)
    cfg = getattr(network, "pretrained_cfg", None) or {}
    made_for = cfg.get("input_size", (3, DEFAULT_SIZE, DEFAULT_SIZE))
    scores = getattr(network, "num_classes", None)
    names = None if classes is None else _read_names(classes)
    if names is not None and scores is not None and len(names) != scores:
        raise InvalidInput(f"{classes} names {len(names)} classes, but {name} with these weights has {scores}.")
    return Subject(
        name=f"{name} ({weights})",
        network=network,
        class_names=names,
        mean=_of_channels(cfg.get("mean", IMAGENET_MEAN), network),
        std=_of_channels(cfg.get("std", IMAGENET_STD), network),
        image_size=image_size or made_for[-1],
    )


def _of_channels(values: Sequence[float], network: nn.Module) -> Sequence[float]:
    """Those of the config, or their mean for a network of grey images."""
    return [sum(values) / len(values)] if getattr(network, "in_chans", 3) == 1 else values


def _read_names(path: Path) -> list[str]:
    if not path.is_file():
        raise MissingFile(f"There is no file of class names {path}.")
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is no text in UTF-8, but class names are one a line of such a file.") from error
