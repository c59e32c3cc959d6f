"""One person's data taken out of a campaign; what they answered stays, under a pseudonym."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import make_url, text, update
from sqlmodel import Session, col, select

from loop.campaign.config import Config
from loop.campaign.database import database_file
from loop.campaign.store import Store
from loop.campaign.tables import Annotation, Event, Round
from loop.errors import LoopError
from loop.files import replacing
from loop.people.forgotten import Forgotten, without_name

READ = {".json", ".jsonl", ".html", ".md", ".csv", ".txt", ".tex", ".svg"}
"""Files of the campaign's folder in which names are replaced."""
MOST_FILE_BYTES = 2**28
WEIGHTS = "model.safetensors"
"""Beside it lies a model's vocabulary, which may have a name among its words."""


@dataclass(frozen=True)
class ForgottenPerson:
    """What was done about one person.

    Attributes:
        answers: states of answers that are now under the pseudonym.
        mentions: other rows of the store that named them.
        files: in which their name was replaced.
        left: what still holds the name and is not goldloop's to change, in sentences.
    """

    pseudonym: str
    answers: int
    mentions: int
    files: tuple[Path, ...]
    left: tuple[str, ...]


def forget_person(
    config: Config, store: Store, person: str, also: Sequence[str] = ()
) -> ForgottenPerson:
    """Replaces a person's name by a pseudonym in the store and in the campaign's folder.

    Doing it again is safe, and finishes what was interrupted.

    Args:
        person: as ``goldloop people`` shows them.
        also: other names of theirs that may stand in notes and comments.
    Raises:
        LoopError: nobody of that name answered.
        StoreError: the store cannot be written; the rows are then as they were.
    """
    name = config.campaign.name
    if not person.strip() or not all(other.strip() for other in also):
        raise LoopError("The name is empty; `goldloop people` lists everybody who answered.")
    names = (person, *also)
    with store.transaction() as session:
        if store.engine.dialect.name == "sqlite":
            session.connection().exec_driver_sql("PRAGMA secure_delete=ON")
        forgotten = Forgotten.of(store, session, name)
        everybody = set(store.everybody(session, name)) | _in_imports(store, session, name)
        known = forgotten.pseudonym(person)
        if known is None and person.casefold() not in {who.casefold() for who in everybody}:
            raise LoopError(
                f"Nobody called {person!r} answered in campaign {name!r}; `goldloop people` lists"
                " everybody who did."
            )
        pseudonym = known or forgotten.new_pseudonym(person, everybody)
        answers, mentions = _in_store(session, name, names, pseudonym)
        for other in names:  # whichever of them answers again
            forgotten.remember(store, session, name, other, pseudonym)
    _clear_free_pages(store)
    files = _in_files(config, names, pseudonym)
    left = _left(config, store, person, pseudonym)
    return ForgottenPerson(pseudonym, answers, mentions, files, left)


def _in_imports(store: Store, session: Session, campaign: str) -> set[str]:
    """Whose labels were imported."""
    events = store.events(campaign, "import-labels", session=session)
    return {
        str(answer[1])
        for event in events
        for given in event.detail.get("answers", {}).values()
        for answer in given
        if answer[1]
    }


def _in_store(
    session: Session, campaign: str, names: Sequence[str], pseudonym: str
) -> tuple[int, int]:
    """Replaces the names in all rows that may hold them; answers, and other rows."""
    answers = mentions = 0
    persons = {name.casefold() for name in names}
    query = select(Annotation).where(Annotation.campaign == campaign)
    for row in session.exec(query.execution_options(yield_per=1000)):
        own = row.annotator.casefold() in persons or row.annotator == pseudonym
        values: dict[str, Any] = {
            "annotation_id": row.annotation_id,
            "note": row.note,
            "problem": row.problem,
        }
        values = without_name(values, names, pseudonym)
        values["annotator"] = pseudonym if own else row.annotator
        values["raw"] = without_name(row.raw, names, pseudonym, own=own)
        if changed := {k: v for k, v in values.items() if getattr(row, k) != v}:
            session.exec(update(Annotation).where(col(Annotation.id) == row.id).values(**changed))
            answers += own
            mentions += not own
    for event in session.exec(select(Event).where(Event.campaign == campaign)).all():
        detail = without_name(event.detail, names, pseudonym)
        if detail != event.detail:
            session.exec(update(Event).where(col(Event.id) == event.id).values(detail=detail))
            mentions += 1
    for round_ in session.exec(select(Round).where(Round.campaign == campaign)).all():
        config = without_name(round_.config, names, pseudonym)
        if config != round_.config:
            session.exec(update(Round).where(col(Round.id) == round_.id).values(config=config))
            mentions += 1
    return answers, mentions


def _clear_free_pages(store: Store) -> None:
    """Has the database write itself anew, so that no page keeps what was replaced."""
    sqlite = store.engine.dialect.name == "sqlite"
    statements = (
        ("VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)")
        if sqlite
        else ('VACUUM FULL annotation, event, "round"',)
    )
    with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in statements:
            connection.execute(text(statement))


def _in_files(config: Config, names: Sequence[str], pseudonym: str) -> tuple[Path, ...]:
    changed = []
    for path in _files(config.out, lambda path: path.suffix in READ):
        if _is_machines(path.relative_to(config.out)) or (path.parent / WEIGHTS).exists():
            continue
        if path.stat().st_size > MOST_FILE_BYTES:
            continue
        content = path.read_bytes().decode("utf-8", "surrogateescape")
        new = without_name(content, names, pseudonym)
        if new != content:
            with replacing(path, mode=path.stat().st_mode & 0o777) as file:
                file.write(new.encode("utf-8", "surrogateescape"))
            changed.append(path)
    return tuple(changed)


def _is_machines(path: Path) -> bool:
    """Whether a file of the campaign's folder is a model's or a cache's, in which no person is."""
    return path.parts[0] in ("models", "cache", "states")


def _files(folder: Path, wanted: Callable[[Path], bool]) -> list[Path]:
    if not folder.is_dir():
        return []
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink() and wanted(path)
    ]


def _left(config: Config, store: Store, person: str, pseudonym: str) -> tuple[str, ...]:
    """Where the name still is, and what a person has to do there."""
    left = []
    if config.people.adjudicator is not None and (
        config.people.adjudicator.casefold() == person.casefold()
    ):
        left.append(
            f'the campaign file names this person as people.adjudicator: write "{pseudonym}" there'
        )
    project = store.project_id(config.campaign.name)
    if config.people.platform == "label_studio" and project is not None:
        left.append(
            f"Label Studio ({config.label_studio.url}): delete the account of {person} there"
            f" (Organization > People); their answers in project {project} then name nobody"
        )
    folders = [config.folder, config.out]
    database = database_file(make_url(config.store_url))
    copies: list[Path] = []
    if database is not None:
        folders.append(database.parent)
        copies = sorted(database.parent.glob(f"{database.name}.schema-*"))
    copies += sorted({path for folder in folders for path in folder.glob("*.goldloop.zip")})
    left += [f"the copy {path}: delete it, and make a new backup" for path in copies]
    tables = _files(config.out, lambda path: path.suffix in (".parquet", ".arrow", ".xlsx"))
    left += [f"the table {path}: write it again if it says who answered" for path in tables]
    left.append("what was exported to other folders, backups elsewhere, and log files")
    return tuple(left)
