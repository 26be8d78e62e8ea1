"""Real data sets, where they are: below $SETWISE_DATA, or in shared/data beside the checkout."""

import csv
import json
import os
from pathlib import Path

import pytest
import torch

from setwise.data import DATASETS
from setwise.data.annotations import lines_of
from setwise.data.image_list import read_list
from setwise.data.known_sets import KNOWN_SETS, check_lists
from setwise.data.long_tail import exponential_counts

DATA = Path(os.environ.get("SETWISE_DATA", Path(__file__).parents[3] / "shared" / "data"))
LISTS = DATA / "split-lists" / "long-tailed"


def class_folder_sets() -> list[Path]:
    return [
        file.parent
        for file in sorted(DATA.glob("*/class_counts.csv"))
        if (file.parent / "train").is_dir() and (file.parent / "test").is_dir()
    ]


def cases(found: list, what: str) -> list:
    skipped = pytest.mark.skip(reason=f"no {what} below {DATA}")
    return found or [pytest.param(None, marks=skipped)]


@pytest.mark.parametrize("folder", cases(class_folder_sets(), "class folders with class_counts.csv"), ids=str)
def test_counts_of_class_folders_are_those_of_their_table(folder):
    rows = list(csv.DictReader((folder / "class_counts.csv").open()))
    name = folder.name if folder.name in DATASETS else "image-folder"
    splits = DATASETS[name].load(root=str(folder), seed=0, cache="files")
    held = torch.bincount(splits.val.target, minlength=len(rows))
    assert splits.class_names == tuple(row["class"] for row in rows)
    assert splits.group_counts.tolist() == (splits.train_counts + held).tolist()
    assert splits.group_counts.tolist() == [int(row["train"]) for row in rows]
    assert torch.bincount(splits.test.target).tolist() == [int(row["test"]) for row in rows]
    assert (held >= 1).all()


@pytest.mark.parametrize(
    "file", cases(sorted(LISTS.glob("*/*_*.txt")), "lists"), ids=lambda file: getattr(file, "name", "")
)
def test_published_lists_are_read_whole(file):
    found = read_list(file)
    counts = json.loads((file.parent / "cls_freq.json").read_text())
    assert found.problems == []
    assert len(found.images) == sum(1 for line in file.open() if line.strip())
    assert max(image.labels[0] for image in found.images) == len(counts) - 1
    if file.stem.endswith("_train"):
        labels = torch.tensor([image.labels[0] for image in found.images])
        assert torch.bincount(labels).tolist() == list(counts.values() if isinstance(counts, dict) else counts)


def test_exponential_counts_are_the_published_ones():
    file = LISTS / "cifar_lt_counts.csv"
    if not file.is_file():
        pytest.skip(f"no {file}")
    for row in csv.DictReader(file.open()):
        counts = [int(count) for count in row["counts"].split()]
        factor = float(row["imbalance_factor"])
        assert exponential_counts(counts[0], num_classes=len(counts), imbalance_factor=factor) == counts


@pytest.mark.parametrize("name", KNOWN_SETS)
def test_published_lists_are_as_the_table_of_known_sets_says(name):
    known = KNOWN_SETS[name]
    folder = LISTS / known.files["val"].removesuffix("_val.txt")
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    for one in check_lists(known, root=None, lists=folder):
        assert (one.file is None) == (not (folder / known.files[one.part]).is_file())
        if one.file is None:
            assert "is not there" in one.problems[0]
        else:
            assert one.problems == ()
            assert one.num_images == known.sizes[one.part]
    content = json.loads((folder / "cls_freq.json").read_text())
    counts = list(content.values()) if isinstance(content, dict) else content
    assert (len(counts), sum(counts)) == (known.num_classes, known.sizes["train"])
    assert (max(counts), min(counts)) == (known.largest, known.smallest)
    groups = sum(n > 100 for n in counts), sum(20 <= n <= 100 for n in counts), sum(n < 20 for n in counts)
    assert groups == known.groups


def test_the_published_list_of_inaturalist_comes_out_of_annotations_of_its_images(tmp_path):
    file = LISTS / "iNaturalist18" / "iNaturalist18_val.txt"
    if not file.is_file():
        pytest.skip(f"no {file}")
    lines = file.read_text().splitlines()
    images = [{"id": 437_513 + n, "file_name": line.split()[0]} for n, line in enumerate(lines)]
    # The folder of an image is named by its category.
    labels = [{"id": i["id"], "image_id": i["id"], "category_id": int(i["file_name"].split("/")[2])} for i in images]
    (tmp_path / "val2018.json").write_text(json.dumps({"images": images, "annotations": labels}))
    assert lines_of(tmp_path / "val2018.json") == lines
