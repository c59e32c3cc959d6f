"""Imports point one way: cli -> everything, round -> strategies and ports, connectors -> ports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "strategies": {"strategies"},
    "connectors": {"connectors", "loop.ports", "loop.errors", "loop.files", "loop.items"},
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(name):
    return name.split(".")[0] in ("loop", "connectors", "strategies")


@pytest.mark.parametrize("room", ["strategies", "connectors"])
def test_rooms_import_only_what_they_may(room):
    for path in (ROOT / room).glob("*.py"):
        for name in filter(ours, imports(path)):
            if name in ("loop", "connectors", "strategies"):
                continue
            assert any(name == a or name.startswith(f"{a}.") for a in ALLOWED[room]), (path, name)


def test_only_the_command_line_builds_connectors():
    for path in (ROOT / "loop").rglob("*.py"):
        if path.name not in ("cli.py", "parts.py"):
            assert not [n for n in imports(path) if n.split(".")[0] == "connectors"], path


def test_only_the_command_line_uses_what_builds_them():
    for path in (ROOT / "loop").rglob("*.py"):
        if path.name != "cli.py":
            assert not {"loop.parts", "loop.cli"} & set(imports(path)), path


def test_help_needs_no_heavy_library():
    code = (
        "import sys; import loop.cli, strategies, connectors;"
        "heavy = {'torch', 'transformers', 'faiss', 'sklearn', 'pandas', 'label_studio_sdk',"
        " 'sqlmodel', 'matplotlib', 'pyarrow'} & set(sys.modules);"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
