"""Commands that begin a campaign, and take in labels that are there already."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loop.cli.face import Campaign, looked_at
from loop.cli.options import CAMPAIGN, AsJson, File
from loop.cli.terminal import echo_json, say
from loop.errors import LoopError, Stopped, counted, suggestion
from loop.student.steps import USUAL_BATCH, USUAL_EPOCHS, fitting_steps

if TYPE_CHECKING:
    from connectors.texts.read import Column

app = typer.Typer()

BUDGET = 300
"""Texts for people that a new campaign file names; a quarter of a small source."""
SHOWN = 12
"""Columns of the source that ``init`` describes."""
MOST_OFFERED = 30
"""Different values up to which a column is offered as one with labels, and each one described."""
GOLD_NAMES = ("gold", "label", "labels", "class", "category", "target", "y", "gold_label")


@app.command(epilog="Example: goldloop init a.csv --gold-column gold --task 'Is it good?'")
def init(
    texts: Annotated[
        str | None,
        typer.Argument(help="CSV, JSONL, Parquet, or hf:NAME; without it, asks."),
    ] = None,
    file: File = CAMPAIGN,
    name: Annotated[str | None, typer.Option(help="Name of the campaign.")] = None,
    task: Annotated[
        str | None, typer.Option(help="The question that the LLM and people answer.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="The same as TEXTS.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Column with the texts.")] = None,
    gold_column: Annotated[str | None, typer.Option(help="Column with known human labels.")] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="'name: description'; give it once per label. Without it, the labels are the"
            " values of the gold column."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a campaign file with comments; ask for what the options leave open."""
    from loop.campaign.campaign_file import render
    from loop.campaign.config import read
    from loop.files import SHARED, write_whole

    if file.exists() and not force:
        raise LoopError(f"{file} exists already; give --force to overwrite it.")
    if texts is not None and source not in (None, texts):
        raise LoopError(f"{texts} and --source {source} are two sources; give one of them.")
    answers = _Answers(
        file=file,
        name=name,
        task=task,
        source=texts if source is None else source,
        text_column=text_column,
        gold_column=gold_column,
        labels=[_name_and_description(line) for line in label or ()],
    )
    with answers.kept():
        answers.complete()
    text = render(
        name=str(answers.name),
        task=str(answers.task),
        source=str(answers.source),
        text_column=str(answers.text_column),
        gold_column=answers.gold_column or None,
        labels=answers.labels,
        budget=answers.budget,
        steps=answers.steps,
    )
    read(text, file)
    if rows := [name for name, _ in answers.labels if name in answers.columns]:
        say(
            f"{answers.source} has a column that is called like the label {rows[0]!r}. If it has no"
            " line of column names, its first text is lost: put such a line at its top."
        )
    for given in label or ():
        if ":" in given.replace("\uff1a", ":").strip(": ") and not _name_and_description(given)[1]:
            say(f"Label {given!r} has no description: write ': ', with a space, before one.")
    write_whole(file, text, mode=SHARED)
    say(f"Wrote {file}. Next: `goldloop check`, then `goldloop run`.")


@dataclass
class _Answers:
    """What ``goldloop init`` must know: given by flags, else asked for, else seen in the source.

    Attributes:
        budget: texts that may be sent to people.
        steps: batch size and epochs of a student.
    """

    file: Path
    name: str | None
    task: str | None
    source: str | None
    text_column: str | None
    gold_column: str | None
    labels: list[tuple[str, str]]
    budget: int = BUDGET
    steps: tuple[int, int] = (USUAL_BATCH, USUAL_EPOCHS)
    columns: dict[str, Column] = field(default_factory=dict)
    asks: bool = field(default_factory=lambda: sys.stdin.isatty())

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Tells somebody who stops in the middle how to continue with the answers so far."""
        try:
            yield
        except (Stopped, typer.Abort):
            given = {
                "--file": None if self.file == CAMPAIGN else str(self.file),
                "--source": self.source,
                "--text-column": self.text_column,
                "--gold-column": self.gold_column,
                "--name": self.name,
                "--task": self.task,
            }
            flags = [(flag, value) for flag, value in given.items() if value is not None]
            flags += [("--label", f"{label}: {meaning}") for label, meaning in self.labels]
            if self.asks and flags:
                words = [f"{flag} {shlex.quote(value)}" for flag, value in flags]
                say(f"\nYour answers so far: goldloop init {' '.join(words)}")
            raise

    def complete(self) -> None:
        """Fills in what is open.

        Raises:
            LoopError: something is open and nobody can be asked, or the source cannot be read.
        """
        question = "Text source (CSV, JSONL, Parquet, or hf:NAME; --source)"
        self.source = self._answer(self.source, question)
        self._look()
        self.text_column = self._column(
            self.text_column, "Column with the texts", "--text-column", self._likely_text()
        )
        self.gold_column = self._column(
            self.gold_column,
            "Column with known human labels (empty: none)",
            "--gold-column",
            self._likely_gold() if self.asks else "",
        )
        self.name = self._answer(self.name, "Name of the campaign", "campaign")
        self.task = self._answer(self.task, "Task, in one sentence (--task)")
        if not self.labels:
            self._take_labels()
        if len(self.labels) < 2:
            raise LoopError(
                f"A campaign needs two labels or more{self._why_few()}: --label 'name: description'"
                " --label …, or --gold-column with a column whose values are the labels."
            )

    def _answer(self, given: str | None, question: str, default: str | None = None) -> str:
        if given is not None:
            return given
        if self.asks:
            return str(typer.prompt(question, default=default, err=True))
        if default is not None:
            return default
        raise LoopError(f"{question} is not given; name it with its flag (see goldloop init -h).")

    def _look(self) -> None:
        """Opens a source that is a file; says what its columns hold."""
        from connectors.texts.read import columns_of

        if str(self.source).startswith("hf:"):
            return
        beside = self.file.resolve().parent  # which reading the file takes its paths from, too
        given = Path(str(self.source)).expanduser()
        if not (beside / given).exists() and given.exists():  # the file's paths are its own
            self.source = os.path.relpath(given.parent.resolve() / given.name, beside)
        elif str(self.source).startswith("~"):
            self.source = str(given)
        rows, columns, notes = columns_of(os.path.normpath(beside / str(self.source)))
        self.columns = {column.name: column for column in columns}
        self.budget = max(3, min(BUDGET, rows // 4))
        self.steps = fitting_steps(round(0.8 * rows))  # the rest is held out
        say(f"{self.source}: {counted(rows, 'row')}, {counted(len(columns), 'column')}.")
        for column in columns[:SHOWN]:
            say(f"  {column.name}: {_holds(column, rows)}")
        if len(columns) > SHOWN:
            say(f"  and {len(columns) - SHOWN} more columns")
        for note in notes:
            say(note)

    def _column(self, given: str | None, question: str, flag: str, default: str) -> str:
        from loop.ports import normalise

        while True:
            name = self._answer(given, question, default)
            alike = [column for column in self.columns if normalise(column) == normalise(name)]
            if name not in self.columns and len(alike) == 1:
                name = alike[0]  # in another form of Unicode, or with other spaces
            known = not self.columns or not name or name in self.columns
            if known or "." in name:  # a key inside of an object, which only reading can find
                return name
            problem = (
                f"{self.source} has no column {name!r};{suggestion(name, self.columns)} it has"
                f" {', '.join(self.columns)}. Name one with {flag}."
            )
            if given is not None or not self.asks:
                raise LoopError(problem)
            say(problem)

    def _likely_text(self) -> str:
        """The column "text" if there is one, else the one with most prose."""
        named = [name for name in self.columns if name.lower() == "text"]
        if named or not self.columns:
            return (named or ["text"])[0]
        likely = max(self.columns.values(), key=lambda column: (column.prose, column.chars))
        if self.text_column is None and not self.asks:
            if not likely.prose:
                raise LoopError(
                    f"No column of {self.source} looks like texts; name it with --text-column (a"
                    " key inside of an object as data.text)."
                )
            say(f"The texts are the column {likely.name!r}; --text-column names another.")
        return likely.name

    def _likely_gold(self) -> str:
        named = [n for n in self.columns if n.lower() in GOLD_NAMES and n != self.text_column]
        few = [n for n in named if 2 <= len(self.columns[n].counts) <= MOST_OFFERED]
        return few[0] if few else ""

    def _why_few(self) -> str:
        """Why the gold column gave none, if one is named and was looked through."""
        from connectors.texts.read import MOST_CLASSES

        gold = self.columns.get(self.gold_column or "")
        if gold is None or self.labels:
            return ""
        holds = f"holds more than {MOST_CLASSES} different values"
        if len(gold.counts) == 1:
            holds = "holds one value alone"
        elif gold.counts:
            holds = "holds several labels in each cell"
        elif not gold.filled:
            holds = "holds no single labels"
        return f", and the column {gold.name!r} {holds}"

    def _take_labels(self) -> None:
        """Those of the gold column, if they are wanted; else one by one."""
        from connectors.texts.label_cells import labels_in, one_of_each
        from connectors.texts.values import listed

        gold = self.columns.get(self.gold_column or "")
        spellings = one_of_each(gold.counts) if gold is not None else {}
        several = [v for v in spellings if len(labels_in(v, [o for o in spellings if o != v])) > 1]
        names = sorted(spellings.keys() - {*several})
        if len(names) >= 2:
            for name, others in spellings.items():
                if others:
                    also = ", ".join(map(ascii, others))
                    say(f"Read as one label, {name!r}: {also}.")
            if several:
                shown = listed(map(repr, sorted(several)))
                say(f"Not taken as labels, because they hold several: {shown}.")
            what = f"the {len(names)} values of {self.gold_column!r}"
            if not self.asks or typer.confirm(
                f"Use {what} as labels: {listed(names)}?", default=True, err=True
            ):
                if self.asks and len(names) <= MOST_OFFERED:
                    for name in names:
                        meaning = typer.prompt(f"What {name!r} means", default="", err=True)
                        self.labels.append((name, str(meaning)))
                    return
                self.labels = [(name, "") for name in names]
                say(
                    f"The labels are {what}: {listed(names)}. Describe them in {self.file}, for"
                    " the LLM and for people."
                )
                return
        while self.asks:
            question = "Label as 'name: description' (empty to end)"
            if not (line := typer.prompt(question, default="", err=True)):
                return
            self.labels.append(_name_and_description(line))


def _holds(column: Column, rows: int) -> str:
    """A column's values in a few words."""
    if not column.filled:
        return "empty, or lists and objects"
    empty = f", {rows - column.filled:,} empty" if column.filled < rows else ""
    if len(column.counts) in range(1, MOST_OFFERED + 1) and len(column.counts) < column.filled / 2:
        common = sorted(column.counts.items(), key=lambda pair: -pair[1])
        shown = ", ".join(f"{' '.join(value.split())[:40]} {n:,}" for value, n in common[:6])
        return f"{counted(len(common), 'value')}: {shown}{', …' if len(common) > 6 else ''}{empty}"
    return f"about {column.chars / column.filled:,.0f} characters{empty}"


def _name_and_description(line: str) -> tuple[str, str]:
    """What stands before and after the first colon with a space behind it: "10:30: morning"."""
    name, _, description = re.sub(r":\s", ": ", line.strip() + " ").partition(": ")
    return name.strip(), description.strip()


@app.command(epilog="Example: goldloop check --file films/goldloop.toml")
def check(file: File = CAMPAIGN) -> None:
    """List everything that is wrong with the campaign file and its texts; say what will happen."""
    problems, forecast = looked_at(file)
    for problem in problems:
        say(str(problem))
    if any(problem.level == "error" for problem in problems):
        raise typer.Exit(1)
    for line in forecast:
        say(line)
    say(f"{file} is fine. Next: `goldloop run`.")


@app.command(
    name="import-labels",
    epilog="Example: goldloop import-labels doccano.jsonl --label-column label",
)
def import_labels(
    source: Annotated[
        Path | None,
        typer.Argument(help="Table, or export of Label Studio, doccano, Argilla, Prodigy, spaCy."),
    ] = None,
    project: Annotated[
        int | None, typer.Option(help="Instead: a project of the campaign's Label Studio.")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Column, or Label Studio tag, with people's labels.")
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(help="Column with the texts; found by itself if left out.")
    ] = None,
    as_json: AsJson = False,
    file: File = CAMPAIGN,
) -> None:
    """Take labels that people gave in another tool as gold; say which were not taken, and why."""
    imported = Campaign(file).import_labels(
        source, project=project, text_column=text_column, label_column=label_column
    )
    if as_json:
        echo_json(imported.to_json())
        return
    for line in imported.lines():
        say(line)
    say("Next: `goldloop run`.")
