"""Whether store, files and the platform where people label agree, and what can be mended.

Nothing is guessed: a repair either removes what goldloop makes again, or has goldloop read again
what people answered. What only a person can decide is said and left alone.
"""

from __future__ import annotations

import glob
import json
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import make_url, text, update
from sqlmodel import col, select

from loop.campaign.changes import MARK
from loop.campaign.config import Config
from loop.campaign.database import RESTORE, damage, database_file
from loop.campaign.store import Store
from loop.campaign.tables import (
    DELETED,
    IMPORTED,
    OF_PROJECT,
    STAGES,
    VALIDATION,
    HiddenCheck,
    Item,
    Review,
    Run,
    Variant,
    VoteBlock,
    round_id,
)
from loop.errors import LoopError, StoreError
from loop.files import leftovers, moved_away, put_back, remove
from loop.llm.states import StateFile
from loop.operate.backup import SUFFIX
from loop.people.answers import OF_TASK, stored_form
from loop.people.forgotten import Forgotten
from loop.people.gold import LABELLED
from loop.ports import Fetched, Reviewer, item_id

SHOWN = 3  # examples of a finding
OWN_FOLDERS = ("cache", "models", "states")
"""In the campaign's folder, for goldloop alone."""
_CHANGED = "Something else than goldloop has changed the store; restore the newest backup."


@dataclass(frozen=True)
class Finding:
    """Something that does not fit together.

    Attributes:
        where: "store", "files", or the platform where people label.
        what: one sentence.
        do: what a person can do about it.
        repair: mends it and says what was done; None where nothing can be mended automatically.
    """

    where: str
    what: str
    do: str
    repair: Callable[[], str] | None = None


def check_campaign(
    config: Config, store: Store, reviewer: Callable[[], Reviewer] | None
) -> Iterator[Finding]:
    """Everything that does not fit together, part by part.

    Args:
        reviewer: how to reach where people label; None leaves it out. It is asked only where tasks
            were sent.
    Raises:
        LoopError: the store or the platform cannot be read.
    """
    file = database_file(store.engine.url)
    if file is not None and (what := damage(file, indexes=True)) is not None:
        yield Finding("store", f"The database file is damaged: {what[:200]}.", RESTORE)
        return  # what can still be read of it may be wrong
    yield from _orphans(store)
    if store.campaign_uid(config.campaign.name):
        yield from _texts(store, config.campaign.name)
        yield from _people(config, store)
        yield from _labels(config, store)
        yield from _files(config, store)
        if reviewer is not None and store.project_id(config.campaign.name) is not None:
            yield from _platform(config, store, reviewer())


def _some(things: list[str]) -> str:
    shown = ", ".join(sorted(things)[:SHOWN])
    return f"{shown}, …" if len(things) > SHOWN else shown


# the store


def _orphans(store: Store) -> Iterator[Finding]:
    """Rows that refer to rows that are gone."""
    if store.engine.dialect.name != "sqlite":
        return  # PostgreSQL looks all the time
    with store.transaction() as session:
        orphans = Counter(
            f"{row[0]} without its {row[2]}"
            for row in session.execute(text("pragma foreign_key_check"))
        )
    for what, rows in orphans.items():
        yield Finding(
            "store",
            f"{rows:,} rows of {what}.",
            _CHANGED,
        )


def _people(config: Config, store: Store) -> Iterator[Finding]:
    """Reviews, answers and gold."""
    name = config.campaign.name
    answers = store.annotations(name)
    gold = store.gold(name)
    reviews = store.reviews(name)
    checks = store.checks(name)
    known = {key.id for key in store.keys(name)}
    asked = known | {check.id for check in checks}

    def read_again() -> str:
        store.read_anew(name)
        return "The next `goldloop pull` reads every answer again and decides anew."

    answered = {a.item_id for a in answers}
    unfounded = [i for i, g in gold.items() if g.how != IMPORTED and i not in answered]
    if unfounded:
        yield Finding(
            "store",
            f"{len(unfounded):,} gold labels have no answer behind them ({_some(unfounded)}).",
            "Read the answers again with `goldloop pull --all`.",
            read_again,
        )
    over = {
        round_id(r)
        for r in store.rounds(name)
        if STAGES.index(r.stage) > STAGES.index("adjudicate")
    }
    undecided = [
        r.item_id
        for r in reviews
        if r.round_id in over and r.outcome in LABELLED and r.item_id not in gold
    ]
    if undecided:
        yield Finding(
            "store",
            f"{len(undecided):,} texts were decided by people, and their gold labels are gone"
            f" ({_some(undecided)}).",
            "Decide them again with `goldloop pull --all`.",
            read_again,
        )
    labels = set(store.labels(name))
    meant = [a.item_id for a in answers if a.label is not None and a.label not in labels]
    if meant:
        yield Finding(
            "store",
            f"{len(meant):,} answers have labels that the campaign has not ({_some(meant)}).",
            _CHANGED,
        )
    odd = sorted({g.label for g in gold.values()} - labels)
    if odd:
        yield Finding(
            "store",
            f"Gold names labels that the campaign has not: {_some(odd)}.",
            "Add them to the end of the labels in the campaign file, or restore a backup.",
        )
    strange = sorted({a.item_id for a in answers} - asked)
    if strange:
        yield Finding(
            "store",
            f"Answers belong to {len(strange):,} texts that the store does not know"
            f" ({_some(strange)}).",
            "They count for nothing; restore a backup if the texts were deleted by mistake.",
        )
    everything: list[Review | HiddenCheck] = [*reviews, *checks]
    tasks = Counter(sent.task_id for sent in everything if sent.task_id is not None)
    shared = [task for task, n in tasks.items() if n > 1]
    if shared:
        yield Finding(
            "store",
            f"{len(shared):,} tasks stand for more than one text ({_some(shared)}).",
            "Nobody can tell which text their answers are about; restore the newest backup.",
        )
    chosen = sum(
        int(event.detail.get("chosen", 0)) + int(event.detail.get("checks", 0))
        for event in store.events(name, "select", "done")
    )
    withdrawn = sum(len(e.detail["texts"]) for e in store.events(name, "pull", "withdrawn"))
    if (gone := chosen - withdrawn - len(everything)) > 0:
        yield Finding("store", f"{gone:,} texts that were chosen for people are gone.", _CHANGED)


def _texts(store: Store, name: str) -> Iterator[Finding]:
    """Each text is the one that its id was made of."""
    query = select(Item.id, Item.text).where(Item.campaign == name)
    with store.transaction() as session:
        rows = session.execute(query, execution_options={"yield_per": 5_000})
        other = [id_ for id_, said in rows if item_id(name, said) != id_]
    if other:
        what = f"{len(other):,} texts are not those that were imported ({_some(other)})."
        yield Finding("store", what, _CHANGED)


def _labels(config: Config, store: Store) -> Iterator[Finding]:
    """What the LLM said, the scores and what the students learned."""
    name = config.campaign.name
    known = np.array([key.row for key in store.keys(name)], dtype=np.int64)
    prompts = select(Variant.annotator, Variant.hash).where(Variant.campaign == name)
    asked = select(VoteBlock.annotator, VoteBlock.variant_hash).where(VoteBlock.campaign == name)
    with store.transaction() as session:
        voted = set(session.exec(asked.distinct()).all())
        lost = voted - set(session.exec(prompts).all())
    if lost:
        yield Finding(
            "store", f"{len(lost):,} prompts are gone that the LLM has answered.", _CHANGED
        )
    answered: list[NDArray[np.int64]] = []
    try:
        for annotator in sorted({annotator for annotator, _ in voted}):
            yield from _votes(config, store, annotator, known, answered)
        rows = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *answered]))
        yield from _of_rounds(store, name, known, rows)
    except StoreError as exc:
        yield Finding("store", str(exc), "Restore the newest backup.")


def _of_rounds(
    store: Store, name: str, known: NDArray[np.int64], answered: NDArray[np.int64]
) -> Iterator[Finding]:
    """What every round must have of the stages that it has passed.

    Args:
        known: rows of the texts that there are.
        answered: rows of those that the LLM has labelled.
    """
    trained = {run.round_id for run in store.runs(name)}
    for round_ in store.rounds(name):
        at, id_ = STAGES.index(round_.stage), round_id(round_)
        waiting: list[Review | HiddenCheck] = [
            *store.reviews(name, id_),
            *store.checks(name, id_),
        ]
        stages = {
            "score": store.has_scores(id_),
            "push": all(sent.task_id is not None for sent in waiting),
        }
        if round_.number != VALIDATION:  # which only measures the LLM
            stages |= {
                "repair": store.has_training_labels(id_),
                "train": id_ in trained,
                "measure": round_.metrics is not None,
            }
        for stage, has in stages.items():
            if at > STAGES.index(stage) and not has:
                yield Finding(
                    "store",
                    f"Round {round_.number} is past stage {stage}, and what that stage stores is"
                    " gone.",
                    _CHANGED,
                )
        scores = store.all_scores(id_)
        heard = scores.rows[(scores.llm >= 0) & np.isin(scores.rows, known)]
        if unheard := int((~np.isin(heard, answered)).sum()):
            yield Finding(
                "store",
                f"The LLM's answers to {unheard:,} texts of round {round_.number} are gone.",
                _CHANGED,
            )
        rows = np.concatenate([scores.rows, store.all_training_labels(id_).rows])
        if strange := int((~np.isin(rows, known)).sum()):
            yield Finding(
                "store",
                f"{strange:,} scores and training labels of round {round_.number} are of texts"
                " that the store does not know.",
                "Restore the newest backup.",
            )


def _votes(
    config: Config,
    store: Store,
    annotator: str,
    known: NDArray[np.int64],
    answered: list[NDArray[np.int64]],
) -> Iterator[Finding]:
    """One annotator's votes: of texts that are there, once each, and probabilities.

    Args:
        answered: gets the rows that they are of.
    """
    strange = wrong = twice = 0
    seen: dict[str, list[NDArray[np.int64]]] = {}
    for block in store.votes(config.campaign.name, annotator):
        rows, n = np.asarray(block.rows, dtype=np.int64), block.votes
        seen.setdefault(block.variant_hash, []).append(rows)
        strange += int((~np.isin(rows, known)).sum())
        probs = block.probs.reshape(n, -1)
        sound = np.isfinite(probs).all(axis=1) & (probs >= 0).all(axis=1) & (probs.sum(axis=1) > 0)
        wrong += int((~sound).sum()) if probs.shape[1] <= len(config.labels) else n
    for parts in seen.values():
        rows = np.concatenate(parts)
        answered.append(np.unique(rows))
        twice += len(rows) - len(np.unique(rows))
    for votes, what in (
        (strange, "are of texts that the store does not know"),
        (wrong, "are no probabilities of the campaign's labels"),
        (twice, "were stored twice"),
    ):
        if votes:
            yield Finding(
                "store", f"{votes:,} votes of the LLM {what}.", "Restore the newest backup."
            )


# files


def _files(config: Config, store: Store) -> Iterator[Finding]:
    """Models, caches, marks, leftovers and permissions."""
    yield from _models(config, store)
    out, name = config.out, config.campaign.name
    for path in sorted((out / "cache").glob("*")):
        if path.suffix in (".json", ".npz") and path.is_file() and not _is_sound(path):
            yield Finding("files", f"The cache {path} is damaged.", "Delete it.", _deleting(path))
    for path in sorted((out / "states").glob("*.bin")):
        if StateFile(path).read([]) is None:
            yield Finding(
                "files",
                f"The LLM's hidden states in {path} cannot be read.",
                "Delete it; repair and suspicion then go without them.",
                _deleting(path),
            )
    mark = _json(out / MARK)
    if isinstance(mark, dict) and mark.get("uid") not in (None, store.campaign_uid(name)):
        yield Finding(
            "files",
            f"{out} belongs to another campaign ({mark.get('campaign')!r}).",
            "Give this one a store.folder of its own.",
        )
    database = database_file(make_url(config.store_url))
    yield from _half_written(config, database)
    secret = [config.out / f"{name}.serve.json"]
    if database is not None:
        secret += [database, *database.parent.glob(f"{database.name}-*")]
        secret += [*database.parent.glob(f"{database.name}.*")]
    public = [p for p in secret if p.is_file() and stat.S_IMODE(p.stat().st_mode) & 0o077]
    if public:
        yield Finding(
            "files",
            f"Other users can read {_some([str(p) for p in public])}.",
            "Run `chmod 600` on them.",
            _closing(public),
        )


def _half_written(config: Config, database: Path | None) -> Iterator[Finding]:
    """What killed commands left in the folders that goldloop writes to."""
    out, own = config.out, {MARK, "report.html", "rounds.json", "codebook.md", "final"}
    own |= {f"{config.campaign.name}.serve.json"} | ({database.name} if database else set())
    beside = [config.folder, *([database.parent] if database else [])]
    shared = {folder.resolve() for folder in beside} - {out.resolve()}
    if config.folder.resolve().is_relative_to(out.resolve()):
        shared.add(out.resolve())  # other people's files lie there as well
    folders = [*shared, *(out, *(out / name for name in OWN_FOLDERS))]
    for folder in dict.fromkeys(folder.resolve() for folder in folders):

        def ours(name: str, everything: bool = folder not in shared) -> bool:
            return everything or name in own or name.endswith(SUFFIX)

        def left(folder: Path = folder, ours: Callable[[str], bool] = ours) -> list[Path]:
            copies = database.name if database and folder == database.parent else None
            return [
                *leftovers(folder, ours),
                *(folder.glob(f"{glob.escape(copies)}.schema-*.partial") if copies else ()),
            ]

        if away := moved_away(folder, ours):
            yield Finding(
                "files",
                f"{_some([str(path) for path in away])}: a killed command had moved it away and"
                " did not replace it.",
                "Give the folder beside it that ends in .old its name again.",
                _putting_back(away),
            )
        if half := left():
            yield Finding(
                "files",
                f"{len(half)} half-written files of killed commands are left in {folder}.",
                "Delete them when no goldloop runs.",
                _clearing(left),
            )


def _putting_back(paths: list[Path]) -> Callable[[], str]:
    def restore() -> str:
        for path in paths:
            put_back(path)
        return "It is in its place again."

    return restore


def _clearing(left: Callable[[], list[Path]]) -> Callable[[], str]:
    def clear() -> str:
        for path in left():  # without those that a command has begun to write meanwhile
            remove(path)
        return "Deleted."

    return clear


def _models(config: Config, store: Store) -> Iterator[Finding]:
    name = config.campaign.name
    kept = [run for run in store.runs(name) if run.model_path]
    away = set(moved_away(config.out / "models"))
    gone = [
        run
        for run in kept
        if not (config.out / str(run.model_path)).is_dir()
        and config.out / str(run.model_path) not in away
    ]
    if gone:

        def forget() -> str:
            with store.transaction() as session:
                ids = [run.id for run in gone]
                session.exec(update(Run).where(col(Run.id).in_(ids)).values(model_path=None))
                store.log(session, name, "fsck", "models gone", runs=ids)
            return "They are trained again when they are needed."

        yield Finding(
            "files",
            f"{len(gone)} trained models are gone ({_some([str(r.model_path) for r in gone])}).",
            f"Put them back into {config.out}, or let them be trained again.",
            forget,
        )


def _json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _is_sound(path: Path) -> bool:
    if path.suffix == ".json":
        return _json(path) is not None
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, ValueError, zipfile.BadZipFile, EOFError):
        return False


def _deleting(path: Path) -> Callable[[], str]:
    def delete() -> str:
        path.unlink(missing_ok=True)
        return "Deleted."

    return delete


def _closing(paths: list[Path]) -> Callable[[], str]:
    def close() -> str:
        for path in paths:
            if path.exists():  # else another repair has deleted it
                path.chmod(0o600)
        return "Only their owner can read them now."

    return close


# the platform where people label


def _platform(config: Config, store: Store, reviewer: Reviewer) -> Iterator[Finding]:
    """The tasks and answers there, against those in the store."""
    name, platform = config.campaign.name, config.people.platform_name
    reviewer.open_project(store.project_id(name))
    fetched = reviewer.fetch(None)
    if not fetched.whole:
        raise LoopError("Not every task could be read; try again.")
    there = Counter(task.item_id for task in fetched.tasks)
    task_ids = {task.task_id for task in fetched.tasks} | set(fetched.unserved)
    reviews = store.reviews(name)
    ours = {review.item_id for review in reviews if review.task_id is not None}
    ours |= {check.id for check in store.checks(name) if check.task_id is not None}
    waiting = {
        str(r.task_id)
        for r in reviews
        if r.task_id is not None and r.closed_at is None and r.outcome != DELETED
    }

    def read_again() -> str:
        store.read_anew(name)
        return "The next `goldloop pull` reads every task again."

    lost = sorted(waiting - task_ids)
    if lost:
        yield Finding(
            platform,
            f"{len(lost):,} texts wait for people, and their tasks are gone ({_some(lost)}).",
            "`goldloop pull --all` stops waiting for them.",
            read_again,
        )
    unknown = [i for i in there if i not in ours]
    if unknown:
        yield Finding(
            platform,
            f"{len(unknown):,} tasks of this campaign are unknown to the store ({_some(unknown)}).",
            "The store is older than the project, or the push was interrupted: run `goldloop run`."
            f" If it stays, delete them in {platform}.",
        )
    twice = [i for i, n in there.items() if n > 1]
    if twice:
        yield Finding(
            platform,
            f"{len(twice):,} texts have more than one task ({_some(twice)}).",
            f"Delete the tasks without answers in {platform}.",
        )
    here, now_there = _answers_here(store, name, ours), _answers_there(store, name, ours, fetched)
    changed = {(item, number) for item, number, _ in now_there.keys() ^ here.keys()}
    if fetched.unserved:  # what cannot be shown now may be answered as before
        changed &= {(item, number) for item, number, _ in now_there}
    if changed:
        yield Finding(
            platform,
            f"{len(changed):,} answers differ between {platform} and the store.",
            "`goldloop pull --all` takes what is there.",
            read_again,
        )
    otherwise = [
        key[0] for key in now_there.keys() & here.keys() if here[key] not in (None, now_there[key])
    ]
    if otherwise:
        yield Finding(
            platform,
            f"{len(otherwise):,} answers are not stored as {platform} has them since the same"
            f" moment ({_some(otherwise)}).",
            _CHANGED,
        )


Answers = dict[tuple[str, str, str], tuple[str | None, bool] | None]
"""By text, number and moment: the label, and whether it was skipped; None is not to be compared."""


def _answers_here(store: Store, name: str, ours: set[str]) -> Answers:
    """The current answers as the store has them."""
    answers: Answers = {}
    for a in store.annotations(name):
        if a.item_id in ours and OF_PROJECT not in a.task_id:
            number, shared, _ = a.annotation_id.partition(OF_TASK)
            answers[a.item_id, number, a.updated_at] = None if shared else (a.label, a.skipped)
    return answers


def _answers_there(store: Store, name: str, ours: set[str], fetched: Fetched) -> Answers:
    """The answers that there are on the platform, as the store would have them."""
    labels = set(store.labels(name))
    with store.transaction() as session:
        forgotten = Forgotten.of(store, session, name)
    answers: Answers = {}
    for task in fetched.tasks:
        for a in task.annotations if task.item_id in ours else ():
            row = stored_form(name, a, labels, forgotten)
            key = task.item_id, row["annotation_id"], row["updated_at"]
            answers.setdefault(key, (row["label"], row["skipped"]))  # the first counts
    return answers
