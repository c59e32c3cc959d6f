"""What strategies and students may not see: test texts, texts already sent, an item's own gold."""

import numpy as np
import pytest
from campaigns import make, texts

import loop.round as stages
from loop.measure.held_out import evaluation_items, held_out
from loop.next_round import open_campaign, why_finished
from loop.round import run_round
from loop.training_sets import arms_of, label_set_of
from strategies import STRATEGIES
from strategies.fuse import weighted_auroc
from strategies.pool import Pool
from strategies.signals.students import out_of_fold_probs


@pytest.mark.parametrize(
    ("signals", "seed"),
    [(["entropy"], 0), (["knn_disagreement", "learned_error"], 1)],
)
def test_no_test_text_and_no_text_already_sent_is_ever_offered(
    tmp_path, monkeypatch, signals, seed
):
    ctx = make(
        tmp_path,
        strategy={"signals": signals},
        rounds={"batch_size": 10, "rounds": 3, "audit_frac": 0.3, "seed": seed},
        student={"seeds": 2, "references": ["random"]},
    )
    open_campaign(ctx)
    ids = [i.id for i in ctx.store.items("c", "pool")]
    apart = {i.id for i in ctx.store.items("c", "test", "dev")}
    pools, offered = [], []

    def watched(name):
        def strategy(pool, rng):
            pools.append(pool)
            return STRATEGIES[name](pool, rng)

        return strategy

    def select_batch(suspicion, candidates, n, **options):
        sent = {r.item_id for r in ctx.store.reviews("c")}
        offered.append(({ids[row] for row in candidates}, sent))
        return real_select(suspicion, candidates, n, **options)

    real_select = stages.select_batch
    monkeypatch.setattr(stages, "suspicion_by", lambda name, *args: watched(name)(*args))
    monkeypatch.setattr(stages, "select_batch", select_batch)
    while why_finished(ctx) is None:
        run_round(ctx)
    assert len(offered) == 3
    for candidates, sent in offered:
        assert candidates == set(ids) - sent
    # Strategies see the pool's rows alone, and of gold only what people gave in earlier rounds.
    assert [int((pool.gold >= 0).sum()) for pool in pools] == [
        gold for gold in (0, 10, 20) for _ in signals
    ]
    assert {pool.n for pool in pools} == {len(ids)}
    assert apart
    for round_ in ctx.store.rounds("c"):
        assert not apart & set(ctx.store.scores(round_.id))
        assert not apart & {t.item_id for t in ctx.store.training_labels(round_.id)}
    assert not apart & set(ctx.store.gold("c"))


def test_audit_texts_train_where_test_texts_are_known_and_nowhere_else(tmp_path):
    for known in (True, False):
        rows = texts()
        if not known:
            for row in rows:
                row.gold = None
        folder = tmp_path / str(known)
        folder.mkdir()
        ctx = make(
            folder,
            raters=False,
            rows=rows,
            texts={"source": "x.csv", "gold_column": "g" if known else None},
            student={"seeds": 2, "references": ["llm_only"]},
        )
        run_round(ctx)
        for item in ctx.reviewer.open_items():
            ctx.reviewer.answer(item, "ann", "good")
        round_ = run_round(ctx)
        audits = {r.item_id for r in ctx.store.reviews("c") if r.reason == "audit"}
        weight = {t.item_id: t.weight for t in ctx.store.training_labels(round_.id)}
        assert audits
        assert {weight[i] for i in audits} == {1.0 if known else 0.0}
        suspects = {r.item_id for r in ctx.store.reviews("c")} - audits
        assert {weight[i] for i in suspects} == {1.0}
        # What the loop's students are compared with has learned the same texts.
        apart = held_out(ctx)
        assert apart == (set() if known else audits)
        for labels in arms_of(ctx, round_, apart).values():
            learned = dict(zip(labels.ids, labels.weight, strict=True))
            assert {learned[i] for i in audits} == {1.0 if known else 0.0}
            assert min(learned[i] for i in set(learned) - audits) > 0
        runs = {run.arm: run.label_set for run in ctx.store.runs("c") if run.seed == 0}
        for arm, labels in arms_of(ctx, round_, apart).items():
            assert runs[arm] == label_set_of(ctx, labels, evaluation_items(ctx))


@pytest.mark.parametrize("name", ["learned_error", "student_disagreement", "knn_disagreement"])
def test_where_nothing_can_be_learned_gold_does_not_tell_on_itself(name):
    """Gold that is pure chance must not be found by scores of the very items that have it."""
    aurocs = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        n, k = 500, 3
        embeddings = rng.normal(size=(n, 20)).astype(np.float32)
        y_llm, truth = rng.integers(k, size=(2, n))
        gold = np.where(rng.random(n) < 0.5, truth, -1)
        y = np.where(gold >= 0, gold, y_llm)
        pool = Pool(
            probs=np.full((n, 2, k), 1 / k),
            y_llm=y_llm,
            gold=gold,
            embeddings=embeddings,
            p_student=out_of_fold_probs(embeddings, y, np.ones(n), k, seeds=3, rng=rng),
        )
        rows = gold >= 0
        score = STRATEGIES[name](pool, rng)[rows]
        aurocs.append(weighted_auroc(score, (gold != y_llm)[rows], np.ones(int(rows.sum()))))
    assert np.mean(aurocs) == pytest.approx(0.5, abs=0.06)
