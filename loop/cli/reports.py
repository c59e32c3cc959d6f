"""Commands that say where the campaign stands, and hand over its results."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loop.cli.build import build_executor, reading, refuse_own_files
from loop.cli.face import Campaign
from loop.cli.options import CAMPAIGN, File
from loop.cli.terminal import bar, echo, echo_json, print_next, print_rounds, print_table, say

if TYPE_CHECKING:
    from loop.report.contents import ReportView

app = typer.Typer()


@app.command(epilog="Example: goldloop status --json")
def status(
    file: File = CAMPAIGN,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say where the campaign stands, and what to type next."""
    from loop.report.status import status_lines

    told = Campaign(file).status()
    echo_json(told) if as_json else echo("\n".join(status_lines(told)))


@app.command(epilog="Example: goldloop report --latex --csv --out paper")
def report(
    file: File = CAMPAIGN,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the files.", show_default="runs")
    ] = None,
    latex: Annotated[
        bool, typer.Option("--latex", help="Only the table, for LaTeX with booktabs.")
    ] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Only the table, as CSV.")] = False,
) -> None:
    """Write report.html and rounds.json, and print verdict and table.

    With --latex or --csv the table is printed instead, or written to rounds.tex or rounds.csv in
    the folder of --out.
    """
    from loop.report.collect import campaign_view

    with reading(file) as (config, store):
        view = campaign_view(config, store)
    if latex or as_csv:
        _print_tables(view, latex=latex, as_csv=as_csv, out=out)
        return
    print_rounds(view)
    say(f"Report: {Campaign(file).report(out)}")
    print_next(view)


def _print_tables(view: ReportView, *, latex: bool, as_csv: bool, out: Path | None) -> None:
    from loop.files import write_whole
    from loop.report.paper import csv_table, latex_table

    tables = {"rounds.tex": latex_table(view)} if latex else {}
    tables |= {"rounds.csv": csv_table(view)} if as_csv else {}
    for name, text in tables.items():
        if out is None:
            echo(text, end="")
        else:
            write_whole(out / name, text)
            echo(out / name)


@app.command(epilog="Example: goldloop codebook --out docs")
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
    echo(path)


@app.command(epilog="Example: goldloop people --json")
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
        echo_json(said)
        return
    print_table(people_table(scorecards))
    for line in unreadable_lines(scorecards):
        echo(line)
    for line in assistance_lines(config.people.assist, helped):
        echo(line)


@app.command(epilog="Example: goldloop export labels.csv --all-rows --card data-card.md")
def export(
    out: Annotated[Path, typer.Argument(help="labels.csv, .jsonl, .parquet, or a folder.")],
    all_rows: Annotated[
        bool,
        typer.Option("--all-rows", help="Every row of the source, with the label beside it."),
    ] = False,
    card: Annotated[
        Path | None, typer.Option(help="Also write a data set card, in Markdown, there.")
    ] = None,
    file: File = CAMPAIGN,
) -> None:
    """Write the final labels: where each comes from, its confidence and its round."""
    written = Campaign(file).export(out, all_rows=all_rows, card=card)
    say(f"Wrote {written:,} labels to {out}{f', the card to {card}' if card else ''}.")


@app.command(epilog="Example: goldloop track --file films/goldloop.toml")
def track(file: File = CAMPAIGN) -> None:
    """Send the measured rounds to MLflow or Weights & Biases, as [tracking] in the file says.

    `goldloop run` does it after each round; use this for a tracker that failed or came later.
    """
    Campaign(file).track()


@app.command(epilog="Example: goldloop model runs/final --force")
def model(
    folder: Annotated[
        Path | None, typer.Argument(help="Where it goes.", show_default="runs/final")
    ] = None,
    seeds: Annotated[
        bool, typer.Option("--seeds/--no-seeds", help="Keep the seeds' models, for stability.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Build it again.")] = False,
    file: File = CAMPAIGN,
) -> None:
    """Make the final model of the last finished round, with its model card."""
    echo(Campaign(file).model(folder, seeds=seeds, force=force))


@app.command(epilog="Example: goldloop predict more.csv --text-column review --out labelled.csv")
def predict(
    source: Annotated[
        Path, typer.Argument(help="CSV, JSONL, Parquet, .xlsx, or text: one a line.")
    ],
    model: Annotated[
        Path | None, typer.Option(help="The model's folder.", show_default="runs/final")
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column with the texts.")] = "text",
    out: Annotated[
        Path | None, typer.Option(help="CSV, JSONL or Parquet.", show_default="beside FILE")
    ] = None,
    fast: Annotated[
        bool,
        typer.Option("--fast", help="Only the final model: no stability, several times faster."),
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
    file: File = CAMPAIGN,
) -> None:
    """Label a file's texts with the final model, and say how stable each label is."""
    from connectors.texts.stream import TextStream, writing
    from loop.campaign.config import load
    from loop.deliver.predict import (
        PIECE,
        Labeller,
        LabellerElsewhere,
        label_rows,
        prediction_columns,
        saved_model,
    )

    config = load(file) if file.exists() else None
    if model is None:
        model = config.out / "final" if config else Path("runs/final")
        saved_model(model, config.label_names if config else None)
    stream = TextStream(source, text_column)
    out = out or source.with_name(f"{stream.stem}.predicted{stream.suffix}")
    if config:
        refuse_own_files(config, file, out)
    with ExitStack() as stack:
        labeller: Labeller | LabellerElsewhere
        if executor := build_executor(config) if config else None:
            stack.enter_context(closing(executor))
            labeller = LabellerElsewhere(model, executor, fast=fast, device=device)
        else:
            labeller = Labeller(model, fast=fast, device=device)
        added = prediction_columns(labeller.labels)
        write = stack.enter_context(writing(out, stream, added, labeller.labels))
        progress = stack.enter_context(bar("Labelling", stream.rows))
        tally = label_rows(labeller, stream.pieces(PIECE), write, progress)
    for line in [*tally.lines(), *stream.lines()]:
        say(line)
    if not labeller.stable and not fast:
        say(f"The column stability is empty: {model} was saved without its seeds' models.")
    echo(out)
