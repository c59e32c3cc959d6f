"""How many people are asked, who decides, and how well each of them does."""

from collections import Counter

import numpy as np
import pytest

from loop.campaign.config import Panel
from loop.errors import ConfigError
from loop.people import scorecards
from loop.people.gold import Decision, decide, decide_all, wanted_answers
from loop.people.person import Rate
from loop.people.scorecards import (
    DIFFERS,
    HURRIES,
    MISSES,
    _surely_less,
    people,
    people_lines,
)
from loop.report.status import campaign_status
from loop.round import run_round
from tests.loop.people.test_gold import answer
from tests.loop.test_round import finish, make


def wanted(labels, panel):
    answers = [answer(f"p{i}", label) for i, label in enumerate(labels)]
    decision = decide(answers, panel.adjudicator)
    return wanted_answers(answers, decision, panel)


@pytest.mark.parametrize(
    ("panel", "labels", "expected"),
    [
        (Panel(overlap=3), "xx", 3),
        (Panel(overlap=3), "xxy", 3),
        (Panel(overlap=3), "xyz", 3),
        (Panel(overlap=3, early_stop=True), "", 2),
        (Panel(overlap=3, early_stop=True), "xx", 2),
        (Panel(overlap=3, early_stop=True), "xy", 3),
        (Panel(overlap=4, early_stop=True), "xxy", 4),
        (Panel(overlap=5, early_stop=True), "xxx", 3),
        (Panel(overlap=5, early_stop=True), "xxy", 4),
        (Panel(overlap=5, early_stop=True), "xxyx", 4),
        (Panel("ask-one-more", overlap=2, most=4), "xx", 2),
        (Panel("ask-one-more", overlap=2, most=4), "xy", 3),
        (Panel("ask-one-more", overlap=2, most=4), "xyx", 3),
        (Panel("ask-one-more", overlap=2, most=4), "xyz", 4),
        (Panel("ask-one-more", overlap=2, most=4), "xyxy", 4),
        (Panel(overlap=2, adjudicator="judge"), "xy", 3),
        (Panel(overlap=2, adjudicator="judge"), "xx", 2),
    ],
)
def test_nobody_is_asked_in_vain(panel, labels, expected):
    assert wanted(list(labels), panel) == expected


def test_hidden_checks_teach_the_model_and_get_no_decision():
    rng = np.random.default_rng(5)
    by_item, truth = {}, {}
    for n in range(120):
        item = f"i{n}"
        truth[item] = "xyz"[rng.integers(3)]
        said = {
            "good": truth[item],
            "poor": "xyz"[rng.integers(3)],
            "idle": "z",
        }
        by_item[item] = [answer(who, label) for who, label in said.items()]
    known = {f"i{n}": truth[f"i{n}"] for n in range(40)}
    panel = Panel("dawid-skene", overlap=3)
    found = decide_all(by_item, ["x", "y", "z"], panel, known)
    assert set(found) == set(by_item) - set(known)
    assert np.mean([d.label == truth[i] for i, d in found.items()]) > 0.95
    assert decide_all({k: by_item[k] for k in known}, ["x", "y", "z"], panel, known) == {}


def test_skips_alone_are_not_asked_again_and_again():
    skips = [answer("a", None, skipped=True), answer("b", None, skipped=True)]
    panel = Panel("ask-one-more", overlap=2, most=4)
    assert wanted_answers(skips, decide(skips), panel) == 2


def test_the_adjudicator_decides():
    answers = [answer("a", "x"), answer("b", "x"), answer("judge", "y")]
    assert decide(answers, "judge") == Decision("y", "adjudicated", 1.0, 3)
    unsure = [answer("a", "x"), answer("b", "y"), answer("judge", None, problem="unsure")]
    panel = Panel(overlap=2, adjudicator="judge")
    assert decide(unsure, "judge").how == "conflict"
    assert wanted_answers(unsure, decide(unsure, "judge"), panel) == 3


def test_dawid_skene_follows_the_reliable():
    rng = np.random.default_rng(0)
    truth = rng.choice(["x", "y", "z"], 600)
    people_ = {"good": 0.9, "fair": 0.7, "poor": 0.5}
    by_item = {}
    for i, true in enumerate(truth):
        said = {
            who: true if rng.random() < p else rng.choice([c for c in "xyz" if c != true])
            for who, p in people_.items()
        }
        by_item[f"i{i}"] = [answer(who, str(label)) for who, label in said.items()]
    right = {}
    for rule in ("majority", "dawid-skene"):
        found = decide_all(by_item, ["x", "y", "z"], Panel(rule, overlap=3))
        right[rule] = np.mean([found[f"i{i}"].label == t for i, t in enumerate(truth)])
    assert right["dawid-skene"] > right["majority"] + 0.03


def answers_until_done(ctx, choose):
    """People answer whatever is open, in turn, until the round is done or nothing is open."""
    overlap = ctx.config.people.panel.first
    while run_round(ctx).stage == "pull":
        opened = ctx.reviewer.open_items(overlap)
        if not opened:
            return False
        for item in opened:
            given = ctx.reviewer._load()["tasks"][item]["answers"]
            person = f"p{len(given)}"
            ctx.reviewer.answer(item, person, choose(item, len(given)))
    return True


def test_ask_one_more_asks_only_where_people_differ(tmp_path):
    ctx = make(
        tmp_path,
        raters=False,
        rounds={"batch_size": 6, "rounds": 1, "audit_frac": 0.0},
        people={"overlap": 2, "rule": "ask-one-more", "max_overlap": 3},
    )
    run_round(ctx)
    split = set(sorted(ctx.reviewer.open_items(2))[:2])
    assert answers_until_done(ctx, lambda item, n: "bad" if item in split and n == 1 else "good")
    people_asked = Counter(a.item_id for a in ctx.store.annotations("c"))
    assert {i for i, n in people_asked.items() if n == 3} == split
    assert {i for i, n in people_asked.items() if n == 2} == set(people_asked) - split
    gold = ctx.store.gold("c")
    assert {gold[i].how for i in split} == {"majority"}
    assert len(gold) == 6


def test_conflicts_wait_for_the_adjudicator_in_a_queue_of_their_own(tmp_path):
    ctx = make(
        tmp_path,
        raters=False,
        rounds={"batch_size": 6, "rounds": 1, "audit_frac": 0.0},
        people={"overlap": 2, "adjudicator": "judge"},
    )
    run_round(ctx)
    tied = min(ctx.reviewer.open_items(2))
    for item in ctx.reviewer.open_items(2):
        ctx.reviewer.answer(item, "ann", "good")
        ctx.reviewer.answer(item, "bob", "bad" if item == tied else "good")
    assert run_round(ctx).stage == "pull"
    assert ctx.reviewer.queues == {"Conflicts": [tied]}
    assert ctx.reviewer.open_items(2) == [tied]
    assert campaign_status(ctx.config, ctx.store)["this_round"]["back"] == 5
    ctx.reviewer.answer(tied, "judge", "bad")
    assert run_round(ctx).stage == "done"
    assert (ctx.store.gold("c")[tied].label, ctx.store.gold("c")[tied].how) == (
        "bad",
        "adjudicated",
    )


def test_checks_are_hidden_among_the_tasks_and_buy_nothing(tmp_path):
    ctx = make(
        tmp_path,
        budget={"labels": 20},
        rounds={"batch_size": 10, "rounds": 2, "audit_frac": 0.0},
        overlap=2,
        people={"overlap": 2, "check_frac": 0.3},
        texts={"source": "x.csv", "gold_column": "g", "dev_items": 20},
    )
    ctx.raters.truth = _TruthOfChecks(ctx)
    finish(ctx)
    checks = ctx.store.checks("c")
    assert [c.round_id for c in checks] == [2, 2, 2]  # in the first round nothing is known yet
    assert all(c.task_id for c in checks)
    assert len(ctx.store.reviews("c")) == 20
    assert len(ctx.store.gold("c")) == 20
    assert not {c.id for c in checks} & {i.id for i in ctx.store.items("c")}
    known = {i.id: i.split for i in ctx.store.items("c")}
    assert {known[c.item_id] for c in checks} <= {"pool", "dev"}
    from loop.people.scorecards import campaign_people

    assert [p.checks.n for p in campaign_people(ctx.config, ctx.store)] == [3, 3]


class _TruthOfChecks(dict):
    """The fake raters' knowledge, with checks looked up by what they really are."""

    def __init__(self, ctx):
        self.ctx = ctx

    def __missing__(self, key):
        real = {c.id: c.item_id for c in self.ctx.store.checks("c")}.get(key, key)
        return {i.id: i.known_label for i in self.ctx.store.items("c")}[real]


def crew(rates, n=200, seed=0, k="xyz", **more):
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        true = rng.choice(list(k))
        for who, rate in rates.items():
            label = true if rng.random() < rate else rng.choice([c for c in k if c != true])
            a = answer(who, str(label), **more)
            a.item_id = f"i{i}"
            found.append(a)
    return found


def judged(answers, **more):
    options = {"labels": ["x", "y", "z"], "texts": {}, "checks": {}} | more
    return {p.name: p for p in people(answers, **options)}


def test_the_poor_annotator_is_flagged_and_nobody_else():
    found = judged(crew({"ann": 0.9, "bob": 0.85, "cid": 0.5}))
    assert {who: p.flags for who, p in found.items()} == {
        "ann": (),
        "bob": (),
        "cid": (DIFFERS,),
    }
    assert found["cid"].alpha_without > found["ann"].alpha_without
    assert found["ann"].reliability > found["bob"].reliability > found["cid"].reliability
    assert people_lines(list(found.values())) == [f"cid: {DIFFERS}"]


def test_where_labels_are_in_order_answers_that_are_near_agree_more():
    given = crew({"ann": 1.0, "bob": 1.0, "cid": 1.0})
    for a in given:
        if a.annotator == "bob" and a.label != "z" and int(a.item_id[1:]) % 3 == 0:
            a.label = "y" if a.label == "x" else "x"  # the neighbouring label
    nominal, ordinal = judged(given), judged(given, ordinal=True)
    assert ordinal["cid"].alpha_without > nominal["cid"].alpha_without + 0.05
    assert ordinal["bob"].alpha_without == nominal["bob"].alpha_without == 1


@pytest.mark.parametrize("seed", range(20))
def test_equal_people_are_not_flagged(seed):
    found = judged(crew({"ann": 0.8, "bob": 0.8, "cid": 0.8}, seed=seed, n=100))
    assert not people_lines(list(found.values()))


def on_checks(n):
    answers = []
    for i in range(n):
        for who, label in (("ann", "x"), ("bob", "x"), ("cid", "y" if i % 2 else "x")):
            a = answer(who, label)
            a.item_id = f"check{i}"
            answers.append(a)
    return judged(answers, checks={f"check{i}": "x" for i in range(n)})


def test_missed_checks_are_flagged():
    found = on_checks(20)
    assert found["cid"].flags == (MISSES,)
    assert (found["ann"].checks.value, found["cid"].checks.value) == (1.0, 0.5)
    assert found["ann"].agreement is None  # checks are no shared items


def test_few_checks_say_nothing(monkeypatch):
    monkeypatch.setattr(scorecards, "SURE_Z", 0.0)
    assert on_checks(8)["cid"].flags == (MISSES,)
    assert on_checks(7)["cid"].flags == ()


def test_a_difference_within_the_margin_is_none_however_sure():
    assert _surely_less(9600, 10_000, 9900, 10_000) is False
    assert _surely_less(9500, 10_000, 9900, 10_000) is True


def test_answers_quicker_than_reading_are_flagged():
    answers = crew({"ann": 0.9}, n=30)
    for a in answers:
        a.lead_time_s = 0.4
    slow = crew({"bob": 0.9}, n=30)
    for a in slow:
        a.lead_time_s = 4.0
    texts = {f"i{i}": "word " * 20 for i in range(30)}
    found = judged(answers + slow, texts=texts)
    assert found["ann"].flags == (HURRIES,)
    assert (found["ann"].fast, found["bob"].fast, found["bob"].median_s) == (30, 0, 4.0)


def test_intervals_are_wilsons():
    rate = Rate.of(8, 10)
    assert (rate.low, rate.high) == (pytest.approx(0.490, abs=1e-3), pytest.approx(0.943, abs=1e-3))
    assert Rate.of(0, 0) is None


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"rule": "majority", "max_overlap": 3}, "ask-one-more"),
        ({"rule": "ask-one-more", "overlap": 3, "max_overlap": 2}, "at least overlap"),
        ({"rule": "dawid-skene"}, "overlap >= 2"),
    ],
)
def test_rules_that_do_not_fit_are_refused(section, says):
    from loop.campaign.config import PeopleSection

    with pytest.raises((ConfigError, ValueError), match=says):
        PeopleSection(**section)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.long) for s in (1, 2))])
def test_on_recorded_ratings_adjudicated_gold_beats_the_best_person_and_the_poor_one_is_flagged(
    seed,
):
    from connectors.downloads.hutto import load
    from tests.bench.bench_people import NAMES, panel_run

    texts = load("tweets")
    chosen = [texts[i] for i in np.random.default_rng(seed).permutation(len(texts))[:1000]]
    right, judged, asked = panel_run(chosen, seed, checks=100)
    best = max(right[name] for name in NAMES)
    assert right["majority, a fourth person settles conflicts"] > best + 0.01
    assert right["dawid-skene with 100 hidden checks"] > best - 0.01
    assert [p.name for p in judged if p.flags] == ["poor"]
    assert 2.0 < asked < 2.6
