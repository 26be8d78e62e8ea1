"""What BatchFormer promises: two streams in training, nothing in evaluation, a set and no sequence."""

import inspect
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import setwise.nn.relation
from setwise.nn import BatchFormer, BatchFormerV2
from setwise.nn.attention import SetAttention

B, C = 9, 12


def samples(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def relation(**options):
    torch.manual_seed(0)
    return BatchFormer(C, **{"dropout": 0.0, **options}).double()


def jacobian_of_norms(module, x):
    """``[rows, B]``: how strongly each row out depends on each sample in."""
    return torch.autograd.functional.jacobian(module, x).abs().amax((1, 3))


@settings(max_examples=25)
@given(st.permutations(range(B)), st.integers(1, 2), st.integers(0, 100))
def test_the_order_of_the_set_does_not_matter(order, num_layers, seed):
    model, x = relation(num_layers=num_layers), samples(B, C, seed=seed)
    plain, related = model(x).chunk(2)
    plain_of_permuted, related_of_permuted = model(x[order]).chunk(2)
    assert torch.equal(plain_of_permuted, plain[order])
    torch.testing.assert_close(related_of_permuted, related[order])


def test_in_training_every_related_row_depends_on_every_sample():
    assert (jacobian_of_norms(relation(), samples(B, C))[B:] > 1e-8).all()


def test_in_training_no_plain_row_depends_on_another_sample():
    dependence = jacobian_of_norms(relation(), samples(B, C))[:B]
    assert torch.equal(dependence, torch.eye(B, dtype=dependence.dtype))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_in_training_plain_rows_are_unchanged_bit_for_bit(dropout):
    x = samples(B, C)
    out = relation(dropout=dropout)(x)
    assert out.shape == (2 * B, C)
    assert torch.equal(out[:B], x)
    assert not torch.equal(out[B:], x)


@pytest.mark.parametrize("size", [1, B])
def test_evaluation_returns_the_input_itself(size):
    x = samples(size, C)
    model = relation().eval()
    assert model(x) is x
    assert model(x, torch.eye(size, dtype=torch.bool)) is x


def test_relate_gives_the_related_rows_alone_in_training_and_evaluation():
    model, x = relation(), samples(B, C)
    expected = model(x)[B:]
    assert torch.equal(model.relate(x), expected)
    assert torch.equal(model.eval().relate(x), expected)


def test_a_batch_of_one_is_related_to_itself_alone():
    x = samples(1, C)
    with pytest.warns(UserWarning, match="only 1 sample:"):
        out = relation()(x)
    assert out.shape == (2, C)
    assert out.isfinite().all()


def test_few_samples_warn_exactly_once():
    model = relation()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            model(samples(7, C))
    assert len(caught) == 1
    assert "BatchFormer relates only 7 samples" in str(caught[0].message)


@pytest.mark.parametrize(("training", "size", "gather"), [(True, 8, False), (False, 2, False), (False, 2, True)])
def test_enough_samples_or_evaluation_do_not_warn(training, size, gather):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        relation(gather=gather).train(training)(samples(size, C))


@pytest.mark.parametrize(("world", "joined"), [(1, 3), (2, 6)])
def test_few_samples_of_a_gathered_set_are_counted_over_all_processes(monkeypatch, world, joined):
    monkeypatch.setattr(setwise.nn.relation, "place", lambda: (0, world))
    with pytest.warns(UserWarning, match=f"BatchFormer relates only {joined} samples"):
        relation(gather=True)(samples(3, C))


def test_a_gathered_set_that_is_large_enough_does_not_warn(monkeypatch):
    monkeypatch.setattr(setwise.nn.relation, "place", lambda: (0, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        relation(gather=True)(samples(3, C))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kind", [BatchFormer, BatchFormerV2])
def test_a_wrong_keyword_names_the_class_it_was_meant_for(kind):
    with pytest.raises(TypeError, match=rf"{kind.__name__}\.__init__\(\).*'heads'"):
        kind(C, heads=4)


def test_both_versions_take_the_same_arguments_with_the_same_defaults():
    one, other = (inspect.signature(kind).parameters for kind in (BatchFormer, BatchFormerV2))
    assert {name: p.default for name, p in other.items() if name != "channels_first"} == {
        name: p.default for name, p in one.items() if name != "memory"
    }
    assert all(p.kind is not p.VAR_KEYWORD for p in other.values())


def test_gather_without_a_process_group_changes_nothing():
    x = samples(B, C)
    assert torch.allclose(relation(gather=True)(x), relation()(x), rtol=1e-12, atol=1e-12)


# --- masks


def test_a_row_that_may_attend_to_itself_alone_depends_on_itself_alone():
    model = relation()
    mask = torch.eye(B, dtype=torch.bool)
    dependence = jacobian_of_norms(lambda x: model(x, mask), samples(B, C))[B:]
    assert (dependence.diag() > 1e-8).all()
    assert not (dependence - dependence.diag().diag()).any()


def test_a_row_depends_on_exactly_the_samples_its_mask_allows():
    model = relation()
    mask = (torch.rand(B, B, generator=torch.Generator().manual_seed(2)) > 0.6) | torch.eye(B, dtype=torch.bool)
    dependence = jacobian_of_norms(lambda x: model(x, mask), samples(B, C))[B:]
    assert torch.equal(dependence > 1e-10, mask)


@pytest.mark.parametrize("attention_dropout", [0.0, 0.5])
def test_a_row_with_an_empty_mask_attends_to_itself(attention_dropout):
    model, x = relation(attention_dropout=attention_dropout).eval(), samples(B, C)
    nobody = torch.zeros(B, B, dtype=torch.bool)
    torch.testing.assert_close(model.relate(x, nobody), model.relate(x, torch.eye(B, dtype=torch.bool)))
    one_empty = torch.ones(B, B, dtype=torch.bool)
    one_empty[3] = False
    related, everybody = model.relate(x, one_empty), model.relate(x)
    torch.testing.assert_close(related[3], model.relate(x, nobody)[3])
    torch.testing.assert_close(related[:3], everybody[:3])
    torch.testing.assert_close(related[4:], everybody[4:])


def test_a_full_mask_is_no_mask():
    model, x = relation(), samples(B, C)
    torch.testing.assert_close(model(x, torch.ones(B, B, dtype=torch.bool)), model(x))


def test_the_control_gives_its_query_and_key_weights_no_gradient():
    model, x = relation(), samples(B, C)
    model(x, torch.eye(B, dtype=torch.bool))[B:].pow(3).sum().backward()
    gradient = model.layers[0].self_attn.in_proj_weight.grad
    assert gradient[: 2 * C].abs().max() < 1e-12  # float64; the softmax of one score is constant
    assert gradient[2 * C :].abs().max() > 1e-3


# --- memory


def saved_sizes(model, x):
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        model(x)
    return sizes


@pytest.mark.parametrize(("attention_dropout", "kept"), [(0.0, False), (0.5, True)])
def test_a_matrix_over_the_batch_is_kept_only_with_attention_dropout(attention_dropout, kept):
    size = 257
    model = BatchFormer(C, num_heads=1, dropout=0.5, attention_dropout=attention_dropout)
    sizes = saved_sizes(model, samples(size, C, dtype=torch.float32).requires_grad_())
    assert any(n >= size**2 for n in sizes) == kept


def test_attention_dropout_follows_dropout_unless_it_is_given():
    def rates(**options):
        return [m.dropout for m in BatchFormer(C, **options).modules() if isinstance(m, SetAttention)]

    assert rates() == [0.5]
    assert rates(dropout=0.1, num_layers=2) == [0.1, 0.1]
    assert rates(attention_dropout=0.0) == [0.0]


def test_gradient_flows_to_every_parameter_and_sample():
    model, x = BatchFormer(C, num_layers=2), samples(32, C, dtype=torch.float32).requires_grad_()
    model(x)[32:].pow(3).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    assert x.grad.abs().amax(1).all()
