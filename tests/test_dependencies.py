"""What is imported is declared, what is declared is imported, and docs/dependencies.md says why."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OURS = {"loop", "connectors", "strategies"}


def name_of(requirement):
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


CORE = {name_of(r) for r in PROJECT["dependencies"]}
OPTIONAL = {
    name_of(r)
    for extra, requirements in PROJECT["optional-dependencies"].items()
    if extra != "dev"
    for r in requirements
}


def imported_modules():
    for room in OURS:
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    yield from (alias.name for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    yield node.module


def imported_distributions():
    """The distribution of every foreign import; the module's own name where it is not installed."""
    tops = {name.split(".")[0] for name in imported_modules()} - OURS - sys.stdlib_module_names
    held = packages_distributions()
    return {held.get(top, [top])[0].lower().replace("_", "-") for top in tops}


def test_every_import_is_declared():
    through_others = {  # parts of the interface of what is declared
        "huggingface-hub": "transformers",
        "markupsafe": "jinja2",
        "mlflow": "mlflow-skinny",
        "sqlalchemy": "sqlmodel",
        "starlette": "fastapi",
        "tokenizers": "transformers",
    }
    found = {through_others.get(name, name) for name in imported_distributions()}
    assert found <= CORE | OPTIONAL


def test_every_dependency_is_imported():
    assert imported_distributions() >= CORE


def test_the_documentation_has_a_row_for_every_dependency():
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.-]+)` \|", text, re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert set(rows) == CORE
