"""What the READMEs say of the code's structure is true."""

import ast
import re
from functools import cache

import pytest
from test_architecture import FOLDERS, MAX_FILE_LINES, MAX_FUNCTION_LINES, PACKAGE, REPOSITORY, sources


def test_the_map_lists_every_folder_in_the_order_of_the_imports():
    text = (PACKAGE / "README.md").read_text()
    assert re.findall(r"^\| \[(\w+)\]\((\w+)/README\.md\) \|", text, re.MULTILINE) == [(name, name) for name in FOLDERS]


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_page_of_a_folder_names_every_module_in_it_and_no_other(folder):
    text = (PACKAGE / folder / "README.md").read_text()
    modules = {path.name for path in (PACKAGE / folder).glob("*.py")} - {"__init__.py"}
    named = set(re.findall(r"`(?:\w+/)*(\w+\.py)`", text))
    assert modules - named == set()
    assert named - names_of_modules() == set()


@cache
def names_of_modules():
    """Of the whole repository. Its hidden folders, such as .venv, have ten times as many files."""
    folders = [path for path in REPOSITORY.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return {path.name for folder in folders for path in folder.rglob("*.py")}


@pytest.mark.parametrize(
    "path",
    [
        *REPOSITORY.glob("*.md"),
        *REPOSITORY.glob("*/README.md"),
        *REPOSITORY.glob("tests/*/README.md"),
        *PACKAGE.rglob("*.md"),
    ],
)
def test_every_link_to_a_file_leads_to_one(path):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("page", ["cluster/README.md", "pipeline/sandbox/README.md"])
def test_each_attack_is_shown_by_a_test_or_a_command(page):
    """The tables with such a column, in which the last cell names what anybody can run."""
    tables = [each for each in (REPOSITORY / page).read_text().split("\n\n") if "| shown by, in `tests/` |" in each]
    cells = [line.rstrip("| ").rpartition(" | ")[2] for each in tables for line in each.strip().splitlines()[2:]]
    assert len(cells) >= 9
    for cell in cells:
        name = cell.strip("`")
        assert (REPOSITORY / "tests" / name).is_file() or name.startswith("python -m "), cell


def test_the_first_page_is_read_in_three_screens():
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 150


def test_no_file_and_no_function_is_too_long():
    for path in (path for folder in ("pipeline", "jobs", "benchmarks") for path in sources(REPOSITORY / folder)):
        text = path.read_text()
        assert len(text.splitlines()) <= MAX_FILE_LINES, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, f"{path}: {node.name}"
