"""Recording reads the weights out and leaves everything else as it is."""

import copy

import pytest
import tiny
import torch
from torch import nn

from setwise.errors import InvalidInput
from setwise.nn import BatchFormer, BatchFormerV2, insert, record_attention
from setwise.nn.attention import Recordable

B, N, C = 9, 5, 12


def network(**options):
    return nn.Sequential(nn.Linear(4, C), BatchFormer(C, **options), nn.Linear(C, 3))


def hooks_of(model):
    return [h for m in model.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("gather", [False, True])
def test_maps_have_a_row_for_every_sample_that_sums_to_one(training, num_layers, gather):
    model = network(num_layers=num_layers, gather=gather).train(training)
    with record_attention(model) as maps:
        model(torch.randn(B, 4))
        model(torch.randn(B + 1, 4))
    assert list(maps) == ["1"]
    assert [tuple(m.shape) for m in maps["1"]] == [(4, B, B)] * num_layers + [(4, B + 1, B + 1)] * num_layers
    for weights in maps["1"]:
        assert not weights.requires_grad
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))


@pytest.mark.parametrize(("shape", "channels_first"), [((B, N, C), False), ((B, 1, N, C), False), ((B, C, 1, N), True)])
@pytest.mark.parametrize("training", [True, False])
def test_maps_of_v2_come_by_position(shape, channels_first, training):
    relation = BatchFormerV2(C, channels_first=channels_first).train(training)
    with record_attention(relation) as maps:
        relation(torch.randn(shape))
    (weights,) = maps[""]
    assert weights.shape == (N, 4, B, B)
    torch.testing.assert_close(weights.sum(-1), torch.ones(N, 4, B))


def test_a_later_insertion_records_the_related_stream():
    relation = BatchFormerV2(C, dropout=0.0)
    x = torch.randn(2 * B, N, C)
    with record_attention(relation) as maps:
        relation(x, first=False)
        relation(x[B:])
    assert torch.equal(maps[""][0], maps[""][1])


@pytest.mark.parametrize("training", [True, False])
def test_maps_equal_the_weights_of_torchs_attention(training):
    relation = BatchFormer(C, dropout=0.0).train(training)
    theirs = nn.MultiheadAttention(C, 4)
    theirs.load_state_dict(relation.layers[0].self_attn.state_dict(), strict=True)
    x = torch.randn(B, C)
    with record_attention(relation) as maps:
        relation(x)
    _, expected = theirs(*[x[:, None]] * 3, need_weights=True, average_attn_weights=False)
    torch.testing.assert_close(maps[""][0], expected[0].detach())


@pytest.mark.parametrize("training", [True, False])
def test_maps_respect_the_mask(training):
    relation = BatchFormer(C).train(training)
    mask = torch.rand(B, B) > 0.5
    mask[0] = False
    with record_attention(relation) as maps:
        relation(torch.randn(B, C), mask=mask)
    allowed = mask | (torch.eye(B, dtype=torch.bool) & ~mask.any(1, keepdim=True))  # another row may be empty by chance
    assert torch.equal(maps[""][0] > 0, allowed.expand(4, B, B))


@pytest.mark.parametrize("training", [True, False])
def test_recording_changes_neither_outputs_nor_the_random_state(training):
    model = network(num_layers=2, dropout=0.5).train(training)
    x = torch.randn(B, 4)
    torch.manual_seed(3)
    expected = model(x)
    random_state = torch.get_rng_state()
    torch.manual_seed(3)
    with record_attention(model):
        out = model(x)
    assert torch.equal(out, expected)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_in_evaluation_the_output_stays_the_input_itself_while_recording():
    for relation, x in ((BatchFormer(C), torch.randn(B, C)), (BatchFormerV2(C), torch.randn(B, N, C))):
        with record_attention(relation.eval()):
            assert relation(x) is x


def test_recording_keeps_no_graph_and_gradients_as_they_were():
    model = network(dropout=0.0)
    other = copy.deepcopy(model)
    x = torch.randn(B, 4)
    model(x).pow(2).sum().backward()
    with record_attention(other):
        other(x).pow(2).sum().backward()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_hooks_are_gone_afterwards():
    model = network()
    with record_attention(model) as maps:
        assert hooks_of(model)
    model(torch.randn(B, 4))
    assert not hooks_of(model)
    assert maps == {"1": []}


def test_hooks_are_gone_after_an_exception():
    model = network()
    with pytest.raises(RuntimeError, match="user's own"), record_attention(model):
        raise RuntimeError("user's own")
    assert not hooks_of(model)


def test_several_relations_are_told_apart_by_their_names():
    model = nn.ModuleDict({"early": BatchFormerV2(C), "late": BatchFormer(C)})
    with record_attention(model) as maps:
        model["late"](model["early"](torch.randn(B, N, C)).mean(1))
    assert {name: [tuple(m.shape) for m in found] for name, found in maps.items()} == {
        "early": [(N, 4, B, B)],
        "late": [(4, 2 * B, 2 * B)],
    }


def test_relate_is_recorded_once_in_evaluation():
    relation = BatchFormer(C).eval()
    with record_attention(relation) as maps:
        relation.relate(torch.randn(B, C))
    assert len(maps[""]) == 1


def test_a_model_without_a_relation_is_refused():
    with pytest.raises(InvalidInput, match="no relation in this Sequential"), record_attention(nn.Sequential()):
        pass


def test_an_option_nothing_knows_is_refused():
    with pytest.raises(InvalidInput, match="positions"), record_attention(network(), positions=[(0, 0)]):
        pass


@pytest.mark.usefixtures("unchecked")
def test_a_wrong_input_ends_in_the_same_sentence_while_recording_in_evaluation():
    relation = BatchFormer(C).eval()
    with pytest.raises(InvalidInput, match=r"relates features \[B, C\]"), record_attention(relation):
        relation(torch.randn(B, N, C))
    with pytest.raises(InvalidInput, match="batch is empty"), record_attention(relation):
        relation(torch.randn(0, C))


class Tape(nn.Module):
    """Somebody's module that happens to have attributes of these names."""

    options = frozenset({"speed"})

    def record(self, keep):
        raise AssertionError("not ours")

    def forward(self, x):
        return x


def test_a_foreign_module_with_options_and_a_record_is_left_alone():
    with record_attention(nn.Sequential(Tape(), BatchFormer(C))) as maps:
        pass
    assert list(maps) == ["1"]
    with pytest.raises(InvalidInput, match="no relation in this Tape"), record_attention(Tape()):
        pass


def test_a_module_of_ones_own_that_says_so_is_recorded_with_its_options():
    class Mine(nn.Module, Recordable):
        record_options = frozenset({"speed"})

        def record(self, keep, **what):
            keep(torch.tensor(what["speed"]))
            return []

    with record_attention(nn.Sequential(Mine(), BatchFormer(C)), speed=3) as maps:
        pass
    assert [int(found) for found in maps["0"]] == [3]
    assert maps["1"] == []


@pytest.mark.parametrize(("relation", "at"), [("batchformer", None), ("batchformer-v2", [0, 2])])
@pytest.mark.parametrize("training", [True, False])
def test_an_inserted_relation_is_recorded_and_the_output_stays_the_same(relation, at, training):
    model = insert(tiny.vit(), relation, at=at, dropout=0.5).train(training)
    torch.manual_seed(0)
    expected = model(tiny.images(B))
    torch.manual_seed(0)
    with record_attention(model) as maps:
        out = model(tiny.images(B))
    assert torch.equal(out, expected)
    assert list(maps) == ["setwise_relation"]
    wanted = [(4, B, B)] if at is None else [(5, 4, B, B)] * 2
    assert [tuple(weights.shape) for weights in maps["setwise_relation"]] == wanted
    for weights in maps["setwise_relation"]:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


def test_recorded_maps_are_those_of_each_relation_in_its_place():
    model = insert(tiny.vit(), "batchformer-v2", at=[0, 2], shared=False).eval()
    passed = {}
    for number in (0, 2):
        model.blocks[number].register_forward_hook(lambda block, args, out, n=number: passed.update({n: out}))
    with record_attention(model) as maps:
        model(tiny.images(B))
    assert list(maps) == ["setwise_relation.0", "setwise_relation.1"]
    for name, number in zip(maps, (0, 2), strict=True):
        with record_attention(model.get_submodule(name)) as alone:
            model.get_submodule(name)(passed[number])
        [expected] = alone[""]
        [found] = maps[name]
        torch.testing.assert_close(found, expected)
