"""Networks that were trained elsewhere: the number of classes, the names and the pool are read from their weights."""

import os
from pathlib import Path

import pytest
import timm
import torch

from setwise.errors import InvalidInput
from setwise.models import PatchConvNet, create_trained
from setwise.nn import attention_pooling, pool_maps

FIXTURES = Path(os.environ.get("SETWISE_FIXTURES", Path(__file__).parents[3] / "shared" / "fixtures")) / "patchconvnet"
STATES = sorted(FIXTURES.glob("*_state.pt"))
SMALL = {"embed_dim": 16, "depth": 1}
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.skipif(not STATES, reason=f"no reference tensors in {FIXTURES}")
def test_an_official_file_has_the_scores_and_the_map_of_the_released_code():
    for path in STATES:
        expected = torch.load(path.with_name(path.name.replace("_state", "_io")), weights_only=True)
        state = torch.load(path, weights_only=True)
        _, queries, dim = state["cls_token"].shape
        depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
        name = "patchconvnet_s60" if queries == 1 else "patchconvnet_s60_multi"
        model = create_trained(name, path, options={"embed_dim": dim, "depth": depth})
        found = pool_maps(model, expected["input"])
        torch.testing.assert_close(found.logits, expected["logits"], rtol=0, atol=1e-5)
        patches = expected["attn"].mean(1)[..., -found.maps[0, ..., :, :].flatten(-2).shape[-1] :]
        torch.testing.assert_close(found.maps.flatten(-2).view(patches.shape), patches, rtol=0, atol=1e-5)


def test_layers_of_single_classes_count_as_classes_whatever_stands_before_their_names(tmp_path):
    model = PatchConvNet(**SMALL, num_classes=6, per_class=True).eval()
    state = model.state_dict()
    weight, bias = state.pop("head.weight"), state.pop("head.bias")
    for k in range(6):
        state[f"head.{k}.weight"], state[f"head.{k}.bias"] = weight[k : k + 1], bias[k, None]
    torch.save({"model": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "w.pth")
    read = create_trained("patchconvnet_s60_multi", tmp_path / "w.pth", options=SMALL)
    torch.testing.assert_close(read(IMAGES), model(IMAGES))


def test_a_pool_that_was_put_in_is_put_in_again_with_its_queries_and_heads(tmp_path):
    torch.manual_seed(0)
    for queries, heads in ((1, 4), (5, 1)):
        model = timm.create_model("test_resnet", num_classes=5).eval()
        attention_pooling(model, num_queries=queries, num_heads=heads)
        torch.save(model.state_dict(), tmp_path / "w.pt")
        read = create_trained("test_resnet", tmp_path / "w.pt", pool_heads=heads)
        torch.testing.assert_close(read(IMAGES), model(IMAGES))
        assert not read.training


def test_two_classifiers_have_as_many_classes_as_one(tmp_path):
    name = "deit_tiny_distilled_patch16_224"
    options = {"embed_dim": 16, "depth": 1, "num_heads": 2, "img_size": 32}
    model = timm.create_model(name, num_classes=5, **options).eval()
    torch.save(model.state_dict(), tmp_path / "w.pt")
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(create_trained(name, tmp_path / "w.pt", options=options)(images), model(images))


def test_what_wraps_a_network_is_taken_off_whosever_it_is(tmp_path):
    model = PatchConvNet(**SMALL, num_classes=6).eval()
    torch.save({f"_orig_mod.{name}": value for name, value in model.state_dict().items()}, tmp_path / "w.pt")
    read = create_trained("patchconvnet_s60", tmp_path / "w.pt", options=SMALL)
    torch.testing.assert_close(read(IMAGES), model(IMAGES))


def test_a_file_of_another_network_is_not_loaded_in_part(tmp_path):
    torch.save(PatchConvNet(**SMALL, num_classes=6).state_dict(), tmp_path / "w.pt")
    with pytest.raises(InvalidInput, match=r"not of patchconvnet_s60: of its tensors 13 missing \(blocks\.1\.gamma"):
        create_trained("patchconvnet_s60", tmp_path / "w.pt", options={**SMALL, "depth": 2})
    with pytest.raises(InvalidInput, match=r"of another shape \(stem\.0\.weight"):
        create_trained("patchconvnet_s60", tmp_path / "w.pt", options={**SMALL, "embed_dim": 24})
