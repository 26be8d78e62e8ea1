"""Batch norms that normalise support and query by the support's moments, against the formula."""

import copy

import pytest
import torch
from torch import nn

from setwise.errors import InvalidInput
from setwise.nn.support_moments import support_moments

S, Q, C = 6, 4, 5


def maps(rows, seed=0):
    return torch.randn(rows, C, 3, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 + 1


def lively(norm):
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    return norm.double()


def loops(x, num_support, norm):
    """Each channel's mean and biased variance over the support images alone, image by image and pixel by pixel."""
    y = torch.empty_like(x)
    for c in range(x.shape[1]):
        values = [float(v) for image in x[:num_support] for v in image[c].flatten()]
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / len(values)
        for i in range(len(x)):
            y[i, c] = (x[i, c] - mean) / (variance + norm.eps) ** 0.5 * norm.weight[c] + norm.bias[c]
    return y


def test_all_images_are_normalised_by_the_supports_moments():
    norm = lively(nn.BatchNorm2d(C))
    x = torch.cat([maps(S), maps(Q, seed=1) * 3])
    with support_moments(norm, S):
        torch.testing.assert_close(norm(x), loops(x, S, norm))


def test_the_support_alone_gets_what_torchs_norm_gives_it():
    norm = lively(nn.BatchNorm2d(C))
    x = maps(S)
    expected = copy.deepcopy(norm)(x)
    with support_moments(norm, S):
        torch.testing.assert_close(norm(torch.cat([x, maps(Q, 1)]))[:S], expected)


def test_queries_do_not_see_each_other():
    norm = lively(nn.BatchNorm2d(C))
    x, query = maps(S), maps(Q, 1)
    with support_moments(norm, S):
        together = norm(torch.cat([x, query]))[S:]
        alone = torch.cat([norm(torch.cat([x, query[i : i + 1]]))[S:] for i in range(Q)])
    torch.testing.assert_close(together, alone)


def test_gradients_flow_through_the_moments():
    norm = lively(nn.BatchNorm2d(C)).eval()
    with support_moments(norm, S):
        assert torch.autograd.gradcheck(
            lambda x, q: norm(torch.cat([x, q])), (maps(S).requires_grad_(), maps(Q, 1).requires_grad_())
        )


def test_running_averages_take_in_the_support_with_its_biased_variance():
    norm = nn.BatchNorm2d(C).double()
    x = maps(S)
    with support_moments(norm, S):
        norm(torch.cat([x, maps(Q, 1)]))
    torch.testing.assert_close(norm.running_mean, 0.1 * x.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * x.var((0, 2, 3), correction=0))
    assert int(norm.num_batches_tracked) == 1
    before = norm.running_mean.clone()
    with support_moments(norm.eval(), S):
        norm(x)
    assert torch.equal(norm.running_mean, before)


def test_a_frozen_norm_of_a_trunk_in_training_keeps_to_its_running_averages():
    trunk = nn.Sequential(nn.BatchNorm2d(C), nn.BatchNorm2d(C)).double().train()
    trunk[0].eval()
    trunk[0].running_mean += 3
    x = maps(S)
    with support_moments(trunk, S):
        torch.testing.assert_close(trunk(x), nn.BatchNorm2d(C).double().train()(trunk[0](x)))
    assert trunk[0].num_batches_tracked == 0


def test_afterwards_the_trunk_is_what_it_was():
    trunk = nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C)).double()
    x, names = maps(S), set(trunk.state_dict())
    expected = copy.deepcopy(trunk)(x)
    with pytest.raises(RuntimeError, match="stop"), support_moments(trunk, S):
        raise RuntimeError("stop")
    torch.testing.assert_close(trunk(x), expected)
    assert "forward" not in vars(trunk[1])
    assert set(trunk.state_dict()) == names


def test_timms_norms_keep_their_activation():
    from timm.layers import BatchNormAct2d

    norm = BatchNormAct2d(C).double()
    with support_moments(norm, S):
        assert float(norm(maps(S)).min()) == 0


def test_halves_are_normalised_in_float32():
    norm = nn.BatchNorm2d(C)
    with support_moments(norm, S):
        y = norm((maps(S) * 3e3).half())
    assert y.dtype == torch.float16
    assert torch.isfinite(y).all()


def test_a_trunk_that_is_run_again_in_the_backward_pass_is_refused():
    import timm

    trunk = timm.create_model("test_resnet", num_classes=0).train()
    trunk.set_grad_checkpointing()
    with (
        pytest.raises(InvalidInput, match=r"switch it off \(set_grad_checkpointing\(False\)\)"),
        support_moments(trunk, S),
    ):
        pass
    with support_moments(trunk.eval(), S):
        assert trunk(torch.randn(S, 3, 32, 32)).isfinite().all()


def test_a_support_set_without_images_is_refused():
    with pytest.raises(InvalidInput, match=r"`num_support` \(0\) must be at least 1"), support_moments(nn.ReLU(), 0):
        pass
