"""Twenty random schedules of faults between goldloop and a real Label Studio: nothing lost, nothing
doubled.

A proxy resets connections, loses answers to what the server has done, breaks answers off, sends
gateway errors and lets requests arrive late; goldloop is killed around and inside its stages and at
random moments; the server is killed and started again. People meanwhile answer, correct and delete,
and now and then a round is ended early and what nobody answered is taken back.
"""

import multiprocessing
import os
import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import fault_proxy
import faulty_campaign
import httpx
import pytest
from sqlmodel import select

from connectors.label_studio import server as label_studio_server
from connectors.label_studio.page import choice_result
from loop.campaign.store import Store
from loop.campaign.tables import STAGES, CampaignRow, Event
from loop.errors import ReviewerError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

AT_ONCE = 5  # most of the time is spent waiting for answers that do not come
RESTARTS = {2, 13}  # schedules in which the server is killed in the middle
MOMENTS = ("before", "in the transaction", "after")
MAX_RUNS = 40
RESTARTING = threading.Lock()
PRELOADED = (
    "faulty_campaign",
    "connectors.label_studio.reviewer",
    "label_studio_sdk",
    "loop.round",
    "loop.report.html",
    "loop.measure.round_metrics",
    "loop.people.answers",
    "fakes",
)


@pytest.fixture(scope="module")
def processes():
    """Starts processes that have the imports behind them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


class People:
    """They answer straight to the server, a few texts at a time, and change their minds."""

    def __init__(self, server, rng):
        self.rng = rng
        self.given = set()  # answers that the server accepted, but for those deleted since
        self.http = httpx.Client(
            base_url=server.url, headers={"Authorization": f"Token {server.token}"}, timeout=120
        )

    def ask(self, method, path, **options):
        """Until the server, which may be starting again, has answered."""
        for _ in range(600):
            with suppress(httpx.TransportError):
                answer = self.http.request(method, path, **options)
                if answer.status_code < 500:
                    return answer
            time.sleep(0.2)
        raise AssertionError("the server does not come back")

    def tasks(self, project):
        params = {"project": project, "fields": "all", "page_size": 500}
        answer = self.ask("GET", "/api/tasks/", params=params)
        answer.raise_for_status()
        return answer.json()["tasks"]

    def work(self, project):
        """Answers some open tasks, and now and then corrects or deletes an answer."""
        tasks = self.tasks(project)
        for task in tasks:
            done = task["annotations"]
            chance = self.rng.random()
            label = self.rng.choice(faulty_campaign.LABELS)
            if not done and chance < 0.75:
                body = {"result": choice_result(label)}
                path = f"/api/tasks/{task['id']}/annotations/"
                answer = self.ask("POST", path, json=body)
                answer.raise_for_status()
                self.given.add(answer.json()["id"])
            elif done and chance < 0.07:
                path = f"/api/annotations/{done[0]['id']}/"
                self.ask("PATCH", path, json={"result": choice_result(label)}).raise_for_status()
            elif done and chance < 0.12:
                self.ask("DELETE", f"/api/annotations/{done[0]['id']}/").raise_for_status()
                self.given.discard(done[0]["id"])

    def close(self):
        self.http.close()


def restart(server):
    """Kills the server and starts it again where it was."""
    with RESTARTING:
        os.kill(label_studio_server.status(data_dir=server.data_dir).pid, signal.SIGKILL)
        port = int(server.url.rsplit(":", 1)[1])
        for _ in range(100):
            time.sleep(0.2)
            with suppress(ReviewerError):  # the port is not free yet
                label_studio_server.up(port=port, data_dir=server.data_dir)
                return
    raise AssertionError("the server does not start again")


def play(processes, server, store, folder, seed):
    """One campaign under one schedule; what happened to it."""
    rng = random.Random(seed)
    proxy = fault_proxy.FaultProxy(server.url, seed)
    people = People(server, rng)
    happened = Counter()
    identity = f"faults-{seed}-{time.time_ns()}"
    restarting = seed in RESTARTS

    def run(die, hurry, within_s):
        child = processes.Process(
            target=faulty_campaign.run,
            args=(folder, proxy.url, server.token, identity, die, hurry),
        )
        child.start()
        child.join(within_s)
        if child.is_alive():
            child.kill()
            child.join()
        return {0: "ran", 1: "gave up with a sentence"}.get(child.exitcode, "killed")

    try:
        for number in range(MAX_RUNS):
            die, hurry = None, number > 0 and rng.random() < 0.5
            if number < 3:
                stage = "withdraw" if hurry and rng.random() < 0.5 else rng.choice(STAGES[:-1])
                moments = {"push": (*MOMENTS, "after an import"), "withdraw": ("before", "after")}
                die = (stage, rng.choice(moments.get(stage, MOMENTS)))
            within_s = rng.uniform(0.3, 2.0) if number in (1, 2) else 60
            happened[run(die, hurry, within_s)] += 1
            if restarting and store.last_round(faulty_campaign.NAME) is not None and number >= 2:
                restart(server)
                restarting = False
                happened["server killed"] += 1
            rounds = store.rounds(faulty_campaign.NAME) if number else []
            if [r.stage for r in rounds] == ["done", "done"]:
                break
            if rounds and rounds[-1].stage == "pull":
                with store.transaction() as session:
                    project = session.get(CampaignRow, faulty_campaign.NAME).project_id
                people.work(project)
        else:
            raise AssertionError(f"schedule {seed} did not end: {happened}, {proxy.happened}")
        for _ in range(MAX_RUNS):  # takes back what is left of the last round
            if run(None, True, 60) == "ran":
                break
        else:
            raise AssertionError(f"schedule {seed} takes nothing back: {proxy.happened}")
        proxy.settle()
        check(store, people)
        happened["texts taken back"] += sum(len(texts) for texts in withdrawn(store))
    finally:
        happened.update(proxy.happened)
        store.close()
        people.close()
        proxy.close()
    return happened


def withdrawn(store):
    """The texts of each withdrawal that the campaign wrote down."""
    with store.transaction() as session:
        events = session.exec(select(Event).where(Event.what == "withdrawn")).all()
        return [event.detail["texts"] for event in events]


def check(store, people):
    """The server and the store tell the same, and nothing is there twice."""
    with store.transaction() as session:
        project = session.get(CampaignRow, faulty_campaign.NAME).project_id
    tasks = people.tasks(project)
    reviews = store.reviews(faulty_campaign.NAME)
    assert 0 < len(reviews) <= 10
    per_item = Counter(task["data"]["ext_id"] for task in tasks)
    assert per_item == Counter(r.item_id for r in reviews)
    assert {t["data"]["ext_id"]: str(t["id"]) for t in tasks} == {
        r.item_id: r.task_id for r in reviews
    }
    there = {
        str(a["id"]): a["result"][0]["value"]["choices"][0]
        for task in tasks
        for a in task["annotations"]
    }
    assert people.given <= {int(answer) for answer in there}
    known = store.annotations(faulty_campaign.NAME)
    assert {r.item_id for r in reviews} == {a.item_id for a in known}
    assert sorted(a.annotation_id for a in known) == sorted(there)
    assert {a.annotation_id: a.label for a in known} == there
    gold = store.gold(faulty_campaign.NAME)
    assert {i: g.label for i, g in gold.items()} == {a.item_id: a.label for a in known}
    projects = people.ask("GET", "/api/projects/", params={"page_size": 1000}).json()["results"]
    marker = next(p["description"] for p in projects if str(p["id"]) == project)
    assert sum(p["description"] == marker for p in projects) == 1
    people.ask("DELETE", f"/api/projects/{project}/")


@pytest.mark.parametrize("schedules", [3, pytest.param(20, marks=pytest.mark.long)])
def test_schedules_of_faults_lose_and_double_nothing(
    processes, label_studio, tmp_path, capsys, schedules
):
    happened = Counter()
    started = time.monotonic()
    folders = [tmp_path / str(seed) for seed in range(schedules)]
    stores = [Store(f"sqlite:///{folder / 'faulty.db'}") for folder in folders]

    def one(seed):
        return play(processes, label_studio, stores[seed], folders[seed], seed)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        played = pool.map(one, range(schedules))
        for counts in played:
            happened += counts
    assert {"killed", "server killed"} <= set(happened)
    rare = 0 if schedules >= 20 else 2  # kinds of faults that a few schedules may not meet
    assert len(set(happened) & set(fault_proxy.FAULTS)) >= len(set(fault_proxy.FAULTS)) - rare
    assert happened["texts taken back"] > 0
    with capsys.disabled():
        took = time.monotonic() - started
        print(f"\n{schedules} schedules in {took:.0f} s: {dict(happened.most_common())}")
