"""What `goldloop serve` lets in, what it never does, and what it shows."""

import base64
import re
import stat
import threading
import time

import numpy as np
import pytest
from fastapi.testclient import TestClient

from connectors.label_studio.ml_backend import MlBackend
from connectors.label_studio.page import choice_result
from loop.cli.serving import _progress
from loop.errors import BusyError, ReviewerError, StoreError
from loop.report.status import campaign_status
from loop.round import pull_answers, run_round
from loop.serve.app import (
    LINK_S,
    MAX_HINT_BYTES,
    OneTimeLinks,
    Served,
    listen,
    make_app,
)
from loop.serve.current_student import CurrentStudent
from loop.serve.metrics import metrics_text
from loop.serve.puller import Puller, Pulls
from loop.serve.tokens import TOKEN_HEADER, Tokens, load_state, save_state, state_file
from tests.loop.test_round import make

TOKENS = Tokens(bytes(32))
PULLS = Pulls(good=3, failed=2, failed_in_a_row=0, since_good_s=7.5)


class Fixture:
    def __init__(self, ctx, *, blind=False, over_https=False):
        self.ctx = ctx
        self.hints = 0
        self.models = {}
        self.clock = 0.0
        self.links = OneTimeLinks(lambda: self.clock)
        served = Served(
            tokens=TOKENS,
            campaign="c",
            labels=lambda: ("bad", "good"),
            hint=self.hint,
            project=lambda: ctx.store.project_id("c"),
            student=CurrentStudent(ctx.config, ctx.store, self.load),
            progress=lambda: (
                _progress(ctx.config, ctx.store) | {"failure": None, "last_pull": self.last_pull}
            ),
            metrics=lambda: metrics_text(campaign_status(ctx.config, ctx.store), PULLS),
            sick=lambda: self.sick,
            backend=MlBackend(blind=lambda: blind),
            links=self.links,
            over_https=over_https,
        )
        self.http = TestClient(
            make_app(served), base_url="http://127.0.0.1:8001", follow_redirects=False
        )

    sick = None
    last_pull = None

    def hint(self):
        self.hints += 1

    def load(self, folder):
        self.models[folder.name] = self.models.get(folder.name, 0) + 1
        seed = int((folder / "model.txt").read_text())
        return lambda texts: np.array([[0.9, 0.1] if seed % 2 else [0.3, 0.7]] * len(texts))


@pytest.fixture
def site(tmp_path):
    return Fixture(make(tmp_path, raters=False))


def backend(password=TOKENS.backend):
    encoded = base64.b64encode(f"goldloop:{password}".encode()).decode()
    return {"Authorization": f"Basic {encoded}"}


def tasks(*texts):
    return {"tasks": [{"id": i, "data": {"text": t}} for i, t in enumerate(texts)]}


# webhooks


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {TOKEN_HEADER: ""},
        {TOKEN_HEADER: TOKENS.backend},
        {TOKEN_HEADER: TOKENS.page},
        {TOKEN_HEADER: TOKENS.webhook[:-1]},
        {TOKEN_HEADER: b"\xe9\xff"},
        {"Authorization": f"Bearer {TOKENS.webhook}"},
        {"Authorization": "Basic !"},
        backend("wrong"),
    ],
)
def test_a_webhook_without_its_token_is_refused(site, headers):
    answer = site.http.post("/webhook", json={"action": "ANNOTATION_CREATED"}, headers=headers)
    assert answer.status_code == 401
    assert site.hints == 0


@pytest.mark.parametrize("headers", [{TOKEN_HEADER: TOKENS.webhook}, backend()])
def test_a_webhook_with_its_token_is_a_hint(site, headers):
    answer = site.http.post("/webhook", json={"action": "ANNOTATION_CREATED"}, headers=headers)
    assert (answer.status_code, site.hints) == (200, 1)


def test_webhooks_of_other_projects_wake_nobody(site):
    run_round(site.ctx)
    for number, hints in ((7, 0), (1, 1)):
        body = {"action": "ANNOTATION_CREATED", "project": {"id": number}}
        site.http.post("/webhook", json=body, headers={TOKEN_HEADER: TOKENS.webhook})
        assert site.hints == hints


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"x" * (MAX_HINT_BYTES + 1), 413),
        (b"not json", 400),
        (b"[1]", 400),
        (b"[" * 60_000, 400),
        (b"\xff", 400),
    ],
)
def test_bodies_that_are_too_large_or_no_objects_are_refused(site, body, status):
    headers = {TOKEN_HEADER: TOKENS.webhook}
    assert site.http.post("/webhook", content=body, headers=headers).status_code == status
    assert site.hints == 0


def test_a_body_that_hides_its_length_is_cut_off(site):
    def chunks():
        for _ in range(100):
            yield b"x" * 4096

    headers = {TOKEN_HEADER: TOKENS.webhook}
    assert site.http.post("/webhook", content=chunks(), headers=headers).status_code == 413


def test_a_webhook_sent_ten_times_changes_nothing_more(site):
    ctx = site.ctx
    run_round(ctx)
    ctx.reviewer.answer(ctx.reviewer.open_items()[0], "ann", "good")
    states = []
    for _ in range(10):
        site.http.post("/webhook", json={"action": "x"}, headers={TOKEN_HEADER: TOKENS.webhook})
        pull_answers(ctx)
        states.append(
            [(a.id, a.annotation_id, a.superseded_at) for a in ctx.store.annotations("c")]
        )
    assert len(states[0]) == 1
    assert states == [states[0]] * 10
    assert site.hints == 10


# pulling


def test_hints_that_come_together_cause_one_pull():
    pulled = threading.Event()
    puller = Puller(pulled.set, debounce_s=0.2, poll_s=60)
    puller.start()
    for _ in range(50):
        puller.hint()
    assert pulled.wait(5)
    time.sleep(0.3)
    assert puller.pulls == 1
    puller.hint()
    time.sleep(0.6)
    puller.stop()
    assert puller.pulls == 2


def test_it_pulls_without_hints_and_survives_failures():
    said, outcomes = (
        [],
        [BusyError("busy"), BusyError("busy"), ReviewerError("down"), ZeroDivisionError()],
    )

    def pull():
        if outcomes:
            raise outcomes.pop(0)

    puller = Puller(pull, debounce_s=0.01, poll_s=0.05, say=said.append)
    puller.start()
    end = time.monotonic() + 10
    while not puller.pulls and time.monotonic() < end:
        time.sleep(0.02)
    puller.stop()
    assert puller.pulls >= 1
    assert said[:2] == ["busy", "down"]
    assert "ZeroDivisionError" in said[2]
    assert len(said) == 3
    assert puller.failure is None
    assert (puller.counts.failed, puller.counts.failed_in_a_row, puller.sick) == (2, 0, None)


def test_pulls_that_keep_failing_make_it_unhealthy(site):
    def pull():
        raise ReviewerError("Label Studio at http://u:secret@ls is down.")

    puller = Puller(pull, debounce_s=0.01, poll_s=0.01)
    puller.start()
    end = time.monotonic() + 10
    while puller.sick is None and time.monotonic() < end:
        time.sleep(0.02)
    puller.stop()
    assert "is down" in puller.sick
    site.sick = puller.sick
    answer = site.http.get("/health")
    assert (answer.status_code, answer.json()["status"]) == (503, "DOWN")
    assert "is down" in answer.json()["detail"]
    assert "secret" not in answer.text


SAMPLE = re.compile(
    r'(goldloop_[a-z_]+)\{campaign="c"(?:,[a-z]+="[^"\\\n]*")*\} (-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)'
)


def test_metrics_are_for_those_who_have_a_token(site):
    for headers in ({}, backend(), {"Authorization": f"Bearer {TOKENS.webhook}"}):
        assert site.http.get("/metrics", headers=headers).status_code == 401
    reader = {"Authorization": f"Bearer {TOKENS.metrics}"}
    assert site.http.get("/progress.json", headers=reader).status_code == 401
    run_round(site.ctx)
    for headers in (reader, {"Authorization": f"Bearer {TOKENS.page}"}):
        answer = site.http.get("/metrics", headers=headers)
        assert answer.status_code == 200
    lines = answer.text.splitlines()
    samples = [SAMPLE.fullmatch(line) for line in lines if not line.startswith("#")]
    assert all(samples)
    values = {sample[1]: float(sample[2]) for sample in samples}
    types = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    assert types == set(values)
    assert (values["goldloop_labels_sent"], values["goldloop_labels_back"]) == (15, 0)
    assert values["goldloop_seconds_since_last_good_pull"] == 7.5
    assert values["goldloop_pull_failures_total"] == 2
    assert 'stage="pull"} 1' in answer.text
    assert "goldloop_cap_usd" not in values


def test_pulling_never_opens_a_round(site):
    assert pull_answers(site.ctx) is None
    run_round(site.ctx)
    for item in site.ctx.reviewer.open_items():
        site.ctx.reviewer.answer(item, "ann", "good")
    assert pull_answers(site.ctx).stage == "repair"
    assert pull_answers(site.ctx) is None
    run_round(site.ctx)
    assert pull_answers(site.ctx) is None
    assert [r.stage for r in site.ctx.store.rounds("c")] == ["done"]


# the ML backend


def finished(site):
    run_round(site.ctx)
    for item in site.ctx.reviewer.open_items():
        site.ctx.reviewer.answer(item, "ann", "good")
    assert run_round(site.ctx).stage == "done"


def test_the_backend_is_healthy_and_asks_for_its_password(site):
    assert site.http.get("/health").json()["status"] == "UP"
    for path in ("/setup", "/predict"):
        for headers in ({}, backend("wrong"), {TOKEN_HEADER: TOKENS.webhook}):
            assert site.http.post(path, json=tasks("x"), headers=headers).status_code == 401


def test_before_the_first_student_it_says_so(site):
    body = {"project": "1.2", "schema": "<View/>", "hostname": "h", "access_token": "t"}
    setup = site.http.post("/setup", json=body, headers=backend())
    assert setup.json() == {"model_version": "untrained"}
    answer = site.http.post("/predict", json=tasks("x"), headers=backend())
    assert answer.status_code == 503
    assert "No student is trained yet" in answer.json()["detail"]


def test_the_current_student_answers(site):
    finished(site)
    version = "goldloop-round-1-seeds-1"
    setup = site.http.post("/setup", json={"project": "1"}, headers=backend())
    assert setup.json() == {"model_version": version}
    for _ in range(2):
        answer = site.http.post("/predict", json=tasks("great", "poor"), headers=backend())
    assert answer.json()["model_version"] == version
    first, _ = answer.json()["results"]
    assert first["result"] == choice_result("good")
    assert first["score"] == pytest.approx(0.7)
    assert site.models == {"round-1": 1}  # loaded once
    hiding = Fixture(site.ctx, blind=True)
    blind = hiding.http.post("/predict", json=tasks("great"), headers=backend()).json()
    assert blind["results"][0]["result"] == []
    assert site.http.post("/predict", json=tasks(), headers=backend()).json()["results"] == []


def test_tasks_without_a_text_do_not_take_the_others_answers(site):
    finished(site)
    odd = [{"data": {}}, 1, {"data": {"text": None}}, {"data": {"text": " \u200b"}}, {"id": 3}]
    body = {"tasks": [odd[0], *tasks("great")["tasks"], *odd[1:]]}
    results = site.http.post("/predict", json=body, headers=backend()).json()["results"]
    assert [bool(result["result"]) for result in results] == [False, True, *[False] * 4]
    assert [result["score"] for result in results] == [0.0, pytest.approx(0.7), *[0.0] * 4]
    none = site.http.post("/predict", json={"tasks": odd}, headers=backend()).json()["results"]
    assert [result["result"] for result in none] == [[]] * 5


def test_kept_seeds_that_disagree_lower_the_score(tmp_path):
    site = Fixture(
        make(
            tmp_path,
            raters=False,
            student={"seeds": 2, "keep_seeds": True, "references": []},
        )
    )
    finished(site)
    answer = site.http.post("/predict", json=tasks("great"), headers=backend()).json()
    assert answer["model_version"] == "goldloop-round-1-seeds-2"
    assert answer["results"][0]["score"] == pytest.approx(0.6)
    assert sorted(site.models) == ["round-1", "round-1-seed-1"]


@pytest.mark.parametrize(
    "body",
    [{}, {"tasks": {}}, {"tasks": "text"}, {"tasks": [{}] * 10_001}],
)
def test_strange_tasks_are_refused(site, body):
    assert site.http.post("/predict", json=body, headers=backend()).status_code == 400


# the page


def test_the_page_asks_for_the_token(site):
    asked = site.http.get("/")
    assert asked.status_code == 401
    assert 'type="password"' in asked.text
    assert site.http.get("/progress.json").status_code == 401
    for wrong in ("", "x", TOKENS.webhook, TOKENS.cookie):
        assert site.http.post("/login", data={"token": wrong}).status_code == 401
    entered = site.http.post("/login", data={"token": TOKENS.page})
    assert (entered.status_code, entered.headers["location"]) == (303, "/")
    cookie = entered.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert TOKENS.page not in cookie
    assert site.http.get("/").status_code == 200
    assert site.http.post("/login", data={"token": "x" * 5000}).status_code == 413


def test_the_page_shows_where_the_round_stands(site):
    run_round(site.ctx)
    for item in site.ctx.reviewer.open_items()[:4]:
        site.ctx.reviewer.answer(item, "<script>alert(1)</script>", "good")
    pull_answers(site.ctx)
    bearer = {"Authorization": f"Bearer {TOKENS.page}"}
    page = site.http.get("/", headers=bearer)
    assert "<strong>4</strong> of 15 texts" in page.text
    assert "&lt;script&gt;alert(1)" in page.text
    assert page.text.count("<script") == 1  # its own, which carries the nonce
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert re.findall(r"script-src ([^;]*)", policy) == [re.search(r"'nonce-[^']+'", policy)[0]]
    nonce = re.search(r"'nonce-([^']+)'", policy)[1]
    assert f'<style nonce="{nonce}">' in page.text
    assert 'http-equiv="refresh"' in page.text
    assert page.headers["cache-control"] == "no-store"
    found = site.http.get("/progress.json", headers=bearer).json()
    assert found["this_round"].items() >= {"chosen": 15, "sent": 15, "back": 4, "out": 11}.items()
    assert found["pace"]["answers_out"] == 11
    assert [p["name"] for p in found["people"]] == ["<script>alert(1)</script>"]


def test_the_page_of_a_finished_round_shows_its_stability(site):
    finished(site)
    page = site.http.get("/", headers={"Authorization": f"Bearer {TOKENS.page}"}).text
    assert "Students after round 1" in page
    assert "reliable accuracy" in page


def test_the_page_before_anything_happened(site):
    page = site.http.get("/", headers={"Authorization": f"Bearer {TOKENS.page}"})
    assert page.status_code == 200
    assert "Rounds to come" in page.text
    nonce = re.search(r"<script nonce=\"([^\"]+)\">", page.text)[1]
    assert f"script-src 'nonce-{nonce}'" in page.headers["Content-Security-Policy"]


@pytest.mark.parametrize(("platform", "name"), [("label_studio", "Label Studio"), ("desk", "desk")])
def test_the_page_names_the_platform_where_people_label(site, platform, name):
    config = site.ctx.config
    people = config.people.model_copy(update={"platform": platform})
    site.ctx.config = config.model_copy(update={"people": people})
    site.last_pull = "2026-11-28T12:00:00"
    page = site.http.get("/", headers={"Authorization": f"Bearer {TOKENS.page}"}).text
    assert f"last read from {name} 12:00:00" in page
    site.ctx.config = config


def test_the_page_says_what_the_campaign_still_takes(tmp_path):
    budget = {"labels": 45, "usd": 30.0, "usd_per_label": 0.5}
    site = Fixture(make(tmp_path, raters=False, budget=budget))
    run_round(site.ctx)
    told = _progress(site.ctx.config, site.ctx.store)
    sent = told["sent"]
    assert (told["rounds"], told["to_come"]["rounds"]) == (2, 1)  # the present one is asked for
    assert told["to_come"]["labels"] == sent == 15
    assert told["to_come"]["usd"] == pytest.approx(0.5 * told["to_come"]["labels"])
    assert told["to_come"]["answers"] == sent + told["to_come"]["labels"]
    page = site.http.get("/", headers={"Authorization": f"Bearer {TOKENS.page}"}).text
    assert "of $30.00" in page
    assert "neither asks the LLM nor trains" in page


def test_a_link_lets_in_once_and_not_for_ever(site):
    path = site.links.new()
    assert site.http.get("/open?once=guessed").headers["location"] == "/"
    assert "set-cookie" not in site.http.get("/open?once=guessed").headers
    assert "set-cookie" not in site.http.get("/open").headers
    answer = site.http.get(path)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert "Secure" not in answer.headers["set-cookie"]
    assert site.http.get("/").status_code == 200
    site.http.cookies.clear()
    assert "set-cookie" not in site.http.get(path).headers
    late = site.links.new()
    site.clock += LINK_S + 1
    assert "set-cookie" not in site.http.get(late).headers


def test_the_cookie_of_a_page_behind_https_goes_no_other_way(tmp_path):
    site = Fixture(make(tmp_path, raters=False), over_https=True)
    for answer in (
        site.http.get(site.links.new()),
        site.http.post("/login", data={"token": TOKENS.page}),
    ):
        assert "Secure" in answer.headers["set-cookie"]


def test_whoever_only_looks_gets_what_a_reader_gets(site):
    readers = [r.path for r in site.http.app.routes if "GET" in r.methods]
    assert set(readers) == {"/", "/health", "/metrics", "/progress.json", "/open"}
    for headers in ({}, {"Authorization": f"Bearer {TOKENS.page}"}):
        for path in readers:
            looked = site.http.head(path, headers=headers)
            assert looked.status_code == site.http.get(path, headers=headers).status_code
    assert site.http.head("/webhook").status_code == 405
    link = site.links.new()
    assert "set-cookie" not in site.http.head(link).headers
    assert "set-cookie" in site.http.get(link).headers  # the look did not use it up


# secrets


def test_the_secret_is_made_once_and_is_private(tmp_path):
    ctx = make(tmp_path)
    path = state_file(ctx.config, ctx.store)
    assert path.parent == tmp_path
    first = load_state(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_state(path) == first
    assert len(bytes.fromhex(first["secret"])) == 32
    save_state(path, {**first, "port": 5})
    assert load_state(path)["port"] == 5
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    with pytest.raises(StoreError, match="others can read"):
        load_state(path)
    path.write_text("{}")
    path.chmod(0o600)
    with pytest.raises(StoreError, match="delete it"):
        load_state(path)


def test_tokens_differ_and_do_not_show(tmp_path):
    four = {TOKENS.webhook, TOKENS.backend, TOKENS.page, TOKENS.cookie}
    assert len(four) == 4
    assert Tokens(b"other").webhook not in four
    assert repr(TOKENS) == "Tokens(…)"


def test_the_last_port_is_taken_again_where_it_is_free():
    first = listen("127.0.0.1", 0, None)
    port = first.getsockname()[1]
    other = listen("127.0.0.1", 0, port)
    assert other.getsockname()[1] != port
    first.close()
    other.close()
    again = listen("127.0.0.1", 0, port)
    assert again.getsockname()[1] == port
    again.close()
