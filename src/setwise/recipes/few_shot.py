"""Few-shot recognition: CrossTransformers and prototypical networks, as published and small enough to run anywhere."""

from setwise.recipes.schema import (
    Backbone,
    Before,
    Data,
    Episodes,
    Head,
    Optimizer,
    Recipe,
    Relation,
    Reported,
    Trainer,
)

__all__ = ["FEW_SHOT"]

CROSS_TRANSFORMERS = "Doersch, Gupta, Zisserman: CrossTransformers, NeurIPS 2020, https://arxiv.org/abs/2007.11498"
PROTOTYPICAL = "Snell, Swersky, Zemel: Prototypical Networks, NeurIPS 2017, https://arxiv.org/abs/1703.05175"
META_DATASET = "Triantafillou et al.: Meta-Dataset, ICLR 2020, https://arxiv.org/abs/1903.03096"
TABLE_2 = "CrossTransformers, table 2: trained on ImageNet alone, 600 episodes"
TABLE_1 = "CrossTransformers, table 1, and Meta-Dataset's leaderboard: ProtoNet (large)"

SMOKE = {
    "episodes.n_way": 2,
    "episodes.n_shot": 1,
    "episodes.n_query": 1,
    "episodes.train": 2,
    "episodes.val": 2,
    "episodes.test": 3,
    "trainer.epochs": 1,
    "trainer.val_every": 1,
    "trainer.logger": ("csv",),
    "data.image_size": 16,
}
SMOKE_OURS = SMOKE | {"backbone.options": {"width": 4, "depth": 1}}
BRIEF = {"before.options": {"data.batch_size": 8, "trainer.epochs": 1, "trainer.val_every": 1}}
SMOKE_RECORDS = SMOKE | {
    **BRIEF,
    "trainer.max_steps": 2,
    "episodes.sources": (),
    "backbone.name": "test_resnet",
    "backbone.options": {},
    "data.image_size": 32,
}


def _reported(source: str, **percent: float) -> tuple[Reported, ...]:
    """One number a data set, each the mean accuracy over its test episodes."""
    return tuple(
        Reported(metric=f"accuracy/{name}", variant="plain", value=round(value / 100, 4), source=source)
        for name, value in percent.items()
    )


# Stage one of two. The authors say that they train the trunk as a classifier of ImageNet's training classes, and not
# how: all settings but the network are our choice.
META_DATASET_PRETRAIN = Recipe(
    name="meta-dataset-pretrain",
    summary="the training classes of Meta-Dataset's ImageNet as a classifier: stage one, before episodes",
    data=Data(
        name="meta-dataset",
        root="records/ilsvrc_2012",
        image_size=224,
        augment="random-resized-crop",
        batch_size=256,
    ),
    backbone=Backbone(name="resnet34", options={"output_stride": 16}),
    relation=Relation(name="none"),
    optimizer=Optimizer(lr=0.1, weight_decay=1e-4, warmup_epochs=5),
    trainer=Trainer(epochs=90, val_every=5),
    primary="accuracy",
    num_seeds=1,
    paper=f"{CROSS_TRANSFORMERS}; {META_DATASET}",
    smoke={
        "data.batch_size": 8,
        "data.image_size": 32,
        "trainer.max_steps": 2,
        "trainer.epochs": 1,
        "trainer.val_every": 1,
        "trainer.logger": ("csv",),
        "backbone.name": "test_resnet",
        "backbone.options": {},
    },
)

# The authors' settings: one episode a step, checks every 500 steps, the learning rate times 0.915 every 2,000. Their L2
# penalty (8.857e-5 times the sum of squares) is a weight decay of twice that number here.
META_DATASET_CTX = Recipe(
    name="meta-dataset-ctx",
    summary="Meta-Dataset, trained on ImageNet: CrossTransformer on a ResNet-34 of stride 16, 100,000 episodes",
    task="few-shot",
    data=Data(name="meta-dataset", root="records", image_size=224),
    backbone=Backbone(name="resnet34", options={"output_stride": 16}),
    relation=Relation(name="none"),
    head=Head(name="cross-transformer"),
    before=Before(recipe="meta-dataset-pretrain"),
    episodes=Episodes(sources=("ilsvrc_2012",), ignore_hierarchy=0.5, train=500, val=600, test=600),
    optimizer=Optimizer(
        name="normalized-adam",
        lr=6e-4,
        weight_decay=1.771574841818458e-4,
        schedule="staircase",
        every=4,
        gamma=0.915193802145601,
    ),
    trainer=Trainer(epochs=200, select="best"),
    primary="accuracy",
    num_seeds=1,
    paper=f"{CROSS_TRANSFORMERS}; {META_DATASET}",
    reported=_reported(
        TABLE_2,
        ilsvrc_2012=61.94,
        omniglot=76.52,
        aircraft=79.65,
        cu_birds=84.06,
        dtd=76.26,
        quickdraw=65.67,
        fungi=52.53,
        vgg_flower=94.11,
        traffic_sign=70.47,
        mscoco=53.51,
    ),
    smoke=SMOKE_RECORDS,
)

META_DATASET_CTX_SIMCLR = META_DATASET_CTX.override(
    {
        "name": "meta-dataset-ctx-simclr",
        "summary": "Meta-Dataset, trained on ImageNet: CrossTransformer, half of 400,000 episodes SimCLR episodes",
        "episodes.simclr_fraction": 0.5,
        "optimizer.every": 8,
        "trainer.epochs": 800,
        "reported": _reported(
            TABLE_2,
            ilsvrc_2012=63.79,
            omniglot=80.83,
            aircraft=82.05,
            cu_birds=82.01,
            dtd=75.76,
            quickdraw=68.84,
            fungi=52.01,
            vgg_flower=94.62,
            traffic_sign=75.01,
            mscoco=52.76,
        ),
    }
)

# Optimizer and length of the authors' prototypical networks are not stated: those of META_DATASET_CTX are our choice.
META_DATASET_PROTOTYPICAL = META_DATASET_CTX.override(
    {
        "name": "meta-dataset-prototypical",
        "summary": "Meta-Dataset, trained on ImageNet: prototypical network on the same trunk",
        "head": Head(name="prototypical"),
        "paper": f"{PROTOTYPICAL}; {CROSS_TRANSFORMERS}; {META_DATASET}",
        "reported": _reported(
            TABLE_2 + ", ProtoNets (authors')",
            ilsvrc_2012=51.66,
            omniglot=57.22,
            aircraft=51.63,
            cu_birds=71.73,
            dtd=69.72,
            quickdraw=53.81,
            fungi=42.07,
            vgg_flower=87.29,
            traffic_sign=47.45,
            mscoco=44.38,
        ),
    }
)

META_DATASET_PROTOTYPICAL_SIMCLR = META_DATASET_PROTOTYPICAL.override(
    {
        "name": "meta-dataset-prototypical-simclr",
        "summary": "Meta-Dataset, trained on ImageNet: prototypical network, half of the episodes SimCLR episodes",
        "episodes.simclr_fraction": 0.5,
        "episodes.test_moments": "support",
        "optimizer.every": 8,
        "trainer.epochs": 800,
        "reported": _reported(
            TABLE_1,
            ilsvrc_2012=53.69,
            omniglot=68.50,
            aircraft=58.04,
            cu_birds=74.07,
            dtd=68.76,
            quickdraw=53.30,
            fungi=40.73,
            vgg_flower=86.96,
            traffic_sign=58.11,
            mscoco=41.70,
        ),
    }
)

# Small enough for two cores; the settings are ours, and no number of the literature stands beside them.
OMNIGLOT_CTX = Recipe(
    name="omniglot-ctx",
    summary="Omniglot, 5-way 1-shot: CrossTransformer on a small network, for machines without a GPU",
    task="few-shot",
    data=Data(name="omniglot", root="data/omniglot", image_size=32),
    backbone=Backbone(name="cifar_resnet32", options={"depth": 1, "width": 32}),
    relation=Relation(name="none"),
    head=Head(name="cross-transformer"),
    episodes=Episodes(n_way=5, n_shot=1, n_query=10, train=200, val=100, test=600),
    optimizer=Optimizer(name="normalized-adam", lr=1e-3, weight_decay=1e-4, schedule="cosine"),
    trainer=Trainer(epochs=10, select="best", accelerator="auto"),
    primary="accuracy",
    num_seeds=3,
    paper=CROSS_TRANSFORMERS,
    smoke=SMOKE_OURS,
)
OMNIGLOT_PROTOTYPICAL = OMNIGLOT_CTX.override(
    {
        "name": "omniglot-prototypical",
        "summary": "Omniglot, 5-way 1-shot: prototypical network on the same trunk",
        "head": Head(name="prototypical"),
        "paper": PROTOTYPICAL,
    }
)
TINYIMAGENET_CTX = OMNIGLOT_CTX.override(
    {
        "name": "tinyimagenet-ctx",
        "summary": "Tiny-ImageNet's few-shot split, 5-way 5-shot at 32 px: CrossTransformer, without a GPU",
        "data": Data(name="tinyimagenet-few-shot", root="data/tinyimagenet-fewshot", image_size=32),
        "episodes.n_shot": 5,
    }
)
TINYIMAGENET_CTX_SIMCLR = TINYIMAGENET_CTX.override(
    {
        "name": "tinyimagenet-ctx-simclr",
        "summary": "Tiny-ImageNet's few-shot split: CrossTransformer, half of the episodes SimCLR episodes",
        "episodes.simclr_fraction": 0.5,
    }
)
TINYIMAGENET_PROTOTYPICAL = TINYIMAGENET_CTX.override(
    {
        "name": "tinyimagenet-prototypical",
        "summary": "Tiny-ImageNet's few-shot split: prototypical network on the same trunk",
        "head": Head(name="prototypical"),
        "paper": PROTOTYPICAL,
    }
)

# A beginning for images of one's own, at the size of most few-shot benchmarks; the settings are ours.
CLASS_FOLDERS_CTX = Recipe(
    name="class-folders-ctx",
    summary="your own classes in train/, val/ and test/, 5-way 5-shot: CrossTransformer on a ResNet-18 of stride 16",
    task="few-shot",
    data=Data(name="class-folders", image_size=84),
    backbone=Backbone(name="resnet18", options={"output_stride": 16}),
    relation=Relation(name="none"),
    head=Head(name="cross-transformer"),
    episodes=Episodes(n_way=5, n_shot=5, n_query=10, train=200, val=200, test=600),
    optimizer=Optimizer(name="normalized-adam", lr=6e-4, weight_decay=1e-4, schedule="cosine"),
    trainer=Trainer(epochs=50, select="best"),
    primary="accuracy",
    num_seeds=3,
    paper=CROSS_TRANSFORMERS,
    smoke=SMOKE | {"backbone.name": "test_resnet", "backbone.options": {}, "data.image_size": 32},
)

# Stage one of two: the trunk as a classifier of the training classes.
TINYIMAGENET_PRETRAIN = Recipe(
    name="tinyimagenet-pretrain",
    summary="the training classes of Tiny-ImageNet's few-shot split as a classifier: stage one, before episodes",
    data=Data(
        name="tinyimagenet-few-shot",
        root="data/tinyimagenet-fewshot",
        image_size=32,
        augment="random-resized-crop",
        batch_size=64,
    ),
    backbone=Backbone(name="cifar_resnet32", options={"depth": 1, "width": 32}),
    relation=Relation(name="none"),
    optimizer=Optimizer(lr=0.1, weight_decay=5e-4, warmup_epochs=1),
    trainer=Trainer(epochs=20, val_every=5),
    primary="accuracy",
    num_seeds=3,
    paper=CROSS_TRANSFORMERS,
    smoke={
        "data.batch_size": 8,
        "data.image_size": 16,
        "trainer.max_steps": 2,
        "trainer.epochs": 1,
        "trainer.val_every": 1,
        "trainer.logger": ("csv",),
        "backbone.options": {"width": 4, "depth": 1},
    },
)
TINYIMAGENET_CTX_PRETRAINED = TINYIMAGENET_CTX.override(
    {
        "name": "tinyimagenet-ctx-pretrained",
        "summary": "Tiny-ImageNet's few-shot split in two stages: tinyimagenet-pretrain, then tinyimagenet-ctx",
        "before": Before(recipe="tinyimagenet-pretrain"),
        "smoke": SMOKE_OURS | BRIEF,
    }
)

FEW_SHOT = (
    META_DATASET_PRETRAIN,
    META_DATASET_CTX,
    META_DATASET_CTX_SIMCLR,
    META_DATASET_PROTOTYPICAL,
    META_DATASET_PROTOTYPICAL_SIMCLR,
    CLASS_FOLDERS_CTX,
    OMNIGLOT_CTX,
    OMNIGLOT_PROTOTYPICAL,
    TINYIMAGENET_PRETRAIN,
    TINYIMAGENET_CTX,
    TINYIMAGENET_CTX_PRETRAINED,
    TINYIMAGENET_CTX_SIMCLR,
    TINYIMAGENET_PROTOTYPICAL,
)
