"""Whatever goes wrong is one sentence that says what to do; tracebacks are for --debug alone."""

import builtins
import errno
import importlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy.exc

from loop import errors
from loop.campaign.config import CAMPAIGN_FILE, load
from loop.campaign.import_texts import import_texts
from loop.campaign.store import Store
from loop.cli import __main__ as cli
from loop.cli.build import load_campaign_texts
from loop.errors import (
    ENDING,
    LoopError,
    Stopped,
    StoreError,
    UnforeseenError,
    ending_later,
    foreign,
    suggestion,
)
from tests.loop.cli.test_main import goldloop, good_rows, write_campaign, write_texts

ROOT = Path(__file__).parents[2]

# Modules whose every public exception must be known: what goldloop calls at work.
MODULES = (
    "sqlalchemy.exc",
    "sqlite3",
    "psycopg",
    "httpx",
    "httpcore",
    "pyarrow",
    "csv",
    "zlib",
    "zipfile",
    "tarfile",
    "subprocess",
    "socket",
    "ssl",
    "urllib.error",
    "http.client",
    "safetensors",
    "label_studio_sdk.core.api_error",
    "huggingface_hub.errors",
)
# Raised for wrong calls of the library, not by the world outside.
FAULTS = {"zipfile.LargeZipFile", "sqlite3.Warning", "psycopg.Warning", "psycopg.Rollback"}


def made(cls):
    """An instance, without its constructor's demands."""
    exc = cls.__new__(cls)
    if isinstance(exc, sqlalchemy.exc.StatementError):
        sqlalchemy.exc.StatementError.__init__(exc, "message", "select", {}, sqlite3.Error("said"))
    exc.args = ("what the library says",)
    return exc


def exceptions():
    for name in MODULES:
        module = importlib.import_module(name)
        for attribute, cls in sorted(vars(module).items()):
            if not (isinstance(cls, type) and issubclass(cls, Exception)) or attribute[0] == "_":
                continue
            if issubclass(cls, Warning) or f"{name}.{attribute}" in FAULTS:
                continue
            if name == "huggingface_hub.errors" and not issubclass(cls, OSError):
                continue  # wrong calls
            if cls.__module__ == "builtins" and not issubclass(cls, OSError | MemoryError):
                continue
            yield f"{name}.{attribute}", cls
    for attribute, cls in sorted(vars(builtins).items()):
        if isinstance(cls, type) and issubclass(
            cls, OSError | MemoryError | RecursionError | OverflowError | UnicodeError | ImportError
        ):
            yield f"builtins.{attribute}", cls


def is_sentence(text):
    assert text[0].isupper() or text.startswith("goldloop"), text
    assert text.endswith("."), text
    assert "\n" not in text
    return True


def test_every_exception_of_a_library_is_known():
    told = {name: foreign(made(cls)) for name, cls in exceptions()}
    assert len(told) > 150
    assert [name for name, error in told.items() if isinstance(error, UnforeseenError)] == []
    assert all(isinstance(error, LoopError) and is_sentence(str(error)) for error in told.values())


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        ("ENOSPC", "no room left"),
        ("EDQUOT", "no room left"),
        ("EACCES", "may not read or write"),
        ("EROFS", "only be read"),
        ("EMFILE", "ulimit -n"),
        ("ENOMEM", "too little memory"),
        ("EPIPE", "has ended"),
        ("ENOENT", "is not there"),
        ("ECONNREFUSED", "cannot be reached"),
        ("EIO", "Input/output error"),
    ],
)
def test_the_system_says_what_is_the_matter(number, expected):
    code = getattr(errno, number)
    told = str(foreign(OSError(code, os.strerror(code), "/a/file")))
    assert expected in told
    assert is_sentence(told)


def test_memory_is_known_by_what_is_said_where_no_class_tells():
    assert "memory" in str(foreign(RuntimeError("[enforce fail] can't allocate memory: 1 GB")))


def test_parameters_of_sql_stay_out_of_every_message(store_url):
    store = Store(store_url)
    with pytest.raises(StoreError) as caught, store.transaction() as session:
        session.connection().execute(
            sqlalchemy.text("insert into item (id) values (:a)"), {"a": "a text that is private"}
        )
    store.close()
    cause = caught.value.__cause__
    assert "parameters hidden" in str(cause)
    assert "private" not in str(caught.value) + str(foreign(cause))


# through the command line


def begun(folder):
    """A campaign whose texts are in its store, which commands that read ask for."""
    write_texts(folder, good_rows())
    write_campaign(folder)
    config = load(folder / CAMPAIGN_FILE)
    with closing(Store(config.store_url)) as store:
        store.open_campaign(config.campaign.name, config.label_names)
        import_texts(config, store, load_campaign_texts(config))


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_debug", False)
    begun(tmp_path)
    return lambda *args: goldloop(monkeypatch, capsys, *args)


RAISED = {
    "sqlalchemy": sqlalchemy.exc.OperationalError(
        "insert", {"a": "PRIVATE"}, sqlite3.OperationalError("database or disk is full")
    ),
    "no room": OSError(errno.ENOSPC, "No space left on device"),
    "pipe": BrokenPipeError(errno.EPIPE, "Broken pipe"),
    "memory": MemoryError(),
    "recursion": RecursionError("maximum recursion depth exceeded"),
    "overflow": OverflowError("Python int too large to convert to C long"),
    "value": ValueError("shapes (3,) and (4,)"),
    "key": KeyError("x"),
    "exit in a library": EOFError(),
}


@pytest.mark.parametrize("name", RAISED)
def test_nothing_reaches_the_user_as_a_traceback(run, monkeypatch, name):
    def fail(*_args, **_options):
        raise RAISED[name]

    monkeypatch.setattr("loop.report.status.campaign_status", fail)
    code, out, err = run("status")
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert line.startswith("Error: ")
    assert "Traceback" not in err
    assert "PRIVATE" not in err
    with pytest.raises(LoopError) as caught:
        run("--debug", "status")
    assert caught.value.__cause__ is RAISED[name]


def test_what_nobody_foresaw_asks_for_a_report(run, monkeypatch):
    def fail(*_args, **_options):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("loop.report.status.campaign_status", fail)
    code, _, err = run("status")
    assert code == 1
    assert re.fullmatch(
        r"Error: goldloop met .*ZeroDivisionError: division by zero.*report.*--debug.*\n", err
    )


def test_usage_errors_keep_their_code_and_their_words(run):
    code, _, err = run("status", "--fiel", "x")
    assert code == 2
    assert "No such option" in err
    code, _, err = run("plateau", "--metric", "f2")
    assert code == 2
    assert "'f2' is neither of" in err
    assert run()[0] == 2
    assert run("--version")[0] == 0


@pytest.mark.parametrize("number", ENDING)
def test_a_stop_within_a_command_is_said(run, monkeypatch, number):
    before = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    monkeypatch.setattr(signal, "getsignal", lambda _number: before)  # whatever started the tests

    def stopped(*_args, **_options):
        os.kill(os.getpid(), number)
        time.sleep(5)

    monkeypatch.setattr("loop.report.status.campaign_status", stopped)
    code, out, err = run("status")
    assert (code, out) == (128 + number, "")
    assert err == "Stopped. Run the same command again to continue.\n"
    with pytest.raises(Stopped):
        run("--debug", "status")


@pytest.mark.parametrize("number", ENDING)
def test_only_the_first_and_the_third_request_to_end_break_in(monkeypatch, capfd, number):
    monkeypatch.setattr(signal, "getsignal", lambda _number: signal.SIG_DFL)
    heard, cleaned = [], []

    def command():
        try:
            signal.raise_signal(number)
        except Stopped as first:
            heard.append(first.signal)
            signal.raise_signal(number)
            cleaned.append(True)
            signal.raise_signal(number)

    monkeypatch.setattr(cli, "app", command)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert (heard, cleaned, ended.value.code) == ([number], [True], 128 + number)
    assert "To stop at once and lose it" in capfd.readouterr().err


def test_a_request_that_was_to_be_ignored_is_ignored(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does it
    try:
        monkeypatch.setattr(cli, "app", lambda: signal.raise_signal(signal.SIGHUP))
        cli.main()
        with ending_later():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_others_handle_is_left_to_them_and_the_second_request_only_says_so(capfd):
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("theirs"))

    def work():
        signal.raise_signal(signal.SIGTERM)
        try:
            signal.raise_signal(signal.SIGINT)
        except Stopped:
            signal.raise_signal(signal.SIGINT)
            seen.append("stored")
            signal.raise_signal(signal.SIGINT)

    try:
        with pytest.raises(Stopped), errors.stoppable():
            work()
        assert seen == ["theirs", "stored"]
        assert capfd.readouterr().err.startswith("\nStopping: what is under way and paid for")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture
def stoppable():
    def stop(number, _frame):
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in ENDING}
    yield stop
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_request_to_end_waits_until_what_must_not_break_off_is_done(stoppable):
    done = []

    def work():
        with ending_later():
            with ending_later():  # one within the other waits for the outer one
                signal.raise_signal(signal.SIGTERM)
                done.append("inner")
            signal.raise_signal(signal.SIGINT)
            done.append("outer")

    with pytest.raises(Stopped) as stopped:
        work()
    assert (done, stopped.value.signal) == (["inner", "outer"], signal.SIGTERM)
    assert {signal.getsignal(number) for number in ENDING} == {stoppable}


def test_requests_to_end_are_left_alone_in_other_threads(stoppable):
    seen = []

    def other():
        with ending_later():
            seen.append({signal.getsignal(number) for number in ENDING})

    with ThreadPoolExecutor(1) as pool:
        pool.submit(other).result()
    assert seen == [{stoppable}]


def shell(command, folder):
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "GOLDLOOP": f"{sys.executable} -m loop.cli.__main__",
    }
    return subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("$GOLDLOOP status >/dev/full", "no room left"),
        ("{ sleep 3; $GOLDLOOP status; } | true", "has ended"),
    ],
)
def test_streams_that_take_nothing_more(tmp_path, command, expected):
    begun(tmp_path)
    done = shell(command, tmp_path)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert expected in done.stderr


@pytest.mark.parametrize("number", ENDING)
def test_a_process_that_is_stopped_says_how_to_go_on(tmp_path, number):
    begun(tmp_path)
    (tmp_path / "wait.py").write_text(
        "import signal, sys, time, loop.cli.__main__, loop.report.status\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # whoever runs the tests may ignore it
        "def wait(*a, **k):\n    print('now', flush=True)\n    time.sleep(60)\n"
        "loop.report.status.campaign_status = wait\n"
        "sys.argv = ['goldloop', 'status']\nloop.cli.__main__.main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "wait.py"],
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout.readline() == "now\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err == "Stopped. Run the same command again to continue.\n"


def test_a_name_that_looks_like_the_word_is_shown_in_numbers():
    assert suggestion("caf\u00e9", ["cafe\u0301", "tea"]) == r" did you mean 'cafe\u0301'?"
    assert suggestion("Caf\u00e9", ["caf\u00e9"]) == " did you mean 'caf\u00e9'?"
    assert suggestion("tee", ["tea"], begins=True) == " Did you mean 'tea'?"
    assert suggestion("tee", ["coffee"]) == ""
