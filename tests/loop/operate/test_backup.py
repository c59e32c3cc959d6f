"""A campaign in one file, and back, whatever is in the way or in the archive."""

import errno
import json
import os
import shutil
import stat
import threading
import uuid
import zipfile
from pathlib import Path

import pytest
from operated import CAMPAIGN, answer, at_work
from sqlalchemy import create_engine

from loop.campaign.config import load
from loop.campaign.database import migrate
from loop.campaign.store import Store
from loop.errors import ConfigError, DataError, LoopError, StoreError
from loop.files import replacing
from loop.next_round import open_campaign
from loop.operate import archive as archives
from loop.operate import backup as backups
from loop.operate.archive import FORM, opening_archive, writing_archive
from loop.operate.backup import restore_backup, write_backup
from loop.report.status import campaign_status
from loop.round import run_round


def status_of(file):
    config = load(file)
    store = Store(config.store_url, read_only=True)
    told = campaign_status(config, store)
    store.close()
    seconds = told["budget"].pop("llm_seconds")  # databases add numbers up in their own order
    return told | {"seconds": pytest.approx(seconds)}


def back_up(folder, out, **how):
    config = load(folder / "goldloop.toml")
    store = Store(config.store_url, read_only=True)
    try:
        return write_backup(config, store.engine, folder / "goldloop.toml", out, **how)
    finally:
        store.close()


@pytest.fixture
def archive(begun, tmp_path):
    return back_up(begun, tmp_path / "b.zip").path


def test_a_restored_campaign_is_the_same(campaign, tmp_path):
    original = at_work(campaign)
    open_campaign(original)
    original.store.close()
    archive = back_up(campaign, tmp_path / "b.zip").path
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    folder = tmp_path / "new"
    folder.mkdir()
    restored = restore_backup(archive, folder / "goldloop.toml")
    assert status_of(folder / "goldloop.toml") == status_of(campaign / "goldloop.toml")
    assert status_of(folder / "goldloop.toml")["stage"] == "pull"
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert {"goldloop.toml", "x.csv", "c.db", "runs/rounds.json", "runs/report.html"} <= there
    assert not [name for name in there if "models" in name or "cache" in name or "part" in name]
    assert stat.S_IMODE((folder / "c.db").stat().st_mode) == 0o600
    assert restored.left_out == ()
    shutil.copy(campaign / "studio.json", folder)
    ctx = at_work(folder)
    with pytest.raises(StoreError, match="move that folder away and continue here"):
        run_round(ctx)
    (campaign / "runs").rename(campaign / "away")
    answer(ctx)
    assert run_round(ctx).stage == "done"
    ctx.store.close()


def test_models_and_caches_come_where_they_are_asked_for(campaign, tmp_path):
    written = back_up(campaign, tmp_path, models=True, caches=True)
    assert written.path.parent == tmp_path
    new = tmp_path / "new"
    new.mkdir()
    restore_backup(written.path, new / "goldloop.toml")
    there = {p.relative_to(new).as_posix() for p in new.rglob("*") if p.is_file()}
    assert {"runs/models/round-1/model.txt", "runs/cache/made.json"} <= there
    assert back_up(campaign, tmp_path / "lean.zip").left_out


@pytest.mark.slow
def test_from_sqlite_to_postgresql_and_back(campaign, tmp_path, archive, postgres):
    name = f"test_{uuid.uuid4().hex}"
    postgres.psql(f"create database {name};")
    url = postgres.get_uri(name).replace(
        "postgresql://postgres:@", "postgresql+psycopg://postgres@"
    )
    for folder in ("server", "file"):
        (tmp_path / folder).mkdir()
    server = tmp_path / "server" / "goldloop.toml"
    server.write_text(CAMPAIGN + f'store.url = "{url}"\n')
    restore_backup(archive, server)
    assert status_of(server) == status_of(campaign / "goldloop.toml")
    store = Store(url)
    with store.transaction() as session:
        store.log(session, "c", "test", "numbered on")  # ids go on after the restored ones
    store.close()
    shutil.rmtree(tmp_path / "server" / "runs")
    with pytest.raises(StoreError, match="There is a store"):
        restore_backup(archive, server)
    again = back_up(tmp_path / "server", tmp_path / "again.zip")
    (tmp_path / "file" / "goldloop.toml").write_text(CAMPAIGN)
    restore_backup(again.path, tmp_path / "file" / "goldloop.toml")
    assert status_of(tmp_path / "file" / "goldloop.toml") == status_of(server)


def test_it_is_of_one_moment_while_others_write(campaign, tmp_path):
    store = Store(load(campaign / "goldloop.toml").store_url)
    done = threading.Event()

    def write():
        while not done.is_set():
            with store.transaction() as session:
                store.log(session, "c", "test", "one")
                store.log(session, "c", "test", "two")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        written = [back_up(campaign, tmp_path / f"{n}.zip").path for n in range(3)]
    finally:
        done.set()
        writer.join()
        store.close()
    for path in written:
        with opening_archive(path, room_bytes=10**9) as read:
            events = [json.loads(line) for line in read.lines("tables/event.jsonl")]
        what = [e for e in events if "test" in e]
        assert sum("one" in e for e in what) == sum("two" in e for e in what)


def test_what_is_there_already_stays(campaign, tmp_path, archive):
    with pytest.raises(LoopError, match="exists already"):
        back_up(campaign, archive)
    for thing in ("c.db", "runs/old.txt"):
        folder = tmp_path / thing.replace("/", "-")
        (folder / thing).parent.mkdir(parents=True)
        (folder / thing).write_text("mine")
        with pytest.raises(LoopError, match=r"already|not empty"):
            restore_backup(archive, folder / "goldloop.toml")
        left = [p for p in folder.rglob("*") if p.is_file()]
        assert left == [folder / thing]
        assert (folder / thing).read_text() == "mine"


def test_a_backup_of_an_earlier_schema_is_brought_up_to_date(campaign, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(campaign, old)
    config = load(old / "goldloop.toml")
    migrate(config.store_url, "0006", lose_data=True)
    engine = create_engine(config.store_url)
    written = write_backup(config, engine, old / "goldloop.toml", tmp_path / "old.zip")
    engine.dispose()
    assert written.schema == "0006"
    new = tmp_path / "new"
    new.mkdir()
    restore_backup(written.path, new / "goldloop.toml")
    expected = status_of(campaign / "goldloop.toml")
    assert status_of(new / "goldloop.toml")["gold"] == expected["gold"] > 0


@pytest.mark.parametrize(
    "store", ['url = "sqlite:///runs/c.db"', 'folder = "."', 'url = "sqlite:///runs/deep/c.db"']
)
def test_a_store_in_the_folder_of_the_results_comes_back(campaign, tmp_path, store):
    file = campaign / "goldloop.toml"
    file.write_text(f"{CAMPAIGN}store.{store}\n")
    there = Path(load(file).store_url.removeprefix("sqlite:///"))
    there.parent.mkdir(exist_ok=True)
    if there != campaign / "c.db":
        shutil.copy(campaign / "c.db", there)
    if load(file).out == campaign:
        (campaign / "report.html").write_text("the report")
    archive = back_up(campaign, tmp_path / "b.zip").path
    new = tmp_path / "new"
    new.mkdir()
    (new / "mine.zip").write_text("mine")
    restore_backup(archive, new / "goldloop.toml")
    assert status_of(new / "goldloop.toml") == status_of(file)
    assert (load(new / "goldloop.toml").out / "report.html").exists()
    assert (new / "mine.zip").read_text() == "mine"


def test_files_that_no_reader_takes_are_left_out_and_told(campaign, tmp_path):
    out = campaign / "runs"
    odd = ("labels 10:30.csv", "labels.csv", "back\\slash.txt", os.fsdecode(b"b\xff.csv"))
    for name in (*odd, "Labels.csv"):
        (out / name).write_text("x")
    written = back_up(campaign, tmp_path / "b.zip")
    told = " ".join(written.left_out)
    assert all(name in told for name in (*odd[:3], "b\\udcff.csv")), told
    new = tmp_path / "new"
    new.mkdir()
    restore_backup(written.path, new / "goldloop.toml")
    assert not {p.name for p in (new / "runs").iterdir()} & set(odd)
    assert (new / "runs" / "Labels.csv").exists()


def test_a_backup_holds_as_many_files_as_a_reader_takes(campaign, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MOST_MEMBERS", 24)
    for n in range(20):
        (campaign / "runs" / f"z{n:02}.txt").write_text("x")
    written = back_up(campaign, tmp_path / "b.zip")
    assert any("holds no more files" in told for told in written.left_out)
    with opening_archive(written.path, room_bytes=10**9) as read:
        assert len(read.members) == 23


def test_what_vanishes_while_it_is_read_is_left_out_and_told(campaign, tmp_path, monkeypatch):
    real = backups._files

    def vanishing(*args, **how):
        for path in list(real(*args, **how)):
            if "models" in path.parts:
                shutil.rmtree(path.parent, ignore_errors=True)
            yield path

    monkeypatch.setattr(backups, "_files", vanishing)
    written = back_up(campaign, tmp_path / "b.zip", models=True)
    assert any("models/round-1" in told and "gone since" in told for told in written.left_out)
    monkeypatch.setattr(backups, "_files", lambda *_, **__: [campaign / "runs" / "cache"])
    with pytest.raises(LoopError, match="runs/cache cannot be read"):
        back_up(campaign, tmp_path / "c.zip")
    assert not (tmp_path / "c.zip").exists()


def failing_at(place, what):
    """A stand-in for ``replacing`` that ends with ``what()`` at one file."""

    def write(path, **how):
        if path.name == place:
            what()
        return replacing(path, **how)

    return write


@pytest.mark.parametrize("place", ["report.html", "x.csv", "goldloop.toml"])
def test_an_interrupted_restore_can_be_run_again(campaign, tmp_path, archive, monkeypatch, place):
    new = tmp_path / "new"
    new.mkdir()
    child = os.fork()
    if not child:
        backups.replacing = failing_at(place, lambda: os.kill(os.getpid(), 9))
        restore_backup(archive, new / "goldloop.toml")
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    assert not (new / "c.db").exists()
    restore_backup(archive, new / "goldloop.toml")
    assert status_of(new / "goldloop.toml") == status_of(campaign / "goldloop.toml")


def test_a_restore_that_fails_leaves_nothing(tmp_path, archive, monkeypatch):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(backups, "replacing", failing_at("goldloop.toml", full))
    new = tmp_path / "new"
    new.mkdir()
    with pytest.raises(LoopError, match=r"goldloop.toml cannot be written: No space left"):
        restore_backup(archive, new / "goldloop.toml")
    assert list(new.iterdir()) == []


def test_an_empty_campaign_file_is_an_error_and_not_the_backups(tmp_path, archive):
    path = hostile("a folder elsewhere", archive, tmp_path)
    new = tmp_path / "deep" / "new"
    new.mkdir(parents=True)
    (new / "goldloop.toml").write_text("")
    with pytest.raises(ConfigError):
        restore_backup(path, new / "goldloop.toml")
    assert [p for p in (tmp_path / "deep").rglob("*") if p.is_file()] == [new / "goldloop.toml"]


def rewritten(path, out, change):
    """The archive with members changed: name -> bytes, and a manifest that fits them."""
    with zipfile.ZipFile(path) as old:
        members = {n: old.read(n) for n in old.namelist()}
    about = json.loads(members.pop("manifest.json"))
    about.pop("members")
    about.pop("form")
    change(members, about)
    with writing_archive(out, about) as new:
        for name, data in members.items():
            with new.adding(name) as added:
                added.write(data)
    return out


def raw_zip(out, entries, manifest=None):
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in entries:
            z.writestr(name, data)
        if manifest is not None:
            z.writestr("manifest.json", json.dumps(manifest))
    return out


def link(name):
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


ELSEWHERE = {
    "a folder elsewhere": 'store.folder = "../elsewhere"\n',
    "a database elsewhere": 'store.url = "sqlite:///../elsewhere.db"\n',
    "a server": 'store.url = "postgresql+psycopg://goldloop@evil.example/d"\n',
}


ODD_NAMES = (
    "../../evil",
    "/evil",
    "files/out/../../evil",
    "files\\..\\evil",
    "c:evil",
    "files/out/.hidden",
    "files/out/cache/.hidden",
)
IN_PLACE_OF = ("goldloop.toml in place of it", "x.csv in place of it", "c.db in place of it")


def hostile(kind, archive, tmp_path):
    """An archive that is broken, or made to do harm."""
    out = tmp_path / "bad.zip"
    data = archive.read_bytes()
    if kind == "cut short":
        out.write_bytes(data[: len(data) // 2])
    elif kind == "a flipped bit":
        at = data.index(b"tables/vote_block.jsonl") + 60
        out.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    elif kind == "text":
        out.write_text("not a zip")
    elif kind == "no manifest":
        raw_zip(out, [("files/campaign.toml", CAMPAIGN)])
    elif kind == "odd manifest":
        raw_zip(out, [("files/campaign.toml", CAMPAIGN)], [1, 2])
    elif kind == "no tables":
        about = {"campaign": "c", "schema": "0008"}
        with writing_archive(out, about) as new, new.adding("files/campaign.toml") as added:
            added.write(CAMPAIGN.encode())
    elif kind in ODD_NAMES:
        rewritten(archive, out, lambda members, _: members.update({kind: b"x"}))
    elif kind in IN_PLACE_OF:
        evil = CAMPAIGN + 'store.folder = "."\n'
        files = {"files/campaign.toml": evil.encode(), f"files/out/{kind.split()[0]}": b"x"}
        rewritten(archive, out, lambda members, _: members.update(files))
    elif kind == "link":
        raw_zip(out, [(link("files/out/x"), "/etc/passwd")], {"form": FORM, "members": {}})
    elif kind == "bomb":
        stated = {"bytes": 10, "sha256": "0" * 64}
        raw_zip(
            out, [("files/out/x", b"0" * 10**8)], {"form": FORM, "members": {"files/out/x": stated}}
        )
    elif kind == "large":
        stated = {"bytes": 10**18, "sha256": "0" * 64}
        raw_zip(out, [("files/out/x", b"0")], {"form": FORM, "members": {"files/out/x": stated}})
    elif kind == "a row too short":
        rewritten(archive, out, lambda m, _: m.update({"tables/gold.jsonl": b"[1]\n"}))
    elif kind == "a row of nobody":
        rewritten(archive, out, lambda m, _: m.update({"tables/item.jsonl": b""}))
    elif kind == "another table":

        def more(members, about):
            members["tables/evil.jsonl"] = b""
            about["tables"]["evil"] = {"columns": [], "rows": 0}

        rewritten(archive, out, more)
    elif kind == "a newer schema":
        rewritten(archive, out, lambda _, about: about.update(schema="9999"))
    elif kind in ELSEWHERE:
        evil = CAMPAIGN + ELSEWHERE[kind]
        rewritten(archive, out, lambda m, _: m.update({"files/campaign.toml": evil.encode()}))
    return out


KINDS = (
    "cut short",
    "a flipped bit",
    "text",
    "no manifest",
    "odd manifest",
    "no tables",
    *ODD_NAMES,
    *IN_PLACE_OF,
    "link",
    "bomb",
    "large",
    "a row too short",
    "a row of nobody",
    "another table",
    "a newer schema",
    *ELSEWHERE,
)


def test_of_a_hostile_or_broken_archive_nothing_is_written(archive, tmp_path):
    for kind in KINDS:
        folder = tmp_path / "deep" / "target"
        folder.mkdir(parents=True)
        path = hostile(kind, archive, tmp_path)
        with pytest.raises((DataError, StoreError), match=r"\.") as told:
            restore_backup(path, folder / "goldloop.toml")
        assert list((tmp_path / "deep").rglob("*")) == [folder], (kind, told.value)
        shutil.rmtree(tmp_path / "deep")
        path.unlink()
