"""Who may attend to whom, against plain loops."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from setwise.errors import UnknownName
from setwise.nn import BatchFormer
from setwise.nn.attend import ATTEND, attend_mask, make_control, make_uniform
from setwise.nn.attention import record_attention

B, K = 12, 3
LABELS = st.lists(st.integers(0, K - 1), min_size=1, max_size=B)


def loops(labels, allowed):
    n = len(labels)
    return torch.tensor([[bool(allowed(i, j)) for j in range(n)] for i in range(n)])


@given(LABELS)
def test_masks_equal_plain_loops(labels):
    target = torch.tensor(labels)
    assert torch.equal(attend_mask("self", target), loops(labels, lambda i, j: i == j))
    assert torch.equal(attend_mask("same-class", target), loops(labels, lambda i, j: labels[i] == labels[j]))
    assert torch.equal(attend_mask("other-class", target), loops(labels, lambda i, j: labels[i] != labels[j]))


@given(LABELS, st.integers(0, 1000))
def test_shuffled_is_the_same_class_pattern_of_permuted_labels_plus_oneself(labels, seed):
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    permuted = [labels[i] for i in order]
    mask = attend_mask("shuffled", torch.tensor(labels), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(mask, loops(labels, lambda i, j: permuted[i] == permuted[j] or i == j))
    assert sorted(mask.sum(1).tolist()) == sorted(attend_mask("same-class", torch.tensor(labels)).sum(1).tolist())


@pytest.mark.parametrize("kind", ["all", "uniform"])
def test_everybody_may_attend_to_everybody_without_a_mask(kind):
    assert attend_mask(kind, torch.tensor([0, 1])) is None


def test_of_a_soft_target_the_likeliest_class_counts():
    soft = torch.tensor([[0.6, 0.4, 0.0], [0.0, 0.2, 0.8], [0.9, 0.05, 0.05]])
    assert torch.equal(attend_mask("same-class", soft), attend_mask("same-class", torch.tensor([0, 2, 0])))


def test_of_a_multi_label_target_one_shared_label_is_enough():
    labels = [{0, 1}, {1, 2}, {2}, set(), {0}, set()]
    target = torch.tensor([[float(k in row) for k in range(K)] for row in labels])
    same = loops(labels, lambda i, j: i == j or labels[i] & labels[j])
    assert torch.equal(attend_mask("same-class", target), same)
    assert torch.equal(attend_mask("other-class", target), ~same)


def test_a_multi_label_target_of_single_labels_shares_nothing_with_a_row_of_none():
    target = torch.tensor([[1.0, 0, 0], [0, 0, 0], [1, 0, 0]])
    assert torch.equal(attend_mask("same-class", target), loops(range(3), lambda i, j: i == j or {i, j} == {0, 2}))


@pytest.mark.parametrize("kind", sorted(set(ATTEND) - {"all", "uniform", "other-class"}))
def test_every_sample_may_attend_to_itself(kind):
    for target in (torch.tensor([0, 1, 1, 2]), torch.eye(4), torch.tensor([[1, 1], [0, 1], [0, 0], [1, 0]]).float()):
        assert attend_mask(kind, target).diag().all()


def test_an_unknown_kind_lists_the_choices():
    with pytest.raises(UnknownName, match="did you mean 'same-class'"):
        attend_mask("same_class", torch.tensor([0]))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_uniform_stays_uniform_while_the_rest_learns(optimizer):
    torch.manual_seed(0)
    relation = BatchFormer(8, num_layers=2, dropout=0.1)
    make_uniform(relation)
    before = {name: p.detach().clone() for name, p in relation.named_parameters()}
    steps = optimizer(relation.parameters(), lr=0.1, weight_decay=0.1)
    x = torch.randn(B, 8)
    for _ in range(5):
        steps.zero_grad()
        relation(x)[B:].pow(3).mean().backward()
        steps.step()
    with record_attention(relation) as maps:
        relation(x)
    for weights in maps[""]:
        assert torch.equal(weights, torch.full_like(weights, 1 / B))
    for name, parameter in relation.named_parameters():
        rows = slice(16, None) if "in_proj" in name else slice(None)
        assert not torch.equal(parameter[rows], before[name][rows])


def test_uniform_relates_every_sample_to_the_mean_of_all_values():
    relation = BatchFormer(8, dropout=0.0)
    make_uniform(relation)
    attention, x = relation.layers[0].self_attn, torch.randn(B, 1, 8)
    value = torch.nn.functional.linear(x, attention.in_proj_weight[16:], attention.in_proj_bias[16:])
    torch.testing.assert_close(attention(x), attention.out_proj(value.mean(0, keepdim=True)).expand(B, 1, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_fixed_query_and_key_get_a_gradient_of_exactly_zero_and_the_rest_its_own(dtype):
    gradients = []
    for fixed in (False, True):
        torch.manual_seed(0)
        relation = BatchFormer(8, num_layers=2, dropout=0.0, attention_dropout=0.5 * fixed).to(dtype)
        if fixed:
            make_control(relation)
            assert {layer.self_attn.dropout for layer in relation.layers} == {0}
        relation(torch.randn(B, 8).to(dtype), torch.eye(B, dtype=torch.bool))[B:].float().pow(3).mean().backward()
        gradients.append({name: p.grad for name, p in relation.named_parameters()})
    for name, gradient in gradients[1].items():
        rows = slice(16, None) if "in_proj" in name else slice(None)
        assert torch.equal(gradient[rows], gradients[0][name][rows])
        assert gradient[rows].any()
        if "in_proj" in name:
            assert not gradient[:16].any()
