"""Commands that people are told to type can be typed as they stand."""

from pathlib import Path

import pytest
from typer.main import get_command

from loop.cli import __main__ as cli
from loop.cli.options import CAMPAIGN, for_file, name_file


@pytest.fixture(autouse=True)
def _usual_file():
    name_file(CAMPAIGN)
    yield
    name_file(CAMPAIGN)


def test_commands_to_type_name_a_campaign_file_that_is_not_the_usual_one():
    line = "Next: `goldloop export labels.csv`, `goldloop demo`, `goldloop run -f a.toml`."
    assert for_file(line) == line
    name_file(Path("my films/goldloop.toml"))
    assert for_file(line) == (
        "Next: `goldloop export labels.csv --file 'my films/goldloop.toml'`, `goldloop demo`,"
        " `goldloop run -f a.toml`."
    )


def test_the_commands_without_a_campaign_file_are_known():
    commands = get_command(cli.app).commands
    files = {name: any("--file" in p.opts for p in one.params) for name, one in commands.items()}
    name_file(Path("a.toml"))
    assert {name: "--file" in for_file(f"`goldloop {name}`") for name in files} == files
