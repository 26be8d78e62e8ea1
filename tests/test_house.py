"""The house rules that a machine can check."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import setwise
from setwise.recipes import RECIPES

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "setwise").rglob("*.py"))
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/results/*.md")])


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


def anchors_of(page):
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not link.startswith("https:"):
            path, _, anchor = link.partition("#")
            there = (page.parent / path).resolve() if path else page
            assert there.is_file(), link
            assert not anchor or anchor in anchors_of(there), link


def rows_of(page):
    table = [line for line in (ROOT / page).read_text().splitlines() if line.startswith("| `")]
    return {line.split("`")[1]: line for line in table}


def test_every_recipe_is_listed_with_its_status():
    rows = rows_of("docs/recipes.md")
    assert set(rows) == set(RECIPES)
    for name, row in rows.items():
        assert ("**ran**" in row) == (RECIPES[name].status == "ran"), row
        for ran in RECIPES[name].ran:
            assert ran.result in row
            assert (ROOT / ran.details).is_file()


def test_the_readme_shows_some_recipes_as_the_list_does_and_all_that_ran():
    rows = rows_of("README.md")
    assert rows.items() <= rows_of("docs/recipes.md").items()
    assert rows.keys() >= {name for name, recipe in RECIPES.items() if recipe.status == "ran"}
    assert f"These are {len(rows)} of {len(RECIPES)} recipes" in (ROOT / "README.md").read_text()
