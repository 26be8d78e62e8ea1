"""The examples run as they are written, and show what they say they show."""

import argparse
import re
import runpy
import sys
from pathlib import Path

import fakes
import pytest
import timm
import torch

import setwise.models  # noqa: F401  registers our networks with timm

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(monkeypatch, capsys):
    """Run an example as ``python examples/NAME ARGUMENTS`` would, in this process, and return what it printed."""

    def run_example(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run_example


def test_every_example_is_tested_here():
    tested = Path(__file__).read_text()
    assert all(f'"{path.name}"' in tested for path in EXAMPLES.glob("*.py"))


def test_own_model_learns_with_and_without(run):
    plain, related = (float(number) for number in re.findall(r"([\d.]+)%", run("own_model.py")))
    assert min(plain, related) > 50  # chance is 10


def test_tokens_doubles_in_training_and_vanishes_in_evaluation(run):
    printed = run("tokens.py")
    assert "rows 64" in printed
    assert "in evaluation equal to timm's own model: True" in printed


def test_who_attends_prints_shares_that_sum_to_one(run):
    rows = [line.split() for line in run("who_attends.py").splitlines()[1:]]
    assert [row[0] for row in rows] == list("0123456789")
    assert all(abs(sum(map(float, row[1:4])) - 1) < 0.002 for row in rows)


def test_streaming_learns_from_shards(run, tmp_path):
    assert float(re.search(r"([\d.]+)%", run("streaming.py")).group(1)) > 70  # chance is 10
    shards = runpy.run_path(str(EXAMPLES / "streaming.py"))["write_shards"](tmp_path)
    assert "accuracy in the last" in run("streaming.py", shards)


def test_compare_own_folder_ends_with_a_verdict_and_a_report(run, tmp_path):
    fakes.write("image-folder", tmp_path / "images")
    printed = run("compare_own_folder.py", tmp_path / "images", tmp_path / "out")
    assert re.search(r"verdict: (gain|no gain|loss|trade-off)", printed)
    assert (tmp_path / "out" / "report.html").is_file()


def test_the_example_of_the_readme_runs_as_it_stands(tmp_path, monkeypatch):
    readme = (EXAMPLES.parent / "README.md").read_text()
    code = re.search(r"<!-- example -->\n```python\n(.*?)```", readme, re.DOTALL).group(1)
    assert len(code.splitlines()) <= 12
    monkeypatch.chdir(tmp_path)
    batch = torch.randn(8, 3, 32, 32), torch.randint(100, (8,))
    names = {"loader": [batch]}
    exec(code, names)
    assert names["logits"].shape == (16, 100)
    plain = timm.create_model("resnet50", num_classes=100)
    plain.load_state_dict(torch.load(tmp_path / "plain.pt", weights_only=True))
    assert torch.equal(plain.eval()(batch[0]), names["model"](batch[0]))


SHOWN = {"query_maps": torch.randn(3, 512, 2, 2), "support_maps": torch.randn(4, 512, 2, 2)}
SHOWN |= {"support_target": torch.tensor([0, 0, 1, 1])}


@pytest.mark.parametrize("page", ["own-loop", "scaling", "reference", "extending", "few-shot"])
def test_the_code_of_the_page_runs_from_top_to_bottom(page):
    blocks = re.findall(r"```python\n(.*?)```", (EXAMPLES.parent / "docs" / f"{page}.md").read_text(), re.DOTALL)
    assert blocks
    exec("\n".join(blocks), dict(SHOWN) if page == "few-shot" else {})


def test_the_code_of_the_page_on_insertion_runs():
    page = (EXAMPLES.parent / "docs" / "insert.md").read_text()
    assert "```python" in page
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(f"from setwise.nn import insert, remove\n{code}", {})


def test_the_code_of_the_page_on_paco_runs():
    page = (EXAMPLES.parent / "docs" / "paco.md").read_text()
    names = names_of(re.search(r"```python\n(.*?)```", page, re.DOTALL).group(1))
    assert names["losses"].shape == (16,)
    assert names["losses"].isfinite().all()


def test_the_code_of_the_page_on_maps_prints_what_stands_below_it(capsys):
    page = (EXAMPLES.parent / "docs" / "maps.md").read_text()
    code, printed = re.search(r"```python\n(.*?)```\n\n```\n(.*?)```", page, re.DOTALL).groups()
    exec(code, {})
    assert capsys.readouterr().out == printed


def test_the_code_of_the_page_on_patchconvnet_runs_and_its_shapes_are_right(tmp_path, monkeypatch):
    page = (EXAMPLES.parent / "docs" / "patchconvnet.md").read_text()
    monkeypatch.chdir(tmp_path)
    weights = timm.create_model("patchconvnet_s60").state_dict()
    torch.save({"model": weights, "args": argparse.Namespace(lr=0.1)}, "s60_224_1k.pth")
    scores, loaded, many, where, pooled = re.findall(r"<!-- example -->\n```python\n(.*?)```", page, re.DOTALL)
    assert names_of(scores)["scores"].shape == (2, 10)
    assert torch.equal(names_of(loaded)["model"].head.weight, weights["head.weight"])
    assert torch.equal(names_of(many)["model"].pool.query[0, 999], weights["pool.query"][0, 0])
    assert names_of(where)["where"].shape == (2, 14, 20)
    assert names_of(pooled)["where"].shape == (2, 7, 7)


def names_of(code):
    names = {}
    exec(code, names)
    return names
