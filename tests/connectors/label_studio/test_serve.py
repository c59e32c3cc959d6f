"""A real Label Studio calls `goldloop serve`: when people answer, and for the student."""

import threading
import time

import httpx
import numpy as np
import pytest

from connectors.label_studio.ml_backend import MlBackend
from connectors.label_studio.page import choice_result
from connectors.label_studio.reviewer import LabelStudioReviewer
from loop.errors import ReviewerError
from loop.ports import ReviewTask
from loop.prompt import Label
from loop.serve.app import Served, listen, make_app, serve_app
from loop.serve.current_student import Answers
from loop.serve.tokens import BACKEND_USER, TOKEN_HEADER, Tokens

pytestmark = pytest.mark.slow
TOKENS = Tokens(b"s" * 32)
LABELS = ("bad", "good")


class KnownStudent:
    def version(self):
        return "round-1"

    def answer(self, texts):
        score = np.array([0.9 if "sure" in text else 0.4 for text in texts])
        return Answers("round-1", np.ones(len(texts), dtype=np.int64), score)


@pytest.fixture(params=[True, False], ids=["blind", "open"])
def site(request, label_studio):
    hints = []
    reviewer = LabelStudioReviewer(
        label_studio.url,
        label_studio.token,
        project_title="serve",
        campaign_id=f"serve-{request.param}",
        labels=[Label(name) for name in LABELS],
        task="t",
    )
    project = reviewer.open_project(None)
    served = Served(
        tokens=TOKENS,
        campaign="c",
        labels=lambda: LABELS,
        hint=lambda: hints.append(time.monotonic()),
        project=lambda: project,
        student=KnownStudent(),
        progress=dict,
        backend=MlBackend(blind=lambda: request.param),
    )
    listener = listen("127.0.0.1", 0, None)
    ready = threading.Event()
    threading.Thread(
        target=serve_app, args=(make_app(served), listener, ready.set), daemon=True
    ).start()
    assert ready.wait(30)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with httpx.Client(
        base_url=label_studio.url,
        headers={"Authorization": f"Token {label_studio.token}"},
        timeout=60,
    ) as api:
        yield reviewer, project, url, hints, api, request.param
    reviewer.delete_project()


def connect(reviewer, url, **more):
    options = {
        "header": TOKEN_HEADER,
        "webhook_token": TOKENS.webhook,
        "user": BACKEND_USER,
        "password": TOKENS.backend,
        "use": True,
    }
    reviewer.connect_server(url, **(options | more))


def until(true, timeout_s=20):
    end = time.monotonic() + timeout_s
    while not true() and time.monotonic() < end:
        time.sleep(0.1)
    assert true()


def test_connected_twice_it_is_called_once(site):
    reviewer, project, url, hints, api, blind = site
    sent = reviewer.send(
        [ReviewTask(f"i{n}", text, 1, n, "", "bad", 0.5) for n, text in enumerate(["sure", "?"])]
    )
    with pytest.raises(ReviewerError, match="ML backend"):
        connect(reviewer, url, password="wrong")
    connect(reviewer, url)
    connect(reviewer, url)
    hooks = api.get("/api/webhooks/", params={"project": project}).json()
    assert [(h["url"], h["send_payload"]) for h in hooks] == [(f"{url}/webhook", False)]
    backends = api.get("/api/ml/", params={"project": project}).json()
    assert [b["url"] for b in backends] == [url]
    assert TOKENS.backend not in str(backends)

    made = api.post(
        f"/api/tasks/{sent['i0']}/annotations/", json={"result": choice_result("good")}
    ).json()["id"]
    until(lambda: len(hints) == 1)
    api.patch(f"/api/annotations/{made}/", json={"result": choice_result("bad")})
    until(lambda: len(hints) == 2)
    api.delete(f"/api/annotations/{made}/")
    until(lambda: len(hints) >= 3)

    # Asked for, the student's answers arrive; in a blind campaign its score alone.
    asked = api.post(
        "/api/dm/actions",
        params={"id": "retrieve_tasks_predictions", "project": project},
        json={"selectedItems": {"all": True, "excluded": []}},
    )
    assert asked.status_code == 200, asked.text
    rows = api.get(
        "/api/tasks/", params={"project": project, "fields": "all", "page_size": 10}
    ).json()["tasks"]
    predictions = {r["data"]["ext_id"]: r["predictions"] for r in rows}
    assert {k: p[0]["score"] for k, p in predictions.items()} == {"i0": 0.9, "i1": 0.4}
    shown = [] if blind else choice_result("good")
    assert [p[0]["result"] for p in predictions.values()] == [shown, shown]
