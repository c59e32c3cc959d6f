"""What gold says after a round, and the stopping rule that follows from it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from campaigns import LABELS, make, texts

import loop.round as stages
from loop.campaign.metrics import LlmQuality, RoundMetrics, Suspects, Wrong, as_json
from loop.measure.llm_quality import (
    covers_next,
    predictor_metrics,
    quality_lines,
    quality_metrics,
    suspect_metrics,
)
from loop.measure.stopping import why_good_enough
from loop.next_round import open_campaign, why_finished
from loop.report.collect import campaign_view
from loop.report.rounds_json import rounds_json
from loop.report.status import campaign_status, status_lines
from loop.round import run_round
from strategies.estimate import label_quality
from strategies.pool import Pool


def config(stop_below=None, rounds=3):
    return SimpleNamespace(
        labels=("a", "b"),
        label_names=("a", "b"),
        rounds=SimpleNamespace(stop_below=stop_below, rounds=rounds),
    )


def campaign(seed, error, n=3000, audit=150, suspects=300):
    """Suspects chosen by a telling suspicion, a random audit of the rest."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(2, size=n)
    wrong = rng.random(n) < error
    suspicion = np.clip(0.6 * wrong + 0.5 * rng.random(n), 0, 1)
    audited = rng.choice(n, audit, replace=False)
    rest = np.setdiff1d(np.argsort(-suspicion), audited, assume_unique=True)
    order = np.argsort(-suspicion)
    chosen = order[~np.isin(order, audited)][:suspects]
    gold = np.full(n, -1)
    gold[audited], gold[chosen] = truth[audited], truth[chosen]
    pi = np.full(n, audit / n)
    pi[chosen] = 1.0
    pi[np.intersect1d(audited, order[:suspects])] = 1.0
    assert len(rest) == n - audit
    y = np.where(wrong, 1 - truth, truth)
    left = float((np.where(gold >= 0, gold, y) != truth).mean())
    return y, gold, pi, np.where(gold >= 0, 1, -1), suspicion, left


def test_what_remains_stays_below_its_bound_in_all_rounds_but_few():
    held = []
    for seed in range(60):
        *arrays, left = campaign(seed, error=0.15)
        found = quality_metrics(config(), *arrays)
        held.append(left <= found.remaining_at_most)
        assert found.remaining_error.low <= found.remaining_at_most
    assert np.mean(held) >= 0.95
    assert 0 < found.kl.high < 0.2
    assert found.recall[0].value == pytest.approx(0.85, abs=0.15)


def test_the_planned_rounds_share_the_risk_of_stopping_too_early():
    y, gold, pi, round_of, suspicion, _ = campaign(0, error=0.15)
    for rounds in (1, 5):
        found = quality_metrics(config(rounds=rounds), y, gold, pi, round_of, suspicion)
        level = 1 - 2 * 0.05 / rounds  # one-sided
        told = label_quality(
            y, gold, pi, 2, round_of=round_of, p_correct=1 - suspicion, level=level
        )
        assert found.remaining_at_most == pytest.approx(told.remaining_error.high)


def test_texts_without_any_label_count_among_what_remains():
    arrays = campaign(0, error=0.15)[:5]
    answered = np.arange(3000) % 10 > 0
    whole = quality_metrics(config(), *arrays, answered)
    part = quality_metrics(config(), *(array[answered] for array in arrays))
    missing = int((~answered & (arrays[1] < 0)).sum())
    assert 0 < missing < 300
    assert whole.unanswered.without_any_label == missing
    expected = (part.remaining_at_most * 2700 + missing) / 3000
    assert whole.remaining_at_most == pytest.approx(expected)


def test_a_good_llm_stops_the_campaign_and_a_bad_one_does_not():
    for error, stops in ((0.02, True), (0.3, False)):
        *arrays, _ = campaign(1, error)
        metrics = RoundMetrics(label_quality=quality_metrics(config(0.05), *arrays))
        rounds = [SimpleNamespace(stage="done", metrics=metrics)]
        reason = why_good_enough(config(0.05), rounds)
        assert (reason is not None) == stops
        assert why_good_enough(config(None), rounds) is None
    assert "stop_below = 0.05" in why_good_enough(
        config(0.05),
        [
            SimpleNamespace(
                stage="done",
                metrics=RoundMetrics(label_quality=LlmQuality(remaining_at_most=0.04)),
            )
        ],
    )


def test_too_small_an_audit_is_said_and_stops_nothing():
    y, gold, pi, round_of, suspicion, _ = campaign(0, error=0.1)
    pi[gold >= 0] = 1.0
    found = quality_metrics(config(0.5), y, gold, pi, round_of, suspicion)
    assert "audit_frac" in found.problem
    rounds = [SimpleNamespace(stage="done", metrics=RoundMetrics(label_quality=found))]
    assert why_good_enough(config(0.5), rounds) is None


def test_a_round_that_is_hardly_answered_tells_hardly_anything_and_does_not_break():
    y, gold, pi, round_of, suspicion, _ = campaign(0, error=0.1)
    whole = quality_metrics(config(0.5), y, gold, pi, round_of, suspicion).accuracy
    audit = np.flatnonzero((gold >= 0) & (pi < 1))
    gold[audit[6:]] = -1  # six random answers are back, and all of the suspects
    found = quality_metrics(config(0.5), y, gold, pi, round_of, suspicion).accuracy
    assert found.low < whole.value < found.high
    assert found.high - found.low > 2 * (whole.high - whole.low)
    gold[audit[4:]] = -1
    found = quality_metrics(config(0.5), y, gold, pi, round_of, suspicion)
    assert "4 random texts with a label from people cannot speak for" in found.problem


def foreseeing(told, seed=0, n=600):
    rng = np.random.default_rng(seed)
    truth = rng.integers(2, size=n)
    wrong = rng.random(n) < 0.3
    y = np.where(wrong, 1 - truth, truth)
    sure = np.where(wrong, 0.55, 0.95) if told else rng.uniform(0.55, 0.95, n)
    probs = np.empty((n, 1, 2))
    probs[np.arange(n), 0, y], probs[np.arange(n), 0, 1 - y] = sure, 1 - sure
    earlier, batch = np.zeros(n, bool), np.zeros(n, bool)
    earlier[:200], batch[200:500] = True, True
    pool = Pool(probs=probs, y_llm=y, gold=np.where(earlier, truth, -1))
    return pool, batch, np.where(earlier | batch, truth, -1), np.ones(n)


def test_a_predictor_is_judged_on_the_batch_that_it_never_saw():
    told = predictor_metrics(*foreseeing(told=True), rng=np.random.default_rng(0))
    blind = predictor_metrics(*foreseeing(told=False), rng=np.random.default_rng(0))
    assert told.n == 300
    assert told.learned_from == 200
    assert told.auroc.value > 0.95
    assert told.precision > 0.9
    assert abs(blind.auroc.value - 0.5) < 0.12
    assert blind.auroc.low < blind.auroc.value < blind.auroc.high
    for found in (told, blind):
        assert found.expected == pytest.approx(found.found, abs=0.07)
        assert sum(items for _, _, items in found.bins) == 300
    assert told.brier < blind.brier
    pool, batch, gold, pi = foreseeing(told=True)
    batch[0] = True
    with pytest.raises(ValueError, match="must not have seen"):
        predictor_metrics(pool, batch, gold, pi, rng=np.random.default_rng(0))


def test_each_text_of_a_batch_stands_for_those_that_it_was_drawn_from():
    pool, batch, gold, pi = foreseeing(told=True)
    wrong = gold != pool.y_llm
    pi[batch & ~wrong] = 0.1
    found = predictor_metrics(pool, batch, gold, pi, rng=np.random.default_rng(0))
    share = np.average(wrong[batch], weights=1 / pi[batch])
    assert found.found == pytest.approx(share)
    assert found.expected == pytest.approx(share, abs=0.05)
    assert wrong[batch].mean() > 4 * share


def test_foreseen_errors_are_told_in_a_sentence():
    told = predictor_metrics(*foreseeing(told=True), rng=np.random.default_rng(0))
    (line,) = quality_lines(RoundMetrics(predictor=told))
    assert line.startswith("goldloop can tell which labels are wrong (AUROC 100.0 (96.2 to 100.0)")
    assert "200 earlier labels" in line
    blind = predictor_metrics(*foreseeing(told=False), rng=np.random.default_rng(0))
    assert quality_lines(RoundMetrics(predictor=blind))[0].startswith("goldloop cannot yet tell")
    assert quality_lines(RoundMetrics()) == []


def test_the_loop_measures_both_each_round_and_stops_by_itself(tmp_path):
    ctx = make(
        tmp_path,
        rows=texts(n=200, wrong=0.0),
        budget={"labels": 120},
        rounds={"rounds": 3, "batch_size": 40, "audit_frac": 0.5, "stop_below": 0.25},
        strategy={"repair": "soft", "signals": ["learned_error"]},
    )
    open_campaign(ctx)
    run_round(ctx)
    metrics = ctx.store.rounds("c")[0].metrics
    assert metrics.label_quality.accuracy.value == pytest.approx(1.0)
    assert metrics.predictor.n == 40
    assert metrics.predictor.learned_from == 0
    assert "stop_below" in why_finished(ctx)
    status = campaign_status(ctx.config, ctx.store)
    assert status["next"].startswith("`goldloop report`, ")
    assert "rounds.stop_below" in status["to_extend"]
    assert sum("still wrong" in line for line in status_lines(status)) == 2  # estimate, reason
    view = campaign_view(ctx.config, ctx.store)
    assert "are still wrong" in view.verdict.llm
    shown = json.loads(json.dumps(rounds_json(view), allow_nan=False))["rows"]
    assert [r["label_quality"] for r in shown if r["arm"] == "loop"] == [
        as_json(metrics.label_quality)
    ]
    assert [r["predictor"]["n"] for r in shown if r["arm"] == "loop"] == [40]
    assert [r["suspects"] for r in shown if r["arm"] == "loop"] == [as_json(metrics.suspects)]


def test_of_a_large_audit_a_part_measures_and_teaches_nothing_and_the_rest_teaches(tmp_path):
    rows = texts(n=300)
    truth = {r.text: r.gold for r in rows}
    for row in rows:
        row.gold = None
    ctx = make(
        tmp_path,
        raters=False,
        rows=rows,
        texts={"source": "x.csv"},
        budget={"labels": 100},
        rounds={"rounds": 1, "batch_size": 100, "audit_frac": 0.5},
        student={"seeds": 2, "references": []},
    )
    run_round(ctx)
    by_id = {i.id: truth[i.text] for i in ctx.store.items("c")}
    for item in ctx.reviewer.open_items():
        ctx.reviewer.answer(item, "ann", by_id[item])
    last = run_round(ctx)
    assert last.stage == "done"
    audits = {r.item_id for r in ctx.store.reviews("c") if r.reason == "audit"}
    labels = {t.item_id: t for t in ctx.store.training_labels(last.id)}
    out = {i for i in audits if labels[i].weight == 0}
    assert len(audits) == 50
    assert 10 <= len(out) <= 30  # a fifth of the hundred
    assert ctx.store.rounds("c")[0].metrics.evaluated >= len(out)
    assert all(labels[i].source == "gold" for i in audits - out)
    # What measures has not even reached the posterior of its own text.
    assert all(labels[i].source != "gold" for i in out)


def sent(suspects, wrong_suspects, others, wrong_others, reason="audit"):
    """Why each text of a batch was sent and which labels were wrong; the suspects come first."""
    why = ["suspect"] * suspects + [reason] * others
    wrong = np.zeros(len(why), bool)
    wrong[:wrong_suspects] = True
    wrong[suspects : suspects + wrong_others] = True
    return why, wrong, np.linspace(1, 0, len(why))


@pytest.mark.parametrize(
    ("batch", "next_", "told"),
    [
        ((30, 20, 30, 6), "suspects", "67 % of 30 texts sent as suspects"),
        ((30, 9, 30, 8), "suspects", "may show this by chance"),
        ((30, 4, 30, 12), "coverage", "0.4 times as often"),
        ((30, 6, 30, 6), "coverage", "whole batch is drawn at random"),
        ((30, 0, 30, 0), "suspects", None),
        ((30, 2, 9, 2), "suspects", None),
        ((9, 0, 30, 9), "suspects", None),
        ((10, 0, 10, 2), "coverage", "0 % of 10 texts sent as suspects"),
        ((30, 2, 0, 0), "suspects", None),
    ],
)
def test_suspects_are_sent_again_only_where_they_were_wrong_more_often(batch, next_, told):
    found = suspect_metrics(*sent(*batch))
    assert found.next == next_
    assert found.suspects == Wrong(batch[1], batch[0])
    lines = quality_lines(RoundMetrics(suspects=found))
    assert (told in lines[0]) if told else not lines
    if told:
        assert found.ratio.low < found.ratio.value < found.ratio.high


def test_small_rounds_are_taken_together_with_those_before():
    rounds = []
    for batch in ((30, 0, 30, 20), (4, 0, 4, 2), (4, 4, 4, 2), (4, 4, 4, 1)):
        rounds.append(suspect_metrics(*sent(*batch), rounds))
    # The first round has enough of its own; those after it are judged with it until they have.
    assert [found.next for found in rounds] == ["coverage", "coverage", "coverage", "suspects"]
    assert [found.rounds for found in rounds] == [1, 2, 3, 3]
    assert rounds[-1].suspects == Wrong(4, 4)
    assert rounds[-1].together == (Wrong(8, 12), Wrong(5, 12))
    (line,) = quality_lines(RoundMetrics(suspects=rounds[-1]))
    assert "In the last 3 rounds together" in line
    assert "67 % of 12 texts that goldloop ranked most suspect" in line


def test_a_round_of_random_texts_says_whether_suspects_are_worth_another_try():
    why, wrong, suspicion = sent(0, 0, 60, 12, reason="coverage")
    found = suspect_metrics(why, wrong, suspicion)  # the wrong ones were the most suspect
    assert not found.tried
    assert found.suspects == Wrong(12, 15)
    assert found.next == "suspects"
    assert "ranked most suspect" in quality_lines(RoundMetrics(suspects=found))[0]
    assert suspect_metrics(why, wrong, -suspicion).next == "coverage"


def test_the_newest_measured_round_decides():
    rounds = [
        *(
            SimpleNamespace(
                metrics=RoundMetrics(suspects=Suspects(Wrong(1, 5), Wrong(1, 5), True, None, next_))
            )
            for next_ in ("suspects", "coverage")
        ),
        SimpleNamespace(metrics=None),
    ]
    assert covers_next(rounds)
    assert not covers_next(rounds[:1])
    assert not covers_next([SimpleNamespace(metrics=RoundMetrics())])
    assert not covers_next([])


def test_suspects_that_are_never_wrong_give_way_to_random_texts(tmp_path, monkeypatch):
    ctx = make(
        tmp_path,
        strategy={"signals": ["margin"]},
        budget={"labels": 60},
        rounds={"rounds": 3, "batch_size": 20, "audit_frac": 0.5},
    )

    def worst(pool, rng):
        """Suspects exactly the labels that are right."""
        truth = [LABELS.index(i.known_label) for i in ctx.store.items("c", "pool")]
        return (np.array(truth) == pool.y_llm).astype(float)

    monkeypatch.setattr(stages, "suspicion_by", lambda _name, *args: worst(*args))
    run_round(ctx)
    first = ctx.store.rounds("c")[0]
    assert first.metrics.suspects.suspects == Wrong(0, 10)
    assert first.metrics.suspects.next == "coverage"
    line = [
        line for line in status_lines(campaign_status(ctx.config, ctx.store)) if "drawn" in line
    ]
    assert "Suspects are not wrong more often here" in line[0]
    assert any(
        "whole batch is drawn at random" in n for n in campaign_view(ctx.config, ctx.store).notes
    )
    for stage in ("annotate", "score", "select"):
        stages.run_stage(ctx, stage)
    second = {r.item_id: r for r in ctx.store.reviews("c") if r.round_id != first.id}
    assert sorted(r.reason for r in second.values()) == ["audit"] * 10 + ["coverage"] * 10
    left = ctx.store.item_count("c", "pool") - 20
    assert {r.inclusion_prob for r in second.values()} == {20 / left}
    assert {r.audit_prob for r in second.values()} == {10 / left}
    # the same decision again, after everything of the round is forgotten but what was measured
    with ctx.store.transaction() as session:
        for review in second.values():
            session.delete(session.merge(review))
        round_ = session.merge(ctx.store.rounds("c")[1])
        round_.stage = "select"
    stages.run_stage(ctx, "select")
    again = {r.item_id: r.reason for r in ctx.store.reviews("c") if r.round_id != first.id}
    assert again == {item: r.reason for item, r in second.items()}


def test_a_round_remembers_the_suspects_of_the_rounds_before(tmp_path):
    ctx = make(
        tmp_path,
        budget={"labels": 30},
        rounds={"rounds": 3, "batch_size": 10, "audit_frac": 0.5},
    )
    for _ in range(3):
        run_round(ctx)
    found = [round_.metrics.suspects for round_ in ctx.store.rounds("c")]
    assert [suspects.rounds for suspects in found] == [1, 2, 2]
    assert found[0].ratio is None  # five suspects say nothing
    assert found[2].together == (
        found[1].suspects + found[2].suspects,
        found[1].random + found[2].random,
    )


def test_suspects_are_compared_by_their_share_and_not_by_their_number():
    reasons = ["suspect"] * 40 + ["audit"] * 20
    wrong = np.r_[np.arange(40) < 12, np.arange(20) < 10]  # 30 % of the suspects, 50 % at random
    found = suspect_metrics(reasons, wrong, np.zeros(60))
    assert found.next == "coverage"
