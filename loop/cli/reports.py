"""Commands that say where the campaign stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from loop.cli.build import at_work, reading
from loop.cli.face import Campaign
from loop.cli.options import CAMPAIGN, File
from loop.cli.terminal import print_rounds, print_table, say

app = typer.Typer()


@app.command()
def upgrade(file: File = CAMPAIGN) -> None:
    """Bring a store of an earlier goldloop up to date; a copy of it is kept beside it."""
    with at_work(file, "upgrade"):
        say("The store is up to date.")


@app.command()
def status(
    file: File = CAMPAIGN,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say where the campaign stands, and what to type next."""
    from loop.report.status import status_lines

    told = Campaign(file).status()
    typer.echo(json.dumps(told, indent=2) if as_json else "\n".join(status_lines(told)))


@app.command()
def report(
    file: File = CAMPAIGN,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the files.", show_default="runs")
    ] = None,
) -> None:
    """Write report.html and rounds.json, and print the table."""
    from loop.next_round import next_step
    from loop.report.collect import campaign_view

    with reading(file) as (config, store):
        print_rounds(campaign_view(config, store))
        step = next_step(config, store)
    say(f"Report: {Campaign(file).report(out)}")
    say(f"Next: {step.removeprefix('`goldloop report`, ')}")


@app.command()
def codebook(
    file: File = CAMPAIGN,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the file.", show_default="runs")
    ] = None,
) -> None:
    """Write codebook.md: examples of each label, where people differ, and what no label fits."""
    from loop.deliver.codebook import codebook as drawn
    from loop.files import write_whole

    with reading(file) as (config, store):
        text = drawn(config, store)
    path = (out or config.out) / "codebook.md"
    write_whole(path, text)
    typer.echo(str(path))


@app.command()
def people(
    file: File = CAMPAIGN,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say how well each person labels: agreement, hidden checks, time, and what to look at."""
    from loop.people.assistance import assistance_lines, campaign_assistance
    from loop.people.scorecards import campaign_people, people_table, unreadable_lines

    with reading(file) as (config, store):
        scorecards = campaign_people(config, store)
        helped = campaign_assistance(config, store)
    if as_json:
        said = {
            "people": [person.to_json() for person in scorecards],
            "assistance": [effect.to_json() for effect in helped],
        }
        typer.echo(json.dumps(said, indent=2))
        return
    print_table(people_table(scorecards))
    for line in unreadable_lines(scorecards):
        typer.echo(line)
    for line in assistance_lines(config.people.assist, helped):
        typer.echo(line)
