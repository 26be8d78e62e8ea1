"""The paper's pseudo-code as a function equals the module."""

import torch
from torch import nn

from setwise.nn import BatchFormer, functional

B, C = 9, 12


def test_it_equals_batchformer():
    relation = BatchFormer(C, dropout=0.0)
    x, y = torch.randn(B, C), torch.arange(B)
    both, target = functional.batchformer(x, y, relation.layers[0], True)
    torch.testing.assert_close(both, relation(x))
    assert target.tolist() == [*range(B), *range(B)]


def test_it_is_the_papers_pseudo_code_with_torchs_layer():
    encoder = nn.TransformerEncoderLayer(C, 4, C, 0.5)
    x, y = torch.randn(B, C), torch.arange(B)
    torch.manual_seed(0)
    both, target = functional.batchformer(x, y, encoder, True)
    torch.manual_seed(0)
    pre_x = x
    expected = torch.cat([pre_x, encoder(x.unsqueeze(1)).squeeze(1)], dim=0)
    assert torch.equal(both, expected)
    assert torch.equal(target, torch.cat([y, y], dim=0))


def test_in_evaluation_features_and_target_come_back_themselves():
    x, y = torch.randn(B, C), torch.arange(B)
    both, target = functional.batchformer(x, y, nn.Identity(), False)
    assert both is x
    assert target is y


def test_any_callable_may_be_the_encoder():
    x = torch.randn(B, C)
    both, target = functional.batchformer(x, [{}] * B, lambda tokens: tokens * 2, True)
    assert torch.equal(both, torch.cat([x, 2 * x]))
    assert len(target) == 2 * B
