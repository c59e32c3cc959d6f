"""What can go wrong on the way, without a server: one sentence each, and never a secret in it."""

import json
import time
from dataclasses import replace
from types import SimpleNamespace

import httpx
import jwt
import pytest
from fake_studio import FakeStudio
from label_studio_sdk.core.api_error import ApiError
from pydantic import BaseModel

from connectors.label_studio.client import Client, LostError, translated
from connectors.label_studio.reviewer import LabelStudioReviewer
from loop.errors import ProjectGoneError, ReviewerError
from loop.ports import ReviewTask
from loop.prompt import Label

TOKEN = "secret" * 6 + "abcd"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    quick = SimpleNamespace(sleep=lambda seconds: None, monotonic=time.monotonic)
    for name in ("reviewer", "client", "push", "views"):
        monkeypatch.setattr(f"connectors.label_studio.{name}.time", quick)


def reviewer(handler, **options):
    options = {
        "project_title": "Demo",
        "campaign_id": "c",
        "labels": [Label("a"), Label("b")],
        "task": "Which?",
        "patience_s": 0.0,
        **options,
    }
    token, url = options.pop("token", TOKEN), options.pop("url", "http://127.0.0.1:9")
    return LabelStudioReviewer(url, token, transport=httpx.MockTransport(handler), **options)


def sentence(handler, **options):
    with pytest.raises(ReviewerError) as caught:
        reviewer(handler, **options).open_project(None)
    message = str(caught.value)
    assert TOKEN not in message
    assert "\n" not in message
    assert "cookie" not in message.lower()
    assert caught.value.__suppress_context__
    return message


def version(release="1.23.2"):
    return httpx.Response(200, json={"release": release})


def test_server_down():
    def handler(request):
        raise httpx.ConnectError("refused")

    assert "cannot be reached" in sentence(handler)


def test_a_certificate_that_is_not_trusted():
    def handler(request):
        raise httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate")

    assert "does not trust the certificate" in (told := sentence(handler))
    assert "SSL_CERT_FILE" in told


def test_wrong_token():
    def handler(request):
        if request.url.path == "/api/version/":
            return version()
        headers = {"set-cookie": f"sessionid={TOKEN}"}
        return httpx.Response(401, json={"detail": f"Invalid token {TOKEN}."}, headers=headers)

    assert "does not accept the token" in sentence(handler)


@pytest.mark.parametrize(
    ("token", "says"), [(" ", "There is no token"), ("a\nb", "copy it again"), ("é", "copy it")]
)
def test_impossible_tokens(token, says):
    with pytest.raises(ReviewerError, match=says):
        reviewer(lambda request: version(), token=token).open_project(None)


def personal_token(seconds):
    return jwt.encode({"exp": time.time() + seconds, "token_type": "refresh"}, "k" * 32)


@pytest.mark.filterwarnings("ignore:The `parse_obj` method:DeprecationWarning")  # the SDK's own
@pytest.mark.parametrize("token", [TOKEN, personal_token(900)])
def test_a_server_below_a_path_gets_every_request_there(token):
    asked = []

    def handler(request):
        asked.append(request.url.path)
        if request.url.path.endswith("/api/token/refresh/"):
            return httpx.Response(200, json={"access": personal_token(300)})
        return version() if request.url.path.endswith("/version/") else httpx.Response(200, json={})

    reviewer(handler, token=token, url="https://h.example/ls/")._client.check()
    assert all(path.startswith("/ls/api/") for path in asked)
    assert ("/ls/api/token/refresh/" in asked) == (token != TOKEN)


def test_a_proxys_page_in_place_of_an_access_token_is_a_server_that_is_away():
    def handler(request):
        return httpx.Response(502, text="<html>Bad Gateway</html>")

    with pytest.raises(LostError, match=r"failed to say its version \(502\)"):
        reviewer(handler, token=personal_token(900)).open_project(None)


def test_old_server():
    with pytest.raises(ReviewerError, match=r"is version 1\.8\.0; goldloop needs 1\.13"):
        reviewer(lambda request: version("1.8.0")).open_project(None)


@pytest.mark.parametrize(
    "answer", [{"text": "<html>hello</html>"}, {"json": ["hello"]}, {"json": {"release": "x"}}]
)
def test_not_label_studio(answer):
    with pytest.raises(ReviewerError, match="does not answer like Label Studio"):
        reviewer(lambda request: httpx.Response(200, **answer)).open_project(None)


def test_project_gone():
    def handler(request):
        if request.url.path == "/api/version/":
            return version()
        if request.url.path.startswith("/api/projects/"):
            return httpx.Response(404, json={"detail": "Not found."})
        return httpx.Response(200, json={"id": 1})

    with pytest.raises(ProjectGoneError, match="has no project 7"):
        reviewer(handler).open_project("7")


def test_a_strangers_project_of_the_same_number_is_left_as_it_is():
    """As on another server, or after a server was begun anew."""

    def handler(request):
        assert request.method == "GET"
        if request.url.path == "/api/version/":
            return version()
        page = '<View><Image name="i" value="$i"/><Choices name="label" toName="i"/></View>'
        return httpx.Response(200, json={"id": 7, "description": "cats", "label_config": page})

    with pytest.raises(ProjectGoneError, match=r"Project 7 of .* is not goldloop's") as caught:
        reviewer(handler).open_project("7")
    assert "`goldloop push --new-project`" in str(caught.value)


def test_project_of_another_campaign():
    def handler(request):
        if request.url.path == "/api/version/":
            return version()
        return httpx.Response(200, json={"id": 7, "description": "[goldloop campaign other]"})

    with pytest.raises(ProjectGoneError, match="belongs to campaign 'other'"):
        reviewer(handler).open_project("7")


class Strict(BaseModel):
    number: int


@pytest.mark.parametrize(
    "failing",
    [
        lambda: (_ for _ in ()).throw(ApiError(status_code=400, body={"detail": TOKEN})),
        lambda: (_ for _ in ()).throw(ApiError(status_code=500, body=f"<html>{TOKEN}</html>")),
        lambda: (_ for _ in ()).throw(ApiError(status_code=None, headers={"cookie": TOKEN})),
        lambda: (_ for _ in ()).throw(httpx.ReadTimeout("slow")),
        lambda: (_ for _ in ()).throw(httpx.ConnectError("down")),
        lambda: (_ for _ in ()).throw(httpx.RemoteProtocolError("cut")),
        lambda: (_ for _ in ()).throw(httpx.TooManyRedirects("round")),
        lambda: (_ for _ in ()).throw(httpx.InvalidURL("bad")),
        lambda: (_ for _ in ()).throw(httpx.StreamClosed()),
        lambda: Strict(number="x"),
        lambda: json.loads("<html>"),
        lambda: {}["missing"],
        lambda: None.missing,
    ],
)
def test_every_foreign_error_becomes_ours(failing):
    with (
        pytest.raises(ReviewerError) as caught,
        translated("http://me:password@host:1", "do it", TOKEN),
    ):
        failing()
    assert TOKEN not in str(caught.value)
    assert "password" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_passwords_in_the_address_stay_private():
    tabs = []
    r = LabelStudioReviewer(
        "http://me:password@127.0.0.1:9/sub/",
        TOKEN,
        project_title="Demo",
        campaign_id="c",
        labels=[Label("a"), Label("b")],
        task="",
        transport=httpx.MockTransport(lambda request: httpx.Response(200, json=tabs)),
    )
    r._project = 3
    assert r.url() == "http://127.0.0.1:9/sub/projects/3/data?labeling=1"
    titles = ["Round 2", "Conflicts", "Round 10", "Round 9"]
    tabs += [{"id": n, "data": {"title": title}} for n, title in enumerate(titles, start=5)]
    assert r.url() == "http://127.0.0.1:9/sub/projects/3/data?tab=7&labeling=1"


def task(number):
    return ReviewTask(f"i{number}", "text", 1, number, "", "a", 0.5)


ROUND = {
    "title": "Round 1",
    "hiddenColumns": {"explore": [], "labeling": []},
    "filters": {
        "conjunction": "and",
        "items": [
            {
                "filter": "filter:tasks:data.round",
                "operator": "equal",
                "type": "Number",
                "value": 1,
            }
        ],
    },
}


class Server:
    """The few calls that sending needs, with faults on order."""

    def __init__(self, faults=()):
        self.tasks = {}
        self.faults = list(faults)
        self.imports = 0
        self.late = []

    def add(self, rows):
        first = len(self.tasks) + 1
        ids = list(range(first, first + len(rows)))
        self.tasks |= {i: row["data"] for i, row in zip(ids, rows, strict=True)}
        return ids

    def __call__(self, request):
        if request.method == "DELETE":
            del self.tasks[int(request.url.path.strip("/").split("/")[-1])]
            return httpx.Response(204)
        if request.url.path.endswith("/import"):
            self.imports += 1
            self.add(self.late)
            self.late = []
            fault = self.faults.pop(0) if self.faults else None
            if fault == "502 much too early":
                self.late = json.loads(request.content)
                return httpx.Response(502, text="<html>bad gateway</html>")
            if fault == "refuse":
                return httpx.Response(400, json={"detail": "no"})
            if fault == "502 before":
                return httpx.Response(502, text="<html>bad gateway</html>")
            ids = self.add(json.loads(request.content))
            if fault == "502 after":
                return httpx.Response(502, text="<html>bad gateway</html>")
            if fault == "reset after":
                raise httpx.ReadError("reset")
            if fault == "time-out after":
                raise httpx.ReadTimeout("slow")
            body = {"task_count": len(ids), "prediction_count": 0, "task_ids": ids}
            return httpx.Response(201, json=body)
        if request.url.path == "/api/dm/views/":
            return httpx.Response(200, json=[{"id": 1, "data": ROUND}])
        query = json.loads(request.url.params["query"])
        wanted = set(query["filters"]["items"][0]["value"])
        rows = [{"id": i, "data": d} for i, d in self.tasks.items() if d["ext_id"] in wanted]
        size, number = int(request.url.params["page_size"]), int(request.url.params["page"])
        body = {"tasks": rows[(number - 1) * size : number * size], "total": len(rows)}
        return httpx.Response(200, json=body)


class NarrowProxy(httpx.BaseTransport):
    """Lets pass what a proxy with small limits does, in characters."""

    def __init__(self, address, body):
        self.studio, self.address, self.body = FakeStudio(), address, body

    def handle_request(self, request):
        if len(str(request.url)) > self.address:
            return httpx.Response(414, text="<html>Request-URI Too Large</html>")
        if len(request.read()) > self.body:
            return httpx.Response(413, text="<html>Request Entity Too Large</html>")
        return self.studio.transport.handle_request(request)


def test_a_proxy_that_takes_small_requests_only_gets_more_of_them():
    proxy = NarrowProxy(address=700, body=2_000)
    r = LabelStudioReviewer(
        "http://127.0.0.1:9",
        TOKEN,
        project_title="Demo",
        campaign_id="c",
        labels=[Label("a"), Label("b")],
        task="",
        transport=proxy,
    )
    r._project = 1
    ids = [f"i{n}" for n in range(60)]
    progress = []
    sent = r.send([task(n) for n in range(60)], progress.append)
    assert sorted(sent) == sorted(ids)
    assert (sum(progress), len(proxy.studio.tasks)) == (60, 60)
    assert r.withdraw(ids) == set(ids)
    assert not proxy.studio.tasks
    with pytest.raises(ReviewerError, match="import tasks \\(413\\); raise its limit"):
        r.send([replace(task(1), text="x" * 2_000)])


@pytest.mark.parametrize(
    ("faults", "imports"),
    [
        ([], 1),
        (["reset after"], 1),
        (["time-out after"], 1),
        (["502 after"], 1),
        (["502 before"], 2),
        (["502 before", "502 before", "time-out after"], 3),
        (["502 much too early"], 2),
    ],
)
def test_lost_answers_double_nothing(faults, imports):
    server = Server(faults)
    r = reviewer(server)
    r._project = 1
    sent = r.send([task(number) for number in range(30)])
    assert server.imports == imports
    assert len(server.tasks) == 30
    assert {server.tasks[int(t)]["ext_id"]: t for t in sent.values()} == sent
    assert r.send([task(number) for number in range(30)]) == sent
    assert server.imports == imports


def test_lasting_failure_ends_in_one_sentence():
    r = reviewer(Server(["502 before"] * 9))
    r._project = 1
    with pytest.raises(ReviewerError, match="failed to import tasks"):
        r.send([task(0)])


def test_refusal_is_not_repeated():
    server = Server(["refuse"])
    r = reviewer(server)
    r._project = 1
    with pytest.raises(ReviewerError, match=r"refused to import tasks \(400\): no"):
        r.send([task(0)])
    assert server.imports == 1


def test_a_bug_is_not_a_user_error():
    r = reviewer(Server())
    with pytest.raises(ValueError, match="open_project"):
        r.fetch(None)
    r._project = 1
    with pytest.raises(ValueError, match="repeat"):
        r.send([task(0), task(0)])


@pytest.mark.parametrize(
    ("stamp", "asked"),
    [
        ("2024-05-01T10:00:20Z", "2024-05-01T10:00:10.000000Z"),  # whole seconds come without one
        ("2024-05-01T10:00:20.123456Z", "2024-05-01T10:00:10.123456Z"),
        ("2024-05-01T12:00:20.5+02:00", "2024-05-01T10:00:10.500000Z"),
    ],
)
def test_times_are_asked_for_in_the_one_form_that_the_server_reads(stamp, asked):
    queries = []

    def handler(request):
        queries.append(json.loads(request.url.params["query"]))
        return httpx.Response(200, json={"tasks": [], "total": 0})

    r = reviewer(handler)
    r._project = 1
    r.fetch(stamp)
    assert queries[0]["filters"]["items"][0]["value"] == asked


def test_tasks_that_vanish_while_paging_hide_no_others(monkeypatch):
    rows = [{"id": i, "data": {"ext_id": f"i{i}"}, "updated_at": None} for i in range(1, 8)]
    monkeypatch.setattr("connectors.label_studio.pull.PAGE_TASKS", 3)
    calls = []

    def handler(request):
        number = int(request.url.params["page"])
        calls.append(number)
        body = {"tasks": rows[(number - 1) * 3 : number * 3], "total": len(rows)}
        if len(calls) == 1:
            del rows[0]  # the rest move up: task 4 would be on no page
        return httpx.Response(200, json=body)

    r = reviewer(handler)
    r._project = 1
    assert [t.task_id for t in r.fetch(None).tasks] == [str(i) for i in range(2, 8)]
    assert calls == [1, 2, 1, 2]


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_never_turns_writing_into_nothing(status):
    """As of a server that has moved to https, or to another name."""

    def moved(request):
        if request.url.scheme == "https" or request.method == "GET":
            return httpx.Response(200, json={})
        return httpx.Response(status, headers={"location": f"https://127.0.0.1{request.url.path}"})

    client = Client("http://127.0.0.1:9", "0" * 40, transport=httpx.MockTransport(moved))
    with pytest.raises(ReviewerError, match=r"sends requests on to https://127\.0\.0\.1: write"):
        client.write("PATCH", "api/tasks/1/", {}, "ask")

    def elsewhere(request):
        assert request.url.host == "127.0.0.1", "no token goes to another host"
        return httpx.Response(status, headers={"location": "http://evil.example/"})

    client = Client("http://127.0.0.1:9", "0" * 40, transport=httpx.MockTransport(elsewhere))
    with pytest.raises(ReviewerError, match=r"sends requests on to http://evil\.example"):
        client.get("api/version/", {})
