import time
from dataclasses import replace
from pathlib import Path

import fakes
import pytest
import torch
import torch.distributed as dist

from setwise.data import DATASETS, Batch, make_loader
from setwise.data.dataset import Split
from setwise.data.images import ImageFiles, ListedImages, StackedImages
from setwise.data.order import EpochSampler
from setwise.errors import DataError, InvalidInput, UnknownName
from setwise.seeds import generator


def stacked(number: int = 50, side: int = 8, num_classes: int = 4) -> Split:
    images = torch.randint(0, 256, (number, 3, side, side), dtype=torch.uint8, generator=generator(0))
    names = tuple(map(str, range(number)))
    return Split(images=StackedImages(images), target=torch.arange(number) % num_classes, names=names)


def in_files(root: Path, *, broken: tuple[int, ...] = (), number: int = 10) -> Split:
    fakes.write_classes(root, {"cat": number})
    paths = sorted((root / "cat").iterdir())
    for place in broken:
        paths[place].write_bytes(b"no image")
    return Split(images=ImageFiles(paths), target=torch.zeros(number).long(), names=tuple(map(str, paths)))


def loader_of(split: Split, **changes):
    options = {
        "batch_size": 8,
        "transform": "crop-flip",
        "mean": (0.5,) * 3,
        "std": (0.25,) * 3,
        "seed": 0,
        "train": True,
        "num_classes": 4,
    }
    return make_loader(split, **(options | changes))


def epoch_of(loader, epoch: int = 0) -> list:
    loader.sampler.set_epoch(epoch)
    return list(loader)


def equal(one: list, other: list) -> bool:
    return len(one) == len(other) and all(
        torch.equal(x, y) for a, b in zip(one, other, strict=True) for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("transform", ["crop-flip", "crop-flip-rotate"])
def test_an_epoch_is_the_same_whether_or_not_earlier_epochs_ran(transform):
    through = loader_of(stacked(), transform=transform, mixup=0.8, cutmix=1.0)
    epochs = [epoch_of(through, epoch) for epoch in range(3)]
    assert equal(epochs[2], epoch_of(loader_of(stacked(), transform=transform, mixup=0.8, cutmix=1.0), 2))
    assert not equal(epochs[1], epochs[2])


def test_an_epoch_is_the_same_in_any_number_of_workers(tmp_path):
    split = in_files(tmp_path)
    options = {"transform": "crop-flip-rotate", "batch_size": 3, "mixup": 1.0}
    alone = epoch_of(loader_of(split, num_workers=0, **options), 1)
    assert equal(alone, epoch_of(loader_of(split, num_workers=2, **options), 1))


def test_loading_leaves_the_global_random_state_alone():
    state = torch.get_rng_state()
    epoch_of(loader_of(stacked(), transform="randaugment", mixup=1.0, cutmix=1.0))
    assert torch.equal(torch.get_rng_state(), state)


def test_another_seed_gives_another_order_and_other_augmentation():
    one, other = epoch_of(loader_of(stacked())), epoch_of(loader_of(stacked(), seed=1))
    assert not torch.equal(one[0].index, other[0].index)


def test_a_batch_with_views_is_the_batch_without_them_and_further_views_of_its_images():
    plain = epoch_of(loader_of(stacked()), 1)
    viewed = epoch_of(viewed_loader(), 1)
    untouched = epoch_of(loader_of(stacked(), transform="none"), 1)
    for one, many, as_it_is in zip(plain, viewed, untouched, strict=True):
        assert equal([one], [many[:3]])
        again, simclr, same = many.views
        assert not torch.equal(again, one.image)  # the same augmentation, drawn anew
        assert not torch.equal(simclr, again)
        assert torch.equal(same, as_it_is.image)
    assert equal([batch.views for batch in viewed], [b.views for b in epoch_of(viewed_loader(), 1)])


def viewed_loader():
    return loader_of(stacked(), views=["crop-flip", "simclr-cifar", "none"])


def test_evaluation_has_no_views():
    assert all(isinstance(batch, Batch) for batch in loader_of(stacked(), train=False, views=["crop-flip"]))


def test_views_are_not_mixed_and_have_known_names():
    for mix in ("mixup", "cutmix"):
        with pytest.raises(InvalidInput, match="`views` show one image each"):
            loader_of(stacked(), views=["crop-flip"], **{mix: 1.0})
    with pytest.raises(UnknownName, match="crop-flip"):
        loader_of(stacked(), views=["crop-flop"])


def test_order_does_not_depend_on_the_augmentation():
    one, other = (epoch_of(loader_of(stacked(), transform=name)) for name in ("none", "crop-flip"))
    assert all(torch.equal(a.index, b.index) for a, b in zip(one, other, strict=True))


def test_training_drops_the_rest_and_evaluation_keeps_everything_in_order():
    train = epoch_of(loader_of(stacked(50)))
    assert [len(batch.index) for batch in train] == [8] * 6
    assert len(torch.cat([batch.index for batch in train]).unique()) == 48
    evaluation = loader_of(stacked(50), train=False)
    assert torch.cat([batch.index for batch in evaluation]).tolist() == list(range(50))
    assert len(evaluation) == 7


def indices(loader, epoch: int = 0) -> list[int]:
    return torch.cat([batch.index for batch in epoch_of(loader, epoch)]).tolist()


def sorted_by_class(number: int = 60, num_classes: int = 4) -> Split:
    """As folders are listed."""
    split = stacked(number)
    return Split(images=split.images, target=(torch.arange(number) * num_classes) // number, names=split.names)


def test_a_mixed_evaluation_is_one_order_for_every_seed_and_epoch():
    order = indices(loader_of(stacked(50), train=False, mixed=True))
    assert order != sorted(order) == list(range(50))
    assert order == indices(loader_of(stacked(50), train=False, mixed=True, seed=7), epoch=3)


def test_batches_of_a_mixed_evaluation_are_not_of_one_class():
    split = sorted_by_class()
    classes = [len(batch.target.unique()) for batch in loader_of(split, train=False, mixed=True, batch_size=15)]
    assert min(classes) > 1
    assert [len(b.target.unique()) for b in loader_of(split, train=False, batch_size=15)] == [1] * 4


def test_rows_of_a_mixed_evaluation_are_the_images_and_targets_of_their_index():
    split = sorted_by_class()
    for batch in loader_of(split, train=False, mixed=True):
        expected = (split.images.tensor[batch.index].float() / 255 - 0.5) / 0.25
        torch.testing.assert_close(batch.image, expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(batch.target, split.target[batch.index])


def test_mixed_has_no_effect_in_training():
    assert equal(epoch_of(loader_of(stacked(), mixed=True), 2), epoch_of(loader_of(stacked()), 2))


def test_a_set_smaller_than_a_batch_is_one_batch():
    batches = epoch_of(loader_of(stacked(5)))
    assert [len(batch.index) for batch in batches] == [5]


def test_an_empty_split_has_no_batches():
    empty = Split(images=ListedImages([]), target=torch.zeros(0).long(), names=())
    assert epoch_of(loader_of(empty)) == epoch_of(loader_of(empty, train=False)) == []


def test_images_are_those_of_the_index_in_evaluation():
    split = stacked(20)
    for batch in loader_of(split, train=False, mixup=1.0):
        expected = (split.images.tensor[batch.index].float() / 255 - 0.5) / 0.25
        torch.testing.assert_close(batch.image, expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(batch.target, split.target[batch.index])


@pytest.mark.parametrize("mix", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
@pytest.mark.parametrize("several", [False, True], ids=["one label", "several labels"])
def test_mixed_targets_are_rows_of_class_weights(mix, several):
    split = stacked()
    if several:
        target = torch.nn.functional.one_hot(split.target, 4).float()
        split = Split(images=split.images, target=target, names=split.names)
    for batch in loader_of(split, **mix):
        assert batch.target.shape == (8, 4)
        assert batch.target.dtype == torch.float32
        torch.testing.assert_close(batch.target.sum(1), torch.ones(8))
    assert any(((batch.target > 0) & (batch.target < 1)).any() for batch in loader_of(split, **mix))


@pytest.mark.parametrize("size", [50, 51, 7])
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("mixed", [False, True], ids=["in order", "mixed"])
def test_ranks_share_an_epoch_without_overlap(monkeypatch, size, world, mixed):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: world)

    def draws(rank: int, train: bool) -> list:
        monkeypatch.setattr(dist, "get_rank", lambda: rank)
        sampler = EpochSampler(size, batch_size=4, seed=0, train=train, mixed=mixed)
        found = list(sampler)
        assert len(found) == len(sampler)
        return found

    training = [draws(rank, True) for rank in range(world)]
    seen = [index for rank in training for draw in rank for index in draw.indices.tolist()]
    assert len(seen) == len(set(seen))
    assert len({tuple(len(draw.indices) for draw in rank) for rank in training}) == 1
    assert training[0]
    steps = [draw.step for rank in training for draw in rank]
    assert sorted(steps) == list(range(len(steps)))

    evaluation = [[i for draw in draws(rank, False) for i in draw.indices.tolist()] for rank in range(world)]
    assert sorted(index for rank in evaluation for index in rank) == list(range(size))
    assert max(map(len, evaluation)) - min(map(len, evaluation)) <= 1


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_corrupt_file_is_named_in_one_sentence_even_from_a_worker(tmp_path, num_workers):
    split = in_files(tmp_path, broken=(3,))
    with pytest.raises(
        DataError, match=r"0003.png cannot be read as an image \(no image format is recognised\)"
    ) as info:
        list(loader_of(split, num_workers=num_workers, train=False))
    assert "Traceback" not in str(info.value)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("way_out", "end"), [("Leave it out of the list.", "Leave it out of the list."), ("", "is recognised).")]
)
def test_the_way_out_of_a_corrupt_file_is_the_callers(tmp_path, way_out, end):
    with pytest.raises(DataError) as info:
        list(loader_of(in_files(tmp_path, broken=(3,)), num_workers=0, train=False, way_out=way_out))
    assert str(info.value).endswith(end)
    assert "--data.on-error" not in str(info.value)


def test_corrupt_files_are_left_out_and_counted_where_the_user_says_so(tmp_path):
    split = in_files(tmp_path, broken=(0, 1, 2, 5))
    loader = loader_of(split, on_error="skip", train=False, batch_size=3, num_workers=0)
    assert [batch.index.tolist() for batch in loader] == [[3, 4], [6, 7, 8], [9]]
    assert len(list(loader)) == 3  # a second pass counts nothing twice
    assert len(loader.skipped) == 4
    assert "0005.png" in loader.skipped[3]


def test_a_training_batch_of_which_nothing_can_be_read_ends_the_run(tmp_path):
    split = in_files(tmp_path, broken=tuple(range(10)))
    with pytest.raises(DataError, match=r"No image of a training batch can be read; the first: .*\.png"):
        list(loader_of(split, on_error="skip", train=True, batch_size=3, num_workers=0))


def test_a_file_that_vanishes_is_named(tmp_path):
    split = in_files(tmp_path)
    Path(split.images.paths[4]).unlink()
    with pytest.raises(DataError, match=r"0004.png is missing"):
        list(loader_of(split, train=False, num_workers=0))


def test_different_sizes_without_image_size_are_an_error_even_where_images_may_be_skipped():
    images = ListedImages([torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(3, 9, 8, dtype=torch.uint8)])
    split = Split(images=images, target=torch.zeros(2).long(), names=("a", "b"))
    with pytest.raises(DataError, match=r"--data.image-size"):
        list(loader_of(split, on_error="skip", train=False))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, InvalidInput, r"`batch_size` \(0\)"),
        ({"mixup": -1.0}, InvalidInput, r"`mixup` \(-1\)"),
        ({"transform": "crop-flop"}, UnknownName, "crop-flip"),
    ],
)
def test_wrong_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        loader_of(stacked(), **options)


def test_sets_in_memory_need_no_worker_and_files_get_some(tmp_path):
    assert loader_of(stacked()).num_workers == 0
    files = in_files(tmp_path)
    assert loader_of(files).num_workers > 0
    assert loader_of(files, num_workers=2, transform="crop-flip").num_workers == 2
    asked = {"transform": "crop-flip", "num_workers": 2}  # of whole batches, which are made faster than handed over
    assert loader_of(stacked(), **asked).num_workers == 0
    assert loader_of(stacked(), **asked | {"transform": "crop-flip-rotate"}).num_workers == 2
    assert loader_of(stacked(), **asked | {"views": ["crop-flip-rotate"]}).num_workers == 2
    assert loader_of(stacked(), **asked | {"transform": "crop-flip-rotate", "train": False}).num_workers == 0


def test_an_epoch_of_12406_small_images_takes_well_under_a_second_on_one_thread():
    loader = loader_of(stacked(12_406, side=32), batch_size=128)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        next(iter(loader))
        times = []
        for _ in range(2):
            start = time.process_time()
            assert sum(1 for _ in loader) == 96
            times.append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    assert min(times) < 1


def test_digits_make_batches_of_one_channel():
    splits = DATASETS["digits-lt"].load(seed=0, image_size=16)
    loader = loader_of(splits.train, mean=splits.mean, std=splits.std, transform="shift", num_classes=10)
    assert next(iter(loader)).image.shape == (8, 1, 16, 16)


def test_a_sampler_that_repeats_an_image_shows_it_in_several_ways():
    split = stacked()
    rare = replace(split, target=torch.tensor([0] * (len(split) - 1) + [1]))
    seen = []
    for batch in epoch_of(loader_of(rare, transform="random-resized-crop", sampler="class-balanced", num_classes=2)):
        seen += [image for image, index in zip(batch.image, batch.index, strict=True) if index == len(split) - 1]
    assert len(seen) > 5
    assert not any(torch.equal(seen[0], other) for other in seen[1:])


class Watched(ImageFiles):
    """Photographs, of which few may be held as large as they are."""

    most = 0

    def take(self, places):
        self.most = max(self.most, len(places))
        return super().take(places)


@pytest.mark.parametrize(
    ("transform", "views", "most"),
    [
        ("none", (), 8),
        ("random-resized-crop", (), 8),
        ("randaugment", ("simclr",), 8),
        ("crop-flip", (), 8),
        ("random-resized-crop", ("crop-flip",), 20),  # which draws for all of a batch together
    ],
)
def test_photographs_in_files_are_brought_to_size_a_few_at_a_time(tmp_path, transform, views, most):
    split = in_files(tmp_path, broken=(3,), number=20)
    watched = Watched([Path(path) for path in split.images.paths])
    split = replace(split, images=watched, image_size=16)
    options = {"transform": transform, "views": views, "batch_size": 20, "on_error": "skip", "num_workers": 0}
    loader = loader_of(split, **options)
    (few,) = loader
    assert watched.most == most
    loader.dataset._at_a_time, loader.dataset._fits = None, False
    (whole,) = loader
    assert torch.equal(few.image, whole.image)
    assert torch.equal(few.index, whole.index)
    assert torch.equal(few.target, whole.target)
    assert len(few.index) == 19
    for one, other in zip(few.views if views else (), whole.views if views else (), strict=True):
        assert torch.equal(one, other)
