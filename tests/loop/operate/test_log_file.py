"""What happened, line by line, in a file that others may read."""

import logging
import os
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from operated import answer, at_work

from loop.cli import __main__ as cli
from loop.cli.terminal import say
from loop.errors import MachineError
from loop.operate import log_file
from loop.operate.log_file import logging_to
from loop.round import run_round

ROOT = Path(__file__).parents[3]
LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (INFO|WARNING|ERROR)"
    r" campaign=\S+ round=\S+ stage=\S+ .*"
)


def test_lines_say_where_a_round_is_and_hold_no_secret(campaign, monkeypatch):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "0123456789abcdef")
    path = campaign / "log.txt"
    with logging_to(path):
        say("key 0123456789abcdef, http://me:secret@host, two\nlines \x1b[31m")
        ctx = at_work(campaign)
        answer(ctx)
        run_round(ctx)
        ctx.store.close()
        logging.getLogger("loop.x").warning("look %s", "here")
    text = path.read_text()
    assert all(LINE.fullmatch(line) for line in text.splitlines()), text
    assert "0123456789abcdef" not in text
    assert "secret" not in text
    assert r"two\nlines \x1b[31m" in text
    assert "campaign=- round=2 stage=train begins" in text
    assert "campaign=- round=2 stage=train ended after" in text
    assert "round=- stage=- look here" in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    say("afterwards")
    assert path.read_text() == text


def test_files_are_rotated_and_several_writers_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(log_file, "MOST_BYTES", 1000)
    path = tmp_path / "log.txt"
    threads = []
    with logging_to(path):
        for n in range(3):
            threads.append(threading.Thread(target=lambda n=n: [say(f"{n}-{i}") for i in range(9)]))
            threads[-1].start()
        for thread in threads:
            thread.join()
        path.rename(tmp_path / "log.txt.moved")  # as another process does
        say("in the new file")
    assert "in the new file" in path.read_text()
    words = " ".join(p.read_text() for p in tmp_path.iterdir())
    assert all(f" {n}-{i}\n" in words for n in range(3) for i in range(9))
    assert len(list(tmp_path.iterdir())) > 2
    assert {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == {0o600}


def test_a_log_that_cannot_be_written_is_one_sentence(tmp_path, capsys):
    with pytest.raises(MachineError, match="--log-file"), logging_to(tmp_path / "no" / "log"):
        pass
    with logging_to(tmp_path / "log"):
        handler = log_file.said.handlers[-1]
        handler.stream.close()
        handler.stream = open("/dev/full", "w")  # noqa: SIM115, PTH123
        handler.baseFilename = "/dev/full"
        say("one")
        say("two")
    assert capsys.readouterr().err.count("nothing more is logged") == 1


def test_the_option_logs_errors_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["goldloop", "--log-file", "log.txt", "status"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "ERROR" in (tmp_path / "log.txt").read_text()
    assert capsys.readouterr().err.count("Error:") == 1


def test_warnings_are_still_seen(tmp_path):
    code = (
        "import logging, pathlib; from loop.operate.log_file import logging_to\n"
        "with logging_to(pathlib.Path('log.txt')): logging.getLogger('loop.x').warning('look')"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env
    )
    assert (done.stderr, "look" in (tmp_path / "log.txt").read_text()) == ("look\n", True)
