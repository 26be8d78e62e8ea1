"""The house rules that a machine can check."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import setwise
from setwise.recipes import RECIPES

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "setwise").rglob("*.py"))


def test_imports_follow_the_layers():
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src" / "setwise")))
def test_files_and_functions_keep_to_a_page(path):
    text = path.read_text()
    assert text.count("\n") <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert _lines_without_docstring(node) <= 60, node.name
    assert path.stem not in ("utils", "misc", "helpers", "common", "base")


def _lines_without_docstring(node):
    documented = ast.get_docstring(node, clean=False)
    return node.end_lineno - node.lineno + 1 - (documented.count("\n") + 1 if documented else 0)


def test_importing_the_package_imports_nothing_heavy():
    code = "import setwise.cli, sys; sys.exit(bool({'torch', 'numpy', 'tyro'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_exist():
    for path in SOURCES:
        name = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
        if name.endswith("__main__"):
            continue
        module = __import__(name, fromlist=["__all__"])
        assert all(hasattr(module, public) for public in module.__all__), name


def test_types_are_published():
    assert (Path(setwise.__file__).parent / "py.typed").is_file()


def test_the_readme_lists_every_recipe_with_its_status():
    table = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| `")]
    rows = {line.split("`")[1]: line for line in table}
    assert set(rows) == set(RECIPES)
    for name, row in rows.items():
        assert ("**ran**" in row) == (RECIPES[name].status == "ran"), row
        for ran in RECIPES[name].ran:
            assert ran.result in row
            assert (ROOT / ran.details).is_file()
