"""A comparison: its plan, its arms over the same seeds, its tuning, and its verdict."""

import json
import os
import shutil
import signal
import time

import fakes
import numpy as np
import pytest

from setwise.cli import main
from setwise.cli.verbs import _tuned
from setwise.compare import TUNING_SEED, compare, make_plan
from setwise.errors import InvalidInput, RunError, SetwiseError, Stopped, UnknownName
from setwise.jobs import Job, _gpus, run_jobs
from setwise.judge import Arm, judge, read_plan, write_plan
from setwise.recipes import RECIPES
from setwise.run import load_run
from setwise.run_folder import RunFolder, read_lines

TINY = RECIPES["digits-lt"].override(
    {"trainer.epochs": 2, "trainer.val_every": 2, "trainer.logger": ("csv",), "backbone.options": {"width": 4}}
)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    root = tmp_path_factory.mktemp("compare")
    late = {"num_seeds": 2, "optimizer.warmup_epochs": 2}
    plan = make_plan(TINY.override(late), attend=("same-class", "other-class"))
    told, said = [], []
    compare(plan, root, workers=2, progress=lambda name, done: told.append(done), say=said.append)
    assert said == ["`optimizer.warmup_epochs` (2) is not reached in 2 epochs."]  # once, not by every run
    return root, told


def test_every_arm_runs_every_seed_in_parallel_processes(compared):
    root, told = compared
    lines = read_lines(root / "results.jsonl")
    assert {(line["variant"], line["seed"]) for line in lines} == {
        (variant, seed) for variant in ("plain", "control", "related") for seed in (0, 1)
    }
    assert len(lines) == 8
    assert {line["recipe"] for line in lines} == {"digits-lt", "digits-lt --relation.attend other-class"}
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1)


def test_arms_of_a_seed_share_data_and_test_images(compared):
    root, _ = compared
    plan = read_plan(root)
    for seed in plan.seeds:
        files = [np.load(RunFolder(plan.folder(root, arm, seed)).predictions) for arm in plan.arms]
        for name in ("counts", "target", "index"):
            assert all(np.array_equal(file[name], files[0][name]) for file in files)


def test_differences_are_those_of_the_metrics(compared):
    root, _ = compared
    comparison = judge(root)
    lines = read_lines(root / "results.jsonl")

    def mean(variant, metric, recipe="digits-lt"):
        return np.mean([x["metrics"][metric] for x in lines if x["variant"] == variant and x["recipe"] == recipe])

    for difference in (comparison.primary, *comparison.others):
        if difference.arm in ("plain", "control", "related"):
            expected = mean(difference.arm, difference.metric) - mean(difference.against, difference.metric)
            assert difference.interval.estimate == pytest.approx(expected, abs=1e-9), difference
    assert comparison.primary.metric == TINY.primary
    assert (comparison.primary.arm, comparison.primary.against) == ("related", "control")
    other = comparison.find(TINY.primary, "related-other-class", "control")
    assert other is not None
    assert other.interval.estimate == pytest.approx(
        mean("related", TINY.primary, "digits-lt --relation.attend other-class") - mean("control", TINY.primary)
    )
    assert len(comparison.classes) == 10
    assert all(d.p_holm >= d.interval.p for d in comparison.others)


def test_a_broken_comparison_is_finished_and_gives_the_same_lines(compared, tmp_path):
    root, _ = compared
    plan = read_plan(root)
    compare(plan, tmp_path, workers=1)
    folder = RunFolder(plan.folder(tmp_path, plan.arms[2], 1))
    folder.results.unlink()  # as if it had been killed before the end
    (tmp_path / "results.jsonl").unlink()
    with pytest.raises(RunError, match=r"is not complete; `setwise compare .* --resume` finishes it"):
        judge(tmp_path)
    compare(None, tmp_path, workers=1)
    metrics = [[line["metrics"] for line in read_lines(path / "results.jsonl")] for path in (root, tmp_path)]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize(("workers", "threads"), [(2, 2), (4, 1)])
def test_the_last_run_of_a_resumed_comparison_has_as_many_threads_as_the_others_had(
    compared, tmp_path, monkeypatch, workers, threads
):
    root = tmp_path / "copy"
    shutil.copytree(compared[0], root)
    plan = read_plan(root)
    shutil.rmtree(plan.folder(root, plan.arms[0], 0))
    seen = []

    def work(todo, workers, threads, share, progress):
        seen.append((len(todo), workers, threads))
        shutil.copytree(compared[0] / plan.folder(root, plan.arms[0], 0).relative_to(root), todo[0].folder)

    monkeypatch.setattr("setwise.jobs.num_cores", lambda: 4)
    monkeypatch.setattr("setwise.jobs._in_parallel", work)
    compare(None, root, workers=workers)
    assert seen == [(1, 1, threads)]


def test_sigterm_ends_a_comparison_with_a_sentence_and_is_heard_as_before_afterwards(compared, tmp_path, monkeypatch):
    root = tmp_path / "copy"
    shutil.copytree(compared[0], root)
    plan = read_plan(root)
    shutil.rmtree(plan.folder(root, plan.arms[0], 0))
    monkeypatch.setattr("setwise.jobs._in_parallel", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="continue with --resume"):
        compare(None, root, workers=2)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("name", ["relation.attend", "relation.name", "data.imbalance_factor", "data.root", "seed"])
def test_what_would_make_the_arms_incomparable_is_not_tuned(name):
    with pytest.raises(InvalidInput, match="cannot be tuned"):
        make_plan(TINY, tune={name: [1, 2]})


def test_nothing_is_tuned_on_test():
    with pytest.raises(InvalidInput, match="nothing is tuned on test: leave out --tune or --select-on test"):
        make_plan(TINY.override({"select_on": "test"}), tune={"optimizer.lr": [0.1, 0.2]})


def test_tuning_shares_no_seed_with_the_comparison_and_names_a_field_once(capsys):
    with pytest.raises(InvalidInput, match="Tuning has the seed 100000 to itself"):
        make_plan(TINY.override({"seed": 99_999, "num_seeds": 2}), tune={"optimizer.lr": [0.1, 0.2]})
    assert main(["compare", "digits-lt", "--tune", "optimizer.lr=0.1", "optimizer.lr=0.2"]) == 2
    assert "--tune names each field once, with all its values: optimizer.lr." in capsys.readouterr().err


def test_tuning_gives_every_arm_the_same_grid_on_seeds_of_its_own(tmp_path):
    plan = make_plan(TINY.override({"num_seeds": 1}), tune={"optimizer.lr": [0.1, 1e-6]})
    said = []
    tuned = compare(plan, tmp_path, workers=1, say=said.append)
    log = read_lines(tmp_path / "tuning.jsonl")
    assert [(line["arm"], line["setting"]["optimizer.lr"]) for line in log] == [
        (arm, lr) for arm in ("plain", "control", "related") for lr in (0.1, 1e-6)
    ]
    recipe = json.loads((tmp_path / "plan.json").read_text())
    assert recipe["tune"] == {"optimizer.lr": [0.1, 1e-6]}
    for arm in tuned.arms:
        scores = {line["setting"]["optimizer.lr"]: line["validation"] for line in log if line["arm"] == arm.name}
        assert arm.settings["optimizer.lr"] == max(scores, key=scores.get)
    seeds = {read_lines(path)[-1]["seed"] for path in (tmp_path / "tuning").rglob("results.jsonl")}
    assert seeds == {TUNING_SEED}
    assert judge(tmp_path).verdict.word == "undecided"  # one seed


def test_tuning_on_an_error_prefers_the_smaller_one(tmp_path):
    plan = make_plan(TINY.override({"num_seeds": 1, "primary": "ece"}), tune={"optimizer.lr": [0.1, 0.01]})
    compare(plan, tmp_path, workers=1)
    log = read_lines(tmp_path / "tuning.jsonl")
    for arm in read_plan(tmp_path).arms:
        scores = {line["setting"]["optimizer.lr"]: line["validation"] for line in log if line["arm"] == arm.name}
        assert arm.settings["optimizer.lr"] == min(scores, key=scores.get)


def test_no_setting_undoes_what_makes_a_control(tmp_path):
    plan = make_plan(TINY.override({"num_seeds": 1}), tune={"relation.attention_dropout": [0.1, 0.2]})
    compare(plan, tmp_path, workers=1)
    for arm, rates in (("control", {0.0}), ("related", {0.1, 0.2})):
        trained = [load_run(path.parent) for path in (tmp_path / "tuning" / arm).rglob("recipe.yaml")]
        assert {layer.self_attn.dropout for _, task, _ in trained for layer in task.relation.layers} == rates
        assert {recipe.relation.attend for recipe, _, _ in trained} == {"self" if arm == "control" else "all"}


@pytest.mark.parametrize("options", [{}, {"tune": {"optimizer.lr": [0.1, 0.2]}}])
def test_a_teacher_that_another_seed_cannot_have_is_refused_before_the_first_run(compared, tmp_path, options):
    teacher = read_plan(compared[0]).folder(compared[0], Arm("plain", "plain", {}), 0)
    recipe = TINY.override({"criterion.teacher": str(teacher), "num_seeds": 1 if options else 2})
    with pytest.raises(InvalidInput, match="has seed 0, this run"):
        compare(make_plan(recipe, **options), tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"criterion.name": "crossentropy"}, {}, "did you mean 'cross-entropy'"),
        ({"relation.memory": 9}, {"attend": ("all", "same-class", "uniform")}, "nothing says of a memory"),  # not last
        ({}, {"tune": {"relation.num_heads": [3, 4]}}, r"`num_heads` \(3\)"),
    ],
)
def test_a_comparison_that_any_arm_or_setting_refuses_leaves_nothing(tmp_path, changes, options, message):
    plan = make_plan(TINY.override(changes), **options)
    with pytest.raises(SetwiseError, match=message):
        compare(plan, tmp_path / "out", workers=2)
    assert not (tmp_path / "out").exists()


def test_settings_that_are_lists_are_read_as_they_were_written(tmp_path):
    path, values = _tuned("optimizer.milestones=[1,2],[2,3]")
    assert values == [(1, 2), (2, 3)]
    plan = make_plan(TINY, tune={path: values})
    tmp_path.joinpath("out").mkdir()
    write_plan(plan, tmp_path / "out")
    assert read_plan(tmp_path / "out").tune == {path: values}
    with pytest.raises(InvalidInput, match=r"--tune: the values of .* cannot be read"):
        _tuned("optimizer.milestones=[1,2")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_run_keeps_the_others_and_says_so(tmp_path, workers):
    plan = make_plan(TINY.override({"num_seeds": 1}))
    broken = plan.folder(tmp_path, plan.arms[1], 0)
    write_plan(plan, tmp_path)
    broken.mkdir(parents=True)
    (broken / "somebody.txt").write_text("else's file")
    with pytest.raises(RunError, match=r"1 of 3 runs did not finish \(control, seed 0: .* is not empty"):
        compare(None, tmp_path, workers=workers)
    assert RunFolder(plan.folder(tmp_path, plan.arms[0], 0)).complete
    assert RunFolder(plan.folder(tmp_path, plan.arms[2], 0)).complete


def test_what_the_data_has_to_say_is_said_once(tmp_path):
    options = fakes.write("image-folder", tmp_path / "data", "one-folder")
    recipe = RECIPES["image-folder"]
    recipe = recipe.override(recipe.smoke | {f"data.{name}": value for name, value in options.items()})
    said = []
    compare(make_plan(recipe.override({"num_seeds": 1})), tmp_path / "out", workers=1, say=said.append)
    assert len([sentence for sentence in said if "is the test part" in sentence]) == 1


def _die_or_sleep(job):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as a run does until its epoch is over
    if job.name == "first":
        time.sleep(2)  # until the other has begun
        os._exit(1)
    time.sleep(200)


def test_a_worker_that_is_killed_ends_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr("setwise.jobs._train_in_worker", _die_or_sleep)
    began = time.monotonic()
    with pytest.raises(RunError, match="a worker process was ended from outside"):
        run_jobs([Job(name, TINY, tmp_path / name) for name in ("first", "second", "third")], 2, lambda *told: None)
    assert time.monotonic() - began < 150


@pytest.mark.parametrize(
    ("visible", "accelerator", "gpus"),
    [
        (None, "auto", ["0", "1", "0"]),
        ("3,GPU-5", "gpu", ["3", "GPU-5", "3"]),
        ("", "cpu", [None, None, None]),
    ],
)
def test_workers_take_turns_among_the_gpus(monkeypatch, visible, accelerator, gpus):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert _gpus(TINY.override({"trainer.accelerator": accelerator}), 3) == gpus


@pytest.mark.parametrize(
    ("recipe", "attend", "error", "message"),
    [
        (TINY.as_variant("plain"), (), RunError, "needs a related recipe"),
        (TINY, ("self",), RunError, "is the control"),
        (TINY, ("same-clas",), UnknownName, "did you mean 'same-class'"),
        (TINY.override({"num_seeds": 0}), (), InvalidInput, "at least one seed"),
    ],
)
def test_a_plan_without_sense_is_refused(recipe, attend, error, message):
    with pytest.raises(error, match=message):
        make_plan(recipe, attend=attend)
