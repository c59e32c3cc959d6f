"""The lock files: everything that pyproject.toml asks for, in one version, with hashes."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def locked(name):
    """Package -> the versions that a lock file names for the Pythons and machines it is for."""
    versions = {}
    for entry in re.split(r"\n(?=\w)", (ROOT / name).read_text()):
        package, version = re.match(r"([\w.-]+)==(\S+)", entry).groups()
        assert "--hash=sha256:" in entry, entry
        versions.setdefault(package.lower(), []).append(version)
    return versions


def asked(*extras):
    lines = PROJECT["dependencies"] + [line for extra in extras for line in EXTRAS[extra]]
    wanted = [Requirement(line) for line in lines]
    return [r for r in wanted if r.name not in ("goldloop", "torch")]  # torch: see the Makefile


@pytest.mark.parametrize(
    ("lock", "extras"),
    [
        ("requirements.lock", ("datasets", "excel", "postgres", "serve")),
        (
            "requirements-dev.lock",
            ("datasets", "excel", "mlflow", "postgres", "serve", "wandb", "dev", "bench"),
        ),
    ],
)
def test_a_lock_holds_a_version_that_is_allowed_for_each_dependency(lock, extras):
    versions = locked(lock)
    for requirement in asked(*extras):
        found = versions.get(requirement.name.lower(), [])
        assert found, f"{requirement.name} is not in {lock}; run `make lock`"
        assert all(version in requirement.specifier for version in found), (requirement, found)
    assert "torch" not in versions
    assert not [name for name in versions if name.startswith(("nvidia", "cuda"))]


def test_both_locks_agree():
    core, dev = locked("requirements.lock"), locked("requirements-dev.lock")
    assert core.keys() < dev.keys()
    assert {name: dev[name] for name in core} == core


def test_no_lock_names_an_index_or_a_path():
    for lock in (*ROOT.glob("*.lock"), *ROOT.rglob("connectors/**/*.lock")):
        lines = lock.read_text().splitlines()
        assert not [line for line in lines if re.search(r"https?:|file:|^-|@ ", line)], lock
