"""timm's own tests accept PatchConvNet, and would not accept a network that breaks their rules."""

import re

import pytest
import timm
import timm_suite
from packaging.version import Version

SMALL = {"depth": 2, "embed_dim": 32}
EXPECTED = {
    "test_model_forward",
    "test_model_backward",
    "test_model_forward_torchscript",
    "test_model_forward_features",
    "test_model_forward_fx",
    "test_model_backward_fx",
}
"""Of every version of timm that setwise supports."""
NEWER = {
    "test_model_default_cfgs",
    "test_model_forward_fx_torchscript",
    "test_model_forward_intermediates",
    "test_model_forward_intermediates_features",
    "test_prune_intermediate_layers_contract",
}
"""What 1.0.31 has beside them: none may fall out of the selection unnoticed."""
LIMIT = 240
"""Seconds for the tests of one network, which need ten."""


@pytest.fixture(scope="module")
def tests(tmp_path_factory):
    try:
        return timm_suite.fetch(tmp_path_factory.mktemp("timm"))
    except timm_suite.Unavailable as reason:
        pytest.skip(str(reason))


def test_small_patchconvnets_pass_timms_own_tests(tests):
    passed = timm_suite.run(tests, ["patchconvnet_s60", "patchconvnet_s60_multi"], limit=LIMIT, **SMALL)
    expected = EXPECTED | NEWER if Version(timm.__version__) >= Version("1.0.31") else EXPECTED
    for name in ("patchconvnet_s60", "patchconvnet_s60_multi"):
        assert {test.partition("[")[0] for test in passed if re.search(rf"\b{name}\b", test)} >= expected
    for tag in timm.list_models("patchconvnet_s60*", include_tags=True):
        assert any(test.startswith("test_model_default_cfgs") and tag in test for test in passed), tag


def test_a_network_with_too_few_levels_of_features_does_not_pass(tests):
    with pytest.raises(timm_suite.Failure, match=r"FAILED .*::test_model_forward_features"):
        timm_suite.run(tests, ["patchconvnet_s60"], limit=LIMIT, **{**SMALL, "depth": 1})


def test_a_network_that_timm_does_not_know_does_not_pass(tmp_path):
    with pytest.raises(timm_suite.Failure, match="timm knows no patchconvnet_s61"):
        timm_suite.run(tmp_path, ["patchconvnet_s61"])


def test_without_a_package_index_the_reason_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        timm_suite.Unavailable, match=r"The sources of timm .* are not to be had from a package index: "
    ):
        timm_suite.fetch(tmp_path)
    with pytest.raises(timm_suite.Unavailable, match=r"There is no tests/test_models.py in"):
        timm_suite.fetch(tmp_path, source=tmp_path)
