"""timm's own tests of a model, run on ours: the acceptance test of everything that setwise registers with timm.

    python tests/timm_suite.py                                      all PatchConvNets, S60 and S60_multi at full depth
    python tests/timm_suite.py patchconvnet_b60                     one of them, at full depth
    python tests/timm_suite.py patchconvnet_b60 --options depth=2   with other arguments of the model

timm's wheels have no tests, so the source distribution of the installed version is fetched from the package index, or
taken from ``--source``. Only its tests are unpacked: what they test is the installed timm. A pytest plugin, the second
half of this file, imports ``setwise.models``, so that timm lists our models, and keeps the tests of the chosen ones;
what downloads weights is left out.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
import yaml
from timm.models import _registry

import setwise.models  # registers what is tested

__all__ = ["Failure", "Unavailable", "fetch", "run"]

FULL = ("patchconvnet_s60", "patchconvnet_s60_multi")
"""Tested at their own depth when nothing is named."""
SHALLOW = {"depth": 2}
"""The others share their code; with the stem these are the three levels of features that timm wants at least."""
LIKE = "convmixer"
"""timm's tests of intermediate features go by its modules' names; these networks count as one of this module's."""
NEEDS_WEIGHTS = "pretrained"
"""In the names of the tests that download."""


class Unavailable(Exception):
    """timm's tests cannot be had."""


class Failure(Exception):
    """Some of timm's tests fail."""


def fetch(folder: Path, source: Path | None = None) -> Path:
    """Put the tests of the installed timm into ``folder``.

    Args:
        folder: empty.
        source: an unpacked source distribution; None: from the package index.

    Raises:
        Unavailable: if they are not there.
    """
    wanted = ("tests", "pyproject.toml")  # the latter has the markers
    if source is not None:
        if not (source / "tests" / "test_models.py").is_file():
            raise Unavailable(f"There is no tests/test_models.py in {source}; --source takes timm's unpacked sources.")
        shutil.copytree(source / "tests", folder / "tests")
        shutil.copy(source / "pyproject.toml", folder)
        return folder
    pip = [sys.executable, "-m", "pip", "download", f"timm=={timm.__version__}", "--no-binary", ":all:", "--no-deps"]
    options = ["--quiet", "--retries", "0", "--disable-pip-version-check", "--dest", str(folder)]
    done = subprocess.run([*pip, *options], capture_output=True, text=True, check=False)
    archives = list(folder.glob("timm-*.tar.gz"))
    if done.returncode or not archives:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["pip wrote no archive"]
        raise Unavailable(f"The sources of timm {timm.__version__} are not to be had from a package index: {said[-1]}")
    with tarfile.open(archives[0]) as archive:
        top = archives[0].name.removesuffix(".tar.gz")
        members = [m for m in archive.getmembers() if m.name.startswith(tuple(f"{top}/{part}" for part in wanted))]
        archive.extractall(folder, members=members, filter="data")
    return folder / top


def run(tests: Path, names: Sequence[str], *, limit: float | None = None, **options: object) -> list[str]:
    """Run timm's tests of some models in one process of its own.

    Args:
        tests: what :func:`fetch` returned.
        names: of the models.
        limit: seconds until it is stopped.
        options: arguments of the models.

    Returns:
        The tests that passed, by name.

    Raises:
        Failure: if timm knows no such model, or a test fails or is skipped; with what pytest printed.
    """
    if unknown := [name for name in names if not timm.is_model(name)]:
        raise Failure(f"timm knows no {', '.join(unknown)}.")
    written = tests / "passed.xml"
    chosen = [f"--model={name}" for name in names] + [f"--model-option={key}={value}" for key, value in options.items()]
    pytest_ = [sys.executable, "-m", "pytest", "tests/test_models.py", "-p", "timm_suite", "-p", "no:cacheprovider"]
    report = ["-q", "-x", "--tb=short", f"--junit-xml={written}", "-W", "ignore"]
    paths = [Path(__file__).parent, Path(setwise.__file__).parents[1]]  # the very setwise that is imported here
    path = os.pathsep.join([*map(str, paths), *filter(None, [os.environ.get("PYTHONPATH")])])
    threads = str(torch.get_num_threads())
    environment = os.environ | {"PYTHONPATH": path, "PYTEST_ADDOPTS": "", "OMP_NUM_THREADS": threads}
    command = [*pytest_, *report, *chosen]
    done = subprocess.run(
        command, cwd=tests, env=environment, capture_output=True, text=True, check=False, timeout=limit
    )
    if done.returncode:
        raise Failure(f"{done.stdout}{done.stderr}")
    cases = list(ElementTree.parse(written).iter("testcase"))
    if skipped := [case.get("name") for case in cases if case.find("skipped") is not None]:
        raise Failure(f"timm's tests skip {', '.join(map(str, skipped))}.")
    return [str(case.get("name")) for case in cases]


# From here on this file is the plugin.


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--model", action="append", default=[], help="a model to test")
    parser.addoption("--model-option", action="append", default=[], help="an argument of the models, key=value")


def pytest_configure(config: pytest.Config) -> None:
    """Before timm's tests are imported, for they list the models then."""
    names, options = config.getoption("--model"), read_options(config.getoption("--model-option"))
    _registry._module_to_models[LIKE].update(names)
    for name in names:
        _registry._model_entrypoints[name] = partial(_registry._model_entrypoints[name], **options)
    every = timm.list_models

    def chosen(*args: object, **kwargs: object) -> list[str]:
        return [listed for listed in every(*args, **kwargs) if listed.partition(".")[0] in names]

    timm.list_models = chosen  # collecting the tests of more than a thousand other models takes ten seconds


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    names = config.getoption("--model")
    kept = [item for item in items if _model_of(item) in names and NEEDS_WEIGHTS not in item.name.partition("[")[0]]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def _model_of(item: pytest.Item) -> str | None:
    """The model that a test is about, without its tag."""
    arguments = getattr(item, "callspec", None)
    return str(arguments.params.get("model_name")).partition(".")[0] if arguments else None


def read_options(texts: Sequence[str]) -> dict[str, object]:
    """``key=value`` with values as in YAML."""
    return {key: yaml.safe_load(value) for key, _, value in (text.partition("=") for text in texts)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="models; by default all PatchConvNets")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="arguments of the named models")
    parser.add_argument("--source", type=Path, metavar="DIR", help="unpacked source distribution of timm")
    arguments = parser.parse_args(argv)
    names = arguments.names or timm.list_models("patchconvnet_*")
    status = 0
    with tempfile.TemporaryDirectory() as folder:
        try:
            tests = fetch(Path(folder), arguments.source)
        except Unavailable as error:
            parser.error(str(error))
        for name in names:
            given = read_options(arguments.options)
            options = given if arguments.names or given or name in FULL else SHALLOW
            label = " ".join([name, *(f"{key}={value}" for key, value in options.items())])
            try:
                passed = run(tests, [name], **options)
            except Failure as failure:
                print(f"{label}: FAILED\n{failure}", flush=True)
                status = 1
                continue
            counted = Counter(test.partition("[")[0] for test in passed)
            print(f"{label}: {len(passed)} passed with timm {timm.__version__}", flush=True)
            print(*(f"  {test} x {n}" if n > 1 else f"  {test}" for test, n in counted.items()), sep="\n", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
