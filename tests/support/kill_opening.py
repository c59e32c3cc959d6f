"""Opens a store in processes that are killed at one point after another, or that start together.

A process of its own, because it forks: ``python kill_opening.py MODE URL SCHEMA STEP``. A point is
an SQL statement, a commit, or a line of ``loop.campaign.database``. Prints one line of JSON.
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from sqlalchemy import Engine, create_engine, event, text

from loop.campaign import database
from loop.campaign.store import Store

CAMPAIGN = (
    "insert into campaign (name, uid, created_at, labels)"
    " values ('c', 'u', '2026-01-01 00:00:00', '[\"a\", \"b\"]')"
)


def old_store(url, schema):
    """A store of an earlier schema that holds a campaign; for None, no store at all."""
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        for path in Path(engine.url.database).parent.glob("*"):
            path.unlink()
    else:
        with engine.begin() as connection:
            connection.execute(text("drop schema public cascade"))
            connection.execute(text("create schema public"))
    if schema is not None:
        with engine.begin() as connection:
            database._upgrade(connection, schema)
            connection.execute(text(CAMPAIGN))
    engine.dispose()


class Killer:
    """Kills this process at its n-th point."""

    def __init__(self, n):
        self.left = n
        event.listen(Engine, "connect", self.on_connect)
        event.listen(Engine, "before_cursor_execute", lambda *_: self.point())
        event.listen(Engine, "commit", lambda _connection: self.point())
        sys.settrace(self.calls)

    def point(self):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_connect(self, connection, _record):
        if hasattr(connection, "set_trace_callback"):  # pragmas, which pass by SQLAlchemy
            connection.set_trace_callback(lambda sql: sql.startswith("PRAGMA") and self.point())

    def calls(self, frame, _event, _arg):
        return self.lines if frame.f_code.co_filename == database.__file__ else None

    def lines(self, _frame, what, _arg):
        if what == "line":
            self.point()
        return self.lines


def child(work):
    """Does the work in a process of its own; how to wait for its end."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except Exception as exc:
            print(f"{type(exc).__name__}: {exc}", file=sys.stderr)
        finally:
            os._exit(code)
    return lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def open_killed(url, n):
    Killer(n)
    Store(url).close()


def go_on(url, begun):
    store = Store(url)
    known = store.labels("c")
    assert known == (["a", "b"] if begun else []), known
    store.open_campaign("c", ["a", "b"])
    assert store.variants("c", "llm") == []
    store.close()


def sweep(url, schema, step):
    """Kills at every ``step``-th point until the work is done before the point comes."""
    stuck, n, begun = [], 1, schema is not None
    folder = Path(url.removeprefix("sqlite:///")).parent if url.startswith("sqlite") else None
    old_store(url, schema)
    if folder is not None:
        shutil.copytree(folder, f"{folder}.kept")
    while True:
        if folder is None:
            old_store(url, schema)
        else:
            shutil.rmtree(folder)
            shutil.copytree(f"{folder}.kept", folder)
        ended = child(lambda n=n: open_killed(url, n))()
        if ended == 0:
            return {"points": (n - 1) // step, "stuck": stuck}
        opens = ended == -signal.SIGKILL and child(lambda: go_on(url, begun))() == 0
        if not opens or (folder is not None and list(folder.glob("*partial*"))):
            stuck.append(n)
        n += step


def together(url, schema, processes):
    """Opens the store in several processes at the same moment; how many of them failed."""
    old_store(url, schema)
    start = time.monotonic() + 0.2

    def at_once():
        time.sleep(max(0.0, start - time.monotonic()))
        Store(url).close()

    waits = [child(at_once) for _ in range(processes)]
    failed = sum(wait() != 0 for wait in waits)
    return {"failed": failed + (child(lambda: go_on(url, schema is not None))() != 0)}


if __name__ == "__main__":
    mode, url, schema, number = sys.argv[1:]
    work = {"sweep": sweep, "together": together}[mode]
    print(json.dumps(work(url, schema if schema != "none" else None, int(number))))
