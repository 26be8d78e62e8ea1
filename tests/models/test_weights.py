"""Starting from somebody's weights: every common wrapping, and a sentence for every bad file."""

import argparse
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from setwise.errors import InvalidInput, MissingFile
from setwise.models import CifarResNet, PatchConvNet, load_classifier, load_weights, read_state
from setwise.nn import PerClassLinear


def model(num_classes=4, seed=0):
    torch.manual_seed(seed)
    return CifarResNet(depth=1, width=4, num_classes=num_classes)


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def equal(a, b):
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


WRAPPINGS = {
    "raw": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model": lambda s: {"model": s, "optimizer": {"lr": 0.1}},
    "model_state": lambda s: {"model_state": s},
    "state_dict_ema": lambda s: {"state_dict_ema": s},
    "nested": lambda s: {"state_dict": {"model": s}},
    "DataParallel": lambda s: prefixed("module.", s),
    "ours": lambda s: {**prefixed("backbone.", s), "head.weight": torch.zeros(4, 16), "relation.x": torch.zeros(1)},
    "compiled": lambda s: prefixed("_orig_mod.", s),
    "Lightning": lambda s: {
        "state_dict": {**prefixed("model.backbone.", s), "criterion.weight": torch.zeros(4)},
        "pytorch-lightning_version": "2.6",
    },
    "all at once": lambda s: {"state_dict": prefixed("module._orig_mod.backbone.", s)},
    "two branches": lambda s: {**prefixed("backbone.", s), "model.other": torch.zeros(1)},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_weights_load_from_every_common_wrapping(wrapping, tmp_path):
    trained, fresh = model(seed=1), model(seed=2)
    torch.save(WRAPPINGS[wrapping](trained.state_dict()), tmp_path / "weights.pt")
    report = load_weights(fresh, tmp_path / "weights.pt")
    assert equal(fresh, trained)
    assert set(report.loaded) == set(trained.state_dict())
    assert not report.missing
    assert not report.misshapen


CLASSIFIERS = {
    "timm's": lambda w, b: {"head.weight": w, "head.bias": b},
    "torchvision's, wrapped": lambda w, b: {"state_dict": {"module.fc.weight": w, "module.fc.bias": b}},
    "released per class": lambda w, b: {
        "model": {f"head.{k}.{n}": v for k in range(4) for n, v in (("weight", w[k : k + 1]), ("bias", b[k : k + 1]))}
    },
    "ours": lambda w, b: {"backbone.conv1.weight": torch.zeros(2, 2), "head.weight": w, "head.bias": b},
}


@pytest.mark.parametrize("kind", [nn.Linear, PerClassLinear])
@pytest.mark.parametrize("naming", CLASSIFIERS)
def test_a_classifier_is_found_beside_the_network(kind, naming, tmp_path):
    weight, bias = torch.randn(4, 6), torch.randn(4)
    torch.save(CLASSIFIERS[naming](weight, bias), tmp_path / "weights.pt")
    head = kind(6, 4)
    load_classifier(head, tmp_path / "weights.pt")
    assert torch.equal(head.weight, weight)
    assert torch.equal(head.bias, bias)


def test_a_classifier_of_other_classes_is_refused(tmp_path):
    torch.save({"fc.weight": torch.zeros(5, 6), "fc.bias": torch.zeros(5)}, tmp_path / "weights.pt")
    with pytest.raises(InvalidInput, match=r"needs weight \[4, 6\], bias \[4\], but has fc.weight \[5, 6\], fc.bias"):
        load_classifier(nn.Linear(6, 4), tmp_path / "weights.pt")
    torch.save(model(num_classes=0).state_dict(), tmp_path / "none.pt")
    with pytest.raises(InvalidInput, match=r"but has none. Leave the option out"):
        load_classifier(nn.Linear(6, 4), tmp_path / "none.pt")


@pytest.mark.parametrize("wrapping", ["raw", "DataParallel", "ours"])
def test_safetensors_load_likewise(wrapping, tmp_path):
    trained, fresh = model(seed=1), model(seed=2)
    save_file(WRAPPINGS[wrapping](trained.state_dict()), tmp_path / "weights.safetensors")
    load_weights(fresh, str(tmp_path / "weights.safetensors"))
    assert equal(fresh, trained)


@pytest.mark.parametrize("zipped", [True, False])
def test_both_of_torchs_formats_are_read(zipped, tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "weights.pth", _use_new_zipfile_serialization=zipped)
    assert torch.equal(read_state(tmp_path / "weights.pth")["a"], torch.ones(2))


def test_a_model_that_has_such_names_itself_keeps_them(tmp_path):
    own = nn.Sequential()
    own.add_module("encoder", nn.Linear(3, 3))
    torch.save(own.state_dict(), tmp_path / "weights.pt")
    assert load_weights(own, tmp_path / "weights.pt").loaded == ("encoder.weight", "encoder.bias")


def test_official_names_of_a_patchconvnet_become_ours_also_beside_the_arguments_of_its_training(tmp_path):
    network = PatchConvNet(embed_dim=16, depth=1, num_classes=0)
    official = {f"patch_embed.proj.{2 * k}.0.weight": torch.full_like(w, k) for k, w in enumerate(stem_of(network))}
    official["blocks.0.attn.qkv_pos.0.weight"] = torch.ones(16, 16, 1, 1)
    file = tmp_path / "official.pth"
    torch.save({"model": official, "args": argparse.Namespace(lr=1.0)}, file)
    assert len(load_weights(network, file).loaded) == 5
    assert [float(weight.mean()) for weight in stem_of(network)] == [0, 1, 2, 3]
    assert bool((network.blocks[0].conv1.weight == 1).all())


def stem_of(network):
    return [weight.detach() for name, weight in network.named_parameters() if name.startswith("stem")]


def test_a_misshapen_head_is_reported_and_the_rest_loads(tmp_path):
    trained, fresh = model(10, seed=1), model(4, seed=2)
    head = fresh.fc.weight.detach().clone()
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    report = load_weights(fresh, tmp_path / "weights.pt")
    assert report.misshapen == ("fc.weight", "fc.bias")
    assert not report.missing
    assert not report.unexpected
    assert torch.equal(fresh.fc.weight, head)
    assert torch.equal(fresh.conv1.weight, trained.conv1.weight)
    assert str(report).splitlines() == [f"loaded {len(report.loaded)} tensors", "  misshapen (2): fc.weight, fc.bias"]


def test_what_is_missing_and_unexpected_is_reported(tmp_path):
    torch.save(model(0).state_dict() | {"extra": torch.zeros(1)}, tmp_path / "weights.pt")
    report = load_weights(model(4), tmp_path / "weights.pt")
    assert report.missing == ("fc.weight", "fc.bias")
    assert report.unexpected == ("extra",)


def test_a_long_list_of_names_is_cut_in_the_report(tmp_path):
    torch.save({"conv1.weight": model().conv1.weight.detach()}, tmp_path / "weights.pt")
    report = load_weights(model(), tmp_path / "weights.pt")
    assert len(report.missing) > 8
    assert f"and {len(report.missing) - 8} more" in str(report)


def test_nothing_that_fits_is_an_error_and_changes_nothing(tmp_path):
    fresh, before = model(), model()
    torch.save({"a": torch.zeros(1), "conv1.weight": torch.zeros(7)}, tmp_path / "weights.pt")
    with pytest.raises(InvalidInput, match=r"(?s)Nothing in .*weights\.pt fits this CifarResNet.*misshapen.*conv1"):
        load_weights(fresh, tmp_path / "weights.pt")
    assert equal(fresh, before)


def test_a_missing_file_is_named():
    with pytest.raises(MissingFile, match=r"There is no weights file nowhere\.pt"):
        read_state("nowhere.pt")


class RunsCode:
    """Were it unpickled, a file would appear."""

    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return Path.touch, (self.witness,)


@pytest.mark.parametrize("way", ["torch", "pickle"])
def test_a_pickled_object_is_refused_without_being_executed(way, tmp_path):
    file, witness = tmp_path / "weights.pt", tmp_path / "executed"
    if way == "torch":
        torch.save({"state_dict": model().state_dict(), "object": RunsCode(witness)}, file)
    else:
        file.write_bytes(pickle.dumps(RunsCode(witness), protocol=2))
    with pytest.raises(InvalidInput, match="holds more than tensors, and unpickling it could run code"):
        read_state(file)
    assert not witness.exists()


def truncated(file, share):
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])


@pytest.mark.parametrize("share", [0, 0.02, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["weights.safetensors", "zip.pt", "legacy.pt"])
def test_a_truncated_file_ends_in_a_sentence(kind, share, tmp_path):
    file = tmp_path / kind
    if kind.endswith(".safetensors"):
        save_file(model().state_dict(), file)
    else:
        torch.save(model().state_dict(), file, _use_new_zipfile_serialization=kind == "zip.pt")
    truncated(file, share)
    with pytest.raises(InvalidInput, match=rf"{kind} cannot be read as weights: it is damaged"):
        read_state(file)


@pytest.mark.parametrize("content", ["<!DOCTYPE html><html></html>", "hello world, no weights", "\0" * 100])
@pytest.mark.parametrize("name", ["page.pt", "page.safetensors"])
def test_another_kind_of_file_ends_in_a_sentence(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(InvalidInput, match="cannot be read as weights"):
        read_state(tmp_path / name)


@pytest.mark.parametrize("content", [torch.zeros(3), [torch.zeros(3)], {}, {"epoch": 3}])
def test_a_file_without_named_tensors_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(InvalidInput, match="holds no named tensors"):
        read_state(tmp_path / "weights.pt")


def test_one_query_becomes_one_for_each_class(tmp_path):
    one, many = (PatchConvNet(embed_dim=16, depth=1, num_classes=5, per_class=many) for many in (False, True))
    torch.save(one.state_dict(), tmp_path / "one.pt")
    assert not load_weights(many, tmp_path / "one.pt").misshapen
    assert all(torch.equal(query, one.pool.query[0, 0]) for query in many.pool.query[0])
