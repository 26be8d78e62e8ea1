"""A model with a relation trains like any other: compiled, in half precision, checkpointed, copied, distributed."""

import copy
import io
import pickle
import subprocess
import sys
import textwrap

import pytest
import timm
import tiny
import torch
from sklearn.datasets import load_digits
from torch import nn

from setwise.nn import insert, remove, streams

B = 8
IMAGES = tiny.images(B)
TARGET = torch.arange(B) % 4
MODELS = {
    "timm, V1": (tiny.vit, "batchformer", None),
    "timm, V2": (tiny.vit, "batchformer-v2", [0, 2]),
    "BERT, V1": (tiny.bert, "batchformer", None),
    "BERT, V2": (tiny.bert, "batchformer-v2", [0, 2]),
}


def inserted(name, dropout=0.0, **options):
    make, relation, at = MODELS[name]
    plain = make()
    torch.manual_seed(1)
    return insert(plain, relation, at=at, dropout=dropout, **options)


def loss_of(model, rows=slice(None)):
    """The mean loss over both streams of some of the samples."""
    if getattr(model, "module", model).__class__.__name__.startswith("Bert"):
        return model(**{key: value[rows] for key, value in tiny.text(B, padded=True).items()}).loss
    logits = model(IMAGES[rows])
    return nn.functional.cross_entropy(logits, streams.tile(TARGET[rows], like=logits))


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(one, two, **tolerance):
    assert one.keys() == two.keys()
    for key in one:
        if tolerance:
            torch.testing.assert_close(one[key], two[key], **tolerance)
        else:
            assert torch.equal(one[key], two[key]), key


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradient_checkpointing_gives_the_same_gradients_bit_for_bit(name, dropout):
    model = inserted(name, dropout)
    twin = copy.deepcopy(model)
    if "timm" in name:
        twin.set_grad_checkpointing(True)
    else:
        twin.gradient_checkpointing_enable()
    for one in (model, twin):
        torch.manual_seed(2)
        loss_of(one).backward()
    same(gradients(model), gradients(twin))
    assert gradients(model)["setwise_relation.layers.0.linear1.weight"].any()


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_two_micro_steps_add_up(name):
    model = inserted(name)
    found = []
    for rows in (slice(0, 4), slice(4, 8)):
        model.zero_grad()
        loss_of(model, rows).backward()
        found.append(gradients(model))
    model.zero_grad()
    for rows in (slice(0, 4), slice(4, 8)):
        loss_of(model, rows).backward()
    same(gradients(model), {key: found[0][key] + found[1][key] for key in found[0]}, rtol=1e-5, atol=1e-7)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "averaged model": lambda model: torch.optim.swa_utils.AveragedModel(model).module,
    "timm's moving average": lambda model: timm.utils.ModelEmaV3(model).module,
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_has_a_relation_of_its_own(name, how):
    model = inserted(name)
    before = loss_of(model)
    twin = COPIES[how](model).train()
    assert torch.equal(loss_of(twin), before)
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in twin.parameters()}
    for parameter in twin.setwise_relation.parameters():
        nn.init.normal_(parameter)
    assert torch.equal(loss_of(model), before)
    assert not torch.equal(loss_of(twin), before)
    remove(twin)
    assert torch.equal(loss_of(model), before)
    model.setwise_relation.eval()
    assert torch.equal(loss_of(model), loss_of(twin))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_of_a_sequential_runs_its_own_modules(how):
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 12), nn.Linear(12, 5))
    insert(model, "batchformer", at="1", dropout=0.0, example=IMAGES)
    before = model(IMAGES)
    twin = COPIES[how](model).train()
    nn.init.zeros_(model[2].weight)
    assert torch.equal(twin(IMAGES), before)
    torch.compiler.reset()
    assert torch.equal(torch.compile(twin, backend="eager", fullgraph=True)(IMAGES), before)
    assert not torch.equal(model(IMAGES), before)
    assert len(remove(twin)(IMAGES)) == B


@pytest.mark.parametrize("name", MODELS)
def test_a_state_with_the_relation_loads_into_another_model_with_one(name):
    model, other = inserted(name), inserted(name)
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert torch.equal(loss_of(other), loss_of(model))


@pytest.mark.parametrize("name", MODELS)
def test_under_bfloat16_autocast_losses_and_gradients_are_finite(name):
    model = inserted(name, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model)
    loss.backward()
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())
    assert all(p.grad.any() for p in model.setwise_relation.parameters())
    exact = loss_of(inserted(name))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(loss_of(inserted(name)).float(), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("relation", "at"), [("batchformer", None), ("batchformer-v2", [0, 2])])
def test_a_model_in_half_precision_takes_the_relation_along(relation, at, dtype, before):
    model = tiny.vit()
    if before:
        insert(model.to(dtype), relation, at=at)
    else:
        insert(model, relation, at=at).to(dtype)
    assert all(p.dtype == dtype for p in model.parameters())
    logits = model(IMAGES.to(dtype))
    assert logits.dtype == dtype
    assert logits.shape == (2 * B, 5)
    assert logits.isfinite().all()
    logits.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("name", "training"), [("timm, V1", True), ("timm, V2", True), ("timm, V2", False), ("BERT, V2", True)]
)
def test_it_compiles_and_computes_the_same(name, training):
    torch.compiler.reset()  # all tests of a process share one limit on recompilations
    model = inserted(name).train(training)
    expected = loss_of(model)
    expected.backward()
    wanted = gradients(model)
    model.zero_grad()
    compiled = torch.compile(model, backend="eager", fullgraph="timm" in name, dynamic=False)
    if "timm" in name:
        logits = compiled(IMAGES)
        loss = nn.functional.cross_entropy(logits, streams.tile(TARGET, like=logits))
    else:
        loss = compiled(**tiny.text(B, padded=True)).loss
    loss.backward()
    torch.testing.assert_close(loss, expected)
    same(gradients(model), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("unchecked")
def test_a_plain_model_exports_after_remove_and_an_inserted_one_in_evaluation():
    plain = tiny.vit().eval()
    for model in (inserted("timm, V2").eval(), remove(inserted("timm, V1")).eval()):
        program = torch.export.export(model, (IMAGES,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
        assert not any("setwise" in key for key in program.graph_module.state_dict())
        torch.testing.assert_close(program.module()(IMAGES[:3]), plain(IMAGES[:3]))
    assert set(program.state_dict) == set(plain.state_dict())


# -------------------------------------------------------------------------------------- where setwise is not installed
WITHOUT_SETWISE = """
    import sys, torch
    sys.modules["setwise"] = None  # importing it fails
    from timm.models.vision_transformer import VisionTransformer
    whole = torch.load("whole.pt", weights_only=False)
    fresh = VisionTransformer(img_size=8, patch_size=4, embed_dim=12, depth=3, num_heads=2, num_classes=5)
    fresh.load_state_dict(torch.load("state.pt", weights_only=True), strict=True)
    images, expected = torch.load("expected.pt", weights_only=True)
    for model in (whole, fresh):
        assert torch.equal(model.eval()(images), expected)
    assert not [name for name in sys.modules if name.startswith("setwise.")]
"""


def test_what_is_left_after_remove_loads_where_setwise_is_not_installed(tmp_path):
    model = inserted("timm, V2", 0.5)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loss_of(model).backward()
    optimizer.step()
    expected = model.eval()(IMAGES)
    remove(model)
    torch.save(model, tmp_path / "whole.pt")
    torch.save(model.state_dict(), tmp_path / "state.pt")
    torch.save((IMAGES, expected.detach()), tmp_path / "expected.pt")
    command = [sys.executable, "-c", textwrap.dedent(WITHOUT_SETWISE)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ----------------------------------------------------------------------------------------------------------- learning
def accuracy_on_digits(relation):
    """Of a small ViT after ten epochs on the first 1200 of scikit-learn's 8x8 digits, on the other 597."""
    digits = load_digits()
    image = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    target = torch.tensor(digits.target)
    model = tiny.vit(in_chans=1, embed_dim=32, num_heads=4, depth=2, num_classes=10)
    nn.init.normal_(model.pos_embed, std=0.3)  # so few steps are not enough to grow the usual 0.02
    if relation:
        insert(model, "batchformer-v2", at=[0])
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=190, pct_start=0.2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        for rows in torch.randperm(1200, generator=generator).split(64):
            logits = model(image[rows])
            loss = nn.functional.cross_entropy(logits, streams.tile(target[rows], like=logits))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return (model.eval()(image[1200:]).argmax(1) == target[1200:]).float().mean()


@pytest.mark.parametrize("relation", [False, True])
def test_a_small_vit_learns_digits_with_and_without_a_relation(relation):
    assert accuracy_on_digits(relation) > 0.85  # 0.91 with and without
