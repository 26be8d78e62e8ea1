"""``benchmarks/trust.py``: its scenes have the boxes they say, and a broken-off measurement goes on."""

import json
import os
import sys
import zipfile
from pathlib import Path

import fakes
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from setwise.models import PatchConvNet, load_weights

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

DATA = Path(os.environ.get("SETWISE_DATA", Path(__file__).parents[2] / "shared" / "data"))
"""Where real data sets are, if they are."""


@pytest.fixture(scope="module")
def trust():
    sys.path.insert(0, str(BENCHMARKS))
    import trust
    import trust_networks
    import trust_scenes

    yield {"main": trust, "networks": trust_networks, "scenes": trust_scenes}
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Five classes with more photographs than are held out, in the few-shot split's layout."""
    folder = tmp_path_factory.mktemp("tiny")
    lines = ["filename,label"]
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for label in range(5):
            for number in range(24):
                name = f"train/n{label}/{number}.png"
                Image.fromarray(fakes.picture(label, number, side=64)).save(folder / "one.png")
                archive.write(folder / "one.png", name)
                lines.append(f"{name},n{label}")
    (folder / "train.csv").write_text("\n".join(lines) + "\n")
    classes = dict.fromkeys(line.partition(",")[2] for line in lines[1:])
    (folder / "classes.csv").write_text("\n".join(["wnid,words", *(f"{name},{name}" for name in classes)]) + "\n")
    return folder


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """One picture of each part, wider than high, with a box in its central square and one outside of it."""
    root = tmp_path_factory.mktemp("coco")
    (root / "annotations").mkdir()
    for number, part in enumerate(("val2017", "train2017")):
        (root / part).mkdir()
        Image.fromarray(fakes.picture(number, 0, side=80)).crop((0, 0, 80, 40)).save(root / part / "1.png")
        boxes = [{"image_id": 1, "iscrowd": 0, "bbox": [30, 0, 10, 20]}]
        boxes += [{"image_id": 1, "iscrowd": 0, "bbox": [0, 0, 15, 40]}, {"image_id": 1, "iscrowd": 1, "bbox": [0] * 4}]
        listed = {"images": [{"id": 1, "file_name": "1.png"}], "annotations": boxes}
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(listed))
    return root


def test_held_out_photographs_are_never_trained_on_and_stand_in_the_cells_of_the_grid(trust, tiny):
    found = trust["scenes"].read_photographs(tiny)
    assert (len(found.train), len(found.held_out)) == (20, 100)
    assert not {image.numpy().tobytes() for image in found.train} & {i.numpy().tobytes() for i in found.held_out}
    for scene in trust["scenes"].grids(found, count=5, side=64):
        assert scene.image.shape == (3, 128, 128)
        assert scene.inside.sum() == 64 * 64
        cell = scene.image[:, scene.inside].view(3, 64, 64)
        held = found.held_out[found.held_out_target == scene.label]
        assert any(torch.equal(cell, image) for image in held)


def test_boxes_of_coco_follow_the_central_square(trust, coco):
    scenes = trust["scenes"].coco(coco, count=9, side=80)
    assert [scene.name for scene in scenes] == ["coco 1", "coco 1"]
    inside = scenes[0].inside
    assert inside[:40, 20:40].all()  # (30 - 20, 0) to (40 - 20, 20), twice as large
    assert inside.sum() == 40 * 20


def test_a_try_measures_every_map_and_a_second_call_goes_on(trust, tiny, coco, tmp_path, capsys):
    command = ["--train", "--tiny", str(tiny), "--coco", str(coco), "--out", str(tmp_path), "--epochs", "1"]
    command += ["--max-steps", "1", "--pictures", "1", "--steps", "2", "--side", "64", "--threads", "1"]
    trust["main"].main(command)
    lines = (tmp_path / "trust.jsonl").read_text().splitlines()
    maps = {(line["network"], line["method"]) for line in map(json.loads, lines)}
    for network, methods in {
        "one query": ("attention", "Grad-CAM"),
        "query a class": ("attention", "Grad-CAM"),
        "average": ("CAM", "Grad-CAM"),
        "transformer": ("rollout",),
    }.items():
        assert {method for name, method in maps if name == network} == {*methods, "centre", "uniform"}
    assert "| query a class | attention |" in capsys.readouterr().out
    network = trust["networks"].NETWORKS["query a class"](5)
    assert not load_weights(network, tmp_path / "query-a-class.pt").missing  # as `setwise show` reads them
    (tmp_path / "trust.jsonl").write_text("\n".join(lines[:-3]) + "\n")
    before = os.stat(tmp_path / "average.pt").st_mtime_ns
    trust["main"].main(command)
    assert (tmp_path / "trust.jsonl").read_text().splitlines() == lines
    assert os.stat(tmp_path / "average.pt").st_mtime_ns == before
    for other in (["--epochs", "2"], ["--steps", "3"]):
        with pytest.raises(SystemExit, match="name another --out"):
            trust["main"].main([*command, *other])


def test_a_network_of_ones_own_is_measured_on_coco(trust, coco, tmp_path, capsys):
    save_file(PatchConvNet(embed_dim=16, depth=1, num_classes=3).state_dict(), tmp_path / "w.safetensors")
    command = ["--model", "patchconvnet_s60", "--weights", str(tmp_path / "w.safetensors"), "--coco", str(coco)]
    command += ["--options", "embed_dim=16", "depth=1", "--pictures", "2", "--steps", "2", "--side", "32"]
    trust["main"].main([*command, "--out", str(tmp_path / "out"), "--threads", "1"])
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| coco")]
    others = ["Grad-CAM", "centre", "uniform"]
    assert [row.split(" | ")[2] for row in table] == ["attention", *others, *(f"attention - {map_}" for map_ in others)]
    line = json.loads((tmp_path / "out" / "trust.jsonl").read_text().splitlines()[0])
    assert len(line["deletion_curve"]) == len(line["insertion_curve"]) == 3
    assert line["deletion_curve"][0] == pytest.approx(line["probability"], abs=1e-5)


def found_below(pattern):
    skipped = pytest.param(None, marks=pytest.mark.skip(reason=f"no {pattern} below {DATA}"))
    return sorted(DATA.glob(pattern)) or [skipped]


@pytest.mark.parametrize("listed", found_below("*/annotations/instances_val2017.json"), ids=str)
def test_real_pictures_with_boxes_make_scenes(trust, listed):
    scenes = trust["scenes"].coco(listed.parents[1], count=4, side=64)
    assert 0 < len(scenes) <= 4
    assert all(0.02 <= float(scene.inside.float().mean()) <= 0.7 for scene in scenes)


@pytest.mark.parametrize("listed", found_below("*fewshot/train.csv"), ids=str)
def test_real_photographs_make_grids(trust, listed):
    found = trust["scenes"].read_photographs(listed.parent)
    held = torch.bincount(found.held_out_target, minlength=found.num_classes)
    assert bool((held > 0).all())
    assert len(trust["scenes"].grids(found, count=2, side=64)) == 2


def test_what_is_missing_is_said_before_anything_runs(trust, tmp_path, capsys):
    for command, message in (([], "nothing to measure"), (["--train"], "needs --tiny"), (["--model", "x"], "needs")):
        with pytest.raises(SystemExit):
            trust["main"].parse(["--out", str(tmp_path), *command])
        assert message in capsys.readouterr().err
