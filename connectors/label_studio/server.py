"""A Label Studio server of our own: installed apart, started on loopback, found again, stopped.

Label Studio pins versions that clash with ours, so it lives in a virtual environment of its own.
One folder holds one server:

    home()/venv-VERSION/      the environment, shared by all folders
    home()/template-VERSION/  an empty, migrated database: saves most of a first start
    home()/server/            the default folder
        data/                 Label Studio's own files: database, uploads, secret key
        server.json           port, passwords and tokens; readable by its owner only
        server.pid            noted by the server itself, which keeps it locked as long as it lives
        server.log            what the server prints
        launch.py             how it was started

Posix only: it relies on ``fork`` and ``flock``.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from uv import find_uv_bin

from connectors.downloads.packages import cache_dir
from loop.errors import FetchError, ReviewerError
from loop.files import locked, remove_leftovers, replacing_folder, write_whole
from loop.ports import Show, show_nothing

if TYPE_CHECKING:
    import ssl

    import httpx

VERSION = "1.23.2"
LOCK = Path(__file__).with_name("requirements.lock")  # `make lock` renews it
ADMIN = "admin@goldloop.local"
INSTALL_TIMEOUT_S = 1800.0
START_TIMEOUT_S = 300.0  # a first start compiles and migrates: a minute on a quiet machine
STOP_TIMEOUT_S = 20.0

Say = Callable[[str], None]
"""Told in a few words what is being waited for."""

_VENV_MARKER = "goldloop-complete"

_ENVIRONMENT = {
    "SENTRY_DSN": "",
    "FRONTEND_SENTRY_DSN": "",
    "COLLECT_ANALYTICS": "False",
    "LATEST_VERSION_CHECK": "False",
    "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
    "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
    "SSRF_PROTECTION_ENABLED": "false",  # or webhooks to loopback are refused
    "ML_BLOCK_LOCAL_IP": "false",  # the same for ML backends
    "LOG_LEVEL": "WARNING",
    # Submitting with one key more than choosing; Label Studio has no key that does both.
    "EDITOR_KEYMAP": json.dumps(
        {
            "annotation:submit": {
                "key": "ctrl+enter,enter,space",
                "mac": "command+enter,enter,space",
                "description": "Submit annotation",
            }
        }
    ),
}
DATABASE = "GOLDLOOP_LABEL_STUDIO_DATABASE"  # names one on PostgreSQL, instead of a file
NOTED = "server.pid"
SUBMIT_KEYS = "Enter or Space"  # as people read them

# Label Studio reads settings under bare names such as HOST or DEBUG: only these are handed on.
_INHERITED = re.compile(r"PATH|HOME|LANG|LC_\w+|TZ|TMPDIR|USER|LD_LIBRARY_PATH|SSL_CERT_\w+")

_LAUNCH = '''\
"""Starts Label Studio: `migrate`, or `start PORT LOG PID` (detached; PID is a file)."""
import fcntl
import os
import sys

job, data = sys.argv[1], sys.argv[2]
os.environ["LABEL_STUDIO_BASE_DATA_DIR"] = data
if job == "start":
    port, log, noted = sys.argv[3:6]
    held = os.open(noted, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the child keeps it
    except BlockingIOError:
        sys.exit("another one is being started in this folder; try again")
    pid = os.fork()
    # Both note it, always as long: whoever dies or reads in between, the number is there.
    os.pwrite(held, b"%-20d" % (pid or os.getpid()), 0)
    if pid:
        os._exit(0)
    os.setsid()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for fd in (1, 2):
        os.dup2(out, fd)

from django.core.servers.basehttp import WSGIRequestHandler
from django.db.backends.signals import connection_created


def tune(sender, connection, **kwargs):
    """Readers and writers together; a writer waits for its turn instead of failing."""
    if connection.vendor != "sqlite":
        return
    if hasattr(connection, "transaction_mode"):
        connection.transaction_mode = "IMMEDIATE"
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA busy_timeout=30000")
        if job == "start":
            cursor.execute("PRAGMA journal_mode=WAL")
        else:
            cursor.execute("PRAGMA synchronous=OFF")


connection_created.connect(tune)
# Without this each answer to a kept-alive connection waits 40 ms for a delayed acknowledgement.
WSGIRequestHandler.disable_nagle_algorithm = True

from label_studio import server

if job == "start":
    sys.argv = ["label-studio", "start", "--no-browser", "--data-dir", data,
                "--internal-host", "127.0.0.1", "--port", port]
    sys.exit(server.main())

server._setup_env()
server.call_command("migrate", verbosity=0)
'''


@dataclass(frozen=True)
class ServerInfo:
    """A running server and its owner's account; secrets stay out of its ``repr``.

    Attributes:
        submit_keys: keys that submit an answer, for people; "" where it was started without.
    """

    url: str
    username: str
    pid: int
    data_dir: Path
    version: str
    submit_keys: str
    token: str = field(repr=False)
    password: str = field(repr=False)


def home() -> Path:
    """GOLDLOOP_LABEL_STUDIO, else ``label-studio`` in the cache folder."""
    if own := os.environ.get("GOLDLOOP_LABEL_STUDIO"):
        return Path(own).expanduser().absolute()
    return cache_dir() / "label-studio"


def _silent(_what: str) -> None:
    pass


def up(
    *,
    port: int | None = None,
    data_dir: Path | None = None,
    progress: Say = _silent,
    show: Show = show_nothing,
) -> ServerInfo:
    """Starts the server, or returns the one that is running.

    Args:
        port: where to listen; else the port of the last time, else any free one.
        data_dir: the folder of this server; ``home()/server`` by default.
        progress: told what is being waited for, where it takes long.
        show: opens a bar for the installation.
    Raises:
        FetchError: Label Studio cannot be installed.
        ReviewerError: the port is taken, or the server does not come up.
    """
    folder = server_folder(data_dir)
    _private(folder)
    python = None if _pid(folder) else install(progress, show)
    timeout_s = START_TIMEOUT_S * (4 if _database() else 1)  # no template: every migration is run
    with _lock(folder):
        state = _read(folder)
        if _pid(folder):
            if "port" not in state or port not in (None, state["port"]):
                where = f"at {_url(state)}" if "port" in state else "on an unknown port"
                raise ReviewerError(
                    f"Label Studio already runs {where}; stop it first with `goldloop label-studio"
                    " down`, or leave the port out."
                )
            if (running := _running(folder)) is not None:
                return running
            progress("waiting for the Label Studio that was started before")
            return _wait(folder, state, timeout_s)
        python = python or install(progress, show)
        version = _version_of(python)
        state.setdefault("username", ADMIN)
        state.setdefault("password", secrets.token_urlsafe(18))
        state.setdefault("token", secrets.token_hex(20))
        state["port"] = _port(port, state.get("port"))
        state["version"], state["submit_keys"] = version, SUBMIT_KEYS
        _write(folder, state)  # before the start: the account must never be one we do not know
        data = folder / "data"
        if _database():
            data.mkdir(mode=0o700, exist_ok=True)
            progress("Label Studio keeps its data in PostgreSQL; the first start takes minutes")
        elif not (data / "label_studio.sqlite3").exists():
            template = _template(python, version, progress)
            _copy(template, data)
        progress("starting Label Studio")
        _launch(python, folder, state)
        return _wait(folder, state, timeout_s)


def status(*, data_dir: Path | None = None) -> ServerInfo | None:
    """The running server, or None."""
    return _running(server_folder(data_dir))


def down(*, data_dir: Path | None = None) -> bool:
    """Stops the server; False if none was running. Its data stay.

    Raises:
        ReviewerError: it does not end.
    """
    folder = server_folder(data_dir)
    if not folder.exists():
        return False
    with _lock(folder):
        pid, port = _pid(folder), int(_read(folder).get("port", 0))
        if not pid:
            return False
        os.kill(pid, signal.SIGTERM)
        for signal_after, wait_s in ((signal.SIGKILL, STOP_TIMEOUT_S), (None, 5.0)):
            end = time.monotonic() + wait_s
            while time.monotonic() < end:
                if not _is_ours(pid, folder) and _is_free(port):
                    return True
                time.sleep(0.05)
            if signal_after is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal_after)
        raise ReviewerError(f"Label Studio (process {pid}) does not end; stop it by hand.")


def create_user(username: str, *, data_dir: Path | None = None) -> str:
    """Token of a further annotator in the running server, who is created if need be.

    Args:
        username: an e-mail address, or a name that becomes one.
    Raises:
        ReviewerError: no server is running, or it refuses the user.
    """
    folder = server_folder(data_dir)
    if (server := status(data_dir=data_dir)) is None:
        raise ReviewerError(f"No Label Studio server is running in {folder}; start it first.")
    email = (username if "@" in username else f"{username}@goldloop.local").lower()
    with _lock(folder, "users.lock"):
        users = _read(folder, "users.json")
        if email not in users:
            users[email] = {"password": secrets.token_urlsafe(18)}
            _write(folder, users, "users.json")  # before signing up: see up()
        entry = users[email]
        if not entry.get("token") or not _answers(server.url, entry["token"], email):
            entry["token"] = _sign_up(server, email, entry["password"])
            _write(folder, users, "users.json")
    return str(entry["token"])


# installing


def install(progress: Say = _silent, show: Show = show_nothing) -> Path:
    """The Python of an environment that has Label Studio, made on the first call.

    Its packages are those of ``requirements.lock`` beside this file, checked by hash. Where another
    process or thread is installing it already, this waits.

    Args:
        progress: told what is being waited for.
        show: opens a bar for the installation.
    Raises:
        FetchError: it cannot be installed.
    """
    if own := os.environ.get("GOLDLOOP_LABEL_STUDIO_VENV"):
        python = Path(own).expanduser().absolute() / "bin" / "python"
        if not python.exists():
            raise FetchError(
                f"GOLDLOOP_LABEL_STUDIO_VENV names {own}, which has no bin/python; give the folder"
                " of a virtual environment with label-studio in it."
            )
        return python
    _private(home())
    venv = home() / f"venv-{VERSION}"
    python = venv / "bin" / "python"
    if _is_installed(venv):
        return python
    packages = len(re.findall(r"^\w.*==", LOCK.read_text(encoding="utf-8"), re.MULTILINE))
    progress(f"installing Label Studio {VERSION} (about 800 MB, once)")
    with show("Installing Label Studio", packages) as advance:
        seen = 0

        def look() -> None:
            nonlocal seen
            now = _packages_done(venv)
            advance(now - seen)
            seen = now

        with _lock(home(), "install.lock", meanwhile=look):
            if _is_installed(venv):  # by somebody else in the meantime
                return python
            pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
            try:
                _fill(venv, [find_uv_bin(), "pip"], ["--python", str(python)], look)
            except (FetchError, FileNotFoundError) as exc:  # it does not read pip's settings
                progress(f"uv did not manage, so pip tries, which takes minutes ({exc})")
                _fill(venv, pip, ["--progress-bar", "off"], look)
            (venv / _VENV_MARKER).write_text(f"{VERSION}\n")
    return python


def _fill(venv: Path, pip: list[str], options: list[str], look: Callable[[], None]) -> None:
    """Makes the environment anew, whatever an interrupted installation left, with its packages."""
    if venv.exists():
        shutil.rmtree(venv)
    _run([sys.executable, "-m", "venv", str(venv)], "make a virtual environment")
    checked = ["--require-hashes", "--no-deps", "-r", str(LOCK)]
    _run([*pip, "install", *options, *checked], f"install label-studio=={VERSION}", look)


def _is_installed(venv: Path) -> bool:
    return (venv / _VENV_MARKER).exists() and (venv / "bin" / "python").exists()


def _packages_done(venv: Path) -> int:
    """Packages that an installation has unpacked, or fetched as far as its log says so."""
    fetched = 0
    with suppress(OSError):
        fetched = (home() / "install.log").read_text(errors="replace").count("Collecting ")
    return max(fetched, len(list(venv.glob("lib/python3*/site-packages/*.dist-info"))))


def _run(command: list[str], doing: str, look: Callable[[], None] = lambda: None) -> None:
    """Runs a step of the installation; ``look`` is called twice a second meanwhile."""
    log = home() / "install.log"
    end = time.monotonic() + INSTALL_TIMEOUT_S
    env = {"UV_SYSTEM_CERTS": "1", **os.environ}  # uv then trusts what pip trusts
    try:
        with (
            log.open("w") as out,
            subprocess.Popen(command, stdout=out, stderr=out, env=env) as process,
        ):
            while process.poll() is None:
                if time.monotonic() > end:
                    process.kill()
                    raise FetchError(f"Cannot {doing}: no end after {INSTALL_TIMEOUT_S:.0f} s.")
                look()
                time.sleep(0.5)
    except OSError as exc:
        raise FetchError(f"Cannot {doing}: {exc}.") from exc
    if process.returncode != 0:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
        lines = [line for line in lines if line] or ["no reason given"]
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
        raise FetchError(f"Cannot {doing}: {(errors or lines)[-1][:300]} (see {log})")


def _version_of(python: Path) -> str:
    installed = sorted(
        python.parent.parent.glob("lib/python3*/site-packages/label_studio-*.dist-info")
    )
    if not installed:
        raise FetchError(
            f"The virtual environment {python.parent.parent} has no label-studio in it; install"
            f" label-studio=={VERSION} there, or unset GOLDLOOP_LABEL_STUDIO_VENV."
        )
    return installed[-1].name.removeprefix("label_studio-").removesuffix(".dist-info")


def _template(python: Path, version: str, progress: Say) -> Path:
    """An empty, migrated data folder without any account or key in it."""
    _private(home())
    template = home() / f"template-{version}"
    with _lock(home(), "template.lock"):
        if template.exists():
            return template
        progress("preparing Label Studio's database (about a minute, once)")
        with tempfile.TemporaryDirectory(dir=home(), prefix="template-") as made:
            data = Path(made) / "data"
            data.mkdir()
            script = Path(made) / "launch.py"
            script.write_text(_LAUNCH)
            log = home() / "template.log"
            with log.open("w") as out:
                try:
                    done = subprocess.run(
                        [str(python), str(script), "migrate", str(data)],
                        env=_environment(),
                        cwd=data,
                        stdout=out,
                        stderr=out,
                        check=False,
                        timeout=START_TIMEOUT_S,
                    )
                except subprocess.TimeoutExpired as exc:
                    raise ReviewerError(
                        f"Label Studio's database was not ready after {START_TIMEOUT_S:.0f} s;"
                        f" see {log}."
                    ) from exc
            if done.returncode != 0:
                raise ReviewerError(f"Label Studio's database cannot be prepared; see {log}.")
            (data / ".env").unlink(missing_ok=True)  # the secret key: each server makes its own
            data.rename(template)
    return template


def _copy(template: Path, data: Path) -> None:
    remove_leftovers(data)
    with replacing_folder(data) as half:  # data may be left by a start that made no database
        shutil.copytree(template, half, dirs_exist_ok=True)
        half.chmod(0o700)


# starting


def _environment(state: dict[str, Any] | None = None) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if _INHERITED.fullmatch(name)}
    env |= _ENVIRONMENT
    if state is not None:
        env["LABEL_STUDIO_USERNAME"] = state["username"]
        env["LABEL_STUDIO_PASSWORD"] = state["password"]
        env["LABEL_STUDIO_USER_TOKEN"] = state["token"]
        env |= _database()
    return env


def _database() -> dict[str, str]:
    """Settings for the PostgreSQL database of GOLDLOOP_LABEL_STUDIO_DATABASE; none for SQLite.

    Raises:
        ReviewerError: it is no address of a PostgreSQL database.
    """
    url = urlsplit(os.environ.get(DATABASE, ""))
    if not url.geturl():
        return {}
    query, name = dict(parse_qsl(url.query)), url.path.strip("/")
    if url.scheme != "postgresql" or not name or url.password:
        raise ReviewerError(
            f"{DATABASE} is no address of a PostgreSQL database without a password; write"
            " postgresql://USER@HOST:PORT/NAME, and put the password into PGPASSWORD."
        )
    return {
        "DJANGO_DB": "default",
        "POSTGRE_NAME": unquote(name),
        "POSTGRE_USER": unquote(url.username or ""),
        "POSTGRE_PASSWORD": os.environ.get("PGPASSWORD", ""),
        "POSTGRE_HOST": query.get("host") or url.hostname or "",
        "POSTGRE_PORT": query.get("port") or str(url.port or 5432),
    }


def _launch(python: Path, folder: Path, state: dict[str, Any]) -> None:
    script = folder / "launch.py"
    script.write_text(_LAUNCH)
    log = folder / "server.log"
    log.unlink(missing_ok=True)
    noted = folder / NOTED
    noted.touch(mode=0o600)
    started = subprocess.run(
        [str(python), *map(str, (script, "start", folder / "data", state["port"], log, noted))],
        env=_environment(state),
        cwd=folder / "data",
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if started.returncode != 0:
        why = (started.stderr.strip() or "no reason given").splitlines()[-1]
        raise ReviewerError(f"Label Studio cannot be started from {script}: {why}.")


def _wait(folder: Path, state: dict[str, Any], timeout_s: float) -> ServerInfo:
    """Until the server is up and known to be ours."""
    log = folder / "server.log"
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if not (pid := _pid(folder)):
            raise ReviewerError(f"Label Studio ended while starting; see {log}.")
        if _healthy(_url(state)):
            if _answers(_url(state), state["token"], state["username"]):
                return _info(folder, state, pid)
            if _moved(log, state["port"]):
                os.kill(pid, signal.SIGTERM)
                raise ReviewerError(
                    f"Port {state['port']} was taken while Label Studio started; try again."
                )
        time.sleep(0.1)
    if pid := _pid(folder):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    raise ReviewerError(f"Label Studio did not answer within {timeout_s:.0f} s; see {log}.")


def _moved(log: Path, port: int) -> bool:
    """Whether the server found its port busy and went elsewhere, as it does without a word."""
    with suppress(OSError):
        ports = re.findall(r"server at http://127\.0\.0\.1:(\d+)", log.read_text(errors="replace"))
        return bool(ports) and int(ports[-1]) != port
    return False


def _port(asked: int | None, last: int | None) -> int:
    if asked is not None:
        if not _is_free(asked):
            raise ReviewerError(f"Port {asked} is taken by another program; choose another port.")
        return asked
    if last is not None and _is_free(last):
        return last
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            return False
    return True


def _running(folder: Path) -> ServerInfo | None:
    pid, state = _pid(folder), _read(folder)
    if not pid or "port" not in state:
        return None
    if not _answers(_url(state), state["token"], state["username"]):
        return None
    return _info(folder, state, pid)


def _info(folder: Path, state: dict[str, Any], pid: int) -> ServerInfo:
    return ServerInfo(
        url=_url(state),
        username=state["username"],
        pid=pid,
        data_dir=folder,
        version=state["version"],
        submit_keys=state.get("submit_keys", ""),
        token=state["token"],
        password=state["password"],
    )


def _url(state: dict[str, Any]) -> str:
    return f"http://127.0.0.1:{state['port']}"


def _pid(folder: Path) -> int:
    """Of the server that lives in this folder, whoever started it; 0 where none does."""
    try:
        pid = int((folder / NOTED).read_text())
    except (OSError, ValueError):
        return 0
    return pid if _is_ours(pid, folder) else 0


def _is_ours(pid: int, folder: Path) -> bool:
    """Whether the process lives and was started from this folder: pids are used again."""
    if pid <= 0:
        return False
    proc = Path(f"/proc/{pid}/cmdline")
    if Path("/proc/self/cmdline").exists():
        try:
            command = proc.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return False
    else:
        command = subprocess.run(
            ["ps", "-ww", "-o", "command=", "-p", str(pid)],  # noqa: S607 - macOS: /bin/ps
            capture_output=True,
            text=True,
            check=False,
        ).stdout
    return str(folder / "launch.py") in command


# talking to it


def _client(url: str, token: str | None = None) -> httpx.Client:
    import httpx

    headers = {} if token is None else {"Authorization": f"Token {token}"}
    return httpx.Client(base_url=url, headers=headers, timeout=30.0, trust_env=False, verify=_tls())


@cache
def _tls() -> ssl.SSLContext:
    """Made once: it takes 80 CPU-ms, and a server that starts is asked ten times a second."""
    import httpx

    return httpx.create_ssl_context(trust_env=False)


def _healthy(url: str) -> bool:
    import httpx

    try:
        with _client(url) as client:
            return bool(client.get("/health").json().get("status") == "UP")
    except (httpx.HTTPError, ValueError, AttributeError):
        return False


def _answers(url: str, token: str, email: str) -> bool:
    """Whether the server there knows this token as this user's."""
    import httpx

    try:
        with _client(url, token) as client:
            return bool(client.get("/api/current-user/whoami").json().get("email") == email)
    except (httpx.HTTPError, ValueError, AttributeError):
        return False


def _sign_up(server: ServerInfo, email: str, password: str) -> str:
    """Makes the user by an invitation, or logs in the one that is there; the user's token."""
    import httpx

    try:
        with _client(server.url, server.token) as admin:
            invite = admin.get("/api/invite").json()["invite_url"]
        for path in (invite, "/user/login/"):
            with _client(server.url) as browser:
                browser.get(path)
                browser.post(
                    path,
                    data={
                        "email": email,
                        "password": password,
                        "allow_newsletters": "false",
                        "csrfmiddlewaretoken": browser.cookies.get("csrftoken", ""),
                    },
                    headers={"Referer": server.url + path},
                )
                answer = browser.get("/api/current-user/token")
                if answer.status_code == 200:
                    return str(answer.json()["token"])
    except (httpx.HTTPError, ValueError, KeyError) as exc:
        raise ReviewerError(
            f"Label Studio did not make the user {email}: {type(exc).__name__}."
        ) from None  # the request holds the password
    raise ReviewerError(
        f"Label Studio knows a user {email} whose password is lost; choose another name."
    )


# files


def server_folder(data_dir: Path | None = None) -> Path:
    """Where the server keeps its database with all projects and answers, its log and secrets."""
    return home() / "server" if data_dir is None else data_dir.expanduser().absolute()


def _private(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
    except OSError as exc:
        raise FetchError(
            f"{folder} cannot be made ({exc.strerror}); set GOLDLOOP_LABEL_STUDIO to a folder that"
            " can."
        ) from exc


@contextmanager
def _lock(
    folder: Path, name: str = "lock", meanwhile: Callable[[], None] | None = None
) -> Iterator[None]:
    with locked(folder / name, meanwhile):
        yield


def _read(folder: Path, name: str = "server.json") -> dict[str, Any]:
    try:
        state = json.loads((folder / name).read_text())
    except FileNotFoundError:
        return {}
    except ValueError as exc:
        raise ReviewerError(f"{folder / name} cannot be read; restore or delete it.") from exc
    return state if isinstance(state, dict) else {}


def _write(folder: Path, state: dict[str, Any], name: str = "server.json") -> None:
    write_whole(folder / name, json.dumps(state, indent=1))
