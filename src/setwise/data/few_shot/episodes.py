"""Episodes: which images of a pool form a support set and which are its queries.

Letters: ``C`` classes of an episode, ``S`` support images, ``Q`` queries.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from setwise.data.few_shot.pool import Pool
from setwise.data.few_shot.sizes import choose_shots, count_queries, count_support
from setwise.data.problems import shorten
from setwise.errors import InvalidInput

__all__ = ["Episode", "EpisodeSampler"]

MAX_SPANNED = 392
"""Nodes of a class graph above more classes are too unspecific to draw: Meta-Dataset's choice for ImageNet."""


class Episode(NamedTuple):
    """A small classification problem: support images with labels, and queries to be classified."""

    support: Int64[Tensor, "s"]
    """Places in the pool."""
    support_target: Int64[Tensor, "s"]
    """``0..C-1``, in the order in which the classes first appear."""
    query: Int64[Tensor, "q"]
    query_target: Int64[Tensor, "q"]
    classes: Int64[Tensor, "c"]
    """Class in the pool of every label."""


class EpisodeSampler:
    """Draws episodes from a pool, of a fixed shape or, by default, of varying way and shots as Meta-Dataset does.

    With nothing fixed: classes are those below a random node of the pool's graph, or of a random superclass, or any of
    the pool; every class has as many queries; the size of the support set is drawn, and shared out unevenly. See
    :mod:`setwise.data.few_shot.sizes` for the numbers. What is fixed, way, shots or queries, is fixed alone, and the
    others still vary. A fixed way is drawn among all classes: a hierarchy has not always so many to offer.

    Args:
        pool: what to draw from.
        n_way: classes ``C`` of every episode; None: drawn.
        n_shot: support images of every class; None: drawn.
        n_query: queries of every class; None: up to ``max_query``, fewer where a class has few images.
        hierarchy: follow the pool's graph or superclasses, if it has them.
        ignore_hierarchy: probability of an episode that does not. The authors' training on ImageNet: 0.5.
        min_way, max_way: bounds of the drawn way. Paper: 5 and 50. A graph's node with more classes gives ``max_way``
            of them; nodes and superclasses with fewer than ``min_way`` are not drawn.
        max_query: most queries of a class. Paper: 10.
        max_support: most support images of an episode. Paper: 500.
        max_per_class: most that one class adds to the drawn size of the support set. Paper: 100.
        max_spanned: most classes below a node that can be drawn. Paper: 392.

    Raises:
        InvalidInput: if a number is out of range or asks for more than the pool has.

    Source: Triantafillou et al., Meta-Dataset, ICLR 2020, arXiv:1903.03096, section 3.2 and its code.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        n_way: int | None = None,
        n_shot: int | None = None,
        n_query: int | None = None,
        hierarchy: bool = True,
        ignore_hierarchy: float = 0.0,
        min_way: int = 5,
        max_way: int = 50,
        max_query: int = 10,
        max_support: int = 500,
        max_per_class: int = 100,
        max_spanned: int = MAX_SPANNED,
    ) -> None:
        self.n_way, self.n_shot, self.n_query = n_way, n_shot, n_query
        self.min_way, self.max_way, self.max_query = min_way, max_way, max_query
        self.max_support, self.max_per_class = max_support, max_per_class
        self.ignore_hierarchy = ignore_hierarchy
        self._check_numbers()
        self._check_pool(pool)
        order = torch.argsort(pool.target, stable=True)
        self._places = list(order.split(pool.counts.tolist()))
        self.num_classes = pool.num_classes
        self._groups = self._find_groups(pool, max_spanned) if hierarchy and n_way is None else None
        self._takes_all = pool.graph is not None

    def draw(self, generator: torch.Generator) -> Episode:
        """An episode; the same generator state gives the same one."""
        classes = self._draw_classes(generator)
        counts = [len(self._places[label]) for label in classes]
        queries = self.n_query or count_queries(counts, max_query=self.max_query, n_shot=self.n_shot)
        shots = self._draw_shots(counts, queries, generator)
        support, query = [], []
        for label, shot in zip(classes, shots, strict=True):
            drawn = self._places[label][torch.randperm(len(self._places[label]), generator=generator)]
            support.append(drawn[:shot])
            query.append(drawn[shot : shot + queries])
        labels = torch.arange(len(classes))
        return Episode(
            support=torch.cat(support),
            support_target=labels.repeat_interleave(torch.tensor(shots)),
            query=torch.cat(query),
            query_target=labels.repeat_interleave(queries),
            classes=torch.tensor(classes),
        )

    def _draw_classes(self, generator: torch.Generator) -> list[int]:
        groups = self._groups
        if groups is not None and self.ignore_hierarchy:
            groups = None if torch.rand((), generator=generator) < self.ignore_hierarchy else groups
        if groups is None:
            candidates: Sequence[int] = range(self.num_classes)
        else:
            candidates = groups[_below(len(groups), generator)]
            if self._takes_all and len(candidates) <= self.max_way:
                return list(candidates)
        way = self.n_way or self.max_way
        if self.n_way is None and (groups is None or not self._takes_all):
            most = min(self.max_way, len(candidates))
            way = self.min_way + _below(most - self.min_way + 1, generator)
        chosen = torch.randperm(len(candidates), generator=generator)[:way]
        return [candidates[place] for place in chosen.tolist()]

    def _draw_shots(self, counts: list[int], queries: int, generator: torch.Generator) -> list[int]:
        if self.n_shot is not None:
            return [self.n_shot] * len(counts)
        left = [count - queries for count in counts]
        beta = float(torch.rand((), generator=generator, dtype=torch.float64))
        size = count_support(left, beta, max_support=self.max_support, max_per_class=self.max_per_class)
        uniform = torch.rand(len(counts), generator=generator, dtype=torch.float64).tolist()
        return choose_shots(counts, left, uniform, size=size)

    def _check_numbers(self) -> None:
        for name in ("n_way", "n_shot", "n_query", "min_way", "max_way", "max_query", "max_support", "max_per_class"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise InvalidInput(f"`{name}` ({number}) must be at least 1.")
        if not 0 <= self.ignore_hierarchy <= 1:
            raise InvalidInput(f"`ignore_hierarchy` ({self.ignore_hierarchy:g}) is a probability: 0 to 1.")
        if self.min_way > self.max_way:
            raise InvalidInput(f"`min_way` ({self.min_way}) must not be above `max_way` ({self.max_way}).")
        name = "max_way" if self.n_way is None else "n_way"
        if self.n_shot is None and self.max_support < getattr(self, name):
            raise InvalidInput(
                f"`max_support` ({self.max_support}) must be at least `{name}` ({getattr(self, name)}): every class "
                "has a support image."
            )

    def _check_pool(self, pool: Pool) -> None:
        wanted = self.n_way or self.min_way
        if wanted > pool.num_classes:
            name = "min_way" if self.n_way is None else "n_way"
            raise InvalidInput(
                f"`{name}` ({wanted}) must not be above the number of classes ({pool.num_classes}): ask for fewer "
                "(`n_way`, --episodes.n-way), or give this part more classes."
            )
        needed = (self.n_shot or 1) + (self.n_query or 1)
        small = [
            f"{name!r} ({count})"
            for name, count in zip(pool.class_names, pool.counts.tolist(), strict=True)
            if count < needed
        ]
        if small:
            parts = [f"`{part}` ({getattr(self, part)})" for part in ("n_shot", "n_query") if getattr(self, part)]
            rule = " + ".join([*parts, "1"][:2]) if parts else "one image of support and one query"
            raise InvalidInput(
                f"Every class needs {needed} images, for {rule}, but these have fewer: "
                f"{shorten(small, separator=', ')}. Ask for fewer, or leave these classes out."
            )

    def _find_groups(self, pool: Pool, max_spanned: int) -> list[tuple[int, ...]] | None:
        """Classes that an episode may come from: of every eligible node, or of every superclass in order of names."""
        if pool.graph is not None:
            groups = pool.graph.eligible(min_way=self.min_way, max_leaves=max_spanned)
            what = f"nodes of the class graph above {self.min_way} to {max_spanned} classes"
        elif pool.superclasses is not None:
            superclasses = pool.superclasses
            ordered = sorted(range(pool.num_classes), key=lambda label: (superclasses[label], label))
            grouped = groupby(ordered, key=lambda label: superclasses[label])
            groups = [members for _, group in grouped if len(members := tuple(group)) >= self.min_way]
            what = f"superclasses with {self.min_way} classes or more"
        else:
            return None
        if not groups:
            raise InvalidInput(
                f"There are no {what} (`min_way`): lower it, or draw from all classes alike, with hierarchy=False "
                "(--episodes.no-hierarchy)."
            )
        return groups


def _below(number: int, generator: torch.Generator) -> int:
    """A whole number from 0 to below ``number``."""
    return int(torch.randint(number, (), generator=generator))
