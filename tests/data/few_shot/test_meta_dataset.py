import json
import pickle
import shutil
from pathlib import Path

import few_shot_fakes
import numpy as np
import pytest
import torch
from few_shot_fakes import DATA, encoded, example, field, masked, record, varint
from hypothesis import given
from hypothesis import strategies as st

from setwise.data.few_shot import (
    FEW_SHOT,
    EpisodeSampler,
    classes_of_training,
    find_sources,
    load_sources,
    make_episode_loader,
)
from setwise.data.few_shot.crc32c import crc32c, masked_crc32c
from setwise.data.few_shot.meta_dataset import read_specification
from setwise.data.few_shot.records import Records, index_records, parse_example
from setwise.data.images import PackedImages, decode
from setwise.errors import DataError, InvalidInput, MissingFile
from setwise.seeds import generator

LEADS_NOWHERE = [{"wn_id": "a", "children_ids": ["b"]}, {"wn_id": "train-00", "children_ids": []}]

SPECIFICATIONS = DATA / "split-lists" / "few-shot" / "meta_dataset"


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"", 0), (b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43)],
)
def test_checksums_are_those_of_the_standard(data, expected):
    """RFC 3720, appendix B.4."""
    assert crc32c(data) == expected


@pytest.mark.parametrize("length", [1, 7, 255, 1023, 1024, 1025, 1280, 4095, 4096, 4097, 30_000])
def test_the_fast_checksum_is_that_of_a_division_bit_by_bit(length):
    data = np.random.default_rng(length).integers(0, 256, length, dtype=np.uint8).tobytes()
    assert crc32c(data) == few_shot_fakes.bitwise_crc32c(data)
    assert masked_crc32c(data).to_bytes(4, "little") == masked(data)
    assert crc32c(memoryview(data)) == crc32c(data)


@given(image=st.binary(max_size=300), label=st.integers(0, 2**40), packed=st.booleans())
def test_an_example_gives_back_its_image_and_its_label(image, label, packed):
    assert parse_example(example(image, label, packed=packed)) == (image, label)


@given(st.binary(max_size=80))
def test_bytes_that_are_no_example_are_a_value_error_or_nothing_worse(data):
    with pytest.raises(ValueError, match=r"."):
        parse_example(data)


@given(cut=st.integers(0, 200), place=st.integers(0, 200), value=st.integers(0, 255))
def test_a_damaged_example_is_a_value_error_or_another_image(cut, place, value):
    whole = bytearray(example(b"x" * 150, 3))
    whole[place % len(whole)] = value
    for data in (bytes(whole), bytes(whole[: cut % len(whole)])):
        try:
            image, label = parse_example(data)
        except ValueError:
            continue
        assert isinstance(image, bytes)
        assert isinstance(label, int)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (field(1, field(1, field(1, b"label") + field(2, field(3, field(1, varint(3)))))), "no image"),
        (field(1, field(1, field(1, b"image") + field(2, field(1, field(1, b"x"))))), "no label"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "longer than what is left"),
        (b"\xff" * 11, "a number does not end"),
        (b"\x0b", "unknown kind 3"),
    ],
)
def test_what_is_wrong_with_an_example_is_said(payload, message):
    with pytest.raises(ValueError, match=message):
        parse_example(payload)


def one_file(root: Path, payloads: list[bytes]) -> Path:
    file = root / "3.tfrecords"
    file.write_bytes(b"".join(map(record, payloads)))
    return file


def records_of(file: Path, *, label: int = 3, check: bool = True) -> Records:
    spans = index_records(file)
    return Records([file], [label], np.zeros(len(spans), dtype=int), spans, check=check)


def test_records_are_found_by_their_headers_and_read_in_any_order(tmp_path):
    images = [encoded(3, number, kind="JPEG", side=4 + number) for number in range(5)]
    records = records_of(one_file(tmp_path, [example(image, 3) for image in images]))
    assert [records.read(place) for place in (4, 0, 2)] == [images[4], images[0], images[2]]
    again = pickle.loads(pickle.dumps(records))
    assert again.read(3) == images[3]
    assert index_records(one_file(tmp_path, [])).shape == (0, 2)


def test_records_that_tensorboard_writes_are_read(tmp_path):
    writer = pytest.importorskip("tensorboard.summary.writer.record_writer")
    images = [encoded(3, number, side=4 + 20 * number) for number in range(3)]
    with (tmp_path / "3.tfrecords").open("wb") as file:
        for image in images:
            writer.RecordWriter(file).write(example(image, 3))
        file.flush()
        records = records_of(tmp_path / "3.tfrecords")
        assert [records.read(place) for place in range(3)] == images


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: data[:-1], r"ends within record 1, which should have \d+ bytes"),
        (lambda data: data[:-30], "ends within record 1"),
        (lambda data: data + b"123", "ends within the header of record 2"),
        (lambda data: b"\x01" + data[1:], "wrong checksum of the length of record 0"),
        (lambda data: data[:8] + b"\x01" + data[9:], "wrong checksum of the length of record 0"),
        (
            lambda data: (2**62).to_bytes(8, "little") + masked((2**62).to_bytes(8, "little")) + data,
            "ends within record 0",
        ),
        (lambda data: (2**64 - 1).to_bytes(8, "little") + masked(b"\xff" * 8) + data, "ends within record 0"),
    ],
)
def test_damaged_headers_and_files_that_end_too_early_are_named(tmp_path, spoil, message):
    file = one_file(tmp_path, [example(b"x" * 50, 3), example(b"y" * 60, 3)])
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(DataError, match=message) as info:
        index_records(file)
    assert str(info.value).startswith(str(file))


@pytest.mark.parametrize("size", [40, 5000])
def test_a_record_with_a_wrong_checksum_is_named_unless_nobody_looks(tmp_path, size):
    file = one_file(tmp_path, [example(b"x" * size, 3)])
    content = bytearray(file.read_bytes())
    content[60] ^= 1  # in the image
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"3.tfrecords at byte 12: the checksum of the record is wrong"):
        records_of(file).read(0)
    assert records_of(file, check=False).read(0) != b"x" * size


def test_a_record_of_another_class_or_of_none_and_a_file_that_shrinks_are_named(tmp_path):
    file = one_file(tmp_path, [example(b"x", 4), b"\xff\xff"])
    records = records_of(file)
    with pytest.raises(DataError, match="the record is of class 4, its file of 3"):
        records.read(0)
    with pytest.raises(DataError, match=r"no image with a label \(a number does not end\)"):
        records.read(1)
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(DataError, match="has become shorter"):
        records.read(0)
    file.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        records.read(0)


def test_an_error_of_a_record_comes_as_a_value_where_several_are_taken(tmp_path):
    file = one_file(tmp_path, [example(encoded(3, 0), 3), example(b"no image", 3), example(encoded(3, 2), 4)])
    taken = PackedImages(records_of(file)).take(torch.arange(3))
    assert isinstance(taken[0], torch.Tensor)
    assert "cannot be read as an image" in str(taken[1])
    assert "the record is of class 4" in str(taken[2])


def load(root: Path, layout: str, spoil=None, **options):
    few_shot_fakes.write("meta-dataset", root, layout)
    if spoil:
        file = root / "dataset_spec.json"
        file.write_text(json.dumps(spoil(json.loads(file.read_text()))))
    return FEW_SHOT["meta-dataset"].load(seed=0, root=str(root), **options)


def test_pictures_are_those_of_the_files_of_their_class(tmp_path):
    splits = load(tmp_path, "flat")
    first = {"train": 0, "val": 8, "test": 14}
    for part, start in first.items():
        pool = getattr(splits, part)
        for place, label in enumerate(pool.target.tolist()):
            (tmp_path / "x.jpg").write_bytes(
                encoded(start + label, place % few_shot_fakes.PER_CLASS, kind="JPEG", side=6)
            )
            assert torch.equal(pool.images[place], decode(tmp_path / "x.jpg"))


def test_superclasses_and_graphs_come_from_the_specification(tmp_path):
    two_levels = load(tmp_path / "two", "two levels")
    assert two_levels.train.superclasses == ("Greek",) * 8
    assert two_levels.test.superclasses == ("Oriya",) * 6
    graph = load(tmp_path / "graph", "a graph").val.graph
    assert graph.leaves == tuple(f"val-{number:02d}" for number in range(6))
    assert graph.spanned == {"most": (1, 2, 3, 4, 5), "top": (0, 1, 2, 3, 4, 5)}


def test_episodes_of_a_graph_take_the_classes_below_a_node(tmp_path):
    pool = load(tmp_path, "a graph").test
    ways = {len(EpisodeSampler(pool).draw(generator(seed)).classes) for seed in range(20)}
    assert ways == {5, 6}


def test_several_sets_below_one_folder_are_pools_to_draw_from(tmp_path):
    few_shot_fakes.write("meta-dataset", tmp_path / "birds", "flat")
    few_shot_fakes.write("meta-dataset", tmp_path / "letters", "two levels")
    with pytest.raises(InvalidInput, match=r"holds 2 data sets \(birds, letters\): name one, --data.root .*birds"):
        FEW_SHOT["meta-dataset"].load(seed=0, root=str(tmp_path))
    sources = load_sources(str(tmp_path), image_size=5)
    assert list(sources) == ["birds", "letters"]
    loader = make_episode_loader(
        [(splits.train, EpisodeSampler(splits.train)) for splits in sources.values()],
        episodes=4,
        image_size=5,
        mean=sources["birds"].mean,
        std=sources["birds"].std,
        seed=0,
        train=True,
    )
    assert [batch.index for batch in loader] == [0, 1, 2, 3]


def test_a_set_that_has_a_copy_of_itself_inside_is_one_set(tmp_path):
    (tmp_path / "sets").mkdir()
    few_shot_fakes.write("meta-dataset", tmp_path / "sets" / "birds", "flat")
    shutil.copytree(tmp_path / "sets" / "birds", tmp_path / "sets" / "birds" / "backup")
    assert find_sources(tmp_path / "sets" / "birds") == []
    assert [path.name for path in find_sources(tmp_path / "sets")] == ["birds"]


def test_a_set_without_training_classes_has_an_empty_pool_and_says_so(tmp_path):
    spoil = lambda spec: spec | {"classes_per_split": {"TRAIN": 0, "VALID": 0, "TEST": 20}}  # noqa: E731
    splits = load(tmp_path, "flat", spoil)
    assert (splits.train.num_classes, splits.test.num_classes) == (0, 20)
    assert "The set has no class for train." in splits.notes
    with pytest.raises(InvalidInput, match=r"number of classes \(0\)"):
        EpisodeSampler(splits.train)
    with pytest.raises(DataError, match="The set has no training class, so there is nothing to learn as classes"):
        classes_of_training(splits, seed=0)


def test_other_numbers_of_images_than_specified_are_said(tmp_path):
    splits = load(tmp_path, "flat", lambda spec: spec | {"images_per_class": spec["images_per_class"] | {"3": 7}})
    assert splits.notes == (
        "Classes of train whose number of images is not that of dataset_spec.json: 'train-03' (4 for 7).",
    )


@pytest.mark.parametrize(
    ("layout", "spoil", "message"),
    [
        ("flat", lambda spec: spec | {"__class__": "Specification"}, "`__class__` 'Specification'; known are"),
        ("flat", lambda spec: spec | {"file_pattern": "../{}.tfrecords"}, "`file_pattern` '../{}.tfrecords'; only"),
        ("flat", lambda spec: spec | {"classes_per_split": {"TRAIN": 10**9}}, "1000000000 classes from 0 on, but 20"),
        ("flat", lambda spec: spec | {"classes_per_split": {"TRAIN": -1}}, "-1 classes from 0 on"),
        ("flat", lambda spec: spec | {"classes_per_split": "many"}, "is no specification of Meta-Dataset"),
        ("flat", lambda spec: {"__class__": "DatasetSpecification"}, "is no specification of Meta-Dataset"),
        ("two levels", lambda spec: spec | {"superclasses_per_split": {"TRAIN": 9}}, "is no specification"),
        ("a graph", lambda spec: spec | {"class_names": {str(n): "x" for n in range(20)}}, "leaf train-00 has another"),
        ("a graph", lambda spec: spec | {"split_subgraphs": {"TRAIN": LEADS_NOWHERE}}, "no nodes: 'b'"),
        ("flat", lambda spec: [], "holds a list"),
        ("flat", lambda spec: spec | {"__class__": ["DatasetSpecification"]}, "`__class__` .*; known are"),
        ("flat", lambda spec: spec | {"images_per_class": {"0": float("inf")}}, "is no specification of Meta-Dataset"),
        ("two levels", lambda spec: spec | {"classes_per_superclass": {"0": -3}}, "TRAIN has -3 classes"),
    ],
)  # fmt: skip
def test_what_is_no_specification_is_refused(tmp_path, layout, spoil, message):
    with pytest.raises(DataError, match=message) as info:
        load(tmp_path, layout, spoil)
    assert "dataset_spec.json" in str(info.value)


def test_the_missing_file_of_a_class_is_named(tmp_path):
    few_shot_fakes.write("meta-dataset", tmp_path)
    (tmp_path / "7.tfrecords").unlink()
    with pytest.raises(MissingFile, match=r"7.tfrecords is missing"):
        FEW_SHOT["meta-dataset"].load(seed=0, root=str(tmp_path))
    with pytest.raises(DataError, match=r"is one data set itself"):
        load_sources(str(tmp_path))


def test_the_reference_specification_of_omniglot_is_read():
    file = SPECIFICATIONS / "omniglot_dataset_spec.json"
    if not file.is_file():
        pytest.skip(f"no {file}")
    parts, counts = read_specification(file)
    assert [len(part.ids) for part in parts.values()] == [883, 81, 659]
    assert [len(set(part.superclasses)) for part in parts.values()] == [25, 5, 20]
    assert set(counts.values()) == {20}
    assert all(
        name.startswith(superclass)
        for part in parts.values()
        for name, superclass in zip(part.names, part.superclasses, strict=True)
    )
