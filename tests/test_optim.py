"""Parameter groups, schedules and the optimizers made of them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from setwise.build.parts import optimizer_factory
from setwise.errors import InvalidInput
from setwise.models import PatchConvNet
from setwise.nn import BatchFormer
from setwise.optim import NormalizedAdam, lr_factor, make_optimizer, parameter_groups
from setwise.recipes import RECIPES

C = 8


class Network(nn.Module):
    def __init__(self, relation=True):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(C, C), nn.BatchNorm1d(C))
        self.relation = BatchFormer(C) if relation else None
        self.head = nn.Linear(C, 3)


def groups(network=None, **options):
    network = network or Network()
    return parameter_groups(network, network.relation, **{"lr": 0.1, "weight_decay": 0.01, **options})


def settings_of(network, found):
    """Parameter name -> (learning rate, weight decay)."""
    by_id = {id(p): (g["lr"], g["weight_decay"]) for g in found for p in g["params"]}
    return {name: by_id[id(p)] for name, p in network.named_parameters()}


def optimizer_options(**options):
    return {
        "lr": 0.1,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 0.01,
        "relation_lr_multiplier": 1.0,
        "relation_weight_decay": None,
        "schedule": lambda epoch: 1.0,
        **options,
    }


def test_an_early_step_is_the_next_epochs_factor_and_a_squared_rate_the_rate_of_the_official_cosine():
    weight = nn.Parameter(torch.ones(()))
    theirs = torch.optim.SGD([weight], lr=1.0)
    schedule, expected = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, 6), []
    for _ in range(6):
        theirs.step()
        schedule.step()  # before the epoch, as the official loop does
        expected.append(theirs.param_groups[0]["lr"])
    factors = [lr_factor(epoch, schedule="cosine", epochs=6, early_step=True) for epoch in range(6)]
    assert factors == pytest.approx(expected)
    recipe = RECIPES["digits-lt"].override({"optimizer.official_squared_lr": True, "optimizer.lr": 0.2})
    network = Network()
    optimizer, schedule = optimizer_factory(recipe)(network, network.relation)
    epochs = recipe.trainer.epochs
    for epoch in range(3):
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(0.2 * 0.2 * 0.5 * (1 + math.cos(math.pi * epoch / epochs)))
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("relation", [True, False])
@pytest.mark.parametrize("decay_vectors", [True, False])
@pytest.mark.parametrize("multiplier", [1.0, 0.1])
@pytest.mark.parametrize("relation_decay", [None, 0.5, 0.0])
def test_every_parameter_is_in_exactly_one_group(relation, decay_vectors, multiplier, relation_decay):
    network = Network(relation)
    found = groups(
        network,
        decay_vectors=decay_vectors,
        relation_lr_multiplier=multiplier,
        relation_weight_decay=relation_decay,
    )
    ids = [id(p) for group in found for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in network.parameters())


def test_the_relation_has_its_own_learning_rate_and_weight_decay():
    network = Network()
    for name, values in settings_of(
        network, groups(network, relation_lr_multiplier=0.1, relation_weight_decay=0.5)
    ).items():
        assert values == pytest.approx((0.01, 0.5) if name.startswith("relation") else (0.1, 0.01))


def test_the_relation_follows_the_network_unless_told_otherwise():
    network = Network()
    assert set(settings_of(network, groups(network)).values()) == {(0.1, 0.01)}


def test_no_weight_decay_of_the_relation_is_zero_and_not_the_networks():
    network = Network()
    decays = {
        name.startswith("relation"): decay
        for name, (_, decay) in settings_of(network, groups(network, relation_weight_decay=0.0)).items()
    }
    assert decays == {True: 0.0, False: 0.01}


def test_vectors_may_be_exempt_from_decay_in_the_network_and_the_relation():
    network = Network()
    found = settings_of(network, groups(network, decay_vectors=False, relation_weight_decay=0.5))
    for name, parameter in network.named_parameters():
        expected = 0.0 if parameter.dim() < 2 else 0.5 if name.startswith("relation") else 0.01
        assert found[name][1] == expected


@pytest.mark.parametrize("decay_vectors", [True, False])
def test_what_a_timm_network_exempts_by_name_is_exempt_where_vectors_are(decay_vectors):
    network = nn.Sequential(PatchConvNet(embed_dim=8, depth=1))
    found = settings_of(network, parameter_groups(network, None, lr=1, weight_decay=0.1, decay_vectors=decay_vectors))
    assert network[0].pool.query.dim() > 1
    assert (found["0.pool.query"][1] == 0) is not decay_vectors
    assert found["0.head.weight"][1] == 0.1


def test_groups_say_whose_they_are():
    assert {g["name"] for g in groups()} == {"network", "relation"}


@pytest.mark.parametrize(
    ("name", "kind", "vectors_decay"), [("sgd", torch.optim.SGD, 0.01), ("adamw", torch.optim.AdamW, 0)]
)
def test_sgd_decays_vectors_and_adamw_exempts_them(name, kind, vectors_decay):
    network = Network()
    optimizer, _ = make_optimizer(name, **optimizer_options())(network, network.relation)
    assert type(optimizer) is kind
    found = settings_of(network, optimizer.param_groups)
    assert {found[n][1] for n, p in network.named_parameters() if p.dim() < 2} == {vectors_decay}
    assert {found[n][1] for n, p in network.named_parameters() if p.dim() >= 2} == {0.01}


def test_momentum_is_the_first_beta_of_adamw():
    network = Network()
    optimizer, _ = make_optimizer("adamw", **optimizer_options(momentum=0.8))(network, network.relation)
    assert {g["betas"] for g in optimizer.param_groups} == {(0.8, 0.999)}


def test_the_schedule_multiplies_every_groups_own_rate():
    network = Network()
    optimizer, schedule = make_optimizer(
        "sgd", **optimizer_options(relation_lr_multiplier=0.1, schedule=lambda epoch: 0.5**epoch)
    )(network, network.relation)
    for epoch in range(3):
        rates = {g["name"]: g["lr"] for g in optimizer.param_groups}
        assert rates == pytest.approx({"network": 0.1 * 0.5**epoch, "relation": 0.01 * 0.5**epoch})
        optimizer.step()
        schedule.step()


def test_the_official_rate_of_the_relation_is_a_tenth_and_stands_beside_no_other():
    network = Network()
    recipe = RECIPES["digits-lt"].override({"relation.official_lr": True})
    optimizer, _ = optimizer_factory(recipe)(network, network.relation)
    rates = {group["name"].split()[0]: group["initial_lr"] for group in optimizer.param_groups}
    assert rates["relation"] == pytest.approx(0.1 * rates["network"])
    with pytest.raises(InvalidInput, match=r"`relation\.official_lr`.*the latter is 0\.5: take one"):
        optimizer_factory(recipe.override({"relation.lr_multiplier": 0.5}))


def test_a_step_moves_the_relation_by_its_multiplier():
    torch.manual_seed(0)
    moves = []
    for multiplier in (1.0, 0.1):
        torch.manual_seed(0)
        network = Network()
        before = network.relation.layers[0].linear1.weight.detach().clone()
        optimizer, _ = make_optimizer("sgd", **optimizer_options(relation_lr_multiplier=multiplier, weight_decay=0.0))(
            network, network.relation
        )
        network.head(network.relation(network.backbone(torch.ones(9, C).cumsum(0)))).pow(2).mean().backward()
        optimizer.step()
        moves.append(network.relation.layers[0].linear1.weight.detach() - before)
    assert moves[0].any()
    torch.testing.assert_close(moves[1], 0.1 * moves[0], rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize(
    "name",
    ["optimizer.lr", "optimizer.weight_decay", "optimizer.momentum", "relation.lr_multiplier", "relation.weight_decay"],
)
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_a_value_out_of_range_is_named(name, value):
    argument = name.replace("relation.", "relation_").removeprefix("optimizer.")
    with pytest.raises(InvalidInput, match=rf"`{name}` must be .* it is {value}"):
        make_optimizer("sgd", **optimizer_options(**{argument: value}))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_momentum_of_one_is_refused(name):
    with pytest.raises(InvalidInput, match=r"`optimizer\.momentum` must be below 1, but it is 1\.0"):
        make_optimizer(name, **optimizer_options(momentum=1.0))


def test_nesterov_without_momentum_is_refused():
    with pytest.raises(InvalidInput, match=r"`optimizer\.nesterov` needs an `optimizer\.momentum` above 0"):
        make_optimizer("sgd", **optimizer_options(momentum=0.0, nesterov=True))


# --- schedules


@given(st.integers(1, 300), st.data())
def test_cosine_falls_from_one_and_never_below_zero(epochs, data):
    warmup = data.draw(st.integers(0, epochs - 1))
    factors = [lr_factor(e, schedule="cosine", epochs=epochs, warmup_epochs=warmup) for e in range(epochs)]
    assert factors[warmup] == 1.0
    assert factors[:warmup] == sorted(factors[:warmup])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
    assert all(0 <= f <= 1 for f in factors)


def test_cosine_equals_torchs_without_warmup():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    for epoch in range(10):
        ours = lr_factor(epoch, schedule="cosine", epochs=10)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        theirs.step()


def test_multistep_equals_torchs():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 6], gamma=0.2)
    for epoch in range(10):
        ours = lr_factor(epoch, schedule="multistep", epochs=10, milestones=(3, 6), gamma=0.2)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()


def lamb_by_loops(weight, gradients, *, lr, decay, beta):
    """Adam's step with decay, scaled for the whole tensor to the norm of its weights; the gradient's norm at most 1."""
    first, second = [0.0] * len(weight), [0.0] * len(weight)
    for step, gradient in enumerate(gradients, 1):
        norm = max(1.0, math.sqrt(sum(g * g for g in gradient)))
        moves = []
        for i, g in enumerate(g / norm for g in gradient):
            first[i] = beta * first[i] + (1 - beta) * g
            second[i] = 0.999 * second[i] + 0.001 * g * g
            scaled = first[i] / (1 - beta**step) / (math.sqrt(second[i] / (1 - 0.999**step)) + 1e-6)
            moves.append(scaled + decay * weight[i])
        size, move = (math.sqrt(sum(x * x for x in values)) for values in (weight, moves))
        weight = [w - lr * (size / move) * m for w, m in zip(weight, moves, strict=True)]
    return weight


def test_lamb_moves_every_tensor_in_proportion_to_its_norm():
    network = nn.Linear(4, 1, bias=False)
    start = network.weight.detach().flatten().tolist()
    gradients = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)) * 2
    factory = make_optimizer("lamb", **optimizer_options(weight_decay=0.05))
    optimizer, _ = factory(network, None)
    for gradient in gradients:
        network.weight.grad = gradient[None].clone()
        optimizer.step()
    expected = lamb_by_loops(start, gradients.tolist(), lr=0.1, decay=0.05, beta=0.9)
    torch.testing.assert_close(network.weight.detach().flatten(), torch.tensor(expected))


@pytest.mark.parametrize("schedule", ["cosine", "multistep", "constant"])
def test_warmup_rises_linearly_to_one_whatever_follows(schedule):
    factors = [lr_factor(e, schedule=schedule, epochs=10, warmup_epochs=5, milestones=(8,)) for e in range(6)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_warmup_rises_from_a_share_of_the_rate():
    schedule = {"schedule": "cosine", "epochs": 10, "warmup_epochs": 5, "warmup_start": 0.5}
    assert [lr_factor(e, **schedule) for e in range(6)] == pytest.approx([0.6, 0.7, 0.8, 0.9, 1.0, 1.0])
    assert lr_factor(-1, **schedule) == pytest.approx(0.5)


def numpy_normalised_adam(weights, gradients, *, lr, decay, steps):
    """The official step in plain numpy: L2 into the gradient, all gradients over one norm, then Adam."""
    moment = [np.zeros_like(w) for w in weights]
    square = [np.zeros_like(w) for w in weights]
    for step in range(1, steps + 1):
        g = [gradient + d * w for gradient, d, w in zip(gradients, decay, weights, strict=True)]
        norm = math.sqrt(max(sum(float((x**2).sum()) for x in g), 1e-5))
        for i, x in enumerate(g):
            x = x / norm
            moment[i] = 0.9 * moment[i] + 0.1 * x
            square[i] = 0.999 * square[i] + 0.001 * x**2
            hat = np.sqrt(square[i] / (1 - 0.999**step)) + 1e-8
            weights[i] = weights[i] - lr * moment[i] / (1 - 0.9**step) / hat
    return weights


@pytest.mark.parametrize("size", [1.0, 1e-6])
def test_normalized_adam_equals_plain_loops(size):
    generator = np.random.default_rng(0)
    start = [generator.normal(size=(3, 2)), generator.normal(size=4)]
    gradients = [size * generator.normal(size=w.shape) for w in start]
    parameters = [nn.Parameter(torch.tensor(w)) for w in start]
    decay = [0.1 * size, 0.0]
    optimizer = NormalizedAdam(
        [{"params": [p], "weight_decay": d} for p, d in zip(parameters, decay, strict=True)], lr=0.01
    )
    for _ in range(3):
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = torch.tensor(g)
        optimizer.step()
    expected = numpy_normalised_adam(start, gradients, lr=0.01, decay=decay, steps=3)
    for p, w in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p.detach(), torch.tensor(w))
    assert [group["weight_decay"] for group in optimizer.param_groups] == decay


def test_a_normalised_step_does_not_depend_on_the_size_of_the_gradient():
    moved = []
    for size in (1.0, 1000.0):
        weight = nn.Parameter(torch.tensor([1.0, -2.0]))
        optimizer = NormalizedAdam([weight], lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            (size * (weight * torch.tensor([3.0, 4.0])).sum()).backward()
            optimizer.step()
        moved.append(weight.detach().clone())
    torch.testing.assert_close(moved[0], moved[1])


def test_what_gets_no_gradient_stays_where_it_is():
    moving, frozen = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = NormalizedAdam([moving, frozen], lr=0.1, weight_decay=0.1)
    moving.sum().backward()
    optimizer.step()
    assert torch.equal(frozen.detach(), torch.ones(2))
    assert not torch.equal(moving.detach(), torch.ones(2))
