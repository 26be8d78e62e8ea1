"""``setwise audit``: does a prediction depend on its batch-mates? Of a run with its own data, or of a model by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from setwise.cli.options import find_recipe, parse, parse_with_recipe
from setwise.errors import InvalidInput, MissingFile
from setwise.recipes import RECIPES
from setwise.run_folder import RunFolder

if TYPE_CHECKING:
    from torch import Tensor, nn

    from setwise.nn.auditing import Audit
    from setwise.tasks import Classification

__all__ = ["audit_"]

UNKNOWN_SIZE = 32
"""Side in pixels for models that do not say what they were made for: ours, which take any."""


@dataclass
class _Audit:
    """Say whether a prediction depends on the other samples of its batch, and at which module they come in.

    One image stays and its batch-mates are swapped, in evaluation and in training. Exit status: 0 if a prediction in
    evaluation does not depend on its batch-mates, 1 if it does.

    MODEL is the folder of a run (its trained network, on images of its own test part; --data.root and the like say
    where these lie here), or the name of a timm model or one of ours (random weights, random images).
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """Run folder, or name of a model; `setwise list backbones PATTERN` searches the names."""
    batch_size: int = 4
    """Images in the batch, at least 2."""
    image_size: int | None = None
    """Side of the random images in pixels; None: what the model was made for, else 32."""


@dataclass
class _AuditRun:
    """Say whether a prediction of a run depends on the other images of its batch, and at which module they come in."""

    batch_size: int = 4
    """Images of the test part in the batch, at least 2."""


def audit_(args: Sequence[str]) -> int:
    """``setwise audit MODEL``.

    Returns:
        1 if a prediction in evaluation depends on its batch-mates, else 0.
    """
    if args and Path(args[0]).is_dir():
        subject, found = _audit_run(args[0], args[1:])
    else:
        subject, found = _audit_model(parse("audit", _Audit, args))
    print(f"{subject}\n{found}")
    return int(found.evaluation.depends)


def _audit_run(name: str, args: Sequence[str]) -> "tuple[str, Audit]":
    """The network of a run as its training step uses it, on images of its test part."""
    folder = RunFolder(name)
    folder.require(folder.weights, "weights")
    options, recipe = parse_with_recipe("audit", name, _AuditRun, find_recipe(name), args)
    _check(batch_size=options.batch_size)
    from setwise.build import build_data, build_loader
    from setwise.nn import audit
    from setwise.run import load_run

    recipe, task, _ = load_run(name, recipe=recipe.override({"data.batch_size": options.batch_size}))
    batch = next(iter(build_loader(recipe, build_data(recipe), "test")))
    subject = f"{name}, {len(batch.image)} images of its test part"
    return subject, audit(_as_trained(task), (batch.image, batch.target))


def _audit_model(options: _Audit) -> "tuple[str, Audit]":
    """A model by its name, on random images."""
    name = options.model
    if Path(name).parent != Path():
        raise MissingFile(f"There is no run folder {name}.")
    if name in RECIPES:
        raise InvalidInput(
            f"{name!r} is a recipe, and only a network can be audited: a run of it (setwise train {name}, then "
            f"setwise audit runs/{name}), or a model by name (setwise audit {RECIPES[name].backbone.name})."
        )
    _check(batch_size=options.batch_size, image_size=options.image_size)
    import torch

    from setwise.models import create_backbone
    from setwise.nn import audit

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = create_backbone(name, image_size=options.image_size)
        made_for = (getattr(network, "pretrained_cfg", None) or {}).get("input_size", (UNKNOWN_SIZE,))
        size = options.image_size or made_for[-1]
        images = torch.randn(options.batch_size, 3, size, size)
    try:
        found = audit(network, images)
    except (AssertionError, RuntimeError) as error:  # what torch and timm raise
        raise InvalidInput(f"{name} does not run on images of {size} pixels ({error}). Try --image-size.") from error
    return f"{name} with random weights, {len(images)} random images of {size} pixels", found


def _as_trained(task: "Classification") -> "nn.Module":
    import torch
    from torch import nn

    from setwise.nn.attend import attend_mask

    class Network(nn.Module):
        """The task's prediction in evaluation, and in training what its step scores: plain rows, then related ones."""

        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.relation, self.head = task.backbone, task.relation, task.head

        def forward(self, image: "Tensor", target: "Tensor") -> "Tensor":
            if not self.training:
                return task(image)
            features = self.backbone(image)
            if self.relation is not None:
                order = torch.Generator().manual_seed(task.seed)
                features = self.relation(features, attend_mask(task.attend, target, generator=order))
            return self.head(features)

    return Network().eval()  # as the task is, so that no part is taken for frozen in training


def _check(*, batch_size: int, image_size: int | None = None) -> None:
    if batch_size < 2:
        raise InvalidInput(
            f"`batch-size` must be at least 2, so that an image has batch-mates, but it is {batch_size}."
        )
    if image_size is not None and image_size < 1:
        raise InvalidInput(f"`image-size` must be at least 1 pixel, but it is {image_size}.")
