"""One writer per campaign: an operating-system or database lock that dies with its holder."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from sqlalchemy import text

from loop.errors import BusyError, StoreError
from loop.store import Store


@contextmanager
def writer(store: Store, campaign: str, command: str) -> Iterator[None]:
    """Holds the right to write to a campaign.

    SQLite: an advisory lock on a file beside the database. PostgreSQL: a session-level advisory
    lock. Both vanish when the process is killed, so no stale lock is ever left.

    Raises:
        BusyError: somebody else holds it; the sentence says who.
    """
    if store.engine.dialect.name == "sqlite":
        with _file_lock(Path(str(store.engine.url.database)), campaign, command):
            yield
    else:
        with _advisory_lock(store, campaign, command):
            yield


def _busy(campaign: str, holder: str) -> BusyError:
    return BusyError(
        f"Campaign {campaign!r} is being written to by {holder}; wait until it ends, or stop it."
    )


@contextmanager
def _file_lock(database: Path, campaign: str, command: str) -> Iterator[None]:
    path = database.with_name(f"{database.name}.{campaign}.lock")
    try:
        handle = path.open("a+", encoding="utf-8")
    except OSError as exc:
        raise StoreError(f"The lock file {path} cannot be opened: {exc.strerror}.") from exc
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise _busy(campaign, _holder(handle)) from exc
        handle.seek(0)
        handle.truncate()
        since = datetime.now(UTC).isoformat(timespec="seconds")
        json.dump(
            {"pid": os.getpid(), "host": socket.gethostname(), "command": command, "since": since},
            handle,
        )
        handle.flush()
        yield
        handle.seek(0)
        handle.truncate()


def _holder(handle: IO[str]) -> str:
    handle.seek(0)
    with contextlib.suppress(ValueError, KeyError):
        who = json.load(handle)
        where = f"process {who['pid']} on {who['host']}, since {who['since']}"
        return f"`goldloop {who['command']}` ({where})"
    return "another process"


def _named(application: str | None) -> str:
    """``goldloop run 12@host``, as PostgreSQL shows it, in the words of the file lock."""
    found = re.fullmatch(r"(goldloop .+) (\d+)@(.+)", application or "")
    return f"`{found[1]}` (process {found[2]} on {found[3]})" if found else "another process"


@contextmanager
def _advisory_lock(store: Store, campaign: str, command: str) -> Iterator[None]:
    digest = hashlib.sha256(f"goldloop:{campaign}".encode()).digest()
    key = int.from_bytes(digest[:8], "big", signed=True)
    name = f"goldloop {command} {os.getpid()}@{socket.gethostname()}"[:63]
    with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(
            text("select set_config('application_name', :name, false)"), {"name": name}
        )
        got = connection.execute(text("select pg_try_advisory_lock(:key)"), {"key": key}).scalar()
        if not got:
            holder = connection.execute(
                text(
                    "select a.application_name from pg_locks l join pg_stat_activity a using (pid)"
                    " where l.locktype = 'advisory' and l.granted"
                    " and (l.classid::bigint << 32 | l.objid::bigint) = :key limit 1"
                ),
                {"key": key},
            ).scalar()
            raise _busy(campaign, _named(holder))
        try:
            yield
        finally:
            connection.execute(text("select pg_advisory_unlock(:key)"), {"key": key})
