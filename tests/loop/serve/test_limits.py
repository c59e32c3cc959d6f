"""What `goldloop serve` bears: slow clients, many of them, foreign names, and floods of the log."""

import logging
import os
import signal
import socket
import threading
import time
from contextlib import ExitStack, suppress
from types import SimpleNamespace

import httpx
import pytest
import uvicorn

from connectors.label_studio.ml_backend import MlBackend
from loop.errors import ENDING
from loop.serve import app as serve
from loop.serve import limits as serve_limits
from loop.serve.app import Served, listen, make_app, own_hosts, serve_app
from loop.serve.limits import is_own_host
from loop.serve.tokens import TOKEN_HEADER, Tokens

TOKENS = Tokens(bytes(32))
HEADERS = {TOKEN_HEADER: TOKENS.webhook}
HEAD_S, BODY_S, MOST = 0.5, 0.7, 8


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setattr(serve_limits, "HEAD_S", HEAD_S)
    monkeypatch.setattr(serve_limits, "MAX_CONNECTIONS", MOST)
    monkeypatch.setattr(serve, "BODY_S", BODY_S)
    servers, ready, state = [], threading.Event(), SimpleNamespace(hints=0)

    class Server(uvicorn.Server):
        def __init__(self, config):
            super().__init__(config)
            servers.append(self)

    monkeypatch.setattr(uvicorn, "Server", Server)

    def hint():
        state.hints += 1

    def progress():
        raise ZeroDivisionError("a fault")

    served = Served(
        tokens=TOKENS,
        campaign="c",
        labels=lambda: ("a", "b"),
        hint=hint,
        project=lambda: None,
        student=None,
        progress=progress,
        backend=MlBackend(blind=lambda: True),
        hosts=own_hosts("::1", None, "https://progress.example"),
    )
    listener = listen("127.0.0.1", 0, None)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)  # so that little fills it
    state.port = listener.getsockname()[1]
    state.url = f"http://127.0.0.1:{state.port}"
    thread = threading.Thread(target=serve_app, args=(make_app(served), listener, ready.set))
    thread.start()
    assert ready.wait(20)
    yield state
    started = time.monotonic()
    servers[0].should_exit = True
    thread.join(20)
    assert not thread.is_alive()
    assert time.monotonic() - started < 8
    listener.close()


def raw(site, data=b""):
    opened = socket.create_connection(("127.0.0.1", site.port), timeout=10)
    opened.sendall(data)
    return opened


def closed_after(opened):
    """Seconds until the server closes the connection, 10 at most; what it said before."""
    started, said = time.monotonic(), b""
    try:
        while chunk := opened.recv(4096):
            said += chunk
    except ConnectionError:
        pass
    finally:
        opened.close()
    return time.monotonic() - started, said


def trickle(opened, data):
    with opened:
        for _ in range(100):
            opened.sendall(data)
            time.sleep(0.1)


HEAD = b"POST /webhook HTTP/1.1\r\nHost: 127.0.0.1\r\n"


@pytest.mark.parametrize(
    "sent",
    [b"", b"G", HEAD, b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /he"],
    ids=["nothing", "a byte", "half a head", "half a head after an answer"],
)
def test_a_head_that_does_not_come_ends_the_connection(site, sent):
    seconds, _ = closed_after(raw(site, sent))
    assert HEAD_S * 0.8 < seconds < HEAD_S + 4


def test_a_head_that_trickles_ends_the_connection(site):
    opened = raw(site, HEAD)
    started = time.monotonic()
    with pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):
        trickle(opened, b"X-A: b\r\n")
    assert time.monotonic() - started < HEAD_S + 4


def test_a_body_that_does_not_come_is_refused(site):
    token = f"{TOKEN_HEADER}: {TOKENS.webhook}\r\n".encode()
    seconds, said = closed_after(raw(site, HEAD + token + b"Content-Length: 50\r\n\r\n{"))
    assert said.startswith(b"HTTP/1.1 408")
    assert seconds < BODY_S + 4
    assert site.hints == 0


def test_a_body_that_nobody_reads_ends_the_connection(site):
    opened = raw(site, HEAD + b"Content-Length: 5000\r\n\r\n{")  # no token: 401 at once
    started = time.monotonic()
    with pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):
        trickle(opened, b"x")
    assert time.monotonic() - started < HEAD_S + 4


def test_a_head_or_a_body_that_is_too_large_is_refused(site):
    long = b"X-A: " + b"b" * 20_000 + b"\r\n\r\n"
    _, said = closed_after(raw(site, HEAD + long))
    assert said.startswith(b"HTTP/1.1 4")
    for length in ("1000000000", "1" * 5000):
        token = f"{TOKEN_HEADER}: {TOKENS.webhook}\r\nContent-Length: {length}\r\n\r\n"
        _, said = closed_after(raw(site, HEAD + token.encode()))
        assert said.startswith(b"HTTP/1.1 4") or said == b""
    assert site.hints == 0


def test_idle_connections_are_limited_and_it_goes_on_answering(site, caplog):
    opened = [raw(site) for _ in range(260)]
    time.sleep(HEAD_S + 1.5)
    for each in opened:
        each.close()
    answer = httpx.post(f"{site.url}/webhook", json={}, headers=HEADERS, timeout=10)
    assert answer.status_code == 200
    assert site.hints == 1
    assert len(caplog.text) < 2000


def test_no_client_can_fill_the_log(site, caplog):
    for number in range(60):
        closed_after(raw(site, b"no http\r\n\r\n"))
        broken = raw(site, HEAD + b"Content-Length: 50\r\n\r\n{")
        broken.close()
        if number % 6 == 0:
            answer = httpx.get(
                f"{site.url}/progress.json", headers={"Authorization": f"Bearer {TOKENS.page}"}
            )
            assert answer.status_code == 500
            assert answer.json()["detail"].startswith("goldloop failed")
    assert len(caplog.text) < 2000, caplog.text[:3000]
    assert "Traceback" not in caplog.text
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
@pytest.mark.parametrize("path", ["/", "/health", "/webhook", "/predict", "/login"])
def test_a_foreign_host_is_refused(site, host, path):
    for method in ("GET", "POST"):
        answer = httpx.request(method, f"{site.url}{path}", headers=HEADERS | {"Host": host})
        assert answer.status_code == 421
    assert "--page-url" in answer.json()["detail"]
    assert site.hints == 0


def test_people_and_load_balancers_reach_it_by_the_name_of_the_page(site):
    for method, length in (("GET", 2), ("HEAD", 0)):
        answer = httpx.request(method, f"{site.url}/health", headers={"Host": "progress.example"})
        assert answer.status_code == 200
        assert (len(answer.content) >= length) if length else answer.content == b""


@pytest.mark.parametrize("number", ENDING)
def test_a_request_to_end_ends_it_in_good_order(caplog, number):
    served = Served(TOKENS, "c", tuple, print, str, None, dict, MlBackend(blind=lambda: True))
    listener = listen("127.0.0.1", 0, None)
    heard = []
    before = {each: signal.signal(each, lambda n, _: heard.append(n)) for each in ENDING}
    try:
        serve_app(make_app(served), listener, lambda: os.kill(os.getpid(), number))
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        listener.close()
    assert len(heard) == 1  # whoever had it served is told
    assert caplog.text == ""


def test_own_names():
    ours = own_hosts("Label.Example", None, "http://serve:8500", "https://people.example:8443/x")
    for header in (
        "localhost",
        "localhost:8001",
        "LOCALHOST",
        "127.0.0.1:1",
        "[::1]:1",
        "10.0.0.7",
        "label.example:8001",
        "people.example",
        "serve:8500",
        socket.gethostname(),
    ):
        assert is_own_host(header, ours), header
    for header in ("", "evil.example", "127.0.0.1.evil.example", "[::1", "a@evil.example", "1.2.3"):
        assert not is_own_host(header, ours), header


def test_a_line_of_the_log_comes_back_after_a_while(monkeypatch):
    seldom = serve_limits._Seldom()
    line = logging.LogRecord("x", logging.ERROR, "f.py", 1, "a %s", ("b",), None)
    other = logging.LogRecord("x", logging.ERROR, "f.py", 2, "a %s", ("b",), None)
    now = 100.0
    monkeypatch.setattr(serve_limits.time, "monotonic", lambda: now)
    assert [seldom.filter(line), seldom.filter(line), seldom.filter(other)] == [True, False, True]
    now += serve_limits.LOG_EVERY_S
    assert seldom.filter(line)


def test_a_client_that_takes_no_answers_is_let_go(site, monkeypatch):
    monkeypatch.setattr(serve_limits, "WRITE_S", 0.7)
    requests = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1500
    with ExitStack() as greedy:
        for _ in range(MOST):
            opened = greedy.enter_context(socket.socket())
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            opened.connect(("127.0.0.1", site.port))
            opened.setblocking(False)
            opened.send(requests)
        until, answered = time.monotonic() + 30, False
        while not answered and time.monotonic() < until:
            time.sleep(0.2)
            with suppress(httpx.HTTPError):
                answered = httpx.get(f"{site.url}/health").is_success
    assert answered
