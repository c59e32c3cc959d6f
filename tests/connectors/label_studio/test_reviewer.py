"""Round trips through a real Label Studio server."""

import json
import re
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import replace

import httpx
import pytest
from malformed import FIELDS, RESULTS, SURROGATES

from connectors.label_studio import server as label_studio_server
from connectors.label_studio.page import UNSURE, choice_result
from connectors.label_studio.push import BATCH_TASKS, MODEL_VERSION
from connectors.label_studio.reviewer import LabelStudioReviewer
from connectors.label_studio.views import SHOWN_COLUMNS, show_round
from loop.errors import ReviewerError
from loop.ports import ReviewTask
from loop.prompt import Label

pytestmark = pytest.mark.slow

LABELS = [
    Label('a,"b" <c> & d\'', "what <b>this</b> is, $5"),
    Label("😀 joy"),
    Label("עברית", "right to left"),
    Label("$price"),
    Label(" padded "),
]
TEXTS = [
    "<script>alert(1)</script>\n\nnew paragraph",
    "שלום עולם",
    "x" * 50_000,
    "nul \x00 and half a pair \ud800",
    "$text {{x}} 😀 'quotes', \"more\"",
]


@pytest.fixture
def make(label_studio):
    made = []

    def make(**options):
        options = {
            "project_title": "Demo",
            "campaign_id": f"c-{uuid.uuid4().hex}",
            "labels": LABELS,
            "task": 'What is <this>? & "$that"',
            "patience_s": 5.0,
            **options,
        }
        token = options.pop("token", label_studio.token)
        made.append(LabelStudioReviewer(label_studio.url, token, **options))
        return made[-1]

    yield make
    for reviewer in made:
        if reviewer._project is not None:
            reviewer._transport = None
            with suppress(ReviewerError):  # opened twice, deleted by the other
                reviewer.delete_project()


@pytest.fixture
def api(label_studio):
    headers = {"Authorization": f"Token {label_studio.token}"}
    with httpx.Client(base_url=label_studio.url, headers=headers, timeout=60) as client:
        yield client


def tasks(count, first=0):
    return [
        ReviewTask(
            item_id=f"item-{number:05d}",
            text=TEXTS[number % len(TEXTS)],
            round_number=1,
            rank=number - first,
            why="The prompts disagree.",
            llm_label=LABELS[number % len(LABELS)].name,
            llm_confidence=0.625,
        )
        for number in range(first, first + count)
    ]


def annotate(api, task_id, result, **more):
    answer = api.post(f"/api/tasks/{task_id}/annotations/", json={"result": result, **more})
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def stored(api, project, **params):
    params = {"project": project, "fields": "all", "page_size": 5000, **params}
    return api.get("/api/tasks/", params=params).json()["tasks"]


def test_hostile_labels_and_texts_make_the_round_trip(make, api):
    reviewer = make()
    project = reviewer.open_project(None)
    sent = reviewer.send(tasks(5))
    assert re.search(rf"/projects/{project}/data\?tab=\d+&labeling=1$", reviewer.url())
    for number, label in enumerate(LABELS):
        annotate(api, sent[f"item-{number:05d}"], choice_result(label.name), lead_time=1.5)
    fetched = reviewer.fetch(None)
    answers = {t.item_id: t.annotations[0] for t in fetched.tasks}
    assert [answers[f"item-{n:05d}"].label for n in range(5)] == [la.name for la in LABELS]
    one = answers["item-00000"]
    assert (one.annotator, one.lead_time_s, one.note) == ("admin@goldloop.local", 1.5, "")
    assert (one.problem, one.skipped, one.task_id) == (None, False, sent["item-00000"])
    assert one.raw["result"] == choice_result(LABELS[0].name)
    texts = {row["data"]["ext_id"]: row["data"]["text"] for row in stored(api, project)}
    assert texts["item-00000"] == TEXTS[0]
    assert texts["item-00002"] == TEXTS[2]
    assert texts["item-00003"] == "nul \ufffd and half a pair \ufffd"


def test_a_project_that_an_older_version_made_goes_on(make, api):
    reviewer = make(labels=[Label("a", "first"), Label("b")])
    page = (
        '<View><Text name="text" value="$text"/><Choices name="label" toName="text"'
        ' choice="single-radio"><Choice value="a"/><Choice value="b"/>'
        f'<Choice value="{UNSURE}"/></Choices>'
        '<TextArea name="note" toName="text"/></View>'
    )
    made = {"title": "old", "description": reviewer._marker, "label_config": page}
    project = api.post("/api/projects/", json=made).json()["id"]
    rows = [{"data": {"ext_id": f"item-{n:05d}", "text": "t", "round": 1}} for n in range(2)]
    answer = api.post(f"/api/projects/{project}/import?return_task_ids=true", json=rows)
    first, second = answer.json()["task_ids"]
    show_round(reviewer._client, project, 1)
    (tab,) = api.get(f"/api/dm/views/?project={project}").json()
    old_tab = {k: v for k, v in tab["data"].items() if k not in ("hiddenColumns", "columnsWidth")}
    api.put(f"/api/dm/views/{tab['id']}/", json={"project": project, "data": old_tab})
    note = {"from_name": "note", "to_name": "text", "type": "textarea", "value": {"text": ["n"]}}
    annotate(api, first, [*choice_result("a"), note])

    assert reviewer.open_project(None) == str(project)
    sent = reviewer.send([replace(task, llm_label="") for task in tasks(3)])
    assert (sent["item-00000"], sent["item-00001"]) == (str(first), str(second))
    annotate(api, second, choice_result("b"))
    answers = {t.item_id: t.annotations for t in reviewer.fetch(None).tasks}
    assert [(a.label, a.note) for a in answers["item-00000"]] == [("a", "n")]
    assert [a.label for a in answers["item-00001"]] == ["b"]
    places = [row["data"].get("place") for row in stored(api, project)]
    assert sorted(places, key=str) == [None, None, "Text 3 of 3 in round 1"]
    settings = api.get(f"/api/projects/{project}/").json()
    assert "gl-choice" in settings["label_config"]
    assert "<b>a</b>: first" in settings["expert_instruction"]
    (tab,) = api.get(f"/api/dm/views/?project={project}").json()
    assert "tasks:inner_id" in tab["data"]["hiddenColumns"]["explore"]
    assert tab["data"]["columnsWidth"] == SHOWN_COLUMNS


def test_two_hundred_labels(make, api):
    labels = [Label(f"class {n} & <{n}>", f"meaning {n}") for n in range(200)]
    reviewer = make(labels=labels)
    reviewer.open_project(None)
    sent = reviewer.send(tasks(2))
    annotate(api, sent["item-00001"], choice_result(labels[199].name))
    answers = [a.label for t in reviewer.fetch(None).tasks for a in t.annotations]
    assert answers == [labels[199].name]


def test_most_suspect_is_served_first(make, api):
    reviewer = make()
    project = reviewer.open_project(None)
    shuffled = tasks(12)
    shuffled = shuffled[5:] + shuffled[:5]
    sent = reviewer.send(shuffled)
    ids = [int(sent[f"item-{n:05d}"]) for n in range(12)]
    assert ids == sorted(ids)
    served = []
    for _ in range(3):
        row = api.get(f"/api/projects/{project}/next").json()
        served.append(row["data"]["ext_id"])
        annotate(api, row["id"], choice_result("😀 joy"))
    assert served == ["item-00000", "item-00001", "item-00002"]


def test_blind_tasks_say_nothing_of_the_llm(make, api):
    reviewer = make()
    project = reviewer.open_project(None)
    reviewer.send(tasks(5))
    for row in stored(api, project):
        assert row["data"].keys() == {"ext_id", "text", "round", "place"}
        assert row["predictions"] == []
        whole = json.dumps(row, ensure_ascii=False)
        assert "0.625" not in whole
        assert "disagree" not in whole
    settings = api.get(f"/api/projects/{project}/").json()
    assert settings["show_collab_predictions"] is False
    assert settings["sampling"] == "Sequential sampling"
    assert settings["maximum_annotations"] == 1  # the tasks say how many people they want


def test_why_is_shown_only_where_asked(make, api):
    reviewer = make(assist="why")
    project = reviewer.open_project(None)
    reviewer.send(tasks(1))
    assert stored(api, project)[0]["data"]["why"] == "The prompts disagree."


def test_prefill_survives_dropped_predictions(make, api):
    reviewer = make(assist="prefill")
    project = reviewer.open_project(None)
    reviewer.send(tasks(4))
    predictions = {r["data"]["ext_id"]: r["predictions"] for r in stored(api, project)}
    assert [len(p) for p in predictions.values()] == [1, 1, 1, 1]
    first = predictions["item-00000"][0]
    assert (first["score"], first["model_version"]) == (0.625, MODEL_VERSION)
    assert first["result"][0]["value"]["choices"] == [LABELS[0].name]
    assert api.delete(f"/api/predictions/{first['id']}/").status_code == 204
    reviewer.send(tasks(4))
    assert [len(row["predictions"]) for row in stored(api, project)] == [1, 1, 1, 1]


@pytest.mark.parametrize("batch", [50, pytest.param(BATCH_TASKS, marks=pytest.mark.long)])
def test_sending_twice_and_more_doubles_nothing(make, api, monkeypatch, batch):
    monkeypatch.setattr("connectors.label_studio.push.BATCH_TASKS", batch)
    few, many = 5 * batch // 2, 3 * batch
    reviewer = make()
    project = reviewer.open_project(None)
    told = []
    first = reviewer.send(tasks(few), told.append)
    assert sum(told) == few
    again = reviewer.send(tasks(many))
    assert first.items() <= again.items()
    assert api.get(f"/api/projects/{project}/").json()["task_number"] == many
    assert len(set(again.values())) == many


def test_project_is_found_again_and_updated(make, api):
    reviewer = make(campaign_id="again")
    project = reviewer.open_project(None)
    sent = reviewer.send(tasks(1))
    annotate(api, sent["item-00000"], choice_result("😀 joy"))
    more = make(campaign_id="again", labels=[*LABELS, Label("new one")], overlap=3)
    assert more.open_project(None) == project
    assert more.open_project(project) == project
    settings = api.get(f"/api/projects/{project}/").json()
    assert "new one" in settings["label_config"]
    assert more.fetch(None).tasks[0].annotations[0].label == "😀 joy"
    with pytest.raises(ReviewerError, match="belongs to campaign 'again'"):
        make(campaign_id="other").open_project(project)
    more.delete_project()
    with pytest.raises(ReviewerError, match=f"has no project {project}"):
        make(campaign_id="again").open_project(project)


def test_what_was_answered_in_a_project_that_is_gone_is_asked_of_fewer(make, api):
    reviewer = make(overlap=3)
    reviewer.open_project(None)
    answered = [replace(task, answered=task.rank) for task in tasks(5)]
    sent = reviewer.send(answered)
    overlaps = {row["id"]: row["overlap"] for row in stored(api, reviewer.open_project(None))}
    assert [overlaps[int(sent[task.item_id])] for task in answered] == [3, 2, 1, 1, 1]


def test_strange_answers_are_kept_with_the_reason(make, api):
    reviewer = make()
    reviewer.open_project(None)
    sent = reviewer.send(tasks(7))

    def choose(*choices, tag="label"):
        value = {"choices": list(choices)}
        return {"from_name": tag, "to_name": "text", "type": "choices", "value": value}

    note = {
        "from_name": "note",
        "to_name": "text",
        "type": "textarea",
        "value": {"text": ["two", "lines"]},
    }
    results = [
        [choose("nonsense")],
        [],
        [choose("😀 joy", tag="sentiment")],
        [choose("😀 joy", "$price")],
        [choose(UNSURE), note],
        [note],
    ]
    for number, result in enumerate(results):
        annotate(api, sent[f"item-{number:05d}"], result)
    annotate(api, sent["item-00006"], [], was_cancelled=True)
    answers = {t.item_id: t.annotations[0] for t in reviewer.fetch(None).tasks}
    read = [answers[f"item-{number:05d}"] for number in range(7)]
    assert {a.label for a in read} == {None}
    assert [a.problem for a in read] == [
        "unknown label 'nonsense'",
        "empty result",
        "answer from another page (tag sentiment)",
        "several choices",
        "unsure",
        "empty result",
        None,
    ]
    assert [a.skipped for a in read] == [False] * 6 + [True]
    assert read[4].note == "two\nlines"


def test_whatever_the_server_accepts_stops_no_reading(make, api, monkeypatch):
    """Shapes that Label Studio takes are judged alone; what it then cannot show is named."""
    # the SDK waits up to 3 s before it repeats what the server failed to answer
    monkeypatch.setattr("label_studio_sdk.core.http_client._retry_timeout", lambda **_: 0.05)
    reviewer = make(labels=[Label("good"), Label("bad")])
    reviewer.open_project(None)
    fields = {
        name: ({"result": choice_result("good"), **change}, problem)
        for name, (change, problem) in FIELDS.items()
        if change.keys() == {"lead_time"}  # the server sets or corrects the other fields
    }
    shapes = {name: ({"result": result}, p) for name, (result, p) in RESULTS.items()} | fields
    poison = {name: ({"result": result}, p) for name, (result, p) in SURROGATES.items()}
    sent = reviewer.send(tasks(len(shapes) + len(poison) + 2))
    ids = [sent[item] for item in sorted(sent)]
    whole = ids[-2:]
    for task in whole:
        annotate(api, task, choice_result("bad"))
    accepted = {}
    for task, (name, (body, problem)) in zip(ids, (shapes | poison).items(), strict=False):
        answer = api.post(
            f"/api/tasks/{task}/annotations/",
            content=json.dumps(body),
            headers={"content-type": "application/json"},
        )
        if answer.status_code == 201:
            accepted[task] = (name, problem)
    fetched = reviewer.fetch(None)
    print("accepted:", sorted(name for name, _ in accepted.values()), "unserved:", fetched.unserved)
    read = {t.task_id: t.annotations for t in fetched.tasks}
    assert len(read) + len(fetched.unserved) == len(ids)
    assert [a.label for task in whole for a in read[task]] == ["bad", "bad"]
    shown = accepted.keys() & read.keys()
    assert len(shown) >= 10
    for task in shown:
        name, problem = accepted[task]
        (one,) = read[task]
        assert one.label == (None if problem else "good"), name
        assert (one.problem or "").startswith(problem or ""), name
    again = reviewer.fetch(fetched.cursor)  # reading on from there works as well
    assert set(again.unserved) <= set(fetched.unserved)


def test_the_server_says_its_time(make):
    reviewer = make()
    reviewer.open_project(None)
    reviewer.fetch(None)
    assert reviewer._client._clock is not None


def test_only_what_changed_is_read_again(make, api, monkeypatch):
    monkeypatch.setattr("connectors.label_studio.pull.CURSOR_OVERLAP_S", 0.0)
    reviewer = make()
    reviewer.open_project(None)
    sent = reviewer.send(tasks(6))
    start = reviewer.fetch(None)
    assert len(start.tasks) == 6
    assert {t.annotations for t in start.tasks} == {()}
    assert start.whole
    assert reviewer.fetch(start.cursor) == type(start)((), start.cursor)

    kept = annotate(api, sent["item-00002"], choice_result("$price"))
    gone = annotate(api, sent["item-00002"], choice_result("😀 joy"))
    one = reviewer.fetch(start.cursor)
    assert [t.item_id for t in one.tasks] == ["item-00002"]
    assert [a.label for a in one.tasks[0].annotations] == ["$price", "😀 joy"]

    assert api.delete(f"/api/annotations/{gone}/").status_code == 204
    two = reviewer.fetch(one.cursor)
    assert [a.annotation_id for a in two.tasks[0].annotations] == [str(kept)]

    api.patch(f"/api/annotations/{kept}/", json={"result": choice_result(" padded ")})
    three = reviewer.fetch(two.cursor)
    assert [a.label for a in three.tasks[0].annotations] == [" padded "]

    draft = {"result": choice_result("$price"), "lead_time": 1}
    assert api.post(f"/api/tasks/{sent['item-00003']}/drafts", json=draft).status_code == 201
    four = reviewer.fetch(three.cursor)
    assert [a for t in four.tasks for a in t.annotations] == []


def test_reading_goes_through_all_pages(make, api, monkeypatch):
    monkeypatch.setattr("connectors.label_studio.pull.PAGE_TASKS", 2)
    reviewer = make()
    project = reviewer.open_project(None)
    reviewer.send(tasks(5))
    api.post(f"/api/projects/{project}/import", json=[{"data": {"text": "not of ours"}}])
    fetched = reviewer.fetch(None)
    assert [t.item_id for t in fetched.tasks] == [f"item-{n:05d}" for n in range(5)]


def test_doubled_tasks_from_elsewhere_are_adopted_by_the_lowest_number(make, api):
    reviewer = make()
    project = reviewer.open_project(None)
    data = {"ext_id": "item-00000", "text": "by hand"}
    api.post(f"/api/projects/{project}/import", json=[{"data": data}, {"data": data}])
    lowest = min(row["id"] for row in stored(api, project))
    assert reviewer.send(tasks(1)) == {"item-00000": str(lowest)}


def test_annotators_keep_their_names(make, api, label_studio):
    reviewer = make(overlap=2)
    reviewer.open_project(None)
    sent = reviewer.send(tasks(1))
    reviewer.fetch(None)
    token = label_studio_server.create_user("late-comer", data_dir=label_studio.data_dir)
    httpx.post(
        f"{label_studio.url}/api/tasks/{sent['item-00000']}/annotations/",
        json={"result": choice_result("😀 joy")},
        headers={"Authorization": f"Token {token}"},
    ).raise_for_status()
    annotate(api, sent["item-00000"], choice_result("$price"))
    (task,) = reviewer.fetch(None).tasks
    names = [a.annotator for a in task.annotations]
    assert names == ["late-comer@goldloop.local", "admin@goldloop.local"]


class Faulty(httpx.BaseTransport):
    """Loses answers of chosen POSTs: after the server has acted, or before it has begun."""

    def __init__(self, path_end, faults):
        self.inner = httpx.HTTPTransport()
        self.path_end, self.faults = path_end, list(faults)
        self.late = []

    def handle_request(self, request):
        hit = request.method == "POST" and request.url.path.endswith(self.path_end)
        fault = self.faults.pop(0) if hit and self.faults else None
        if fault == "late":  # the client gives up; the server acts a second later
            request.read()
            worker = threading.Timer(1.0, lambda: self.inner.handle_request(request).read())
            worker.start()
            self.late.append(worker)
            raise httpx.ReadTimeout("gave up")
        if fault == "never":
            raise httpx.ReadError("reset before")
        answer = self.inner.handle_request(request)
        if fault == "reset":
            answer.read()
            raise httpx.RemoteProtocolError("reset after")
        if fault == "502":
            answer.read()
            return httpx.Response(502, text="<html>bad gateway</html>", request=request)
        return answer

    def close(self):
        for worker in self.late:
            worker.join()
        self.inner.close()


@pytest.mark.parametrize(
    "faults",
    [
        ["reset"],
        ["late"],
        ["never", "502"],
        *(pytest.param(f, marks=pytest.mark.long) for f in (["502"], ["never"], ["reset"] * 2)),
    ],
)
def test_lost_answers_to_imports_double_nothing(make, api, faults):
    transport = Faulty("/import", faults)
    patience_s = 0.5 if "never" in faults else 5.0
    reviewer = make(transport=transport, patience_s=patience_s)
    project = reviewer.open_project(None)
    sent = reviewer.send(tasks(20))
    time.sleep(0.1)
    rows = stored(api, project)
    assert len(rows) == 20
    assert {row["data"]["ext_id"]: str(row["id"]) for row in rows} == sent
    transport.close()


@pytest.mark.parametrize("fault", ["reset", "never", pytest.param("502", marks=pytest.mark.long)])
def test_lost_answer_to_creation_makes_one_project(make, api, fault):
    campaign = f"once-{fault}"
    reviewer = make(campaign_id=campaign, transport=Faulty("/projects/", [fault]), patience_s=0.5)
    reviewer.open_project(None)
    found = api.get("/api/projects/", params={"include": "id,description", "page_size": 500})
    marked = [p for p in found.json()["results"] if f"{campaign}]" in (p["description"] or "")]
    assert len(marked) == 1


@pytest.mark.filterwarnings("ignore:The `parse_obj` method:DeprecationWarning")  # the SDK's own
def test_both_kinds_of_token(make, label_studio, api):
    with httpx.Client(base_url=label_studio.url, timeout=60) as browser:
        browser.get("/user/login/")
        login = {
            "email": label_studio.username,
            "password": label_studio.password,
            "csrfmiddlewaretoken": browser.cookies["csrftoken"],
        }
        browser.post("/user/login/", data=login, headers={"Referer": label_studio.url})
        answer = browser.post(
            "/api/token/", headers={"X-CSRFToken": browser.cookies["csrftoken"]}, json={}
        )
    assert answer.status_code == 201, answer.text
    reviewer = make(token=answer.json()["token"])
    reviewer.open_project(None)
    assert len(reviewer.send(tasks(3))) == 3
    assert len(reviewer.fetch(None).tasks) == 3


@pytest.mark.parametrize("token", ["0" * 40, "a.b.c"])
def test_wrong_token_is_one_sentence(make, token):
    with pytest.raises(ReviewerError, match="does not accept the token") as caught:
        make(token=token).open_project(None)
    assert token not in str(caught.value)
