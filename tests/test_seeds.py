"""Streams of randomness are reproducible and do not touch each other."""

import subprocess
import sys

import torch
from hypothesis import example, given
from hypothesis import strategies as st

from setwise import seeds

PARTS = st.lists(st.one_of(st.integers(), st.text(max_size=5)), min_size=1, max_size=4).map(tuple)


@given(PARTS)
def test_a_key_is_a_seed_that_every_generator_takes(parts):
    key = seeds.key(*parts)
    assert 0 <= key < 2**63
    assert key == seeds.key(*parts)
    torch.Generator().manual_seed(key)


@given(PARTS, PARTS)
@example((1, 23), (12, 3))
@example((1,), ("1",))
@example(("a", "b"), ("ab",))
@example((0, "order", 3), (3, "order", 0))
def test_different_parts_have_different_keys(a, b):
    assert (seeds.key(*a) == seeds.key(*b)) == (a == b)


def test_a_key_is_the_same_on_every_machine_and_python():
    """A value once published: were it to change, no recorded run could be repeated."""
    assert seeds.key(0, "order", 3) == PUBLISHED
    code = "from setwise import seeds; print(seeds.key(0, 'order', 3))"
    other = subprocess.run([sys.executable, "-R", "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == PUBLISHED


PUBLISHED = 8244215730568551301


def test_neighbouring_seeds_and_purposes_draw_unrelated_numbers():
    draws = [torch.randn(2000, generator=seeds.generator(*p)) for p in ((0, "a"), (1, "a"), (0, "b"), (0, "a", 0))]
    correlation = torch.corrcoef(torch.stack(draws)) - torch.eye(4)
    assert correlation.abs().max() < 0.1  # four and a half standard errors of 2,000 draws


def test_a_generator_repeats_itself_and_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    first = torch.randperm(100, generator=seeds.generator(3, "order"))
    assert torch.equal(first, torch.randperm(100, generator=seeds.generator(3, "order")))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_generator_of_an_apple_gpu_is_keyed_as_well(monkeypatch):
    keyed = []
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "manual_seed", keyed.append)
    seeds.reseed(0, "dropout", 3)
    assert keyed == [seeds.key(0, "dropout", 3)]
