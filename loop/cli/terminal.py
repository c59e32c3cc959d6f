"""What commands print: tables on stdout; news and progress bars on stderr."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from loop.operate.log_file import said

if TYPE_CHECKING:
    from rich.console import RenderableType

    from loop.ports import Progress
    from loop.report.contents import ReportView


LONG_WORD = 300
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def say(line: str) -> None:
    """One line of news, on stderr; of a word of hundreds of letters only the beginning and end.

    Characters that would steer the terminal are spelled out: the line may quote anybody's text.
    """
    line = CONTROL.sub(lambda found: repr(found[0])[1:-1], line)
    whole = re.compile(rf"\S{{{LONG_WORD},}}")
    said.log(logging.ERROR if line.startswith("Error: ") else logging.INFO, "%s", line)
    typer.echo(whole.sub(lambda word: f"{word[0][:100]}…{word[0][-2:]}", line), err=True)


def print_rounds(view: ReportView) -> None:
    """The campaign's verdict but for what comes next, its table and its notes, on stdout."""
    from loop.report.terminal_table import terminal_table

    if view.verdict is not None:
        typer.echo("\n".join(view.verdict.sentences[:-1]) + "\n")
    print_table(terminal_table(view))
    for note in (*view.comparisons, *view.notes):
        typer.echo(note)


def print_next(view: ReportView) -> None:
    """The last sentence of the verdict, on stderr."""
    if view.verdict is not None:
        say(view.verdict.next)


def print_table(table: RenderableType) -> None:
    """A table of rich, on stdout; 120 columns where stdout is no terminal."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 120
    Console(width=width).print(table)


@contextmanager
def bar(what: str, total: int) -> Iterator[Progress]:
    """A progress bar on stderr."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import (
        Progress as RichProgress,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    if not console.is_terminal:  # a log file gets a line at once instead of a bar at the end
        say(f"{what} …")
    with RichProgress(*columns, console=console) as drawn:
        task = drawn.add_task(what, total=max(1, total))
        yield lambda done: drawn.advance(task, done)
        drawn.update(task, completed=max(1, total))
