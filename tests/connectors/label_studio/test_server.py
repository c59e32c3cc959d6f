"""The server of our own: started once, found again, stopped, and private."""

import fcntl
import json
import os
import socket
import stat
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from connectors.label_studio import server
from loop.errors import FetchError, ReviewerError


def test_home_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("GOLDLOOP_LABEL_STUDIO", str(tmp_path / "own"))
    assert server.home() == tmp_path / "own"
    monkeypatch.delenv("GOLDLOOP_LABEL_STUDIO")
    monkeypatch.setenv("GOLDLOOP_CACHE", str(tmp_path / "cache"))
    assert server.home() == tmp_path / "cache" / "label-studio"


def test_nothing_runs_in_an_empty_folder(tmp_path):
    assert server.status(data_dir=tmp_path / "none") is None
    assert server.down(data_dir=tmp_path / "none") is False
    assert not (tmp_path / "none").exists()
    with pytest.raises(ReviewerError, match="start it first"):
        server.create_user("anna", data_dir=tmp_path / "none")


def test_named_environment_must_have_label_studio(monkeypatch, tmp_path):
    monkeypatch.setenv("GOLDLOOP_LABEL_STUDIO_VENV", str(tmp_path))
    with pytest.raises(FetchError, match="no bin/python"):
        server.up(data_dir=tmp_path / "s")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    with pytest.raises(FetchError, match="has no label-studio"):
        server.up(data_dir=tmp_path / "s")


def test_interrupted_installation_is_done_again(monkeypatch, tmp_path):
    monkeypatch.delenv("GOLDLOOP_LABEL_STUDIO_VENV", raising=False)
    monkeypatch.setenv("GOLDLOOP_LABEL_STUDIO", str(tmp_path))
    venv = tmp_path / f"venv-{server.VERSION}"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").touch()
    (venv / "half").touch()
    ran, fails = [], set()

    def run(command, doing, look=lambda: None):
        ran.append(" ".join(command))
        if "venv" in command:
            assert not venv.exists()
            (venv / "bin").mkdir(parents=True)
            (venv / "bin" / "python").touch()
        elif ("uv" if "pip" in command[1] else "pip") in fails:
            raise FetchError(f"Cannot {doing}: No space left")

    monkeypatch.setattr(server, "_run", run)
    fails |= {"uv", "pip"}
    with pytest.raises(FetchError, match=r"Cannot install label-studio==[\d.]+: No space left"):
        server.install()
    assert not server._is_installed(venv)
    fails.remove("pip")
    said = []
    python = server.install(said.append)
    assert len(ran) == 8
    assert f"{python} -m pip" in ran[-1]
    assert f"--require-hashes --no-deps -r {server.LOCK}" in ran[-1]
    assert "pip tries, which takes minutes (Cannot install" in said[1]
    assert server.install(said.append) == python
    (venv / server._VENV_MARKER).unlink()
    fails.clear()
    assert server.install() == python
    assert len(ran) == 10
    assert f"uv pip install --python {python}" in ran[-1]
    assert f"--require-hashes --no-deps -r {server.LOCK}" in ran[-1]
    assert len(said) == 2


def test_the_lock_names_this_label_studio_with_hashes():
    lock = server.LOCK.read_text()
    assert f"label-studio=={server.VERSION} " in lock
    named = [line for line in lock.splitlines() if "==" in line and not line.startswith(" ")]
    assert all(line.endswith("\\") for line in named)  # a hash follows each


def test_a_failed_step_says_why(monkeypatch, tmp_path):
    monkeypatch.setenv("GOLDLOOP_LABEL_STUDIO", str(tmp_path))
    fails = "print('noise'); print('ERROR: No space left', flush=True); raise SystemExit(1)"
    with pytest.raises(FetchError, match=r"Cannot do it: No space left \(see .*install.log\)"):
        server._run([sys.executable, "-c", fails], "do it")
    with pytest.raises(FetchError, match="Cannot do it: no reason given"):
        server._run([sys.executable, "-c", "raise SystemExit(3)"], "do it")
    with pytest.raises(FetchError, match=r"Cannot do it: .*No such file"):
        server._run([str(tmp_path / "nothing")], "do it")


def test_waits_with_a_bar_while_another_process_installs(monkeypatch, tmp_path):
    monkeypatch.delenv("GOLDLOOP_LABEL_STUDIO_VENV", raising=False)
    monkeypatch.setenv("GOLDLOOP_LABEL_STUDIO", str(tmp_path))
    venv = tmp_path / f"venv-{server.VERSION}"
    packages = venv / "lib" / "python3.11" / "site-packages"
    steps = []

    @contextmanager
    def show(what, total):
        assert total > 100

        def advance(done):
            steps.append(done)
            if len(steps) == 1:
                (packages / "one.dist-info").mkdir(parents=True)
            elif len(steps) == 3:
                (venv / "bin").mkdir()
                (venv / "bin" / "python").touch()
                (venv / server._VENV_MARKER).touch()
                other.close()  # the other process is done

        yield advance

    (tmp_path / "install.log").write_text("Collecting one==1\nCollecting two==2\n")
    other = (tmp_path / "install.lock").open("a")
    fcntl.flock(other, fcntl.LOCK_EX)
    assert server.install(show=show) == venv / "bin" / "python"
    assert steps == [2, 0, 0]


def test_settings_of_other_programs_stay_outside(monkeypatch):
    for name in ("HOST", "DEBUG", "DJANGO_DB", "LABEL_STUDIO_HOST", "PYTHONPATH", "SENTRY_DSN"):
        monkeypatch.setenv(name, "x")
    env = server._environment()
    assert env["SENTRY_DSN"] == ""
    assert not {"HOST", "DEBUG", "DJANGO_DB", "LABEL_STUDIO_HOST", "PYTHONPATH"} & env.keys()


def test_its_data_can_lie_in_postgresql(monkeypatch):
    state = {"username": "u", "password": "p", "token": "t"}
    assert "DJANGO_DB" not in server._environment(state)
    monkeypatch.setenv("PGPASSWORD", "from the environment")
    monkeypatch.setenv(server.DATABASE, "postgresql://me%40x@db:5433/label_studio")
    env = server._environment(state)
    assert "DJANGO_DB" not in server._environment()  # the template is a file
    told = [env[f"POSTGRE_{key}"] for key in ("NAME", "USER", "PASSWORD", "HOST", "PORT")]
    assert (env["DJANGO_DB"], told) == (
        "default",
        ["label_studio", "me@x", "from the environment", "db", "5433"],
    )
    monkeypatch.setenv(server.DATABASE, "postgresql://me@/ls?host=/run/sockets")
    assert server._environment(state)["POSTGRE_HOST"] == "/run/sockets"
    for wrong in ("mysql://h/d", "postgresql://h", "postgresql://u:secret@h/d"):
        monkeypatch.setenv(server.DATABASE, wrong)
        with pytest.raises(ReviewerError, match="PGPASSWORD") as told:
            server._environment(state)
        assert "secret" not in str(told.value)


def test_a_process_of_somebody_else_is_never_ours(tmp_path):
    assert not server._is_ours(os.getpid(), tmp_path)
    assert not server._is_ours(0, tmp_path)


SERVES = """
import http.server


class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"status": "UP", "email": "admin@goldloop.local"}')


http.server.HTTPServer(("127.0.0.1", int(port)), Healthy).serve_forever()
"""


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """A folder whose Label Studio is started as ever, but is a small server that says it is up."""
    monkeypatch.setattr(server, "_LAUNCH", server._LAUNCH.split("from django")[0] + SERVES)
    monkeypatch.setattr(server, "install", lambda *_args: Path(sys.executable))
    monkeypatch.setattr(server, "_version_of", lambda _python: "1")
    folder = tmp_path / "server"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "label_studio.sqlite3").touch()
    yield folder
    server.down(data_dir=folder)


def test_a_server_whose_starter_died_is_found_and_stopped(monkeypatch, quick):
    def dies(*_args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(server, "_wait", dies)
        with pytest.raises(KeyboardInterrupt):
            server.up(data_dir=quick)
    pid = server._pid(quick)
    assert pid
    again = server.up(data_dir=quick)
    assert again.pid == pid
    assert server.status(data_dir=quick) == again
    with pytest.raises(ReviewerError, match=f"already runs at {again.url}"):
        server.up(data_dir=quick, port=1)
    (quick / "server.json").unlink()
    with pytest.raises(ReviewerError, match="already runs on an unknown port"):
        server.up(data_dir=quick)
    assert server.down(data_dir=quick)
    assert not server._is_ours(pid, quick)
    assert not server.down(data_dir=quick)
    assert server.up(data_dir=quick).pid != pid


def test_two_servers_never_share_a_folder(quick):
    first = server.up(data_dir=quick)
    state = server._read(quick) | {"port": server._port(None, None)}
    with pytest.raises(ReviewerError, match="another one is being started in this folder; try"):
        server._launch(Path(sys.executable), quick, state)
    assert server.status(data_dir=quick) == first


@pytest.mark.slow
def test_up_again_finds_the_running_server(label_studio):
    now = server.status(data_dir=label_studio.data_dir)
    assert replace(now, pid=label_studio.pid) == label_studio  # another test may have killed it
    assert server.up(data_dir=label_studio.data_dir) == now
    assert label_studio.token not in repr(label_studio)
    assert label_studio.password not in repr(label_studio)
    with pytest.raises(ReviewerError, match="already runs at"):
        server.up(data_dir=label_studio.data_dir, port=1)


@pytest.mark.slow
def test_secrets_are_private(label_studio):
    server.create_user("private-person", data_dir=label_studio.data_dir)
    folder = label_studio.data_dir
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for name in ("server.json", "users.json"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    command = subprocess.run(
        ["/bin/ps", "-ww", "-o", "command=", "-p", str(server.status(data_dir=folder).pid)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert label_studio.token not in command
    assert label_studio.password not in command


@pytest.mark.slow
def test_users_are_made_once(label_studio):
    token = server.create_user("anna", data_dir=label_studio.data_dir)
    assert server.create_user("Anna", data_dir=label_studio.data_dir) == token
    assert server.create_user("bert@example.org", data_dir=label_studio.data_dir) != token
    who = httpx.get(
        f"{label_studio.url}/api/current-user/whoami", headers={"Authorization": f"Token {token}"}
    ).json()
    assert who["email"] == "anna@goldloop.local"
    users = label_studio.data_dir / "users.json"
    kept = json.loads(users.read_text())
    del kept["anna@goldloop.local"]["token"]  # stopped between signing up and writing it down
    users.write_text(json.dumps(kept))
    assert server.create_user("anna", data_dir=label_studio.data_dir) == token
    del kept["anna@goldloop.local"]
    users.write_text(json.dumps(kept))
    with pytest.raises(ReviewerError, match="password is lost"):
        server.create_user("anna", data_dir=label_studio.data_dir)


@pytest.mark.slow
def test_stop_and_start_again_on_the_same_port(label_studio, tmp_path):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        with pytest.raises(ReviewerError, match="is taken by another program"):
            server.up(data_dir=tmp_path, port=busy.getsockname()[1])
    first = server.up(data_dir=tmp_path)
    try:
        assert first.url != label_studio.url
        assert server.down(data_dir=tmp_path)
        assert server.status(data_dir=tmp_path) is None
        assert not server.down(data_dir=tmp_path)
        second = server.up(data_dir=tmp_path)
        assert (second.url, second.token) == (first.url, first.token)
        assert second.pid != first.pid
    finally:
        server.down(data_dir=tmp_path)
