"""Whether store, files and Label Studio tell the same story, and what can be mended.

Nothing is guessed: a repair either removes what goldloop makes again, or has goldloop read again
what people answered. What only a person can decide is said and left alone.
"""

from __future__ import annotations

import json
import shutil
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import make_url, text, update
from sqlmodel import col

from loop.campaign.changes import MARK
from loop.campaign.config import Config
from loop.campaign.database import RESTORE, damage, database_file
from loop.campaign.store import Store
from loop.campaign.tables import (
    DELETED,
    IMPORTED,
    STAGES,
    VALIDATION,
    HiddenCheck,
    Review,
    Run,
    round_id,
)
from loop.errors import LoopError, StoreError
from loop.llm.states import StateFile
from loop.ports import Reviewer

SHOWN = 3  # examples of a finding


@dataclass(frozen=True)
class Finding:
    """Something that does not fit together.

    Attributes:
        what: one sentence.
        do: what a person can do about it.
        repair: mends it and says what was done; None where nothing can be mended automatically.
    """

    where: Literal["store", "files", "Label Studio"]
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
        LoopError: the store or Label Studio cannot be read.
    """
    file = database_file(store.engine.url)
    if file is not None and (what := damage(file, indexes=True)) is not None:
        yield Finding("store", f"The database file is damaged: {what[:200]}.", RESTORE)
        return  # what can still be read of it may be wrong
    yield from _orphans(store)
    if store.campaign_uid(config.campaign.name):
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
            "Something else than goldloop has changed the store; restore the newest backup.",
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
    labels = set(store.labels(name))
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


def _labels(config: Config, store: Store) -> Iterator[Finding]:
    """What the LLM said, the scores and what the students learned."""
    name = config.campaign.name
    known = np.array([key.row for key in store.keys(name)], dtype=np.int64)
    try:
        for annotator in store.annotators(name):
            yield from _votes(config, store, annotator, known)
        yield from _of_rounds(store, name, known)
    except StoreError as exc:
        yield Finding("store", str(exc), "Restore the newest backup.")


def _of_rounds(store: Store, name: str, known: NDArray[np.int64]) -> Iterator[Finding]:
    """The scores and training labels of every round."""
    for round_ in store.rounds(name):
        if round_.number == VALIDATION:
            continue
        at, id_ = STAGES.index(round_.stage), round_id(round_)
        for stage, has in (
            ("score", store.has_scores(id_)),
            ("repair", store.has_training_labels(id_)),
        ):
            if at > STAGES.index(stage) and not has:
                yield Finding(
                    "store",
                    f"Round {round_.number} is past stage {stage}, and nothing of that stage is"
                    " stored.",
                    "Restore the newest backup.",
                )
        rows = np.concatenate([store.all_scores(id_).rows, store.all_training_labels(id_).rows])
        if strange := int((~np.isin(rows, known)).sum()):
            yield Finding(
                "store",
                f"{strange:,} scores and training labels of round {round_.number} are of texts"
                " that the store does not know.",
                "Restore the newest backup.",
            )


def _votes(
    config: Config, store: Store, annotator: str, known: NDArray[np.int64]
) -> Iterator[Finding]:
    """One annotator's votes: of texts that are there, once each, and probabilities."""
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
    folders = [out, *([database.parent] if database is not None else [])]
    for folder in dict.fromkeys(folder.resolve() for folder in folders):
        leftovers = [*folder.glob(".*.part"), *folder.glob(".*.old")]
        if leftovers:
            yield Finding(
                "files",
                f"{len(leftovers)} half-written files of killed commands are left in {folder}.",
                "Delete them when no goldloop runs.",
                _deleting(*leftovers),
            )
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


def _models(config: Config, store: Store) -> Iterator[Finding]:
    name = config.campaign.name
    kept = [run for run in store.runs(name) if run.model_path]
    gone = [run for run in kept if not (config.out / str(run.model_path)).is_dir()]
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


def _deleting(*paths: Path) -> Callable[[], str]:
    def delete() -> str:
        for path in paths:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        return "Deleted."

    return delete


def _closing(paths: list[Path]) -> Callable[[], str]:
    def close() -> str:
        for path in paths:
            path.chmod(0o600)
        return "Only their owner can read them now."

    return close


# Label Studio


def _platform(config: Config, store: Store, reviewer: Reviewer) -> Iterator[Finding]:
    """The tasks and answers there, against those in the store."""
    name = config.campaign.name
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
            "Label Studio",
            f"{len(lost):,} texts wait for people, and their tasks are gone ({_some(lost)}).",
            "`goldloop pull --all` stops waiting for them.",
            read_again,
        )
    unknown = [i for i in there if i not in ours]
    if unknown:
        yield Finding(
            "Label Studio",
            f"{len(unknown):,} tasks of this campaign are unknown to the store ({_some(unknown)}).",
            "The store is older than the project, or the push was interrupted: run `goldloop run`."
            " If it stays, delete them in Label Studio's Data Manager.",
        )
    twice = [i for i, n in there.items() if n > 1]
    if twice:
        yield Finding(
            "Label Studio",
            f"{len(twice):,} texts have more than one task ({_some(twice)}).",
            "Delete the tasks without answers in Label Studio's Data Manager.",
        )
    current = {a.annotation_id.partition(" of task ")[0] for a in store.annotations(name)}
    now_there = {
        a.annotation_id for task in fetched.tasks if task.item_id in ours for a in task.annotations
    }
    differ = (now_there - current) | (current - now_there if not fetched.unserved else set())
    if differ:
        yield Finding(
            "Label Studio",
            f"{len(differ):,} answers differ between Label Studio and the store.",
            "`goldloop pull --all` takes what is there.",
            read_again,
        )
