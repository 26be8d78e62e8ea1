"""A classification recipe -> data, loaders and task.

Weights of every part are drawn from their own key, so the plain, related and control model of one seed start from the
same backbone and head.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from setwise.build.parts import Say, drawn_from, load_data, make_backbone, optimizer_factory
from setwise.data import DATASETS, Loader, Splits, make_loader
from setwise.data.few_shot import FEW_SHOT, classes_of_training
from setwise.errors import InvalidInput, choose
from setwise.losses import CRITERIA, Criterion, class_weights
from setwise.metrics import by_count, by_rank
from setwise.models import LearnableScale, RoutedExperts, create_head, feature_dim
from setwise.nn import BatchFormer, ExpertBatchFormer, MomentumContrast
from setwise.nn.attend import fix_query_and_key, make_uniform
from setwise.recipes import Recipe, schema
from setwise.recipes.stages import stage_before
from setwise.tasks import Classification, Distilled, MetaSampled, Routing

__all__ = ["build_data", "build_loader", "build_task", "check_start"]

PARTS = ("train", "val", "test")
OF_FIXED_CLASSES = ("linear", "cosine", "lws", "routed", "per-class")
OF_BATCHES = ("batch_size", "micro_batch", "mixup", "cutmix", "sampler", "meta_pool", "meta_rate")
SERVED_BY_THE_LOADER = ("name", "augment", "views", "num_workers", "on_error", *OF_BATCHES)


def build_data(recipe: Recipe) -> Splits:
    """Load the recipe's data set, split by its seed.

    Of a few-shot set these are the training classes, with validation and test images of their own: what a trunk is
    trained on before episodes.

    Raises:
        InvalidInput: if a field is set that this data set does not have.
        SetwiseError: whatever is wrong with the files.
    """
    name = recipe.data.name
    choose(name, [*DATASETS, *FEW_SHOT], "data set")
    if name in FEW_SHOT:
        pools = load_data(recipe, name, FEW_SHOT[name].load, unused=SERVED_BY_THE_LOADER)
        return classes_of_training(pools, seed=recipe.seed)
    return load_data(recipe, name, DATASETS[name].load, unused=SERVED_BY_THE_LOADER)


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
    _check(recipe)
    size = {"in_chans": in_chans, "image_size": image_size}
    backbone = make_backbone(recipe, num_classes=len(class_names), say=say, **size)
    dim = feature_dim(backbone, **size)
    num_experts = getattr(backbone, "num_experts", 1)
    _check_experts(recipe, num_experts)
    with drawn_from(recipe.seed, "head"):
        options: dict[str, Any] = {"scale": recipe.head.scale, "top_k": recipe.head.top_k, "num_experts": num_experts}
        head = create_head(recipe.head.name, dim, len(class_names), **options)
    routed = isinstance(head, RoutedExperts)
    if isinstance(head, LearnableScale | RoutedExperts) and recipe.backbone.weights:
        head.start_from(recipe.backbone.weights)
    groups = by_rank if recipe.groups.by == "rank" else by_count
    kind: Callable[..., Classification] = Routing if routed else Classification
    if recipe.data.sampler == "meta":
        kind = partial(MetaSampled, pool=recipe.data.meta_pool, rate=recipe.data.meta_rate)
    if teacher is not None:
        kind = partial(Distilled, teacher=teacher, temperature=recipe.criterion.teacher_temperature)
    return kind(
        backbone,
        head,
        _criterion(recipe, counts, class_names),
        None if routed else _relation(recipe, dim, num_experts),
        contrast=_contrast(recipe, backbone, dim),
        optimizer=optimizer_factory(recipe),
        counts=counts,
        groups=groups(group_counts, many=recipe.groups.many, few=recipe.groups.few),
        attend=recipe.relation.attend,
        replace=recipe.relation.official_replace,
        **_loss_weights(recipe),
        relate_at_test=recipe.relation.relate_at_test,
        multi_label=recipe.data.multi_label,
        frozen=recipe.backbone.frozen,
        max_norm=recipe.head.max_norm,
        micro_batch=recipe.data.micro_batch,
        seed=recipe.seed,
    )


def _check(recipe: Recipe) -> None:
    """Refuse what would run, and be something else than it looks like."""
    data, relation = recipe.data, recipe.relation
    at_least = {"trainer.epochs": 1, "trainer.val_every": 1, "trainer.checkpoint_every": 1, "trainer.patience": 1}
    at_least |= {"trainer.max_steps": 1, "trainer.devices": 1, "trainer.num_nodes": 1, "num_seeds": 1}
    at_least |= {"relation.related_weight": 0, "relation.memory": 0, "relation.num_inducing": 1}
    at_least |= {"data.batch_size": 1, "data.micro_batch": 1}
    for path, smallest in at_least.items():
        group, _, name = path.rpartition(".")
        value = getattr(getattr(recipe, group) if group else recipe, name)
        if value is not None and value < smallest:
            raise InvalidInput(f"`{path}` must be at least {smallest}, but it is {value}.")
    if recipe.task != "classification":
        raise InvalidInput(f"{recipe.name} is a {recipe.task} recipe, which has no classifier of fixed classes.")
    if recipe.episodes != schema.Episodes() or recipe.head.name not in OF_FIXED_CLASSES:
        raise InvalidInput(
            f"`episodes` and --head.name {recipe.head.name} are of few-shot recipes; {recipe.name} classifies fixed "
            f"classes (--head.name {', '.join(OF_FIXED_CLASSES)})."
        )
    if data.multi_label and recipe.criterion.name != "binary-cross-entropy":  # the others take rows of ones and zeros
        raise InvalidInput(
            f"Images with several labels (data.multi_label) need --criterion.name binary-cross-entropy and --primary "
            f"mean_average_precision, but the criterion is {recipe.criterion.name}."
        )
    if relation.relate_at_test and relation.attend in ("same-class", "other-class", "shuffled"):
        raise InvalidInput(
            f"`relation.attend` {relation.attend} chooses neighbours by their labels, which a test has not: it cannot "
            "go with relation.relate_at_test."
        )
    if relation.memory and relation.attend not in ("all", "uniform"):
        raise InvalidInput(
            f"`relation.attend` {relation.attend} says who of the batch attends to whom, which nothing says of a "
            "memory: leave out relation.memory."
        )
    if recipe.trainer.select != "last" and recipe.trainer.epochs < recipe.trainer.val_every:
        raise InvalidInput(
            f"`trainer.select` {recipe.trainer.select} needs validation, but there is none in {recipe.trainer.epochs} "
            f"epochs with --trainer.val-every {recipe.trainer.val_every}."
        )
    if recipe.trainer.select_on == "test" and recipe.trainer.select == "last":
        raise InvalidInput(
            "`trainer.select_on` test chooses among weights, but the last are kept: add --trainer.select best."
        )
    if recipe.head.name == "per-class" and relation.name != "none":
        raise InvalidInput(
            f"--head.name per-class has a feature for each class and image, and {relation.name} relates one an image: "
            "add --relation.name none."
        )
    _check_contrast(recipe)
    _check_meta(recipe)
    if recipe.head.max_norm is not None and not (recipe.head.name == "linear" and recipe.head.max_norm > 0):
        raise InvalidInput(
            f"`head.max_norm` ({recipe.head.max_norm:g}) is the longest class weight of --head.name linear, above 0, "
            f"but the head is {recipe.head.name}."
        )
    if recipe.head.name not in ("cosine", "routed") and recipe.head.scale != schema.Head().scale:
        raise InvalidInput(f"`head.scale` ({recipe.head.scale}) is the cosine head's: add --head.name cosine.")


def _loss_weights(recipe: Recipe) -> dict[str, float]:
    """Weight of the related stream, and how often the loss counts."""
    part = recipe.relation
    official = {name for name in ("triple_loss", "small_related", "replace") if getattr(part, f"official_{name}")}
    if len(official) > 1 or (official and part.related_weight != 1):
        raise InvalidInput(
            "`relation.official_triple_loss`, `.official_small_related` and `.official_replace` are three ways to "
            f"weigh the streams, and `.related_weight` ({part.related_weight:g}) is the fourth: take one of them."
        )
    if part.official_small_related:  # 1.01 plain + 0.01 related
        return {"related_weight": 0.01 / 1.01, "loss_factor": 1.02}
    return {"related_weight": part.related_weight, "loss_factor": 3.0 if part.official_triple_loss else 1.0}


def _check_meta(recipe: Recipe) -> None:
    data, default = recipe.data, schema.Data()
    if data.sampler != "meta":
        if (data.meta_pool, data.meta_rate) != (default.meta_pool, default.meta_rate):
            raise InvalidInput(
                "`data.meta_pool` and `data.meta_rate` are of --data.sampler meta; add it or leave them."
            )
        return
    simple = recipe.head.name in ("linear", "cosine") and not (data.mixup or data.cutmix or recipe.criterion.teacher)
    if not (recipe.backbone.frozen and simple):
        raise InvalidInput(
            "--data.sampler meta learns class rates beside a classifier on a frozen backbone: add --backbone.frozen, "
            "with --head.name linear or cosine, and without mixup, cutmix or a teacher."
        )
    if data.meta_pool < 2 or data.batch_size < data.meta_pool or data.meta_rate < 0:
        raise InvalidInput(
            f"`data.meta_pool` ({data.meta_pool}) must be at least 2 and at most the batch size ({data.batch_size}), "
            f"and `data.meta_rate` ({data.meta_rate:g}) 0 or more."
        )


def _check_contrast(recipe: Recipe) -> None:
    data, paco = recipe.data, recipe.criterion.name == "paco"
    if not paco and (data.views or recipe.contrast != schema.Contrast()):
        raise InvalidInput(
            f"`data.views` and `contrast` are of --criterion.name paco, which compares views; {recipe.criterion.name} "
            "does not."
        )
    if paco and (len(data.views) != 1 or data.mixup or data.cutmix):
        raise InvalidInput(
            f"--criterion.name paco takes its keys from one further view of each image, unmixed: --data.views simclr "
            f"--data.mixup 0 --data.cutmix 0, but `data.views` are {list(data.views)}, mixup {data.mixup:g}, cutmix "
            f"{data.cutmix:g}."
        )
    if paco and (recipe.backbone.frozen or recipe.head.name not in ("linear", "cosine")):
        raise InvalidInput(
            f"--criterion.name paco trains the backbone, and takes --head.name linear or cosine, not "
            f"{recipe.head.name}{' on a frozen one' * recipe.backbone.frozen}."
        )


def check_start(recipe: Recipe) -> None:
    """Refuse to begin a second stage without a first; a run that is over has its weights from elsewhere.

    Raises:
        InvalidInput: if a backbone (or most of it) is to be frozen at random weights, or there is no classifier to
            scale.
    """
    if stage_before(recipe) is not None:  # whose weights are there when it is over
        return
    part = recipe.backbone
    which = "frozen" if part.frozen else "trained"
    if (part.frozen or part.trained) and not (part.weights or part.pretrained):
        raise InvalidInput(
            f"`backbone.{which}` would keep random weights: name those of a first stage, --backbone.weights "
            "runs/FIRST/weights.safetensors, or take timm's with --backbone.pretrained."
        )
    does = {"lws": "scales the classifier", "routed": "asks the experts"}.get(recipe.head.name)
    if does and not (part.frozen and part.weights):
        raise InvalidInput(
            f"--head.name {recipe.head.name} {does} of a first stage, whose features must not change: add "
            "--backbone.frozen and --backbone.weights runs/FIRST/weights.safetensors."
        )


def _check_experts(recipe: Recipe, num_experts: int) -> None:
    routed = recipe.head.name == "routed"
    if routed != (recipe.criterion.name == "expert-assignment") or (routed and recipe.criterion.teacher):
        raise InvalidInput(
            "--head.name routed and --criterion.name expert-assignment go together, without a teacher, but they are "
            f"{recipe.head.name} and {recipe.criterion.name}."
        )
    if (num_experts > 1) != (recipe.criterion.name in ("ride", "expert-assignment")):
        raise InvalidInput(
            "--criterion.name ride and a backbone of several experts (ride_resnet32) go together, but the criterion is "
            f"{recipe.criterion.name} and {recipe.backbone.name} has {num_experts}."
        )
    if num_experts > 1 and (recipe.head.name not in ("linear", "cosine", "routed") or recipe.head.max_norm):
        limited = " with head.max_norm" * bool(recipe.head.max_norm)
        raise InvalidInput(f"Experts take --head.name linear, cosine or routed, not {recipe.head.name}{limited}.")


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
        fix_query_and_key(relation)
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
    }
    takes = inspect.signature(criterion).parameters
    for name, default in vars(schema.Criterion()).items():
        if name not in (*takes, "name", "teacher", "teacher_temperature") and getattr(part, name) != default:
            raise InvalidInput(f"Criterion {part.name!r} has no option `criterion.{name}` ({getattr(part, name)!r}).")
    arguments: dict[str, Any] = {name: value for name, value in available.items() if name in takes}
    return criterion(**arguments)
