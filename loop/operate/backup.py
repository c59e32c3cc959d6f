"""A whole campaign in one file, and back: from SQLite to PostgreSQL too, or the other way.

The store is read in one transaction, so that a backup is of one moment while the campaign goes on.
Tables are written as lines of JSON, which both databases take. A restored store is there whole or
not at all.
"""

from __future__ import annotations

import base64
import json
import math
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Connection,
    DateTime,
    Engine,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    insert,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError, StatementError
from sqlalchemy.types import TypeEngine

from loop import __version__
from loop.campaign.changes import MARK
from loop.campaign.config import Config, read
from loop.campaign.database import VERSION_TABLE, create_filled, database_file
from loop.errors import DataError, LoopError, StoreError
from loop.files import leftovers, replacing
from loop.operate.archive import Archive, ArchiveWriter, opening_archive, writing_archive

SUFFIX = ".goldloop.zip"
CAMPAIGN_FILE, SOURCE, OUT, TABLES = "files/campaign.toml", "files/source", "files/out/", "tables/"
MODELS, CACHES = ("models", "final"), ("cache", "states")
ROWS = 5_000  # that are in memory at a time
SHOWN = 5  # names of files in one sentence
_KINDS: tuple[tuple[type[TypeEngine[Any]], str], ...] = (
    (JSON, "json"),
    (DateTime, "time"),
    (Boolean, "bool"),
    (LargeBinary, "bytes"),
    (Integer, "int"),
    (Float, "float"),
)


@dataclass(frozen=True)
class Contents:
    """What a backup holds.

    Attributes:
        left_out: what a user may expect in it and has to keep in another way, in sentences.
    """

    path: Path
    campaign: str
    schema: str
    rows: int
    files: int
    left_out: tuple[str, ...] = ()

    def line(self) -> str:
        """What is in it, for people to read."""
        return (
            f"campaign {self.campaign!r}, {self.rows:,} rows of schema {self.schema},"
            f" {self.files:,} files"
        )


# writing


def write_backup(
    config: Config,
    engine: Engine,
    campaign_file: Path,
    out: Path | None = None,
    *,
    models: bool = False,
    caches: bool = False,
) -> Contents:
    """Writes the store, the campaign file, its texts and its results into one file.

    Args:
        engine: of the store; all campaigns that it holds are written.
        out: the file, or the folder where it goes under a name with the time.
        models: also the students' models; without them they are trained again when needed.
        caches: also embeddings and the LLM's hidden states.

    Raises:
        LoopError: there is such a file already, or it cannot be written.
    """
    stamp = datetime.now(UTC)
    out = Path() if out is None else out
    if out.is_dir():
        out = out / f"{config.campaign.name}-{stamp:%Y%m%d-%H%M%S}{SUFFIX}"
    if out.exists():
        raise LoopError(f"{out} exists already; name another file, so that no backup is lost.")
    about: dict[str, Any] = {
        "goldloop": __version__,
        "campaign": config.campaign.name,
        "made_at": stamp.isoformat(timespec="seconds"),
    }
    source = Path(config.source)
    own_source = source.is_file() and source.resolve().is_relative_to(config.folder.resolve())
    left_out = [] if own_source else [f"the texts' source {config.texts.source}"]
    if not models and any((config.out / name).is_dir() for name in MODELS):
        left_out.append("the students' models (--with-models)")
    try:
        with writing_archive(out, about) as archive:
            about["tables"] = {}
            with _one_moment(engine) as connection:
                about["schema"] = _schema(connection)
                for table in _tables(connection):
                    kinds = [(column.name, _kind(column.type)) for column in table.columns]
                    with archive.adding(f"{TABLES}{table.name}.jsonl") as added:
                        rows = 0
                        for block in _blocks(connection, table):
                            added.write(b"".join(_line(row, kinds) for row in block))
                            rows += len(block)
                    about["tables"][table.name] = {"columns": kinds, "rows": rows}
            if not archive.add_file(CAMPAIGN_FILE, campaign_file):
                raise LoopError(f"{campaign_file} is gone; put it back, and run this again.")
            if own_source and not archive.add_file(SOURCE, source):
                left_out.append(f"the texts' source {config.texts.source}, which is gone")
            left_out += _add_results(
                archive, config, _files(config, campaign_file, models=models, caches=caches)
            )
            files = len(archive.members) - len(about["tables"])
    except OSError as exc:
        raise LoopError(
            f"The backup {out} cannot be written: {exc.strerror or exc}. Nothing is left of it;"
            " correct that, or name another file."
        ) from exc
    rows = sum(table["rows"] for table in about["tables"].values())
    return Contents(out, config.campaign.name, about["schema"], rows, files, tuple(left_out))


def _add_results(archive: ArchiveWriter, config: Config, paths: Iterable[Path]) -> list[str]:
    """Adds the files that a backup can hold; what it leaves out and why, in sentences."""
    left: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        name = path.relative_to(config.out).as_posix()
        why = archive.why_not(OUT + name)
        if why is None and not archive.add_file(OUT + name, path):
            why = "gone since the backup began, as models and caches are while they are made anew"
        if why is not None:
            left[why].append(name.encode("utf-8", "backslashreplace").decode())
    return [
        f"{', '.join(names[:SHOWN])}{f' and {more:,} more' if more > 0 else ''} ({why})"
        for why, names in left.items()
        for more in [len(names) - SHOWN]
    ]


@contextmanager
def _one_moment(engine: Engine) -> Iterator[Connection]:
    """A transaction that sees the store as it was when it began, and hinders no writer."""
    sqlite = engine.dialect.name == "sqlite"
    options: dict[str, Any] = {} if sqlite else {"isolation_level": "REPEATABLE READ"}
    with engine.connect().execution_options(**options) as connection:
        if sqlite:
            connection.exec_driver_sql("BEGIN")  # the driver would begin none to read
        else:
            connection.execute(text("set transaction read only"))
        try:
            yield connection
        finally:
            connection.rollback()


def _schema(connection: Connection) -> str:
    return str(connection.execute(text(f"select version_num from {VERSION_TABLE}")).scalar())  # noqa: S608


def _tables(connection: Connection) -> list[Table]:
    """The store's tables as the database has them, those that others refer to first."""
    metadata = MetaData()
    metadata.reflect(connection)
    return [table for table in metadata.sorted_tables if table.name != VERSION_TABLE]


def _kind(type_: TypeEngine[Any]) -> str:
    return next((kind for cls, kind in _KINDS if isinstance(type_, cls)), "text")


def _blocks(connection: Connection, table: Table) -> Iterator[list[Any]]:
    query = select(table).order_by(*table.primary_key.columns)
    result = connection.execution_options(yield_per=ROWS).execute(query)
    yield from (list(block) for block in result.partitions(ROWS))


def _line(row: Any, kinds: list[tuple[str, str]]) -> bytes:
    values = [_portable(value, kind) for value, (_, kind) in zip(row, kinds, strict=True)]
    return json.dumps(values).encode() + b"\n"


def _portable(value: Any, kind: str) -> Any:
    if value is None or kind == "json":
        return value
    if kind == "time":
        moment: datetime = value if value.tzinfo else value.replace(tzinfo=UTC)
        return moment.astimezone(UTC).isoformat()
    if kind == "bytes":
        return base64.b64encode(value).decode()
    return value


def _files(config: Config, campaign_file: Path, *, models: bool, caches: bool) -> Iterator[Path]:
    """The results in the campaign's folder, without links, databases, secrets and half files."""
    out = config.out
    if not out.is_dir():
        return
    database = database_file(make_url(config.store_url))
    avoided = {campaign_file.resolve(), Path(config.source).resolve()}
    for path in sorted(out.iterdir()):
        odd = path.name == MARK or path.name.startswith(".") or path.name.endswith(".serve.json")
        of_store = database is not None and path.name.startswith(database.name)
        plain = path.is_file() and not path.is_symlink() and path.resolve() not in avoided
        if plain and not odd and not of_store and not path.name.endswith((SUFFIX, ".lock")):
            yield path
    folders = (*(MODELS if models else ()), *(CACHES if caches else ()))
    for folder in (out / name for name in folders):
        for path in sorted(folder.rglob("*")) if not folder.is_symlink() else ():
            hidden = any(part.startswith(".") for part in path.relative_to(out).parts)
            if path.is_file() and not path.is_symlink() and not hidden:
                yield path


# reading


def restore_backup(path: Path, file: Path) -> Contents:
    """Makes a campaign of a backup, in a folder and a database where there is none yet.

    The database comes last, so that a restore which was killed has made no campaign; run again, it
    continues with the files that are there as the backup has them.

    Args:
        path: what ``write_backup`` wrote.
        file: the campaign file. One that is there is used, with its own ``store``, which may be of
            the other kind of database; else the backup's is written there.

    Raises:
        DataError: the backup is damaged, or made to do harm; nothing was written.
        ConfigError: the campaign file cannot be used.
        LoopError: something is in the way, or a file cannot be written; nothing is left of it.
        StoreError: the database is not empty, or refuses the rows; nothing is left of it.
    """
    folder = file.absolute().parent
    if not folder.is_dir():
        raise LoopError(f"There is no folder {folder}; make it first.")
    with opening_archive(path, room_bytes=shutil.disk_usage(folder).free) as archive:
        about = _about(archive)
        given = file.exists()
        content = file.read_text(encoding="utf-8") if given else _campaign_text(archive)
        config = read(content, file.absolute())
        if config.campaign.name != about["campaign"]:
            raise LoopError(
                f"{path} holds campaign {about['campaign']!r}, and {file} is of"
                f" {config.campaign.name!r}; name another --file."
            )
        source = _restored_source(config, archive, path, trusted=given)
        places = {name: config.out / name.removeprefix(OUT) for name in _results(archive)}
        if source is not None:
            places[SOURCE] = source
        if not given:
            places[CAMPAIGN_FILE] = file.absolute()
        database = database_file(make_url(config.store_url))
        _refuse_in_the_way(archive, config, places, database)

        with ExitStack() as undo:
            if database is not None:
                _make_folder(database.parent, undo)
            _fill_store(config, archive, about, lambda: _unpack(archive, places, undo))
            undo.pop_all()  # it is a campaign now, and stays
        missing = [] if source or Path(config.source).exists() else [f"the texts {config.source}"]
        rows = sum(table["rows"] for table in about["tables"].values())
        files = sum(name.startswith(OUT) for name in places)
        return Contents(path, config.campaign.name, about["schema"], rows, files, tuple(missing))


def _results(archive: Archive) -> list[str]:
    """The members that go to the campaign's folder.

    Raises:
        DataError: ``write_backup`` gives no file such a name.
    """
    names = [name for name in archive.members if name.startswith(OUT)]
    for name in names:
        if any(part.startswith(".") for part in name.removeprefix(OUT).split("/")):
            raise DataError(
                f"{archive.path} is no backup that goldloop wrote: it holds the hidden file"
                f" {name!r}. Nothing was written."
            )
    return names


def _refuse_in_the_way(
    archive: Archive, config: Config, places: Mapping[str, Path], database: Path | None
) -> None:
    """Refuses to restore where something is already that is not as the backup has it.

    Args:
        places: where each member goes.
    Raises:
        DataError: two things would have one place.
        LoopError: something is there.
    """
    taken = [place.resolve() for place in places.values()]
    taken += [] if database is None else [database]
    if len({str(place).casefold() for place in taken}) != len(taken):
        raise DataError(
            f"{archive.path} holds a file of {config.out} that would take the place of the campaign"
            " file, the texts or the store. Nothing was written; name another store.folder."
        )
    out, inside = config.out, config.out.resolve()
    others = {out} if out.exists() and not out.is_dir() else set()
    if not config.folder.resolve().is_relative_to(inside):  # else much more lies there
        there = list(out.rglob("*"))
        folders = [path for path in there if path.is_dir() and not path.is_symlink()]
        own = {
            *taken,
            *(left.resolve() for folder in (out, *folders) for left in leftovers(folder)),
        }
        others |= {path for path in {*there} - {*folders} if path.resolve() not in own}
    for name, place in places.items():
        elsewhere = name.startswith(OUT) and not place.resolve().is_relative_to(inside)
        if elsewhere or (os.path.lexists(place) and not archive.is_in(name, place)):
            others.add(place)
    if others:
        shown = ", ".join(map(str, sorted(others)[:SHOWN]))
        raise LoopError(
            f"{out} is not empty: {shown} {'is' if len(others) == 1 else 'are'} not as in the"
            " backup. Restore into another folder, or move that away."
        )


def _make_folder(folder: Path, undo: ExitStack) -> None:
    """Makes a folder and those above it, which ``undo`` removes again where they are empty."""
    if folder.is_dir():
        return
    _make_folder(folder.parent, undo)
    folder.mkdir()
    undo.callback(_remove_empty, folder)


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # something else has come into it meanwhile
        folder.rmdir()


def _unpack(archive: Archive, places: Mapping[str, Path], undo: ExitStack) -> None:
    """Writes members to their places, in their order; ``undo`` removes them again.

    Raises:
        LoopError: one cannot be written.
    """
    for name, place in places.items():
        try:
            if os.path.lexists(place):
                continue  # as in the backup, of a restore that was interrupted
            _make_folder(place.parent, undo)
            undo.callback(place.unlink, missing_ok=True)
            with archive.opening(name) as member, replacing(place) as written:
                shutil.copyfileobj(member, written)
        except OSError as exc:
            raise LoopError(
                f"{place} cannot be written: {exc.strerror or exc}. Nothing was restored; correct"
                " that, then run the same command again."
            ) from exc


def _about(archive: Archive) -> dict[str, Any]:
    """The manifest, where it has the form that ``write_backup`` gives it."""
    about = dict(archive.about)
    tables = about.get("tables")
    sound = (
        isinstance(about.get("campaign"), str)
        and isinstance(about.get("schema"), str)
        and CAMPAIGN_FILE in archive.members
        and isinstance(tables, dict)
        and all(
            isinstance(table, dict)
            and isinstance(table.get("rows"), int)
            and isinstance(table.get("columns"), list)
            and f"{TABLES}{name}.jsonl" in archive.members
            for name, table in tables.items()
        )
    )
    if not sound:
        raise DataError(f"{archive.path} is no backup that goldloop wrote. Nothing was written.")
    return about


def _campaign_text(archive: Archive) -> str:
    with archive.opening(CAMPAIGN_FILE) as member:
        return str(member.read(2**22), "utf-8")


def _restored_source(config: Config, archive: Archive, path: Path, *, trusted: bool) -> Path | None:
    """Where the texts' source goes, or None where it is there or not in the backup.

    A campaign file out of an archive may not say that something is written beside its folder.

    Raises:
        DataError: it says so.
    """
    source, folder = Path(config.source).resolve(), config.folder.resolve()
    database = database_file(make_url(config.store_url))
    beside = not source.is_relative_to(folder)
    places = [config.out.resolve(), folder if database is None else database]
    if not trusted and (
        database is None
        or (beside and SOURCE in archive.members)
        or not all(place.is_relative_to(folder) for place in places)
    ):
        raise DataError(
            f"The campaign file in {path} names a server, or places outside of its folder. See"
            f" whether they are right: `unzip -p {path} {CAMPAIGN_FILE} > goldloop.toml` writes it"
            " here, and a campaign file that is there is used. Nothing was restored."
        )
    lacking = SOURCE in archive.members and not source.exists()
    return source if lacking and not config.texts.source.startswith("hf:") else None


def _fill_store(
    config: Config, archive: Archive, about: dict[str, Any], unpack: Callable[[], None]
) -> None:
    """Makes the store of the archive's rows, and has the files written just before it is there."""

    def fill(connection: Connection) -> None:
        tables = {table.name: table for table in _tables(connection)}
        for name, table in tables.items():
            stated = about["tables"].get(name)
            if stated is not None:
                _insert(connection, table, archive, stated)
        if unknown := sorted(set(about["tables"]) - set(tables)):
            raise DataError(
                f"{archive.path} has tables that schema {about['schema']} has not:"
                f" {', '.join(unknown)}. Nothing was written."
            )
        unpack()

    try:
        create_filled(config.store_url, about["schema"], fill)
    except (DBAPIError, StatementError, ValueError, TypeError, KeyError, IndexError) as exc:
        reason = str(getattr(exc, "orig", None) or exc).splitlines()[0]
        raise StoreError(
            f"The rows in {archive.path} do not fit the store ({reason}). Nothing was written; use"
            " another copy of it."
        ) from exc


def _insert(connection: Connection, table: Table, archive: Archive, stated: dict[str, Any]) -> None:
    """Inserts a table's rows, and has the database number further ones after them."""
    columns = [table.columns[name] for name, _ in stated["columns"]]
    utc = connection.dialect.name == "sqlite"
    readers = [_reader(column, naive=utc) for column in columns]
    rows: list[dict[str, Any]] = []
    count = 0
    for line in archive.lines(f"{TABLES}{table.name}.jsonl"):
        values = json.loads(line)
        if len(values) != len(columns):
            raise ValueError(f"a row of {table.name} has {len(values)} values")
        rows.append({c.name: r(v) for c, r, v in zip(columns, readers, values, strict=True)})
        count += 1
        if len(rows) == ROWS:
            connection.execute(insert(table), rows)
            rows = []
    if rows:
        connection.execute(insert(table), rows)
    if count != stated["rows"]:
        raise ValueError(f"{table.name} has {count} rows, and {stated['rows']} were written")
    numbered = table.autoincrement_column
    if numbered is not None and connection.dialect.name == "postgresql":
        connection.execute(
            text(
                f'select setval(s, max("{numbered.name}")) from "{table.name}",'  # noqa: S608
                " (select pg_get_serial_sequence(:table, :column) s) q where s is not null"
                f' group by s having max("{numbered.name}") is not null'
            ),
            {"table": f'"{table.name}"', "column": numbered.name},
        )


def _reader(column: Any, *, naive: bool) -> Callable[[Any], Any]:
    """How a value of the archive becomes one of the column.

    Args:
        naive: times are written without their zone, which is UTC.
    """
    kind = _kind(column.type)

    def read_value(value: Any) -> Any:
        if value is None:
            return None
        if kind == "time":
            moment = datetime.fromisoformat(value).astimezone(UTC)
            return moment.replace(tzinfo=None) if naive else moment
        if kind == "bytes":
            return base64.b64decode(value, validate=True)
        if kind == "float":
            return float(value) if not isinstance(value, bool) else math.nan
        return value

    return read_value
