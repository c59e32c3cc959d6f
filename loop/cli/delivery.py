"""Commands that hand over what users take away."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loop.cli.face import Campaign
from loop.cli.options import CAMPAIGN, File
from loop.cli.terminal import bar, say

app = typer.Typer()


@app.command()
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
    """Write the final labels with their provenance, confidence and round."""
    written = Campaign(file).export(out, all_rows=all_rows, card=card)
    say(f"Wrote {written:,} labels to {out}{f', the card to {card}' if card else ''}.")


@app.command()
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
    typer.echo(str(Campaign(file).model(folder, seeds=seeds, force=force)))


@app.command()
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
    from loop.deliver.predict import PIECE, Labeller, label_rows, prediction_columns, saved_model

    if model is None:
        config = load(file) if file.exists() else None
        model = config.out / "final" if config else Path("runs/final")
        saved_model(model, config.label_names if config else None)
    stream = TextStream(source, text_column)
    out = out or source.with_name(f"{stream.stem}.predicted{stream.suffix}")
    labeller = Labeller(model, fast=fast, device=device)
    added = prediction_columns(labeller.labels)
    opened = writing(out, stream, added, labeller.labels)
    with opened as write, bar("Labelling", stream.rows) as progress:
        tally = label_rows(labeller, stream.pieces(PIECE), write, progress)
    for line in [*tally.lines(), *stream.lines()]:
        say(line)
    if not labeller.stable and not fast:
        say(f"The column stability is empty: {model} was saved without its seeds' models.")
    typer.echo(str(out))
