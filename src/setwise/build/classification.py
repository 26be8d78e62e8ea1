"""A classification recipe -> data, loaders and task.

Weights of every part are drawn from their own key, so the plain, related and control model of one seed start from the
same backbone and head.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from setwise.build.checks import OF_META, check, check_experts
from setwise.build.parts import Say, drawn_from, load_data, make_backbone, normalised, optimizer_factory
from setwise.data import DATASETS, Loader, Splits, make_loader
from setwise.data.few_shot import FEW_SHOT, classes_of_training
from setwise.errors import InvalidInput, choose
from setwise.losses import CRITERIA, Criterion, class_weights
from setwise.metrics import by_count, by_rank
from setwise.models import (
    LearnableScale,
    RoutedExperts,
    TauNormalized,
    create_head,
    feature_dim,
    load_classifier,
    norm_between,
)
from setwise.nn import BatchFormer, ExpertBatchFormer, MomentumContrast
from setwise.nn.attend import make_control, make_uniform
from setwise.recipes import Recipe, schema
from setwise.tasks import Classification, Distilled, MetaSampled, Mixtures, Routing

__all__ = ["WITHOUT_RELATION", "build_data", "build_loader", "build_task"]

PARTS = ("train", "val", "test")
WITHOUT_RELATION = ("routed", "tau")
"""Heads on features that do not change any more: the relation did its work in the stage before."""
OF_BATCHES = ("batch_size", "micro_batch", "mixup", "cutmix", "sampler", *OF_META)
SERVED_BY_THE_LOADER = ("name", "augment", "views", "normalise", "num_workers", "on_error", *OF_BATCHES)


def build_data(recipe: Recipe) -> Splits:
    """Load the recipe's data set, split by its seed.

    Of a few-shot set these are the training classes, with validation and test images of their own: what a trunk is
    trained on before episodes. Where the test part selects (``select_on``), it is the validation part as well, and what
    would have been held out of train stays there.

    Raises:
        InvalidInput: if a field is set that this data set does not have.
        SetwiseError: whatever is wrong with the files.
    """
    name = recipe.data.name
    choose(name, [*DATASETS, *FEW_SHOT], "data set")
    if name in FEW_SHOT:
        if recipe.select_on == "test":
            raise InvalidInput(f"`select_on` test is of sets with a test part of their own, and {name} is few-shot.")
        return _of_few_shot(recipe, name)
    splits = normalised(recipe, load_data(recipe, name, DATASETS[name].load, unused=SERVED_BY_THE_LOADER))
    if recipe.select_on == "val":
        return splits
    note = "The test part selects (select_on): nothing is held out of train, and validation is the test part."
    return replace(splits, val=splits.test, val_from_train=False, val_by_seed=False, notes=(*splits.notes, note))


def _of_few_shot(recipe: Recipe, name: str) -> Splits:
    """The training classes; images that cannot be read are left out as they are read from their files."""
    skips = recipe.data.on_error == "skip"
    if skips and recipe.data.cache == "memory":
        raise InvalidInput(
            f"--data.on-error skip leaves images of {name} out as they are read from their files, which --data.cache "
            "memory forbids: leave out one of them."
        )
    if skips:
        recipe = recipe.override({"data.cache": "files"})
    pools = load_data(recipe, name, FEW_SHOT[name].load, unused=SERVED_BY_THE_LOADER)
    splits = normalised(recipe, classes_of_training(pools, seed=recipe.seed))
    note = "Images stay in their files, so that those that cannot be read are left out (on_error skip)."
    return replace(splits, notes=(*splits.notes, note)) if skips else splits


def build_loader(recipe: Recipe, splits: Splits, part: str, *, mixed: bool = False) -> Loader:
    """The batches of one part: ``train`` shuffled and augmented, the others as they are.

    They come in order, or mixed where predictions depend on the batch (``relation.relate_at_test``).

    Args:
        recipe: names augmentation, mixing, batch size and image size.
        splits: from :func:`build_data`.
        part: train, val or test.
        mixed: val and test in one fixed random order, whatever the recipe says.
    """
    data = recipe.data
    return make_loader(
        getattr(splits, choose(part, PARTS, "part")),
        batch_size=data.batch_size,
        transform=data.augment,
        views=data.views,
        mean=splits.mean,
        std=splits.std,
        seed=recipe.seed,
        train=part == "train",
        num_workers=data.num_workers,
        mixup=data.mixup,
        cutmix=data.cutmix,
        sampler="class-aware" if data.sampler == "meta" else data.sampler,
        epochs=recipe.trainer.epochs,
        num_classes=len(splits.class_names),
        # Predictions that depend on the batch must not have one that is all of one class.
        mixed=mixed or (recipe.relation.relate_at_test and not recipe.relation.memory),
        on_error=data.on_error,
    )


def build_task(
    recipe: Recipe,
    *,
    counts: torch.Tensor,
    group_counts: torch.Tensor,
    class_names: tuple[str, ...],
    in_chans: int,
    image_size: int,
    teacher: nn.Module | None = None,
    say: Say = print,
) -> Classification:
    """Network, loss and optimizer of a recipe.

    Args:
        recipe: what to build.
        counts: training images per class ``[K]``.
        group_counts: the same before validation was held out ``[K]``; what many-, medium- and few-shot are defined on.
        class_names: their names, in label order.
        in_chans: channels of the images.
        image_size: side of the images in pixels, for backbones whose size is fixed when they are built.
        teacher: images -> scores, which are to be matched beside the labels.
        say: told which of one's own weights did not load.
    """
    check(recipe)
    size = {"in_chans": in_chans, "image_size": image_size}
    backbone = make_backbone(recipe, num_classes=len(class_names), say=say, **size)
    dim = feature_dim(backbone, **size)
    num_experts = getattr(backbone, "num_experts", 1)
    check_experts(recipe, num_experts)
    groups = by_rank if recipe.groups.by == "rank" else by_count
    kind = _kind(recipe, dim, teacher)
    head = _head(recipe, dim, num_experts, len(class_names), say)
    with drawn_from(recipe.seed, "task"):  # what a task has beside these parts
        return kind(
            backbone,
            head,
            _criterion(recipe, counts, class_names),
            None if recipe.head.name in WITHOUT_RELATION else _relation(recipe, dim, num_experts),
            contrast=_contrast(recipe, backbone, dim),
            optimizer=optimizer_factory(recipe),
            counts=counts,
            groups=groups(group_counts, many=recipe.groups.many, few=recipe.groups.few),
            attend=recipe.relation.attend,
            replace=recipe.relation.official_replace,
            replicas=recipe.relation.official_replicas,
            **_loss_weights(recipe),
            relate_at_test=recipe.relation.relate_at_test,
            multi_label=recipe.data.multi_label,
            frozen=recipe.backbone.frozen,
            max_norm=_longest(recipe, head),
            micro_batch=recipe.data.micro_batch,
            seed=recipe.seed,
        )


def _kind(recipe: Recipe, dim: int, teacher: nn.Module | None) -> Callable[..., Classification]:
    """The task, with what it takes beside the parts of every classifier."""
    if teacher is not None:
        return partial(Distilled, teacher=teacher, temperature=recipe.criterion.teacher_temperature)
    if recipe.criterion.name == "glmc":
        return partial(Mixtures, dim=dim, epochs=recipe.trainer.epochs)
    if recipe.data.sampler == "meta":
        part = recipe.data
        return partial(MetaSampled, pool=part.meta_pool, rate=part.meta_rate, power=part.meta_power)
    return Routing if recipe.head.name == "routed" else Classification


def _head(recipe: Recipe, dim: int, num_experts: int, num_classes: int, say: Say) -> nn.Module:
    part, weights = recipe.head, recipe.backbone.weights
    with drawn_from(recipe.seed, "head"):
        options: dict[str, Any] = {"scale": part.scale, "top_k": part.top_k, "num_experts": num_experts}
        head = create_head(part.name, dim, num_classes, **options)
    if isinstance(head, LearnableScale | RoutedExperts | TauNormalized) and weights:
        head.start_from(weights)
    if part.from_weights and weights:  # a run that is over has its own
        load_classifier(head, weights)
        say(f"{weights} -> head: its classifier")
    return head


def _longest(recipe: Recipe, head: nn.Module) -> float | None:
    """The longest weight that a class may have; a share is one of what training begins with."""
    share = recipe.head.max_norm_share
    if share is None or not recipe.backbone.weights:
        return recipe.head.max_norm
    return norm_between(cast(nn.Linear, head), share)


def _loss_weights(recipe: Recipe) -> dict[str, float]:
    """Weight of the related stream, and how often the loss counts."""
    part = recipe.relation
    ways = ("triple_loss", "sum", "small_related", "replace")
    official = {name for name in ways if getattr(part, f"official_{name}")}
    if len(official) > 1 or (official and part.related_weight != 1):
        raise InvalidInput(
            "`relation.official_triple_loss`, `.official_sum`, `.official_small_related` and `.official_replace` are "
            f"ways to weigh the streams, and `.related_weight` ({part.related_weight:g}) is one more: take one of them."
        )
    if part.official_small_related:  # 1.01 plain + 0.01 related
        return {"related_weight": 0.01 / 1.01, "loss_factor": 1.02}
    factor = 3.0 if part.official_triple_loss else 2.0 if part.official_sum else 1.0
    return {"related_weight": part.related_weight, "loss_factor": factor}


def _relation(recipe: Recipe, dim: int, num_experts: int) -> BatchFormer | None:
    part = recipe.relation
    if part.name == "none":
        return None
    with drawn_from(recipe.seed, "relation"):
        kind = BatchFormer if num_experts == 1 else partial(ExpertBatchFormer, num_experts=num_experts)
        relation = kind(
            dim // num_experts,
            num_heads=part.num_heads,
            mlp_ratio=part.mlp_ratio,
            dropout=part.dropout,
            attention_dropout=part.attention_dropout,
            num_layers=part.num_layers,
            num_inducing=part.num_inducing,
            memory=part.memory,
            gather=part.gather,
        )
    if part.attend == "uniform":
        make_uniform(relation)
    elif part.attend == "self":
        make_control(relation)
    return relation


def _contrast(recipe: Recipe, backbone: nn.Module, dim: int) -> MomentumContrast | None:
    if recipe.criterion.name != "paco":
        return None
    part = recipe.contrast
    with drawn_from(recipe.seed, "contrast"):
        return MomentumContrast(backbone, dim, dim=part.dim, size=part.queue, momentum=part.momentum)


def _criterion(recipe: Recipe, counts: torch.Tensor, class_names: tuple[str, ...]) -> Criterion:
    part = recipe.criterion
    criterion = choose(part.name, CRITERIA, "criterion")
    available = {
        "counts": counts,
        "label_smoothing": part.label_smoothing,
        "class_weights": class_weights(part.class_weights, counts, class_names),
        "reweight_epoch": part.reweight_epoch,
        "max_margin": part.max_margin,
        "scale": recipe.head.scale if recipe.head.name == "cosine" else 1.0,  # margins in units of the cosine
        "gamma": part.gamma,
        "diversity": part.diversity,
        "temperature_factor": part.temperature_factor,
        "temperature": part.temperature,
        "alpha": part.alpha,
        "consistency": part.consistency,
        "label_power": part.label_power,
        "mixture": part.mixture,
    }
    takes = inspect.signature(criterion).parameters
    for name, default in vars(schema.Criterion()).items():
        if name not in (*takes, "name", "teacher", "teacher_temperature") and getattr(part, name) != default:
            raise InvalidInput(f"Criterion {part.name!r} has no option `criterion.{name}` ({getattr(part, name)!r}).")
    arguments: dict[str, Any] = {name: value for name, value in available.items() if name in takes}
    return criterion(**arguments)
