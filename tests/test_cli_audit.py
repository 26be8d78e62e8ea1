"""``setwise audit``: what it prints, its exit status, and what it refuses."""

import pytest

from setwise.cli import main

TINY = ["--trainer.epochs", "1", "--trainer.logger", "csv", "--backbone.options.width", "4"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    for name, options in (("plain", []), ("transductive", ["--relation.relate-at-test"])):
        assert main(["train", "digits-lt", "--out", str(folder / name), *TINY, *options]) == 0
    return folder


def test_a_run_whose_relation_is_gone_at_test_time_passes(runs, capsys):
    assert main(["audit", str(runs / "plain")]) == 0
    first, evaluation, plain, related = capsys.readouterr().out.splitlines()
    assert first.endswith("plain, 4 images of its test part")
    assert evaluation.startswith("In evaluation the prediction does not depend")
    assert plain.startswith("In training the plain row depends")
    assert "`backbone.trunk.1` (BatchNorm2d)" in plain
    assert related.startswith("In training the related row depends on its batch-mates, as a related row is meant to")


def test_a_run_that_relates_at_test_time_does_not_pass_and_names_the_relation(runs, capsys):
    assert main(["audit", str(runs / "transductive"), "--batch-size", "6", "--data.num-workers", "0"]) == 1
    first, evaluation, *_ = capsys.readouterr().out.splitlines()
    assert "6 images" in first
    assert evaluation.startswith("In evaluation the prediction depends on its batch-mates")
    assert "They come in at `relation` (BatchFormer)" in evaluation


@pytest.mark.parametrize(
    ("name", "size", "entry"),
    [("test_resnet", 160, "`conv1.1` (BatchNorm2d)"), ("digits_cnn", 32, "`trunk.1` (BatchNorm2d)")],
)
def test_a_model_by_its_name_is_audited_on_random_images(name, size, entry, capsys):
    assert main(["audit", name]) == 0
    assert main(["audit", name, "--batch-size", "3", "--image-size", "40"]) == 0
    printed = capsys.readouterr().out
    assert f"{name} with random weights, 4 random images of {size} pixels" in printed
    assert f"{name} with random weights, 3 random images of 40 pixels" in printed
    assert printed.count("In training the prediction depends on its batch-mates") == 2
    assert printed.count(entry) == 2


def test_the_help_says_what_the_exit_status_means(capsys):
    assert main(["audit", "--help"]) == 0
    assert "Exit status: 0 if a prediction in evaluation does not depend" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet5O"], "There is no backbone 'resnet5O' in timm"),
        (["resnet5O"], "Nearest: resnet50"),
        (["digits-lt"], "is a recipe, and only a network can be audited"),
        (["missing/run"], "There is no run folder missing/run"),
        ([], "Missing from setwise audit"),
        (["digits_cnn", "--batch-size", "1"], "`batch-size` must be at least 2"),
        (["digits_cnn", "--image-size", "0"], "`image-size` must be at least 1 pixel"),
        (["inception_v3", "--image-size", "32"], "does not run on images of 32 pixels"),
    ],
)
def test_a_wrong_audit_is_one_sentence_and_status_two(arguments, message, capsys):
    assert main(["audit", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in " ".join((captured.err + captured.out).replace("│", " ").split())


def test_a_folder_without_weights_is_no_run(tmp_path, capsys):
    assert main(["audit", str(tmp_path)]) == 2
    assert "is no run folder" in capsys.readouterr().err
