"""PaCo's runs: resumed bit for bit, compared, tested and exported as any classifier's."""

import json

import pytest
import torch
from safetensors.torch import load_file
from surviving import TINY, broken_off, fit, same_weights

from setwise.cli import main
from setwise.errors import InvalidInput
from setwise.recipes import RECIPES
from setwise.run import evaluate
from setwise.run_folder import RunFolder
from setwise.work import make_work

PACO = TINY.override(
    {
        "criterion.name": "paco",
        "data.views": ("shift",),
        "contrast.dim": 8,
        "contrast.queue": 100,  # neither filled in the first epoch nor ending with a batch
        "contrast.momentum": 0.9,
        "trainer.epochs": 3,
    }
)
OPTIONS = "--criterion.name paco --data.views shift --contrast.dim 8 --contrast.queue 100 --backbone.options.width 4"


def test_a_resumed_run_is_the_unbroken_one_bit_for_bit(tmp_path):
    fit(PACO, tmp_path / "unbroken")
    broken = broken_off(PACO, tmp_path / "broken", epoch=2)
    fit(PACO, broken.path, resume=True)
    assert same_weights(tmp_path / "unbroken", broken.path)
    saved = load_file(RunFolder(broken.path).weights)
    assert {"contrast.queue.keys", "contrast.queue.target", "contrast.queue.written"} <= saved.keys()
    assert int(saved["contrast.queue.written"]) > 100
    assert [n for n in saved if n.startswith("contrast.slow_encoder.")]
    metrics, _ = evaluate(broken.path)
    assert metrics == json.loads(RunFolder(broken.path).results.read_text())["metrics"]


def test_a_comparison_trains_the_three_variants_from_the_same_slow_copy(tmp_path, capsys):
    short = "--seeds 1 --workers 1 --trainer.epochs 1 --trainer.val-every 1 --trainer.logger csv --contrast.momentum 1"
    assert main(["compare", "digits-lt", "--out", str(tmp_path / "all"), *OPTIONS.split(), *short.split()]) == 0
    lines = [json.loads(line) for line in (tmp_path / "all" / "results.jsonl").read_text().splitlines()]
    assert sorted(line["variant"] for line in lines) == ["control", "plain", "related"]
    slow = [
        {n: v for n, v in load_file(path).items() if n.startswith("contrast.slow_") and "running" not in n}
        for path in (tmp_path / "all").rglob("weights.safetensors")
    ]
    learned = [n for n in slow[0] if n.endswith("weight")]
    assert len(slow) == 3
    assert learned
    for name in learned:  # which never moves here, and so is what each variant began with
        assert torch.equal(slow[0][name], slow[1][name]), name
        assert torch.equal(slow[0][name], slow[2][name]), name
    folder = next(path.parent for path in (tmp_path / "all").rglob("weights.safetensors") if "related" in str(path))
    assert main(["test", str(folder)]) == 0
    assert main(["export", str(folder), "--formats", "safetensors"]) == 0
    exported = load_file(folder / "export" / "model.safetensors")
    assert not [name for name in exported if "contrast" in name or "relation" in name]


def test_a_backbone_of_which_little_trains_does_not_start_from_random_weights():
    recipe = RECIPES["places-lt-paco"]
    with pytest.raises(InvalidInput, match=r"`backbone\.trained` would keep random weights.*--backbone\.pretrained"):
        make_work(recipe, print)


def test_short_milestones_are_where_the_long_ones_are():
    long, short = RECIPES["cifar100-lt-paco"], RECIPES["cifar100-lt-paco-short"]
    parts = [[m / r.trainer.epochs for m in r.optimizer.milestones] for r in (long, short)]
    assert parts[0] == pytest.approx(parts[1])
