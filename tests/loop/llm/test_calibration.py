"""Which view of the LLM's answers is used, as audit gold comes in."""

import numpy as np
import pytest
from campaigns import make, texts
from sqlmodel import select

from loop.campaign.tables import Event
from loop.llm.calibration import choose_view, summary
from loop.llm.votes import LlmVotes, calibrated_votes
from loop.report import plots
from loop.report.collect import campaign_view
from loop.report.html import render
from loop.round import run_round
from strategies.calibrate import batch_calibrate, contextual_calibrate

RELIABILITY_PLOT = plots._reliability  # which most tests leave out


def world(n=600, rare=0.1, seed=0, bias=0.0):
    """An LLM that is right to find one class rare, so that a flat mix would spoil its labels.

    Args:
        bias: log odds by which it sees too much of that class.
    """
    rng = np.random.default_rng(seed)
    gold = (rng.random(n) < rare).astype(np.int64)
    lead = bias + np.where(gold == 1, 0.4, -3.0) + rng.normal(0, 1.0, n)
    p = 1 / (1 + np.exp(-lead))
    probs = np.stack([1 - p, p], axis=1)[:, None, :]
    posterior = batch_calibrate(probs)[:, 0]
    return gold, LlmVotes(probs, np.zeros((n, 1)), posterior, np.ones(n, dtype=bool))


def view_of(tmp_path, gold, votes, n_audit, calibrate="batch", kind="recorded", **prompt):
    annotator = {"kind": kind, "columns": ["llm", "llm_2"]}
    ctx = make(tmp_path, prompt={"calibrate": calibrate, **prompt}, annotator=annotator)
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


def test_the_class_mix_moves_half_way_to_that_of_audit_gold_and_mends_the_labels(tmp_path):
    gold, votes = world(bias=3.0)
    view, _ = view_of(tmp_path, gold, votes, 80)
    assert view.name == "batch"
    start = "class mix half way from an even one to that of 80 audit labels: bad "
    assert view.reason.startswith(start)
    assert view.prior[1] == pytest.approx((0.5 + 0.1) / 2, abs=0.03)
    raw = votes.probs[:, 0]
    assert accuracy(view.posterior, gold) > accuracy(votes.posterior, gold) + 0.1
    assert accuracy(view.posterior, gold) > accuracy(raw, gold) + 0.2
    # The whole mix would bury the rare class.
    whole = batch_calibrate(votes.probs, np.array([0.9, 0.1]))[:, 0]
    found = [(p.argmax(axis=1) == 1)[gold == 1].mean() for p in (view.posterior, whole)]
    assert found[0] > found[1] + 0.05


@pytest.mark.parametrize("n_audit", [0, 100])
def test_texts_without_an_answer_change_no_other_texts_label(tmp_path, n_audit):
    gold, votes = world(bias=2.0)
    silent = np.arange(len(gold)) >= 400  # none of them in the audit
    said = np.where(silent[:, None, None], np.nan, votes.probs)
    holes = LlmVotes(
        np.where(silent[:, None, None], 0.5, votes.probs),
        votes.off_label_mass,
        np.where(silent[:, None], 0.5, batch_calibrate(said)[:, 0]),
        ~silent,
    )
    alone = LlmVotes(
        votes.probs[:400], votes.off_label_mass[:400], holes.posterior[:400], ~silent[:400]
    )
    view, _ = view_of(tmp_path, gold, holes, n_audit)
    without, _ = view_of(tmp_path / "alone", gold[:400], alone, n_audit)
    np.testing.assert_allclose(view.posterior[:400], without.posterior, atol=1e-9)
    assert (view.posterior[400:] == 0.5).all()


def test_without_its_answers_contextual_calibration_is_refused(tmp_path):
    config = make(
        tmp_path, prompt={"calibrate": "contextual"}, annotator={"kind": "local_lm"}
    ).config
    with pytest.raises(ValueError, match="texts without content are missing"):
        calibrated_votes(config, np.full((2, 1, 2), 0.5))


def test_a_stated_class_mix_is_where_it_starts_from(tmp_path):
    gold, votes = world(bias=3.0)
    view, _ = view_of(tmp_path, gold, votes, 80, class_prior={"bad": 0.9, "good": 0.1})
    assert "half way from the stated one to that of 80 audit labels" in view.reason
    assert view.prior[1] == pytest.approx(0.1, abs=0.03)


def test_an_llm_that_knows_the_mix_is_left_as_it_is(tmp_path):
    gold, votes = world()
    view, _ = view_of(tmp_path, gold, votes, 80)
    assert view.name == "raw"
    assert accuracy(view.posterior, gold) > accuracy(votes.posterior, gold) + 0.08


def test_batch_calibration_that_harms_is_switched_off_and_says_why(tmp_path):
    gold = (np.random.default_rng(0).random(600) < 0.5).astype(np.int64)
    votes = harmful(gold)
    assert accuracy(votes.probs[:, 0], gold) == 1.0
    assert accuracy(votes.posterior, gold) < 0.8
    view, audit = view_of(tmp_path, gold, votes, 60)
    assert view.name == "raw"
    assert "batch calibration is off: on 60 audit labels it lowered" in view.reason
    found = summary(view, votes, np.where(audit, gold, -1), audit)
    assert found.raw == found.used
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
    assert found.used.ece < 0.5 * found.raw.ece


def test_batch_calibration_that_only_worsens_the_fit_is_switched_off_too(tmp_path):
    rng = np.random.default_rng(0)
    p = np.where(rng.random(600) < 0.5, 0.99, 0.75)  # true of most, and never below a half
    gold = (rng.random(600) < p).astype(np.int64)
    probs = np.stack([1 - p, p], axis=1)[:, None, :]
    votes = LlmVotes(probs, np.zeros((600, 1)), batch_calibrate(probs)[:, 0], np.ones(600, bool))
    stated = {"class_prior": {"bad": 0.02, "good": 0.98}}
    view, _ = view_of(tmp_path, gold, votes, 0, **stated)
    assert view.name == "batch"
    view, _ = view_of(tmp_path, gold, votes, 200, **stated)
    assert view.name == "batch"  # the mix is taken from gold, which mends the stated one
    spoilt = choose_contextual(tmp_path, gold, votes, 200, shift=0.2)
    assert spoilt.name == "raw"
    assert "contextual calibration is off: on 200 audit labels it raised the Brier" in spoilt.reason


def choose_contextual(tmp_path, gold, votes, n_audit, *, shift):
    """The view where content-free texts would have the probability of class 1 shifted."""
    p = votes.probs[:, 0, 1] - shift
    posterior = np.stack([1 - p, p], axis=1)
    content_free = np.array([[0.5 - shift, 0.5 + shift]])
    shifted = LlmVotes(votes.probs, votes.off_label_mass, posterior, votes.answered, content_free)
    return view_of(tmp_path, gold, shifted, n_audit, calibrate="contextual", kind="local_lm")[0]


def test_contextual_calibration_is_used_as_long_as_it_does_not_harm(tmp_path):
    rng = np.random.default_rng(0)
    gold = (rng.random(400) < 0.5).astype(np.int64)
    lead = np.where(gold == 1, 1.0, -1.0) + rng.normal(0, 0.5, 400) + 2.0
    p = 1 / (1 + np.exp(-lead))
    probs = np.stack([1 - p, p], axis=1)[:, None, :]
    tilt = 1 / (1 + np.exp(-2.0))
    content_free = np.array([[1 - tilt, tilt]])
    posterior = contextual_calibrate(probs, content_free)[:, 0]
    votes = LlmVotes(probs, np.zeros((400, 1)), posterior, np.ones(400, bool), content_free)
    for n_audit in (0, 100):
        view, audit = view_of(
            tmp_path, gold, votes, n_audit, calibrate="contextual", kind="local_lm"
        )
        assert (view.name, view.reason) == ("contextual", "")
        assert accuracy(view.posterior, gold) > accuracy(probs[:, 0], gold) + 0.2
        # What the strategies calibrate with the prior of the view agrees with it.
        same = batch_calibrate(probs, view.prior)[:, 0].argmax(axis=1)
        assert (same == view.posterior.argmax(axis=1)).mean() > 0.95
    assert summary(view, votes, np.where(audit, gold, -1), audit).used.accuracy > 0.9


def test_a_scaling_that_lowers_the_accuracy_is_not_used(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    gold = (rng.random(600) < 0.5).astype(np.int64)
    p = np.where(gold == 1, 0.999, 0.001)
    wrong = rng.random(600) < 0.1
    p[wrong] = 1 - p[wrong]  # far too sure: any damping helps the log-loss
    probs = np.stack([1 - p, p], axis=1)[:, None, :]
    votes = LlmVotes(probs, np.zeros((600, 1)), probs[:, 0], np.ones(600, bool))
    good, _ = view_of(tmp_path, gold, votes, 200, calibrate="gold")
    assert good.name == "gold"

    def spoil(given, known, *, rng):
        damped = 0.5 + 0.3 * (given - 0.5)
        flipped = np.arange(len(given)) % 5 == 0
        damped[flipped] = 0.5 + 0.01 * (0.5 - given[flipped])
        return damped

    monkeypatch.setattr("loop.llm.calibration.scale_with_gold", spoil)
    view, _ = view_of(tmp_path, gold, votes, 200, calibrate="gold")
    assert view.name == "batch"
    assert "the scaling to gold is not used: on 200 audit labels it lowered" in view.reason


def test_a_scaling_that_does_not_help_is_not_used(tmp_path):
    rng = np.random.default_rng(0)
    p = rng.uniform(0.02, 0.98, 600)
    gold = (rng.random(600) < p).astype(np.int64)
    probs = np.stack([1 - p, p], axis=1)[:, None, :]
    votes = LlmVotes(probs, np.zeros((600, 1)), probs[:, 0], np.ones(600, bool))
    view, _ = view_of(tmp_path, gold, votes, 120, calibrate="gold")
    assert view.name == "batch"
    assert "the scaling to gold is not used" in view.reason


def test_a_campaign_tells_its_view_in_the_audit_trail_and_the_report(tmp_path, monkeypatch):
    ctx = make(
        tmp_path,
        rows=texts(200),
        budget={"labels": 60},
        rounds={"batch_size": 30, "rounds": 2, "audit_frac": 0.8},
        student={"seeds": 2, "references": ["llm_only"]},
    )
    first = run_round(ctx)
    assert first.stage == "done"
    before = ctx.store.rounds("c")[0].metrics.calibration
    assert (before.view, before.reason, before.n) == ("batch", "", 24)
    run_round(ctx)
    with ctx.store.transaction() as session:
        events = session.exec(select(Event).where(Event.command == "calibration")).all()
    assert [(e.what, e.detail["round"]) for e in events] == [("batch", 2)]
    assert "to that of 24 audit labels" in events[0].detail["reason"]
    view = campaign_view(ctx.config, ctx.store)
    assert view.calibration is not None
    assert view.calibration.n == 48
    monkeypatch.setattr("loop.report.plots._reliability", RELIABILITY_PLOT)
    page = render(view)
    assert "Expected calibration error" in page
    assert "to that of 24 audit labels" in page
    assert 'aria-label="Share of right labels over the LLM' in page
