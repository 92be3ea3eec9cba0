"""The house: arrows between folders go one way, no module imports itself in a round, files stay short."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("runtime", "dvpd", "export", "benchmarks")  # each may import those before it
MAX_LINES, MAX_FUNCTION_LINES = 500, 80

# Longer than that, each with its reason.
LONG_FILES = {
    "dvpd/training/trainer.py": "one loop, read from top to bottom",
    "export/translate.py": "a function for each operator",
    "export/verify.py": "one check after another, and their report",
    "benchmarks/guard.py": "each pinned figure: how it is measured, and how it is compared",
    "benchmarks/quality.py": "one result shown as Markdown, JSON, a page and a picture",
    "benchmarks/rtf.py": "the options of the command that users know best",
}
LONG_FUNCTIONS = {
    "dvpd.runtime.cli:build_parser": "options, a line each",
    "dvpd.evaluate:build_parser": "options, a line each",
    "dvpd.data.chain:run_chain": "the links of the paper's chain in their order",
    "dvpd.training.trainer:__init__": "everything that a training holds",
    "dvpd.export.verify:verify_engine": "one check after another",
}


def module_of(path: Path) -> str:
    """Name under which a file of the checkout is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] != "dvpd":
        parts = ("dvpd", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    module_of(path): path
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "__pycache__" not in path.parts
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def imported(name: str) -> set[str]:
    """Modules of the project that a module imports, at its top and in its functions.

    What is imported for type checking alone does not count: it never runs.
    """
    package = name if FILES[name].name == "__init__.py" else name.rpartition(".")[0]
    for_types = {
        inner
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(TREES[name]):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = parts[: len(parts) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                found.add(inner if inner in FILES else source)
    return {module for module in found if module in FILES} - {name}


IMPORTS = {name: imported(name) for name in FILES}


def folder_of(name: str) -> str:
    """Top folder of a module."""
    return FILES[name].relative_to(ROOT).parts[0]


def test_arrows_between_folders_go_one_way():
    back = [
        f"{FILES[name].relative_to(ROOT)} imports {other}"
        for name in FILES
        for other in sorted(IMPORTS[name])
        if FOLDERS.index(folder_of(other)) > FOLDERS.index(folder_of(name))
    ]
    assert back == []


def rounds() -> list[list[str]]:
    """Groups of modules that import each other (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(IMPORTS[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in sorted(FILES):
        if name not in index:
            visit(name)
    return found


def test_no_modules_import_each_other():
    assert rounds() == []


def test_files_are_short_or_say_why():
    long = {
        path.relative_to(ROOT).as_posix(): n
        for path in FILES.values()
        if (n := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    }
    assert {name: n for name, n in long.items() if name not in LONG_FILES} == {}
    assert sorted(set(LONG_FILES) - set(long)) == []  # an exception that is none any more


def test_functions_are_short_or_say_why():
    long = {}
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long[f"{name}:{node.name}"] = lines
    assert {name: n for name, n in long.items() if name not in LONG_FUNCTIONS} == {}
    assert sorted(set(LONG_FUNCTIONS) - set(long)) == []


@pytest.mark.parametrize("folder", ["export", "benchmarks"])
def test_no_script_folder_hides_an_installed_package(folder):
    """A script's own folder comes first on sys.path."""
    taken = {"onnx", "tensorrt", "numpy", "torch", "openvino", "profile", "types", "queue"}
    names = {path.stem for path in (ROOT / folder).iterdir()}
    assert names & taken == set()
