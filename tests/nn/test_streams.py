"""Two streams are concatenated, plain first, and never interleaved."""

from collections import OrderedDict, UserDict, defaultdict
from types import MappingProxyType
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from setwise.errors import InvalidInput
from setwise.nn import streams

LOGITS = torch.zeros(6, 10)  # both streams of three samples


class Found(NamedTuple):
    boxes: list
    label: torch.Tensor


class Triple(NamedTuple):
    a: object
    b: object
    c: object


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20))
def test_tile_concatenates_and_split_and_join_are_inverse(labels):
    target = torch.tensor(labels)
    tiled = streams.tile(target, like=torch.zeros(2 * len(labels), 10))
    assert tiled.tolist() == labels + labels
    plain, related = streams.split(tiled, like=target)
    assert torch.equal(plain, target)
    assert torch.equal(streams.join(plain, related), tiled)


def test_soft_targets_are_tiled_row_by_row():
    soft = torch.rand(3, 10)
    assert torch.equal(streams.tile(soft, like=LOGITS), torch.cat([soft, soft]))


@pytest.mark.parametrize("kind", [list, tuple])
def test_lists_and_tuples_of_dictionaries_are_concatenated(kind):
    target = kind({"boxes": torch.zeros(n, 4), "id": n} for n in range(3))
    tiled = streams.tile(target, like=LOGITS)
    assert type(tiled) is kind
    assert [row["id"] for row in tiled] == [0, 1, 2, 0, 1, 2]
    plain, related = streams.split(tiled, like=target)
    assert plain == target
    assert [row["id"] for row in related] == [0, 1, 2]


@pytest.mark.parametrize("kind", [dict, OrderedDict, UserDict, MappingProxyType])
def test_dictionaries_are_tiled_entry_by_entry(kind):
    target = kind({"label": torch.tensor([3, 1, 2]), "soft": torch.rand(3, 10)})
    tiled = streams.tile(target, like=LOGITS)
    assert type(tiled) is kind
    assert tiled["label"].tolist() == [3, 1, 2, 3, 1, 2]
    assert torch.equal(tiled["soft"], torch.cat([target["soft"], target["soft"]]))
    plain, related = streams.split(tiled, like=target)
    assert plain["label"].tolist() == related["label"].tolist() == [3, 1, 2]


def test_dictionaries_of_lists_are_tiled_entry_by_entry():
    target = {"names": ["x", "y", "z"], "boxes": (1, 2, 3), "label": torch.arange(3)}
    tiled = streams.tile(target, like=LOGITS)
    assert (tiled["names"], tiled["boxes"]) == (["x", "y", "z"] * 2, (1, 2, 3, 1, 2, 3))
    plain, related = streams.split(tiled, like=target)
    assert plain["names"] == related["names"] == ["x", "y", "z"]
    assert plain["boxes"] == related["boxes"] == (1, 2, 3)
    assert related["label"].tolist() == [0, 1, 2]


def test_a_mapping_that_cannot_be_built_from_a_dictionary_becomes_a_plain_one():
    target = defaultdict(list, label=torch.arange(3))
    tiled = streams.tile(target, like=LOGITS)
    plain, related = streams.split(defaultdict(list, tiled), like=target)
    assert type(tiled) is type(plain) is type(related) is dict
    assert tiled["label"].tolist() == [0, 1, 2, 0, 1, 2]
    assert plain["label"].tolist() == related["label"].tolist() == [0, 1, 2]


def test_a_named_tuple_is_tiled_entry_by_entry_and_keeps_its_type():
    target = Found(boxes=["x", "y", "z"], label=torch.arange(3))
    tiled = streams.tile(target, like=LOGITS)
    assert type(tiled) is Found
    assert tiled.boxes == ["x", "y", "z"] * 2
    plain, related = streams.split(tiled, like=target)
    assert type(plain) is type(related) is Found
    assert plain.label.tolist() == related.label.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ({"a": {"b": torch.arange(3)}}, r"`target\['a'\]` must be a tensor, or a list .* an image.* of type dict"),
        ({"a": torch.arange(3), "name": "cat"}, r"`target\['name'\]` .* of type str"),
        ({"a": 3}, r"`target\['a'\]` .* of type int"),
        ({"a": range(3)}, r"`target\['a'\]` .* of type range"),
        ({"a": Found([], torch.arange(3))}, r"`target\['a'\]` .* of type Found"),
        (Triple({"id": 0}, {"id": 1}, {"id": 2}), r"`target\['a'\]` .* of type dict"),
        (range(3), r"`target` must be a tensor, a list, a tuple or a dictionary, .* of type range"),
        ({}, r"`target` must have entries, but it is an empty dict"),
    ],
)
def test_an_entry_of_another_type_is_named_with_its_key(target, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        streams.tile(target, like=LOGITS)
    with pytest.raises(InvalidInput, match=sentence.replace("target", "x")):
        streams.split(target, like=torch.zeros(3))


@pytest.mark.parametrize("target", [torch.arange(6), [{}] * 6, ({},) * 6, {"label": torch.arange(6)}])
def test_one_stream_returns_the_target_itself(target):
    assert streams.tile(target, like=LOGITS) is target
    plain, related = streams.split(target, like=target)
    assert plain is target
    assert related is None


def test_like_may_be_any_kind_of_batch():
    target = torch.arange(3)
    for like in (LOGITS, [{}] * 6, {"logits": LOGITS}):
        assert streams.tile(target, like=like).tolist() == [0, 1, 2, 0, 1, 2]


def test_gradient_reaches_both_streams():
    plain, related = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    streams.join(plain, related).sum().backward()
    assert plain.grad.all()
    assert related.grad.all()
