"""Several people at once on a real Label Studio: order, withdrawal, and a page that changes."""

import json
import random
import threading
import uuid
from contextlib import suppress

import httpx
import pytest

from connectors.label_studio import server as label_studio_server
from connectors.label_studio.page import choice_result
from connectors.label_studio.reviewer import LabelStudioReviewer
from loop.errors import ReviewerError
from loop.ports import ReviewTask
from loop.prompt import Label

pytestmark = pytest.mark.slow
LABELS = [Label("good", "liked it"), Label("bad")]


@pytest.fixture(scope="module")
def people(label_studio):
    """Clients of three people."""
    clients = []
    for name in ("ann", "bob", "cid"):
        token = label_studio_server.create_user(name, data_dir=label_studio.data_dir)
        headers = {"Authorization": f"Token {token}"}
        clients.append(httpx.Client(base_url=label_studio.url, headers=headers, timeout=60))
    yield clients
    for client in clients:
        client.close()


@pytest.fixture
def make(label_studio):
    made = []

    def make(campaign=None, **options):
        options = {"labels": LABELS, "task": "Which?", "patience_s": 5.0, **options}
        made.append(
            LabelStudioReviewer(
                label_studio.url,
                label_studio.token,
                project_title="people",
                campaign_id=campaign or uuid.uuid4().hex,
                **options,
            )
        )
        return made[-1]

    yield make
    for reviewer in made:
        if reviewer._project is not None:
            with suppress(ReviewerError):
                reviewer.delete_project()


@pytest.fixture
def api(label_studio):
    headers = {"Authorization": f"Token {label_studio.token}"}
    with httpx.Client(base_url=label_studio.url, headers=headers, timeout=60) as client:
        yield client


def tasks(count, first=0, round_number=1):
    return [
        ReviewTask(f"i{n:03d}", f"text {n}", round_number, n - first, "", "good", 0.5)
        for n in range(first, first + count)
    ]


def give(person, task_id, label="good"):
    body = {"result": choice_result(label)}
    person.post(f"/api/tasks/{task_id}/annotations/", json=body).raise_for_status()


def served(person, project):
    """The task that "Label All Tasks" and the page that people are sent to show next."""
    answer = person.get(f"/api/projects/{project}/next")
    if answer.status_code == 404:
        return None
    answer.raise_for_status()
    return answer.json()


@pytest.mark.parametrize("overlap", [1, 2])
def test_everybody_is_served_the_most_suspect_open_text(make, people, overlap):
    reviewer = make(overlap=overlap)
    project = reviewer.open_project(None)
    n = 12 // overlap
    sent = reviewer.send(random.Random(0).sample(tasks(n), n))
    rng = random.Random(overlap)
    seen = {n: [] for n in range(3)}
    open_ = {}
    while True:
        who = rng.choice([0, 0, 0, 1, 1, 2])  # the first is three times as quick as the last
        if who in open_:
            give(people[who], open_.pop(who))
        task = served(people[who], project)
        if task is not None:
            seen[who].append(task["data"]["ext_id"])
            open_[who] = task["id"]
        elif not open_:
            break
    for order in seen.values():
        assert order == sorted(order)
    answered = {t.item_id: len(t.annotations) for t in reviewer.fetch(None).tasks}
    assert answered == dict.fromkeys(sent, overlap)  # nobody in vain


def test_each_round_has_a_tab_in_its_order(make, api, people):
    reviewer = make(overlap=2)
    project = reviewer.open_project(None)
    reviewer.send(tasks(4))
    reviewer.send(tasks(4, first=4, round_number=2))
    reviewer.send(tasks(4, first=4, round_number=2))  # again, as after an interruption
    tabs = {t["data"]["title"]: t for t in api.get(f"/api/dm/views/?project={project}").json()}
    assert sorted(tabs) == ["Round 1", "Round 2"]
    assert reviewer.url().endswith(f"/data?tab={tabs['Round 2']['id']}&labeling=1")
    # What a browser asks for that follows the tab: the round's own tasks, in order.
    found = tabs["Round 2"]["data"]
    body = {"filters": found["filters"], "ordering": found["ordering"]}
    orders = []
    for person in people[:2]:
        order = []
        while True:
            answer = person.post(f"/api/dm/actions?id=next_task&project={project}", json=body)
            if answer.status_code == 404:
                break
            order.append(answer.json()["data"]["ext_id"])
            give(person, answer.json()["id"])
        orders.append(order)
    assert orders == [[f"i{n:03d}" for n in range(4, 8)]] * 2


def test_only_what_nobody_began_is_withdrawn(make, api, people):
    reviewer = make(overlap=2)
    project = reviewer.open_project(None)
    sent = reviewer.send(tasks(7))
    give(people[0], sent["i001"])
    body = {"result": [], "was_cancelled": True}
    people[0].post(f"/api/tasks/{sent['i002']}/annotations/", json=body).raise_for_status()
    draft = {"result": choice_result("good"), "lead_time": 1}
    people[1].post(f"/api/tasks/{sent['i003']}/drafts", json=draft).raise_for_status()
    asked = [f"i{n:03d}" for n in range(6)]
    assert served(people[2], project)["data"]["ext_id"] == "i000"
    assert reviewer.withdraw(asked) == {"i000", "i004", "i005"}
    rows = api.get("/api/tasks/", params={"project": project, "fields": "all"}).json()["tasks"]
    assert {r["data"]["ext_id"] for r in rows} == {"i001", "i002", "i003", "i006"}
    assert reviewer.withdraw(asked) == {"i000", "i004", "i005"}  # again: nothing more
    shown = []  # nobody else is asked about what was answered or skipped
    while (task := served(people[2], project)) is not None:
        shown.append(task["data"]["ext_id"])
        give(people[2], task["id"])
    assert shown == ["i003", "i006"]
    late = people[1].post(f"/api/tasks/{sent['i000']}/annotations/", json={"result": []})
    assert late.status_code == 404  # who has it open is told
    again = reviewer.send(tasks(1))
    assert again["i000"] != sent["i000"]


class Meddling(httpx.BaseTransport):
    """Does something just before the deletion is carried out, or loses its confirmation."""

    def __init__(self, before=lambda task: None, *, faults=()):
        self.inner = httpx.HTTPTransport()
        self.before, self.faults = before, list(faults)

    def handle_request(self, request):
        if "delete_tasks" not in str(request.url):
            return self.inner.handle_request(request)
        (task,) = json.loads(request.read())["selectedItems"]["included"]
        self.before(task)
        fault = self.faults.pop(0) if self.faults else None
        if fault == "never":
            raise httpx.ReadError("reset before")
        answer = self.inner.handle_request(request)
        if fault == "after":
            answer.read()
            raise httpx.RemoteProtocolError("reset after")
        return answer

    def close(self):
        self.inner.close()


def test_an_answer_between_look_and_deletion_keeps_its_task(make, people):
    campaign = uuid.uuid4().hex
    plain = make(campaign)
    plain.open_project(None)
    sent = plain.send(tasks(5))

    def late(task):
        if task == int(sent["i003"]):
            give(people[2], task, "bad")

    reviewer = make(campaign, transport=Meddling(late))
    reviewer.open_project(None)
    assert reviewer.withdraw(list(sent)) == {"i000", "i001", "i002", "i004"}
    (task,) = plain.fetch(None).tasks
    assert [(task.item_id, a.label) for a in task.annotations] == [("i003", "bad")]


@pytest.mark.parametrize(
    "faults",
    [
        ["never", "after", "never"],
        *(pytest.param([fault], marks=pytest.mark.long) for fault in ("never", "after")),
    ],
)
def test_a_withdrawal_survives_lost_answers(make, people, faults):
    campaign = uuid.uuid4().hex
    plain = make(campaign)
    plain.open_project(None)
    sent = plain.send(tasks(4))
    give(people[0], sent["i001"])
    reviewer = make(campaign, transport=Meddling(faults=faults))
    reviewer.open_project(None)
    assert reviewer.withdraw(list(sent)) == {"i000", "i002", "i003"}
    assert [t.item_id for t in plain.fetch(None).tasks] == ["i001"]


def test_answers_that_stream_in_during_a_withdrawal_are_all_kept(make, people):
    reviewer = make()
    reviewer.open_project(None)
    sent = reviewer.send(tasks(30))
    accepted = []

    def work(person, chosen):
        for item in chosen:
            body = {"result": choice_result("good")}
            answer = person.post(f"/api/tasks/{sent[item]}/annotations/", json=body)
            if answer.status_code == 201:
                accepted.append(item)
            else:  # Label Studio refuses an answer to a task that is gone, or just going
                assert answer.status_code in (404, 500), answer.text

    items = list(sent)
    threads = [
        threading.Thread(target=work, args=(person, items[n::3][::-1]))
        for n, person in enumerate(people)
    ]
    for thread in threads:
        thread.start()
    gone = set()
    for start in range(0, 30, 5):
        gone |= reviewer.withdraw(items[start : start + 5])
    for thread in threads:
        thread.join()
    assert gone
    assert accepted
    kept = {t.item_id for t in reviewer.fetch(None).tasks for a in t.annotations}
    # Label Studio's own look and deletion are two steps: once in a while it accepts an answer in
    # between, and deletes it with its task. Nobody outside can prevent that. People answer from the
    # end and tasks go from the beginning, so that each person meets it once at most.
    lost = set(accepted) - kept
    assert kept <= set(accepted)
    assert lost <= gone
    assert len(lost) <= len(people)
    assert not gone & kept


def test_a_changed_page_keeps_the_old_answers(make, api, people):
    campaign = uuid.uuid4().hex
    reviewer = make(campaign)
    project = reviewer.open_project(None)
    sent = reviewer.send(tasks(3))
    give(people[0], sent["i000"], "good")
    give(people[1], sent["i001"], "bad")
    changed = make(campaign, labels=[Label("good", "praises it"), LABELS[1], Label("mixed")])
    changed.open_project(project)
    config = api.get(f"/api/projects/{project}/").json()["label_config"]
    assert "praises it" in config
    assert 'value="mixed"' in config
    give(people[0], sent["i002"], "mixed")
    found = {t.item_id: t.annotations[0] for t in changed.fetch(None).tasks}
    labels = {k: (a.label, a.problem) for k, a in found.items()}
    assert labels == {"i000": ("good", None), "i001": ("bad", None), "i002": ("mixed", None)}
    # A label with answers cannot be taken away: the page stays as it is, and one sentence says so.
    fewer = make(campaign, labels=[LABELS[0], Label("mixed")])
    with pytest.raises(ReviewerError, match=r"'bad'.*answer") as caught:
        fewer.open_project(project)
    assert "\n" not in str(caught.value)
    assert 'value="bad"' in api.get(f"/api/projects/{project}/").json()["label_config"]
    # One without answers can.
    unused = make(campaign, labels=[*LABELS, Label("mixed"), Label("never")])
    unused.open_project(project)
    make(campaign, labels=[*LABELS, Label("mixed")]).open_project(project)
    assert "never" not in api.get(f"/api/projects/{project}/").json()["label_config"]


def test_help_for_a_share_of_the_texts(make, api):
    reviewer = make(assist="prefill")
    project = reviewer.open_project(None)
    mixed = [
        ReviewTask(f"i{n}", f"t{n}", 1, n, "", "good", 0.5, assisted=n % 2 == 0) for n in range(6)
    ]
    reviewer.send(mixed)
    params = {"project": project, "fields": "all", "page_size": 100}
    rows = api.get("/api/tasks/", params=params).json()["tasks"]
    assert [len(r["predictions"]) for r in rows] == [1, 0] * 3
    why = make(assist="why")
    project = why.open_project(None)
    why.send([ReviewTask(f"i{n}", "t", 1, n, "because", "good", 0.5, n == 0) for n in range(2)])
    rows = api.get("/api/tasks/", params={**params, "project": project}).json()["tasks"]
    assert [json.dumps(r["data"]).count("because") for r in rows] == [1, 0]
