"""The campaign file and other options that several commands share."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

CAMPAIGN = Path("goldloop.toml")
"""The campaign file of a command that names none."""
COMMAND = re.compile(r"`goldloop (?!(?:bench|demo|label-studio)\b)([a-z][^`]*)`")
"""A command to type that takes ``--file``."""

_flag = ""


def name_file(file: Path) -> Path:
    """From now on, commands that people are told to type name this campaign file."""
    global _flag
    _flag = "" if file == CAMPAIGN else f" --file {shlex.quote(str(file))}"
    return file


def for_file(line: str) -> str:
    """The line, with ``--file`` in each command where the campaign file is another than usual."""

    def named(found: re.Match[str]) -> str:
        has = not _flag or re.search(r" (--file|-f)\b", found[1])
        return found[0] if has else f"`goldloop {found[1]}{_flag}`"

    return COMMAND.sub(named, line)


File = Annotated[Path, typer.Option("--file", "-f", help="The campaign file.", callback=name_file)]
Student = Annotated[
    str,
    typer.Option(help="'encoder': fine-tuned, as in a round; 'frozen': a quick one, in seconds."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
