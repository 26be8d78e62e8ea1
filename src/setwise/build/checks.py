"""What is refused of a classification recipe before anything is built: it would run, and be something else.

A sentence each, with the field, the rule and the way out.
"""

from setwise.errors import InvalidInput
from setwise.recipes import Recipe, schema
from setwise.recipes.stages import starts_from_weights

__all__ = ["check", "check_experts", "check_numbers", "check_start", "is_taught", "too_late"]

OF_META = ("meta_pool", "meta_rate", "meta_power")
"""Fields of data that are the learned sampler's."""
OF_FIXED_CLASSES = ("linear", "cosine", "lws", "tau", "routed", "per-class")
"""Heads of classifiers."""


def check(recipe: Recipe) -> None:
    """Refuse fields that contradict each other.

    Raises:
        InvalidInput: naming the fields.
    """
    check_numbers(recipe)
    data, relation = recipe.data, recipe.relation
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
    if data.multi_label and is_taught(recipe):
        raise InvalidInput(
            "A teacher (criterion.teacher, before.use) is matched as one class an image, which `data.multi_label` "
            "denies: leave one of them out."
        )
    if data.sampler == "class-aware" and (data.mixup or data.cutmix or recipe.criterion.name == "glmc"):
        raise InvalidInput(
            "--data.sampler class-aware shows four images of a class in a row, and an image is mixed with the one "
            "before it, mostly of its own class: take --data.sampler class-balanced."
        )
    if relation.relate_at_test and relation.attend in ("same-class", "other-class", "shuffled"):
        raise InvalidInput(
            f"`relation.attend` {relation.attend} chooses neighbours by their labels, which a test has not: it cannot "
            "go with relation.relate_at_test."
        )
    if relation.official_replicas > 1 and (relation.gather or relation.memory or relation.relate_at_test):
        raise InvalidInput(
            f"`relation.official_replicas` ({relation.official_replicas}) makes the set that the relation sees in "
            "training smaller, relation.gather and relation.memory make it larger, and relation.relate_at_test relates "
            "a whole test batch: take one of them."
        )
    if relation.memory and relation.attend not in ("all", "uniform"):
        raise InvalidInput(
            f"`relation.attend` {relation.attend} says who of the batch attends to whom, which nothing says of a "
            "memory: leave out relation.memory."
        )
    _check_head(recipe)
    _check_contrast(recipe)
    _check_meta(recipe)


def check_numbers(recipe: Recipe) -> None:
    """Refuse what no task can be trained with: numbers out of range, a choice of weights without validation.

    Raises:
        InvalidInput: naming the field.
    """
    at_least = {"trainer.epochs": 1, "trainer.val_every": 1, "trainer.checkpoint_every": 1, "trainer.patience": 1}
    at_least |= {"trainer.max_steps": 1, "trainer.devices": 1, "trainer.num_nodes": 1, "num_seeds": 1}
    at_least |= {"relation.related_weight": 0, "relation.memory": 0, "relation.num_inducing": 1}
    at_least |= {"relation.official_replicas": 1, "optimizer.lr": 0}
    at_least |= {"data.num_workers": 0, "data.batch_size": 1, "data.micro_batch": 1}
    at_least |= {"optimizer.every": 1, "optimizer.warmup_epochs": 0}
    for path, smallest in at_least.items():
        group, _, name = path.rpartition(".")
        value = getattr(getattr(recipe, group) if group else recipe, name)
        if value is not None and value < smallest:
            raise InvalidInput(f"`{path}` must be at least {smallest}, but it is {value}.")
    if not 0 <= recipe.optimizer.warmup_start <= 1:
        raise InvalidInput(
            f"`optimizer.warmup_start` is a share, from 0 to 1, but it is {recipe.optimizer.warmup_start}."
        )
    if recipe.optimizer.schedule == "multistep" and not recipe.optimizer.milestones:
        raise InvalidInput(
            "--optimizer.schedule multistep needs `optimizer.milestones`, the epochs at which the learning rate is "
            "multiplied by gamma, but it has none: name some, or take --optimizer.schedule constant."
        )
    if recipe.trainer.select != "last" and recipe.trainer.epochs < recipe.trainer.val_every:
        raise InvalidInput(
            f"`trainer.select` {recipe.trainer.select} needs validation, but there is none in {recipe.trainer.epochs} "
            f"epochs with --trainer.val-every {recipe.trainer.val_every}."
        )


def too_late(recipe: Recipe) -> tuple[str, ...]:
    """What of a schedule is never reached because the training is shorter, in sentences."""
    epochs, part = recipe.trainer.epochs, recipe.optimizer
    steps = part.milestones if part.schedule == "multistep" else ()
    planned = {
        "optimizer.warmup_epochs": part.warmup_epochs,
        "criterion.reweight_epoch": recipe.criterion.reweight_epoch,
        "optimizer.milestones": max(steps, default=None),
    }
    return tuple(
        f"`{name}` ({epoch}) is not reached in {epochs} epoch{'s' * (epochs > 1)}."
        for name, epoch in planned.items()
        if epoch is not None and epoch >= epochs
    )


def is_taught(recipe: Recipe) -> bool:
    """Whether a teacher's scores are to be matched, that of a finished run or of the stage before."""
    before = recipe.before
    return recipe.criterion.teacher is not None or (before.recipe is not None and before.use == "teacher")


def _check_head(recipe: Recipe) -> None:
    relation = recipe.relation
    if recipe.head.name == "per-class" and relation.name != "none":
        raise InvalidInput(
            f"--head.name per-class has a feature for each class and image, and {relation.name} relates one an image: "
            "add --relation.name none."
        )
    if recipe.head.max_norm is not None and not (recipe.head.name == "linear" and recipe.head.max_norm > 0):
        raise InvalidInput(
            f"`head.max_norm` ({recipe.head.max_norm:g}) is the longest class weight of --head.name linear, above 0, "
            f"but the head is {recipe.head.name}."
        )
    share = recipe.head.max_norm_share
    if share is not None and not (recipe.head.from_weights and recipe.head.name == "linear" and 0 <= share <= 1):
        raise InvalidInput(
            f"`head.max_norm_share` ({share:g}) is a place between the shortest (0) and the longest (1) class weight "
            "that a linear head begins with: add --head.from-weights, or name a length with --head.max-norm."
        )
    if share is not None and recipe.head.max_norm is not None:
        raise InvalidInput("`head.max_norm` and `head.max_norm_share` both set the longest class weight: take one.")
    if recipe.head.from_weights and recipe.head.name not in ("linear", "per-class"):
        raise InvalidInput(
            f"`head.from_weights` begins with a linear classifier, but --head.name is {recipe.head.name}: take linear "
            "or per-class, or leave it out."
        )
    several = recipe.data.multi_label or relation.relate_at_test or recipe.trainer.select != "last"
    if recipe.head.name == "tau" and several:
        raise InvalidInput(
            "--head.name tau trains nothing and is chosen by the accuracy of one class an image, from the plain "
            "features: leave out data.multi_label, relation.relate_at_test and trainer.select."
        )
    if recipe.head.name == "tau" and recipe.optimizer != (default := schema.Optimizer()):
        changed = next(name for name, value in vars(recipe.optimizer).items() if value != getattr(default, name))
        raise InvalidInput(
            f"--head.name tau trains nothing, so `optimizer.{changed}` does nothing: leave it out, or give it to the "
            f"first stage (--before.options.optimizer.{changed.replace('_', '-')})."
        )
    if recipe.head.name != "routed" and recipe.head.top_k != schema.Head().top_k:
        raise InvalidInput(f"`head.top_k` ({recipe.head.top_k}) is the routed head's: add --head.name routed.")
    if not is_taught(recipe) and recipe.criterion.teacher_temperature != schema.Criterion().teacher_temperature:
        raise InvalidInput(
            f"`criterion.teacher_temperature` ({recipe.criterion.teacher_temperature:g}) needs a teacher: add "
            "--criterion.teacher RUN, or --before.use teacher with --before.recipe."
        )
    if recipe.criterion.teacher_temperature <= 0:
        raise InvalidInput(
            f"`criterion.teacher_temperature` must be above 0, but it is {recipe.criterion.teacher_temperature:g}."
        )
    if (recipe.head.dim_key, recipe.head.dim_value) != (schema.Head().dim_key, schema.Head().dim_value):
        raise InvalidInput("`head.dim_key` and `head.dim_value` are of --head.name cross-transformer: leave them out.")
    if recipe.head.name not in ("cosine", "routed") and recipe.head.scale != schema.Head().scale:
        raise InvalidInput(f"`head.scale` ({recipe.head.scale}) is the cosine head's: add --head.name cosine.")


def _check_meta(recipe: Recipe) -> None:
    data, default = recipe.data, schema.Data()
    if data.sampler != "meta":
        for name in OF_META:
            if getattr(data, name) != getattr(default, name):
                raise InvalidInput(f"`data.{name}` is of --data.sampler meta; add it or leave it.")
        return
    simple = recipe.head.name in ("linear", "cosine") and not (data.mixup or data.cutmix or is_taught(recipe))
    if not (recipe.backbone.frozen and simple):
        raise InvalidInput(
            "--data.sampler meta learns class rates beside a classifier on a frozen backbone: add --backbone.frozen, "
            "with --head.name linear or cosine, and without mixup, cutmix or a teacher."
        )
    if recipe.trainer.precision in ("bf16-true", "16-true"):
        raise InvalidInput(
            "--data.sampler meta moves class rates by steps that half precision rounds away, but --trainer.precision "
            f"is {recipe.trainer.precision}: take bf16-mixed."
        )
    if data.meta_pool < 2 or data.batch_size < data.meta_pool or data.meta_rate < 0 or not 0 <= data.meta_power <= 1:
        raise InvalidInput(
            f"`data.meta_pool` ({data.meta_pool}) must be at least 2 and at most the batch size ({data.batch_size}), "
            f"`data.meta_rate` ({data.meta_rate:g}) 0 or more, and `data.meta_power` ({data.meta_power:g}) from 0 to 1."
        )


def _check_contrast(recipe: Recipe) -> None:
    data, name = recipe.data, recipe.criterion.name
    of_views = name in ("paco", "glmc")
    if (not of_views and data.views) or (name != "paco" and recipe.contrast != schema.Contrast()):
        raise InvalidInput(
            f"`data.views` are of --criterion.name paco and glmc, which compare views, `contrast` of paco; {name} does "
            "not."
        )
    if of_views and (len(data.views) != 1 or data.mixup or data.cutmix):
        raise InvalidInput(
            f"--criterion.name {name} takes one further view of each image, not mixed by the data: --data.views simclr "
            f"--data.mixup 0 --data.cutmix 0, but `data.views` are {list(data.views)}, mixup {data.mixup:g}, cutmix "
            f"{data.cutmix:g}."
        )
    by_label = recipe.relation.attend not in ("all", "self", "uniform")
    weighted = recipe.criterion.class_weights != "none"
    if name == "glmc" and (by_label or weighted or is_taught(recipe) or data.multi_label or data.sampler == "meta"):
        raise InvalidInput(
            "--criterion.name glmc mixes images of two classes and weighs classes by itself: it takes "
            "--relation.attend all, self or uniform, and none of --criterion.class-weights, a teacher, "
            "data.multi_label, --data.sampler meta."
        )
    if of_views and (recipe.backbone.frozen or recipe.head.name not in ("linear", "cosine")):
        raise InvalidInput(
            f"--criterion.name {name} trains the backbone, and takes --head.name linear or cosine, not "
            f"{recipe.head.name}{' on a frozen one' * recipe.backbone.frozen}."
        )


def check_start(recipe: Recipe) -> None:
    """Refuse to begin a second stage without a first; a run that is over has its weights from elsewhere.

    Raises:
        InvalidInput: if a backbone (or most of it) is to be frozen at random weights, or there is no classifier to
            scale.
    """
    part = recipe.backbone
    frozen = {"backbone.frozen": part.frozen, "backbone.trained": bool(part.trained)}
    frozen["episodes.freeze_trunk"] = recipe.episodes.freeze_trunk
    frozen["backbone.needs_weights"] = part.needs_weights
    weights = starts_from_weights(recipe)
    if any(frozen.values()) and not (weights or part.pretrained):
        which = next(name for name, wanted in frozen.items() if wanted)
        verb = "forbids" if part.needs_weights else "would keep"
        raise InvalidInput(
            f"`{which}` {verb} random weights: name those of a first stage, --backbone.weights "
            "runs/FIRST/weights.safetensors, or take timm's with --backbone.pretrained."
        )
    if part.pool == "attention" and part.frozen and not weights:
        raise InvalidInput(
            "`backbone.pool` attention begins with random weights, which --backbone.frozen would keep: train the pool "
            "first, and name that run's --backbone.weights runs/FIRST/weights.safetensors."
        )
    relation = recipe.relation
    if relation.relate_at_test and relation.gather and not relation.memory:
        raise InvalidInput(
            "relation.gather needs batches of one size in all processes, which a test part does not have: leave out "
            "relation.relate_at_test, or relate to a memory (relation.memory)."
        )
    if recipe.head.from_weights and not weights:
        raise InvalidInput(
            "`head.from_weights` needs the file of a network with its classifier: add --backbone.weights FILE."
        )
    of_first: dict[str, str] = {
        "lws": "scales the classifier",
        "tau": "shortens class weights",
        "routed": "asks the experts",
    }
    does = of_first.get(recipe.head.name)
    if does and not (part.frozen and weights):
        raise InvalidInput(
            f"--head.name {recipe.head.name} {does} of a first stage, whose features must not change: add "
            "--backbone.frozen and --backbone.weights runs/FIRST/weights.safetensors."
        )


def check_experts(recipe: Recipe, num_experts: int) -> None:
    """Refuse a head or criterion that does not fit the number of experts, which only the built backbone knows."""
    routed = recipe.head.name == "routed"
    if routed != (recipe.criterion.name == "expert-assignment") or (routed and is_taught(recipe)):
        raise InvalidInput(
            "--head.name routed and --criterion.name expert-assignment go together, without a teacher, but they are "
            f"{recipe.head.name} and {recipe.criterion.name}."
        )
    if (num_experts > 1) != (recipe.criterion.name in ("ride", "expert-assignment")):
        raise InvalidInput(
            "--criterion.name ride and a backbone of several experts (ride_resnet32) go together, but the criterion is "
            f"{recipe.criterion.name} and {recipe.backbone.name} has {num_experts}."
        )
    if num_experts > 1 and recipe.data.sampler == "meta":
        raise InvalidInput(f"--data.sampler meta is of one classifier, but {recipe.backbone.name} has {num_experts}.")
    if routed and (recipe.data.mixup or recipe.data.cutmix or recipe.relation.relate_at_test):
        raise InvalidInput(
            "--head.name routed decides about one image of one class: leave out mixup, cutmix and "
            "relation.relate_at_test."
        )
    head = recipe.head
    limit = "max_norm" if head.max_norm is not None else "max_norm_share" if head.max_norm_share is not None else None
    if num_experts > 1 and (head.name not in ("linear", "cosine", "routed") or limit):
        limited = f" with head.{limit}" if limit else ""
        raise InvalidInput(f"Experts take --head.name linear, cosine or routed, not {head.name}{limited}.")
