"""Meta-Dataset's arithmetic against loops that were written from its description."""

import math

import numpy as np
import pytest

from setwise.data.few_shot.sizes import choose_shots, count_queries, count_support


def oracle_queries(counts):
    q = 10
    for count in counts:
        q = min(q, int(count / 2))
    return q


def oracle_support_size(counts, q, beta):
    total = 0
    for count in counts:
        total += math.floor(beta * min(100, count - q) + 1)
    return 500 if total > 500 else total


def oracle_shots(counts, q, alpha, size):
    proportions = np.asarray(counts) * np.exp(np.asarray(alpha))
    proportions = proportions / proportions.sum()
    shots = []
    for proportion, count in zip(proportions, counts, strict=True):
        shot = int(np.floor(proportion * (size - len(counts)))) + 1
        shots.append(shot if shot < count - q else count - q)
    return shots


@pytest.mark.parametrize("seed", range(200))
def test_queries_support_and_shots_follow_the_description(seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(2, rng.choice([5, 30, 1300]), rng.integers(5, 51)).tolist()
    beta, uniform = rng.random(), rng.random(len(counts))
    alpha = math.log(0.5) + uniform * (math.log(2) - math.log(0.5))
    queries = count_queries(counts)
    left = [count - queries for count in counts]
    size = count_support(left, beta)
    shots = choose_shots(counts, left, uniform.tolist(), size=size)
    assert queries == oracle_queries(counts)
    assert size == oracle_support_size(counts, queries, beta)
    assert shots == oracle_shots(counts, queries, alpha, size)
    assert min(shots) >= 1
    assert sum(shots) <= size <= 500
    assert all(shot + queries <= count for shot, count in zip(shots, counts, strict=True))


def test_fixed_shots_leave_the_rest_of_the_smallest_class_for_queries():
    assert count_queries([20, 9, 30], n_shot=5) == 4
    assert count_queries([20, 19, 30], n_shot=5) == 10
