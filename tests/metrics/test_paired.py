"""The intervals: coverage by simulation, invariances, and a plain-loop bootstrap beside the fast one."""

import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from setwise.errors import InvalidInput
from setwise.metrics import (
    classification_metrics,
    contributions,
    holm,
    instance_contributions,
    paired,
    paired_interval,
    seed_interval,
)

NUM_CLASSES = 5


def simulate(rng, *, num_seeds, num_images=100, seed_sd=0.01, image_sd=0.01, noise_sd=0.0, effect=0.0):
    """Differences with an effect of the seed, of the image and of both, whose sums over images have mean ``effect``."""
    difference = (
        effect
        + seed_sd * rng.standard_normal((num_seeds, 1))
        + image_sd * math.sqrt(num_images) * rng.standard_normal((1, num_images))
        + noise_sd * math.sqrt(num_images) * rng.standard_normal((num_seeds, num_images))
    ) / num_images
    return difference, np.arange(num_images) % NUM_CLASSES


def intervals(count, **options):
    rng = np.random.default_rng(0)
    for i in range(count):
        difference, strata = simulate(rng, **options)
        yield paired_interval(difference, np.zeros_like(difference), strata, num_resamples=999, seed=i)


DESIGNS = {
    "three seeds": {"num_seeds": 3},
    "seeds alone": {"num_seeds": 5, "image_sd": 0.0},
    "images alone": {"num_seeds": 20, "seed_sd": 0.0},
    "noise alone": {"num_seeds": 5, "seed_sd": 0.0, "image_sd": 0.0, "noise_sd": 0.01},
    "noise of many seeds": {"num_seeds": 50, "seed_sd": 0.0, "image_sd": 0.0, "noise_sd": 0.01},
    "all three": {"num_seeds": 10, "noise_sd": 0.01},
}


@pytest.mark.parametrize("design", DESIGNS.values(), ids=DESIGNS)
def test_interval_covers_the_true_difference_as_often_as_it_says(design):
    covered = sum(i.low <= 0 <= i.high for i in intervals(200, **design))
    assert 0.91 * 200 <= covered <= 0.985 * 200


@pytest.mark.parametrize("num_seeds", [3, 5, 50])
@pytest.mark.parametrize("image_effect", [0.0, 1.5])
def test_interval_of_a_group_that_differs_by_seed_covers_the_true_difference(num_seeds, image_effect):
    rng = np.random.default_rng(0)
    target = np.arange(200) % 10
    covered = 0
    for i in range(200):
        ease = rng.normal(1, 2, 200)
        gain = image_effect * rng.standard_normal(200)  # as often for one arm as for the other
        few = [rng.permutation(10) < 3 for _ in range(num_seeds)]
        logits = [np.tile(ease + gain, (num_seeds, 1)), np.tile(ease - gain, (num_seeds, 1))]
        a, b = (contributions(rng.random(z.shape) < 1 / (1 + np.exp(-z)), target, groups_of_seed=few) for z in logits)
        interval = paired_interval(a, b, target, num_resamples=499, seed=i)
        covered += interval.low <= 0 <= interval.high
    assert 0.91 * 200 <= covered <= 0.985 * 200


@pytest.mark.parametrize("design", ["noise of many seeds", "images alone", "all three"])
def test_null_p_values_are_roughly_uniform(design):
    p = np.array([i.p for i in intervals(300, **DESIGNS[design])])
    assert 0.43 < p.mean() < 0.57
    assert 0.04 <= (p < 0.1).mean() < 0.16
    assert stats.kstest(p, "uniform").pvalue > 0.001


def test_effect_is_found_and_has_the_sign_of_the_first_arm():
    rng = np.random.default_rng(0)
    difference, strata = simulate(rng, num_seeds=10, effect=0.03)
    zero = np.zeros_like(difference)
    better, worse = paired_interval(difference, zero, strata), paired_interval(zero, difference, strata)
    assert better.low > 0
    assert better.p < 0.05
    assert worse.estimate == pytest.approx(-better.estimate)
    assert (worse.low, worse.high) == pytest.approx((-better.high, -better.low), abs=0.002)


def test_without_image_effects_the_interval_is_that_of_the_paired_t_test():
    values = 0.01 + 0.01 * np.random.default_rng(3).standard_normal(6)
    ours = seed_interval(values, np.zeros(6), num_resamples=50_000)
    test = stats.ttest_1samp(values, 0)
    expected = test.confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((expected.low, expected.high), abs=0.15 * (ours.high - ours.low))
    # normal resamples would agree closely; those of six values have shorter tails
    assert 0.3 < ours.p / test.pvalue < 3


def shrunken_effects_by_loops(difference, strata):
    """From the definition: class means off, noise between seeds measured, image effects shrunk by its share.

    No more noise counts than the seeds can hold, by the upper limit of their variance.
    """
    num_seeds, num_images = difference.shape
    rest = np.zeros_like(difference)
    for s in range(num_seeds):
        for n in range(num_images):
            same = [m for m in range(num_images) if strata[m] == strata[n]]
            correction = math.sqrt(len(same) / (len(same) - 1)) if len(same) > 1 else 1.0
            rest[s, n] = correction * (difference[s, n] - np.mean([difference[s, m] for m in same]))
    effects, noise, total = np.zeros(num_images), 0.0, 0.0
    for n in range(num_images):
        effects[n] = np.mean(rest[:, n])
        noise += np.var(rest[:, n], ddof=1)
        total += effects[n] ** 2
    limit = (num_seeds - 1) / stats.chi2.ppf(0.01, num_seeds - 1)
    held = limit * np.var([sum(row) for row in difference], ddof=1) / num_seeds
    return effects * math.sqrt(max(0.0, 1 - min(noise / num_seeds, held) / total))


@pytest.mark.parametrize("noise_sd", [0.0, 0.01, 0.05], ids=["no noise", "noise", "noise alone"])
def test_interval_equals_a_plain_loop_bootstrap(noise_sd):
    rng = np.random.default_rng(0)
    difference, _ = simulate(rng, num_seeds=4, num_images=20, noise_sd=noise_sd)
    strata = np.array([7, 2, 2, 4, 4, 4] + [5] * 14)  # one class has one image
    effects = shrunken_effects_by_loops(difference, strata)
    assert (effects == 0).all() == (noise_sd == 0.05)
    estimate = difference.sum() / 4
    stretch = math.sqrt(4 / 3) * stats.t.ppf(0.025, 3) / stats.norm.ppf(0.025)
    values = []
    for _ in range(4000):
        seeds = [rng.integers(4) for _ in range(4)]
        images = [rng.choice(np.flatnonzero(strata == c)) for c in strata]  # as many of each class as there are
        by_seed = sum(difference[s].sum() for s in seeds) / 4
        values.append(estimate + stretch * (by_seed - estimate) + sum(effects[n] for n in images))
    low, high = np.quantile(values, [0.025, 0.975])
    ours = paired_interval(difference, np.zeros_like(difference), strata)
    assert ours.estimate == pytest.approx(estimate)
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.05 * (high - low))


@pytest.mark.parametrize("num_seeds", [2, 3])
def test_seeds_that_agree_by_chance_on_few_images_are_no_certainty(num_seeds):
    """Every seed wins one image of ten, each another one: their differences are equal, and nothing is known."""
    strata = np.repeat([0, 1], 10)
    difference = np.zeros((num_seeds, 20))
    for seed in range(num_seeds):
        difference[seed, seed] = 0.1
    found = paired_interval(difference, np.zeros_like(difference), strata)
    assert found.estimate == pytest.approx(0.1)
    assert found.low < 0 < found.high
    assert found.p > 0.05


def test_width_is_that_of_the_true_standard_error_when_there_are_many_seeds_and_images():
    sd = {"seed_sd": 0.003, "image_sd": 0.01, "noise_sd": 0.03}
    difference, strata = simulate(np.random.default_rng(0), num_seeds=60, num_images=2000, **sd)
    ours = paired_interval(difference, np.zeros_like(difference), strata, num_resamples=5000)
    error = math.sqrt((0.003**2 + 0.03**2) / 60 + 0.01**2)  # the noise once; crosswise it would be there three times
    assert ours.high - ours.low == pytest.approx(2 * stats.t.ppf(0.975, 59) * error, rel=0.1)


def test_images_that_do_not_count_change_nothing():
    rng = np.random.default_rng(0)
    difference, strata = simulate(rng, num_seeds=5, noise_sd=0.01)
    counts = strata < 2
    difference *= counts
    zero = np.zeros_like(difference)
    all_images = paired_interval(difference, zero, strata)
    alone = paired_interval(difference[:, counts], zero[:, counts], strata[counts])
    close = 0.05 * (alone.high - alone.low)
    assert (all_images.low, all_images.high) == pytest.approx((alone.low, alone.high), abs=close)


def test_image_classes_keep_their_size_in_every_resample():
    # a difference that is constant within each class varies with the seed alone
    strata = np.array([0, 1, 1, 2, 2, 2])
    by_class = np.array([[0.3, -0.1, 0.05], [0.1, 0.2, -0.02], [0.2, 0.0, 0.0]])
    difference = by_class[:, strata]
    zero = np.zeros_like(difference)
    ours = paired_interval(difference, zero, strata, num_resamples=50_000)
    alone = seed_interval(difference.sum(1), zero.sum(1), num_resamples=50_000)
    assert (ours.low, ours.high) == pytest.approx((alone.low, alone.high), abs=0.03 * (alone.high - alone.low))


def test_order_of_seeds_and_images_does_not_matter():
    rng = np.random.default_rng(0)
    difference, strata = simulate(rng, num_seeds=6)
    images, seeds = rng.permutation(100), rng.permutation(6)
    zero = np.zeros_like(difference)
    first = paired_interval(difference, zero, strata)
    second = paired_interval(difference[seeds][:, images], zero, strata[images])
    assert first.estimate == pytest.approx(second.estimate)
    assert (first.low, first.high, first.p) == pytest.approx((second.low, second.high, second.p), rel=1e-9)


def test_same_seed_of_the_resampling_gives_the_same_interval():
    difference, strata = simulate(np.random.default_rng(0), num_seeds=3)
    zero = np.zeros_like(difference)
    first = paired_interval(difference, zero, strata, num_resamples=500)
    assert first == paired_interval(difference, zero, strata, num_resamples=500)
    assert first != paired_interval(difference, zero, strata, num_resamples=500, seed=1)


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 8), st.integers(0, 10_000), st.floats(-0.05, 0.05), st.sampled_from([0.8, 0.95, 0.99]))
def test_p_value_is_below_the_level_where_the_interval_leaves_zero_out(num_seeds, seed, effect, confidence):
    rng = np.random.default_rng(seed)
    difference, strata = simulate(rng, num_seeds=num_seeds, num_images=10, effect=effect)
    zero = np.zeros_like(difference)
    interval = paired_interval(difference, zero, strata, num_resamples=1999, confidence=confidence)
    assert interval.low <= interval.high
    assert 0 < interval.p <= 1
    resolution = 2 * 3 / 2000  # three of the resamples, on both sides
    if interval.low > 0 or interval.high < 0:
        assert interval.p <= 1 - confidence + resolution
    else:
        assert interval.p >= 1 - confidence - resolution


def p_of_effects(effects, *, num_seeds, image_sd=0.01, num_resamples=10_000):
    """P values of the same data, moved: all else is equal."""
    difference, strata = simulate(np.random.default_rng(0), num_seeds=num_seeds, image_sd=image_sd)
    difference -= difference.sum(1).mean() / difference.shape[1]
    moved = [difference + effect / difference.shape[1] for effect in effects]
    how = {"num_resamples": num_resamples}
    return np.array([paired_interval(one, np.zeros_like(one), strata, **how).p for one in moved])


SWITCH = 2 * paired.RESOLVED / 2001
"""P where the resamples end and the fitted tail begins, of 2000 resamples."""


@pytest.mark.parametrize(("num_seeds", "image_sd"), [(50, 0.01), (50, 0.0), (4, 0.01), (3, 0.0)])
def test_p_falls_without_a_jump_as_the_effect_grows(num_seeds, image_sd):
    effects = np.geomspace(0.001, 2, 150)
    p = p_of_effects(effects, num_seeds=num_seeds, image_sd=image_sd, num_resamples=2000)
    steps = np.diff(np.log(p))
    assert (steps <= 0).all()
    assert (p < SWITCH).sum() > 10
    close = np.geomspace(*effects[np.flatnonzero(p >= SWITCH)[[-1]] + [-1, 1]], 60)
    around = p_of_effects(close, num_seeds=num_seeds, image_sd=image_sd, num_resamples=2000)
    assert np.diff(np.log(around)).min() > -0.25


def test_p_is_the_count_of_resamples_where_ten_or_more_lie_beyond_zero(monkeypatch):
    effects = np.linspace(0, 0.06, 40)
    fitted = p_of_effects(effects, num_seeds=8, num_resamples=2000)
    monkeypatch.setattr(paired, "RESOLVED", 0)
    counted = p_of_effects(effects, num_seeds=8, num_resamples=2000)
    resolved = counted > SWITCH
    assert 5 < resolved.sum() < 35
    np.testing.assert_array_equal(fitted[resolved], counted[resolved])
    assert counted.min() == pytest.approx(2 / 2001)
    assert fitted.min() < 1e-4


def test_p_of_fifty_seeds_reaches_one_in_a_million():
    (p,) = p_of_effects([0.08], num_seeds=50)
    assert 1e-12 < p < 1e-6


def test_one_effect_of_fifty_seeds_is_found_among_a_thousand_tests():
    (p,) = p_of_effects([0.08], num_seeds=50)
    assert holm({"effect": p} | {str(number): 0.5 for number in range(999)})["effect"] < 0.05


@pytest.mark.parametrize("num_seeds", [3, 6, 50])
def test_fitted_tail_of_seeds_alone_is_never_below_that_of_the_t_test(num_seeds):
    values = 0.01 * np.random.default_rng(1).standard_normal(num_seeds)
    for effect in np.geomspace(0.001, 3, 40):
        p = seed_interval(values + effect, np.zeros(num_seeds), num_resamples=2000).p
        test = stats.ttest_1samp(values + effect, 0).pvalue
        if p < 0.999 * SWITCH:
            assert p >= max(0.999 * test, 1e-12)
        elif p == pytest.approx(SWITCH):
            assert test < 0.1


def test_fitted_tail_of_few_images_is_wider_than_that_of_many():
    p = []
    for num_images in (4, 400):
        image = np.tile([1.0, -1.0], num_images // 2)
        image *= 0.01 / math.sqrt((image**2).sum() * num_images / (num_images - 1))  # one error for both
        difference = np.tile(image + 0.12 / num_images, (20, 1))  # the seeds agree
        p.append(paired_interval(difference, np.zeros_like(difference), np.zeros(num_images, int)).p)
    assert p[0] == pytest.approx(2 * stats.t.sf(12, 3), rel=1e-6)  # a class of four images has three degrees of freedom
    assert p[1] == pytest.approx(1e-12)  # and nothing below is claimed


def test_differences_without_any_variation_have_no_tail():
    assert seed_interval(np.full(3, 0.3), np.full(3, 0.1), num_resamples=999).p == pytest.approx(2 / 1000)


@pytest.mark.parametrize("num_seeds", [3, 50])
def test_small_p_values_are_not_too_frequent_where_there_is_no_difference(num_seeds):
    p = np.array([i.p for i in intervals(500, num_seeds=num_seeds, num_images=20)])
    assert (p < 0.01).sum() <= 12
    assert (p < 0.001).sum() <= 3


def test_equal_arms_have_no_difference_and_p_one():
    a = np.random.default_rng(0).random((4, 10))
    interval = paired_interval(a, a, np.zeros(10, dtype=int), num_resamples=100)
    assert (interval.estimate, interval.low, interval.high, interval.p) == (0, 0, 0, 1)


def test_one_seed_has_an_estimate_and_nothing_else():
    interval = paired_interval(np.full((1, 4), 0.1), np.zeros((1, 4)), np.zeros(4, dtype=int))
    assert interval.estimate == pytest.approx(0.4)
    assert interval.num_seeds == 1
    assert all(math.isnan(value) for value in (interval.low, interval.high, interval.p))


def test_memory_does_not_grow_with_the_number_of_resamples():
    rng = np.random.default_rng(0)
    strata = rng.integers(0, 100, 20_000)
    a, b = rng.random((2, 3, 20_000)) / 20_000
    tracemalloc.start()
    paired_interval(a, b, strata, num_resamples=300)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 2**20


def test_contributions_sum_to_the_metrics_of_each_seed():
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 6, (80,), generator=generator)
    target[target == 4] = 1  # a class without test images
    scores = torch.randn(3, 80, 6, generator=generator) + 2 * torch.nn.functional.one_hot(target, 6)
    order = [torch.randperm(6, generator=generator) for _ in range(3)]  # which classes are few-shot differs by seed
    groups = [{"many": rank < 3, "few": rank >= 3} for rank in order]
    correct = (scores.argmax(2) == target).numpy()
    expected = [classification_metrics(s, target, groups=g) for s, g in zip(scores, groups, strict=True)]
    labels = target.numpy()
    sums = {
        "accuracy": instance_contributions(correct),
        "balanced_accuracy": contributions(correct, labels),
        "many": contributions(correct, labels, groups_of_seed=[g["many"].numpy() for g in groups]),
        "few": contributions(correct, labels, groups_of_seed=[g["few"].numpy() for g in groups]),
    }
    for name, values in sums.items():
        np.testing.assert_allclose(values.sum(1), [metrics[name] for metrics in expected], rtol=0, atol=1e-12)


def test_input_that_does_not_fit_ends_in_a_sentence():
    a, strata = np.zeros((2, 4)), np.zeros(4, dtype=int)
    with pytest.raises(InvalidInput, match=r"not \(2, 4\), \(3, 4\)"):
        paired_interval(a, np.zeros((3, 4)), strata)
    with pytest.raises(InvalidInput, match=r"`confidence` \(95.0\)"):
        paired_interval(a, a, strata, confidence=95.0)
    with pytest.raises(InvalidInput, match=r"\(2,\) and \(3,\)"):
        seed_interval(np.zeros(2), np.zeros(3))
    with pytest.raises(InvalidInput, match=r"not \[S, N\]"):
        contributions(np.zeros((2, 3)), strata)
    with pytest.raises(InvalidInput, match="1 groups but `correct` has 2 seeds"):
        contributions(a, strata, groups_of_seed=[np.array([True])])
    with pytest.raises(InvalidInput, match="among the test images"):
        contributions(a, strata, groups_of_seed=[np.array([False, True])] * 2)
    with pytest.raises(InvalidInput, match="2 classes does not fit labels up to 3"):
        contributions(a, strata + 3, groups_of_seed=[np.array([True, True])] * 2)
