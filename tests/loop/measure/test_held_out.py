"""Which texts measure accuracy where no test text has a known label, and what each stands for."""

from types import SimpleNamespace

import numpy as np
from campaigns import make, texts

from loop.campaign.tables import Gold, Item, Review, Round, Scores
from loop.chance import unit_hash
from loop.measure.held_out import EVALUATED_FRAC, held_out, truth_of
from loop.round import run_round
from loop.studies.validate import open_validation
from strategies.select import select_batch


def test_a_fifth_of_the_validation_sample_is_held_out(tmp_path):
    for audit_frac in (0.2, 0.5):
        rows = texts()
        for row in rows:
            row.gold = None
        folder = tmp_path / str(audit_frac)
        folder.mkdir()
        ctx = make(
            folder,
            raters=False,
            rows=rows,
            texts={"source": "x.csv", "gold_column": None},
            rounds={"audit_frac": audit_frac, "batch_size": 10, "rounds": 2},
            student={"seeds": 2, "references": []},
        )
        open_validation(ctx, 25)
        run_round(ctx)
        for item in ctx.reviewer.open_items():
            ctx.reviewer.answer(item, "ann", "good")
        run_round(ctx)
        sample = {r.item_id for r in ctx.store.reviews("c")}
        assert len(sample) == 25
        fifth = {i for i in sample if unit_hash(ctx.seed, "held out", i) < EVALUATED_FRAC}
        assert 0 < len(fifth) < 10
        assert held_out(ctx) == fifth


def campaign(seed, rounds, n=1000, tied=False):
    """A bare campaign that bought its suspects, which students find harder, in several rounds."""
    rng = np.random.default_rng(seed)
    hard = rng.random(n) < 0.3
    suspicion = rng.random(n) * 0.5 + 0.3 * hard
    right = rng.random(n) < np.where(hard, 0.6, 0.95)
    suspicion = np.full(n, 0.5) if tied else suspicion
    reviews, sent = [], np.zeros(n, dtype=bool)
    for r in range(1, rounds + 1):
        batch = select_batch(suspicion, np.flatnonzero(~sent), 100, audit_frac=0.5, rng=rng)
        sent[batch.rows] = True
        reviews += [
            Review(
                item_id=f"i{row}",
                round_id=r,
                reason=str(reason),
                suspicion=suspicion[row],
                audit_prob=prob,
            )
            for row, reason, prob in zip(batch.rows, batch.reason, batch.audit_prob, strict=True)
        ]
    config = {"rounds": {"audit_frac": 0.5}}
    none = np.zeros(0)
    store = SimpleNamespace(
        rounds=lambda _: [
            Round(id=r, campaign="c", number=r, stage="done", seed=0, config=config, versions={})
            for r in range(1, rounds + 1)
        ],
        reviews=lambda _, only=None: [r for r in reviews if only in (None, r.round_id)],
        gold=lambda _: {
            r.item_id: Gold(item_id=r.item_id, label="a", how="one", confidence=1, round_number=1)
            for r in reviews
        },
        all_scores=lambda _: Scores(np.arange(n), none, none, suspicion, {}),
    )
    ctx = SimpleNamespace(name="c", store=store, config=SimpleNamespace(label_index={"a": 0}))
    drawn = [int(r.item_id[1:]) for r in reviews if r.reason == "audit"]
    items = [
        Item(id=f"i{row}", campaign="c", text="", split="pool", row=row) for row in sorted(drawn)
    ]
    return ctx, items, right


def test_accuracy_by_the_audits_of_several_rounds_is_that_of_all_texts():
    errors, naive = [], []
    for seed in range(200):
        ctx, items, right = campaign(seed, rounds=5)
        truth = truth_of(ctx, items)
        assert truth.source == "audit"
        shown = right[[item.row for item in items]]
        errors.append(np.average(shown, weights=truth.weight) - right.mean())
        own = {r.item_id: r.audit_prob for r in ctx.store.reviews("c")}
        weight = [1 / own[item.id] for item in items]
        naive.append(np.average(shown, weights=weight) - right.mean())
    assert np.mean(naive) > 0.02, "later audits hold fewer of the difficult texts"
    assert abs(np.mean(errors)) < 0.005


def test_a_text_as_suspect_as_the_suspects_had_its_chance_in_every_round_that_left_it():
    ctx, items, _ = campaign(0, rounds=2, tied=True)
    audits = {r.item_id: r for r in ctx.store.reviews("c") if r.reason == "audit"}
    share = EVALUATED_FRAC / 0.5
    measures = {
        r: share * np.mean([a.audit_prob for a in audits.values() if a.round_id == r])
        for r in (1, 2)
    }
    ever = {1: measures[1], 2: 1 - (1 - measures[1]) * (1 - measures[2])}
    weight = truth_of(ctx, items).weight
    np.testing.assert_allclose(1 / weight, [ever[audits[item.id].round_id] for item in items])
