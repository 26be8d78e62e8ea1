"""Supervision collapse: do images of classes that were never trained on lie beside their own kind, or beside others'?

A network that was told only to keep its training classes apart may throw away what tells new classes apart. Then the
nearest neighbours of a new class's image are of one wrong class, mostly of training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from setwise.build import build_episode_data, training_sources
from setwise.data.few_shot import FewShotSplits, Pool, one_size, read_squashed
from setwise.data.transforms import normalise
from setwise.errors import DataError, InvalidInput
from setwise.metrics import Collapse, collapse, nearest
from setwise.recipes import Recipe, yaml_file
from setwise.run_folder import RunFolder
from setwise.seeds import generator
from setwise.tasks import FewShot
from setwise.work import load_few_shot

__all__ = ["Found", "Gallery", "examine", "gather_images"]

IMAGES_AT_ONCE = 256
"""Paper, supplement: batches of 256 images."""


@dataclass(frozen=True)
class Gallery:
    """The images to look among: some of every training and test class of a few-shot set, the same for every run."""

    images: UInt8[Tensor, "N 3 h w"]
    target: Int64[Tensor, "N"]
    """Training classes first."""
    class_names: tuple[str, ...]
    num_trained: int
    """Training classes."""
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def trained(self) -> Tensor:
        """Whether each image is of a training class ``[N]``."""
        return self.target < self.num_trained


@dataclass(frozen=True)
class Found:
    """What one network's neighbours are."""

    name: str
    of_test: Collapse
    """For queries of test classes."""
    of_train: Collapse
    """The control: for queries of training classes, whose neighbours should be right."""
    shown: Int64[Tensor, "q"]
    """Queries to look at, the same for every network."""
    neighbours: Int64[Tensor, "q K"]
    """Theirs."""
    episodes: str
    """What the network was trained on, as a clause: of related classes little must keep its distance."""


def gather_images(path: Path, *, root: str | None = None, per_class: int, seed: int = 0) -> Gallery:
    """Up to ``per_class`` images of every training and test class of the set that a run was trained on.

    Of a run on several sets the first of them.

    Args:
        path: folder of a few-shot run.
        root: where the data lies; None: where it lay in training.
        per_class: paper: 130, a tenth of ImageNet's.
        seed: draws the images.

    Raises:
        InvalidInput: if the run is of another task.
        DataError: naming an image that cannot be read.
    """
    recipe = _recipe(RunFolder(path))
    if root is not None:
        recipe = recipe.override({"data.root": root})
    splits = next(iter(training_sources(recipe, build_episode_data(recipe)).values()))
    size = recipe.data.image_size or one_size(splits.train)
    parts = [_some_of(splits, part, per_class, size, seed) for part in ("train", "test")]
    trained = splits.train.num_classes
    return Gallery(
        images=torch.cat([images for images, _ in parts]),
        target=torch.cat([parts[0][1], parts[1][1] + trained]),
        class_names=(*splits.train.class_names, *splits.test.class_names),
        num_trained=trained,
        mean=splits.mean,
        std=splits.std,
    )


def _recipe(folder: RunFolder) -> Recipe:
    recipe = yaml_file.read(folder.require(folder.recipe, "recipe"))
    if recipe.task != "few-shot":
        raise InvalidInput(f"{folder.path} is a {recipe.task} run; collapse is looked for in few-shot runs.")
    return recipe


def _some_of(splits: FewShotSplits, part: str, per_class: int, image_size: int, seed: int) -> tuple[Tensor, Tensor]:
    pool: Pool = getattr(splits, part)
    order = torch.randperm(len(pool), generator=generator(seed, "collapse", part))
    taken = torch.cat([order[pool.target[order] == label][:per_class] for label in range(pool.num_classes)])
    images, problems = read_squashed(pool.images, taken, image_size)
    if problems:
        raise DataError(f"{problems[0]}. Repair it or leave it out of the set.")
    return images, pool.target[taken]


def examine(
    path: Path,
    gallery: Gallery,
    *,
    num_neighbours: int = 9,
    queries: int = 1000,
    shown: int = 4,
    batch_moments: bool = False,
    seed: int = 0,
) -> Found:
    """Embed the gallery with a run's trunk, and look at the neighbours of its images.

    Args:
        path: folder of a few-shot run.
        gallery: what to look among.
        num_neighbours: of each query. Paper: 9.
        queries: at most so many of test and of training classes each, drawn by the seed.
        shown: of the test classes' queries, so many are kept to be looked at.
        batch_moments: normalise by the moments of each batch, as the paper does, instead of the running averages. It
            lets images of a batch see each other.
        seed: draws queries, and with ``batch_moments`` the batches.

    Raises:
        InvalidInput: if the run is of another task, or a number is out of range.
    """
    for name, value in (("queries", queries), ("shown", shown)):
        if value < 1:
            raise InvalidInput(f"`{name}` must be at least 1, but it is {value}.")
    folder = RunFolder(path)
    recipe = _recipe(folder)
    task, _ = load_few_shot(folder, recipe)
    features = embed(task, gallery, batch_moments=batch_moments, seed=seed)
    found: dict[bool, tuple[Collapse, Tensor, Tensor]] = {}
    for of_train in (False, True):
        places = (gallery.trained == of_train).nonzero()[:, 0]
        drawn = torch.randperm(len(places), generator=generator(seed, "queries"))[:queries]
        chosen = places[drawn]
        neighbours = nearest(features, chosen, num_neighbours=num_neighbours)
        found[of_train] = (collapse(neighbours, chosen, gallery.target, gallery.trained), chosen, neighbours)
    of_test, chosen, neighbours = found[False]
    name = f"{recipe.name} ({path})"
    return Found(name, of_test, found[True][0], chosen[:shown], neighbours[:shown], _episodes_of(recipe))


def _episodes_of(recipe: Recipe) -> str:
    episodes = recipe.episodes
    classes = "as many classes as are drawn" if episodes.n_way is None else f"{episodes.n_way} classes"
    related = "drawn from the whole training set (episodes.hierarchy false)"
    if episodes.hierarchy:
        related = "related where the data has a hierarchy (episodes.hierarchy)"
    if episodes.hierarchy and episodes.ignore_hierarchy:
        related += f", which {100 * episodes.ignore_hierarchy:g} % of the episodes ignore (episodes.ignore_hierarchy)"
    simclr = f"; {100 * episodes.simclr_fraction:g} % were SimCLR episodes" if episodes.simclr_fraction else ""
    return f"trained on episodes of {classes}, {related}{simclr}"


@torch.no_grad()
def embed(task: FewShot, gallery: Gallery, *, batch_moments: bool, seed: int) -> Float[Tensor, "N C"]:
    """Pooled features of all images, in float32.

    Args:
        task: whose trunk is used; a run's network, in evaluation.
        gallery: the images.
        batch_moments: see :func:`examine`; the images are then mixed, so that a batch has many classes.
        seed: mixes them.
    """
    number = len(gallery.images)
    order = torch.randperm(number, generator=generator(seed, "batches")) if batch_moments else torch.arange(number)
    norms = [module for module in task.trunk.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:  # and nothing else: dropout is not part of the question
        norm.train(batch_moments)
    state = {name: value.clone() for name, value in task.trunk.state_dict().items()}
    parts = []
    for places in order.split(IMAGES_AT_ONCE):
        image = normalise(gallery.images[places], mean=gallery.mean, std=gallery.std)
        parts.append(task.trunk(image.to(task.device)).float().mean((2, 3)).cpu())
    task.trunk.load_state_dict(state)  # running averages, which took part in training mode
    for norm in norms:
        norm.eval()
    return torch.cat(parts)[torch.argsort(order)]


def rows(found: Sequence[Found]) -> list[tuple[str, str, Collapse]]:
    """One row a network and kind of query: name, kind, shares."""
    return [
        (one.name, kind, shares)
        for one in found
        for kind, shares in (("test classes", one.of_test), ("training classes", one.of_train))
    ]
