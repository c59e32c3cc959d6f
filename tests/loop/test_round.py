"""The main path on quick parts: whole campaigns, killed and resumed at every line that matters."""

import json
from dataclasses import replace

import numpy as np
import pytest
from campaigns import make, make_small, stored_votes, texts
from fakes import CentroidStudent

from loop.campaign.context import Parts
from loop.campaign.metrics import NoLlmLabel
from loop.campaign.store import Store
from loop.campaign.tables import STAGES
from loop.deliver.export import final_labels
from loop.errors import ConfigError, StageError, StudentError
from loop.next_round import open_campaign, open_round, what_next, why_finished
from loop.ports import OwnAnswers
from loop.report.collect import campaign_view
from loop.report.status import campaign_status, status_lines
from loop.round import RUN, close_early, repaired_labels, run_round, run_stage, train
from loop.studies.validate import open_validation


def finish(ctx):
    open_campaign(ctx)
    while why_finished(ctx) is None:
        run_round(ctx)


def test_a_campaign_runs_to_its_end(tmp_path):
    ctx = make(tmp_path)
    finish(ctx)
    rounds = ctx.store.rounds("c")
    assert [r.stage for r in rounds] == ["done", "done"]
    assert [r.metrics.gold for r in rounds] == [15, 30]
    gold = ctx.store.gold("c")
    truth = {i.id: i.known_label for i in ctx.store.items("c")}
    assert {k: g.label for k, g in gold.items()} == {k: truth[k] for k in gold}
    assert set(rounds[0].metrics.arms) == {"loop", "llm_only", "random", "all_gold"}
    assert rounds[0].metrics.pushed_wrong["suspect"].n == 12
    assert (tmp_path / "runs" / "report.html").exists()
    assert (tmp_path / "runs" / "rounds.json").exists()
    reviews = ctx.store.reviews("c")
    assert len({r.item_id for r in reviews}) == 30
    assert all(0 < r.inclusion_prob <= 1 for r in reviews)
    assert not {r.item_id for r in reviews} & {i.id for i in ctx.store.items("c", "test")}


def test_once_trained_arms_are_not_trained_again(tmp_path):
    ctx = make(tmp_path)
    finish(ctx)
    arms = [(r.round_id, r.arm) for r in ctx.store.runs("c")]
    assert arms.count((1, "llm_only")) == 3
    assert arms.count((2, "llm_only")) == 0
    assert arms.count((2, "random")) == 3


def test_the_random_control_may_be_trained_in_the_last_round_only(tmp_path):
    student = {"seeds": 3, "references": ["llm_only", "random"], "random_rounds": "last"}
    ctx = make(tmp_path / "rounds", student=student)
    finish(ctx)
    assert [(r.round_id, r.arm) for r in ctx.store.runs("c") if r.arm == "random"] == [
        (2, "random")
    ] * 3
    spent = make(tmp_path / "budget", student=student, budget={"labels": 15})
    finish(spent)
    (only,) = spent.store.rounds("c")
    assert set(only.metrics.arms) == {"loop", "llm_only", "random"}


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


def fingerprint(ctx):
    """What a campaign amounts to, whatever happened on the way."""
    return {
        "votes": sorted(stored_votes(ctx.store)),
        "reviews": [(r.item_id, r.round_id, r.reason, r.rank) for r in ctx.store.reviews("c")],
        "gold": sorted((g.item_id, g.label) for g in ctx.store.gold("c").values()),
        "annotations": sorted(a.annotation_id for a in ctx.store.annotations("c")),
        "runs": sorted((r.round_id, r.arm, r.seed, r.label_set) for r in ctx.store.runs("c")),
    }


ONE_ROUND = {"batch_size": 15, "rounds": 1, "audit_frac": 0.2}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Fingerprints of a campaign, by its number of rounds."""
    found = {}
    for count in (1, 2):
        folder = tmp_path_factory.mktemp("undisturbed")
        ctx = make_small(folder, rounds=ONE_ROUND | {"rounds": count})
        finish(ctx)
        found[count] = fingerprint(ctx)
        ctx.store.close()
    return found


SAMPLE = ("push", "pull", "train")  # what people are asked, what they said, what students cost


@pytest.mark.parametrize(
    ("stage", "moment", "count"),
    # what is done before any other stage is stored
    [(STAGES[0], "before", 1), (STAGES[2], "after", 2)]
    + [(stage, "in the transaction", 1) for stage in SAMPLE]
    + [
        pytest.param(stage, "in the transaction", 1, marks=pytest.mark.long)
        for stage in STAGES[:-1]
        if stage not in SAMPLE
    ],
)
def test_killed_around_any_stage_it_resumes_to_the_same_campaign(
    tmp_path, monkeypatch, undisturbed, stage, moment, count
):
    """A sample of the moments; in the transactions of the other stages it dies in the long run."""
    rounds = ONE_ROUND | {"rounds": count}
    ctx = make_small(tmp_path, rounds=rounds)
    advance = Store.advance
    real = RUN[stage]

    def dying_stage(ctx, round_):
        if moment == "before":
            raise Killed
        done = real(ctx, round_)
        if moment == "after":
            raise Killed
        return done

    def dying_advance(self, session, round_, next_stage):
        if round_.stage == stage and moment == "in the transaction":
            raise Killed
        advance(self, session, round_, next_stage)

    with monkeypatch.context() as patch:
        patch.setitem(RUN, stage, dying_stage)
        patch.setattr(Store, "advance", dying_advance)
        with pytest.raises(Killed):
            finish(ctx)
    ctx.store.close()
    again = make_small(tmp_path, rounds=rounds)
    finish(again)
    assert fingerprint(again) == undisturbed[count]


def test_killed_between_two_seeds_only_the_missing_ones_are_trained(tmp_path, undisturbed):
    ctx = make_small(tmp_path, rounds=ONE_ROUND)
    fit = CentroidStudent.fit

    class Dying(CentroidStudent):
        def fit(self, *args, on_seed, **more):
            def once(result):
                on_seed(result)
                raise Killed

            fit(self, *args, on_seed=once, **more)

    ctx.parts = Parts(**{**vars(ctx.parts), "student": Dying})
    with pytest.raises(Killed):
        finish(ctx)
    assert [r.seed for r in ctx.store.runs("c")] == [0]
    again = make_small(tmp_path, rounds=ONE_ROUND)
    finish(again)
    assert fingerprint(again) == undisturbed[1]


def test_stages_one_by_one_end_where_run_ends(tmp_path, undisturbed):
    for _ in range(2):
        for stage in ("annotate", "score", "select", "push", "pull", "train"):
            ctx = make_small(tmp_path)
            run_stage(ctx, stage)
            ctx.store.close()
    assert fingerprint(make_small(tmp_path)) == undisturbed[2]


def test_a_stage_out_of_turn_says_what_comes_first(tmp_path):
    ctx = make(tmp_path)
    with pytest.raises(StageError, match="run `goldloop annotate` first"):
        run_stage(ctx, "train")
    assert ctx.store.rounds("c") == []
    run_stage(ctx, "annotate")
    said = []
    ctx.say = said.append
    run_stage(ctx, "annotate")
    assert said == ["Round 1 has passed annotate; next: `goldloop score`."]


def test_people_who_are_still_labelling_are_waited_for(tmp_path):
    ctx = make(tmp_path, raters=False)
    round_ = run_round(ctx)
    assert round_.stage == "pull"
    found = campaign_status(ctx.config, ctx.store)
    assert found["this_round"].items() >= {"chosen": 15, "sent": 15, "back": 0, "out": 15}.items()
    with pytest.raises(StageError, match="No text of this round is answered"):
        close_early(ctx, open_round(ctx))
    items = ctx.reviewer.open_items()
    for item in items[:4]:
        ctx.reviewer.answer(item, "ann", "good")
    assert run_round(ctx).stage == "pull"
    close_early(ctx, open_round(ctx))
    assert run_round(ctx).stage == "done"
    assert len(ctx.store.gold("c")) == 4
    # A late answer and a correction reach the next round.
    ctx.reviewer.answer(items[4], "ann", "bad")
    ctx.reviewer.answer(items[0], "ann", "bad")
    run_round(ctx)
    for item in ctx.reviewer.open_items():
        ctx.reviewer.answer(item, "ann", "good")
    run_round(ctx)
    gold = ctx.store.gold("c")
    assert gold[items[4]].label == "bad"
    assert gold[items[0]].label == "bad"
    assert "gold labels" in "\n".join(status_lines(campaign_status(ctx.config, ctx.store)))


@pytest.mark.parametrize("rounds", [1, 2])
def test_late_answers_are_read_when_no_round_is_open(tmp_path, rounds):
    """After the last round, and between two."""
    ctx = make(
        tmp_path, raters=False, rounds={"batch_size": 15, "rounds": rounds, "audit_frac": 0.2}
    )
    run_round(ctx)
    corrected, first, second, *_ = ctx.reviewer.open_items()
    for item in ctx.reviewer.open_items()[:-2]:
        ctx.reviewer.answer(item, "ann", "good")
    run_round(ctx)
    close_early(ctx, open_round(ctx))
    assert run_round(ctx).stage == "done"
    late = ctx.reviewer.open_items()[0]
    before, gold = ctx.store.rounds("c"), ctx.store.gold("c")
    said = []
    ctx.say = said.append
    ctx.store.read_anew("c")
    assert run_stage(ctx, "pull").stage == "done"
    assert said == ["No answer has changed since round 1 stopped waiting for people."]
    ctx.reviewer.answer(corrected, "ann", "bad")
    ctx.reviewer.answer(late, "ann", "bad")
    ctx.reviewer.answer(first, "ann", None)
    ctx.store.read_anew("c")
    run_stage(ctx, "pull")
    assert "read before: 3; gold labels that changed: 3." in said[-1]
    assert ctx.store.rounds("c") == before
    now = ctx.store.gold("c")
    assert (now[corrected].label, now[corrected].round_number) == ("bad", 1)
    assert (now[late].label, now[late].round_number) == ("bad", 1)
    assert first not in now
    assert now[second] == gold[second]
    reviews = ctx.store.reviews_by_item("c")
    assert reviews[late].closed_at is not None
    assert (reviews[late].outcome, reviews[corrected].outcome) == ("single", "single")


@pytest.mark.parametrize("stage", ["repair", "train", "measure"])
def test_answers_that_come_while_students_are_trained_are_kept_for_the_next_round(tmp_path, stage):
    ctx = make(tmp_path, raters=False)
    run_round(ctx)
    early, late = ctx.reviewer.open_items()[:2]
    ctx.reviewer.answer(early, "ann", "good")
    run_stage(ctx, "pull")
    close_early(ctx, open_round(ctx))
    round_ = run_stage(ctx, "pull")
    while round_.stage != stage:
        RUN[round_.stage](ctx, round_)
    gold = ctx.store.gold("c")
    ctx.reviewer.answer(late, "ann", "bad")
    said = []
    ctx.say = said.append
    assert run_stage(ctx, "pull").stage == stage
    assert "read before: 1. Round 1 has its labels already" in said[-1]
    assert ctx.store.gold("c") == gold
    assert ctx.store.reviews_by_item("c")[late].closed_at is not None
    run_stage(ctx, "pull")
    assert said[-1].startswith("No answer has changed")
    while round_.stage != "done":
        RUN[round_.stage](ctx, round_)
    assert ctx.store.gold("c") == gold
    run_stage(ctx, "pull")
    assert "read before: 0; gold labels that changed: 1." in said[-1]
    assert ctx.store.gold("c")[late].label == "bad"


@pytest.mark.parametrize("label", ["good", None])
def test_a_text_whose_answers_were_all_deleted_is_like_one_that_nobody_answered(tmp_path, label):
    ctx = make(tmp_path, raters=False)
    run_round(ctx)
    items = ctx.reviewer.open_items()
    for item in items[1:]:
        ctx.reviewer.answer(item, "ann", "good")
    ctx.reviewer.answer(items[0], "ann", label, skipped=label is None)
    assert run_round(ctx).stage == "done"
    assert ctx.store.reviews_by_item("c")[items[0]].outcome == ("single" if label else "skipped")
    ctx.reviewer.answer(items[0], "ann", None)
    run_stage(ctx, "pull")
    assert ctx.store.reviews_by_item("c")[items[0]].outcome is None
    assert items[0] not in ctx.store.gold("c")
    notes = campaign_view(ctx.config, ctx.store).notes
    assert "1 text is still with people." in notes
    assert not any("came back without a gold label" in note for note in notes)


def test_deleted_answers_take_their_gold_with_them(tmp_path):
    ctx = make(tmp_path, raters=False)
    run_round(ctx)
    items = ctx.reviewer.open_items()
    for item in items:
        ctx.reviewer.answer(item, "ann", "good")
    run_round(ctx)
    ctx.reviewer.answer(items[0], "ann", None)
    run_round(ctx)
    for item in [i for i in ctx.reviewer.open_items() if i != items[0]]:
        ctx.reviewer.answer(item, "ann", "good")
    run_round(ctx)
    assert items[0] not in ctx.store.gold("c")
    assert len(ctx.store.gold("c")) == 29


def test_a_late_answer_lowers_the_confidence_of_a_label_that_stays(tmp_path):
    ctx = make(tmp_path, raters=False, people={"overlap": 3})
    run_round(ctx)
    items = ctx.reviewer.open_items()
    for item in items:
        for person in ("ann", "bob", "cem"):
            ctx.reviewer.answer(item, person, "good")
    ctx.reviewer.answer(items[0], "dee", "bad")
    run_round(ctx)
    before = ctx.store.gold("c")[items[0]]
    assert (before.label, before.how, before.confidence) == ("good", "majority", 0.75)
    ctx.reviewer.answer(items[0], "eve", "bad")
    run_round(ctx)
    for item in [i for i in ctx.reviewer.open_items() if i != items[0]]:
        for person in ("ann", "bob", "cem"):
            ctx.reviewer.answer(item, person, "good")
    run_round(ctx)
    after = ctx.store.gold("c")[items[0]]
    assert (after.label, after.how, after.confidence) == ("good", "majority", 0.6)
    assert after.round_number == before.round_number


def test_ties_and_skips_give_no_gold_but_close_the_text(tmp_path):
    ctx = make(tmp_path, raters=False, overlap=2)
    run_round(ctx)
    items = ctx.reviewer.open_items(2)
    for item in items:
        ctx.reviewer.answer(item, "ann", "good")
        ctx.reviewer.answer(item, "bob", "good")
    ctx.reviewer.answer(items[0], "bob", "bad")
    ctx.reviewer.answer(items[1], "ann", None, skipped=True)
    ctx.reviewer.answer(items[1], "bob", None, skipped=True)
    assert run_round(ctx).stage == "done"
    outcomes = {r.item_id: r.outcome for r in ctx.store.reviews("c")}
    assert (outcomes[items[0]], outcomes[items[1]]) == ("conflict", "skipped")
    assert len(ctx.store.gold("c")) == 13


def test_without_gold_texts_accuracy_comes_from_audit_items_kept_out_of_training(tmp_path):
    rows = texts()
    truth = {r.text: r.gold for r in rows}
    for row in rows:
        row.gold = None
    ctx = make(
        tmp_path,
        raters=False,
        rows=rows,
        texts={"source": "x.csv"},
        student={"seeds": 3},
    )
    for _ in range(2):
        run_round(ctx)
        by_id = {i.id: truth[i.text] for i in ctx.store.items("c")}
        for item in ctx.reviewer.open_items():
            ctx.reviewer.answer(item, "ann", by_id[item])
        assert run_round(ctx).stage == "done"
    last = ctx.store.rounds("c")[-1]
    assert last.metrics.accuracy_from == "audit"
    assert last.metrics.arms["loop"].metric("accuracy") is not None
    audits = {r.item_id for r in ctx.store.reviews("c") if r.reason == "audit"}
    weights = {t.item_id: t.weight for t in ctx.store.training_labels(last.id)}
    assert len(audits) == 6
    assert {weights[i] for i in audits} == {0.0}


def test_unanswered_texts_are_pushed_first_and_not_trained_on(tmp_path):
    rows = texts()
    for row in rows[:5]:
        row.meta = {"llm": "other", "llm_2": None}
    ctx = make(tmp_path, rows=rows, rounds={"batch_size": 15, "rounds": 1, "audit_frac": 0.0})
    finish(ctx)
    mute = {i.id for i in ctx.store.items("c", "pool") if i.meta["llm"] == "other"}
    pushed = [r.item_id for r in ctx.store.reviews("c")][: len(mute)]
    assert set(pushed) == mute


def test_export_says_where_each_label_comes_from(tmp_path):
    ctx = make(tmp_path)
    finish(ctx)
    rows = final_labels(ctx.config, ctx.store)
    assert len(rows) == len(ctx.store.items("c", "pool"))
    sources = [r["source"] for r in rows]
    assert sources.count("gold") == 30
    assert sources.count("llm") + sources.count("repaired") == len(rows) - 30
    assert all((r["label"] != r["llm_label"]) for r in rows if r["source"] == "repaired")
    assert all((r["label"] == r["llm_label"]) for r in rows if r["source"] == "llm")
    assert "repaired" in sources
    assert {r["how"] for r in rows if r["source"] == "gold"} == {"single"}


def test_a_text_without_an_llm_answer_has_no_llm_label_and_counts_neither_right_nor_wrong(tmp_path):
    rows = texts(n=200, wrong=0.0)  # where it answers, the LLM is always right
    mute = {row.text for row in rows[::3]}
    for row in rows:
        row.meta["llm"] = "other" if row.text in mute else row.gold
    ctx = make(
        tmp_path,
        rows=rows,
        annotator={"kind": "recorded", "columns": ["llm"]},
        budget={"labels": 60},
        rounds={"rounds": 1, "batch_size": 60, "audit_frac": 0.8},
    )
    said = []
    ctx.say = said.append
    finish(ctx)
    pool = ctx.store.items("c", "pool")
    without = {i.id for i in pool if i.text in mute}
    rows = {r["id"]: r for r in final_labels(ctx.config, ctx.store)}
    assert {i for i, r in rows.items() if r["llm_label"] is None} == without
    assert {i for i, r in rows.items() if r["llm_confidence"] is None} == without
    gold = set(ctx.store.gold("c"))
    assert {i for i, r in rows.items() if r["source"] == "none"} == without - gold
    assert {r["label"] for r in rows.values() if r["source"] == "none"} == {None}
    assert without & gold
    assert without - gold
    metrics = ctx.store.rounds("c")[0].metrics
    quality = metrics.label_quality
    assert quality.accuracy.value == 1.0
    assert {share.share for share in metrics.pushed_wrong.values()} == {0.0}
    assert quality.unanswered == NoLlmLabel(
        len(without), len(without) / len(pool), len(without - gold)
    )
    # labels that are missing are not "good enough" either
    assert quality.remaining_at_most >= len(without - gold) / len(pool)
    lines = status_lines(campaign_status(ctx.config, ctx.store))
    assert any(f"no label to {len(without)} texts" in line for line in lines)
    assert not any("--retry" in line for line in [*lines, *said])
    assert any("goldloop check" in line for line in said)


def test_a_pool_that_is_used_up_asks_for_texts_not_for_budget_alone(tmp_path):
    ctx = make(tmp_path, rows=texts(n=50), budget={"labels": 40}, rounds={"batch_size": 40})
    finish(ctx)
    assert ctx.store.open_texts("c", 1) == 0
    assert "every text of the pool has been sent" in why_finished(ctx)
    assert "add texts to the source and raise budget.labels" in what_next(ctx.config, ctx.store)


def test_validation_alone_leaves_no_model_to_take_along(tmp_path):
    ctx = make(tmp_path)
    open_validation(ctx, 500)
    run_round(ctx)
    assert "`goldloop export labels.csv`. To continue, raise" in what_next(ctx.config, ctx.store)


def test_money_stops_the_campaign_cleanly(tmp_path):
    ctx = make(tmp_path, budget={"labels": 30, "usd": 2.0, "usd_per_label": 0.1})
    finish(ctx)
    assert len(ctx.store.reviews("c")) == 20
    assert "$2.00 is spent" in (why_finished(ctx) or "") or "rounds are done" in (
        why_finished(ctx) or ""
    )


def test_a_changed_prompt_is_refused_before_it_costs_anything(tmp_path):
    ctx = make(tmp_path)
    run_stage(ctx, "annotate")
    votes = ctx.store.spent("c").votes
    ctx.store.close()
    again = make(tmp_path, campaign={"name": "c", "task": "another task"})
    with pytest.raises(ConfigError, match=r'campaign.task = "another task" cannot be changed now'):
        run_stage(again, "score")  # people would be asked another question than the LLM
    again.store.close()
    finish(make(tmp_path, rounds={"batch_size": 15, "rounds": 1, "audit_frac": 0.2}))
    changed = make(tmp_path, campaign={"name": "c", "task": "another task"})
    with pytest.raises(ConfigError, match="The stored answers are to the old prompt"):
        run_round(changed)
    assert changed.store.spent("c").votes == votes


class FlatStudent(CentroidStudent):
    """Answers its first class for everything, also for texts that it learned from."""

    trained = 0

    def fit(self, train, eval_texts, labels, seeds, *, on_seed, **options):
        def flat(result):
            type(self).trained += 1
            k, used = len(labels), train.weight > 0
            own = OwnAnswers(np.zeros(used.sum(), int), train.y[used], train.weight[used])
            on_seed(replace(result, probs=np.tile(np.eye(k)[0], (len(eval_texts), 1)), own=own))

        super().fit(train, eval_texts, labels, seeds, on_seed=flat, **options)


def test_a_student_that_learns_nothing_stops_the_round_after_its_first_seed(tmp_path):
    ctx = make(tmp_path, student={"seeds": 3, "lr": 1e-6, "references": ["llm_only"]})
    ctx.parts = replace(ctx.parts, student=FlatStudent)
    FlatStudent.trained = 0
    for _ in range(2):  # and again where nothing was changed
        with pytest.raises(StudentError) as stopped:
            run_round(ctx)
    assert "answers 'bad' for all" in str(stopped.value)
    assert "Set student.lr = 2e-05 (now 1e-06), which fits roberta-base" in str(stopped.value)
    assert FlatStudent.trained == 2
    assert ctx.store.runs("c") == []
    assert ctx.store.rounds("c")[-1].stage == "train"
    sent, votes = len(ctx.store.reviews("c")), ctx.store.spent("c").votes
    assert sent == 15
    ctx.store.close()
    ctx = make(tmp_path)  # another learning rate: a student that learns
    assert run_round(ctx).stage == "done"
    assert (len(ctx.store.reviews("c")), ctx.store.spent("c").votes) == (sent, votes)
    assert len([r for r in ctx.store.runs("c") if r.arm == "loop"]) == 3


def test_what_a_seed_learned_is_stored_and_told_and_judged_by_the_lowest_seed(tmp_path):
    class OneFlat(CentroidStudent):
        """Seeds end in the opposite order; one of them answers one class."""

        flat = 1

        def fit(self, train, eval_texts, labels, seeds, *, on_seed, **options):
            used, results = train.weight > 0, []
            super().fit(train, eval_texts, labels, seeds, on_seed=results.append, **options)
            for result in reversed(results):
                y = train.y[used].argmax(axis=1)
                answers = np.zeros_like(y) if result.seed == self.flat else y
                own = OwnAnswers(answers, train.y[used], train.weight[used])
                on_seed(replace(result, own=own))

    ctx = make(tmp_path, student={"seeds": 3, "references": []})
    ctx.parts = replace(ctx.parts, student=OneFlat)
    assert run_round(ctx).stage == "done"
    learned = {run.seed: run.learned for run in ctx.store.runs("c")}
    assert learned == {0: True, 1: False, 2: True}
    told = "1 of 3 students learned nothing from their labels (seed 1)"
    assert told in "\n".join(status_lines(campaign_status(ctx.config, ctx.store)))
    assert told in "\n".join(campaign_view(ctx.config, ctx.store).notes)
    ctx.store.close()
    ctx = make(tmp_path, student={"seeds": 3, "references": []})
    OneFlat.flat = 0
    ctx.parts = replace(ctx.parts, student=OneFlat)
    with pytest.raises(StudentError, match="learned nothing: seed 0 answers 'bad' for all"):
        run_round(ctx)
    assert len(ctx.store.runs("c")) == 3  # seeds that ended before the lowest are not kept
    ctx.store.close()
    go_on = {"seeds": 3, "references": [], "if_nothing_learned": "go on"}
    ctx = make(tmp_path, student=go_on)
    ctx.parts = replace(ctx.parts, student=OneFlat)
    train(ctx, ctx.store.last_round("c"))
    ctx.store.close()
    ctx = make(tmp_path, student={"seeds": 3, "references": []})  # and back again
    round_ = ctx.store.last_round("c")
    with pytest.raises(StudentError, match="seed 0 answers as if it had not seen its labels"):
        train(ctx, round_)
    ctx.store.close()


def test_told_to_go_on_the_round_shows_no_stability_anywhere(tmp_path):
    said = []
    go_on = {"seeds": 3, "references": ["llm_only"], "if_nothing_learned": "go on"}
    ctx = make(tmp_path, student=go_on)
    ctx.parts, ctx.say = replace(ctx.parts, student=FlatStudent), said.append
    for _ in range(2):
        assert run_round(ctx).stage == "done"
    assert any("A student that learned nothing: seed 0" in line for line in said)
    status = campaign_status(ctx.config, ctx.store)
    lines = "\n".join(status_lines(status))
    assert "measured (times 100): accuracy " in lines
    assert "The students give every test text the same label" in lines
    for word in ("alpha_k", "p_uc"):
        assert word not in lines.lower()
        assert status["metrics"][word]["value"] is None
    view = campaign_view(ctx.config, ctx.store)
    for row in view.rows:
        assert [row.metrics.get(key) for key in ("alpha_k", "p_uc", "churn")] == [None] * 3
        assert not any({"alpha_k", "p_uc"} & set(found) for found in row.against.values())
    assert view.frozen is None
    written = json.loads((ctx.config.out / "rounds.json").read_text())
    shown = [row["metrics"] for row in written["rows"]]
    assert len(shown) == 3
    assert all(metrics[key] is None for metrics in shown for key in ("alpha_k", "p_uc", "churn"))


class Judges(CentroidStudent):
    """Counts how often it judged labels; ``blind`` ones learn nothing."""

    judged, blind = 0, False

    def fit(self, train, eval_texts, labels, seeds, *, on_seed, draws=None, **options):
        def flat(result):
            y = train.y[train.weight > 0]
            own = OwnAnswers(np.zeros(len(y), dtype=int), y, train.weight[train.weight > 0])
            on_seed(replace(result, own=own) if self.blind else result)

        if draws is not None:
            type(self).judged += 1
            super().fit(train, eval_texts, labels, seeds, on_seed=flat, draws=draws, **options)
        else:
            super().fit(train, eval_texts, labels, seeds, on_seed=on_seed, **options)


FINE_TUNED = {"repair": "soft", "repair_students": "fine-tuned"}


def test_fine_tuned_students_judge_the_labels_once_a_round(tmp_path, monkeypatch):
    monkeypatch.setattr(Judges, "judged", 0)
    plain = make_small(tmp_path / "plain")
    ctx = make_small(tmp_path / "judged", strategy=FINE_TUNED)
    ctx.parts = replace(ctx.parts, student=Judges)
    for campaign in (plain, ctx):
        finish(campaign)
    assert Judges.judged == 2
    first, other = (c.store.all_training_labels(1) for c in (plain, ctx))
    np.testing.assert_array_equal(first.source == "gold", other.source == "gold")
    assert not np.allclose(first.probs, other.probs)
    again = repaired_labels(ctx, ctx.store.last_round("c"))
    assert Judges.judged == 2, "what they said of the same labels is kept"
    np.testing.assert_array_equal(again.probs, ctx.store.all_training_labels(2).probs)


def test_the_next_rounds_suspicion_hears_the_judges(tmp_path):
    """And is what it would be without them where their file is lost, which is said."""
    scores = {}
    for name, strategy in (("plain", {}), ("judged", FINE_TUNED), ("lost", FINE_TUNED)):
        said = []
        ctx = make_small(tmp_path / name, strategy=strategy)
        ctx.parts, ctx.say = replace(ctx.parts, student=Judges), said.append
        while run_round(ctx).stage != "done":
            pass
        if name == "lost":
            for path in (ctx.config.out / "cache").glob("label-judges-*"):
                path.unlink()
        while run_round(ctx).stage != "done":
            pass
        scores[name] = [ctx.store.all_scores(number).suspicion for number in (1, 2)]
        told = [line for line in said if "Suspicion goes without what they said in round 1" in line]
        assert bool(told) == (name == "lost")
    for name in ("judged", "lost"):
        np.testing.assert_array_equal(scores[name][0], scores["plain"][0])
    np.testing.assert_array_equal(scores["lost"][1], scores["plain"][1])
    assert not np.allclose(scores["judged"][1], scores["plain"][1])


def test_labels_are_repaired_without_judges_that_learned_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Judges, "blind", True)
    plain, said = make_small(tmp_path / "plain", rounds=ONE_ROUND), []
    ctx = make_small(tmp_path / "blind", rounds=ONE_ROUND, strategy=FINE_TUNED)
    ctx.parts, ctx.say = replace(ctx.parts, student=Judges), said.append
    for campaign in (plain, ctx):
        finish(campaign)
    told = [line for line in said if "labels are repaired without them" in line]
    assert len(told) == 1
    assert "student.epochs" in told[0]
    first, other = (c.store.all_training_labels(1) for c in (plain, ctx))
    np.testing.assert_array_equal(first.probs, other.probs)
