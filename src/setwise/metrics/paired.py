"""The statistics of a comparison: two arms trained from the same seeds and evaluated on the same test images.

Two things are random: the seed (class order, initial weights, order of the data) and the choice of test images. The
interval of a difference takes both into account, and pairs the arms in both.

**A resample** draws ``S`` seeds with replacement and takes the mean of their differences. It adds what another choice
of test images would change: an image's effect is its difference, averaged over the seeds, minus the mean of its class,
and from every class as many effects as it has images are drawn with replacement and summed.

The differences of the seeds already hold what neither seed nor image explains, the noise of one seed at one image; but
the effects hold it, too, since they average few seeds. To count it once, they are first shrunk by
``sqrt(max(0, 1 - V / (S * T)))``, where ``V`` is the variance of that noise and ``T`` the variance of the effects, both
summed over the images: what is left is the variance that the images themselves explain. ``V / S`` counts for no more
than the variance that the mean over the seeds can have by their differences (its upper 99 % limit): seeds that happen
to agree, as on few test images they may, would take the part of the images away and leave an interval of no width where
nothing is known. Drawing seeds and images
crosswise from the table (the pigeonhole bootstrap) counts the noise up to three times (Owen), and no plain resampling
of a table is right for noise and effects at once (McCullagh).

**Few seeds** make the resampled means vary too little. Their deviations are therefore stretched by
``sqrt(S / (S - 1)) * t / z`` (quantiles of Student's t with ``S - 1`` degrees of freedom and of the normal
distribution). Hesterberg gets the same width by going further out in the percentiles; we stretch, because for three
seeds those percentiles lie beyond any affordable number of resamples. The part of the images, which are many, is not
stretched, apart from ``sqrt(n / (n - 1))`` for the ``n`` of a class. A class with a single test image adds nothing to
the part of the images: one image does not show how they vary.

**The interval** lies between percentiles of the sum of both parts. **The p value** inverts it: the smallest level at
which it leaves 0 out. Where fewer than 10 resamples lie beyond 0 their count says little (and none says less than
``2 / (R + 1)``), so p goes on along a fitted tail, in which the half-width of the interval is
``sqrt((t_seeds * e_seeds)^2 + (t_images * e_images)^2)``: ``e`` are the standard errors of the two parts, ``t`` are
quantiles of Student's t, with ``S - 1`` degrees of freedom and with those of the images (Satterthwaite; ``n - 1`` where
all are of one class). Where the resamples reach further than this at the switch, the tail is widened to meet them;
where they reach less far, p waits at the switch until the tail has come down to it. So p is continuous there, never
rises with the effect, and falls only as far as the tail does. With seeds alone that is the tail of the paired t test.
Where nothing varies there is no tail, and p stays ``2 / (R + 1)``.

Letters: ``S`` seeds, ``N`` test images, ``K`` classes, ``R`` resamples. Annotations give arguments that must agree in a
length different letters: the functions answer a mismatch in a sentence.

Source: McCullagh, Resampling and Exchangeable Arrays, Bernoulli 2000, on what resampling a two-way table cannot do;
Owen, The Pigeonhole Bootstrap, Annals of Applied Statistics 2007, doi:10.1214/07-AOAS122, on what the crossed one
overstates; Hesterberg, What Teachers Should Know About the Bootstrap, The American Statistician 2015, arXiv:1411.5279,
on expanded percentiles; Satterthwaite, An Approximate Distribution of Estimates of Variance Components, Biometrics
Bulletin 1946, on the degrees of freedom of a sum.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Shaped

from setwise.errors import InvalidInput
from setwise.seeds import key

__all__ = ["Interval", "contributions", "instance_contributions", "paired_interval", "seed_interval"]

CHUNK = 1 << 16  # images drawn at a time: their random numbers, indices and effects, 1.5 MB, stay in the cache
RESOLVED = 10  # resamples beyond 0 from which their count is p: its relative error is then below 1 / sqrt(10)
SMALLEST = 1e-12  # p: no fitted tail is to be trusted further out
UNLIKELY = 0.01  # that seeds differ by less than the noise that they hold lets expect
HALVINGS = 50  # of the logarithm of p: all its digits
ROUNDING = 1e-9  # standard error over difference, below which nothing varies but the last digits


@dataclass(frozen=True)
class Interval:
    """A difference of two arms, as a fraction (0.01 is one percentage point).

    ``low``, ``high`` and ``p`` are NaN where there is one seed only. ``p`` is two-sided, for the difference being 0; it
    is below ``1 - confidence`` where the interval leaves 0 out.
    """

    estimate: float
    low: float
    high: float
    p: float
    num_seeds: int
    confidence: float = 0.95


def contributions(
    correct: Shaped[np.ndarray, "s n"],
    target: Shaped[np.ndarray, "m"],
    *,
    groups_of_seed: Sequence[Bool[np.ndarray, "k"]] | None = None,
) -> Float64[np.ndarray, "s n"]:
    """What every image adds to the balanced accuracy of its seed.

    An image of class ``c`` weighs ``1 / (C * n_c)``, where ``n_c`` is the number of images of its class and ``C`` the
    number of classes that count and are in ``target``; images of other classes weigh 0.

    Args:
        correct: whether seed ``s`` predicted image ``n`` rightly ``[S, N]``, boolean or 0..1.
        target: labels ``[N]``.
        groups_of_seed: for every seed the classes that count ``[K]``, since which class is few-shot may differ by seed;
            None: all classes count.

    Returns:
        ``[S, N]``; the sum over images is each seed's balanced accuracy (of its group).

    Raises:
        InvalidInput: if shapes do not fit, or none of a seed's classes is in ``target``.

    >>> correct, target = np.array([[True, False, True]]), np.array([0, 0, 1])
    >>> contributions(correct, target)
    array([[0.25, 0.  , 0.5 ]])
    """
    correct, target = _checked(correct, target)
    counts = np.bincount(target)
    if groups_of_seed is None:
        groups_of_seed = [np.ones(len(counts), dtype=bool)] * len(correct)
    if len(groups_of_seed) != len(correct):
        raise InvalidInput(f"`groups_of_seed` has {len(groups_of_seed)} groups but `correct` has {len(correct)} seeds.")
    weights = np.zeros(correct.shape)
    for row, group in zip(weights, groups_of_seed, strict=True):
        if len(group) < len(counts):
            raise InvalidInput(f"A group of {len(group)} classes does not fit labels up to {len(counts) - 1}.")
        num_present = int((group[: len(counts)] & (counts > 0)).sum())
        if num_present == 0:
            raise InvalidInput("None of the classes of a group is among the test images, so it has no accuracy.")
        row[:] = group[target] / (num_present * counts[target])
    return correct * weights


def instance_contributions(correct: Shaped[np.ndarray, "s n"]) -> Float64[np.ndarray, "s n"]:
    """What every image adds to the instance accuracy of its seed: ``1 / N`` if right.

    >>> instance_contributions(np.array([[True, False]]))
    array([[0.5, 0. ]])
    """
    return np.asarray(correct, dtype=np.float64) / correct.shape[1]


def paired_interval(
    a: Float[np.ndarray, "s n"],
    b: Float[np.ndarray, "s_b n_b"],
    strata: Shaped[np.ndarray, "m"],
    *,
    num_resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Interval of a mean difference ``a - b`` by a bootstrap over seeds and test images, paired in both.

    The module's docstring says how one resample is made, how few seeds are allowed for, and what p is.

    Args:
        a: contributions of the first arm ``[S, N]``, summed over images to one value per seed; see
            :func:`contributions`.
        b: the same of the second arm, same seeds and images in the same order.
        strata: class of every image ``[N]``.
        num_resamples: ``R``; they resolve p down to about ``2 * 10 / (R + 1)``, the tail below is fitted.
        seed: of the resampling.
        confidence: of the interval, between 0 and 1.

    Raises:
        InvalidInput: if shapes do not fit, or the confidence is not between 0 and 1.

    >>> a = np.array([[0.2, 0.2, 0.2, 0.2, 0.0], [0.2, 0.2, 0.2, 0.0, 0.2], [0.2, 0.2, 0.2, 0.2, 0.2]])
    >>> interval = paired_interval(a, np.zeros((3, 5)), np.zeros(5, dtype=int))
    >>> round(interval.estimate, 4), interval.low < interval.estimate < interval.high
    (0.8667, True)
    """
    if a.shape != b.shape or a.ndim != 2 or strata.shape != a.shape[1:]:
        raise InvalidInput(
            f"Paired arms have one shape [S, N] and `strata` [N], not {a.shape}, {b.shape} and {strata.shape}."
        )
    difference = np.asarray(a, dtype=np.float64) - b  # [S, N]
    estimate = float(difference.sum(1).mean())
    if len(difference) == 1:
        return _without_interval(estimate, confidence)
    effects, first, size = _image_effects(difference, strata)
    sums = np.sort(difference.sum(1))  # sorted, so that the order of the seeds does not matter
    rng = np.random.default_rng(key(seed, "paired bootstrap"))
    by_seed, by_image = [], []
    for rows in _chunks(num_resamples, width=len(effects)):
        by_seed.append(_seed_weights(rng, rows, len(sums)) @ sums)
        drawn = first + (rng.random((rows, len(effects))) * size).astype(np.intp)
        by_image.append(effects.take(drawn).sum(1))
    parts = np.concatenate(by_seed), np.concatenate(by_image)
    return _interval(estimate, *parts, (_seed_part(sums), _image_part(effects, first, size)), confidence)


def seed_interval(
    a: Float[np.ndarray, "s"],
    b: Float[np.ndarray, "s_b"],
    *,
    num_resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Interval of a mean difference ``a - b`` by a bootstrap over seeds alone, for what is no sum over images (ECE).

    The stretch and the p value are those of :func:`paired_interval`; the choice of test images counts as fixed.

    Args:
        a: the metric of the first arm, one value per seed ``[S]``.
        b: the same of the second arm.
        num_resamples: see :func:`paired_interval`.
        seed: see :func:`paired_interval`.
        confidence: see :func:`paired_interval`.

    Raises:
        InvalidInput: if the arms have different numbers of seeds.

    >>> seed_interval(np.array([0.5]), np.array([0.25]))  # one seed has no interval
    Interval(estimate=0.25, low=nan, high=nan, p=nan, num_seeds=1, confidence=0.95)
    """
    if a.shape != b.shape or a.ndim != 1:
        raise InvalidInput(f"Paired arms have one value per seed [S], not the shapes {a.shape} and {b.shape}.")
    difference = np.asarray(a, dtype=np.float64) - b
    estimate = float(difference.mean())
    if len(difference) == 1:
        return _without_interval(estimate, confidence)
    rng = np.random.default_rng(key(seed, "seed bootstrap"))
    values = [_seed_weights(rng, rows, len(a)) @ difference for rows in _chunks(num_resamples, width=len(a))]
    parts = np.concatenate(values), np.zeros(num_resamples)
    return _interval(estimate, *parts, (_seed_part(difference), (0.0, 1.0)), confidence)


def _checked(correct: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if correct.ndim != 2 or target.shape != correct.shape[1:]:
        raise InvalidInput(
            f"`correct` has the shape {correct.shape}, not [S, N] with the N of `target` {target.shape}."
        )
    return np.asarray(correct, dtype=np.float64), np.asarray(target)


def _chunks(num_resamples: int, *, width: int) -> Iterator[int]:
    """Numbers of resamples done at once, so that memory does not grow with their number."""
    height = max(1, CHUNK // width)
    for start in range(0, num_resamples, height):
        yield min(height, num_resamples - start)


def _seed_weights(rng: np.random.Generator, rows: int, num_seeds: int) -> Float64[np.ndarray, "r s"]:
    """How much each seed counts in the mean of each resample."""
    return rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=rows) / num_seeds


def _without_interval(estimate: float, confidence: float) -> Interval:
    return Interval(estimate, math.nan, math.nan, math.nan, num_seeds=1, confidence=confidence)


def _image_effects(
    difference: Float64[np.ndarray, "s n"], strata: Shaped[np.ndarray, "n"]
) -> tuple[Float64[np.ndarray, "n"], Shaped[np.ndarray, "n"], Shaped[np.ndarray, "n"]]:
    """Shrunken effects of the images, class by class and sorted within; where each one's class starts; its size."""
    from scipy.special import chdtri

    num_seeds = len(difference)
    _, label = np.unique(strata, return_inverse=True)
    size = np.bincount(label)  # [K]
    rest = difference - np.stack([np.bincount(label, row) / size for row in difference])[:, label]  # [S, N]
    rest *= np.sqrt(size / np.maximum(size - 1, 1))[label]  # deviations from the mean of few are too small
    effects = rest.mean(0)
    noise = ((rest - effects) ** 2).sum() / (num_seeds - 1) / num_seeds
    held = _seed_part(difference.sum(1))[0] ** 2 * (num_seeds - 1) / chdtri(num_seeds - 1, 1 - UNLIKELY)
    total = (effects**2).sum()
    if total > 0:
        effects *= math.sqrt(max(0.0, 1 - min(noise, held) / total))
    first = np.cumsum(size) - size  # [K]
    return effects[np.lexsort((effects, label))], np.repeat(first, size), np.repeat(size, size).astype(float)


def _seed_part(sums: Float64[np.ndarray, "s"]) -> tuple[float, float]:
    """Standard error of the part of the seeds, and its degrees of freedom."""
    return float(sums.std(ddof=1)) / math.sqrt(len(sums)), len(sums) - 1.0


def _image_part(
    effects: Float64[np.ndarray, "n"], first: Shaped[np.ndarray, "n"], size: Float64[np.ndarray, "n"]
) -> tuple[float, float]:
    """The same of the images, from what :func:`_image_effects` returns."""
    total = float((effects**2).sum())
    of_class = np.bincount(first, effects**2)[first]  # [N], the variance that each one's class adds
    unsure = float((of_class**2 / (size * np.maximum(size - 1, 1))).sum())
    return math.sqrt(total), total**2 / unsure if unsure > 0 else 1.0


def _interval(
    estimate: float,
    by_seed: Float64[np.ndarray, "r"],
    by_image: Float64[np.ndarray, "r"],
    parts: tuple[tuple[float, float], tuple[float, float]],
    confidence: float,
) -> Interval:
    """From resampled means over seeds, what the resampled images add, and both parts' errors and freedoms."""
    if not 0 < confidence < 1:
        raise InvalidInput(f"`confidence` ({confidence}) must be between 0 and 1: 0.95, say.")
    num_resamples, num_seeds = len(by_seed), round(parts[0][1]) + 1

    def resampled(tail: float) -> Float64[np.ndarray, "r"]:
        return estimate + _stretch(tail, num_seeds) * (by_seed - estimate) + by_image

    def room(rank: int) -> float:
        """How far 0 lies outside the interval from the ``rank``-th smallest to the ``rank``-th largest value."""
        values = np.partition(resampled(rank / (num_resamples + 1)), [rank - 1, num_resamples - rank])
        return float(max(values[rank - 1], -values[num_resamples - rank]))

    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled(tail), [tail, 1 - tail])
    ranks = range(1, num_resamples // 2 + 1)  # ends move in as ranks rise
    inside = bisect_left(ranks, True, key=lambda rank: room(rank) > 0)
    p = min(1.0, 2 * (1 + inside) / (num_resamples + 1))
    switch = min(RESOLVED, len(ranks))
    if inside < switch and math.hypot(*(error for error, _ in parts)) > ROUNDING * abs(estimate):
        p = _tail_p(abs(estimate), switch / (num_resamples + 1), abs(estimate) - room(switch), parts)
    return Interval(estimate, float(low), float(high), p, num_seeds=num_seeds, confidence=confidence)


def _tail_p(effect: float, tail: float, reach: float, parts: tuple[tuple[float, float], ...]) -> float:
    """P of an effect beyond the resamples.

    Args:
        effect: size of the difference.
        tail: probability beyond one end of the interval at the switch, where the resamples end.
        reach: half-width of the interval there, by the resamples.
        parts: standard errors and degrees of freedom.
    """
    from scipy.special import stdtrit

    def width(tail: float) -> float:
        return math.hypot(*(error * stdtrit(freedom, tail) for error, freedom in parts))

    scale = max(1.0, reach / width(tail))
    outer, inner = math.log(SMALLEST / 2), math.log(tail)  # at the inner one 0 is left out, or p waits there
    for _ in range(HALVINGS):
        middle = (outer + inner) / 2
        if scale * width(math.exp(middle)) < effect:
            inner = middle
        else:
            outer = middle
    return 2 * math.exp(inner)


def _stretch(tail: float, num_seeds: int) -> float:
    """``sqrt(S / (S - 1)) * t / z`` at a tail probability below one half."""
    from scipy.special import ndtri, stdtrit

    return float(math.sqrt(num_seeds / (num_seeds - 1)) * stdtrit(num_seeds - 1, tail) / ndtri(tail))
