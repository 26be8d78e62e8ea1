from pathlib import Path

import fakes
import pytest
import torch
import torch.distributed as dist
from few_shot_fakes import pool_of

from setwise.data.few_shot import EpisodeSampler, Pool, make_episode_loader, simclr_episode
from setwise.data.few_shot.loader import squash
from setwise.data.images import ImageFiles, StackedImages
from setwise.errors import DataError, InvalidInput, UnknownName
from setwise.seeds import generator

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
FIXED = {"n_way": 3, "n_shot": 2, "n_query": 2}


def loader_of(pool: Pool, *, fixed=FIXED, **changes):
    options = {"episodes": 6, "image_size": 8, "mean": MEAN, "std": STD, "seed": 0, "train": True}
    return make_episode_loader(pool, EpisodeSampler(pool, **fixed), **(options | changes))


def epoch_of(loader, epoch: int = 0) -> list:
    loader.sampler.set_epoch(epoch)
    return list(loader)


def equal(one, other) -> bool:
    return len(one) == len(other) and all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        for a, b in zip(one, other, strict=True)
        for x, y in zip(a, b, strict=True)
    )


def normalised(images: torch.Tensor) -> torch.Tensor:
    return (images.float() / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def test_an_episode_is_what_the_sampler_draws_with_its_key():
    pool = pool_of([8] * 5, side=8)
    sampler = EpisodeSampler(pool, **FIXED)
    for number, batch in enumerate(epoch_of(loader_of(pool, seed=7), 3)):
        episode = sampler.draw(generator(7, "episode", 3, number))
        torch.testing.assert_close(batch.support, normalised(pool.images.tensor[episode.support]))
        torch.testing.assert_close(batch.query, normalised(pool.images.tensor[episode.query]))
        assert torch.equal(batch.support_target, episode.support_target)
        assert torch.equal(batch.query_target, episode.query_target)
        assert (batch.index, batch.simclr) == (number, False)


def test_an_epoch_is_the_same_whether_or_not_earlier_epochs_ran():
    pool, options = pool_of([8] * 5, side=8), {"simclr_fraction": 0.5, "num_workers": 0}
    through = loader_of(pool, **options)
    epochs = [epoch_of(through, epoch) for epoch in range(3)]
    assert equal(epochs[2], epoch_of(loader_of(pool, **options), 2))
    assert not equal(epochs[1], epochs[2])
    assert not equal(epochs[2], epoch_of(loader_of(pool, seed=1, **options), 2))


def test_an_episode_does_not_depend_on_the_others_of_its_epoch():
    pool = pool_of([8] * 5, side=8)
    few, many = (epoch_of(loader_of(pool, episodes=number), 1) for number in (2, 5))
    assert equal(few, many[:2])


def in_files(root: Path, *, broken: tuple[int, ...] = ()) -> Pool:
    fakes.write_classes(root, dict.fromkeys("abcd", 6), side=9)
    paths = sorted(root.glob("*/*.png"))
    for place in broken:
        paths[place].write_bytes(b"no image")
    target = torch.arange(4).repeat_interleave(6)
    return Pool(images=ImageFiles(paths), target=target, class_names=tuple("abcd"), names=tuple(map(str, paths)))


def test_episodes_are_the_same_in_any_number_of_workers(tmp_path):
    pool = in_files(tmp_path)
    options = {"simclr_fraction": 0.5, "augment": "simclr", "episodes": 4}
    alone = epoch_of(loader_of(pool, num_workers=0, **options), 1)
    assert equal(alone, epoch_of(loader_of(pool, num_workers=1, **options), 1))


def test_evaluation_has_the_same_episodes_in_every_epoch_whatever_training_does():
    pool = pool_of([8] * 5, side=8)
    first = epoch_of(loader_of(pool, train=False))
    assert equal(first, epoch_of(loader_of(pool, train=False), 5))
    assert equal(first, epoch_of(loader_of(pool, train=False, simclr_fraction=1.0, augment="simclr"), 5))
    assert not equal(first, epoch_of(loader_of(pool, train=False, seed=1)))


def ranks(monkeypatch, world: int, **options) -> list[list]:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: world)
    shares = []
    for rank in range(world):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        loader = loader_of(pool_of([8] * 5, side=8), **options)
        shares.append(epoch_of(loader, 2))
        assert len(loader) == len(shares[-1])
    monkeypatch.undo()
    return shares


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_episodes_of_one_without_overlap(monkeypatch, world):
    options = {"episodes": 6, "simclr_fraction": 0.5, "num_workers": 0}
    shares = ranks(monkeypatch, world, **options)
    together = sorted((batch for share in shares for batch in share), key=lambda batch: batch.index)
    assert equal(together, epoch_of(loader_of(pool_of([8] * 5, side=8), **options), 2))
    assert [batch.index for batch in shares[1]] == list(range(1, 6, world))


def test_training_makes_equally_many_steps_in_every_process_and_evaluation_misses_no_episode(monkeypatch):
    assert [len(share) for share in ranks(monkeypatch, 2, episodes=7)] == [3, 3]
    shares = ranks(monkeypatch, 2, episodes=7, train=False)
    assert sorted(batch.index for share in shares for batch in share) == list(range(7))


def test_a_part_of_the_episodes_are_simclr_episodes_and_their_targets_are_those_of_the_relabelled():
    pool = pool_of([8] * 5, side=4)
    sampler = EpisodeSampler(pool, **FIXED)
    batches = epoch_of(loader_of(pool, simclr_fraction=0.5, episodes=200, image_size=4, num_workers=0))
    assert 70 < sum(batch.simclr for batch in batches) < 130
    for batch in batches:
        episode = sampler.draw(generator(0, "episode", 0, batch.index))
        expected = simclr_episode(episode) if batch.simclr else episode
        assert torch.equal(batch.support_target, expected.support_target)
        assert torch.equal(batch.query_target, expected.query_target)
        plain = torch.isclose(batch.support, normalised(pool.images.tensor[episode.support]), atol=1e-5).all()
        assert plain == (not batch.simclr)


def test_views_of_one_image_in_support_and_query_differ():
    batch = epoch_of(loader_of(pool_of([8] * 5, side=8), simclr_fraction=1.0, num_workers=0))[0]
    assert batch.simclr
    assert not torch.isclose(batch.support[batch.query_target], batch.query).flatten(1).all(1).any()


def test_simclr_as_augmentation_changes_pixels_but_no_label():
    pool = pool_of([8] * 5, side=8)
    plain, changed = epoch_of(loader_of(pool)), epoch_of(loader_of(pool, augment="simclr", num_workers=0))
    for one, other in zip(plain, changed, strict=True):
        assert torch.equal(one.support_target, other.support_target)
        assert not other.simclr
        assert not torch.isclose(one.support, other.support).flatten(1).all(1).any()
        assert not torch.isclose(one.query, other.query).flatten(1).all(1).any()


def test_every_episode_comes_from_one_of_several_sources_and_all_are_equally_likely():
    plain = [torch.full((24, 3, 4, 4), shade, dtype=torch.uint8) for shade in (0, 100, 200)]
    pools = [pool_of([6] * 4, images=StackedImages(images)) for images in plain]
    sources = [(pool, EpisodeSampler(pool, **FIXED)) for pool in pools]
    loader = make_episode_loader(
        sources, episodes=150, image_size=4, mean=(0.0,) * 3, std=(1 / 255,) * 3, seed=0, train=True
    )
    shades = [{round(float(x)) for x in torch.cat([b.support, b.query]).unique()} for b in epoch_of(loader)]
    assert all(len(shade) == 1 for shade in shades)
    counts = [shades.count({shade}) for shade in (0, 100, 200)]
    assert sum(counts) == 150
    assert min(counts) > 30


def test_squashing_keeps_the_whole_image_and_leaves_those_of_the_right_size_alone():
    wide = torch.zeros(3, 20, 60, dtype=torch.uint8)
    wide[:, :, 30:] = 200
    small = squash([wide], 10)[0]
    assert small.shape == (3, 10, 10)
    assert (small[:, :, :4] == 0).all()
    assert (small[:, :, 6:] == 200).all()
    grey = torch.randint(0, 256, (1, 10, 10), dtype=torch.uint8)
    assert torch.equal(squash([grey], 10)[0], grey.expand(3, -1, -1))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_corrupt_file_is_named_in_one_sentence_even_from_a_worker(tmp_path, num_workers):
    pool = in_files(tmp_path, broken=tuple(range(24)))
    with pytest.raises(DataError, match=r"png cannot be read as an image.* Repair what is named") as info:
        epoch_of(loader_of(pool, num_workers=num_workers))
    assert "\n" not in str(info.value)


def test_loading_leaves_the_global_random_state_alone():
    state = torch.get_rng_state()
    epoch_of(loader_of(pool_of([8] * 5, side=8), simclr_fraction=0.5, num_workers=0))
    assert torch.equal(torch.get_rng_state(), state)


def test_work_that_takes_time_gets_workers_and_the_rest_none(tmp_path):
    pool = pool_of([8] * 5, side=8)
    assert loader_of(pool).num_workers == 0
    assert loader_of(pool, train=False, simclr_fraction=0.5).num_workers == 0
    assert loader_of(pool, simclr_fraction=0.5).num_workers > 0
    assert loader_of(in_files(tmp_path)).num_workers > 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"episodes": 0}, InvalidInput, r"`episodes` \(0\) must be at least 1"),
        ({"simclr_fraction": 1.5}, InvalidInput, r"`simclr_fraction` \(1.5\) is a probability"),
        ({"image_size": 0}, InvalidInput, r"`image_size` \(0\)"),
    ],
)
def test_senseless_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        loader_of(pool_of([8] * 5), **options)


def test_an_unknown_augmentation_lists_the_choices(unchecked):
    with pytest.raises(UnknownName, match="simclr"):
        loader_of(pool_of([8] * 5), augment="simclear")


def test_a_pool_needs_its_sampler_and_a_list_of_pools_no_other():
    pool = pool_of([8] * 5)
    options = {"episodes": 1, "image_size": 8, "mean": MEAN, "std": STD, "seed": 0, "train": True}
    with pytest.raises(InvalidInput, match="Pass a pool and its sampler"):
        make_episode_loader(pool, **options)
    with pytest.raises(InvalidInput, match="no \\(pool, sampler\\)"):
        make_episode_loader([], **options)


def test_two_views_of_every_support_image_come_where_they_are_asked_for_in_training_alone():
    pool = pool_of([8] * 5, side=8)
    options = {"views": True, "num_workers": 0}
    batch = epoch_of(loader_of(pool, **options))[0]
    assert batch.views.shape == (2 * len(batch.support), 3, 8, 8)
    one, other = batch.views.chunk(2)
    assert not torch.equal(one, other)
    assert equal([batch], epoch_of(loader_of(pool, **options))[:1])
    assert all(b.views is None for b in epoch_of(loader_of(pool, train=False, **options)))
    torch.testing.assert_close(batch.support, epoch_of(loader_of(pool))[0].support)
