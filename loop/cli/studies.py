"""Commands that answer questions about the rounds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loop.cli.build import at_work
from loop.cli.face import Campaign, check_rules
from loop.cli.face import bench as replayed
from loop.cli.options import CAMPAIGN, AsJson, File, Student
from loop.cli.terminal import echo, echo_json, print_table, say
from loop.errors import LoopError, NoStoreError

if TYPE_CHECKING:
    from loop.studies.side_runs import StudentKind


app = typer.Typer()


@app.command(epilog="Example: goldloop variance --student frozen")
def variance(
    file: File = CAMPAIGN,
    student: Student = "encoder",
    bases: Annotated[
        int, typer.Option(min=3, help="Repetitions, of seven students each (frozen: six).")
    ] = 4,
    as_json: AsJson = False,
) -> None:
    """Say where instability comes from: first weights, order, repair of labels, or the texts."""
    from loop.report.collect import write_outputs
    from loop.round import repaired_labels
    from loop.studies.side_runs import side_runs, write_result
    from loop.studies.variance import measure_variance

    with at_work(file, "variance") as ctx:
        result = measure_variance(side_runs(ctx, _student_kind(student)), bases, repaired_labels)
        path = write_result(ctx, "variance", result.to_json())
        write_outputs(ctx.config, ctx.store)
    echo_json(result.to_json()) if as_json else echo(result.told)
    say(f"Written to {path} and into the report.")


@app.command(epilog="Example: goldloop plan --goal accuracy=0.8 --goal remaining-error=0.05")
def plan(
    file: File = CAMPAIGN,
    goal: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE",
            help="Value to reach: accuracy=0.8, macro_f1=0.7, reliable_accuracy=0.6, alpha_k=0.8,"
            " p_uc=0.9, remaining-error=0.05. Give it once per goal.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say how many more labels a goal takes, and how much time and money."""
    from loop.studies.plan import plan_lines

    campaign = Campaign(file)
    check_rules(goal or ())
    try:
        made = campaign.plan(*(goal or ()))
    except NoStoreError:
        if as_json:
            raise
        for line in campaign.forecast():
            echo(line)
        say(
            "How many labels a goal takes is known after two rounds; `goldloop validate` says it"
            " before the first one for the share of wrong labels. Next: `goldloop run`."
        )
        return
    echo_json(made.to_json()) if as_json else echo("\n".join(plan_lines(made)))


@app.command(epilog="Example: goldloop plateau --student frozen")
def plateau(
    file: File = CAMPAIGN,
    student: Student = "frozen",
    sizes: Annotated[int, typer.Option(min=3, help="Sizes of label sets to try.")] = 5,
    seeds: Annotated[int, typer.Option(min=2, help="Students per size and kind of label.")] = 5,
    metric: Annotated[str, typer.Option(help="'accuracy' or 'macro_f1'.")] = "accuracy",
    as_json: AsJson = False,
) -> None:
    """Say whether more LLM labels would help, from learning curves of the last round's labels."""
    from loop.files import write_whole
    from loop.report.collect import campaign_view, write_outputs
    from loop.report.plots import curves_plot, standalone
    from loop.studies.plateau import CURVE_METRICS, measure_plateau
    from loop.studies.side_runs import side_runs, write_result

    chosen = next((known for known in CURVE_METRICS if known == metric), None)
    if chosen is None:
        raise typer.BadParameter(f"{metric!r} is neither of {', '.join(CURVE_METRICS)}.")
    with at_work(file, "plateau") as ctx:
        runs = side_runs(ctx, _student_kind(student))
        result = measure_plateau(runs, sizes=sizes, seeds=seeds, metric=chosen)
        path = write_result(ctx, "plateau", result.to_json())
        view = campaign_view(ctx.config, ctx.store)
        write_whole(path.with_suffix(".svg"), standalone(curves_plot(view.plateau)))
        write_outputs(ctx.config, ctx.store)
    echo_json(result.to_json()) if as_json else echo(result.told)
    say(f"Written to {path}, {path.with_suffix('.svg').name} and into the report.")


def _student_kind(student: str) -> StudentKind:
    if student == "encoder":
        return "encoder"
    if student == "frozen":
        return "frozen"
    raise typer.BadParameter(f"{student!r} is neither 'encoder' nor 'frozen'.")


@app.command(epilog="Example: goldloop bench texts.csv --label gold --llm-column llm")
def bench(
    source: Annotated[Path, typer.Argument(help="CSV, JSONL or Parquet with gold and LLM labels.")],
    label: Annotated[str, typer.Option(help="Column with the human labels.")],
    llm_column: Annotated[str | None, typer.Option(help="Column with the LLM's labels.")] = None,
    votes: Annotated[
        str | None,
        typer.Option(help="Columns with its answers, with commas; the first leads."),
    ] = None,
    annotator: Annotated[
        Path | None,
        typer.Option(help="Campaign file whose annotator and prompt label the texts first."),
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column with the texts.")] = "text",
    split_column: Annotated[str | None, typer.Option(help="Column that names test rows.")] = None,
    strategies: Annotated[
        str, typer.Option(help="Joined by commas; the first is compared with each of the others.")
    ] = "goldloop,random,entropy",
    budgets: Annotated[str, typer.Option(help="Shares that people label.")] = "0.05,0.1,0.25",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds to spread these over.")] = 3,
    student: Annotated[
        str, typer.Option(help="'frozen': heads on embeddings, quick; 'encoder': fine-tuned.")
    ] = "frozen",
    encoder: Annotated[str, typer.Option(help="Hub name, folder, minilm or mpnet.")] = "minilm",
    lr: Annotated[
        float | None,
        typer.Option(help="Learning rate of the fine-tuned student; by default what fits it."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=2, help="Students per label set.")] = 5,
    repetitions: Annotated[
        int,
        typer.Option(min=1, help="Samples; with 1, intervals are over test texts alone."),
    ] = 5,
    out: Annotated[Path, typer.Option(help="Folder for results.json, .txt and .svg.")] = Path(
        "bench"
    ),
) -> None:
    """Compare strategies with equally many gold labels, on texts whose labels are known."""
    from loop.bench.tables import tables

    if lr is not None and not 0 < lr < 1:
        raise LoopError(f"--lr {lr} must lie between 0 and 1.")
    try:
        shares = [float(share) for share in budgets.split(",")]
    except ValueError as exc:
        raise LoopError(f"--budgets {budgets!r} must be shares such as 0.05,0.1.") from exc
    result = replayed(
        source,
        label,
        llm_column=llm_column,
        votes=votes.split(",") if votes else (),
        annotator=annotator,
        text_column=text_column,
        split_column=split_column,
        strategies=strategies.split(","),
        budgets=shares,
        rounds=rounds,
        student=student,
        encoder=encoder,
        lr=lr,
        seeds=seeds,
        repetitions=repetitions,
        out=out,
    )
    for table in tables(result):
        print_table(table)
