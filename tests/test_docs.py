"""The README and the pages in docs/: their links lead somewhere, their commands exist."""

import re
from pathlib import Path

import pytest
import typer

from loop.cli.__main__ import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def anchors(page):
    """The names that a page's headings can be linked by, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page):
    commands = typer.main.get_command(app).commands
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    lines = re.findall(r"^(?:\.venv/bin/)?goldloop .*$", blocks, re.MULTILINE)
    lines += re.findall(r"`(?:\.venv/bin/)?(goldloop [^`\n]*)`", text)
    for line in lines:
        _, name, *words = re.sub(r"\s#.*", "", line).split()
        if name.startswith("--") or name == "COMMAND":
            continue
        assert name in commands, line
        command = commands[name]
        if words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words[0]]
        options = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
        for word in words:
            assert not word.startswith("--") or word in options, (word, line)
