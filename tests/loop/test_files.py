"""Files written whole or not at all: links are never followed, modes are as promised."""

import os
import re
import stat
from pathlib import Path

import numpy as np
import pytest

from connectors.downloads.packages import one_at_a_time
from connectors.label_studio.server import _lock, _write
from connectors.texts.stream import TextStream, writing
from connectors.texts.write import write_labels
from loop import files
from loop.errors import LoopError
from loop.files import (
    SHARED,
    leftovers,
    locked,
    moved_away,
    remove_leftovers,
    replacing,
    replacing_folder,
    replacing_text,
    write_whole,
)
from loop.round import run_round
from loop.serve.tokens import save_state
from loop.student.kept_vectors import item_embeddings
from tests.support.campaigns import make

ROOT = Path(__file__).parents[2]
VICTIM = "the only copy of somebody's thesis"


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def broken_off(write, content):
    write(content)
    raise KeyboardInterrupt


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_a_file_is_there_whole_or_not_at_all(tmp_path, umask):
    path = tmp_path / "a.txt"
    write_whole(path, "ä\r\nb\n")
    assert path.read_bytes() == "ä\r\nb\n".encode()
    assert mode(path) == 0o600
    with pytest.raises(KeyboardInterrupt), replacing_text(path) as file:
        broken_off(file.write, "half")
    assert path.read_bytes() == "ä\r\nb\n".encode()
    write_whole(path, "new", mode=SHARED)
    assert (path.read_text(), mode(path)) == ("new", 0o644)
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a"
    for content in ("1", "2"):
        with replacing_folder(path) as part:
            (part / "x").write_text(content)
    with pytest.raises(KeyboardInterrupt), replacing_folder(path) as part:
        broken_off((part / "x").write_text, "half")
    assert (path / "x").read_text() == "2"
    assert names(tmp_path) == ["a"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("old")
    real = os.open

    def full(path, flags, mode=0o777):
        return real("/dev/full", os.O_RDWR) if str(path).endswith(".part") else real(path, flags)

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(LoopError, match=r"a\.txt cannot be written: No space left on device"):
        write_whole(path, "x" * 100_000)
    assert path.read_text() == "old"


def test_what_comes_while_a_folder_is_written_is_not_replaced(tmp_path):
    path = tmp_path / "a"
    with pytest.raises(OSError, match="not empty"), replacing_folder(path):
        write_whole(path / "mine", VICTIM)
    assert (path / "mine").read_text() == VICTIM
    assert names(tmp_path) == ["a"]


def _killed(work):
    """Runs it in a process of its own, which is killed in the middle."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9


def _die(*_):
    os.kill(os.getpid(), 9)


@pytest.mark.parametrize("in_one_step", [True, False])
def test_a_kill_while_a_folder_is_replaced_leaves_the_old_or_the_new(
    tmp_path, monkeypatch, in_one_step
):
    path = tmp_path / "a"
    path.mkdir()
    (path / "x").write_text("old")
    exchange, rename = files._exchanged, Path.rename

    def renamed_and_killed(one, other):
        rename(one, other)
        _die()

    def replace():
        with replacing_folder(path) as part:
            (part / "x").write_text("new")

    with monkeypatch.context() as patch:
        if in_one_step and exchange(path, path):
            patch.setattr(files, "_exchanged", lambda *at: exchange(*at) and _die())
        else:
            patch.setattr(files, "_exchanged", lambda *_: False)
            patch.setattr(Path, "rename", renamed_and_killed)
        _killed(replace)
    remove_leftovers(path)
    assert (path / "x").read_text() in ("old", "new")
    assert names(tmp_path) == ["a"]


def test_an_old_folder_is_put_back_before_it_is_replaced_again(tmp_path):
    old = tmp_path / ".a.0123456789ab.old"
    old.mkdir()
    (old / "x").write_text("old")
    assert moved_away(tmp_path) == [tmp_path / "a"]
    assert leftovers(tmp_path) == []
    with pytest.raises(KeyboardInterrupt), replacing_folder(tmp_path / "a") as part:
        broken_off((part / "x").write_text, "half")
    assert (tmp_path / "a" / "x").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    left = (".m.0123456789ab.part", ".m.0123456789ab.part-wal", ".m.456789abcdef.old")
    others = (
        ".other.0123456789ab.part",
        ".m.old",
        ".m.part",
        ".m.0123.part",
        ".m.0123456789AB.old",
    )
    (tmp_path / left[0]).mkdir()
    for name in (*left[1:], *others, "m"):
        (tmp_path / name).write_text("x")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_text(VICTIM)
    (tmp_path / ".m.89ab89ab89ab.part").symlink_to(outside)
    remove_leftovers(tmp_path / "m")
    assert names(tmp_path) == sorted([*others, ".m.89ab89ab89ab.part", "m", "outside"])
    assert (outside / "f").read_text() == VICTIM


def test_what_is_being_written_is_no_leftover(tmp_path):
    with replacing(tmp_path / "m") as file, replacing_folder(tmp_path / "f"):
        file.write(b"x")
        half = names(tmp_path)
        assert leftovers(tmp_path) == []
        remove_leftovers(tmp_path / "m")
        assert names(tmp_path) == half
    assert names(tmp_path) == ["f", "m"]


def test_a_lock_never_follows_a_link_and_never_cuts_a_file_short(tmp_path):
    path = tmp_path / "lock"
    path.write_text(VICTIM)
    with locked(path):
        assert path.read_text() == VICTIM
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "made")
    with pytest.raises(OSError, match="symbolic link"), locked(link):
        pass
    assert not (tmp_path / "made").exists()


# Every name under which files were half-written so far, or could be guessed to be.
GUESSES = (
    ".{name}.partial",
    ".{name}.{pid}.partial",
    ".{name}.{pid}.part",
    "{name}.{pid}.part",
    "{name}.part",
    "{stem}.partial.npy",
)


def _stream(folder):
    (folder / "in.csv").write_text("text\na\n")
    stream = TextStream(folder / "in.csv")
    with writing(folder / "out.csv", stream, {"label": str}) as write:
        write([{"text": "a", "label": "x"}])


WRITERS = {
    "report.html": lambda f: write_whole(f / "report.html", "x"),
    "labels.csv": lambda f: write_labels([{"a": 1}], f / "labels.csv"),
    "labels.jsonl": lambda f: write_labels([{"a": 1}], f / "labels.jsonl"),
    "labels.parquet": lambda f: write_labels([{"a": 1}], f / "labels.parquet"),
    "out.csv": _stream,
    "c.serve.json": lambda f: save_state(f / "c.serve.json", {"secret": "00"}),
    "server.json": lambda f: _write(f, {"a": 1}),
}


def _lay(path, folder):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(folder / "victim")


@pytest.mark.parametrize("name", WRITERS)
def test_links_laid_in_the_way_of_a_file_are_not_followed(tmp_path, name):
    victim = tmp_path / "victim"
    victim.write_text(VICTIM)
    stem = Path(name).stem
    for guess in GUESSES:
        _lay(tmp_path / guess.format(name=name, stem=stem, pid=os.getpid()), tmp_path)
    _lay(tmp_path / name, tmp_path)  # the file itself
    WRITERS[name](tmp_path)
    assert victim.read_text() == VICTIM
    assert not (tmp_path / name).is_symlink()
    laid = [guess.format(name=name, stem=stem, pid=os.getpid()) for guess in GUESSES]
    assert all((tmp_path / other).is_symlink() for other in laid)  # not ours, so left alone


def test_links_laid_in_the_way_of_embeddings_are_not_followed(tmp_path):
    ctx = make(tmp_path)
    run_round(ctx)
    items = ctx.store.items("c", "pool")
    found = item_embeddings(ctx, items)
    (cache,) = (tmp_path / "runs" / "cache").glob("embeddings-*.npz")
    assert mode(cache) == 0o600
    cache.unlink()
    victim = tmp_path / "victim"
    victim.write_text(VICTIM)
    _lay(cache.with_suffix(".partial.npz"), tmp_path)
    assert np.array_equal(item_embeddings(ctx, items), found)
    with np.load(cache) as kept:
        assert np.array_equal(kept["embeddings"][: len(items)], found)
    assert victim.read_text() == VICTIM


@pytest.mark.parametrize("lock", [".model.lock", "lock"])
def test_links_laid_in_the_way_of_a_lock_are_not_followed(tmp_path, lock):
    victim = tmp_path / "victim"
    victim.write_text(VICTIM)
    (tmp_path / lock).symlink_to(victim)
    taken = one_at_a_time(tmp_path / "model") if lock.startswith(".") else _lock(tmp_path)
    with pytest.raises((LoopError, OSError)), taken:
        pass
    assert victim.read_text() == VICTIM


def test_report_rounds_and_caches_are_for_their_owner_alone(tmp_path, umask):
    from loop.report.collect import write_outputs

    ctx = make(tmp_path)
    run_round(ctx)
    write_outputs(ctx.config, ctx.store)
    files = [p for p in (tmp_path / "runs").rglob("*") if p.is_file() and p.name != "model.txt"]
    assert {"report.html", "rounds.json"} <= {p.name for p in files}
    assert {p.name: oct(mode(p)) for p in files if mode(p) != 0o600} == {}
    write_labels([{"a": 1}], tmp_path / "labels.csv")
    assert mode(tmp_path / "labels.csv") == 0o644


def test_only_one_file_writes_and_renames():
    """Nobody writes a second copy of loop/files.py."""
    own = re.compile(r"\.partial\b|\.part\"|O_EXCL|O_CREAT|os\.replace")
    for room in ("loop", "connectors"):
        for path in (ROOT / room).rglob("*.py"):
            # SQLite writes the copies that database.py keeps; fsck.py looks for what is left over.
            if path.name in ("files.py", "lock.py", "database.py", "fsck.py"):
                continue
            lines = [
                line
                for line in path.read_text(encoding="utf-8").splitlines()
                if own.search(line) and "O_APPEND" not in line
            ]
            assert not lines, (path, lines)


def test_an_array_and_a_table_can_be_written_to_the_new_file(tmp_path):
    with replacing(tmp_path / "a.npy") as file:
        np.save(file, np.arange(3))
    assert np.load(tmp_path / "a.npy").tolist() == [0, 1, 2]


def test_a_pipe_is_never_replaced(tmp_path):
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        with pytest.raises(LoopError, match="it is a pipe or a device, and would be replaced"):
            write_whole(path, "text")
    assert pipe.is_fifo()
    assert link.is_symlink()
