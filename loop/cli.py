"""The command line: one function per command.

``loop.parts`` builds what the commands work with, ``loop.terminal`` prints.

Heavy libraries are imported inside the commands, so that ``goldloop --help`` answers at once.
stdout is data; progress and news go to stderr.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from loop import __version__
from loop.addresses import hidden, secret_in
from loop.errors import LoopError, NoStoreError, Stopped, foreign
from loop.parts import (
    at_work,
    build_annotator,
    build_encoder_student,
    build_parts,
    connect_project,
    load_campaign_texts,
    local_login,
    open_store,
    texts_arguments,
)
from loop.terminal import bar, print_rounds, print_table, say

if TYPE_CHECKING:
    from loop.bench_sets import BenchData
    from loop.config import Config
    from loop.context import Context
    from loop.side_runs import StudentKind
    from loop.store import Round, Store

USAGE = typer.BadParameter.__mro__[1]  # typer brings its own click and does not name its errors


class Commands(TyperGroup):
    """All commands; what a library raises in one of them leaves it as a ``LoopError``."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command that was asked for."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except Exception as exc:
            if isinstance(exc, (LoopError, typer.Exit, typer.Abort, USAGE)):
                raise
            raise foreign(exc) from exc
        return result


app = typer.Typer(
    name="goldloop",
    cls=Commands,
    help="Spend human labels where they repair an LLM-labelled text data set most.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
label_studio_app = typer.Typer(
    help="A local Label Studio, installed and run by goldloop.", no_args_is_help=True
)
app.add_typer(label_studio_app, name="label-studio")

File = Annotated[Path, typer.Option("--file", "-f", help="The campaign file.")]
CAMPAIGN = Path("goldloop.toml")
_debug = False


def main() -> None:
    """Entry point: one sentence on stderr and exit code 1 for every error; 2 for wrong usage."""
    # Threads that spin while they wait for each other take whole cores from whatever else runs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with _stoppable():
            app()
    except LoopError as exc:
        if _debug:
            raise
        _tell([f"Error: {hidden(line)}" for line in str(exc).splitlines()])
        sys.exit(1)
    except Stopped as exc:
        if _debug:
            raise
        _tell(["Stopped. Run the same command again to go on."])
        sys.exit(128 + exc.signal)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Ctrl-C and a request to end become ``Stopped``, which typer does not swallow."""

    def stop(number: int, _frame: object) -> None:
        raise Stopped(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and shells may ask
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(lines: list[str]) -> None:
    """Last words on stderr, which may be closed or full like stdout."""
    with suppress(OSError, ValueError):
        for line in lines:
            typer.echo(line, err=True)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # else Python itself tries again at its end, and complains
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"goldloop {__version__}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show version.")
    ] = False,
) -> None:
    """Spend human labels where they repair an LLM-labelled text data set most."""
    global _debug
    _debug = debug


# setting up


@app.command()
def init(
    file: File = CAMPAIGN,
    name: Annotated[str | None, typer.Option(help="Name of the campaign.")] = None,
    task: Annotated[str | None, typer.Option(help="What the LLM and people shall decide.")] = None,
    source: Annotated[str | None, typer.Option(help="CSV, JSONL, Parquet, or hf:NAME.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Column with the texts.")] = None,
    gold_column: Annotated[str | None, typer.Option(help="Column with known human labels.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="'name: description'; give it once per label.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a commented campaign file; asks for what the flags leave open."""
    from loop.campaign_file import render
    from loop.config import read
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
        labels=[(n.strip(), d.strip()) for n, _, d in (line.partition(":") for line in labels)],
    )
    read(text, file)
    write_whole(file, text, mode=SHARED)
    say(f"Wrote {file}. Next: `goldloop check`, then `goldloop run`.")


@app.command()
def check(file: File = CAMPAIGN) -> None:
    """Say everything that is wrong with the campaign file and its texts, in one pass."""
    from connectors.texts import find_problems
    from loop.config import line_of, load

    config = load(file)
    problems = find_problems(**texts_arguments(config) | {"meta_columns": None})
    raw = file.read_text(encoding="utf-8")
    at = line_of(raw, ("texts", "source")) or 1
    for problem in problems:
        where = f"{file}:{line_of(raw, ('texts', 'text_column')) or at}: "
        say(f"{problem.level}: {where}{problem.message}")
    if any(p.level == "error" for p in problems) or not _annotator_is_fine(config, file):
        raise typer.Exit(1)
    say(f"{file} is fine.")


def _annotator_is_fine(config: Config, file: Path) -> bool:
    from connectors.texts import load_texts
    from loop.ports import TextItem

    if config.prompt.label_form == "ids" and config.annotator.kind == "local_lm":
        say(
            f'warning: {file}: prompt.label_form = "ids" is for larger models; one as small as'
            " smollm2-135m answers near chance with class numbers."
        )
    if config.annotator.kind != "recorded":
        return True
    rows = load_texts(**texts_arguments(config))
    try:
        build_annotator(config).check(
            [TextItem(str(i), row.text, row.meta) for i, row in enumerate(rows)]
        )
    except LoopError as exc:
        say(f"error: {file}: {exc}")
        return False
    return True


# the loop


@app.command()
def run(
    file: File = CAMPAIGN,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Rounds to finish now; all that are left by default.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait while people label.")] = False,
    close: Annotated[
        bool, typer.Option("--close", help="Go on with the answers that are back.")
    ] = False,
) -> None:
    """Run the loop as far as it goes; run it again to resume."""
    with at_work(file, "run") as ctx:
        _run(ctx, rounds=rounds, wait=wait, close=close)


@app.command()
def validate(
    file: File = CAMPAIGN,
    size: Annotated[
        int, typer.Option(min=20, help="Texts drawn at random and sent to people.")
    ] = 250,
    goal: Annotated[
        float, typer.Option(min=0.0, max=0.999, help="Share of right labels that you want.")
    ] = 0.95,
    also: Annotated[
        list[Path] | None,
        typer.Option(
            help="Another campaign file: its [annotator] and [prompt] label the same sample."
            " Give it once per rival."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure the LLM on a random sample before the first round; run it again to resume."""
    from dataclasses import asdict

    from loop.rivals import ask_rival, renamed, rival_config, rival_lines, side_by_side
    from loop.round import run_round
    from loop.validate import open_validation, validation, validation_json, validation_lines

    with at_work(file, "validate") as ctx:
        configs = [(path.stem, rival_config(ctx.config, path)) for path in also or ()]
        round_ = open_validation(ctx, size)
        if round_.stage != "done":
            round_ = run_round(ctx)
        rivals = []
        for name, config in configs:
            with closing(renamed(config, build_annotator(config))) as annotator:
                ask_rival(ctx, config, annotator)
                rivals.append((name, config, annotator.revision))
        if round_.stage != "done":
            say(_waiting(ctx, round_))
            return
        found = validation(ctx.config, ctx.store, ctx.annotator.revision, goal=goal)
        lines = validation_lines(found, ctx.config.budget.labels)
        told = validation_json(found)
        if rivals:
            compared = side_by_side(ctx, rivals)
            lines += rival_lines(compared, ctx.config.label_names)
            told["annotators"] = [asdict(rival) for rival in compared]
    typer.echo(json.dumps(told, indent=2) if as_json else "\n".join(lines))


@app.command()
def annotate(
    file: File = CAMPAIGN,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what it will cost; ask and store nothing.")
    ] = False,
    prompts: Annotated[
        bool, typer.Option("--prompts", help="Show the prompts as the LLM sees them; ask nothing.")
    ] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Ask again, now, what brought no answer.")
    ] = False,
) -> None:
    """Let the LLM label the texts that have no label yet."""
    if plan or prompts:
        _print_plan(file, prompts=prompts)
    elif retry:
        _retry(file)
    else:
        _stage(file, "annotate")


def _retry(file: Path) -> None:
    from loop.annotate import retry_unanswered, unanswered_line
    from loop.variants import stored_variants

    with at_work(file, "annotate") as ctx:
        revision = ctx.annotator.revision
        failed = len(ctx.store.unanswered(ctx.name, revision))
        with bar("Asking again", failed) as progress:
            asked, still = retry_unanswered(
                ctx.config,
                ctx.store,
                ctx.annotator,
                stored_variants(ctx.config, ctx.store, revision),
                progress=progress,
            )
        say(f"Asked again: {asked} questions, {asked - still} of them are answered now.")
        if news := unanswered_line(ctx.store, ctx.name, revision):
            say(news)


@app.command()
def score(file: File = CAMPAIGN) -> None:
    """Compute how suspect each LLM label is."""
    _stage(file, "score")


@app.command()
def select(file: File = CAMPAIGN) -> None:
    """Choose the batch that people shall label."""
    _stage(file, "select")


@app.command()
def push(file: File = CAMPAIGN) -> None:
    """Send the batch to Label Studio, most suspect first."""
    _stage(file, "push")


@app.command()
def pull(
    file: File = CAMPAIGN,
    close: Annotated[
        bool, typer.Option("--close", help="Go on with the answers that are back.")
    ] = False,
    withdraw: Annotated[
        bool,
        typer.Option(
            "--withdraw",
            help="Take texts that nobody began back from people, once their round is over.",
        ),
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Read every answer again, not only what changed.")
    ] = False,
) -> None:
    """Fetch what people answered, and adjudicate once all is back."""
    from loop.round import close_early, open_round, run_stage
    from loop.tally import answer_lines
    from loop.withdraw import withdraw_unanswered

    with at_work(file, "pull") as ctx:
        if everything:
            ctx.store.read_anew(ctx.name)
        last = ctx.store.last_round(ctx.name)
        if not withdraw or (last is not None and last.stage == "pull"):
            round_ = run_stage(ctx, "pull")
            if close and round_.stage == "pull":
                close_early(ctx, open_round(ctx))
                round_ = run_stage(ctx, "pull")
            say(_waiting(ctx, round_))
            for line in answer_lines(ctx.store.reviews(ctx.name), ctx.store.annotations(ctx.name)):
                say(line)
        if withdraw:
            say(f"Withdrew {withdraw_unanswered(ctx)} texts that nobody had begun.")


@app.command()
def train(file: File = CAMPAIGN) -> None:
    """Repair labels, retrain the student with several seeds, and measure the round."""
    _stage(file, "train")


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
    from loop.config import load
    from loop.status import campaign_status, status_lines

    config = load(file)
    with open_store(config, read_only=True) as store:
        found = campaign_status(config, store)
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(status_lines(found)))


@app.command()
def report(
    file: File = CAMPAIGN,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the files.", show_default="runs")
    ] = None,
) -> None:
    """Write report.html and rounds.json, and print the table."""
    from loop.config import load
    from loop.view import campaign_view, write_outputs

    config = load(file)
    with open_store(config, read_only=True) as store:
        print_rounds(campaign_view(config, store))
        path = write_outputs(config, store, out)
    say(f"Report: {path}")


@app.command()
def codebook(
    file: File = CAMPAIGN,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the file.", show_default="runs")
    ] = None,
) -> None:
    """Write codebook.md: examples of each label, where people differ, and what no label fits."""
    from loop.codebook import codebook as drawn
    from loop.config import load
    from loop.files import write_whole

    config = load(file)
    with open_store(config, read_only=True) as store:
        text = drawn(config, store)
    path = (out or config.out) / "codebook.md"
    write_whole(path, text)
    typer.echo(str(path))


Student = Annotated[
    str,
    typer.Option(help="'encoder', fine-tuned as in a round, or 'frozen' heads, in seconds."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def variance(
    file: File = CAMPAIGN,
    student: Student = "encoder",
    bases: Annotated[
        int, typer.Option(min=3, help="Starting points; five students each (frozen: four).")
    ] = 4,
    as_json: AsJson = False,
) -> None:
    """Say where the last round's instability comes from: first weights, order, or the texts."""
    from loop.side_runs import side_runs, write_result
    from loop.variance import measure_variance
    from loop.view import write_outputs

    with at_work(file, "variance") as ctx:
        found = measure_variance(side_runs(ctx, _student_kind(student)), bases)
        path = write_result(ctx, "variance", found.to_json())
        write_outputs(ctx.config, ctx.store)
    typer.echo(json.dumps(found.to_json(), indent=2) if as_json else found.told)
    say(f"Written to {path} and into the report.")


@app.command()
def plateau(
    file: File = CAMPAIGN,
    student: Student = "frozen",
    sizes: Annotated[int, typer.Option(min=3, help="Label-set sizes, each within the next.")] = 5,
    seeds: Annotated[int, typer.Option(min=2, help="Students per size and kind of label.")] = 5,
    metric: Annotated[str, typer.Option(help="'accuracy' or 'macro_f1'.")] = "accuracy",
    as_json: AsJson = False,
) -> None:
    """Say whether more LLM labels would help, from learning curves of the last round's labels."""
    from loop.files import write_whole
    from loop.plateau import METRICS, CurveMetric, measure_plateau
    from loop.report_plots import curves_plot, standalone
    from loop.side_runs import side_runs, write_result
    from loop.view import campaign_view, write_outputs

    if metric not in METRICS:
        raise typer.BadParameter(f"{metric!r} is neither of {', '.join(METRICS)}.")
    chosen: CurveMetric = "accuracy" if metric == "accuracy" else "macro_f1"
    with at_work(file, "plateau") as ctx:
        runs = side_runs(ctx, _student_kind(student))
        found = measure_plateau(runs, sizes=sizes, seeds=seeds, metric=chosen)
        path = write_result(ctx, "plateau", found.to_json())
        view = campaign_view(ctx.config, ctx.store)
        write_whole(path.with_suffix(".svg"), standalone(curves_plot(view.plateau)))
        write_outputs(ctx.config, ctx.store)
    typer.echo(json.dumps(found.to_json(), indent=2) if as_json else found.told)
    say(f"Written to {path}, {path.with_suffix('.svg').name} and into the report.")


def _student_kind(student: str) -> StudentKind:
    if student == "encoder":
        return "encoder"
    if student == "frozen":
        return "frozen"
    raise typer.BadParameter(f"{student!r} is neither 'encoder' nor 'frozen'.")


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="labels.csv, .jsonl, .parquet, or a folder.")],
    file: File = CAMPAIGN,
) -> None:
    """Write the final labels with their provenance, confidence and round."""
    from connectors.text_writers import write_labels
    from loop.config import load
    from loop.export import final_labels

    config = load(file)
    with open_store(config, read_only=True) as store:
        rows = final_labels(config, store)
    write_labels(rows, out)
    say(f"Wrote {len(rows)} labels to {out}.")


@app.command()
def model(
    folder: Annotated[
        Path | None, typer.Argument(help="Where it goes.", show_default="runs/final")
    ] = None,
    seeds: Annotated[
        bool, typer.Option("--seeds/--no-seeds", help="Keep the seeds' models, for stability.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Build it anew.")] = False,
    file: File = CAMPAIGN,
) -> None:
    """Make the final model of the last finished round, with its model card."""
    from loop.final_model import make_final_model

    with at_work(file, "model") as ctx:
        made = make_final_model(
            ctx, folder or ctx.config.out / "final", keep_seeds=seeds, force=force
        )
    for line in made.news:
        say(line)
    typer.echo(str(made.folder))


@app.command()
def predict(
    source: Annotated[Path, typer.Argument(help="CSV, JSONL, Parquet, or text: one a line.")],
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
    from connectors.text_stream import TextStream, writing
    from loop.config import load
    from loop.predict import PIECE, Labeller, label_rows, prediction_columns, saved_model

    if model is None:
        config = load(file) if file.exists() else None
        model = config.out / "final" if config else Path("runs/final")
        saved_model(model, config.label_names if config else None)
    stream = TextStream(source, text_column)
    out = out or source.with_name(f"{source.stem}.predicted{stream.suffix}")
    labeller = Labeller(model, fast=fast, device=device)
    added = prediction_columns(labeller.labels)
    with writing(out, stream, added) as write, bar("Labelling", stream.rows) as progress:
        tally = label_rows(labeller, stream.pieces(PIECE), write, progress)
    for line in [*tally.lines(), *stream.lines()]:
        say(line)
    if not labeller.stable and not fast:
        say(f"The column stability is empty: {model} was saved without its seeds' models.")
    typer.echo(str(out))


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where the demo campaign goes.")] = Path("demo"),
    by_hand: Annotated[
        bool, typer.Option("--by-hand", help="You label in Label Studio, not the simulated raters.")
    ] = False,
    pool: Annotated[int, typer.Option(min=100, max=3000, help="Texts to label.")] = 500,
) -> None:
    """Run three rounds on 4,200 tweets rated by 20 people each; everything real but the people."""
    from connectors.hutto import write_demo_texts
    from loop.demo import DEV_ITEMS, TEST_ITEMS, campaign_text, closing_lines
    from loop.files import SHARED, write_whole

    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "goldloop.toml"
    installed_s = _fetch_demo_parts()
    started = time.monotonic()
    if not file.exists():
        write_demo_texts(folder / "texts.jsonl", pool=pool, test=TEST_ITEMS, dev=DEV_ITEMS, seed=0)
        write_whole(file, campaign_text(by_hand=by_hand), mode=SHARED)
    else:
        say(f"Going on with the campaign in {folder}; delete the folder to begin anew.")
    with at_work(file, "demo") as ctx:
        _run(ctx, rounds=None, wait=by_hand, close=False)
        from loop.view import write_outputs

        path = write_outputs(ctx.config, ctx.store)
    ran_s = time.monotonic() - started
    for line in closing_lines(file, path, installed_s, ran_s, local_login()):
        say(line)


def _fetch_demo_parts() -> float:
    """Fetches the LLM and the encoder, and has Label Studio installed meanwhile; takes seconds.

    Label Studio is first needed when the LLM is done. What goes wrong with its installation in the
    background is met again, and then said, by whoever needs it.
    """
    from connectors import label_studio_server
    from connectors.assets import minilm_dir, smollm2_dir

    def install() -> None:
        with suppress(LoopError):
            label_studio_server.up()

    started = time.monotonic()
    threading.Thread(target=install, daemon=True).start()
    smollm2_dir()
    minilm_dir()
    return time.monotonic() - started


@app.command()
def people(
    file: File = CAMPAIGN,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say how well each person labels: agreement, hidden checks, time, and what to look at."""
    from loop.assistance import assistance_lines, campaign_assistance
    from loop.config import load
    from loop.people import campaign_people, people_table, unreadable_lines

    config = load(file)
    with open_store(config, read_only=True) as store:
        found = campaign_people(config, store)
        helped = campaign_assistance(config, store)
    if as_json:
        said = {
            "people": [person.to_json() for person in found],
            "assistance": [effect.to_json() for effect in helped],
        }
        typer.echo(json.dumps(said, indent=2))
        return
    print_table(people_table(found))
    for line in unreadable_lines(found):
        typer.echo(line)
    for line in assistance_lines(config.label_studio.assist, helped):
        typer.echo(line)


@app.command()
def serve(
    file: File = CAMPAIGN,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="0: the last one, or a free one.")
    ] = 0,
    connect: Annotated[
        bool, typer.Option("--connect", help="Register with the campaign's Label Studio project.")
    ] = False,
    public_url: Annotated[
        str | None, typer.Option(help="Where Label Studio reaches this server, if not at --host.")
    ] = None,
) -> None:
    """Pull as people answer, serve the student to Label Studio, and show live progress."""
    try:
        from loop import serve as server
    except ImportError as exc:
        raise LoopError("`goldloop serve` needs: pip install 'goldloop[serve]'") from exc
    from connectors.label_studio_page import choice_result
    from loop.config import load
    from loop.current_student import CurrentStudent
    from loop.inference import SavedClassifier
    from loop.progress import campaign_progress
    from loop.puller import Puller
    from loop.serve_tokens import Tokens, load_state, save_state, state_file

    if public_url and (secret := secret_in(public_url)):
        raise LoopError(
            f"--public-url holds {secret}; goldloop has tokens of its own, so leave it out."
        )
    config = load(file)
    blind = config.label_studio.assist == "blind"
    with open_store(config) as store:
        path = state_file(config, store)
        state = load_state(path)
        tokens = Tokens(bytes.fromhex(state["secret"]))
        listener = server.listen(host, port, state.get("port"))
        bound = listener.getsockname()[1]
        wanted = {**state, "port": bound, "page_token": tokens.page}
        if state != wanted:
            save_state(path, wanted)
        url = public_url or f"http://{f'[{host}]' if ':' in host else host}:{bound}"
        puller = Puller(lambda: _pull_quietly(file), say=say)
        student = CurrentStudent(
            config,
            store,
            lambda folder: SavedClassifier(
                folder, device=config.student.device, precision=config.student.precision
            ),
        )
        application = server.make_app(
            server.Served(
                tokens=tokens,
                campaign=config.campaign.name,
                labels=lambda: store.labels(config.campaign.name),
                hint=puller.hint,
                project=lambda: store.project_id(config.campaign.name),
                student=student,
                progress=lambda: campaign_progress(config, store) | puller.to_json(),
                result=lambda label: [] if blind else choice_result(label),
                hosts=server.own_hosts(host, public_url),
            )
        )

        def ready() -> None:
            typer.echo(url)
            shown = tokens.page if sys.stderr.isatty() else f"page_token in {path}"
            say(f"Progress at {url}; token: {shown}")
            if connect:
                try:
                    connect_project(config, store, url, tokens)
                except LoopError as exc:
                    say(f"Error: {exc}")
            puller.start()

        try:
            server.serve_app(application, listener, ready)
        finally:
            puller.stop()


@app.command()
def bench(
    source: Annotated[Path, typer.Argument(help="CSV, JSONL or Parquet with gold and LLM labels.")],
    label: Annotated[str, typer.Option(help="Column with the human labels.")],
    llm_column: Annotated[str | None, typer.Option(help="Column with the LLM's labels.")] = None,
    votes: Annotated[
        str | None, typer.Option(help="Columns with its votes, joined by commas; the first leads.")
    ] = None,
    annotator: Annotated[
        Path | None,
        typer.Option(help="Campaign file whose annotator and prompt label the texts first."),
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column with the texts.")] = "text",
    split_column: Annotated[str | None, typer.Option(help="Column that names test rows.")] = None,
    strategies: Annotated[
        str, typer.Option(help="Policies to compare, joined by commas; the first is compared.")
    ] = "goldloop,random,entropy",
    budgets: Annotated[str, typer.Option(help="Shares of the pool to buy.")] = "0.05,0.1,0.25",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that a budget is spread over.")] = 3,
    student: Annotated[
        str, typer.Option(help="'frozen' heads on embeddings, quick, or 'encoder', fine-tuned.")
    ] = "frozen",
    encoder: Annotated[
        str, typer.Option(help="Hub name, folder, or embedded: minilm, mpnet.")
    ] = "minilm",
    lr: Annotated[float, typer.Option(help="Learning rate of the fine-tuned student.")] = 1e-4,
    seeds: Annotated[int, typer.Option(min=2, help="Students per label set.")] = 5,
    repetitions: Annotated[
        int, typer.Option(min=1, help="Samples of the pool; with 1, intervals are over test texts.")
    ] = 5,
    out: Annotated[Path, typer.Option(help="Folder for results.json, .txt and .svg.")] = Path(
        "bench"
    ),
) -> None:
    """Replay strategies side by side at equal gold budget on texts whose labels are known."""
    from connectors.texts import load_texts
    from loop.bench import run_bench
    from loop.bench_peers import peers
    from loop.bench_policies import POLICIES
    from loop.bench_sets import data_from_rows
    from loop.bench_tables import tables, write_results
    from loop.config import StudentSection

    columns = votes.split(",") if votes else [llm_column] if llm_column else []
    if bool(columns) == (annotator is not None):
        raise LoopError(
            "Name the LLM's labels, --llm-column COLUMN or --votes COLUMN,COLUMN,…, or what gives"
            " them, --annotator CAMPAIGN_FILE."
        )
    if student not in ("frozen", "encoder"):
        raise LoopError(f"Unknown student {student!r}; allowed: frozen, encoder.")
    try:
        shares = [float(share) for share in budgets.split(",")]
    except ValueError as exc:
        raise LoopError(f"--budgets {budgets!r} must be shares such as 0.05,0.1.") from exc
    names = strategies.split(",")
    model = build_encoder_student(StudentSection(encoder=encoder, lr=lr, seeds=seeds), Path.cwd())
    if annotator is not None:
        texts = {"text_column": text_column, "gold_column": label, "split_column": split_column}
        data = _annotated(annotator, source, texts, out, model.embed)
    else:
        rows = load_texts(
            str(source), on_note=say, text_column=text_column, gold_column=label,
            split_column=split_column, meta_columns="plain",
        )  # fmt: skip
        data = data_from_rows(source.stem, rows, columns, model.embed)
    with bar("Replaying", repetitions * (2 + len(names) * len(shares))) as progress:
        result = run_bench(
            [data], names, budgets=shares, rounds=rounds,
            learner=None if student == "frozen" else model,
            seeds=seeds, repetitions=repetitions, policies={**POLICIES, **peers()},
            progress=progress,
        )  # fmt: skip
    for table in tables(result):
        print_table(table)
    for path in write_results(result, out):
        say(f"Wrote {path}")


def _annotated(
    file: Path, source: Path, texts: dict[str, str | None], out: Path, embed: Any
) -> BenchData:
    """The texts of a file, labelled by a campaign file's annotator; its votes are kept in out."""
    from loop.bench_sets import data_from_votes
    from loop.config import StoreSection, load
    from loop.context import Context
    from loop.round import run_stage
    from loop.votes import read_votes

    given = load(file)
    section = given.texts.model_copy(update={"source": str(source.resolve()), **texts})
    store_section = StoreSection(
        url=f"sqlite:///{out.resolve() / 'annotated.db'}", folder=str(out.resolve())
    )
    config = given.model_copy(update={"texts": section, "store": store_section})
    out.mkdir(parents=True, exist_ok=True)
    with open_store(config) as store:
        context = Context(config, store, build_parts(config, store), show=bar, say=say)
        with closing(context):
            run_stage(context, "annotate")
            pool = store.items(context.name, "pool")
            votes = read_votes(config, store, context.annotator.revision, pool)
            test = store.items(context.name, "test")
    return data_from_votes(
        source.stem, config.label_names, pool, votes, test, embed, ordinal=config.campaign.ordinal
    )


# Label Studio


@label_studio_app.command("up")
def label_studio_up() -> None:
    """Install it if need be, start it on loopback, and say how to log in."""
    from connectors import label_studio_server

    info = label_studio_server.up(progress=say, show=bar)
    typer.echo(info.url)
    say(f"User {info.username}, password {info.password}")


@label_studio_app.command("down")
def label_studio_down() -> None:
    """Stop it; projects and answers stay."""
    from connectors import label_studio_server

    stopped = label_studio_server.down()
    say("Stopped." if stopped else "It was not running.")


@label_studio_app.command("status")
def label_studio_status() -> None:
    """Say whether it runs, and where."""
    from connectors import label_studio_server

    info = label_studio_server.status()
    if info is None:
        typer.echo("not running")
        raise typer.Exit(1)
    typer.echo(f"running at {info.url} (process {info.pid}, Label Studio {info.version})")


# what the commands share


def _stage(file: Path, stage: str) -> None:
    from loop.round import next_command, run_stage

    with at_work(file, stage) as ctx:
        round_ = run_stage(ctx, stage)
        say(f"Round {round_.number} is ready for {round_.stage}; next: {next_command(round_)}.")


def _print_plan(file: Path, *, prompts: bool = False) -> None:
    """Calls, tokens, time and money, or the prompts; on a throw-away store before the first run."""
    from loop.config import load
    from loop.plan import plan_annotation, plan_lines, prompt_lines

    config = load(file)
    count = None
    if config.annotator.kind == "local_lm" and not prompts:
        from connectors.token_counts import token_counter

        count = token_counter(config.annotator.model)
    with _texts_in_a_store(config) as store:
        revision = build_annotator(config).revision
        if prompts:
            lines = prompt_lines(config, store, revision)
        else:
            lines = plan_lines(plan_annotation(config, store, revision, count=count))
    typer.echo("\n".join(lines))


@contextmanager
def _texts_in_a_store(config: Config) -> Iterator[Store]:
    """The campaign's store to read from, or a throw-away one before its texts are imported."""
    from loop.intake import import_texts
    from loop.store import Store

    with ExitStack() as stack:
        try:
            store = stack.enter_context(open_store(config, read_only=True))
            begun = store.item_count(config.campaign.name) > 0
        except NoStoreError:
            begun = False
        if not begun:
            store = stack.enter_context(closing(Store("sqlite:///:memory:")))
            store.open_campaign(config.campaign.name, config.label_names)
            import_texts(config, store, load_campaign_texts(config))
        yield store


def _run(ctx: Context, *, rounds: int | None, wait: bool, close: bool) -> None:
    from loop.round import (
        close_early,
        open_campaign,
        open_round,
        run_round,
        take_in_new_texts,
        why_finished,
    )
    from loop.view import campaign_view

    open_campaign(ctx)
    finished, told = 0, ""
    while rounds is None or finished < rounds:
        take_in_new_texts(ctx)
        if reason := why_finished(ctx):
            say(f"The campaign is finished: {reason}.")
            break
        round_ = run_round(ctx)
        if round_.stage == "done":
            finished += 1
            say(f"Round {round_.number} is done.")
        elif close:
            close_early(ctx, open_round(ctx))
            close = False  # the round that waits now, not those that are opened after it
        else:
            news = _waiting(ctx, round_)
            if news != told:
                say(news)
                told = news
            if not wait:
                return
            time.sleep(5)
    print_rounds(campaign_view(ctx.config, ctx.store))
    say(f"Report: {ctx.config.out / 'report.html'}")


def _waiting(ctx: Context, round_: Round) -> str:
    """What is back, and where people label; or what comes next."""
    from loop.round import next_command
    from loop.tally import tally, tally_line

    if round_.stage != "pull":
        return f"Round {round_.number} is ready for {round_.stage}; next: {next_command(round_)}."
    reviews = ctx.store.reviews(ctx.name, round_.id)
    became = tally(reviews)
    news = f"Round {round_.number}: {became.sent} texts sent, {tally_line(became)}."
    login = local_login() if ctx.config.label_studio.url == "local" else None
    who = f" (user {login[1]}, password {login[2]})" if login else ""
    return f"{news} People label at {ctx.reviewer.url()}{who}"


def _pull_quietly(file: Path) -> None:
    """What `goldloop serve` does when answers may be back: as `goldloop pull`, without bars."""
    from loop.config import load
    from loop.context import Context
    from loop.lock import writer
    from loop.puller import pull_answers

    config = load(file)
    with open_store(config) as store, writer(store, config.campaign.name, "serve"):
        round_ = pull_answers(Context(config, store, build_parts(config, store)))
    if round_ is not None and round_.stage not in ("pull", "adjudicate"):
        say(f"Round {round_.number}: everything is back; next: `goldloop run`.")


if __name__ == "__main__":
    main()
