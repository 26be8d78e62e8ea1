"""A relation through inducing points: Set Transformer's block in plain loops, and what a relation owes besides."""

import loops
import numpy as np
import pytest
import torch

from setwise.errors import InvalidInput
from setwise.nn import BatchFormer, BatchFormerV2, record_attention
from setwise.nn.attend import attend_mask, make_control
from setwise.nn.induced import InducedLayer

B, N, C, M = 11, 3, 12, 4


def layer(**options):
    torch.manual_seed(0)
    made = InducedLayer(C, 4, M, dropout=0.0, attention_dropout=0.0, **options).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def samples(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_equals_the_formula_in_plain_loops():
    induced, x = layer(), samples(B, C)
    np.testing.assert_allclose(induced(x).detach(), loops.induced_layer(induced, x.numpy()), rtol=1e-10, atol=1e-10)


def test_every_position_is_related_by_itself():
    induced, x = layer(), samples(B, N, C)
    out = induced(x)
    for position in range(N):
        torch.testing.assert_close(out[:, position], induced(x[:, position]))


def test_other_samples_than_its_own_can_be_the_set():
    induced, x, others = layer(), samples(B, C), samples(20, C, seed=2)
    expected = loops.induced_layer(induced, x.numpy(), others.numpy())
    np.testing.assert_allclose(induced(x, None, others).detach(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["self", "same-class"])
def test_a_mask_gives_every_sample_the_summary_of_those_it_may_attend_to(kind):
    induced, x = layer(), samples(B, C)
    mask = attend_mask(kind, torch.arange(B) % 3)
    out = induced(x, mask)
    for i in range(B):
        torch.testing.assert_close(out[i : i + 1], induced(x[i : i + 1], None, x[mask[i]]))


def test_who_may_attend_to_nobody_attends_to_itself():
    induced, x = layer(), samples(B, C)
    out = induced(x, torch.zeros(B, B, dtype=torch.bool))
    torch.testing.assert_close(out, induced(x, torch.eye(B, dtype=torch.bool)))


def test_order_does_not_matter():
    relation, x = BatchFormer(C, num_inducing=M, dropout=0.0).double(), samples(B, C)
    order = torch.randperm(B)
    torch.testing.assert_close(relation(x[order])[B:], relation(x)[B:][order])


def test_every_related_row_depends_on_every_sample_and_no_plain_row_does():
    relation = BatchFormer(C, num_inducing=M, dropout=0.0).double()
    jacobian = torch.autograd.functional.jacobian(relation, samples(B, C)).abs().sum((1, 3))  # [2B, B]
    assert (jacobian[B:] > 0).all()
    assert torch.equal(jacobian[:B] > 0, torch.eye(B, dtype=torch.bool))


@pytest.mark.parametrize("kind", [BatchFormer, BatchFormerV2])
def test_evaluation_returns_the_input_itself(kind):
    relation = kind(C, num_inducing=M).double().eval()
    x = samples(B, C) if kind is BatchFormer else samples(B, N, C)
    assert relation(x) is x


def test_padding_is_summarised_by_nobody():
    relation, x = BatchFormerV2(C, num_inducing=M, dropout=0.0).double(), samples(B, N, C)
    padding = torch.zeros(B, N, dtype=torch.bool)
    padding[4, 1:] = True
    other = x.clone()
    other[4, 1:] = 100
    torch.testing.assert_close(relation(x, padding=padding)[B:][:4], relation(other, padding=padding)[B:][:4])
    assert torch.equal(relation(x, padding=padding)[B:][4, 1:], x[4, 1:])


def test_no_map_of_all_to_all_is_recorded_and_rows_sum_to_one():
    relation = BatchFormer(C, num_inducing=M).double()
    with record_attention(relation) as maps:
        relation(samples(B, C))
    assert [tuple(m.shape) for m in maps[""]] == [(4, M, B), (4, B, M)]
    for weights in maps[""]:
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


def test_the_control_learns_by_the_attention_to_points_and_not_by_that_to_its_only_sample():
    relation = BatchFormer(C, num_inducing=M, dropout=0.0, attention_dropout=0.1).double()
    make_control(relation)
    relation(samples(B, C), torch.eye(B, dtype=torch.bool)).pow(3).sum().backward()
    alone, points = relation.layers[0].summarise.self_attn, relation.layers[0].distribute.self_attn
    assert (alone.dropout, points.dropout) == (0, 0.1)
    assert not alone.in_proj_weight.grad[: 2 * C].any()
    assert points.in_proj_weight.grad[: 2 * C].abs().sum() > 1e-6


def test_float16_input_meets_float32_weights():
    relation, x = BatchFormer(C, num_inducing=M, dropout=0.0).train(), torch.randn(B, C)
    found = relation(x.half())
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), relation(x), rtol=1e-2, atol=1e-2)


def test_half_precision_stays_finite():
    relation = BatchFormer(C, num_inducing=M).half()
    assert relation(300 * torch.randn(B, C).half()).isfinite().all()


def test_errors_say_what_to_do():
    with pytest.raises(InvalidInput, match=r"`num_inducing` must be at least 1, but it is 0; None relates all to all"):
        BatchFormer(C, num_inducing=0)
    with pytest.raises(InvalidInput, match=r"goes with features \[B, C\], but there are 3 positions"):
        layer()(samples(B, N, C), torch.eye(B, dtype=torch.bool))
