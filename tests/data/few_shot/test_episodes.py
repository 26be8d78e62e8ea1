import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from few_shot_fakes import DATA, pool_of
from hypothesis import given
from hypothesis import strategies as st

from setwise.data.few_shot import ClassGraph, EpisodeSampler, Pool
from setwise.errors import DataError, InvalidInput
from setwise.seeds import generator

EVALUATION_ALPHABETS = (20, 26, 26, 26, 26, 26, 45, 45, 41, 26, 47, 40, 30, 45, 46, 28, 23, 25, 42, 26)
"""Characters of the 20 evaluation alphabets of Omniglot (Lake et al. 2015): 659, with 20 drawings each."""


def alphabets(sizes=EVALUATION_ALPHABETS) -> Pool:
    names = [f"alphabet {place:02d}" for place, size in enumerate(sizes) for _ in range(size)]
    return pool_of([20] * sum(sizes), superclasses=tuple(names))


def check(pool: Pool, episode, *, min_way=5, max_way=50, max_query=10, max_support=500) -> None:
    """What every episode of the variable sampler is."""
    places = torch.cat([episode.support, episode.query])
    assert len(places.unique()) == len(places)
    ways = len(episode.classes)
    assert min_way <= ways <= max_way
    assert len(episode.classes.unique()) == ways
    assert torch.equal(pool.target[episode.support], episode.classes[episode.support_target])
    assert torch.equal(pool.target[episode.query], episode.classes[episode.query_target])
    assert list(dict.fromkeys(episode.support_target.tolist())) == list(range(ways))
    assert episode.query_target.unique().tolist() == list(range(ways))
    queries = torch.bincount(episode.query_target)
    assert queries.min() == queries.max() <= max_query
    assert ways <= len(episode.support) <= max_support


@given(
    counts=st.lists(st.integers(2, 40), min_size=5, max_size=70),
    seed=st.integers(0, 10**6),
    max_way=st.integers(5, 60),
)
def test_no_image_is_drawn_twice_and_every_number_keeps_its_bounds(counts, seed, max_way):
    pool = pool_of(counts)
    check(pool, EpisodeSampler(pool, max_way=max_way).draw(generator(seed)), max_way=max_way)


def oracle(pool: Pool, rng: torch.Generator) -> tuple[list[int], int, list[int]]:
    """Classes, queries and shots of a flat pool, from the same draws, step by step from the description."""
    n = np.bincount(pool.target.numpy()).tolist()
    way = 5 + int(torch.randint(min(50, len(n)) - 5 + 1, (), generator=rng))
    classes = torch.randperm(len(n), generator=rng)[:way].tolist()
    q = min([10, *[n[c] // 2 for c in classes]])
    beta = float(torch.rand((), generator=rng, dtype=torch.float64))
    size = min(500, sum(math.floor(beta * min(100, n[c] - q) + 1) for c in classes))
    alpha = [
        math.log(0.5) + (math.log(2) - math.log(0.5)) * u
        for u in torch.rand(way, generator=rng, dtype=torch.float64).tolist()
    ]
    weights = [n[c] * math.exp(a) for c, a in zip(classes, alpha, strict=True)]
    shots = [
        min(math.floor(w / sum(weights) * (size - way)) + 1, n[c] - q) for c, w in zip(classes, weights, strict=True)
    ]
    return classes, q, shots


@pytest.mark.parametrize("seed", range(40))
def test_an_episode_of_a_flat_pool_is_the_oracles(seed):
    pool = pool_of([2 + (7 * label) % (30 + seed) for label in range(6 + seed)])
    episode = EpisodeSampler(pool).draw(generator(seed))
    classes, queries, shots = oracle(pool, generator(seed))
    assert episode.classes.tolist() == classes
    assert torch.bincount(episode.query_target).tolist() == [queries] * len(classes)
    assert torch.bincount(episode.support_target).tolist() == shots


def test_one_generator_state_gives_one_episode_and_another_gives_another():
    sampler = EpisodeSampler(pool_of([20] * 60))
    one, same, other = (sampler.draw(generator(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert len(one.query) != len(other.query) or not torch.equal(one.query, other.query)


def test_drawing_leaves_the_global_random_state_alone():
    state = torch.get_rng_state()
    EpisodeSampler(alphabets()).draw(generator(0))
    assert torch.equal(torch.get_rng_state(), state)


def test_ways_of_a_flat_pool_are_uniform_and_every_class_and_image_is_reached():
    pool = pool_of([4] * 9)
    sampler = EpisodeSampler(pool)
    episodes = [sampler.draw(generator(seed)) for seed in range(1500)]
    ways = np.bincount([len(episode.classes) for episode in episodes], minlength=10)[5:]
    assert (abs(ways - 300) < 5 * 15.5).all()  # five deviations of a binomial with p = 1/5
    seen = torch.bincount(torch.cat([torch.cat([e.support, e.query]) for e in episodes]), minlength=36)
    assert seen.min() > 0.8 * seen.float().mean()


def test_an_episode_stays_within_one_superclass_and_all_superclasses_are_equally_likely():
    pool = alphabets((5, 7, 40, 3, 60))
    sampler = EpisodeSampler(pool)
    drawn = []
    for seed in range(600):
        episode = sampler.draw(generator(seed))
        check(pool, episode)
        (name,) = {pool.superclasses[label] for label in episode.classes.tolist()}
        drawn.append(name)
    counts = {name: drawn.count(name) for name in set(drawn)}
    assert set(counts) == {f"alphabet {place:02d}" for place in (0, 1, 2, 4)}  # three characters are no episode
    assert all(abs(count - 150) < 5 * 10.6 for count in counts.values())


def test_a_hierarchy_can_be_ignored_always_or_sometimes():
    pool = alphabets((10, 10, 10, 10))

    def mixed(seed, **options):
        classes = EpisodeSampler(pool, **options).draw(generator(seed)).classes.tolist()
        return len({pool.superclasses[label] for label in classes}) > 1

    assert all(mixed(seed, hierarchy=False) for seed in range(50))
    assert all(mixed(seed, ignore_hierarchy=1.0) for seed in range(50))
    assert 60 < sum(mixed(seed, ignore_hierarchy=0.5) for seed in range(200)) < 140


def tree() -> Pool:
    """A node above 3 classes (too few), one above 6, one above 60 (too many to take all), and the top above 63."""
    leaves = tuple(f"leaf {label:02d}" for label in range(63))
    children = {"top": ("few", "many"), "few": leaves[:3], "many": ("six", *leaves[9:]), "six": leaves[3:9]}
    return pool_of([6] * 63, graph=ClassGraph(children, leaves))


def test_an_episode_takes_all_classes_below_a_node_or_a_random_50():
    pool = tree()
    sampler = EpisodeSampler(pool, max_spanned=62)
    kinds = {"six": 0, "many": 0}
    for seed in range(200):
        episode = sampler.draw(generator(seed))
        check(pool, episode)
        if len(episode.classes) == 6:
            assert episode.classes.tolist() == list(range(3, 9))
            kinds["six"] += 1
        else:
            assert len(episode.classes) == 50
            assert episode.classes.min() >= 3
            kinds["many"] += 1
    assert min(kinds.values()) > 60
    assert len({tuple(sampler.draw(generator(seed)).classes.tolist()) for seed in range(20)}) > 5


def test_means_of_omniglots_evaluation_alphabets_are_those_of_the_reference():
    sampler = EpisodeSampler(alphabets())
    episodes = [sampler.draw(generator("means", number)) for number in range(5000)]
    shots = [torch.bincount(episode.support_target) for episode in episodes]
    means = {
        "way": np.mean([len(episode.classes) for episode in episodes]),
        "support": np.mean([len(episode.support) for episode in episodes]),
        "query": np.mean([len(episode.query) for episode in episodes]),
        "fewest": np.mean([int(counts.min()) for counts in shots]),
        "most": np.mean([int(counts.max()) for counts in shots]),
    }
    # Simulated with 5,000 episodes: way 18.9, support 92, query 189, shots 2.9 to 6.9. Two standard errors are about
    # 1.5 % of way and query and 2 % of support.
    assert means["way"] == pytest.approx(18.9, rel=0.03)
    assert means["support"] == pytest.approx(92, rel=0.04)
    assert means["query"] == pytest.approx(189, rel=0.03)
    assert means["fewest"] == pytest.approx(2.9, rel=0.05)
    assert means["most"] == pytest.approx(6.9, rel=0.05)


def test_the_evaluation_alphabets_are_those_of_the_reference_specification():
    file = DATA / "split-lists/few-shot/meta_dataset/omniglot_dataset_spec.json"
    if not file.is_file():
        pytest.skip(f"no {file}")
    spec = json.loads(file.read_text())
    assert tuple(spec["classes_per_superclass"].values())[30:] == EVALUATION_ALPHABETS
    assert set(spec["images_per_class"].values()) == {20}


@pytest.mark.parametrize(
    ("fixed", "expected"),
    [
        ({"n_way": 5, "n_shot": 1, "n_query": 15}, (5, [1] * 5, 15)),
        ({"n_way": 20, "n_shot": 5, "n_query": 3}, (20, [5] * 20, 3)),
        ({"n_way": 7, "n_shot": 15}, (7, [15] * 7, 5)),
    ],
)
def test_fixed_episodes_have_exactly_what_was_asked_for(fixed, expected):
    pool = alphabets((12, 20))
    episode = EpisodeSampler(pool, **fixed).draw(generator(0))
    way, shots, queries = expected
    check(pool, episode, min_way=way, max_way=way, max_query=15)
    assert len(episode.classes) == way
    assert torch.bincount(episode.support_target).tolist() == shots
    assert torch.bincount(episode.query_target).tolist() == [queries] * way


@pytest.mark.parametrize("fixed", [{"n_way": 3}, {"n_shot": 2}, {"n_query": 4}])
def test_what_is_not_fixed_still_varies(fixed):
    pool = pool_of([20] * 30)
    sampler = EpisodeSampler(pool, **fixed)
    episodes = [sampler.draw(generator(seed)) for seed in range(30)]
    ways = {len(episode.classes) for episode in episodes}
    shots = {count for episode in episodes for count in torch.bincount(episode.support_target).tolist()}
    queries = {count for episode in episodes for count in torch.bincount(episode.query_target).tolist()}
    assert (ways == {3}) == ("n_way" in fixed)
    assert (shots == {2}) == ("n_shot" in fixed)
    assert queries == ({4} if "n_query" in fixed else {10})


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        ([9] * 4, {}, r"`min_way` \(5\) must not be above the number of classes \(4\)"),
        ([9] * 4, {"n_way": 6}, r"`n_way` \(6\) must not be above the number of classes \(4\)"),
        (
            [9, 9, 7, 9, 9],
            {"n_way": 2, "n_shot": 5, "n_query": 3},
            r"8 images, for `n_shot` \(5\) \+ `n_query` \(3\).*'class 02'",
        ),
        ([9, 9, 7, 9, 9], {"n_shot": 7}, r"8 images, for `n_shot` \(7\) \+ 1"),
        ([9, 9, 1, 9, 9], {}, r"2 images, for one image of support and one query.*'class 02' \(1\)"),
        ([9] * 5, {"n_way": 0}, r"`n_way` \(0\) must be at least 1"),
        ([9] * 5, {"max_query": 0}, r"`max_query` \(0\)"),
        ([9] * 5, {"ignore_hierarchy": 1.5}, r"`ignore_hierarchy` \(1.5\)"),
        ([9] * 5, {"min_way": 8, "max_way": 7}, r"`min_way` \(8\) must not be above `max_way` \(7\)"),
        ([9] * 5, {"max_support": 20}, r"`max_support` \(20\) must be at least `max_way` \(50\)"),
    ],
)
def test_episodes_larger_than_the_data_and_senseless_numbers_are_refused(counts, options, message):
    with pytest.raises(InvalidInput, match=message):
        EpisodeSampler(pool_of(counts), **options)


def test_superclasses_and_graphs_without_an_eligible_group_are_refused():
    with pytest.raises(InvalidInput, match=r"no superclasses with 5 classes or more.*hierarchy=False"):
        EpisodeSampler(alphabets((4, 4)))
    with pytest.raises(InvalidInput, match="no nodes of the class graph above 5 to 5 classes"):
        EpisodeSampler(tree(), max_spanned=5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ("a",)}, "6 images, 6 targets and 1 names"),
        ({"target": torch.tensor([0, 0, 1, 1, 2, 3])}, r"Targets must be in 0..2, but are in 0..3"),
        ({"target": torch.tensor([0, 0, 1, 1, 1, 1])}, "No image for class 'class 02'"),
        ({"superclasses": ("a",)}, "1 superclasses for 3 classes"),
        ({"graph": ClassGraph({"top": ("a", "b")}, ("a", "b"))}, "2 leaves of the class graph for 3 classes"),
    ],
)
def test_pools_that_do_not_fit_together_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        pool_of([2, 2, 2], **change)


def test_a_pool_keeps_images_in_any_order():
    target = torch.tensor([2, 0, 1] * 8)
    pool = pool_of([8, 8, 8], target=target)
    episode = EpisodeSampler(pool, n_way=3, n_shot=2, n_query=2).draw(generator(0))
    assert torch.equal(pool.target[episode.support], episode.classes[episode.support_target])
    assert all(a < b for a, b in pairwise(episode.support_target.unique().tolist()))
