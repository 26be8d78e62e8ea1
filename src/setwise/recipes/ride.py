"""RIDE: several experts on a shared stem, with one BatchFormer for all of them, at 32 and at 224 pixels."""

from dataclasses import replace
from typing import Any

from setwise.recipes.long_tailed import BATCHFORMER, CIFAR100, SHORT, SMOKE, SMOKE_BEFORE
from setwise.recipes.published import IMAGENET_LT, INATURALIST_2018, of_groups
from setwise.recipes.schema import (
    Backbone,
    Before,
    Criterion,
    Head,
    Optimizer,
    Ran,
    Recipe,
    Relation,
    Reported,
    Trainer,
)

__all__ = ["RIDE"]


TABLE = "BatchFormer's table"

# The settings of RIDE's CIFAR-100-LT run: crop, flip and rotation, lr 0.1 with Nesterov momentum, weight decay 5e-4,
# a hundredth of the rate from epochs 160 and 180 on, class weights from 160 on, widths reduced to 24 and 48.
CIFAR100_RIDE = CIFAR100.override(
    {
        "name": "cifar100-lt-ride",
        "summary": "CIFAR-100-LT (imbalance 100), RIDE: three experts on a shared stem, ResNet-32, 200 epochs",
        "data.augment": "crop-flip-rotate",
        "backbone": Backbone(name="ride_resnet32"),
        "relation.num_heads": 1,
        "head.name": "cosine",
        "criterion": Criterion(name="ride", class_weights="effective-number", reweight_epoch=160, diversity=0.45),
        "optimizer": Optimizer(
            lr=0.1,
            nesterov=True,
            weight_decay=5e-4,
            warmup_epochs=5,
            schedule="multistep",
            milestones=(160, 180),
            gamma=0.01,
        ),
        "paper": f"{BATCHFORMER}; Wang et al.: RIDE, ICLR 2021, https://arxiv.org/abs/2010.01809",
        "reported": (
            Reported(
                metric="accuracy",
                variant="plain",
                value=0.48,
                source="long-tailed literature, RIDE with 3 experts: 48.0 to 49.1 %, on the whole official test set",
            ),
        ),
    }
)

# The authors' two further stages: three experts that learn from six (on CIFAR less weight on diversity, and a longer
# warm-up of the three), and a network that decides how many to ask (lr 0.01, 5 epochs of 512, class-balanced draws).
SIX = {"backbone.options.num_experts": 6}
ROUTED = {
    "backbone.frozen": True,
    "data.sampler": "class-balanced",
    "data.batch_size": 512,
    "head.name": "routed",
    "criterion": Criterion(name="expert-assignment"),
    "optimizer": Optimizer(lr=0.01, nesterov=True, weight_decay=5e-4),
    "trainer.epochs": 5,
    "trainer.val_every": 1,
    "reported": (),
}

CIFAR100_RIDE_DISTILLED = CIFAR100_RIDE.override(
    {
        "name": "cifar100-lt-ride-distilled",
        "summary": "CIFAR-100-LT in two stages: RIDE with six experts, then three experts that learn from them too",
        "before": Before(
            recipe="cifar100-lt-ride",
            use="teacher",
            options=SIX | {"criterion.diversity": 0.1, "optimizer.warmup_epochs": 5},
        ),
        "criterion.diversity": 0.2,
        "optimizer.warmup_epochs": 20,
        "reported": (),
        "smoke": CIFAR100_RIDE.smoke | SMOKE_BEFORE,
    }
)
CIFAR100_RIDE_ROUTED = CIFAR100_RIDE.override(
    {
        "name": "cifar100-lt-ride-routed",
        "summary": "CIFAR-100-LT in two stages: cifar100-lt-ride, then a network that decides how many experts to ask",
        "before": Before(recipe="cifar100-lt-ride"),
        **ROUTED,
        "smoke": CIFAR100_RIDE.smoke | SMOKE_BEFORE,
    }
)

# A schedule that fits a machine without a GPU: the same parts of 30 epochs; not set beside the literature's.
CIFAR100_RIDE_SHORT = CIFAR100_RIDE.override(
    {
        **SHORT,
        "name": "cifar100-lt-ride-short",
        "summary": "CIFAR-100-LT, RIDE: three experts, ResNet-32, a short schedule of 30 epochs",
        "criterion.reweight_epoch": 24,
        "optimizer.milestones": (24, 27),
        "trainer.precision": "bf16-mixed",
        "ran": (
            Ran(
                command="setwise compare cifar100-lt-ride-short --data.root DIR",
                commit="96e1af63296a",
                result="-3.7 [-15.2, +3.9], 3 seeds",
                details="benchmarks/results/long_tailed.md",
            ),
        ),
    }
)

SMOKE_224 = SMOKE | {"data.image_size": 32, "backbone.options": {"channels": [16, 16, 16, 16]}}

# RIDE's ImageNet-LT and iNaturalist runs, by BatchFormer's files: a tenth of the rate from epochs 60 and 80 on, class
# weights from 80 on. The numbers of the paper were made with the features replaced, an official_ option; the -shared
# recipes are the paper's method, of which no number was published. Ours: iNaturalist's validation part is held out of
# train, as it has no third. ResNet-50 on ImageNet-LT has the batch of their file, 256; their README's command says 400.
# Their relation sees a GPU's share of the batch (512 / 4 images, 256 / 4, 256 / 8, 128 / 8), and so do the recipes that
# carry numbers; batch norms see the whole here, their share there.
IMAGENET_LT_RIDE_10 = Recipe(
    name="imagenet-lt-ride-resnet10",
    summary="ImageNet-LT, RIDE: three experts, ResNet-10, features replaced as in the official code",
    data=replace(IMAGENET_LT, batch_size=512),
    backbone=Backbone(name="ride_resnet10"),
    relation=Relation(official_replace=True, official_replicas=4),
    head=Head(name="cosine"),
    criterion=Criterion(
        name="ride", class_weights="effective-number", reweight_epoch=80, diversity=0.2, temperature_factor=0.02
    ),
    optimizer=Optimizer(
        lr=0.1,
        nesterov=True,
        weight_decay=2e-4,
        warmup_epochs=5,
        schedule="multistep",
        milestones=(60, 80),
        gamma=0.1,
    ),
    trainer=Trainer(epochs=120),
    num_seeds=3,
    paper=CIFAR100_RIDE.paper,
    reported=of_groups(
        f"{TABLE}, RIDE (3 experts), ResNet-10", plain=(44.7, 57.0, 40.3, 25.5), related=(45.7, 56.3, 42.1, 28.3)
    ),
    smoke=SMOKE_224,
)
IMAGENET_LT_RIDE_50 = IMAGENET_LT_RIDE_10.override(
    {
        "name": "imagenet-lt-ride-resnet50",
        "summary": "ImageNet-LT, RIDE: three experts, ResNet-50, features replaced as in the official code",
        "backbone.name": "ride_resnet50",
        "data.batch_size": 256,
        "trainer.epochs": 100,
        "reported": of_groups(
            f"{TABLE}, RIDE (3 experts), ResNet-50", plain=(53.6, 64.9, 50.4, 33.2), related=(54.1, 64.3, 51.4, 35.1)
        ),
    }
)
IMAGENET_LT_RIDE_X50 = IMAGENET_LT_RIDE_50.override(
    {
        "name": "imagenet-lt-ride-resnext50",
        "summary": "ImageNet-LT, RIDE: three experts, ResNeXt-50, features replaced as in the official code",
        "backbone.name": "ride_resnext50_32x4d",
        "relation.official_replicas": 8,
        "reported": of_groups(
            f"{TABLE}, RIDE (3 experts), one stage, ResNeXt-50; plain by the authors of BatchFormer",
            plain=(55.9, 67.3, 52.8, 34.6),
            related=(56.5, 66.6, 54.2, 36.0),
        ),
    }
)
INATURALIST_RIDE_50 = IMAGENET_LT_RIDE_50.override(
    {
        "name": "inaturalist-ride-resnet50",
        "summary": "iNaturalist 2018, RIDE: three experts, ResNet-50, features replaced as in the official code",
        **INATURALIST_2018,
        "data.augment": "resized-crop",
        "data.batch_size": 128,
        "optimizer.lr": 0.2,
        "relation.official_replicas": 8,
        "criterion.temperature_factor": 0.015,
        "reported": of_groups(
            f"{TABLE}, RIDE (3 experts), ResNet-50", plain=(72.5, 68.1, 72.7, 73.2), related=(74.1, 65.5, 74.5, 75.8)
        ),
    }
)
PAPERS_OWN: dict[str, Any] = {"relation.official_replace": False, "relation.official_replicas": 1, "reported": ()}
"""One classifier for both streams, a relation that sees the batch; nothing was published of it."""

AT_224 = tuple(
    variant
    for recipe in (IMAGENET_LT_RIDE_10, IMAGENET_LT_RIDE_50, IMAGENET_LT_RIDE_X50, INATURALIST_RIDE_50)
    for variant in (
        recipe,
        recipe.override(
            {
                "name": f"{recipe.name}-shared",
                "summary": recipe.summary.replace("features replaced as in the official code", "one shared classifier"),
                **PAPERS_OWN,
            }
        ),
    )
)


def _distilled(recipe: Recipe, what: str) -> Recipe:
    """Three experts of the same kind that learn from six as well."""
    return recipe.override(
        {
            "name": f"{recipe.name}-distilled",
            "summary": f"{what}, in two stages: RIDE with six experts, then three that learn from them too",
            "before": Before(recipe=recipe.name, use="teacher", options=SIX),
            **PAPERS_OWN,
            "smoke": recipe.smoke | SMOKE_BEFORE,
        }
    )


def _routed(recipe: Recipe, what: str, top_k: int) -> Recipe:
    """Its experts as they are, and a network that decides how many to ask."""
    return recipe.override(
        {
            **ROUTED,
            "name": f"{recipe.name}-routed",
            "summary": f"{what}, in two stages: RIDE, then a network that decides how many experts to ask",
            "before": Before(recipe=recipe.name),
            **PAPERS_OWN,
            "head.top_k": top_k,
            "smoke": recipe.smoke | SMOKE_BEFORE,
        }
    )


# Nothing was published of these with BatchFormer, so both stages have the paper's method, one classifier for both
# streams (the relation is the same in both).
STAGED_AT_224 = tuple(
    staged
    for recipe, what, top_k in (
        (IMAGENET_LT_RIDE_10, "ImageNet-LT, ResNet-10", 30),
        (IMAGENET_LT_RIDE_50, "ImageNet-LT, ResNet-50", 50),
        (IMAGENET_LT_RIDE_X50, "ImageNet-LT, ResNeXt-50", 50),
        (INATURALIST_RIDE_50, "iNaturalist 2018, ResNet-50", 50),
    )
    for staged in (_distilled(recipe, what), _routed(recipe, what, top_k))
)

RIDE = (CIFAR100_RIDE, CIFAR100_RIDE_DISTILLED, CIFAR100_RIDE_ROUTED, CIFAR100_RIDE_SHORT, *AT_224, *STAGED_AT_224)
