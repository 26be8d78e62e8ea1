"""The two classifiers."""

import numpy as np
import pytest
import torch
from torch import nn

from setwise.errors import InvalidInput
from setwise.models import CosineClassifier, PatchConvNet, create_head, without_classifier


def test_cosine_scores_equal_plain_loops():
    head = CosineClassifier(5, 3, scale=7.0).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    scores, weight = head(x).detach().numpy(), head.weight.detach().numpy()
    for i in range(4):
        for k in range(3):
            a, b = x[i].numpy(), weight[k]
            assert scores[i, k] == pytest.approx(7 * (a @ b) / np.sqrt(a @ a) / np.sqrt(b @ b), abs=1e-12)


def test_a_cosine_is_not_rounded_under_autocast():
    head, x = CosineClassifier(5, 3), torch.randn(4, 5)
    expected = 30 * nn.functional.cosine_similarity(x[:, None], head.weight[None], dim=2)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(head(x), expected)
        assert head(x.bfloat16()).dtype == torch.float32


def test_no_class_wins_by_the_length_of_its_weight_or_of_the_feature():
    head, x = CosineClassifier(5, 3), torch.randn(4, 5)
    expected = head(x)
    with torch.no_grad():
        head.weight[1] *= 100
    torch.testing.assert_close(head(10 * x), expected)


def test_a_zero_feature_scores_zero_with_a_finite_gradient():
    head, x = CosineClassifier(5, 3), torch.zeros(2, 5, requires_grad=True)
    scores = head(x)
    assert not scores.any()
    scores.sum().backward()
    assert x.grad.isfinite().all()


def test_heads_by_name():
    assert type(create_head("linear", 5, 3, scale=30.0)) is nn.Linear
    cosine = create_head("cosine", 5, 3, scale=16.0)
    assert isinstance(cosine, CosineClassifier)
    assert cosine.scale == 16.0
    assert cosine(torch.randn(2, 5)).shape == (2, 3)


def test_a_row_a_class_scores_what_the_query_of_its_class_gathered():
    whole = PatchConvNet(embed_dim=16, depth=1, num_classes=5, per_class=True).eval()
    head, images = create_head("per-class", 16, 5, scale=30.0), torch.randn(2, 3, 32, 48)
    head.load_state_dict(whole.head.state_dict())
    expected = whole(images)
    backbone = without_classifier(whole)
    assert backbone(images).shape == (2, 5, 16)
    torch.testing.assert_close(head(backbone(images)), expected)


@pytest.mark.parametrize("options", [{}, {"per_class": True, "global_pool": "avg"}])
def test_without_a_query_a_class_there_is_no_row_for_it(options):
    with pytest.raises(InvalidInput, match="needs a backbone with a query for each class"):
        without_classifier(PatchConvNet(embed_dim=16, depth=1, num_classes=5, **options))
