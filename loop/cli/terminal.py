"""What commands print: tables on stdout; news and progress bars on stderr."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from loop.cli.options import for_file
from loop.operate.log_file import said

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from loop.ports import Progress
    from loop.report.contents import ReportView


LONG_WORD = 300
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What steers a terminal, or turns the direction of what follows; not what texts from right to left
need."""
TABLE_CHARS = 120


def harmless(text: str) -> str:
    """The text with characters that would steer the terminal spelled out: anybody may be quoted."""
    return CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def echo(text: object, *, end: str = "\n") -> None:
    """Text on stdout, made :func:`harmless`, its commands :func:`for_file`."""
    typer.echo(for_file(harmless(str(text))) + end, nl=False)


def echo_json(value: object) -> None:
    """A value as JSON on stdout; it holds no character that is not ASCII."""
    typer.echo(json.dumps(value, indent=2))


def say(line: str) -> None:
    """One line of news, on stderr; of a word of hundreds of letters only the beginning and end."""
    line = for_file(harmless(line))
    whole = re.compile(rf"\S{{{LONG_WORD},}}")
    said.log(logging.ERROR if line.startswith("Error: ") else logging.INFO, "%s", line)
    typer.echo(whole.sub(lambda word: f"{word[0][:100]}…{word[0][-2:]}", line), err=True)


def print_rounds(view: ReportView) -> None:
    """The campaign's verdict but for what comes next, its table and its notes, on stdout."""
    from loop.report.terminal_table import terminal_table

    if view.verdict is not None:
        echo("\n".join(view.verdict.paragraphs[:-1]), end="\n\n")
    print_table(terminal_table(view))
    for note in (*view.comparisons, *view.notes):
        echo(note)


def print_next(view: ReportView) -> None:
    """The last paragraph of the verdict, on stderr."""
    if view.verdict is not None:
        say(view.verdict.next)


def print_table(table: Table, width: int | None = None) -> None:
    """A table of rich, on stdout; one block for each row where a word would be cut.

    Args:
        width: in characters; None is the terminal's, or 120 where stdout is no terminal.
    """
    from rich.console import Console

    if width is None and not sys.stdout.isatty():
        width = TABLE_CHARS
    console = Console(width=width)
    console.print(table if _fits(table, console.width) else _blocks(table))


def _fits(table: Table, width: int) -> bool:
    """Whether rich draws the table with every word of its cells whole."""
    from rich.console import Console

    console = Console(width=width, file=io.StringIO())
    with console.capture() as drawn:
        console.print(table)
    cells = [cell for column in table.columns for cell in (column.header, *column.cells)]
    words = Counter(word for cell in cells for word in _text(cell).plain.split())
    return words <= Counter(drawn.get().split())


def _blocks(table: Table) -> RenderableType:
    """The rows of a table one below the other, the columns' names beside their values."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table as Grid
    from rich.text import Text

    first, *others = table.columns
    title = _line(table.title, " ")
    parts: list[RenderableType] = [Text(f"{title}\n", "italic")] * bool(title)
    for row, name in enumerate(first.cells):
        grid = Grid.grid(padding=(0, 2, 0, 0))
        grid.add_column(overflow="fold")
        grid.add_column(overflow="fold")
        for column in others:
            value = _line(list(column.cells)[row], " · ")
            grid.add_row(Text(_line(column.header, " ")), Text(value))
        parts += [Text(_line(name, " "), "bold"), Padding(grid, (0, 0, 1, 2), expand=False)]
    if table.caption:
        parts.append(Text(_line(table.caption, " "), "dim italic"))
    return Group(*parts)


def _line(cell: object, between: str) -> str:
    """What stands in a cell, on one line."""
    return between.join(_text(cell).plain.splitlines())


def _text(cell: object) -> Text:
    from rich.text import Text

    return cell if isinstance(cell, Text) else Text.from_markup(str(cell or ""))


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
