"""What every command shares is used by every command: endings, messages, progress, atomic files."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for folder in ("runtime", "dvpd", "export", "benchmarks", "examples")
    for path in sorted((ROOT / folder).rglob("*.py"))
}

# Who may, each with its reason.
STDERR = {
    "runtime/command.py": "the one place for messages",
    "runtime/progress.py": "the one place for progress",
    "runtime/cli_stream.py": "the JSON object: stdout has the samples",
    "dvpd/training/log.py": "records of a training, which tools read",
    "dvpd/lease/rows.py": "a row that no disk takes: stderr is what is left of it",
}
RENAMES = {
    "runtime/files.py": "the one place for atomic files",
    "export/build.py": "a whole folder, whose graphs are checked before it gets its name",
    "export/hub_folder.py": "a whole folder",
    "runtime/hub.py": "a whole folder",
    "dvpd/lease/parts.py": "a whole folder",
    "dvpd/lease/publish.py": "a whole folder",
    "dvpd/data/make_set.py": "a whole folder",
}
COMMANDS = sorted(
    name
    for name, tree in FILES.items()
    if any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree.body)
)


def calls(tree: ast.AST) -> list[str]:
    """Every call and raised exception as text."""
    return [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, (ast.Call, ast.Raise))]


def users(found, allowed: dict[str, str]) -> tuple[list[str], list[str]]:
    """Files that do it without permission, and permissions that nobody needs any more."""
    files = {name for name, tree in FILES.items() if any(map(found, calls(tree)))}
    return sorted(files - set(allowed)), sorted(set(allowed) - files)


def test_messages_go_through_command():
    def writes(text: str) -> bool:
        return "file=sys.stderr" in text or text.startswith("sys.stderr.write(")

    assert users(writes, STDERR) == ([], [])


def test_only_command_ends_a_process():
    def ends(text: str) -> bool:
        return text.startswith(("sys.exit(", "exit(", "raise SystemExit"))

    assert users(ends, {"runtime/command.py": "leave"}) == ([], [])


def test_atomic_files_go_through_files():
    def renames(text: str) -> bool:
        head = text.split("(")[0]
        return head in ("os.replace", "os.rename") or head.endswith((".rename", "mkstemp"))

    assert users(renames, RENAMES) == ([], [])


def test_progress_goes_through_progress():
    for name, tree in FILES.items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                text = ast.unparse(node)
                assert "tqdm" not in text, name
                assert "rich.progress" not in text, name
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if name != "runtime/progress.py":
                    assert not node.value.startswith("\r"), f"{name}: a line redrawn by hand"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_begins_and_ends_in_command(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "command.leave(main())" in text or "process(" in text


def test_every_public_name_can_be_imported():
    import dvpd.runtime

    assert [name for name in dvpd.runtime.__all__ if not hasattr(dvpd.runtime, name)] == []
