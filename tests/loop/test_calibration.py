"""Which view of the LLM's answers is used, as audit gold comes in."""

import numpy as np
import pytest
from campaigns import make, texts
from sqlmodel import select

from loop.calibration import choose_view, summary
from loop.report import render
from loop.round import run_round
from loop.store import Event
from loop.view import campaign_view
from loop.votes import LlmVotes
from strategies.calibrate import batch_calibrate


def world(n=600, rare=0.1, seed=0):
    """An LLM that is right to find one class rare: a flat mix would spoil its labels."""
    rng = np.random.default_rng(seed)
    gold = (rng.random(n) < rare).astype(np.int64)
    lead = np.where(gold == 1, 0.4, -3.0) + rng.normal(0, 1.0, n)
    p = 1 / (1 + np.exp(-lead))
    probs = np.stack([1 - p, p], axis=1)[:, None, :]
    posterior = batch_calibrate(probs)[:, 0]
    return gold, LlmVotes(probs, np.zeros((n, 1)), posterior, np.ones(n, dtype=bool))


def view_of(tmp_path, gold, votes, n_audit, calibrate="batch", **prompt):
    ctx = make(tmp_path, prompt={"calibrate": calibrate, **prompt})
    audit = np.arange(len(gold)) < n_audit
    pi = np.full(len(gold), max(n_audit, 1) / len(gold))
    view = choose_view(
        ctx.config, votes, np.where(audit, gold, -1), audit, pi, rng=np.random.default_rng(0)
    )
    return view, audit


def accuracy(posterior, gold):
    return (posterior.argmax(axis=1) == gold).mean()


def test_without_audit_gold_the_stated_view_stays(tmp_path):
    gold, votes = world()
    view, _ = view_of(tmp_path, gold, votes, 0)
    assert (view.name, view.reason, view.prior) == ("batch", "", None)
    np.testing.assert_array_equal(view.posterior, votes.posterior)
    view, _ = view_of(tmp_path, gold, votes, 300, calibrate="none")
    assert (view.name, view.reason) == ("raw", "")


def test_the_class_mix_is_taken_from_audit_gold_and_mends_the_labels(tmp_path):
    gold, votes = world()
    view, _ = view_of(tmp_path, gold, votes, 80)
    assert view.name == "batch"
    assert view.reason.startswith("class mix from 80 audit labels: bad ")
    assert view.prior[1] == pytest.approx(0.1, abs=0.06)
    assert accuracy(view.posterior, gold) > accuracy(votes.posterior, gold) + 0.1


def test_batch_calibration_that_harms_is_switched_off_and_says_why(tmp_path):
    gold = (np.random.default_rng(0).random(600) < 0.5).astype(np.int64)
    votes = harmful(gold)
    assert accuracy(votes.probs[:, 0], gold) == 1.0
    assert accuracy(votes.posterior, gold) < 0.8
    view, audit = view_of(tmp_path, gold, votes, 60)
    assert view.name == "raw"
    assert "batch calibration is off: on 60 audit labels it lowered" in view.reason
    found = summary(view, votes, np.where(audit, gold, -1), audit)
    assert found["raw"] == found["used"]
    # What the strategies calibrate with the prior of the view is then left as it is.
    np.testing.assert_allclose(batch_calibrate(votes.probs, view.prior), votes.probs, atol=1e-9)


def harmful(gold):
    """Nearly all mass on one class, whatever the text; small differences decide, and rightly."""
    p = np.where(gold == 1, 0.52, 0.44)
    p = np.where(np.arange(len(gold)) % 3 == 0, np.where(gold == 1, 0.51, 0.02), p)
    probs = np.stack([1 - p, p], axis=1)[:, None, :]
    return LlmVotes(
        probs, np.zeros((len(gold), 1)), batch_calibrate(probs)[:, 0], np.ones(len(gold), bool)
    )


def test_scaling_to_gold_waits_for_enough_of_it_and_helps_unseen_texts(tmp_path):
    rng = np.random.default_rng(0)
    gold = (rng.random(800) < 0.5).astype(np.int64)
    lead = np.where(gold == 1, 2.0, -2.0) + rng.normal(0, 6.0, 800)
    p = 1 / (1 + np.exp(-lead))
    probs = np.stack([1 - p, p], axis=1)[:, None, :]
    votes = LlmVotes(probs, np.zeros((800, 1)), batch_calibrate(probs)[:, 0], np.ones(800, bool))
    early, _ = view_of(tmp_path, gold, votes, 99, calibrate="gold")
    assert early.name == "batch"
    view, audit = view_of(tmp_path, gold, votes, 150, calibrate="gold")
    assert view.name == "gold"
    assert "scaled to gold: log-loss on 150 audit labels, each left out" in view.reason
    found = summary(view, votes, np.where(~audit, gold, -1), ~audit)
    assert found["used"]["ece"] < 0.5 * found["raw"]["ece"]


def test_a_scaling_that_does_not_help_is_not_used(tmp_path):
    rng = np.random.default_rng(0)
    p = rng.uniform(0.02, 0.98, 600)
    gold = (rng.random(600) < p).astype(np.int64)
    probs = np.stack([1 - p, p], axis=1)[:, None, :]
    votes = LlmVotes(probs, np.zeros((600, 1)), probs[:, 0], np.ones(600, bool))
    view, _ = view_of(tmp_path, gold, votes, 120, calibrate="gold")
    assert view.name == "batch"
    assert "the scaling to gold is not used" in view.reason


def test_a_campaign_tells_its_view_in_the_audit_trail_and_the_report(tmp_path):
    ctx = make(
        tmp_path,
        rows=texts(200),
        budget={"labels": 60},
        rounds={"batch_size": 30, "rounds": 2, "audit_frac": 0.8},
        student={"seeds": 2, "references": ["llm_only"]},
    )
    first = run_round(ctx)
    assert first.stage == "done"
    before = ctx.store.rounds("c")[0].metrics["calibration"]
    assert (before["view"], before["reason"], before["n"]) == ("batch", "", 24)
    run_round(ctx)
    with ctx.store.transaction() as session:
        events = session.exec(select(Event).where(Event.command == "calibration")).all()
    assert [(e.what, e.detail["round"]) for e in events] == [("batch", 2)]
    assert "class mix from 24 audit labels" in events[0].detail["reason"]
    view = campaign_view(ctx.config, ctx.store)
    assert view.calibration is not None
    assert view.calibration.n == 48
    page = render(view)
    assert "Expected calibration error" in page
    assert "class mix from 24 audit labels" in page
    assert 'aria-label="Share of right labels over the LLM' in page
