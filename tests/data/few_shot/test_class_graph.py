import pytest

from setwise.data.few_shot import ClassGraph
from setwise.errors import DataError

LEAVES = ("ash", "bat", "cow", "doe", "elm")
CHILDREN = {
    "thing": ("plant", "animal"),
    "plant": ("tree",),  # one child, which has two: plant is the same as tree
    "tree": ("ash", "elm"),
    "animal": ("hoofed", "flying", "mammal"),
    "hoofed": ("cow", "doe"),
    "flying": ("bat",),  # one child, a leaf
    "mammal": ("cow", "doe", "bat"),  # its leaves have other parents, too
}


def leaves_below(node: str) -> set[str]:
    if node in LEAVES:
        return {node}
    return set().union(*(leaves_below(child) for child in CHILDREN[node]))


def test_a_node_spans_the_classes_below_it():
    graph = ClassGraph(CHILDREN, LEAVES)
    for node, classes in graph.spanned.items():
        assert classes == tuple(sorted(LEAVES.index(leaf) for leaf in leaves_below(node)))


def test_nodes_with_one_child_are_left_out_and_every_other_node_stays():
    graph = ClassGraph(CHILDREN, LEAVES)
    assert set(graph.children) == {"thing", "tree", "animal", "hoofed", "mammal"}
    assert graph.children["thing"] == ("tree", "animal")
    assert graph.children["animal"] == ("hoofed", "bat", "mammal")
    assert all(len(children) > 1 for children in graph.children.values())


def test_collapsing_a_collapsed_graph_changes_nothing():
    once = ClassGraph(CHILDREN, LEAVES)
    assert ClassGraph(once.children, LEAVES).children == once.children


def test_two_names_of_one_child_are_one_child():
    graph = ClassGraph({"top": ("a", "b", "ash"), "a": ("bat",), "b": ("a",)}, ("ash", "bat"))
    assert graph.children == {"top": ("bat", "ash")}


def test_eligible_nodes_span_neither_too_few_nor_too_many_classes_in_the_order_of_their_ids():
    graph = ClassGraph(CHILDREN, LEAVES)
    assert graph.eligible(min_way=2, max_leaves=3) == [(1, 2, 3), (2, 3), (1, 2, 3), (0, 4)]
    assert graph.eligible(min_way=4, max_leaves=392) == [(0, 1, 2, 3, 4)]


def test_a_graph_a_thousand_levels_deep_needs_no_recursion():
    children = {f"n{level}": (f"n{level + 1}", f"leaf{level}") for level in range(2000)}
    children["n2000"] = ("leaf2000", "leaf2001")
    graph = ClassGraph(children, tuple(f"leaf{level}" for level in range(2002)))
    assert len(graph.spanned["n0"]) == 2002


@pytest.mark.parametrize(
    ("children", "leaves", "message"),
    [
        ({"top": ("a", "b")}, ("a",), "children that are no nodes: 'b'"),
        ({"top": ("a", "b"), "b": ("top", "a")}, ("a",), "cycle: '(top|b)' is below itself"),
        ({"top": ("a", "b"), "b": ("a",)}, ("a", "b"), "have children: 'b'"),
        ({"top": ("a", "b"), "b": ()}, ("a",), "without children must be classes: 'b'"),
        ({"top": ("a",)}, ("a", "a"), "must differ"),
    ],
)
def test_what_is_no_acyclic_graph_over_the_classes_is_refused(children, leaves, message):
    with pytest.raises(DataError, match=message):
        ClassGraph(children, leaves)
