"""The store's database: its transactions, its file, and the schema that it is brought up to.

Creating and upgrading happen in one transaction that begins before the version is read, so that a
process killed at any statement leaves the database as it was, and processes that open it at the
same time wait for each other.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    Float,
    Integer,
    MetaData,
    case,
    create_engine,
    event,
    func,
    insert,
    inspect,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session, SQLModel

import loop.campaign.tables  # noqa: F401  registers the tables
from loop.errors import NoRoomError, NoStoreError, StoreError
from loop.files import beside, held

BUSY_S = 30.0
"""How long one process waits for another one's transaction."""
SCHEMA_KEY = 0x676F6C64
"""PostgreSQL's advisory lock on the schema."""
VERSION_TABLE = "alembic_version"
MIGRATIONS = Path(__file__).parent / "migrations"
RESTORE = "Restore the newest backup (`goldloop restore`); running the same again does not help."


OF_THE_ENDED = ("error ignored", "Error closing", "Exception closing", "Exception terminating")
"""How messages begin that drivers and pools log about a connection that ended."""


def _said_otherwise(record: logging.LogRecord) -> bool:
    """What is ignored of a connection that ended is no news: the error that ended it is."""
    if record.getMessage().startswith(OF_THE_ENDED):
        record.levelno, record.levelname = logging.INFO, "INFO"  # for a log file alone
    return True


logging.getLogger("psycopg").addFilter(_said_otherwise)


def database_file(url: URL) -> Path | None:
    """The file of an SQLite database, symlinks followed; None in memory and for PostgreSQL."""
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        return None
    return Path(url.database).resolve()


class Database:
    """An open database of campaigns.

    Args:
        url: SQLAlchemy URL, ``sqlite:////path/to.db`` or ``postgresql+psycopg://…``.
        read_only: nothing is created, upgraded or written.
        say: told one line of news, such as where the copy made before an upgrade lies.

    Attributes:
        fence: called at the beginning of every transaction; raises where nothing may be written
            any longer (see ``loop.campaign.lock``).

    Raises:
        NoStoreError: ``read_only``, and there is no store yet.
        StoreError: the database cannot be opened or migrated.
    """

    def __init__(
        self,
        url: str,
        *,
        read_only: bool = False,
        say: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self.url = url
        self.fence: Callable[[Session], None] = lambda _session: None
        self.engine = open_database(url, read_only=read_only, say=say)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session that commits at the end, or leaves no trace.

        Raises:
            StoreError: the database cannot be read or written.
        """
        try:
            with Session(self.engine, expire_on_commit=False) as session, session.begin():
                self.fence(session)
                yield session
        except DBAPIError as exc:
            raise store_failure(exc, self.engine.url.render_as_string()) from exc

    def close(self) -> None:
        """Lets go of every connection."""
        self.engine.dispose()

    @contextmanager
    def within(self, session: Session | None) -> Iterator[Session]:
        """The caller's transaction, which sees what it has not committed yet, or one of its own."""
        if session is not None:
            yield session
        else:
            with self.transaction() as own:
                yield own

    def insert(
        self,
        session: Session,
        table: type[SQLModel],
        rows: Iterable[Mapping[str, Any]],
        chunk: int = 5_000,
    ) -> None:
        """Inserts many rows at the speed of the driver, in the caller's transaction."""
        left = iter(rows)
        while part := [dict(row) for row in islice(left, chunk)]:
            session.connection().execute(insert(table), part)


def open_database(url: str, *, read_only: bool, say: Callable[[str], None]) -> Engine:
    """An engine on a database that has the present schema.

    Args:
        read_only: nothing is created, upgraded or written.
        say: told where the copy lies that is made before an upgrade.

    Raises:
        NoStoreError: ``read_only``, and there is no store yet.
        StoreError: the database cannot be opened, or has a schema that cannot be used.
    """
    parsed = make_url(url)
    file = database_file(parsed)
    if file is not None:
        parsed = parsed.set(database=str(file))
    where = parsed.render_as_string()
    try:
        if file is not None and read_only and not file.exists():
            raise _no_store(where)
        if file is not None and not read_only:
            _make_file(file)
        engine = _engine(parsed, file, read_only=read_only)
    except (OSError, ImportError) as exc:
        raise StoreError(f"The store at {where} cannot be opened: {exc}.") from exc
    try:
        if read_only:
            _check(engine)
        else:
            _bring_up_to_date(engine, file, say)
    except BaseException as exc:
        engine.dispose()
        if isinstance(exc, DBAPIError):
            raise store_failure(exc, where) from exc
        raise
    return engine


def damage(file: Path, *, indexes: bool = False) -> str | None:
    """What is wrong with an SQLite file itself, by a look at all of its pages; None if nothing is.

    Args:
        indexes: whether to compare the indexes with their tables, which takes longer.
    """
    check = f"pragma {'integrity' if indexes else 'quick'}_check(1)"
    try:
        with closing(
            sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)
        ) as connection:
            found = str(connection.execute(check).fetchone()[0])
    except sqlite3.DatabaseError as exc:
        code = exc.sqlite_errorcode & 0xFF
        return str(exc) if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) else None
    return None if found == "ok" else " ".join(found.split())


def store_failure(exc: DBAPIError, where: str) -> StoreError:
    """What a database error means for the campaign, and what to do, in one sentence."""
    reason = str(exc.orig).splitlines()[0] if str(exc.orig) else type(exc.orig).__name__
    if _is_out_of_room(exc.orig):
        return NoRoomError(
            f"The store at {where} could not be written ({reason}): the disk is full, a limit on"
            " the size of files is reached, or the disk fails. What was stored before is whole;"
            " make room, then run the same command again to continue."
        )
    if exc.connection_invalidated:
        return StoreError(
            f"The connection to the store at {where} was lost ({reason}). What was stored before is"
            " whole; run the same command again to continue."
        )
    code = getattr(exc.orig, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_CANTOPEN:
        return StoreError(
            f"The store at {where} cannot be opened: {reason}. Make sure that you may read it; if"
            f" the folder cannot be written, copy the store with the files -wal and -shm beside it"
            f" to a folder that can."
        )
    if code == sqlite3.SQLITE_CORRUPT:
        return StoreError(f"The store at {where} is damaged ({reason}). {RESTORE}")
    if code == sqlite3.SQLITE_NOTADB:
        return StoreError(
            f"The store at {where} cannot be opened: {reason}. Move that file away, or name"
            " another one as store.url."
        )
    return StoreError(
        f"The store at {where} cannot be used: {reason}. What was stored before is whole; remove"
        f" the cause, then run the same command again."
    )


def _is_out_of_room(error: BaseException | None) -> bool:
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        return code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
    return getattr(error, "sqlstate", None) == "53100"


def _no_store(where: str) -> NoStoreError:
    return NoStoreError(f"There is no store at {where} yet; `goldloop run` begins the campaign.")


# the engine


def _make_file(file: Path) -> None:
    """An empty file, which is an empty database, for its owner alone.

    SQLite gives the files that it keeps beside a database the permissions of the database.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return


_encoded = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def to_json(value: Any) -> str:
    """A value as the store keeps it as JSON."""
    text = _encoded(value)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can escape
        text = json.dumps(value, allow_nan=False)
    return text


def from_json(text: str | bytes) -> Any:
    """A value that the store keeps as JSON."""
    return {} if text == "{}" else json.loads(text)  # as millions of texts have it


def _engine(url: URL, file: Path | None, *, read_only: bool) -> Engine:
    engine = create_engine(
        url, json_serializer=to_json, json_deserializer=from_json, hide_parameters=True
    )
    engine.pool.logger.addFilter(_said_otherwise)  # type: ignore[union-attr]
    if engine.dialect.name != "sqlite":
        return engine.execution_options(postgresql_readonly=True) if read_only else engine
    if file is not None and read_only and (uri := _read_only_uri(file)):

        @event.listens_for(engine, "do_connect")
        def _as_uri(_dialect: Any, _record: Any, args: list[Any], kwargs: dict[str, Any]) -> None:
            args[:] = [uri]
            kwargs["uri"] = True

    @event.listens_for(engine, "connect")
    def _pragmas(connection: sqlite3.Connection, _record: Any) -> None:
        with closing(connection.cursor()) as cursor:
            cursor.execute(f"PRAGMA busy_timeout={int(BUSY_S * 1000)}")
            if read_only:
                cursor.execute("PRAGMA query_only=ON")
                return
            _use_wal(cursor)
            cursor.execute("PRAGMA synchronous=FULL")
            cursor.execute("PRAGMA foreign_keys=ON")

    return engine


def _read_only_uri(file: Path) -> str | None:
    """How SQLite opens a file that cannot be written, or None for one that can.

    Beside a file that can be written SQLite may keep the log that it reads with, and clears it
    away afterwards. Without a log, what cannot be written does not change either (``immutable``).
    """
    if os.access(file, os.W_OK) and os.access(file.parent, os.W_OK):
        return None
    log = file.with_name(f"{file.name}-wal")
    mode = "mode=ro" if log.exists() and log.stat().st_size else "mode=ro&immutable=1"
    return f"file:{quote(str(file))}?{mode}"


def _use_wal(cursor: sqlite3.Cursor) -> None:
    """Turns on the write-ahead log, which stays on.

    Processes that turn it on at the same moment refuse each other whatever ``busy_timeout`` says.
    """
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as exc:
            busy = exc.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > deadline:
                raise
        time.sleep(0.02)


# the schema


def _schemas() -> tuple[str, ...]:
    """Every schema that this version knows, oldest first: the numbers of the migration files."""
    return tuple(sorted(file.name[:4] for file in (MIGRATIONS / "versions").glob("[0-9]*.py")))


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    row = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).first()  # noqa: S608
    return None if row is None else str(row[0])


def _check(engine: Engine) -> None:
    """Looks whether the database can be read as it is.

    Raises:
        StoreError: it has another schema than the present one.
    """
    schemas = _schemas()
    with engine.connect() as connection:
        version = _version(connection)
    where = engine.url.render_as_string()
    if version is None:
        raise _no_store(where)
    _refuse_newer(version, schemas, where)
    if version != schemas[-1]:
        raise StoreError(
            f"The store at {where} was written by an earlier goldloop (schema {version}; this"
            f" version reads {schemas[-1]}); run `goldloop upgrade`."
        )


def _refuse_newer(version: str | None, schemas: tuple[str, ...], where: str) -> None:
    if version is not None and version not in schemas:
        raise StoreError(
            f"The store at {where} was written by a newer goldloop (schema {version}); upgrade"
            " goldloop."
        )


def _bring_up_to_date(engine: Engine, file: Path | None, say: Callable[[str], None]) -> None:
    """Creates or upgrades the schema in one transaction; nothing happens if it is the newest."""
    schemas = _schemas()
    with engine.connect() as connection:
        if _version(connection) == schemas[-1]:
            return
    where = engine.url.render_as_string()
    with engine.begin() as connection:
        _begin(connection)
        version = _version(connection)
        _refuse_newer(version, schemas, where)
        if version == schemas[-1]:
            return
        if file is not None and _is_half_made(connection):
            _empty(connection)
            version = None
        if version is None:
            _refuse_foreign(connection, where)
            _create(connection, schemas[-1])
            return
        if file is not None:
            say(f"Upgrading the store; a copy of it as it was is {_keep_copy(file, version)}.")
        _upgrade(connection)


def _create(connection: Connection, schema: str) -> None:
    """The tables of the models, which are those that all migrations make one after the other."""
    SQLModel.metadata.create_all(connection)
    key = f"CONSTRAINT {VERSION_TABLE}_pkc PRIMARY KEY"
    connection.exec_driver_sql(
        f"CREATE TABLE {VERSION_TABLE} (version_num VARCHAR(32) NOT NULL, {key} (version_num))"
    )
    connection.execute(
        text(f"INSERT INTO {VERSION_TABLE} VALUES (:schema)"),  # noqa: S608
        {"schema": schema},
    )


def _upgrade(connection: Connection, to: str = "head") -> None:
    from alembic import command

    command.upgrade(_alembic(connection), to)


def _downgrade(connection: Connection, to: str) -> None:
    from alembic import command

    command.downgrade(_alembic(connection), to)


def _alembic(connection: Connection) -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    return config


def schema_versions(url: str) -> tuple[str | None, tuple[str, ...]]:
    """The schema that a store has, None where there is none, and all that this version knows.

    Raises:
        StoreError: the database cannot be read.
    """
    parsed = make_url(url)
    file, where = database_file(parsed), parsed.render_as_string()
    if file is not None and not file.exists():
        return None, _schemas()
    try:
        engine = _engine(parsed, file, read_only=True)
        try:
            with engine.connect() as connection:
                return _version(connection), _schemas()
        finally:
            engine.dispose()
    except DBAPIError as exc:
        raise store_failure(exc, where) from exc


def migrate(
    url: str, to: str, *, lose_data: bool = False, say: Callable[[str], None] = lambda _line: None
) -> list[str]:
    """Brings a store to another schema, earlier or later, in one transaction.

    Args:
        lose_data: go back even where an earlier schema has no place for what is stored.
        say: told where the copy of an SQLite store lies that is made first.
    Returns:
        What was lost, in words.
    Raises:
        NoStoreError: there is no store yet.
        StoreError: nobody knows the schema, data would be lost, or a migration fails; the store is
            as it was.
    """
    version, schemas = schema_versions(url)
    parsed = make_url(url)
    file, where = database_file(parsed), parsed.render_as_string()
    if version is None:
        raise _no_store(where)
    _refuse_newer(version, schemas, where)
    if to not in schemas:
        raise StoreError(f"There is no schema {to!r}; this version knows {', '.join(schemas)}.")
    engine = _engine(parsed, file, read_only=False)
    try:
        with engine.begin() as connection:
            _begin(connection)
            if _version(connection) != version:
                raise StoreError(
                    f"Another process changed the store at {where} just now; look at it again with"
                    " `goldloop migrate`."
                )
            if to == version:
                return []
            before = _amounts(connection)
            if file is not None:
                say(f"A copy of the store as it was is {_keep_copy(file, version)}.")
            carried = _move(connection, version, to, schemas)
            lost = _lost(before, _amounts(connection), carried) if to < version else []
            if lost and not lose_data:
                raise StoreError(
                    f"Schema {to} has no place for {', '.join(lost)}, so that going back would lose"
                    " them. Nothing was changed; say --lose-data if they may go."
                )
            return lost
    except DBAPIError as exc:
        raise store_failure(exc, where) from exc
    finally:
        engine.dispose()


def _move(connection: Connection, version: str, to: str, schemas: tuple[str, ...]) -> set[str]:
    """Runs the migrations; the tables whose rows those that go back carry into others."""
    from alembic.script import ScriptDirectory

    if to > version:
        _upgrade(connection, to)
        return set()
    scripts = ScriptDirectory.from_config(_alembic(connection))
    passed = [schema for schema in schemas if to < schema <= version]
    carried = {
        table
        for schema in passed
        for table in getattr(scripts.get_revision(schema).module, "CARRIED_DOWN", ())
    }
    _downgrade(connection, to)
    return carried


Amounts = dict[str, tuple[int, dict[str, int]]]
"""By table: its rows, and by column how many of them hold something in it."""


def _amounts(connection: Connection) -> Amounts:
    metadata = MetaData()
    metadata.reflect(connection)
    amounts: Amounts = {}
    for table in metadata.tables.values():
        holds = [
            func.count(case((column != 0, 1)))
            if isinstance(column.type, Integer | Float)
            else func.count(column)
            for column in table.columns
        ]
        rows, *counts = connection.execute(select(func.count(), *holds).select_from(table)).one()
        amounts[table.name] = rows, {c.name: n for c, n in zip(table.columns, counts, strict=True)}
    return amounts


def _lost(before: Amounts, after: Amounts, carried: set[str]) -> list[str]:
    """What was there and has no place any more, in words."""
    lost = []
    for table, (rows, columns) in sorted(before.items()):
        if table in carried or table == VERSION_TABLE:
            continue
        rows_left, columns_left = after.get(table, (0, {}))
        if rows > rows_left:
            lost.append(f"{rows - rows_left:,} rows of {table}")
        if table in after:
            gone = {name: n for name, n in columns.items() if name not in columns_left and n}
            lost += [f"{n:,} values of {table}.{name}" for name, n in gone.items()]
    return lost


def create_filled(url: str, schema: str, fill: Callable[[Connection], None]) -> None:
    """Makes a store, has it filled, and brings it up to date: all of it or nothing.

    Args:
        schema: that the store has while it is filled.
        fill: puts rows into its tables.
    Raises:
        StoreError: there is a store already, or nobody knows the schema.
    """
    schemas = _schemas()
    parsed = make_url(url)
    file = database_file(parsed)
    where = parsed.render_as_string()
    _refuse_newer(schema, schemas, where)
    partial = None
    if file is not None:
        if file.exists():
            raise _not_empty(where)
        partial = beside(file)
        _make_file(partial)
        parsed = parsed.set(database=str(partial))
    try:
        # Its lock must outlive the engine: closing the file anywhere ends SQLite's own locks on it.
        with held(partial) if partial is not None else nullcontext():
            engine = _engine(parsed, partial, read_only=False)
            try:
                with engine.begin() as connection:
                    _begin(connection)
                    _remove_empty(connection, where)
                    if schema == schemas[-1]:
                        _create(connection, schema)
                    else:
                        _upgrade(connection, schema)
                    fill(connection)
                    if schema != schemas[-1]:
                        _upgrade(connection)
            finally:
                engine.dispose()
            if partial is not None and file is not None:
                _link(partial, file, where)
    finally:
        for suffix in ("", "-wal", "-shm") if partial is not None else ():
            Path(f"{partial}{suffix}").unlink(missing_ok=True)


def _link(partial: Path, file: Path, where: str) -> None:
    """Gives a whole store its name; refuses where a store has come meanwhile."""
    try:
        os.link(partial, file)
    except FileExistsError as exc:
        raise _not_empty(where) from exc


def _not_empty(where: str) -> StoreError:
    return StoreError(
        f"There is a store at {where} already. Move it away, or name an empty database as"
        " store.url; a backup is restored where there is nothing yet."
    )


def _remove_empty(connection: Connection, where: str) -> None:
    """Makes room for a new store in a database that has none, or one without any campaign."""
    tables = _tables(connection)
    if _version(connection) is None:
        _refuse_foreign(connection, where)
        return
    if connection.exec_driver_sql("SELECT 1 FROM campaign LIMIT 1").first():
        raise _not_empty(where)
    for name in tables & {*SQLModel.metadata.tables, VERSION_TABLE}:
        connection.exec_driver_sql(f'DROP TABLE "{name}" CASCADE')


def _begin(connection: Connection) -> None:
    """Keeps everybody else from changing the schema until the transaction ends."""
    if connection.dialect.name == "sqlite":
        # The driver would begin a transaction at the first INSERT only, after most of the work.
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": SCHEMA_KEY})


def _tables(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names())


def _is_half_made(connection: Connection) -> bool:
    """Whether an early goldloop was killed while it created this file: our tables, no rows.

    Its tables came one by one, each in a transaction of its own.
    """
    tables = _tables(connection)
    ours = {*SQLModel.metadata.tables, VERSION_TABLE, "variant_before"}
    return (
        bool(tables)
        and all(name in ours or name.startswith("_alembic_tmp_") for name in tables)
        and not any(
            connection.exec_driver_sql(f'SELECT 1 FROM "{name}" LIMIT 1').first()  # noqa: S608
            for name in tables - {VERSION_TABLE}
        )
    )


def _empty(connection: Connection) -> None:
    # In one transaction, and with no rows, the order does not matter to foreign keys.
    for name in _tables(connection):
        connection.exec_driver_sql(f'DROP TABLE "{name}"')


def _refuse_foreign(connection: Connection, where: str) -> None:
    if taken := sorted(_tables(connection) & set(SQLModel.metadata.tables)):
        raise StoreError(
            f"The database at {where} has tables that goldloop did not make ({', '.join(taken)});"
            " name an empty database as store.url."
        )


def _keep_copy(file: Path, version: str) -> Path:
    """Copies an SQLite database as it was before the transaction under way; the copy's path.

    Raises:
        StoreError: the copy cannot be written.
    """
    copy = file.with_name(f"{file.name}.schema-{version}")
    partial = copy.with_name(f"{copy.name}.partial")
    try:
        partial.unlink(missing_ok=True)
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        with closing(sqlite3.connect(file)) as old, closing(sqlite3.connect(partial)) as new:
            old.backup(new)
        partial.replace(copy)
    except (OSError, sqlite3.Error) as exc:
        partial.unlink(missing_ok=True)
        raise StoreError(
            f"The store {file} must be upgraded, but a copy of it cannot be kept as {copy} ({exc});"
            f" make room for {file.stat().st_size / 1e6:,.1f} MB there, then run the same command"
            " again."
        ) from exc
    return copy
