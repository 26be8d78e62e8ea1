"""PaCo: class centres and the features of other images in one softmax, on long-tailed sets.

The settings are those of PaCo's code. Nobody published code or settings of PaCo with BatchFormer: where the relation
stands (see ``tasks.Classification.training_step``) and its sizes, dropout and learning rate, those of BatchFormer's
paper, are our choice. A batch of 128 is one set here; PaCo's code spreads it over four devices.
"""

from dataclasses import replace

from setwise.recipes.long_tailed import BATCHFORMER, CIFAR100, SHORT, SMOKE_TIMM
from setwise.recipes.published import IMAGENET_LT, INATURALIST_2018, PLACES_LT, of_groups
from setwise.recipes.schema import (
    Backbone,
    Contrast,
    Criterion,
    Optimizer,
    Ran,
    Recipe,
    Reported,
    Trainer,
)

__all__ = ["PACO"]

PAPER = f"{BATCHFORMER}; Cui et al.: PaCo, ICCV 2021, https://arxiv.org/abs/2107.12028"
README = "BatchFormer's README, PaCo with ResNet-50, by code that was not published"

CIFAR100_PACO = CIFAR100.override(
    {
        "name": "cifar100-lt-paco",
        "summary": "CIFAR-100-LT (imbalance 100), PaCo, ResNet-32, 400 epochs",
        "data.augment": "cifar-autoaugment",
        "data.views": ("simclr-cifar",),
        "criterion": Criterion(name="paco", temperature=0.05, alpha=0.01),
        "contrast": Contrast(dim=32, queue=1024),
        "optimizer": Optimizer(
            lr=0.05, weight_decay=5e-4, warmup_epochs=10, schedule="multistep", milestones=(320, 360)
        ),
        "trainer.epochs": 400,
        "paper": PAPER,
        "reported": (
            Reported(
                metric="accuracy",
                variant="plain",
                value=0.52,
                source="Cui et al.: on the whole official test set, which also chose the epoch",
            ),
            Reported(
                metric="accuracy",
                variant="related",
                value=0.524,
                source="public leaderboard (47.6 % error), PaCo with BatchFormer, by code that was not published",
            ),
        ),
    }
)

CIFAR100_PACO_SHORT = CIFAR100_PACO.override(
    {
        "name": "cifar100-lt-paco-short",
        "summary": "CIFAR-100-LT, ResNet-32, PaCo, a short schedule of 30 epochs",
        **SHORT,
        "optimizer.milestones": (24, 27),  # where 320 and 360 of 400 are
        "trainer.precision": "bf16-mixed",
        "ran": (
            Ran(
                command="setwise compare cifar100-lt-paco-short --data.root DIR",
                commit="b2bd18ee63d4",
                result="+0.2 [-3.9, +3.6], 3 seeds",
                details="benchmarks/results/long_tailed.md",
            ),
        ),
    }
)

IMAGENET_PACO = Recipe(
    name="imagenet-lt-paco",
    summary="ImageNet-LT, PaCo, ResNet-50, 400 epochs",
    data=replace(IMAGENET_LT, augment="jitter-randaugment", views=("simclr",)),
    backbone=Backbone(name="resnet50", options={"zero_init_last": False}),  # torchvision's, whose norms begin at 1
    criterion=Criterion(name="paco", temperature=0.2, alpha=0.05),
    contrast=Contrast(dim=128, queue=8192),
    optimizer=Optimizer(lr=0.02, weight_decay=5e-4, warmup_epochs=10),
    trainer=Trainer(epochs=400, val_every=10),
    num_seeds=3,
    paper=PAPER,
    reported=of_groups(README, plain=(57.0, 64.8, 55.9, 39.1), related=(57.4, 62.7, 56.7, 42.1)),
    smoke=SMOKE_TIMM,
)

# Their queries have the operations of both views one after the other, with three random ones for the deepest network.
IMAGENET_PACO_X50 = IMAGENET_PACO.override(
    {
        "name": "imagenet-lt-paco-resnext50",
        "summary": "ImageNet-LT, PaCo, ResNeXt-50, 400 epochs",
        "data.augment": "simclr-randaugment",
        "backbone.name": "resnext50_32x4d",
        "criterion.temperature": 0.07,
        "reported": (),
    }
)
IMAGENET_PACO_X101 = IMAGENET_PACO.override(
    {
        "name": "imagenet-lt-paco-resnext101",
        "summary": "ImageNet-LT, PaCo, ResNeXt-101 (32x4d), 400 epochs",
        "data.augment": "simclr-randaugment3",
        "backbone.name": "resnext101_32x4d",
        "optimizer.lr": 0.03,
        "reported": (),
    }
)

# Two random operations after the first view's, as with ResNet-50 on ImageNet-LT.
INATURALIST_PACO = IMAGENET_PACO.override(
    {
        "name": "inaturalist-paco",
        "summary": "iNaturalist 2018, PaCo, ResNet-50, 400 epochs",
        **INATURALIST_2018,
        "optimizer.weight_decay": 1e-4,
        "reported": (),
    }
)

PLACES_PACO = IMAGENET_PACO.override(
    {
        "name": "places-lt-paco",
        "summary": "Places-LT, PaCo, last block and norms of a ResNet-152 with --backbone.pretrained, 30 epochs",
        "data": replace(PLACES_LT, augment="simclr", views=("simclr",)),
        "backbone": Backbone(name="resnet152.tv_in1k", trained=("layer4.2",)),
        "optimizer.warmup_epochs": 5,
        "trainer": Trainer(epochs=30, val_every=5, precision="16-mixed"),
        "reported": (),
        # The tests have no weights to start from.
        "smoke": SMOKE_TIMM | {"backbone.trained": (), "trainer.precision": "32-true"},
    }
)

PACO = (
    CIFAR100_PACO,
    CIFAR100_PACO_SHORT,
    IMAGENET_PACO,
    IMAGENET_PACO_X50,
    IMAGENET_PACO_X101,
    INATURALIST_PACO,
    PLACES_PACO,
)
