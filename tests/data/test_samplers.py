"""Samplers: how often they draw a class, against the paper's formula, and what keys their draws."""

import math
import random
from collections import Counter

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from setwise.build import build_data, build_loader
from setwise.data.dataset import Split
from setwise.data.images import StackedImages
from setwise.data.loader import make_loader
from setwise.data.order import EpochSampler
from setwise.data.samplers import SAMPLERS, class_probabilities, draw_epoch
from setwise.errors import InvalidInput, UnknownName
from setwise.recipes import RECIPES

COUNTS = (300, 90, 40, 7, 3)
TARGET = torch.cat([torch.full((n,), k) for k, n in enumerate(COUNTS)])[torch.randperm(sum(COUNTS))]
OTHERS = [name for name in SAMPLERS if name != "shuffle"]


def oracle(name, counts, epoch=0, epochs=1):
    """Loops over the classes: ``n_j ** q / sum n_i ** q``, and the mix of q = 1 and q = 0 that moves with the epoch."""

    def power(q):
        total = sum(n**q for n in counts)
        return [n**q / total for n in counts]

    if name == "progressive":
        step = epoch / epochs
        return [(1 - step) * a + step * b for a, b in zip(power(1), power(0), strict=True)]
    return power({"shuffle": 1, "square-root": 0.5, "class-balanced": 0, "class-aware": 0}[name])


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("epoch", [0, 3, 9])
def test_probabilities_are_those_of_the_paper(name, epoch):
    got = class_probabilities(name, torch.tensor(COUNTS), epoch=epoch, epochs=10)
    assert got.tolist() == pytest.approx(oracle(name, COUNTS, epoch, 10))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("epoch", [0, 25])
def test_draws_have_the_frequencies_of_the_formula(name, epoch):
    draws = torch.cat([draw_epoch(name, TARGET, seed=s, epoch=epoch, epochs=50) for s in range(60)])
    frequency = TARGET[draws].bincount(minlength=len(COUNTS)) / len(draws)
    for found, p in zip(frequency.tolist(), oracle(name, COUNTS, epoch, 50), strict=True):
        # class-aware deals classes out in fours, and cuts the last round: one turn of four an epoch at most
        slack = 4 / len(TARGET) if name == "class-aware" else 0
        assert abs(found - p) <= 5 * math.sqrt(p * (1 - p) / len(draws)) + slack


@pytest.mark.parametrize("name", OTHERS)
def test_the_images_of_a_class_are_drawn_alike(name):
    draws = torch.cat([draw_epoch(name, TARGET, seed=s, epoch=0, epochs=2) for s in range(60)])
    for k, count in enumerate(COUNTS):
        images = (k == TARGET).nonzero()[:, 0]
        times = torch.bincount(draws[TARGET[draws] == k], minlength=len(TARGET))[images].double()
        assert times.sum() > 0
        expected = times.mean().item()
        assert (times - expected).abs().max() <= 6 * math.sqrt(expected) + 1, count


def test_shuffle_is_the_order_that_runs_have_always_had():
    from setwise.seeds import generator

    expected = torch.randperm(len(TARGET), generator=generator(3, "order", 5))
    assert torch.equal(draw_epoch("shuffle", TARGET, seed=3, epoch=5), expected)


def class_aware_oracle(target, order):
    """Turns of four go round the classes, and a class repeats no image before its end."""
    classes = sorted(set(target))
    turns = [[target[i] for i in order[start : start + 4]] for start in range(0, len(order), 4)]
    assert all(len(set(turn)) == 1 for turn in turns)
    for start in range(0, len(turns), len(classes)):
        seen = [turn[0] for turn in turns[start : start + len(classes)]]
        assert len(seen) == len(set(seen))
    for k in classes:
        mine, size = [i for i in order if target[i] == k], target.count(k)
        for start in range(0, len(mine), size):
            cycle = mine[start : start + size]
            assert len(cycle) == len(set(cycle))


@settings(max_examples=25)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(any), st.integers(0, 1000))
def test_class_aware_deals_out_the_classes_in_fours(counts, seed):
    target = [k for k, n in enumerate(counts) for _ in range(n)]
    random.Random(seed).shuffle(target)
    order = draw_epoch("class-aware", torch.tensor(target), seed=seed, epoch=0).tolist()
    assert len(order) == len(target)
    class_aware_oracle(target, order)


@settings(max_examples=25)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(any), st.sampled_from(SAMPLERS), st.integers(0, 9))
def test_an_epoch_is_as_long_as_the_set_and_draws_what_is_there(counts, name, epoch):
    target = torch.tensor([k for k, n in enumerate(counts) for _ in range(n)])
    order = draw_epoch(name, target, seed=0, epoch=epoch, epochs=7)
    assert order.shape == target.shape
    assert order.dtype == torch.int64
    assert 0 <= order.min() <= order.max() < len(target)
    assert torch.equal(order, draw_epoch(name, target, seed=0, epoch=epoch, epochs=7))


@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_depend_on_seed_and_epoch_and_leave_the_global_state_alone(name):
    state = torch.get_rng_state()
    one, seed, epoch = (draw_epoch(name, TARGET, seed=s, epoch=e, epochs=9) for s, e in ((0, 1), (1, 1), (0, 2)))
    assert not torch.equal(one, seed)
    assert not torch.equal(one, epoch)
    assert torch.equal(torch.get_rng_state(), state)


def split_of(target=TARGET):
    images = torch.zeros(len(target), 3, 4, 4, dtype=torch.uint8)
    return Split(images=StackedImages(images), target=target, names=tuple(map(str, range(len(target)))))


def loader_of(split, **changes):
    options = {"batch_size": 16, "transform": "none", "mean": (0.5,) * 3, "std": (0.5,) * 3, "seed": 0}
    return make_loader(split, **(options | {"train": True, "num_classes": 5, "epochs": 4} | changes))


def epoch_of(loader, epoch=0):
    loader.sampler.set_epoch(epoch)
    return torch.cat([batch.index for batch in loader]).tolist()


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_loader_shows_what_was_drawn(name):
    drawn = draw_epoch(name, TARGET, seed=0, epoch=2, epochs=4).tolist()
    assert epoch_of(loader_of(split_of(), sampler=name), 2) == drawn[: len(drawn) // 16 * 16]


@pytest.mark.parametrize("name", OTHERS)
def test_an_epoch_is_the_same_in_any_number_of_workers_and_after_any_other(name):
    through = loader_of(split_of(), sampler=name, num_workers=1, transform="crop-flip-rotate")
    assert through.num_workers == 1
    first, second = epoch_of(through, 0), epoch_of(through, 1)
    assert first != second
    assert second == epoch_of(loader_of(split_of(), sampler=name, num_workers=0), 1)


@pytest.mark.parametrize("name", OTHERS)
def test_ranks_share_the_draws_of_one_epoch(monkeypatch, name):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    found = []
    for rank in range(3):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        sampler = loader_of(split_of(), sampler=name).sampler
        assert isinstance(sampler, EpochSampler)
        found += [(draw.step, draw.indices.tolist()) for draw in sampler]
    joined = [index for _, indices in sorted(found) for index in indices]
    drawn = draw_epoch(name, TARGET, seed=0, epoch=0, epochs=4).tolist()
    assert joined == drawn[: len(joined)]
    assert len(drawn) - len(joined) < 3 * 16


def test_evaluation_shows_everything_once_whatever_the_sampler():
    assert epoch_of(loader_of(split_of(), sampler="class-balanced", train=False)) == list(range(len(TARGET)))


def test_the_recipe_names_the_sampler_and_the_epochs_it_moves_over():
    recipe = RECIPES["digits-lt"].override({"data.sampler": "progressive", "data.augment": "none"})
    splits = build_data(recipe)
    loader = build_loader(recipe, splits, "train")
    last = recipe.trainer.epochs - 1
    loader.sampler.set_epoch(last)
    drawn = draw_epoch("progressive", splits.train.target, seed=0, epoch=last, epochs=recipe.trainer.epochs)
    assert next(iter(loader)).index.tolist() == drawn[:64].tolist()
    seen = Counter(splits.train.target[drawn].tolist())
    assert max(seen.values()) < 2 * min(seen.values())  # as they occur: 50 to 1


def test_epochs_beyond_the_last_are_drawn_as_the_last():
    late = draw_epoch("progressive", TARGET, seed=0, epoch=20, epochs=4)
    assert TARGET[late].bincount().tolist() != TARGET.bincount().tolist()


def test_an_unknown_sampler_lists_the_choices():
    with pytest.raises(UnknownName, match="class-balanced"):
        draw_epoch("class-ballanced", TARGET, seed=0, epoch=0)
    with pytest.raises(UnknownName, match="class-balanced"):
        loader_of(split_of(), sampler="balanced")


def test_images_of_several_labels_have_no_class_to_be_drawn_by():
    split = split_of(torch.nn.functional.one_hot(TARGET, 5).float())
    assert len(epoch_of(loader_of(split, sampler="shuffle")))
    with pytest.raises(InvalidInput, match=r"may have several labels: take --data\.sampler shuffle"):
        loader_of(split, sampler="class-balanced")


@pytest.mark.parametrize(
    ("counts", "epoch", "message"),
    [([0, 0], 0, "no image at all"), ([3, 1], 5, r"`epoch` \(5\) must be in 0\.\.3"), ([3, 1], -1, r"`epoch` \(-1\)")],
)
def test_probabilities_of_nothing_are_refused(counts, epoch, message):
    with pytest.raises(InvalidInput, match=message):
        class_probabilities("progressive", torch.tensor(counts), epoch=epoch, epochs=4)


def test_a_class_without_images_is_never_drawn():
    assert class_probabilities("class-balanced", torch.tensor([5, 0, 1])).tolist() == [0.5, 0, 0.5]


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_empty_set_has_an_empty_epoch(name):
    assert draw_epoch(name, torch.zeros(0).long(), seed=0, epoch=0).tolist() == []
