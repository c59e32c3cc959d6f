import logging
import os
import signal
import stat
import subprocess
import sys
import time

import pytest
from sqlalchemy import text

from loop.campaign.lock import writer
from loop.campaign.store import Store
from loop.errors import BusyError, StoreError

HOLD = """
import sys, time
from loop.campaign.lock import writer
from loop.campaign.store import Store
with writer(Store(sys.argv[1]), "c", "run"):
    print("held", flush=True)
    time.sleep(20)
"""


def test_the_second_writer_is_told_who_holds_it_and_a_kill_lets_go(store_url):
    store = Store(store_url)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, store_url], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BusyError) as caught, writer(store, "c", "train"):
            pass
        assert "`goldloop run`" in str(caught.value)
        assert str(holder.pid) in str(caught.value)
        with writer(store, "another", "run"):
            pass
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    deadline = time.monotonic() + 5
    while True:
        try:
            with writer(store, "c", "train"):
                break
        except BusyError:
            assert time.monotonic() < deadline
    store.close()


# SQLite's lock file


@pytest.fixture
def store(tmp_path):
    opened = Store(f"sqlite:///{tmp_path / 's.db'}")
    yield opened
    opened.close()


def test_a_store_reached_through_a_symlink_has_the_same_lock(store, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for link in (tmp_path / "link.db", tmp_path / "elsewhere" / "s.db"):
        link.symlink_to(tmp_path / "s.db")
        other = Store(f"sqlite:///{link}")
        with writer(store, "c", "run"), pytest.raises(BusyError), writer(other, "c", "train"):
            pass
        other.close()
    assert not list((tmp_path / "elsewhere").glob("*lock"))


def test_a_lock_file_is_for_its_owner_alone_and_says_nothing_afterwards(store, tmp_path):
    lock = tmp_path / "s.db.c.lock"
    with writer(store, "c", "run"):
        assert stat.S_IMODE(lock.stat().st_mode) == 0o600
        assert b"pid" in lock.read_bytes()
    assert lock.read_bytes() == b""


def test_a_lock_that_is_a_symlink_is_refused_and_its_target_kept(store, tmp_path):
    (tmp_path / "precious").write_text("much work")
    (tmp_path / "s.db.c.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(StoreError, match="cannot be opened"), writer(store, "c", "run"):
        pass
    assert (tmp_path / "precious").read_text() == "much work"


@pytest.mark.parametrize("content", ["much work", '{"pid', "\x00"])
def test_only_a_lock_of_goldloop_is_emptied(store, tmp_path, content):
    lock = tmp_path / "s.db.c.lock"
    lock.write_text(content)
    if content == '{"pid':  # what a process leaves that is killed while it writes
        with writer(store, "c", "run"):
            pass
        return
    with pytest.raises(StoreError, match="in the way"), writer(store, "c", "run"):
        pass
    assert lock.read_text() == content


def test_a_pipe_in_the_place_of_the_lock_is_refused(store, tmp_path):
    os.mkfifo(tmp_path / "s.db.c.lock")
    with pytest.raises(StoreError, match="in the way"), writer(store, "c", "run"):
        pass


def test_a_writer_whose_lock_file_was_deleted_writes_nothing_more(store, tmp_path):
    other = Store(store.url)
    with writer(store, "c", "run"):
        store.open_campaign("c", ["a", "b"])
        (tmp_path / "s.db.c.lock").unlink()
        with writer(other, "c", "train"):
            with pytest.raises(StoreError, match="was deleted or replaced"):
                store.set_project("c", "stale")
            other.set_project("c", "new")
    assert store.project_id("c") == "new"
    other.close()


# PostgreSQL's connection


@pytest.fixture
def two_stores(request):
    """Two processes' views of one PostgreSQL store."""
    server = request.getfixturevalue("postgres")
    server.psql("create database locks;")
    url = server.get_uri("locks").replace("postgresql://", "postgresql+psycopg://")
    stores = Store(url), Store(url)
    stores[0].open_campaign("c", ["a", "b"])
    yield stores
    for opened in stores:
        opened.close()
    server.psql("drop database locks with (force);")


def end_lock_connection(store):
    """As a server that restarts, or a firewall that forgets."""
    with store.engine.begin() as connection:
        ended = connection.execute(
            text(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
                " where application_name like 'goldloop %'"
            )
        ).all()
    assert ended == [(True,)]


def test_a_writer_whose_connection_ended_writes_nothing_more(two_stores):
    store, other = two_stores
    with writer(store, "c", "run"):
        store.set_project("c", "first")
        with store.transaction() as session:  # has looked for the lock, and lives on without it
            end_lock_connection(other)
            with pytest.raises(BusyError, match="lost its lock"), writer(other, "c", "train"):
                pass
            store.log(session, "c", "run", "committed")
        with pytest.raises(StoreError, match="its connection to PostgreSQL ended"):
            store.set_project("c", "nobody else is in, but who knows for how long")
        with writer(other, "c", "train"):
            with pytest.raises(StoreError, match="no longer has the right"):
                store.set_project("c", "stale")
            other.set_project("c", "new")
    assert store.project_id("c") == "new"
    with writer(store, "c", "run"):
        store.set_project("c", "again")


def test_a_lost_connection_says_that_the_same_command_goes_on(two_stores):
    store, other = two_stores
    with store.engine.connect() as connection:
        pid = connection.execute(text("select pg_backend_pid()")).scalar_one()
    with other.engine.begin() as connection:
        connection.execute(text("select pg_terminate_backend(:pid, 5000)"), {"pid": pid})
    with pytest.raises(StoreError, match=r"was lost .* run the same command again to continue"):
        store.set_project("c", "lost")
    store.set_project("c", "found again")
    assert store.project_id("c") == "found again"


def test_a_server_that_lets_nobody_in_is_one_sentence(two_stores, request):
    server = request.getfixturevalue("postgres")
    store = two_stores[0]
    store.close()
    server.psql("alter database locks with allow_connections false;")
    try:
        with pytest.raises(StoreError, match=r"cannot be used: .*not currently accepting") as told:
            writer(store, "c", "run").__enter__()
        assert "\n" not in str(told.value)
    finally:
        server.psql("alter database locks with allow_connections true;")


def test_what_is_ignored_of_a_connection_that_ended_is_for_the_log_alone(two_stores, caplog):
    pool = two_stores[0].engine.pool.logger
    for logger, words in ((logging.getLogger("psycopg"), "error ignored"), (pool, "Error closing")):
        caplog.clear()
        logger.error("%s a cursor", words)
        logger.error("another error")
        assert [r.levelname for r in caplog.records] == ["INFO", "ERROR"]
