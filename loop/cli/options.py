"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

File = Annotated[Path, typer.Option("--file", "-f", help="The campaign file.")]
CAMPAIGN = Path("goldloop.toml")
Student = Annotated[
    str,
    typer.Option(help="'encoder': fine-tuned, as in a round; 'frozen': a quick one, in seconds."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
