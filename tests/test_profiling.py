"""``setwise profile``: counts that agree with the paper's and with sums by hand, memory that grows, and its errors."""

import csv
import json
import subprocess

import pytest
import timm
import torch

from setwise import profiling
from setwise.cli import main
from setwise.errors import InvalidInput, RunError, UnknownName
from setwise.profiling import Cost, Setting, count, profile, write_costs

SMALL = ["--batch-size", "2", "--image-size", "64", "--seconds", "0.05", "--device", "cpu"]


@pytest.mark.parametrize(
    ("name", "parameters", "billions"),
    [
        ("patchconvnet_s60", 25_231_096, 3.979),
        ("patchconvnet_s60_multi", 25_614_712, 5.308),
        ("patchconvnet_b120", 188_611_336, 29.775),
        ("resnet50", 25_557_032, 4.089),
    ],
)
def test_counts_are_those_of_the_released_code_at_224_pixels(name, parameters, billions):
    side, counted, multiply_adds = count(name, Setting(batch_size=1))
    assert (side, counted, round(multiply_adds / 1e9, 3)) == (224, parameters, billions)


@pytest.mark.parametrize(("side", "heads"), [(64, 1), (80, 2)])
def test_multiply_adds_are_the_sum_over_layers(side, heads):
    dim, depth, classes, grid = 32, 3, 10, side // 16
    patches, squeezed = grid**2, dim // 4
    expected, channels, size = 0, 3, side
    for width in (dim // 8, dim // 4, dim // 2, dim):
        size //= 2
        expected += 9 * channels * width * size**2
        channels = width
    for _ in range(depth):
        expected += 2 * dim**2 * patches + 9 * dim * patches + 2 * dim * squeezed
    tokens = 1 + patches
    expected += dim**2 + 2 * dim**2 * tokens + 2 * dim * tokens + dim**2 + 2 * 3 * dim**2 + dim * classes
    options = {"embed_dim": dim, "depth": depth, "num_classes": classes, "num_heads": heads}
    assert count("patchconvnet_s60", Setting(batch_size=1, image_size=side, options=options))[2] == expected


def test_grey_images_are_counted_where_a_model_takes_them():
    grey, colour = (count("test_resnet", Setting(batch_size=1, options=options)) for options in ({"in_chans": 1}, {}))
    assert grey[1] < colour[1]


def test_a_model_that_cannot_run_without_values_is_counted_on_zeros(monkeypatch):
    class Moody(torch.nn.Linear):
        pretrained_cfg = None

        def forward(self, x):
            return super().forward(x.flatten(1)) * x.sum().item()  # a value, which the meta device has not

    monkeypatch.setattr(profiling, "create_backbone", lambda *_, **__: Moody(3 * 8 * 8, 5))
    assert count("moody", Setting(batch_size=1, image_size=8)) == (8, 5 * (3 * 8 * 8 + 1), 5 * 3 * 8 * 8)


def test_the_table_and_the_file_say_the_same_and_the_bar_moves(tmp_path, capsys):
    out = tmp_path / "costs.csv"
    options = ["--options", "width=4", "--out", str(out)]
    assert main(["profile", "digits_cnn", *SMALL, "--train", *options]) == 0
    captured = capsys.readouterr()
    [row] = csv.DictReader(out.open())
    model = timm.create_model("digits_cnn", width=4, in_chans=3)
    assert int(row["parameters"]) == sum(p.numel() for p in model.parameters())
    assert (row["image_size"], row["batch_size"], row["training"], row["device"]) == ("64", "2", "True", "cpu")
    assert float(row["images_per_second"]) > 0
    assert float(row["peak_memory"]) >= 0
    assert f"{int(row['multiply_adds']) / 1e9:.3f}" in captured.out
    assert "Training steps of 2 images in float32" in captured.out
    assert "100 % of all measurements done" in captured.err


def test_memory_grows_with_the_batch_by_no_less_than_its_first_map():
    options = {"width": 8}
    small, large = (
        profiling._fresh("memory", "digits_cnn", Setting(batch_size=n, image_size=64, options=options), {})[0]
        for n in (1, 257)
    )
    images, first_map = (256 * channels * 64**2 * 4 / 2**20 for channels in (3, 8))
    assert large - small > images + first_map
    assert large - small < 6 * (images + first_map)


def test_too_little_memory_is_said_with_the_way_out(monkeypatch):
    for status, said in ((-9, ""), (1, "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory")):
        result = subprocess.CompletedProcess([], status, "", said)
        monkeypatch.setattr(profiling.subprocess, "run", lambda *_, result=result, **__: result)
        with pytest.raises(
            RunError, match=r"more memory than there is for 2 images on cpu\. Try a smaller --batch-size"
        ):
            profile(["digits_cnn"], Setting(batch_size=2))
    result = subprocess.CompletedProcess([], 1, "", "Traceback\nValueError: Expected more than 1 value per channel")
    monkeypatch.setattr(profiling.subprocess, "run", lambda *_, **__: result)
    with pytest.raises(RunError, match="digits_cnn cannot be measured with 1 images on cpu: ValueError: Expected more"):
        profile(["digits_cnn"], Setting(batch_size=1))


def test_a_file_is_json_by_its_name_and_is_never_overwritten(tmp_path):
    cost = Cost(
        model="a",
        image_size=8,
        parameters=1,
        multiply_adds=2,
        peak_memory=0.5,
        images_per_second=3.0,
        batch_size=4,
        training=False,
        device="cpu",
    )
    write_costs([cost], tmp_path / "costs.json")
    assert json.loads((tmp_path / "costs.json").read_text())[0]["peak_memory"] == 0.5
    with pytest.raises(RunError, match="exists already"):
        write_costs([cost], tmp_path / "costs.json")
    with pytest.raises(RunError, match="cannot be written"):
        write_costs([cost], tmp_path / "missing" / "costs.csv")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Name at least one model"),
        (["resnet50", "patchconvnet_s6O"], "There is no backbone 'patchconvnet_s6O' in timm"),
        (["patchconvnet_s6O"], "Nearest: patchconvnet_s60"),
        (["resnet50", "--options", "depth=3"], "Backbone 'resnet50' does not take these options"),
        (["patchconvnet_s60", "--options", "num_heads=7"], "must be divisible by `num_heads` (7)"),
        (["resnet50", "--options", "depth"], "--options takes NAME=VALUE, such as depth=12, but it was given 'depth'"),
        (["resnet50", "--options", "depth=["], "the value '[' cannot be read"),
        (["resnet50", "--batch-size", "0"], "`batch-size` must be at least 1, but it is 0"),
        (["resnet50", "--image-size", "-1"], "`image-size` must be at least 1, but it is -1"),
        (["inception_v3", "--image-size", "32"], "inception_v3 does not run on images of 32 pixels"),
        (["resnet50", "--out", "costs.txt"], "--out costs.txt must end in .csv or .json"),
        (["resnet50", "--out", "pyproject.csv"], "pyproject.csv exists already"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_measured(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.csv").touch()
    monkeypatch.setattr(profiling, "_fresh", None)
    assert main(["profile", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in " ".join((captured.err + captured.out).replace("│", " ").split())


def test_a_setting_refuses_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Setting.make().device == "cpu"
    assert Setting.make().batch_size == profiling.BATCH_SIZES["cpu"]
    with pytest.raises(InvalidInput, match="finds no such GPU here"):
        Setting.make(device="cuda")
    with pytest.raises(InvalidInput, match="`device` must be 'cuda' or 'cpu', but it is 'tpu'"):
        Setting.make(device="tpu")
    with pytest.raises(UnknownName, match="There is no backbone"):
        count("resnet5O", Setting.make())
