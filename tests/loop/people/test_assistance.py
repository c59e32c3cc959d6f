"""What help does to people, measured on texts that got it by chance."""

import json

import numpy as np
import pytest
from scipy.stats import ttest_ind

from loop.errors import ConfigError
from loop.people.assistance import _effect, assistance_lines, campaign_assistance, effects
from loop.report.collect import campaign_view
from loop.round import run_round
from tests.loop.people.test_gold import answer
from tests.loop.test_round import finish, make


def given(n, agree_shown, agree_hidden, rng, said=()):
    """Answers to n texts, written into ``said`` where it has as many: a new row costs most."""
    help_, llm = {}, {}
    said = said or [answer("ann", "x") for _ in range(n)]
    for i, one in enumerate(said):
        item = one.item_id = f"i{i}"
        help_[item] = bool(rng.random() < 0.5)
        llm[item] = "x"
        agrees = rng.random() < (agree_shown if help_[item] else agree_hidden)
        one.label = "x" if agrees else "y"
        one.lead_time_s = float(np.exp(rng.normal(np.log(4.0 if help_[item] else 8.0), 0.5)))
    return said, help_, llm


def test_a_planted_effect_is_found():
    said, help_, llm = given(800, 0.95, 0.75, np.random.default_rng(0))
    found = {e.what: e for e in effects(said, help_, llm=llm, known={})}
    assert set(found) == {"agrees_with_llm", "seconds"}
    assert found["agrees_with_llm"].low > 0.1
    assert found["agrees_with_llm"].high < 0.3
    assert found["seconds"].difference == pytest.approx(-0.5, abs=0.08)
    assert found["seconds"].shown == pytest.approx(4.0, abs=0.5)


@pytest.mark.parametrize("repeats", [150, pytest.param(300, marks=pytest.mark.long)])
def test_intervals_cover_the_truth(repeats):
    rng = np.random.default_rng(1)
    hits, said = [], ()
    for _ in range(repeats):
        said, help_, llm = given(120, 0.9, 0.8, rng, said)
        found = {e.what: e for e in effects(said, help_, llm=llm, known={})}
        hits.append(found["agrees_with_llm"].low <= 0.1 <= found["agrees_with_llm"].high)
    assert 0.91 <= np.mean(hits) <= 0.985


def test_checks_show_whether_help_misleads():
    help_ = {f"c{i}": i % 2 == 0 for i in range(40)}
    said = []
    for i in range(40):
        one = answer("ann", "wrong" if i % 4 == 0 else "right")
        one.item_id = f"c{i}"
        said.append(one)
    (found,) = effects(said, help_, llm={}, known=dict.fromkeys(help_, "right"))
    assert (found.what, found.shown, found.hidden) == ("checks_right", 0.5, 1.0)
    assert found.high < 0


@pytest.mark.parametrize("agree", [(1.0, 1.0), (0.0, 1.0)])
def test_texts_that_are_all_alike_are_no_certainty(agree):
    said, help_, llm = given(40, *agree, np.random.default_rng(3))
    for one in said:
        one.lead_time_s = 4.0
    (found,) = effects(said, help_, llm=llm, known={})
    assert found.what == "agrees_with_llm"
    assert found.difference == agree[0] - agree[1]
    assert found.high - found.low > 0.1


def test_the_interval_is_welchs():
    rng = np.random.default_rng(4)
    few, many = rng.normal(1.0, 3.0, 6), rng.normal(0.0, 0.5, 30)
    found = _effect("agrees_with_llm", few, many)
    welch = ttest_ind(few, many, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((welch.low, welch.high))


def test_shares_that_do_not_vary_have_newcombes_interval():
    found = _effect("agrees_with_llm", [1.0] * 10, [0.0] * 20)
    assert found.low == pytest.approx(0.6791, abs=1e-4)  # Newcombe 1998, table II, case g
    assert found.high == 1.0


def test_too_few_texts_say_nothing():
    said, help_, llm = given(6, 0.9, 0.8, np.random.default_rng(2))
    assert effects(said, help_, llm=llm, known={}) == []


def test_a_campaign_helps_with_a_share_of_its_texts_and_says_what_it_did(tmp_path):
    studio = {"overlap": 1, "assist": "prefill", "assist_share": 0.5}
    ctx = make(
        tmp_path,
        budget={"labels": 60},
        rounds={"batch_size": 60, "rounds": 1, "audit_frac": 0.2},
        people=studio,
    )
    finish(ctx)
    helped = {r.item_id: r.assisted for r in ctx.store.reviews("c")}
    assert 15 <= sum(helped.values()) <= 45
    tasks = json.loads(ctx.reviewer.path.read_text())["tasks"]
    assert {k: t["assisted"] for k, t in tasks.items()} == helped
    found = campaign_assistance(ctx.config, ctx.store)
    assert "agrees_with_llm" in {e.what for e in found}
    lines = assistance_lines("prefill", found)
    assert any("points (" in line for line in lines)
    assert set(lines) <= set(campaign_view(ctx.config, ctx.store).notes)
    ctx.store.close()


def test_without_a_share_nothing_is_compared(tmp_path):
    ctx = make(tmp_path)
    run_round(ctx)
    assert {r.assisted for r in ctx.store.reviews("c")} == {False}
    assert campaign_assistance(ctx.config, ctx.store) == []
    ctx.store.close()


def test_a_share_of_nothing_is_refused(tmp_path):
    with pytest.raises((ConfigError, ValueError), match="assist_share is for assist"):
        make(tmp_path, people={"assist_share": 0.5})
