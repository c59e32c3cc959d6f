"""A real Label Studio, a real campaign and its own trained students, joined by `goldloop serve`."""

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from campaigns import make
from tiny_encoder import LABELS, make_texts, save_encoder, tiny_student

from connectors.label_studio.ml_backend import MlBackend
from connectors.label_studio.page import choice_result
from connectors.label_studio.reviewer import LabelStudioReviewer
from loop.round import pull_answers, run_round
from loop.serve.app import Served, listen, make_app, serve_app
from loop.serve.current_student import CurrentStudent
from loop.serve.puller import Puller
from loop.serve.tokens import BACKEND_USER, TOKEN_HEADER, Tokens
from loop.student.inference import SavedClassifier

pytestmark = pytest.mark.slow
TOKENS = Tokens(b"t" * 32)


def until(true, timeout_s=60):
    end = time.monotonic() + timeout_s
    while not true() and time.monotonic() < end:
        time.sleep(0.1)
    assert true()


@pytest.fixture
def campaign(label_studio, tmp_path):
    texts, y = make_texts(90, seed=3)
    rows = [
        SimpleNamespace(
            text=f"{text} w{i % 40}",
            gold=LABELS[c],
            split="test" if i % 3 == 2 else "pool",
            meta={"llm": LABELS[c] if i % 4 else LABELS[(c + 1) % 3]},
        )
        for i, (text, c) in enumerate(zip(texts, y, strict=True))
    ]
    ctx = make(
        tmp_path,
        raters=False,
        rows=rows,
        labels=[{"name": name} for name in LABELS],
        texts={"source": "x.csv", "gold_column": "g", "split_column": "s"},
        annotator={"kind": "recorded", "columns": ["llm"]},
        strategy={"signals": ["margin"]},
        budget={"labels": 12},
        rounds={"batch_size": 6, "rounds": 2, "audit_frac": 0.2},
        student={"seeds": 2, "keep_seeds": True, "references": []},
        people={"assist": "why"},
    )
    ctx.store.open_campaign("c", ctx.config.label_names)
    reviewer = LabelStudioReviewer(
        label_studio.url,
        label_studio.token,
        project_title="serve a campaign",
        campaign_id=ctx.store.campaign_uid("c"),
        labels=ctx.config.port_labels,
        task="t",
        assist="why",
    )
    encoder = save_encoder(tmp_path / "encoder")
    ctx.parts = replace(ctx.parts, reviewer=lambda: reviewer, student=lambda: tiny_student(encoder))
    yield ctx
    if reviewer._project is not None:
        reviewer.delete_project()
    ctx.store.close()


@pytest.fixture
def api(label_studio):
    headers = {"Authorization": f"Token {label_studio.token}"}
    with httpx.Client(base_url=label_studio.url, headers=headers, timeout=120) as client:
        yield client


def truth(ctx):
    return {i.id: i.known_label for i in ctx.store.items("c")}


def give(api, ctx, reviews):
    for review in reviews:
        body = {"result": choice_result(truth(ctx)[review.item_id]), "lead_time": 2.0}
        answer = api.post(f"/api/tasks/{review.task_id}/annotations/", json=body)
        answer.raise_for_status()


def test_answers_come_by_webhook_and_the_trained_students_answer_the_server(campaign, api):
    ctx = campaign
    assert run_round(ctx).stage == "pull"
    puller = Puller(lambda: pull_answers(ctx), debounce_s=0.2, poll_s=3600)
    student = CurrentStudent(
        ctx.config,
        ctx.store,
        lambda folder: SavedClassifier(folder, device="cpu", precision="fp32"),
    )
    served = Served(
        tokens=TOKENS,
        campaign="c",
        labels=lambda: ctx.store.labels("c"),
        hint=puller.hint,
        project=lambda: ctx.store.project_id("c"),
        student=student,
        progress=dict,
        backend=MlBackend(blind=lambda: False),
    )
    listener = listen("127.0.0.1", 0, None)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    ready = threading.Event()
    threading.Thread(
        target=serve_app, args=(make_app(served), listener, ready.set), daemon=True
    ).start()
    assert ready.wait(60)
    ctx.reviewer.connect_server(
        url,
        header=TOKEN_HEADER,
        webhook_token=TOKENS.webhook,
        user=BACKEND_USER,
        password=TOKENS.backend,
        use=True,
    )
    puller.start()
    try:
        until(lambda: puller.pulls == 1)  # at once: nobody knows what was missed
        reviews = ctx.store.reviews("c")
        give(api, ctx, reviews[:3])
        until(lambda: len(ctx.store.annotations("c")) == 3)  # Label Studio's own webhooks did it
        until(lambda: not puller._hinted.is_set())
        time.sleep(1.0)

        # A webhook without the token, or with a wrong one, wakes nobody.
        pulls = puller.pulls
        body = {"action": "ANNOTATION_CREATED", "project": {"id": int(served.project())}}
        for headers in ({}, {TOKEN_HEADER: "x"}, {TOKEN_HEADER: TOKENS.page}):
            assert httpx.post(f"{url}/webhook", json=body, headers=headers).status_code == 401
        time.sleep(1.0)
        assert puller.pulls == pulls

        # One that is sent ten times again changes nothing.
        before = [a.model_dump() for a in ctx.store.annotations("c")]
        for _ in range(10):
            answer = httpx.post(f"{url}/webhook", json=body, headers={TOKEN_HEADER: TOKENS.webhook})
            assert answer.json() == {"status": "pulling"}
        until(lambda: puller.pulls > pulls)
        time.sleep(1.0)
        assert [a.model_dump() for a in ctx.store.annotations("c")] == before

        give(api, ctx, reviews[3:])
        until(lambda: ctx.store.last_round("c").stage == "repair")
    finally:
        puller.stop()
    assert run_round(ctx).stage == "done"
    second = run_round(ctx)
    assert (second.number, second.stage) == (2, "pull")

    # Label Studio asks the trained students for the open texts.
    asked = api.post(
        "/api/dm/actions",
        params={"id": "retrieve_tasks_predictions", "project": served.project()},
        json={"selectedItems": {"all": True, "excluded": []}},
    )
    assert asked.status_code == 200, asked.text
    rows = api.get(
        "/api/tasks/", params={"project": served.project(), "fields": "all", "page_size": 100}
    ).json()["tasks"]
    predictions = {r["data"]["ext_id"]: r["predictions"] for r in rows}
    texts = {i.id: i.text for i in ctx.store.items("c")}
    folders = sorted((ctx.config.out / run.model_path) for run in ctx.store.runs("c"))
    assert len(folders) == 2
    items = sorted(predictions)
    probs = np.stack(
        [
            SavedClassifier(folder, device="cpu", precision="fp32")([texts[i] for i in items])
            for folder in folders
        ]
    ).mean(axis=0)
    for item, p in zip(items, probs, strict=True):
        (prediction,) = predictions[item]
        assert prediction["result"] == choice_result(LABELS[int(p.argmax())])
        assert prediction["score"] == pytest.approx(float(p.max()), abs=1e-4)
        assert prediction["model_version"] == "goldloop-round-1-seeds-2"
