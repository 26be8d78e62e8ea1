"""Readers of files: any bytes give a value or an error of ours, and no path leaves its folder."""

import io
import json
import os
import zipfile
from contextlib import suppress

import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from setwise import run
from setwise.checkpoints import PARTS, Checkpoints, read_checkpoint
from setwise.data.annotations import lines_of, write_list
from setwise.data.image_list import check_path, keep_inside, read_list, read_lists
from setwise.errors import DataError, InvalidInput, RunError, SetwiseError
from setwise.models import read_state
from setwise.recipes import RECIPES, Recipe, yaml_file
from setwise.run_folder import RunFolder, read_lines

many = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
PIECES = [
    "- ",
    ": ",
    "\n  ",
    "name",
    "data",
    "optimizer",
    "lr",
    "batch_size",
    "backbone",
    "options",
    "trainer",
    "reported",
]
PIECES += ["!!timestamp", "!!int", "!!float ", "!!bool ", "!!binary ", "!!set", "!!omap", "2020-99-99", "1e999", "<<"]
PIECES += ["&a ", "*a", "null", "true", "\x00", "...", *"[]{}:,-&*!|>%@#'\"\n\t 0xb_.eE~<?"]
yamlish = st.lists(st.sampled_from(PIECES), max_size=25).map(lambda parts: "".join(parts).encode())
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=8,
)
fields = [
    f"{group}.{name}" for group in ("data", "trainer", "optimizer", "backbone") for name in ("lr", "name", "epochs")
]


def pickled(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


WHOLE = pickled({name: kind() for name, kind in PARTS.items()} | {"state_dict": {"w": torch.ones(3)}})
TENSORS = save({"w": torch.ones(3)})


def damaged(whole):
    """Bytes of a good file with some of them changed, or cut off."""
    changes = st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), min_size=1, max_size=4)
    return st.tuples(changes, st.integers(0, len(whole))).map(lambda drawn: _damage(whole, *drawn))


def _damage(whole, changes, end):
    content = bytearray(whole)
    for place, value in changes:
        content[place] = value
    return bytes(content[:end] if end % 2 else content)


@many
@given(st.binary(max_size=200) | st.text(max_size=60).map(lambda text: f"{text} 1\n{text}/a.png 0".encode()))
@example(b"a\x00b.png 0")
@example(b"x" * 300 + b".png 0")
@example(b"/".join([b"x" * 200] * 40) + b".png 0")
@example(b"ring/a.png 0")
@example(b"a.png " + b"9" * 5000)
@example(b"a.png " + b"9" * 40)
@example("a.png ٣".encode())
def test_any_list_file_gives_images_or_an_error_of_ours(tmp_path, content):
    (tmp_path / "a.png").write_bytes(b"")
    with suppress(FileExistsError):
        (tmp_path / "ring").symlink_to(tmp_path / "ring")
    (tmp_path / "list.txt").write_bytes(content)
    for multi_label in (False, True):
        found = read_list(tmp_path / "list.txt", multi_label=multi_label)
        keep_inside(found, tmp_path)
        assert all((tmp_path / image.path).resolve() == tmp_path.resolve() / "a.png" for image in found.images)
        with suppress(SetwiseError):
            read_lists({"train": tmp_path / "list.txt"}, root=tmp_path, multi_label=multi_label, on_error="skip")


named = st.text(max_size=8) | st.sampled_from(["a/b.jpg", "a 7", "a\n", " a", "\ud800", "/a"])
ids = st.integers(-1, 3) | plain
coco = st.fixed_dictionaries(
    {
        "images": st.lists(st.fixed_dictionaries({"id": ids, "file_name": named | plain}), max_size=3) | plain,
        "annotations": st.lists(st.fixed_dictionaries({"image_id": ids, "category_id": ids}), max_size=3) | plain,
    }
)


@many
@given(st.binary(max_size=60) | (coco | plain).map(lambda value: json.dumps(value).encode()))
@example(b"[" * 100_000)
@example(b'{"images": [{"id": 1' + b"0" * 5000 + b"}]}")
@example(b'{"images": [{"id": 1e400}], "annotations": [1]}')
@example(b'{"images": [{"id": 0, "file_name": "a"}], "annotations": [{"image_id": 0, "category_id": true}]}')
def test_any_file_of_annotations_gives_a_list_that_can_be_read_or_an_error_of_ours(tmp_path, content):
    (tmp_path / "all.json").write_bytes(content)
    with suppress(DataError):
        lines = lines_of(tmp_path / "all.json")
        (tmp_path / "list.txt").unlink(missing_ok=True)
        write_list(lines, tmp_path / "list.txt")
        found = read_list(tmp_path / "list.txt")
        assert not found.problems
        assert [f"{image.path} {image.labels[0]}" for image in found.images] == lines


@many
@given(st.lists(st.sampled_from(["..", ".", "", "a", "out", "in", "deep", "/", "~", "secret.png"]), max_size=6))
def test_no_path_of_a_list_leaves_the_root(tmp_path, parts):
    root = tmp_path / "root"
    if not root.exists():
        (tmp_path / "secret.png").write_bytes(b"")
        (root / "deep").mkdir(parents=True)
        for name in ("a", "secret.png", "deep/secret.png"):
            (root / name).write_bytes(b"")
        (root / "out").symlink_to(tmp_path)
        (root / "in").symlink_to(root / "deep")
    path = "/".join(parts)
    if check_path(path, root.resolve(), {}) is None:
        assert (root / path).resolve().is_relative_to(root.resolve())
        assert (root / path).is_file()
        assert ".." not in parts


@pytest.mark.parametrize("path", ["../secret.png", "deep/../../secret.png", "/etc/passwd", "out/secret.png", "file"])
def test_a_list_that_leads_out_of_the_root_is_refused(tmp_path, path):
    root = tmp_path / "root"
    (root / "deep").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(b"")
    (root / "out").symlink_to(tmp_path)
    (root / "file").symlink_to(tmp_path / "secret.png")
    (root / "list.txt").write_text(f"{path} 0\n")
    with pytest.raises(DataError, match=r"must not leave it|leads out of the root through a link"):
        read_lists({"train": root / "list.txt"}, root=root, multi_label=False, on_error="raise")


@many
@given(st.binary(max_size=100) | yamlish | plain.map(lambda value: yaml.safe_dump(value).encode()))
@example(b"[" * 3000)
@example(b"!!timestamp x")
@example(b"!!int ''")
@example(b"date: 2020-99-99")
@example(b"a: &a [*a]")
@example(b"data: &a {name: *a}")
@example(b"optimizer: {lr: 1" + b"0" * 400 + b"}")
@example(b"optimizer: {lr: 1" + b"0" * 5000 + b"}")
@example(b"? [1, 2]\n: 3")
@example(b"1: 2")
def test_any_recipe_file_gives_a_recipe_or_an_error_of_ours(tmp_path, content):
    (tmp_path / "mine.yaml").write_bytes(content)
    with suppress(SetwiseError):
        assert isinstance(yaml_file.read(tmp_path / "mine.yaml"), Recipe)


@many
@given(st.sampled_from(fields), plain)
def test_any_value_of_a_recipes_field_is_taken_or_refused_by_name(tmp_path, field, value):
    group, _, name = field.partition(".")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({group: {name: value}}))
    refused, recipe = "", None
    try:
        recipe = yaml_file.read(tmp_path / "mine.yaml")
    except SetwiseError as error:
        refused = str(error)
    if recipe is None:
        assert "mine.yaml" in refused
        assert name in refused
    else:
        yaml_file.write(recipe, tmp_path / "again.yaml")
        assert repr(yaml_file.read(tmp_path / "again.yaml")) == repr(recipe)


def test_a_few_lines_that_refer_to_each_other_are_refused_in_no_time(tmp_path):
    lines = [f"- &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)]
    (tmp_path / "bomb.yaml").write_text("\n".join(["name:", "- &a0 [x, x]", *lines]))
    with pytest.raises(InvalidInput, match="`name` must be of type str") as caught:
        yaml_file.read(tmp_path / "bomb.yaml")
    assert len(str(caught.value)) < 10_000


@many
@given(
    st.sampled_from([".pt", ".pth", ".safetensors"]),
    st.binary(max_size=100) | damaged(WHOLE) | damaged(TENSORS) | plain.map(pickled),
)
@example(".pt", pickled({1: torch.ones(2), "w": torch.ones(2)}))
@example(".pt", pickled({"state_dict": {"model": {3: torch.ones(2)}}}))
@example(".pt", b"\x80\x04]" + b"]" * 5000)
def test_any_weights_file_gives_tensors_or_an_error_of_ours(tmp_path, suffix, content):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with suppress(SetwiseError):
        state = read_state(path)
        assert state
        assert all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items())


@many
@given(st.binary(max_size=100) | damaged(WHOLE) | plain.map(pickled))
@example(b"")
@example(pickled([1]))
@example(TENSORS)
def test_any_checkpoint_file_gives_a_checkpoint_or_an_error_of_ours(tmp_path, content):
    folder = RunFolder(tmp_path)
    folder.checkpoints.mkdir(exist_ok=True)
    folder.last.write_bytes(content)
    try:
        checkpoint = read_checkpoint(folder.last)
    except RunError:
        with pytest.raises(RunError, match="No checkpoint can be read"):
            Checkpoints(folder, print).load_checkpoint(folder.last)
    else:
        assert torch.equal(checkpoint["state_dict"]["w"], torch.ones(3))  # never a wrong weight


class Harm:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {name: kind() for name, kind in PARTS.items()} | {"callbacks": {"x": Harm()}}
    torch.save(content, "last.ckpt")
    with pytest.raises(RunError, match="cannot be read as a checkpoint"):
        read_checkpoint(tmp_path / "last.ckpt")
    torch.save(content, "weights.pt")
    with pytest.raises(InvalidInput, match="unpickling it could run code"):
        read_state("weights.pt")
    assert not (tmp_path / "harm").exists()


def test_an_archive_cannot_write_outside_itself(tmp_path):
    path = tmp_path / "last.ckpt"
    path.write_bytes(WHOLE)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../outside", b"x")
    before = set(tmp_path.rglob("*")) | set(tmp_path.parent.iterdir())
    with suppress(SetwiseError):
        read_checkpoint(path)
    assert set(tmp_path.rglob("*")) | set(tmp_path.parent.iterdir()) == before


@many
@given(st.binary(max_size=60) | plain.map(lambda value: json.dumps(value).encode()))
@example(b"\xff{}")
@example(b"[" * 100_000)
@example(b"[1]")
def test_any_file_of_results_gives_lines_or_an_error_of_ours(tmp_path, content):
    (tmp_path / "results.jsonl").write_bytes(content)
    with suppress(RunError):
        assert all(isinstance(line, dict) for line in read_lines(tmp_path / "results.jsonl"))


MODEL = {
    "class_names": ["a", "b"],
    "counts": [1, 1],
    "group_counts": [1, 1],
    "mean": [0.5],
    "std": [0.5],
    "image_size": 8,
}


@many
@given(st.binary(max_size=60) | plain.map(lambda value: json.dumps(value).encode()))
@example(b"{}")
@example(json.dumps(MODEL).encode())  # good, but there are no weights
def test_any_model_file_of_a_run_is_an_error_of_ours(tmp_path, content):
    folder = RunFolder(tmp_path)
    yaml_file.write(RECIPES["digits-lt"], folder.recipe)
    folder.model.write_bytes(content)
    with pytest.raises(SetwiseError):
        run.load_run(tmp_path)


@many
@given(st.sampled_from(sorted(MODEL)), plain)
@example("mean", 0.5)
@example("counts", "x")
@example("counts", [1, None])
@example("image_size", True)
def test_any_value_of_a_model_file_is_taken_or_an_error_of_ours(tmp_path, field, value):
    folder = RunFolder(tmp_path)
    yaml_file.write(RECIPES["digits-lt"], folder.recipe)
    folder.model.write_text(json.dumps(MODEL | {field: value}))
    with pytest.raises(SetwiseError):
        run.load_run(tmp_path)
