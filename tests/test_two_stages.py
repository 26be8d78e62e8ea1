"""Decoupled training: a first run for the features, a second for the classifier on top of them."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from surviving import TINY, broken_off, fit, same_weights

from setwise import run
from setwise.cli import main
from setwise.compare import make_plan
from setwise.errors import InvalidInput, RunError, UnknownName
from setwise.models import choose_exponent
from setwise.recipes import RECIPES, schema, yaml_file
from setwise.recipes.stages import stage_before, stages
from setwise.report import write_run_report
from setwise.run import evaluate, load_run
from setwise.run_folder import RunFolder
from setwise.tasks import meta_sampled
from setwise.work import make_work

SECOND = TINY.override(
    {"backbone.frozen": True, "data.sampler": "class-balanced", "trainer.epochs": 4, "trainer.val_every": 2}
)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("stages") / "first")
    fit(TINY.override({"trainer.epochs": 2}), folder.path)
    return folder


def after(first, **changes):
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return SECOND.override({"backbone.weights": str(first.weights)} | changes)


@pytest.mark.parametrize("head", ["linear", "cosine", "lws"])
@pytest.mark.parametrize("relation", ["none", "batchformer"])
def test_a_second_stage_changes_nothing_of_the_backbone(first, tmp_path, head, relation):
    fit(after(first, head__name=head, relation__name=relation), tmp_path / "second")
    before, now = load_file(first.weights), load_file(RunFolder(tmp_path / "second").weights)
    backbone = [name for name in before if name.startswith("backbone.")]
    assert any("running_mean" in name for name in backbone)
    for name in backbone:
        assert torch.equal(before[name], now[name]), name
    kept = head == "lws"
    assert torch.equal(before["head.weight"], now["head.weight"]) == kept
    if kept:
        assert not torch.equal(now["head.scales"], torch.ones(10))


def test_weights_that_know_the_validation_part_are_noted(first):
    notes = [make_work(after(first, seed=seed), lambda text: None).notes for seed in (TINY.seed, TINY.seed + 1)]
    assert not notes[0]
    assert "learned from images that are held out for validation here" in notes[1][0]


def test_what_a_short_training_never_reaches_is_said():
    changes = {"optimizer.schedule": "multistep", "optimizer.milestones": (2, 160), "optimizer.warmup_epochs": 1}
    recipe = TINY.override(changes | {"criterion.class_weights": "auto", "criterion.reweight_epoch": 160})
    late = ("criterion.reweight_epoch", "optimizer.milestones")
    assert make_work(recipe, lambda text: None).notes == tuple(f"`{n}` (160) is not reached in 4 epochs." for n in late)


def test_normalised_weights_are_those_of_the_first_stage_at_what_validation_chose(first, tmp_path, capsys):
    with pytest.raises(InvalidInput, match=r"trains nothing, so `optimizer\.lr` does nothing"):
        make_work(after(first, head__name="tau", optimizer__lr=0.3), lambda text: None)
    recipe = after(first, head__name="tau", optimizer=schema.Optimizer())
    line = run.fit(recipe, tmp_path / "second", progress=False)
    assert "Nothing is trained in this stage." in capsys.readouterr().out
    before, now = load_file(first.weights), load_file(RunFolder(tmp_path / "second").weights)
    assert all(torch.equal(before[name], now[name]) for name in before if name.startswith("backbone."))
    assert torch.equal(before["head.weight"], now["head.weight"])
    _, task, _ = load_run(tmp_path / "second")
    loader = make_work(recipe, lambda text: None).loaders["val"]
    linear = torch.nn.Linear(*reversed(before["head.weight"].shape))
    linear.weight.data = before["head.weight"]
    with torch.no_grad():
        features = torch.cat([task.backbone(batch.image) for batch in loader])
    target = torch.cat([batch.target for batch in loader])
    assert float(now["head.tau"]) == pytest.approx(choose_exponent(linear, features, target))
    assert evaluate(tmp_path / "second")[0]["accuracy"] == line["metrics"]["accuracy"]
    assert write_run_report(tmp_path / "second").is_file()


def test_a_stage_before_has_the_primary_metric_and_the_memory_of_the_last():
    changes = {"primary": "balanced_accuracy", "data.micro_batch": 32, "select_on": "test"}
    before = stage_before(RECIPES["cifar100-lt-crt"].override(changes))
    assert (before.primary, before.data.micro_batch, before.select_on) == ("balanced_accuracy", 32, "test")


@pytest.mark.parametrize("head", ["tau", "routed"])
def test_arms_without_a_relation_of_their_own_are_not_compared(head):
    recipe = RECIPES["cifar100-lt-tau"].override({"head.name": head, "backbone.weights": "runs/first/w.safetensors"})
    with pytest.raises(InvalidInput, match=f"--head.name {head} has no relation of its own.*leave that out"):
        make_plan(recipe)


def test_nothing_is_tuned_where_nothing_is_trained():
    with pytest.raises(InvalidInput, match="trains nothing, so there is nothing to tune"):
        make_plan(RECIPES["cifar100-lt-tau"], tune={"optimizer.lr": [0.1, 0.2]})


def test_a_second_stage_that_was_broken_off_ends_as_an_unbroken_one(first, tmp_path):
    recipe = after(first, head__name="lws")
    fit(recipe, tmp_path / "whole")
    broken = broken_off(recipe, tmp_path / "broken")
    fit(recipe, broken.path, resume=True)
    assert same_weights(tmp_path / "whole", broken.path)


def test_a_finished_second_stage_needs_its_first_no_more(first, tmp_path):
    fit(after(first, head__name="lws"), tmp_path / "second")
    gone = first.weights.with_name("moved.safetensors")
    first.weights.rename(gone)
    try:
        _, task, _ = load_run(tmp_path / "second")
    finally:
        gone.rename(first.weights)
    assert not task.training
    assert task(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


OPTIONS = ["--backbone.options.width", "4", "--trainer.epochs", "2", "--trainer.logger", "csv", "--backbone.frozen"]


@pytest.mark.parametrize("by_hand", [True, False])
def test_two_stages_run_through_the_command_line(first, tmp_path, by_hand):
    options = ["--backbone.weights", str(first.weights)]
    if not by_hand:
        options = ["--before.recipe", "digits-lt", "--before.options.trainer.epochs", "1"]
    assert main(["train", "digits-lt", "--out", str(tmp_path / "second"), *OPTIONS, *options]) == 0
    assert json.loads((tmp_path / "second" / "results.jsonl").read_text())["recipe"] == "digits-lt"
    assert RunFolder(tmp_path / "second" / "before").complete is not by_hand


META = {"data.sampler": "meta", "data.batch_size": 96}


@pytest.mark.parametrize("variant", ["related", "plain"])
def test_a_learned_sampler_changes_its_rates_and_the_head_and_not_the_backbone(first, tmp_path, variant):
    recipe = after(first).override(META).as_variant(variant)
    fit(recipe, tmp_path / "second")
    before, now = load_file(first.weights), load_file(RunFolder(tmp_path / "second").weights)
    assert all(torch.equal(value, now[name]) for name, value in before.items() if name.startswith("backbone."))
    rates = now["sampler.log_rates"].softmax(0)
    start = 0.9 * torch.tensor(load_run(first.path)[2].counts).double().log()
    assert (rates - start.softmax(0).float()).abs().max() > 1e-4
    assert int(now["sampler.steps"]) == 4 * 2  # of 251 images, two batches an epoch
    broken = broken_off(recipe, tmp_path / "broken")
    fit(recipe, broken.path, resume=True)
    assert same_weights(tmp_path / "second", broken.path)


def test_the_learned_rates_begin_where_the_recipe_says(first):
    def rates(power):
        return make_work(after(first).override(META | {"data.meta_power": power}), lambda text: None).task.sampler.rates

    torch.testing.assert_close(rates(1.0), torch.full((10,), 0.1))
    assert rates(0.0).max() > rates(0.1).max() > 0.1


def test_a_second_start_in_the_same_folder_changes_nothing_of_the_first(tmp_path, monkeypatch):
    recipe = SECOND.override({"before.recipe": "digits-lt", "before.options": {"trainer.epochs": 1}})
    other = recipe.override({"seed": 1})

    def overtaken(*args, **options):
        (tmp_path / "run").mkdir()
        yaml_file.write(other, tmp_path / "run" / "recipe.yaml")

    monkeypatch.setattr(run, "rehearse", overtaken)
    with pytest.raises(RunError, match="is not empty, and a run never overwrites"):
        fit(recipe, tmp_path / "run")
    assert yaml_file.read(tmp_path / "run" / "recipe.yaml").seed == 1


def test_both_halves_of_a_learned_samplers_batch_have_the_same_classes(first, monkeypatch):
    work = make_work(after(first).override(META), lambda text: None)
    task, batch = work.task.train(), next(iter(work.loaders["train"]))
    seen = []
    monkeypatch.setattr(type(task), "current_epoch", 0)
    monkeypatch.setattr(meta_sampled, "meta_gradient", lambda *args, balanced, **options: seen.append(balanced) or 0.0)
    monkeypatch.setattr(task.sampler, "descend", lambda gradient, lr: None)
    task.trainer = SimpleNamespace(global_rank=0, optimizers=[SimpleNamespace(param_groups=[{"lr": 0.1}])])
    task.training_step(batch, 0)
    balanced = seen[0][1]
    assert set(balanced.tolist()) == set(batch.target.tolist())
    assert torch.equal(balanced, batch.target[1::2])


def test_a_learned_sampler_learns_from_the_stream_that_replaces_the_other(first, monkeypatch):
    work = make_work(after(first).override(META | {"relation.official_replace": True}), lambda text: None)
    rows = []
    work.task.head.register_forward_hook(lambda head, args, out: rows.append(len(out)))
    monkeypatch.setattr(type(work.task), "current_epoch", 0)
    monkeypatch.setattr(meta_sampled, "meta_gradient", lambda *args, **options: torch.zeros(10))
    work.task.trainer = SimpleNamespace(global_rank=0, optimizers=[SimpleNamespace(param_groups=[{"lr": 0.1}])])
    work.task.train().training_step(next(iter(work.loaders["train"])), 0)
    assert rows == [24]
    assert set(work.task._curves) == {"train/related_loss", "train/related_accuracy"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone.frozen": False}, "beside a classifier on a frozen backbone"),
        ({"data.mixup": 0.5}, "without mixup"),
        ({"data.meta_pool": 1}, "must be at least 2"),
        ({"trainer.precision": "bf16-true"}, "steps that half precision rounds away"),
        ({"data.meta_power": 1.5}, r"`data\.meta_power` \(1\.5\) from 0 to 1"),
        ({"data.sampler": "shuffle", "data.meta_rate": 0.5}, r"is of --data\.sampler meta"),
    ],
)
def test_a_learned_sampler_that_cannot_work_is_a_sentence(first, tmp_path, changes, message):
    with pytest.raises(InvalidInput, match=message):
        fit(after(first).override(META | changes), tmp_path / "run")


@pytest.mark.parametrize("ema", [None, 0.5])
def test_no_class_weight_is_longer_than_the_longest(first, tmp_path, ema):
    fit(after(first, head__max_norm=0.2, trainer__ema=ema), tmp_path / "short")
    fit(after(first), tmp_path / "any")
    longest, free = (
        load_file(RunFolder(tmp_path / name).weights)["head.weight"].norm(dim=1).max() for name in ("short", "any")
    )
    assert longest <= 0.2 * (1 + 1e-5) < free


def test_a_second_stage_may_go_on_with_the_classifier_and_a_limit_between_its_lengths(first, tmp_path):
    began = load_file(first.weights)["head.weight"].norm(dim=1)
    still = after(first, head__from_weights=True, head__max_norm_share=1.0, optimizer__lr=0.0)
    fit(still, tmp_path / "still")
    torch.testing.assert_close(load_file(RunFolder(tmp_path / "still").weights)["head.weight"].norm(dim=1), began)
    fit(still.override({"head.max_norm_share": 0.25, "optimizer.lr": 0.01}), tmp_path / "short")
    ended = load_file(RunFolder(tmp_path / "short").weights)["head.weight"].norm(dim=1)
    assert ended.max() <= (0.75 * began.min() + 0.25 * began.max()) * (1 + 1e-5)


def test_a_comparison_runs_both_stages_of_every_arm(tmp_path):
    options = ["--before.recipe", "digits-lt", "--before.options.trainer.epochs", "1", "--seeds", "1"]
    assert main(["compare", "digits-lt", "--out", str(tmp_path / "three"), "--workers", "1", *OPTIONS, *options]) == 0
    assert len(list((tmp_path / "three").rglob("before/results.jsonl"))) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone.frozen": True}, r"`backbone\.frozen` would keep random weights.*--backbone\.weights"),
        ({"head.name": "lws"}, r"lws scales the classifier of a first stage.*--backbone\.frozen"),
        ({"head.name": "lws", "backbone.weights": "x.pt"}, r"lws scales the classifier of a first stage"),
    ],
)
def test_a_second_stage_without_a_first_is_refused(tmp_path, changes, message):
    with pytest.raises(InvalidInput, match=message):
        fit(TINY.override(changes), tmp_path / "run")


BOTH = SECOND.override(
    {"before.recipe": "digits-lt", "before.options": {"trainer.epochs": 2, "trainer.val_every": 2}, "head.name": "lws"}
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("stages") / "both")
    fit(BOTH, folder.path)
    return folder


def test_the_stages_run_in_order_as_they_do_by_hand(first, whole, tmp_path):
    fit(after(first, head__name="lws"), tmp_path / "by hand")
    assert same_weights(first.path, whole.before)
    assert same_weights(tmp_path / "by hand", whole.path)
    assert yaml_file.read(whole.recipe) == BOTH.override({"smoke": {}, "ran": ()})
    assert not load_run(whole.path)[1].training


@pytest.mark.parametrize("epoch", [1, 3], ids=["in the first", "in the second"])
def test_stages_that_were_broken_off_end_as_unbroken_ones(whole, tmp_path, epoch):
    broken = broken_off(BOTH, tmp_path / "broken", epoch)
    assert RunFolder(broken.before).complete == (epoch == 3)
    assert main(["train", str(broken.path), "--resume"]) == 0
    assert same_weights(whole.path, broken.path)
    assert same_weights(whole.before, broken.before)


def test_what_is_wrong_with_the_last_stage_is_said_before_the_first(tmp_path):
    with pytest.raises(InvalidInput, match=r"`head\.scale`.*is the cosine head's"):
        fit(BOTH.override({"head.scale": 8.0}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["cifar100-lt-crt", "cifar100-lt-lws"])
def test_the_stages_of_a_recipe_share_images_network_seed_and_machine(name):
    own = {"data.root": "here", "seed": 7, "trainer.precision": "bf16-mixed", "backbone.options": {"width": 4}}
    recipe = RECIPES[name].override(own).as_variant("plain")
    before, last = stages(recipe)
    assert last == recipe
    assert before.name == "cifar100-lt"
    assert (before.data.root, before.seed, before.trainer.precision) == ("here", 7, "bf16-mixed")
    assert before.backbone.options == {"width": 4}
    assert before.variant == "plain"
    assert (recipe.backbone.frozen, before.backbone.frozen) == (True, False)
    kept = RECIPES["cifar100-lt"]
    assert (before.optimizer, before.data.sampler, before.trainer.epochs) == (kept.optimizer, "shuffle", 200)
    assert stages(recipe.override({"backbone.weights": "mine.pt"})) == [
        recipe.override({"backbone.weights": "mine.pt"})
    ]


def test_of_three_stages_the_middle_one_keeps_what_it_freezes():
    recipe = RECIPES["cifar100-lt"].override({"before.recipe": "cifar100-lt-crt", "backbone.trained": ("layer3",)})
    assert [stage.name for stage in stages(recipe)] == ["cifar100-lt", "cifar100-lt-crt", "cifar100-lt"]
    assert [stage.backbone.frozen for stage in stages(recipe)] == [False, True, False]
    assert [stage.backbone.trained for stage in stages(recipe)] == [(), (), ("layer3",)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone.frozen": False}, "lws scales the classifier of a first stage, whose features must not change"),
        ({"before.use": "teacher", "head.name": "linear"}, "would keep random weights"),
    ],
)
def test_what_the_stage_before_cannot_give_is_said_before_it_begins(tmp_path, changes, message):
    with pytest.raises(InvalidInput, match=message):
        fit(BOTH.override(changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_episodes_of_one_source_start_from_a_classifier_of_its_classes():
    before = stage_before(RECIPES["meta-dataset-ctx"].override({"data.root": "records"}))
    assert before.name == "meta-dataset-pretrain"
    assert before.data.root == "records/ilsvrc_2012"
    with pytest.raises(InvalidInput, match=r"classes of one data set .* `episodes.sources` names a, b"):
        stage_before(RECIPES["meta-dataset-ctx"].override({"episodes.sources": ("a", "b")}))


@pytest.mark.parametrize(
    ("part", "error", "message"),
    [
        ({"recipe": "cifar100-lt-ctr"}, UnknownName, "cifar100-lt-crt"),
        ({"options": {"data.root": "x"}}, InvalidInput, r"cannot set 'data\.root'.*without `before\.`"),
        ({"options": {"before.recipe": "digits-lt"}}, InvalidInput, r"cannot set 'before\.recipe'"),
        ({"options": {"seed": 3}}, InvalidInput, "cannot set 'seed'"),
        ({"options": {"trainer.epochs": "many"}}, InvalidInput, r"`trainer\.epochs` must be of type int"),
        ({"options": {"optimizer.larning_rate": 1}}, UnknownName, "larning_rate"),
    ],
)
def test_a_wrong_stage_before_is_a_sentence(part, error, message):
    recipe = RECIPES["cifar100-lt-crt"].override({f"before.{name}": value for name, value in part.items()})
    with pytest.raises(error, match=message):
        stage_before(recipe)


def test_episodes_freeze_their_trunk_by_another_name(tmp_path):
    recipe = RECIPES["omniglot-ctx"].override({"backbone.frozen": True})
    from setwise.build import build_few_shot

    with pytest.raises(InvalidInput, match=r"freeze a few-shot trunk by --episodes\.freeze-trunk"):
        build_few_shot(recipe, in_chans=1, image_size=28)
