"""Opens the campaign and its next round, or says why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from loop.campaign.changes import (
    change_lines,
    changes,
    check_changes,
    check_folder,
    claim_folder,
    seeds_line,
)
from loop.campaign.config import Config
from loop.campaign.context import Context
from loop.campaign.import_texts import import_new_texts, import_texts, near_twins_line
from loop.campaign.store import Store
from loop.campaign.tables import STAGES, VALIDATION, Round
from loop.errors import DataError, StageError
from loop.measure.stopping import why_stop
from loop.money import labels_left, texts_that_fit, why_nothing_to_buy


def open_campaign(ctx: Context) -> None:
    """Makes the campaign's row and imports its texts, once; says what has changed since.

    Raises:
        ConfigError: the campaign file was edited in a way that the campaign cannot follow.
        DataError: the campaign was begun with other texts.
        StoreError: the campaign has other labels, its folder belongs to another campaign, or it is
            at work in another folder.
    """
    check_folder(ctx)
    if new := ctx.store.open_campaign(ctx.name, ctx.config.label_names):
        ctx.say(
            f"New label{'s' * (len(new) > 1)}: {', '.join(new)}. People can choose"
            f" {'them' if len(new) > 1 else 'it'} from the next push or pull on, also to correct"
            " earlier answers; the next round asks the LLM about every text again."
        )
    if ctx.store.item_count(ctx.name) == 0:
        count = import_texts(ctx.config, ctx.store, ctx.parts.texts())
        ctx.read_again()
        ctx.say(f"Imported {count} texts.")
        if line := near_twins_line(ctx.store.stored_texts(ctx.name)):
            ctx.say(line)
    claim_folder(ctx)
    check_changes(ctx)


def take_in_new_texts(ctx: Context) -> None:
    """Between two rounds, imports what the source has new, and says it.

    A source that cannot be read is done without, as long as the file names the same one.

    Raises:
        DataError: the source that the file names now cannot be read, or is of other texts.
        ConfigError: the new texts do not go with the campaign file.
    """
    last = ctx.store.last_round(ctx.name)
    if last is None or last.stage != "done" or ctx.texts_read_before == last.number + 1:
        return
    if _rounds_done(ctx) >= ctx.config.rounds.rounds:
        return
    changed = changes(last.config, ctx.config.model_dump(mode="json"))
    try:
        rows = ctx.parts.texts()
    except DataError as exc:
        if any(key.startswith("texts.") for key in changed):
            raise
        ctx.say(
            f"The texts' source cannot be read now, so that no new texts are imported and the"
            f" campaign continues with those that it has: {exc}"
        )
    else:
        for line in import_new_texts(ctx.config, ctx.store, rows, seed=ctx.seed):
            ctx.say(line)
        ctx.read_again()
    ctx.texts_read_before = last.number + 1


def _rounds_done(ctx: Context) -> int:
    rounds = ctx.store.rounds(ctx.name)
    return sum(r.stage == "done" and r.number != VALIDATION for r in rounds)


def why_finished(ctx: Context) -> str | None:
    """Why no further round can be opened, or None."""
    why = _why_finished(ctx.config, ctx.store)
    return why[0] if why else None


def _why_finished(config: Config, store: Store) -> tuple[str, str] | None:
    """The reason, and what to change so that the campaign continues."""
    rounds = store.rounds(config.campaign.name)
    done = [r for r in rounds if r.stage == "done"]
    if len(done) < len(rounds):
        return None
    if sum(r.number != VALIDATION for r in done) >= config.rounds.rounds:
        also = (
            "" if labels_left(config, store) >= config.rounds.batch_size else " and budget.labels"
        )
        return (
            f"all {config.rounds.rounds} rounds are done (rounds.rounds)",
            f"raise rounds.rounds{also}",
        )
    if enough := why_stop(config, rounds):
        return enough, "change or remove that rule (rounds.stop, rounds.stop_below)"
    if nothing := why_nothing_to_buy(config, store):
        more = [] if store.open_texts(config.campaign.name, 1) else ["add texts to the source"]
        if not labels_left(config, store):
            more.append("raise budget.labels")
        elif not texts_that_fit(config, store):
            more.append("raise budget.usd")
        return nothing, " and ".join(more)
    return None


def why_reached(ctx: Context, rules: Sequence[str]) -> str | None:
    """Why one of these stopping rules holds, or None; also where a round is under way."""
    rounds = ctx.store.rounds(ctx.name)
    if any(r.stage != "done" for r in rounds):
        return None
    return why_stop(ctx.config, rounds, rules)


def next_step(config: Config, store: Store) -> str:
    """What to type next, and when."""
    last = store.last_round(config.campaign.name)
    if last is not None and last.stage == "pull":
        return (
            "`goldloop run` once people have answered; `goldloop run --close` continues with the"
            " answers received so far"
        )
    if last is None or _why_finished(config, store) is None:
        return "`goldloop run`"
    rounds = store.rounds(config.campaign.name)
    model = any(r.stage == "done" and r.number != VALIDATION for r in rounds)
    return "`goldloop report`, `goldloop export labels.csv`" + ", `goldloop model`" * model


def how_to_extend(config: Config, store: Store) -> str:
    """What to change so that a finished campaign continues."""
    why = _why_finished(config, store)
    return f"To continue, {why[1]} in the campaign file and type `goldloop run`." if why else ""


def what_next(config: Config, store: Store) -> str:
    """The next step as a sentence, and how a finished campaign continues."""
    step = next_step(config, store).removeprefix("`goldloop report`, ")
    extend = how_to_extend(config, store) if store.last_round(config.campaign.name) else ""
    return f"Next: {step}.{' ' * bool(extend)}{extend}"


def open_round(ctx: Context) -> Round:
    """The unfinished round, or a new one.

    Raises:
        StageError: the campaign is finished, or nothing can be bought from the start.
    """
    last = ctx.store.last_round(ctx.name)
    if last is not None and last.stage != "done":
        return last
    take_in_new_texts(ctx)
    if reason := why_finished(ctx):
        ends = "is finished" if last else "cannot begin"
        raise StageError(
            f"The campaign {ends}: {reason}.{' See `goldloop report`.' * bool(last)}"
            f" {how_to_extend(ctx.config, ctx.store)}"
        )
    return new_round(ctx, last.number + 1 if last else 1)


def new_round(ctx: Context, number: int, **settings: Any) -> Round:
    """Opens a round; the settings are kept with the campaign file as run.

    Says what has changed in the file since the round before.
    """
    config = ctx.config.model_dump(mode="json")
    last = ctx.store.last_round(ctx.name)
    if last is not None:
        for line in change_lines(changes(last.config, config), f"round {last.number}"):
            ctx.say(line)
        seeds = [ctx.config.rounds.seed + i for i in range(ctx.config.student.seeds)]
        told = seeds_line(last, seeds, last.config["student"]["seeds"])
        if told and last.number != VALIDATION:
            ctx.say(told)
    student = ctx.config.student
    if ctx.config.lr_why and (last is None or last.config["student"]["lr"] != student.lr):
        ctx.say(
            f"Students: {student.encoder}, learning rate {student.lr:g}, which"
            f" {ctx.config.lr_why}; student.lr sets another."
        )
    with ctx.store.transaction() as session:
        round_ = Round(
            campaign=ctx.name,
            number=number,
            stage=STAGES[0],
            seed=ctx.config.rounds.seed,
            config=config | settings,
            versions=versions(),
        )
        ctx.store.add_round(session, round_)
        ctx.store.log(session, ctx.name, "round", "opened", number=number)
    return round_


def next_command(round_: Round | None) -> str:
    """What to type next."""
    stage = round_.stage if round_ else "annotate"
    command = {"adjudicate": "pull", "repair": "train", "measure": "train", "done": "run"}
    return f"`goldloop {command.get(stage, stage)}`"


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    versions_of = {}
    names = ("goldloop", "torch", "transformers", "numpy", "faiss-cpu", "label-studio-sdk")
    for name in names:
        try:
            versions_of[name] = version(name)
        except PackageNotFoundError:
            versions_of[name] = "absent"
    return versions_of
