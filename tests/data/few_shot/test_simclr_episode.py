import pytest
import torch
from few_shot_fakes import pool_of
from hypothesis import given
from hypothesis import strategies as st

from setwise.data.few_shot import Episode, EpisodeSampler, simclr_episode
from setwise.seeds import generator


def oracle(episode: Episode) -> tuple[list[int], list[int], list[int]]:
    """Queries, their labels and the support labels, by pairs of (label, rank) as the code of the paper has them."""

    def pairs(target):
        return [(label, target[: place + 1].count(label)) for place, label in enumerate(target)]

    wanted = set(pairs(episode.query_target.tolist()))
    keep = [pair in wanted for pair in pairs(episode.support_target.tolist())]
    queries = [place for place, kept in zip(episode.support.tolist(), keep, strict=True) if kept]
    labels = [number for number, kept in enumerate(keep) if kept]
    return queries, labels, list(range(len(keep)))


@given(seed=st.integers(0, 10**6), most=st.integers(3, 60))
def test_a_simclr_episode_is_the_oracles(seed, most):
    pool = pool_of([2 + (5 * label) % most for label in range(20)])
    episode = EpisodeSampler(pool).draw(generator(seed))
    changed = simclr_episode(episode)
    queries, labels, support_labels = oracle(episode)
    assert changed.query.tolist() == queries
    assert changed.query_target.tolist() == labels
    assert changed.support_target.tolist() == support_labels
    assert torch.equal(changed.support, episode.support)


def test_every_query_is_a_copy_of_the_support_image_of_its_class():
    episode = EpisodeSampler(pool_of([30] * 12)).draw(generator(3))
    changed = simclr_episode(episode)
    assert torch.equal(changed.support[changed.query_target], changed.query)
    assert len(changed.query.unique()) == len(changed.query)
    assert not set(changed.query.tolist()) & set(episode.query.tolist())


@pytest.mark.parametrize(("shots", "queries", "expected"), [(3, 5, 15), (5, 2, 10), (4, 4, 20)])
def test_a_class_gives_as_many_queries_as_it_had_but_no_more_than_it_has_support_images(shots, queries, expected):
    sampler = EpisodeSampler(pool_of([10] * 5), n_way=5, n_shot=shots, n_query=queries)
    changed = simclr_episode(sampler.draw(generator(0)))
    assert len(changed.query) == expected
    assert len(changed.classes) == len(changed.support) == 5 * shots


def test_classes_still_say_which_class_of_the_pool_an_image_is_of():
    pool = pool_of([10] * 7)
    changed = simclr_episode(EpisodeSampler(pool).draw(generator(0)))
    assert torch.equal(pool.target[changed.support], changed.classes)


def test_labels_may_stand_in_any_order():
    episode = Episode(
        support=torch.tensor([5, 6, 7, 8, 9]),
        support_target=torch.tensor([1, 0, 1, 1, 0]),
        query=torch.tensor([1, 2, 3]),
        query_target=torch.tensor([0, 1, 1]),
        classes=torch.tensor([4, 2]),
    )
    changed = simclr_episode(episode)
    assert changed.query.tolist() == [5, 6, 7]
    assert changed.query_target.tolist() == [0, 1, 2]
    assert changed.classes.tolist() == [2, 4, 2, 2, 4]
