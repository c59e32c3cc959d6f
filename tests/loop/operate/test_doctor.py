"""What is wrong with machine, store and servers is said, in time and without secrets."""

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from operated import CAMPAIGN

from loop.campaign.lock import writer
from loop.campaign.store import Store
from loop.cli.build import server_probes
from loop.errors import LoopError
from loop.operate.doctor import Server, examine

KEY = "sk-very-secret-key"


@pytest.fixture(autouse=True)
def room(monkeypatch):
    """Gives the free bytes of every disk, whatever this machine has; returns what sets them."""

    def free(n):
        usage = SimpleNamespace(free=n)
        monkeypatch.setattr("loop.operate.doctor.shutil.disk_usage", lambda _path: usage)

    free(10**12)
    return free


def told(file, probes=lambda _config: {}, **how):
    return list(examine(file, probes, **how))


def problems(lines):
    return [line for line in lines if line.level != "ok"]


def test_without_a_campaign_the_machine_is_looked_at(tmp_path):
    lines = told(tmp_path / "goldloop.toml")
    assert problems(lines) == []
    about = {line.about for line in lines}
    assert {"goldloop", "libraries", "GPU", "disk", "campaign"} <= about


def test_a_campaign_in_order_has_no_problem(campaign):
    lines = told(campaign / "goldloop.toml", lambda _c: {"LLM": lambda: Server("fine.", 3.0)})
    assert problems(lines) == []
    store = Store(f"sqlite:///{campaign / 'c.db'}")
    with writer(store, "c", "run"):
        lines = told(campaign / "goldloop.toml")
    store.close()
    assert [line.about for line in lines if "`goldloop run`" in line.what] == ["lock"]
    assert not [line for line in told(campaign / "goldloop.toml") if line.about == "lock"]


def test_little_room_is_a_warning_and_too_little_a_problem(campaign, room):
    for n, level in ((10**8, "problem"), (4 * 10**9, "warning")):
        room(n)
        (line,) = problems(told(campaign / "goldloop.toml"))
        assert (line.about, line.level) == ("disk", level)


def test_what_is_wrong_is_named_with_what_to_do(campaign, room):
    (campaign / "c.db").chmod(0o644)
    room(10**8)
    text = (campaign / "goldloop.toml").read_text() + 'store.folder = "runs"\n'
    (campaign / "goldloop.toml").write_text(text.replace("seeds = 2", 'device = "cuda"'))

    def refuse():
        raise LoopError(f"https://user:{KEY}@host?api_key={KEY} does not take the token.")

    probes = {"LLM": refuse, "Label Studio": lambda: Server("version 1.23.", -900.0)}
    lines = problems(told(campaign / "goldloop.toml", lambda _config: probes))
    assert {line.about for line in lines} == {"GPU", "disk", "store", "LLM", "Label Studio"}
    assert all(line.do for line in lines)
    assert KEY not in "".join(map(str, lines))
    (campaign / "c.db").write_bytes(b"no database, only text that is long enough" * 9)
    assert any("not a database" in line.what for line in told(campaign / "goldloop.toml"))
    (campaign / "goldloop.toml").write_text("campaign = 1")
    assert any(line.about == "campaign" for line in problems(told(campaign / "goldloop.toml")))


def test_a_damaged_store_and_a_lost_one_are_problems(campaign, room):
    store = campaign / "c.db"
    whole = store.read_bytes()
    store.write_bytes(whole[: 10 * 4096] + b"\xff" * 4096 + whole[11 * 4096 :])
    problem = lambda: problems(told(campaign / "goldloop.toml"))  # noqa: E731
    (line,) = [line for line in problem() if line.about == "store"]
    assert "c.db is damaged" in line.what
    assert "goldloop restore" in line.do
    store.unlink()
    (line,) = [line for line in problem() if line.about == "store"]
    assert "runs belongs to campaign 'c'" in line.what


@pytest.fixture
def hanging():
    """A server that takes connections and dribbles bytes for ever."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ended = threading.Event()

        def dribble():
            while not ended.is_set():
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    while not ended.is_set():
                        try:
                            connection.sendall(b"HTTP/1.1 200 OK\r\nX: y\r\n"[:3])
                        except OSError:
                            break
                        ended.wait(0.1)

        thread = threading.Thread(target=dribble, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        ended.set()


def test_a_server_that_hangs_costs_a_short_time(campaign, hanging, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", KEY)
    annotator = f'annotator = {{kind = "openai_server", model = "m", base_url = "{hanging}"}}'
    text = CAMPAIGN.replace(
        'annotator = {kind = "recorded", columns = ["llm", "llm_2"]}', annotator
    )
    (campaign / "goldloop.toml").write_text(text + f'label_studio.url = "{hanging}"\n')
    began = time.monotonic()
    lines = problems(told(campaign / "goldloop.toml", server_probes, deadline_s=0.5))
    assert time.monotonic() - began < 10
    assert [line.about for line in lines] == ["LLM", "Label Studio"]
    assert KEY not in "".join(map(str, lines))


class Gateway(BaseHTTPRequestHandler):
    """Lists one model by its full name, and knows another that it does not list."""

    def log_message(self, *_args):
        pass

    def do_GET(self):
        self.answer(200, {"data": [{"id": "llama:latest"}]})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = asked["model"] == "deployed"
        self.answer(200 if known else 404, {"choices": []} if known else {"error": "none"})

    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.mark.parametrize(("model", "there"), [("llama", True), ("deployed", True), ("lama", False)])
def test_models_are_known_by_the_names_that_annotating_knows(campaign, monkeypatch, model, there):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Gateway)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    annotator = f'annotator = {{kind = "openai_server", model = "{model}", base_url = "{url}"}}'
    text = CAMPAIGN.replace(
        'annotator = {kind = "recorded", columns = ["llm", "llm_2"]}', annotator
    )
    (campaign / "goldloop.toml").write_text(text)
    lines = told(campaign / "goldloop.toml", lambda config: {"LLM": server_probes(config)["LLM"]})
    server.shutdown()
    server.server_close()
    [said] = [line.what for line in lines if line.about == "LLM"]
    assert ("answers and has" if there else "does not serve the model 'lama'") in said
