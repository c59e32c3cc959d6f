"""Commands that begin a campaign, and what it brings along."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from loop.cli.face import Campaign
from loop.cli.options import CAMPAIGN, AsJson, File
from loop.cli.terminal import say
from loop.errors import LoopError

app = typer.Typer()


@app.command()
def init(
    file: File = CAMPAIGN,
    name: Annotated[str | None, typer.Option(help="Name of the campaign.")] = None,
    task: Annotated[
        str | None, typer.Option(help="The question that the LLM and people answer.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="CSV, JSONL, Parquet, or hf:NAME.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Column with the texts.")] = None,
    gold_column: Annotated[str | None, typer.Option(help="Column with known human labels.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="'name: description'; give it once per label.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a commented campaign file; asks for what the flags leave open."""
    from loop.campaign.campaign_file import render
    from loop.campaign.config import read
    from loop.files import SHARED, write_whole

    if file.exists() and not force:
        raise LoopError(f"{file} exists already; give --force to overwrite it.")
    asks = sys.stdin.isatty()

    def answer(given: str | None, question: str, default: str | None = None) -> str:
        if given is not None:
            return given
        if asks:
            return str(typer.prompt(question, default=default, err=True))
        if default is not None:
            return default
        raise LoopError(f"{question} is not given; name it with its flag (see goldloop init -h).")

    name = answer(name, "Name of the campaign", "campaign")
    source = answer(source, "Text source (CSV, JSONL, Parquet, or hf:NAME; --source)")
    text_column = answer(text_column, "Column with the texts", "text")
    gold_column = answer(gold_column, "Column with known human labels (empty: none)", "") or None
    task = answer(task, "Task, in one sentence (--task)")
    labels = label or []
    while asks and not label:
        line = typer.prompt("Label as 'name: description' (empty to end)", default="", err=True)
        if not line:
            break
        labels.append(line)
    if len(labels) < 2:
        raise LoopError(
            "A campaign needs two labels or more: --label 'name: description' --label …"
        )
    text = render(
        name=name,
        task=task,
        source=source,
        text_column=text_column,
        gold_column=gold_column,
        labels=[_name_and_description(line) for line in labels],
    )
    read(text, file)
    write_whole(file, text, mode=SHARED)
    say(f"Wrote {file}. Next: `goldloop check`, then `goldloop run`.")


def _name_and_description(line: str) -> tuple[str, str]:
    """What stands before and after the first colon with a space behind it: "10:30: morning"."""
    name, _, description = re.sub(r":\s", ": ", line.strip() + " ").partition(": ")
    return name.strip(), description.strip()


@app.command()
def check(file: File = CAMPAIGN) -> None:
    """Say everything that is wrong with the campaign file and its texts, and what will happen."""
    campaign = Campaign(file)
    problems = campaign.check()
    for problem in problems:
        say(str(problem))
    if any(problem.level == "error" for problem in problems):
        raise typer.Exit(1)
    for line in campaign.forecast():
        say(line)
    say(f"{file} is fine.")


@app.command(name="import-labels")
def import_labels(
    source: Annotated[
        Path | None,
        typer.Argument(help="Export of Label Studio, doccano, Argilla, Prodigy, spaCy; a table."),
    ] = None,
    project: Annotated[
        int | None, typer.Option(help="Instead: a project of the campaign's Label Studio.")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Column, or Label Studio tag, with people's labels.")
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(help="Column with the texts; any that matches by default.")
    ] = None,
    as_json: AsJson = False,
    file: File = CAMPAIGN,
) -> None:
    """Take labels that people gave in another tool as gold; say which were not taken, and why."""
    imported = Campaign(file).import_labels(
        source, project=project, text_column=text_column, label_column=label_column
    )
    if as_json:
        typer.echo(json.dumps(imported.to_json(), indent=2, ensure_ascii=False))
        return
    for line in imported.lines():
        say(line)
