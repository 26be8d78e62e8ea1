"""Recipes as data: every one is whole, becomes objects, and runs two steps through the real command line."""

import dataclasses
import json
import os
import subprocess
import sys
import typing
from pathlib import Path

import every_fake
import pytest
import torch
from safetensors.torch import save_file

from setwise.build import build_few_shot, build_task, check_start
from setwise.build.parts import make_backbone
from setwise.cli import main
from setwise.cli.options import GROUPS
from setwise.data import DATASETS, TRANSFORMS
from setwise.data.few_shot import FEW_SHOT
from setwise.errors import InvalidInput, UnknownName
from setwise.losses import CRITERIA
from setwise.models import create_backbone
from setwise.recipes import RECIPES, Recipe, yaml_file
from setwise.recipes.balanced import RESNET_10
from setwise.recipes.stages import stages
from setwise.report import reported_of_variant
from setwise.tasks import TASKS

FIXTURES = Path(os.environ.get("SETWISE_FIXTURES", Path(__file__).parents[2] / "shared" / "fixtures"))


def to_arguments(overrides):
    for name, value in overrides.items():
        if isinstance(value, dict):
            yield from to_arguments({f"{name}.{key}": item for key, item in value.items()})
        else:
            yield f"--{name}"
            yield from map(str, value if isinstance(value, tuple) else [value])


def full_model(recipe, *, in_chans, image_size):
    if recipe.task == "few-shot":
        return build_few_shot(recipe, in_chans=in_chans, image_size=image_size)
    return build_task(
        recipe,
        counts=torch.arange(100, 0, -1, device="cpu"),
        group_counts=torch.arange(100, 0, -1, device="cpu"),
        class_names=tuple(f"class {k}" for k in range(100)),
        in_chans=in_chans,
        image_size=image_size,
    )


@pytest.mark.parametrize("name", RECIPES)
class TestContract:
    def test_names_are_in_their_tables(self, name):
        recipe = RECIPES[name]
        assert recipe.name == name
        assert recipe.summary
        assert recipe.task in TASKS
        assert recipe.data.name in {**DATASETS, **FEW_SHOT}
        assert recipe.data.augment in TRANSFORMS or recipe.task == "few-shot"
        assert recipe.criterion.name in CRITERIA
        assert recipe.paper
        assert recipe.smoke

    def test_the_full_model_builds_on_the_meta_device(self, name):
        recipe = RECIPES[name]
        size = recipe.data.image_size or {"digits-lt": 8}.get(recipe.data.name, 32)
        in_chans = 1 if recipe.data.name == "digits-lt" else 3
        with torch.device("meta"):
            task = full_model(recipe, in_chans=in_chans, image_size=size)
        assert {p.device.type for p in task.parameters()} == {"meta"}
        # Where features do not change any more, the relation is that of the stage before.
        without = recipe.relation.name == "none" or recipe.head.name in ("routed", "tau")
        assert (getattr(task, "relation", None) is None) == without

    def test_two_steps_run_through_the_command_line(self, name, tmp_path):
        recipe = RECIPES[name]
        options = every_fake.write(recipe.data.name, tmp_path / "data")
        if recipe.data.imbalance_factor is not None:
            options.setdefault("imbalance_factor", None)
        if recipe.data.test_list and recipe.data.val_list is None:  # iNaturalist: what is called validation is test
            options["val_list"] = None
        overrides = {f"data.{k}": v for k, v in options.items()} | recipe.smoke
        status = main(["train", name, "--out", str(tmp_path / "run"), *to_arguments(overrides)])
        assert status == 0
        line = json.loads((tmp_path / "run" / "results.jsonl").read_text())
        assert (line["recipe"], line["variant"], line["seed"]) == (name, recipe.variant, 0)
        assert line["primary"] == recipe.primary
        assert all(0 <= value <= 1 for value in line["metrics"].values())
        assert recipe.primary in line["metrics"]

    def test_variants_differ_in_their_relation_alone(self, name):
        recipe = RECIPES[name]
        if recipe.variant == "plain":
            assert recipe.as_variant("plain") == recipe
            return
        for variant in ("plain", "related", "control"):
            other = recipe.as_variant(variant)
            assert other.variant == variant
            assert dataclasses.replace(other, relation=recipe.relation) == recipe

    def test_yaml_gives_the_recipe_back(self, name, tmp_path):
        recipe = RECIPES[name]
        yaml_file.write(recipe, tmp_path / "recipe.yaml")
        assert yaml_file.read(tmp_path / "recipe.yaml") == dataclasses.replace(recipe, smoke={}, ran=())

    def test_repr_shows_what_was_reported(self, name):
        for reported in RECIPES[name].reported:
            assert str(reported.value) in repr(RECIPES[name])


@pytest.mark.parametrize("name", ["places-lt-balanced-softmax-resnet152", "imagenet-lt-frozen"])
def test_recipes_on_a_frozen_network_run_on_one(name, tmp_path):
    recipe = RECIPES[name]
    options = {f"data.{k}": v for k, v in every_fake.write(recipe.data.name, tmp_path / "data").items()}
    save_file(create_backbone("test_resnet").state_dict(), tmp_path / "w.safetensors")
    smoke = recipe.smoke | {"backbone.frozen": True, "backbone.weights": tmp_path / "w.safetensors"}
    assert main(["train", name, "--out", str(tmp_path / "run"), *to_arguments(options | smoke)]) == 0
    assert yaml_file.read(tmp_path / "run" / "recipe.yaml").backbone.frozen


def test_fine_tuning_never_begins_with_random_weights(tmp_path, capsys):
    for name in ("imagenet-patchconvnet-s60-384", "imagenet-patchconvnet-s60-multi"):
        assert main(["train", name, "--data.root", str(tmp_path), "--out", str(tmp_path / "run")]) == 2
        assert "`backbone.needs_weights` forbids random weights" in capsys.readouterr().err


def test_every_published_long_tailed_row_is_reported_by_a_recipe_of_its_network():
    facts = FIXTURES.parent / "facts" / "reported.json"
    if not facts.is_file():
        pytest.skip(f"there is no {facts}")
    prefix = {"imagenet-lt": "imagenet-lt", "inaturalist2018": "inaturalist"}
    group = {"all": "accuracy"}
    for name, rows in json.loads(facts.read_text())["long_tailed"].items():
        for row in rows:
            [recipe] = [
                r
                for r in RECIPES.values()
                if r.name.startswith(prefix[name])
                and row["method"].split()[0].lower() in r.name
                and row["backbone"] in r.backbone.name
                and r.reported
            ]
            told = {(r.variant, r.metric): 100 * r.value for r in recipe.reported}
            expected = {
                (variant, group.get(metric, metric)): value
                for variant in ("plain", "related")
                for metric, value in row[variant].items()
            }
            assert told == pytest.approx(expected)


# Recipe -> lr, weight decay, batch, epochs, and what else the dossier's tables say.
PUBLISHED = {
    "imagenet-lt-balanced-softmax-resnet10": (0.05, 5e-4, 128, 90, {}),
    "imagenet-lt-balanced-softmax-resnet50": (0.05, 5e-4, 128, 90, {}),
    "inaturalist-balanced-softmax-resnet50": (0.05, 1e-4, 128, 90, {}),
    "places-lt-balanced-softmax-resnet152": (0.02, 5e-4, 256, 90, {"backbone.frozen": True}),
    "imagenet-lt-balms": (
        *(0.125, 5e-4, 1024, 160),  # 20 x 8 shares
        {"data.sampler": "meta", "data.meta_rate": 1e-3, "data.meta_power": 0.1, "criterion.name": "balanced-softmax"},
    ),
    "cifar100-lt-balms": (0.1, 5e-4, 2048, 500, {"data.meta_rate": 1e-2, "data.meta_power": 0.0}),
    "cifar100-lt-decoupled-balanced-softmax": (
        *(0.1, 5e-4, 512, 105),
        {"data.sampler": "shuffle", "criterion.name": "balanced-softmax", "before.recipe": "cifar100-lt"},
    ),
    "imagenet-lt-decoupled-balanced-softmax": (
        *(0.4, 5e-4, 512, 10),
        {"data.sampler": "shuffle", "criterion.name": "balanced-softmax"},
    ),
    # That cRT and LWS have the settings of the decoupled Balanced Softmax is ours.
    "cifar100-lt-crt": (0.1, 5e-4, 512, 105, {"data.sampler": "class-balanced"}),  # 2,000 steps of 19 an epoch
    "cifar100-lt-lws": (0.1, 5e-4, 512, 105, {"head.name": "lws"}),
    "imagenet-lt-crt": (0.4, 5e-4, 512, 10, {"data.sampler": "class-balanced"}),
    "imagenet-lt-ride-resnet10": (0.1, 2e-4, 512, 120, {"criterion.temperature_factor": 0.02}),
    "imagenet-lt-ride-resnet50": (0.1, 2e-4, 256, 100, {"optimizer.milestones": (60, 80)}),
    "imagenet-lt-ride-resnext50": (0.1, 2e-4, 256, 100, {"criterion.reweight_epoch": 80}),
    "inaturalist-ride-resnet50": (0.2, 2e-4, 128, 100, {"criterion.temperature_factor": 0.015}),
    "cifar100-lt-balanced-softmax-long": (0.1, 5e-4, 512, 619, {"optimizer.warmup_start": 0.5}),
    "cifar100-lt-ride": (0.1, 5e-4, 128, 200, {"optimizer.gamma": 0.01, "criterion.reweight_epoch": 160}),
    "cifar100-lt-ride-distilled": (0.1, 5e-4, 128, 200, {"criterion.diversity": 0.2, "optimizer.warmup_epochs": 20}),
    "imagenet-lt-paco": (0.02, 5e-4, 128, 400, {"criterion.temperature": 0.2, "criterion.alpha": 0.05}),
    "imagenet-lt-paco-resnext50": (0.02, 5e-4, 128, 400, {"criterion.temperature": 0.07}),
    "imagenet-lt-paco-resnext101": (0.03, 5e-4, 128, 400, {"criterion.temperature": 0.2}),
    "inaturalist-paco": (0.02, 1e-4, 128, 400, {"contrast.queue": 8192}),
    "places-lt-paco": (0.02, 5e-4, 128, 30, {"optimizer.warmup_epochs": 5}),
    "cifar100-lt-glmc": (
        *(0.01, 5e-3, 64, 200),
        {"criterion.consistency": 4.0, "criterion.mixture": 1.0, "optimizer.warmup_epochs": 0},
    ),
    "cifar100-lt-weight-decay": (0.01, 5e-3, 64, 320, {"optimizer.warmup_epochs": 0}),
    "cifar100-lt-max-norm": (0.01, 0.1, 64, 10, {"head.max_norm_share": 0.1, "head.from_weights": True}),
    "cifar100-lt-glmc-max-norm": (0.01, 0.1, 64, 10, {"head.max_norm_share": 0.1, "head.from_weights": True}),
    "cifar100-lt-paco": (0.05, 5e-4, 128, 400, {"criterion.temperature": 0.05, "contrast.queue": 1024}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_are_the_published_ones(name):
    recipe = RECIPES[name]
    *first, others = PUBLISHED[name]
    part = recipe.optimizer
    assert [part.lr, part.weight_decay, recipe.data.batch_size, recipe.trainer.epochs] == first
    for path, value in others.items():
        group, field = path.split(".")
        assert getattr(getattr(recipe, group), field) == value, path


@pytest.mark.parametrize("name", ["crt", "lws", "tau", "decoupled-balanced-softmax", "balms"])
def test_the_features_of_second_stages_are_those_of_cross_entropy(name):
    cifar, imagenet = (stages(RECIPES[f"{of}-lt-{name}"])[0] for of in ("cifar100", "imagenet"))
    assert {cifar.criterion.name, imagenet.criterion.name} == {"cross-entropy"}
    part = imagenet.optimizer
    assert (part.lr, part.weight_decay, imagenet.data.batch_size, imagenet.trainer.epochs) == (0.2, 5e-4, 512, 90)


def test_norms_begin_where_those_of_the_published_networks_do():
    """At 1; timm's ResNets begin with the last norm of each block at 0."""
    of_timm = [
        recipe
        for recipe in RECIPES.values()
        if recipe.name.startswith(("imagenet-lt", "inaturalist")) and recipe.backbone.name.startswith("res")
    ]
    assert {recipe.name.split("-")[-1] for recipe in of_timm} >= {"resnet10", "resnet50", "paco", "resnext101", "balms"}
    for recipe in of_timm:
        assert recipe.backbone.options["zero_init_last"] is False, recipe.name
    small = {"options": {"channels": (8, 8, 8, 8)}}
    for network in (create_backbone("ride_resnet10", **small), create_backbone("resnet10t", options=RESNET_10.options)):
        norms = [module.weight for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        assert all(bool((weight == 1).all()) for weight in norms)


def test_a_run_is_told_the_published_numbers_of_its_own_variant_alone():
    recipe = RECIPES["imagenet-lt-ride-resnet50"]
    for variant in ("plain", "related"):
        lines = reported_of_variant(recipe.as_variant(variant))
        assert len(lines) == 4
        assert all(f", {variant}: " in line for line in lines)
    assert reported_of_variant(recipe.as_variant("control")) == []


def test_numbers_of_replaced_features_stand_beside_recipes_that_replace_them():
    sets = {"resnet10": (4, 128), "resnet50": (4, 64), "resnext50": (8, 32)}
    replicas = {f"imagenet-lt-ride-{network}": numbers for network, numbers in sets.items()}
    replicas["inaturalist-ride-resnet50"] = (8, 16)
    for name, (number, images) in replicas.items():
        recipe, shared = RECIPES[name], RECIPES[f"{name}-shared"]
        assert (recipe.relation.official_replace, recipe.relation.official_replicas) == (True, number)
        assert recipe.data.batch_size / number == images
        assert (shared.relation.official_replace, shared.relation.official_replicas, shared.reported) == (False, 1, ())


def test_a_random_pool_is_never_frozen():
    recipe = RECIPES["image-folder"].override({"backbone.pool": "attention"})
    with pytest.raises(InvalidInput, match=r"which --backbone\.frozen would keep: train the pool first"):
        check_start(recipe.override({"backbone.frozen": True, "backbone.pretrained": True}))
    size = {"in_chans": 3, "image_size": 32, "say": lambda text: None}
    with pytest.raises(InvalidInput, match=r"--backbone\.trained would keep: name global_pool, too"):
        make_backbone(recipe.override({"backbone.trained": ("layer4",)}), **size)
    trained = make_backbone(recipe.override({"backbone.trained": ("layer4", "global_pool")}), **size)
    assert all(p.requires_grad for name, p in trained.named_parameters() if name.startswith("global_pool"))


@pytest.mark.parametrize(("option", "value"), [("global-pool", "avg"), ("stem", "linear")])
def test_pool_and_stem_of_the_pooling_recipe_can_be_switched(option, value, tmp_path):
    recipe = RECIPES["cifar10-pooling-short"]
    options = {f"data.{name}": value for name, value in every_fake.write(recipe.data.name, tmp_path / "data").items()}
    command = [*to_arguments(options | recipe.smoke), f"--backbone.options.{option}", value]
    assert main(["train", recipe.name, "--out", str(tmp_path / "run"), *command]) == 0
    assert yaml_file.read(tmp_path / "run" / "recipe.yaml").backbone.options[option.replace("-", "_")] == value


def test_the_reference_names_every_field():
    groups = {
        line.split("`")[1]: line
        for line in (Path(__file__).parents[1] / "docs" / "reference.md").read_text().splitlines()
        if line.startswith("| `")
    }
    hints = typing.get_type_hints(Recipe)
    for group in GROUPS:
        missing = [field.name for field in dataclasses.fields(hints[group]) if f"`{field.name}`" not in groups[group]]
        assert not missing, (group, missing)


def test_listing_recipes_imports_no_torch():
    code = "import setwise.recipes, sys; sys.exit(bool({'torch', 'numpy', 'yaml'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data:\n  batch_size: many\n", r"`data\.batch_size` must be of type int, but it is 'many'"),
        ("data:\n  bach_size: 3\n", "did you mean 'batch_size'"),
        ("relation:\n  attend: everybody\n", r"`relation\.attend` must be one of all, self"),
        ("optimizer: sgd\n", "`optimizer` must be a block of fields"),
        ("- a\n- b\n", "must hold the fields of a recipe"),
        ("data: [", "not a YAML file"),
        ("optimizer:\n  milestones: 3\n", r"`optimizer\.milestones` must be a list"),
        ("data:\n  multi_label: 1\n", r"`data\.multi_label` must be of type bool"),
        ("backbone:\n  options: 3\n", r"`backbone\.options` must be a block of names and values"),
        ("reported:\n- metric: accuracy\n", r"`reported\[0\]` is not whole: .*variant"),
        ("name: ../elsewhere\n", "`name` names folders"),
        ("trainer:\n  device: 2\n", r"mine\.yaml: There is no field of `trainer` 'device'"),
    ],
)
def test_a_wrong_recipe_file_is_one_sentence(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises((InvalidInput, UnknownName), match=message):
        yaml_file.read(path)


def test_a_plain_recipe_has_no_control():
    with pytest.raises(InvalidInput, match="has no relation"):
        RECIPES["digits-lt"].as_variant("plain").as_variant("control")


def test_a_short_recipe_file_keeps_the_defaults(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("data:\n  name: digits-lt\noptimizer:\n  lr: 5e-2\n  milestones: [3, 5]\n")
    recipe = yaml_file.read(path)
    assert (recipe.name, recipe.optimizer.lr, recipe.optimizer.milestones) == ("mine", 0.05, (3, 5))
    assert recipe.trainer == Recipe(name="", summary="").trainer


def test_a_summary_of_several_lines_is_written_as_it_can_be_read(tmp_path):
    recipe = RECIPES["digits-lt"].override({"summary": "mine:\n\n  - of two lines\n"})
    yaml_file.write(recipe, tmp_path / "recipe.yaml")
    assert yaml_file.read(tmp_path / "recipe.yaml").summary == recipe.summary
