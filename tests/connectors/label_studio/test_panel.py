"""A panel at work on a real Label Studio: one more person, an adjudicator, hidden checks."""

from collections import Counter
from dataclasses import replace

import httpx
import pytest
from campaigns import make
from campaigns import texts as rows_of

from connectors.label_studio import server as label_studio_server
from connectors.label_studio.page import choice_result
from connectors.label_studio.reviewer import LabelStudioReviewer
from loop.people.answers import withdraw_unanswered
from loop.people.scorecards import campaign_people
from loop.round import close_early, run_round
from loop.serve.progress import campaign_progress

pytestmark = pytest.mark.slow
PEOPLE = ("ann", "bob", "cid", "judge")


@pytest.fixture
def people(label_studio):
    clients = {}
    for name in PEOPLE:
        token = label_studio_server.create_user(name, data_dir=label_studio.data_dir)
        headers = {"Authorization": f"Token {token}"}
        clients[name] = httpx.Client(base_url=label_studio.url, headers=headers, timeout=60)
    yield clients
    for client in clients.values():
        client.close()


@pytest.fixture
def campaign(label_studio, tmp_path):
    """A campaign whose people label on the server; two of three, one more where they differ."""
    rows = rows_of(60)
    for n, row in enumerate(rows):  # texts with a known label, of which hidden checks are drawn
        row.split = ("pool", "pool", "test", "dev")[n // 2 % 4]
    ctx = make(
        tmp_path,
        raters=False,
        rows=rows,
        budget={"labels": 12},
        rounds={"batch_size": 6, "rounds": 2, "audit_frac": 0.2},
        student={"seeds": 2, "references": []},
        people={
            "overlap": 2,
            "rule": "ask-one-more",
            "max_overlap": 3,
            "adjudicator": "judge@goldloop.local",
            "check_frac": 0.5,
        },
        texts={"source": "x.csv", "gold_column": "g", "split_column": "s"},
    )
    ctx.store.open_campaign("c", ctx.config.label_names)
    reviewer = LabelStudioReviewer(
        label_studio.url,
        label_studio.token,
        project_title="panel",
        campaign_id=ctx.store.campaign_uid("c"),
        labels=ctx.config.port_labels,
        task="t",
        overlap=2,
    )
    ctx.parts = replace(ctx.parts, reviewer=lambda: reviewer)
    yield ctx
    if reviewer._project is not None:
        reviewer.delete_project()
    ctx.store.close()


def work(person, project, say):
    """Answers all that the server hands out, in its order; what was answered."""
    done = []
    while True:
        answer = person.get(f"/api/projects/{project}/next")
        if answer.status_code == 404:
            return done
        task = answer.json()
        item = task["data"]["ext_id"]
        body = {"result": choice_result(say(item)), "lead_time": 4.0}
        person.post(f"/api/tasks/{task['id']}/annotations/", json=body).raise_for_status()
        done.append(item)


def test_one_more_is_asked_the_adjudicator_settles_and_checks_count(campaign, people):
    ctx = campaign
    round_ = run_round(ctx)
    assert round_.stage == "pull"
    project = ctx.reviewer.open_project(None)
    items = [r.item_id for r in ctx.store.reviews("c")]
    checks = {c.id: c.item_id for c in ctx.store.checks("c")}
    assert len(checks) == 3
    known = {i.id: i.known_label for i in ctx.store.items("c")}
    truth = {**{i: known[i] for i in items}, **{c: known[i] for c, i in checks.items()}}
    other = {"good": "bad", "bad": "good"}
    split, open_ = items[1], items[4]

    def bob(item):  # differs on two texts, and knows none of the hidden checks
        wrong = item in (split, open_) or item in checks
        return other[truth[item]] if wrong else truth[item]

    served = work(people["ann"], project, truth.get)
    assert set(served) == {*items, *checks}
    assert work(people["bob"], project, bob) == served  # the same order for both
    assert work(people["cid"], project, truth.get) == []  # two are enough so far

    assert run_round(ctx).stage == "pull"
    asked = work(people["cid"], project, lambda item: truth[item] if item == split else None)
    assert asked == [split, open_]
    assert run_round(ctx).stage == "pull"  # the third was unsure of one
    assert campaign_progress(ctx.config, ctx.store)["conflicts"] == 1

    tabs = people["judge"].get(f"/api/dm/views/?project={project}").json()
    tab = next(t["data"] for t in tabs if t["data"]["title"] == "Conflicts")
    body = {"filters": tab["filters"], "ordering": tab["ordering"]}
    path = f"/api/dm/actions?id=next_task&project={project}"
    task = people["judge"].post(path, json=body).json()
    assert task["data"]["ext_id"] == open_
    result = {"result": choice_result(truth[open_])}
    people["judge"].post(f"/api/tasks/{task['id']}/annotations/", json=result).raise_for_status()
    assert people["judge"].post(path, json=body).status_code == 404  # nothing else is open

    assert run_round(ctx).stage == "done"
    gold = ctx.store.gold("c")
    assert {i: g.label for i, g in gold.items()} == {i: truth[i] for i in items}
    assert Counter(g.how for g in gold.values()) == {"agreed": 4, "majority": 1, "adjudicated": 1}
    assert (gold[split].how, gold[open_].how) == ("majority", "adjudicated")
    found = {p.name.split("@")[0]: p for p in campaign_people(ctx.config, ctx.store)}
    assert {name: p.answers for name, p in found.items()} == {
        "ann": 9,
        "bob": 9,
        "cid": 2,
        "judge": 1,
    }
    assert (found["ann"].checks.value, found["bob"].checks.value) == (1.0, 0.0)
    assert found["cid"].unsure == 1
    assert found["ann"].median_s == 4.0
    answers = ctx.store.annotations("c")
    assert len(answers) == 9 + 9 + 2 + 1  # nobody was asked in vain

    # The second round is closed early; what nobody began goes back to the pool.
    assert run_round(ctx).stage == "pull"
    second = ctx.store.reviews("c", ctx.store.last_round("c").id)
    for person in ("ann", "bob"):
        task = people[person].get(f"/api/projects/{project}/next").json()
        result = {"result": choice_result("good")}
        people[person].post(f"/api/tasks/{task['id']}/annotations/", json=result)
    round_ = run_round(ctx)
    close_early(ctx, round_)
    assert withdraw_unanswered(ctx) >= len(second) - 1
    left = people["cid"].get(f"/api/projects/{project}/next")
    assert left.status_code == 404
