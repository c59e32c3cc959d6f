"""Commands that run the loop, whole or stage by stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loop.cli.build import (
    at_work,
    build_annotator,
    load_campaign_texts,
    local_login,
    open_store,
    reading,
    start_label_studio,
)
from loop.cli.face import Campaign, run_rounds, track_measured, waiting_line
from loop.cli.options import CAMPAIGN, File, name_file
from loop.cli.terminal import bar, echo, echo_json, print_next, print_rounds, say
from loop.errors import NoStoreError, counted

if TYPE_CHECKING:
    from loop.campaign.config import Config
    from loop.campaign.store import Store


app = typer.Typer()


@app.command(epilog="Example: goldloop run --wait --until accuracy=0.8")
def run(
    file: File = CAMPAIGN,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Rounds to finish now; all that are left by default.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait while people label.")] = False,
    close: Annotated[
        bool, typer.Option("--close", help="Continue with the answers received so far.")
    ] = False,
    until: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE",
            help="Stop once this holds: accuracy=0.8, remaining-error=0.05, gain=0.01, plateau, …"
            " Give it once per rule; rounds.stop keeps rules in the campaign file.",
        ),
    ] = None,
) -> None:
    """Run until people are needed or the campaign is finished; run it again to continue."""
    if Campaign(file).run(rounds, wait=wait, close=close, until=until or ()):
        _print_result(file)


@app.command(epilog="Example: goldloop validate --size 200 --goal 0.9")
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

    from loop.round import run_round
    from loop.studies.rivals import ask_rival, renamed, rival_config, rival_lines, side_by_side
    from loop.studies.validate import open_validation, validation, validation_json, validation_lines

    with at_work(file, "validate") as ctx:
        configs = [(path.stem, rival_config(ctx.config, path)) for path in also or ()]
        round_ = open_validation(ctx, size)
        if round_.stage != "done":
            round_ = run_round(ctx)
        rivals = []
        for name, config in configs:
            rival = build_annotator(config, ctx.parts.executor)
            with closing(renamed(config, rival)) as annotator:
                ask_rival(ctx, config, annotator)
                rivals.append((name, config, annotator.revision))
        if round_.stage != "done":
            say(waiting_line(ctx, round_))
            return
        result = validation(ctx.config, ctx.store, ctx.annotator.revision, goal=goal)
        lines = validation_lines(result, ctx.config.budget.labels)
        told = validation_json(result)
        if rivals:
            compared = side_by_side(ctx, rivals)
            lines += rival_lines(compared, ctx.config.label_names)
            told["annotators"] = [asdict(rival) for rival in compared]
    echo_json(told) if as_json else echo("\n".join(lines))


@app.command(epilog="Example: goldloop annotate --plan")
def annotate(
    file: File = CAMPAIGN,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what it will cost; ask and store nothing.")
    ] = False,
    prompts: Annotated[
        bool, typer.Option("--prompts", help="Show the prompts as the LLM sees them; ask nothing.")
    ] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Ask again, now, where no answer came.")
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
    from loop.llm.ask import retry_unanswered, unanswered_line
    from loop.llm.prompts import stored_variants

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
        recorded = ctx.config.annotator.kind == "recorded"
        if news := unanswered_line(ctx.store, ctx.name, revision, recorded=recorded):
            say(news)


@app.command(epilog="Example: goldloop score --file films/goldloop.toml")
def score(file: File = CAMPAIGN) -> None:
    """Compute how suspect each LLM label is."""
    _stage(file, "score")


@app.command(epilog="Example: goldloop select --file films/goldloop.toml")
def select(file: File = CAMPAIGN) -> None:
    """Choose the batch that people shall label."""
    _stage(file, "select")


@app.command(epilog="Example: goldloop push --file films/goldloop.toml")
def push(
    file: File = CAMPAIGN,
    new_project: Annotated[
        bool,
        typer.Option(
            "--new-project",
            help="Begin another project for what is still open, where the old one was deleted.",
        ),
    ] = False,
) -> None:
    """Send the batch to people, most suspect first."""
    if new_project:
        from loop.people.new_project import begin_new_project

        with at_work(file, "push") as ctx:
            begin_new_project(ctx)
            if (last := ctx.store.last_round(ctx.name)) is None or last.stage != "push":
                return
    _stage(file, "push")


@app.command(epilog="Example: goldloop pull --close")
def pull(
    file: File = CAMPAIGN,
    close: Annotated[
        bool, typer.Option("--close", help="Continue with the answers received so far.")
    ] = False,
    withdraw: Annotated[
        bool,
        typer.Option(
            "--withdraw",
            help="Take back texts that nobody has begun, once their round is over.",
        ),
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Read every answer again, not only what changed.")
    ] = False,
) -> None:
    """Read people's answers, and decide the gold labels once all have come."""
    from loop.next_round import open_round
    from loop.people.answers import withdraw_unanswered
    from loop.people.tally import answer_lines
    from loop.round import close_early, run_stage

    with at_work(file, "pull") as ctx:
        if everything:
            ctx.store.read_anew(ctx.name)
        last = ctx.store.last_round(ctx.name)
        if not withdraw or (last is not None and last.stage == "pull"):
            round_ = run_stage(ctx, "pull")
            if close and round_.stage == "pull":
                close_early(ctx, open_round(ctx))
                round_ = run_stage(ctx, "pull")
            say(waiting_line(ctx, round_))
            reviews, answers = ctx.store.reviews(ctx.name), ctx.store.annotations(ctx.name)
            for line in answer_lines(reviews, answers, ctx.config.people.platform_name):
                say(line)
        if withdraw:
            say(f"Withdrew {counted(withdraw_unanswered(ctx), 'text')} that nobody had begun.")


@app.command(epilog="Example: goldloop train --file films/goldloop.toml")
def train(file: File = CAMPAIGN) -> None:
    """Repair labels, retrain the student with several seeds, and measure the round."""
    _stage(file, "train")


@app.command(epilog="Example: goldloop demo --by-hand --folder demo-by-hand")
def demo(
    folder: Annotated[Path, typer.Option(help="Where the demo campaign goes.")] = Path("demo"),
    by_hand: Annotated[
        bool, typer.Option("--by-hand", help="You label in Label Studio, not simulated people.")
    ] = False,
    pool: Annotated[int, typer.Option(min=100, max=3000, help="Texts to label.")] = 400,
) -> None:
    """Run three rounds on 400 tweets; only the people are simulated."""
    from connectors.downloads.hutto import write_demo_texts
    from loop.cli.demo_campaign import DEV_ITEMS, TEST_ITEMS, campaign_text, closing_lines
    from loop.files import SHARED, write_whole

    folder.mkdir(parents=True, exist_ok=True)
    file = name_file(folder / "goldloop.toml")
    installed_s = _fetch_demo_parts()
    started = time.monotonic()
    if not file.exists():
        write_demo_texts(folder / "texts.jsonl", pool=pool, test=TEST_ITEMS, dev=DEV_ITEMS, seed=0)
        write_whole(file, campaign_text(by_hand=by_hand, pool=pool), mode=SHARED)
    else:
        say(f"Continuing the campaign in {folder}; delete the folder to start again.")
    with at_work(file, "demo") as ctx:
        finished = run_rounds(ctx, rounds=None, wait=by_hand, close=False)
    if finished:
        _print_result(file)
    else:
        say(f"Report: {Campaign(file).report()}")
    ran_s = time.monotonic() - started
    for line in closing_lines(file, installed_s, ran_s, local_login()):
        say(line)


def _fetch_demo_parts() -> float:
    """Fetches the LLM and the encoder, and has Label Studio installed meanwhile; takes seconds."""
    from connectors.downloads.models import minilm_dir, smollm2_dir

    started = time.monotonic()
    start_label_studio()
    smollm2_dir()
    minilm_dir()
    return time.monotonic() - started


def _stage(file: Path, stage: str) -> None:
    from loop.next_round import next_command
    from loop.round import run_stage

    with at_work(file, stage) as ctx:
        round_ = run_stage(ctx, stage)
        if stage == "train" and round_.stage == "done":
            track_measured(ctx)
        say(f"Round {round_.number} is ready for {round_.stage}; next: {next_command(round_)}.")


def _print_plan(file: Path, *, prompts: bool = False) -> None:
    """Calls, tokens, time and money, or the prompts; on a throw-away store before the first run."""
    from loop.campaign.config import load
    from loop.llm.cost_plan import plan_annotation, plan_lines, prompt_lines

    config = load(file)
    count = None
    if config.annotator.kind == "local_lm" and not prompts:
        from connectors.llm.local_lm import token_counter

        count = token_counter(config.annotator.model)
    with _texts_in_a_store(config) as store:
        revision = build_annotator(config).revision
        if prompts:
            lines = prompt_lines(config, store, revision)
        else:
            lines = plan_lines(plan_annotation(config, store, revision, count=count))
    echo("\n".join(lines))


@contextmanager
def _texts_in_a_store(config: Config) -> Iterator[Store]:
    """The campaign's store to read from, or a throw-away one before its texts are imported."""
    from loop.campaign.import_texts import import_texts
    from loop.campaign.store import Store

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


def _print_result(file: Path) -> None:
    """The table per round, where the report is, and what comes next."""
    from loop.report.collect import campaign_view

    with reading(file) as (config, store):
        view = campaign_view(config, store)
    print_rounds(view)
    say(f"Report: {config.out / 'report.html'}")
    print_next(view)
