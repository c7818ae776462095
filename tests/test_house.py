"""The rules of the house that a reader of the code relies on. The layers are import-linter's: see pyproject.toml."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "resnet").rglob("*.py"))
ENTRIES = {"train", "evaluate", "export", "rank", "__main__"}  # they refuse what they can before TensorFlow is imported
# Words that say nothing to a stranger; CONTRIBUTING.md has those that are used instead.
PRIVATE = {
    "told",
    "said",
    "found",
    "made",
    "kept",
    "came",
    "asked",
    "seen",
    "given",
    "ended",
    "opened",
    "begun",
    "standing",
    "lent",
    "gone",
}
FUNCTION_LINES, LOOP_LINES, FILE_LINES, PACKAGE_FILES = 60, 100, 300, 16


def name_of(path):
    return str(path.relative_to(ROOT))


def identifiers(tree):
    """(line, name) of every name that a file defines: modules apart, variables and arguments too."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id if isinstance(node, ast.Name) else node.attr


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_file_is_short_plain_and_imports_at_its_top(path):
    text = path.read_text()
    tree = ast.parse(text)
    assert len(text.splitlines()) <= FILE_LINES
    assert path.stem not in PRIVATE
    private = [f"{line}: {name}" for line, name in identifiers(tree) if set(name.lower().split("_")) & PRIVATE]
    assert not private
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        most = LOOP_LINES if (path.stem, function.name) == ("loop", "train") else FUNCTION_LINES
        assert function.end_lineno - function.lineno < most, f"{function.name} is too long"
        if path.stem not in ENTRIES and path.stem != "__init__":
            inside = [node for node in ast.walk(function) if isinstance(node, ast.ImportFrom)]
            hidden = [node.lineno for node in inside if str(node.module).split(".")[0] == "resnet"]
            assert not hidden, f"{function.name} imports within it, line {hidden}"


def test_packages_are_small():
    for folder in {path.parent for path in SOURCES}:
        assert len({*folder.glob("*.py")} - {folder / "__init__.py"}) <= PACKAGE_FILES, folder


def test_the_loop_has_no_functions_inside():
    tree = ast.parse((ROOT / "resnet" / "training" / "loop.py").read_text())
    (train,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "train"]
    assert not [
        node for node in ast.walk(train) if isinstance(node, (ast.FunctionDef, ast.Lambda)) and node is not train
    ]


def test_the_readme_is_short_and_every_text_names_only_files_that_exist():
    assert len((ROOT / "README.md").read_text().splitlines()) < 200
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for word in re.split(r"[\s`()|]+", page.read_text()):
            top, _, rest = word.partition("/")
            if (
                top in {"conf", "experiments", "resnet", "launch", "tests", "docs"}
                and rest
                and "<" not in word
                and "*" not in word
            ):
                assert (ROOT / word.partition("::")[0].rstrip(".,;:")).exists(), f"{page.name}: {word}"


def test_no_path_of_a_machine_is_tracked():
    words = ["git", "grep", "-nIE", "/" + "(work|root|home/[a-z]+)/"]
    lines = subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    containers = ("launch/docker/", "launch/k8s/")  # whose paths are those of no machine
    assert not [line for line in lines if not line.startswith(("tests/", *containers))]  # tests make some up
