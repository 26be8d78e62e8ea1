"""What a finished run is used for: predictions of other images, and the plain model in other formats."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from surviving import room

from setwise import inference
from setwise.cli import main
from setwise.errors import InvalidInput, RunError
from setwise.export import export
from setwise.inference import predict
from setwise.run import load_run

TINY = ["--trainer.epochs", "1", "--trainer.logger", "csv", "--backbone.options.width", "4"]


def test_predict_keeps_the_order_of_its_inputs(trained_on_images, tmp_path):
    data = trained_on_images / "data"
    images = sorted(data.rglob("owl/*.png"))[:2] + sorted(data.rglob("bee/*.png"))[:1]
    out = tmp_path / "predictions.csv"
    arguments = ["predict", str(trained_on_images / "run"), *map(str, images), "--out", str(out), "--top-k", "2"]
    assert main(arguments) == 0
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [str(path) for path in images]
    for row in rows:
        assert {row["class_1"], row["class_2"]} <= {"bee", "cat", "dog", "owl"}
        assert float(row["probability_1"]) >= float(row["probability_2"]) > 0
    assert main(arguments) == 1  # and never overwrites


def test_predict_takes_folders_and_prints_csv(trained_on_images, capsys):
    folder = trained_on_images / "data"
    assert main(["predict", str(trained_on_images / "run"), str(folder), "--adjusted"]) == 0
    rows = capsys.readouterr().out.strip().splitlines()
    assert len(rows) == 1 + len(list(folder.rglob("*.png")))


def test_an_adjusted_prediction_divides_by_the_class_sizes_to_the_power_that_validation_chose(
    trained_on_images, tmp_path
):
    run = shutil.copytree(trained_on_images / "run", tmp_path / "run")
    model = json.loads((run / "model.json").read_text()) | {"tau": 2.0}
    (run / "model.json").write_text(json.dumps(model))
    image = next((trained_on_images / "data").rglob("owl/*.png"))
    [raw], [adjusted] = (predict(run, [image], top_k=4, adjusted=adjusted) for adjusted in (False, True))
    size = dict(zip(model["class_names"], model["counts"], strict=True))
    share = {name: p * size[name] ** -2.0 for name, p in zip(raw.classes, raw.probabilities, strict=True)}
    expected = {name: value / sum(share.values()) for name, value in share.items()}
    assert dict(zip(adjusted.classes, adjusted.probabilities, strict=True)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, r"`top-k` \(0\) must be at least 1"),
        ({"batch_size": 0}, r"`batch-size` \(0\) must be at least 1"),
        ({"support": Path("shown")}, "--support shows a few-shot run new classes"),
        ({"support": Path("shown"), "adjusted": True}, "--support has classes of its own"),
    ],
)
def test_a_prediction_that_makes_no_sense_is_a_sentence(trained_on_images, options, message):
    with pytest.raises(InvalidInput, match=message):
        predict(trained_on_images / "run", [trained_on_images / "data"], **options)


def test_predict_agrees_with_the_test(trained, tmp_path):
    from sklearn.datasets import load_digits

    pixels = load_digits().images[:20]
    for number, image in enumerate(pixels):
        Image.fromarray((image / 16 * 255).round().astype(np.uint8)).save(tmp_path / f"{number:02d}.png")
    assert main(["predict", str(trained), str(tmp_path), "--out", str(tmp_path / "out.csv"), "--top-k", "1"]) == 0
    _, task, model = load_run(trained)
    image = (torch.tensor((pixels / 16 * 255).round() / 255).float()[:, None] - model.mean[0]) / model.std[0]
    with torch.inference_mode():
        expected = [model.class_names[k] for k in task(image).argmax(1)]
    with (tmp_path / "out.csv").open() as file:
        assert [row["class_1"] for row in csv.DictReader(file)] == expected


def test_predict_spells_out_a_name_that_is_no_text(trained_on_images, tmp_path):
    image = next((trained_on_images / "data").rglob("owl/*.png"))
    odd = os.fsdecode(b"caf\xe9.png")
    try:
        shutil.copy(image, tmp_path / odd)
    except OSError:
        pytest.skip("this file system takes no such name")
    assert main(["predict", str(trained_on_images / "run"), str(tmp_path / odd), "--out", str(tmp_path / "p.csv")]) == 0
    assert (tmp_path / "p.csv").read_text(encoding="utf-8").splitlines()[1].startswith(f"{tmp_path}/caf\\xe9.png,")


def test_predict_names_an_image_it_cannot_read(trained_on_images, tmp_path, capsys):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    assert main(["predict", str(trained_on_images / "run"), str(broken)]) == 2
    assert "broken.png" in capsys.readouterr().err


def test_export_writes_the_plain_model_in_all_formats(trained, tmp_path, capsys):
    every = ["--formats", "safetensors", "torch", "onnx"]
    assert main(["export", str(trained), "--out", str(tmp_path / "out"), *every]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "model.onnx",
        "model.pt2",
        "model.safetensors",
    ]
    assert not [name for name in load_file(tmp_path / "out" / "model.safetensors") if "relation" in name]
    assert capsys.readouterr().out.count("largest difference") == 3
    assert main(["export", str(trained), "--out", str(tmp_path / "out")]) == 1
    assert "is not overwritten" in capsys.readouterr().err


def test_what_was_exported_scores_as_the_run_does_for_any_number_of_images(trained, tmp_path):
    assert main(["export", str(trained), "--out", str(tmp_path), "--formats", "torch", "onnx"]) == 0
    _, task, _ = load_run(trained)
    for size in (1, 5):
        images = torch.randn(size, 1, 8, 8)
        with torch.inference_mode():
            expected = task(images)
        program = torch.export.load(tmp_path / "model.pt2").module()
        torch.testing.assert_close(program(images), expected, rtol=1e-4, atol=1e-5)
        session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
        (scores,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


def test_a_file_that_disagrees_is_not_kept(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("setwise.export.TOLERANCE", -1.0)
    assert main(["export", str(trained), "--out", str(tmp_path / "out"), "--formats", "safetensors"]) == 1
    assert "disagrees with the evaluated one" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_a_package_that_an_export_lacks_is_named_before_the_first_file(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("setwise.export.find_spec", lambda name: None)
    assert main(["export", str(trained), "--out", str(tmp_path / "out"), "--formats", "torch", "onnx"]) == 1
    assert "The onnx export needs the package onnx: pip install 'setwise[export]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_transductive_run_is_not_exported(tmp_path, capsys):
    out = str(tmp_path / "run")
    assert main(["train", "digits-lt", "--out", out, "--relation.relate-at-test", *TINY]) == 0
    assert main(["export", out]) == 2
    assert "relate_at_test" in capsys.readouterr().err


def test_export_into_a_full_disk_is_a_sentence(trained, tmp_path):
    for name in ("safetensors", "torch"):
        with room(1024), pytest.raises(RunError, match=r"cannot be written: File too large"):
            export(trained, tmp_path / "out", (name,))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_reader_of_images_that_dies_in_predict_is_a_sentence(trained_on_images, monkeypatch, capsys):
    def dead(task, loader):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that ...\nmore")

    monkeypatch.setattr(inference, "scores_of", dead)
    assert main(["predict", str(trained_on_images / "run"), str(trained_on_images / "data")]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "A process that reads images died (DataLoader worker (pid 7)" in said
    assert "--num-workers 0" in said


def test_a_file_may_begin_with_a_tilde(trained_on_images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(next((trained_on_images / "data").rglob("*.png")), "~photo.png")
    assert [found.path for found in predict(trained_on_images / "run", [Path("~photo.png")])] == ["~photo.png"]
    assert main(["predict", str(trained_on_images / "run"), "~photo.png"]) == 0


def test_processes_that_read_images_are_as_many_as_named(trained_on_images, monkeypatch):
    asked = []
    make = inference.make_loader
    monkeypatch.setattr(inference, "make_loader", lambda *a, **o: asked.append(o["num_workers"]) or make(*a, **o))
    data = trained_on_images / "data"
    assert main(["predict", str(trained_on_images / "run"), str(data), "--num-workers", "0"]) == 0
    folder = str(data / "test")
    assert main(["test", str(trained_on_images / "run"), "--images", folder, "--data.num-workers", "0"]) == 0
    assert asked == [0, 0]
    assert main(["predict", str(trained_on_images / "run"), str(data), "--num-workers", "-1"]) == 2
