"""One writer per campaign: an operating-system or database lock that dies with its holder.

The lock may be lost while its holder lives: PostgreSQL ends a connection, or somebody deletes the
lock file. Every transaction of the store therefore asks first whether the lock is still held.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session

from loop.campaign.database import store_failure
from loop.campaign.store import Store
from loop.errors import BusyError, StoreError

Fence = Callable[[Session], None]
"""Raises a StoreError where the lock is lost; called in each transaction."""

BEGINS = '{"pid": '
"""How the content of a lock file begins."""


@contextmanager
def writer(store: Store, campaign: str, command: str) -> Iterator[None]:
    """Holds the right to write to a campaign.

    SQLite: an advisory lock on a file beside the database. PostgreSQL: a session-level advisory
    lock. Both vanish when the process is killed, so no stale lock is ever left.

    Raises:
        BusyError: somebody else holds it; the sentence says who.
        StoreError: the lock cannot be taken; or, in a transaction of ``store``, it was lost.
    """
    if store.engine.dialect.name == "sqlite":
        lock = _file_lock(Path(str(store.engine.url.database)), campaign, command)
    else:
        lock = _advisory_lock(store, campaign, command)
    with lock as fence:
        before, store.fence = store.fence, fence
        try:
            yield
        finally:
            store.fence = before


def _busy(campaign: str, holder: str) -> BusyError:
    return BusyError(
        f"Campaign {campaign!r} is being written to by {holder}; wait until it ends, or stop it."
    )


def _lost(campaign: str, why: str) -> StoreError:
    return StoreError(
        f"This process no longer has the right to write to campaign {campaign!r}: {why}. Nothing"
        " more was stored; make sure that no other goldloop works on it, then run the same command"
        " again to continue."
    )


# SQLite: a file beside the database


@contextmanager
def _file_lock(database: Path, campaign: str, command: str) -> Iterator[Fence]:
    path = database.with_name(f"{database.name}.{campaign}.lock")
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise StoreError(f"The lock file {path} cannot be opened: {exc.strerror}.") from exc
    try:
        _refuse_foreign(handle, path)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise _busy(campaign, _holder(handle)) from exc
        _say_who(handle, path, command)

        def fence(_session: Session) -> None:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), path.lstat()):
                    return
            raise _lost(campaign, f"its lock file {path} was deleted or replaced")

        yield fence
        os.ftruncate(handle, 0)
    finally:
        os.close(handle)


def _refuse_foreign(handle: int, path: Path) -> None:
    """A lock file is emptied; what another program keeps under its name must stay.

    Raises:
        StoreError: the file is no lock of goldloop.
    """
    about = os.fstat(handle)
    regular = stat.S_ISREG(about.st_mode)
    begins = os.pread(handle, len(BEGINS), 0).decode(errors="replace") if regular else ""
    # A process that was killed while it wrote leaves the first letters alone.
    if not regular or not BEGINS.startswith(begins):
        raise StoreError(
            f"{path} is in the way: goldloop keeps its lock under this name, but the file holds"
            " something else. Move it away."
        )


def _say_who(handle: int, path: Path, command: str) -> None:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    who = {"pid": os.getpid(), "host": socket.gethostname(), "command": command, "since": since}
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(who).encode(), 0)
    except OSError as exc:
        raise StoreError(
            f"The lock file {path} cannot be written: {exc.strerror}. Correct that (make room on"
            f" the disk if it is full), then run the same command again."
        ) from exc


def holder_of(path: Path) -> str | None:
    """Who holds a lock file now; None where nobody does."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(handle)
    finally:
        os.close(handle)
    return None


def _holder(handle: int) -> str:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        who = json.loads(os.pread(handle, 10_000, 0))
        where = f"process {who['pid']} on {who['host']}, since {who['since']}"
        return f"`goldloop {who['command']}` ({where})"
    return "another process"


# PostgreSQL: advisory locks, which live as long as the connection that took them

NAME = text("select set_config('application_name', :name, false)")
TAKE = text("select pg_try_advisory_lock(:key)")
RELEASE = text("select pg_advisory_unlock(:key)")
SHARE = text("select pg_advisory_xact_lock_shared(:key)")
NONE_AT_WORK = text("select pg_try_advisory_xact_lock(:key)")
WHO = text("select pid, backend_start from pg_stat_activity where pid = pg_backend_pid()")
LOCKS = (
    " from pg_locks l join pg_stat_activity a using (pid) where l.locktype = 'advisory'"
    " and l.granted and (l.classid::bigint << 32 | l.objid::bigint) = :key"
    " and l.database = (select oid from pg_database where datname = current_database())"
)
HOLDER = text(f"select a.application_name {LOCKS} limit 1")
HELD = text(f"select 1 {LOCKS} and a.pid = :pid and a.backend_start = :start")


def _named(application: str | None) -> str:
    """``goldloop run 12@host``, as PostgreSQL shows it, in the words of the file lock."""
    match = re.fullmatch(r"(goldloop .+) (\d+)@(.+)", application or "")
    return f"`{match[1]}` (process {match[2]} on {match[3]})" if match else "another process"


def _key(purpose: str, campaign: str) -> int:
    digest = hashlib.sha256(f"{purpose}:{campaign}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


@contextmanager
def _advisory_lock(store: Store, campaign: str, command: str) -> Iterator[Fence]:
    """Two locks: one is held all the time, the other is shared by the holder's transactions.

    Without the second, a transaction that has looked for the first could still commit after the
    first died with its connection and another writer came in.
    """
    key, shared_key = _key("goldloop", campaign), _key("goldloop transaction", campaign)
    name = f"goldloop {command} {os.getpid()}@{socket.gethostname()}"[:63]
    where = store.engine.url.render_as_string()
    try:
        opened = store.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    except DBAPIError as exc:
        raise store_failure(exc, where) from exc
    with opened as connection:
        try:
            connection.execute(NAME, {"name": name})
            if not connection.execute(TAKE, {"key": key}).scalar():
                raise _busy(campaign, _named(connection.execute(HOLDER, {"key": key}).scalar()))
            pid, start = connection.execute(WHO).one()
        except DBAPIError as exc:
            raise store_failure(exc, where) from exc

        def fence(session: Session) -> None:
            session.connection().execute(SHARE, {"key": shared_key})
            held = {"key": key, "pid": pid, "start": start}
            if session.connection().execute(HELD, held).first() is None:
                raise _lost(campaign, "its connection to PostgreSQL ended, and the lock with it")

        try:
            if not connection.execute(NONE_AT_WORK, {"key": shared_key}).scalar():
                raise _busy(campaign, "a process that lost its lock and ends just now")
            yield fence
        finally:
            with contextlib.suppress(DBAPIError):  # the lock died with the connection
                connection.execute(RELEASE, {"key": key})
