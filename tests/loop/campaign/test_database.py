"""The store's database: opened, created and upgraded whatever happens meanwhile."""

import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from campaigns import make, stored_votes, texts
from disks import enlarge, file_size_limit, read_only_disk, small_disk
from kept_store import answer_all, kept_campaign
from kill_opening import old_store
from sqlalchemy import MetaData, create_engine

from loop.campaign.database import migrate, schema_versions
from loop.campaign.store import Store
from loop.campaign.tables import Variant
from loop.cli import __main__ as cli
from loop.errors import NoStoreError, StoreError
from loop.round import run_round

ROOT = Path(__file__).parents[3]
KEPT = ROOT / "tests/data/store_0005"
OLD = ("0001", "0002", "0003", "0004")


@pytest.fixture
def empty_url(request, tmp_path):
    """A database of its own folder or server database, on each kind."""

    def make_url(kind):
        if kind == "sqlite":
            (tmp_path / "store").mkdir()
            return f"sqlite:///{tmp_path / 'store' / 'c.db'}"
        server = request.getfixturevalue("postgres")
        name = f"test_{uuid.uuid4().hex}"
        server.psql(f"create database {name};")
        return server.get_uri(name).replace("postgresql://", "postgresql+psycopg://")

    return make_url


def opening(mode, url, schema, number):
    """What ``tests/support/kill_opening.py`` says."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests/support/kill_opening.py", mode, url, schema, str(number)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def some(kind, schema, step):
    return pytest.param(kind, schema, step, id=f"{kind}-{schema}-some")


def every(kind, schema):
    return pytest.param(kind, schema, 1, id=f"{kind}-{schema}-every", marks=pytest.mark.long)


KINDS = ("sqlite", "postgresql")


@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    ("kind", "schema", "step"),
    [
        some("postgresql", "none", 37),
        some("sqlite", "0001", 79),
        *(every(kind, schema) for kind in KINDS for schema in ("none", *OLD)),
    ],
)
def test_a_kill_at_any_statement_leaves_a_store_that_opens(empty_url, kind, schema, step):
    """Some points of creation and of an upgrade; every point of each, on both, in the long run."""
    said, errors = opening("sweep", empty_url(kind), schema, step)
    assert said["stuck"] == [], errors
    assert said["points"] * step > 60


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schema", ["none", pytest.param("0003", marks=pytest.mark.long)])
def test_processes_that_open_at_once_all_succeed(empty_url, kind, schema):
    said, errors = opening("together", empty_url(kind), schema, 4)
    assert said == {"failed": 0}, errors


def test_a_store_that_an_early_version_left_half_made_is_made_whole(tmp_path):
    with sqlite3.connect(tmp_path / "c.db") as half:
        half.execute("create table campaign (name varchar primary key)")
        half.execute("create table item (id varchar, campaign varchar references campaign (name))")
    half.close()
    store = Store(f"sqlite:///{tmp_path / 'c.db'}")
    assert store.open_campaign("c", ["a", "b"]) == ()
    store.close()


@pytest.mark.parametrize("rows", [0, 1])
def test_tables_of_another_program_are_left_alone(tmp_path, rows):
    with sqlite3.connect(tmp_path / "c.db") as other:
        other.execute("create table event (id integer)")
        other.execute("create table theirs (id integer)")
        other.executemany("insert into event values (?)", [[1]] * rows)
    other.close()
    with pytest.raises(StoreError, match="did not make"):
        Store(f"sqlite:///{tmp_path / 'c.db'}")
    with sqlite3.connect(tmp_path / "c.db") as other:
        tables = {name for (name,) in other.execute("select name from sqlite_master")}
    other.close()
    assert tables == {"event", "theirs"}


# upgrades


def schema_of(path):
    with sqlite3.connect(path) as connection:
        ((version,),) = connection.execute("select version_num from alembic_version").fetchall()
    connection.close()
    return version


def test_a_copy_is_kept_before_an_upgrade(empty_url, tmp_path):
    url, news = empty_url("sqlite"), []
    old_store(url, "0003")
    Store(url, say=news.append).close()
    copy = tmp_path / "store" / "c.db.schema-0003"
    assert [line for line in news if str(copy) in line] == news != []
    assert schema_of(copy) == "0003"
    assert schema_of(tmp_path / "store" / "c.db") != "0003"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    Store(url, say=news.append).close()
    assert len(news) == 1
    assert sorted(p.name for p in copy.parent.iterdir()) == ["c.db", "c.db.schema-0003"]


def test_without_room_for_the_copy_nothing_is_upgraded(empty_url, tmp_path):
    url = empty_url("sqlite")
    old_store(url, "0003")
    with file_size_limit(100_000), pytest.raises(StoreError, match="copy of it cannot be kept"):
        Store(url)
    assert schema_of(tmp_path / "store" / "c.db") == "0003"
    assert [p.name for p in (tmp_path / "store").iterdir()] == ["c.db"]
    store = Store(url)
    assert store.labels("c") == ["a", "b"]
    store.close()


# going back


def columns_of(url):
    engine = create_engine(url)
    metadata = MetaData()
    metadata.reflect(engine)
    engine.dispose()
    return {
        table.name: {(c.name, str(c.type), c.nullable) for c in table.columns}
        for table in metadata.sorted_tables
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_schema_can_be_gone_back_to_and_come_from(empty_url, kind):
    url = empty_url(kind)
    store = Store(url)
    store.open_campaign("c", ["a", "b"])
    store.close()
    newest, schemas = schema_versions(url)
    ways = schemas if kind == "sqlite" else (schemas[0], newest)  # starts cost more there
    shapes = {newest: columns_of(url)}
    for schema in reversed(ways[:-1]):
        assert migrate(url, schema) == []
        assert schema_versions(url)[0] == schema
        shapes[schema] = columns_of(url)
    assert shapes[newest] != shapes[schemas[0]]
    for schema in ways[1:]:
        assert migrate(url, schema) == []
        assert columns_of(url) == shapes[schema], schema
    store = Store(url)
    assert store.labels("c") == ["a", "b"]
    store.close()


def test_going_back_loses_nothing_unasked(kept, goldloop):
    file = ("-f", kept / "goldloop.toml")
    assert goldloop("upgrade", *file)[0] == 0
    store = Store(f"sqlite:///{kept / 'store.sqlite'}")
    (variant, *_) = store.variants("kept", store.annotators("kept")[0])
    again = Variant(**{**variant.model_dump(), "from_round": 3})  # the same prompt once more
    with store.transaction() as session:
        session.add(again)
    store.close()
    newest = goldloop("migrate", *file)[1].strip()
    code, _, err = goldloop("migrate", "--to", "0004", *file)
    assert (code, "would lose" in err, "--lose-data" in err) == (1, True, True), err
    assert "1 rows of variant" in err
    assert goldloop("migrate", *file)[1].strip() == newest
    code, _, err = goldloop("migrate", "--to", "0004", "--lose-data", *file)
    assert (code, "Lost: 1 rows of variant" in err) == (0, True), err
    assert schema_versions(f"sqlite:///{kept / 'store.sqlite'}")[0] == "0004"
    code, out, err = goldloop("migrate", *file)
    assert (out.strip(), "`goldloop upgrade --file" in err) == ("0004", True)
    assert "too far" in goldloop("migrate", "--down", "9", *file)[2]
    assert "no schema '4'" in goldloop("migrate", "--to", "4", *file)[2]
    assert goldloop("migrate", "--down", "1", "--lose-data", *file)[0] == 0
    assert goldloop("upgrade", *file)[0] == 0
    assert goldloop("status", *file)[0] == 0


# full disks


def test_no_room_to_create_a_store_is_one_sentence(tmp_path):
    url = f"sqlite:///{tmp_path / 'c.db'}"
    for size in (0, 4096, 40_000, 120_000):
        with file_size_limit(size), pytest.raises(StoreError, match="make room"):
            Store(url)
    Store(url).close()


def gold_of(ctx):
    return {item: (gold.label, gold.how) for item, gold in ctx.store.gold(ctx.name).items()}


def tiny(folder):
    """A campaign of one quick round."""
    return make(
        folder,
        rows=texts(60),
        budget={"labels": 8},
        rounds={"batch_size": 8, "rounds": 1, "audit_frac": 0.5},
        strategy={"repair": "keep"},
        student={"seeds": 2, "references": []},
    )


def gold_at_the_end(ctx):
    last = ctx.store.last_round("c")
    assert (last and last.stage == "done") or run_round(ctx).stage == "done"
    gold = gold_of(ctx)
    assert len(gold) == 8
    ctx.store.close()
    return gold


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Gold of the tiny campaign that nothing disturbed."""
    return gold_at_the_end(tiny(tmp_path_factory.mktemp("undisturbed")))


def test_a_campaign_resumes_once_files_may_grow(tmp_path, expected):
    refused = []
    for size in (60_000, 185_000, 195_000, 205_000):
        ctx = None
        with file_size_limit(size):
            try:
                ctx = tiny(tmp_path)
                gold_at_the_end(ctx)
            except StoreError as exc:
                refused.append(str(exc))
        if ctx is not None:
            ctx.store.close()
    assert all("make room" in sentence for sentence in refused)
    assert len(refused) > 1
    assert gold_at_the_end(tiny(tmp_path)) == expected


def test_a_campaign_resumes_once_a_full_disk_has_room(tmp_path, expected):
    with small_disk(tmp_path, 64):
        with pytest.raises(StoreError, match="make room"):
            Store(f"sqlite:///{tmp_path / 'c.db'}")
        enlarge(tmp_path, 420)
        with pytest.raises(StoreError, match="make room"):
            gold_at_the_end(tiny(tmp_path))
        enlarge(tmp_path, 20_000)
        assert gold_at_the_end(tiny(tmp_path)) == expected


# commands that only read


@pytest.fixture
def kept(tmp_path):
    """The kept campaign, in a folder that may change."""
    folder = tmp_path / "kept"
    shutil.copytree(KEPT, folder)
    return folder


@pytest.fixture
def goldloop(monkeypatch, capsys):
    """Runs a command: exit code, stdout, stderr."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["goldloop", *map(str, args)])
        try:
            cli.main()
            code = 0
        except SystemExit as exc:
            code = int(exc.code or 0)
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


def read_commands(folder, out):
    file = ("-f", folder / "goldloop.toml")
    return [
        ("status", *file),
        ("people", *file),
        ("export", out / "labels.csv", *file),
        ("report", "--out", out, *file),
        ("codebook", "--out", out, *file),
    ]


def test_commands_that_read_make_no_store(kept, tmp_path, goldloop):
    for name in ("store.sqlite", "studio.json"):
        (kept / name).unlink()
    before = sorted(kept.rglob("*"))
    for args in read_commands(kept, tmp_path):
        code, _, err = goldloop(*args)
        assert code == 1
        assert err.startswith("Error: There is no store at"), err
        assert "`goldloop run --file" in err
    assert sorted(kept.rglob("*")) == before


@pytest.mark.parametrize("kind", KINDS)
def test_reading_an_empty_database_makes_nothing_in_it(empty_url, kind):
    url = empty_url(kind)
    for _ in range(2):
        with pytest.raises(NoStoreError, match="no store"):
            Store(url, read_only=True)


@pytest.mark.parametrize("kind", KINDS)
def test_reading_an_older_store_says_what_to_run_and_leaves_it(empty_url, kind):
    url = empty_url(kind)
    old_store(url, "0004")
    for _ in range(2):
        with pytest.raises(StoreError, match=r"earlier goldloop \(schema 0004.*goldloop upgrade"):
            Store(url, read_only=True)


def test_upgrade_brings_an_older_store_up_to_date(kept, goldloop):
    (kept / "aside").mkdir()
    old_store(f"sqlite:///{kept / 'aside' / 'store.sqlite'}", "0002")
    shutil.move(kept / "aside" / "store.sqlite", kept / "store.sqlite")
    file = ("-f", kept / "goldloop.toml")
    assert "`goldloop upgrade --file" in goldloop("status", *file)[2]
    code, _, err = goldloop("upgrade", *file)
    assert (code, "store.sqlite.schema-0002" in err, "up to date" in err) == (0, True, True)
    assert "has not begun in the store" in goldloop("status", *file)[2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_opened_to_read_cannot_be_written(empty_url, kind):
    url = empty_url(kind)
    Store(url).close()
    store = Store(url, read_only=True)
    with pytest.raises(StoreError):
        store.open_campaign("c", ["a", "b"])
    assert store.labels("c") == []
    store.close()


def test_commands_that_read_leave_the_folder_as_it_is(kept, tmp_path, goldloop):
    assert goldloop("upgrade", "-f", kept / "goldloop.toml")[0] == 0
    before = {p: p.stat().st_mtime_ns for p in kept.rglob("*") if p.is_file()}
    (tmp_path / "out").mkdir()
    for args in read_commands(kept, tmp_path / "out"):
        code, _, err = goldloop(*args)
        assert code == 0, err
    assert {p: p.stat().st_mtime_ns for p in kept.rglob("*") if p.is_file()} == before


def test_commands_that_read_work_on_a_disk_that_cannot_be_written(kept, tmp_path, goldloop):
    assert goldloop("upgrade", "-f", kept / "goldloop.toml")[0] == 0
    (tmp_path / "out").mkdir()
    plain = goldloop("status", "-f", kept / "goldloop.toml")
    with read_only_disk(kept):
        for args in read_commands(kept, tmp_path / "out"):
            code, _, err = goldloop(*args)
            assert code == 0, err
        assert goldloop("status", "-f", kept / "goldloop.toml") == plain
        code, out, err = goldloop("report", "-f", kept / "goldloop.toml")
        assert code == 1
        assert "alpha" in out.lower()
        assert "--out" in err
        code, _, err = goldloop("run", "-f", kept / "goldloop.toml")
        assert code == 1
        assert err.startswith("Error: "), err
    made = {"labels.csv", "report.html", "rounds.json", "codebook.md"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == made


def test_what_a_killed_writer_left_in_the_log_is_read_from_such_a_disk(kept, tmp_path):
    code = (
        "import os, sys; from loop.campaign.store import Store; s = Store(sys.argv[1]);"
        "s.set_project('kept', '77'); os.kill(os.getpid(), 9)"
    )
    url = f"sqlite:///{kept / 'store.sqlite'}"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, url], env=env)
    assert (kept / "store.sqlite-wal").stat().st_size
    with read_only_disk(kept):
        store = Store(url, read_only=True)
        assert store.project_id("kept") == "77"
        store.close()
        (tmp_path / "without_index").mkdir()
    for name in ("store.sqlite", "store.sqlite-wal"):
        shutil.copy(kept / name, tmp_path / "without_index")
    with read_only_disk(tmp_path / "without_index"), pytest.raises(StoreError, match="copy"):
        Store(f"sqlite:///{tmp_path / 'without_index' / 'store.sqlite'}", read_only=True)


def test_a_store_is_for_its_owner_alone(tmp_path):
    (tmp_path / "deep").mkdir()
    ctx = make(tmp_path / "deep")
    with ctx.store.transaction():
        files = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "deep").glob("c.db*")}
    ctx.store.close()
    assert set(files) > {"c.db"}
    assert set(files.values()) == {0o600}


# a store that an earlier version wrote


def test_a_kept_store_is_continued_and_reported(kept, tmp_path, goldloop):
    file = ("-f", kept / "goldloop.toml")
    upgraded = goldloop("upgrade", *file)
    assert upgraded[0] == 0, upgraded[2]
    waiting = "Round 2 of 3, stage pull: 6 texts chosen, 6 sent to people (3 answered, 3 waiting)"
    assert waiting in goldloop("status", *file)[1]
    ctx = kept_campaign(kept)
    gold = gold_of(ctx)
    assert len(gold) == 6
    for number in (2, 3):
        run_round(ctx)
        answer_all(ctx)
        done = run_round(ctx)
        assert (done.number, done.stage) == (number, "done")
    assert gold.items() <= gold_of(ctx).items()
    assert len(gold_of(ctx)) == 18
    assert len(stored_votes(ctx.store)) == len(set(stored_votes(ctx.store))) == 48
    assert ctx.store.spent("kept").votes == 48
    ctx.store.close()
    (tmp_path / "out").mkdir()
    for args in read_commands(kept, tmp_path / "out"):
        code, _, err = goldloop(*args)
        assert code == 0, err
