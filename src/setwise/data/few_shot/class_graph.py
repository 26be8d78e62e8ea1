"""A directed acyclic graph over classes: ImageNet's WordNet, or any hierarchy in which a class may have parents."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from setwise.data.problems import shorten
from setwise.errors import DataError

__all__ = ["ClassGraph"]


@dataclass(frozen=True, eq=False)
class ClassGraph:
    """Inner nodes with their children, above leaves that are the classes of a pool.

    Built from any graph without cycles; a node with one child says nothing that the child does not, so it is left out
    and its parents get the child instead.

    Args:
        children: ids of the children of every inner node, which may be inner nodes or leaves.
        leaves: id of every class, in the order of the classes of the pool.

    Raises:
        DataError: if a child is neither an inner node nor a leaf, a leaf has children, or a node is below itself.

    Source: Triantafillou et al., Meta-Dataset, ICLR 2020, arXiv:1903.03096, appendix on sampling from ImageNet.

    >>> children = {"animal": ("dog", "cat"), "dog": ("pug", "husky"), "cat": ("tom",)}
    >>> graph = ClassGraph(children, ("husky", "pug", "tom"))
    >>> graph.children
    {'animal': ('dog', 'tom'), 'dog': ('pug', 'husky')}
    >>> graph.spanned
    {'animal': (0, 1, 2), 'dog': (0, 1)}
    """

    children: Mapping[str, tuple[str, ...]]
    leaves: tuple[str, ...]

    def __post_init__(self) -> None:
        self._check()
        object.__setattr__(self, "children", _collapsed(self.children))
        object.__setattr__(self, "_spanned", self._span())

    @property
    def spanned(self) -> dict[str, tuple[int, ...]]:
        """Classes below every inner node, in ascending order; nodes sorted by their id."""
        return self._spanned  # type: ignore[attr-defined]

    def eligible(self, *, min_way: int, max_leaves: int) -> list[tuple[int, ...]]:
        """Classes of every node that spans ``min_way`` to ``max_leaves`` of them, in the order of the nodes' ids."""
        return [classes for classes in self.spanned.values() if min_way <= len(classes) <= max_leaves]

    def _check(self) -> None:
        known = {*self.children, *self.leaves}
        strangers = sorted({child for children in self.children.values() for child in children} - known)
        if strangers:
            raise DataError(f"The class graph names children that are no nodes: {_listed(strangers)}.")
        parents = sorted(set(self.leaves) & set(self.children))
        if parents:
            raise DataError(f"Classes must be leaves of the class graph, but these have children: {_listed(parents)}.")
        if len(set(self.leaves)) < len(self.leaves):
            raise DataError("The leaves of the class graph must differ from each other.")
        childless = sorted(node for node, children in self.children.items() if not children)
        if childless:
            raise DataError(f"Nodes of the class graph without children must be classes: {_listed(childless)}.")

    def _span(self) -> dict[str, tuple[int, ...]]:
        number = {leaf: place for place, leaf in enumerate(self.leaves)}
        below: dict[str, frozenset[int]] = {leaf: frozenset([place]) for leaf, place in number.items()}
        for node in _children_first(self.children):
            below[node] = frozenset().union(*(below[child] for child in self.children[node]))
        return {node: tuple(sorted(below[node])) for node in sorted(self.children)}


def _listed(names: Sequence[str]) -> str:
    return shorten([repr(name) for name in names], separator=", ")


def _children_first(children: Mapping[str, Iterable[str]]) -> list[str]:
    """Inner nodes in an order in which every node comes after those below it; without recursion, for deep graphs.

    Raises:
        DataError: if a node is below itself.
    """
    order: list[str] = []
    done: set[str] = set()
    for start in children:
        path: dict[str, None] = {}
        stack = [start]
        while stack:
            node = stack[-1]
            waiting = [child for child in children[node] if child in children and child not in done]
            if node in done or not waiting:
                stack.pop()
                path.pop(node, None)
                if node not in done:
                    done.add(node)
                    order.append(node)
                continue
            path[node] = None
            if waiting[0] in path:
                raise DataError(f"The class graph has a cycle: {waiting[0]!r} is below itself.")
            stack.append(waiting[0])
    return order


def _collapsed(children: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """The graph without nodes that have one child; what such a node stands for is known when its parents come."""
    stands_for: dict[str, str] = {}
    kept: dict[str, tuple[str, ...]] = {}
    for node in _children_first(children):
        own = tuple(dict.fromkeys(stands_for.get(child, child) for child in children[node]))
        if len(own) == 1:
            stands_for[node] = own[0]
        else:
            kept[node] = own
    return {node: kept[node] for node in children if node in kept}
