"""What the campaign file's student section makes the main path ask of a student."""

from dataclasses import replace

import pytest
from campaigns import make, texts
from fakes import CentroidStudent
from pydantic import ValidationError

from loop.next_round import open_campaign, why_finished
from loop.round import run_round


class Asked(CentroidStudent):
    """Notes what it is asked for."""

    def __init__(self):
        self.fits = []

    def fit(self, train, eval_texts, labels, seeds, *, start=None, **more):
        self.fits.append({"dev": train.dev, "start": dict(start), "keep": dict(more["keep"])})
        super().fit(train, eval_texts, labels, seeds, start=start, **more)


def run_with(tmp_path, rows=None, rounds=2, **student):
    ctx = make(
        tmp_path,
        rows=rows,
        rounds={"batch_size": 15, "rounds": rounds, "audit_frac": 0.2},
        student={"seeds": 2, "references": ["llm_only"]} | student,
    )
    asked = Asked()
    ctx.parts = replace(ctx.parts, student=lambda: asked)
    open_campaign(ctx)
    while why_finished(ctx) is None:
        run_round(ctx)
    return ctx, asked.fits


def test_a_warm_start_gives_each_seed_its_model_of_the_last_round(tmp_path):
    ctx, (first, reference, second) = run_with(tmp_path, keep_seeds=True, warm_start=True)
    models = tmp_path / "runs" / "models"
    assert first["start"] == reference["start"] == {}
    assert second["start"] == first["keep"]
    assert second["start"] == {0: models / "round-1", 1: models / "round-1-seed-1"}
    assert second["keep"] == {0: models / "round-2", 1: models / "round-2-seed-1"}
    ctx.store.close()


def test_without_warm_start_every_round_starts_anew(tmp_path):
    ctx, fits = run_with(tmp_path, keep_seeds=True)
    assert [fit["start"] for fit in fits] == [{}, {}, {}]
    ctx.store.close()


def test_a_warm_start_needs_the_models(tmp_path):
    with pytest.raises(ValidationError, match="set keep_seeds = true"):
        make(tmp_path, student={"warm_start": True})


def test_a_round_that_changes_no_label_is_trained_and_measured_too(tmp_path):
    ctx = make(
        tmp_path,
        rows=texts(wrong=0.0),
        strategy={"signals": ["entropy"], "repair": "keep"},
        student={"seeds": 2, "references": []},
    )
    open_campaign(ctx)
    while why_finished(ctx) is None:
        run_round(ctx)
    assert ["loop" in r.metrics.arms for r in ctx.store.rounds("c")] == [True, True]
    assert len({r.label_set for r in ctx.store.runs("c")}) == 1
    ctx.store.close()


def test_the_best_epoch_is_chosen_on_known_texts_of_split_dev(tmp_path):
    rows = texts(200)
    for place in ("best", "last"):
        (tmp_path / place).mkdir()
    ctx, fits = run_with(tmp_path / "best", rows=rows, rounds=1, checkpoint="best")
    dev = ctx.store.items("c", "dev")
    assert len(dev) > 20
    for fit in fits:
        assert list(fit["dev"].texts) == [i.text for i in dev]
        assert [ctx.config.label_names[c] for c in fit["dev"].y] == [i.known_label for i in dev]
    pool = {i.text for i in ctx.store.items("c", "pool")}
    assert not pool & set(fits[0]["dev"].texts)
    best = {r.label_set for r in ctx.store.runs("c")}
    ctx.store.close()
    ctx, fits = run_with(tmp_path / "last", rows=rows, rounds=1)
    assert [fit["dev"] for fit in fits] == [None] * 2
    assert ctx.store.items("c", "dev") == []  # recorded labels need no examples
    assert not best & {r.label_set for r in ctx.store.runs("c")}
    ctx.store.close()
