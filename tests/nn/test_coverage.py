"""A sample of ``benchmarks/coverage.py``: models of every shape that insert() meets, with all that is checked there."""

import sys
from functools import partial
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL = {
    "test_resnet": {},
    "test_vit": {},
    "deit_tiny_distilled_patch16_224": {"depth": 3},
    "crossvit_tiny_240": {"img_size": 96, "img_scale": (1.0, 64 / 96)},
    "tnt_s_legacy_patch16_224": {"depth": 3},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 2, 1), "embed_dim": 24},
    "volo_d1_224": {},
    "levit_128s": {},
    "mvitv2_tiny": {},
}
"""timm: tokens, maps with channels last and first, two classifiers, two branches, layers that return tuples."""
ELSEWHERE = (
    ("torchvision", "googlenet"),
    ("transformers", "BertForSequenceClassification"),
    ("transformers", "DetrForObjectDetection"),
)


@pytest.fixture(scope="module")
def benchmark():
    """The modules of the benchmark: its check, and its models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import coverage_check
        import coverage_models

        import setwise.models  # noqa: F401 -- models of ours in timm's registry are none of timm's files

        yield coverage_check, coverage_models
    for name in ("coverage_check", "coverage_models"):
        del sys.modules[name]


def holds(results):
    return {name: result.problems for name, result in results.items()} == {name: [] for name in results}


@pytest.mark.parametrize("name", SMALL)
def test_relations_go_into_models_of_timm_and_all_that_is_promised_holds(benchmark, name):
    import timm

    check, models = benchmark
    size = {} if name in ("test_resnet", "crossvit_tiny_240") else {"img_size": 64}
    build = partial(timm.create_model, name, num_classes=models.CLASSES, **SMALL[name] | size)
    case = check.Case("timm", "", name, build, partial(models._images, 64, 3), example=True)
    results = check.check(case)
    assert set(results) == {"batchformer", "batchformer-v2"}
    assert holds(results), results


@pytest.mark.parametrize(("library", "name"), ELSEWHERE)
def test_relations_go_into_models_of_torchvision_and_transformers(benchmark, library, name):
    check, models = benchmark
    case = next(case for case in models.cases() if (case.library, case.name) == (library, name))
    results = check.check(case)
    assert holds(results), results


def test_the_check_sees_a_relation_that_learns_nothing_and_one_that_changes_the_plain_stream(benchmark, monkeypatch):
    from setwise.nn import BatchFormer

    check, models = benchmark
    case = next(case for case in models.cases() if case.name == "test_vit")
    for wrong, said in (
        (lambda self, x, mask=None: x, "does not change with another sample"),
        (lambda self, x, mask=None: x.add_(1), "the plain stream differs"),
    ):
        monkeypatch.setattr(BatchFormer, "_relate", wrong)
        problems = check.check(case)["batchformer"].problems
        assert any(said in problem for problem in problems), problems
