"""A label that comes while a campaign runs: at whatever stage, nothing is lost, all of it works."""

import json

import pytest
from campaigns import LABELS, make, texts

from connectors.llm.recorded import RecordedAnnotator
from loop.campaign.tables import STAGES
from loop.cli.build import open_store
from loop.errors import StoreError
from loop.llm.ask import retry_unanswered
from loop.llm.prompts import stored_variants
from loop.next_round import open_campaign, open_round, why_finished
from loop.ports import no_progress, show_nothing
from loop.report.collect import write_outputs
from loop.round import RUN, run_stage
from loop.serve.progress import campaign_progress

MORE = [{"name": name} for name in (*LABELS, "odd")]
ROUNDS = {"batch_size": 15, "rounds": 2, "audit_frac": 0.5}
STUDENT = {"seeds": 2, "references": ["llm_only"]}


def rows():
    """Every fifth text is of a class that the campaign does not know at first, and the LLM says so
    in the second column, and now and then in both."""
    found = texts()
    for i, row in enumerate(found):
        row.split = "test" if i % 6 < 2 else "pool"
        row.gold = row.gold if row.split == "test" else None
        if i % 5 == 0:
            row.meta |= {"llm_2": "odd"} | ({"llm": "odd"} if i % 10 == 0 else {})
    return found


def campaign(folder, **sections):
    settings = {
        "texts": {"source": "x.csv", "gold_column": "g", "split_column": "s"},
        "rounds": ROUNDS,
        "student": STUDENT,
    }
    return make(folder, raters=False, rows=rows(), **(settings | sections))


def answer_all(ctx):
    """One person labels what is open, with what the campaign offers."""
    for item_id in ctx.reviewer.open_items():
        text = next(i.text for i in ctx.store.items("c") if i.id == item_id)
        number = int(text.split()[-1])
        odd = "odd" in ctx.config.label_names and (number % 5 == 0 or number % 4 == 0)
        label = "odd" if odd else LABELS[number % 2]
        ctx.reviewer.answer(item_id, "ann", label)


def step(ctx, round_):
    if round_.stage == "pull":
        answer_all(ctx)
    assert RUN[round_.stage](ctx, round_)


def finish(ctx):
    while why_finished(ctx) is None:
        step(ctx, open_round(ctx))


def variants_of(ctx):
    return ctx.store.variants("c", ctx.annotator.revision)


@pytest.mark.parametrize(
    ("number", "stage"),
    [
        *(QUICK := [(1, "annotate"), (1, "select"), (1, "train"), (2, "pull"), (2, "train")]),
        *(
            pytest.param(number, stage, marks=pytest.mark.long)
            for number in (1, 2)
            for stage in STAGES[:-1]
            if (number, stage) not in QUICK
        ),
    ],
)
def test_a_label_may_come_at_any_stage(tmp_path, stage, number):
    before = campaign(tmp_path)
    open_campaign(before)
    while (round_ := open_round(before)).stage != stage or round_.number != number:
        step(before, round_)
    gold = before.store.gold("c")
    before.store.close()

    said = []
    after = campaign(tmp_path, labels=MORE)
    after.say = said.append
    open_campaign(after)
    assert [line[:14] for line in said] == ["New label: odd"]
    finish(after)
    open_campaign(after)
    known = ("no LLM answer", "are not comparable, because of labels.name")
    assert len(said) == 1 + sum(any(part in line for part in known) for line in said)

    rounds = after.store.rounds("c")
    assert [r.stage for r in rounds] == ["done", "done"]
    found = after.store.gold("c")
    assert {i: g.label for i, g in gold.items()}.items() <= {
        i: g.label for i, g in found.items()
    }.items()
    late = number == 2 and STAGES.index(stage) > STAGES.index("pull")
    assert ("odd" in {g.label for g in found.values()}) != late
    # the round that was asking when the label came, or the next one, knew it
    asked = number if stage == "annotate" else number + 1
    assert {v.from_round for v in variants_of(after)} == {asked if asked <= 2 else 1}
    knows = {r.number: r.number >= asked for r in rounds}
    labels = {
        s.llm_label for r in rounds if knows[r.number] for s in after.store.scores(r.id).values()
    }
    assert ("odd" in labels) == any(knows.values())
    for r in rounds:
        trained_after = (r.number, STAGES.index("repair")) >= (number, STAGES.index(stage))
        widths = {len(t.probs) for t in after.store.training_labels(r.id)}
        assert widths == {3 if trained_after else 2}
    assert len(rounds[-1].metrics.per_class_n) == 3
    report = json.loads((after.config.out / "rounds.json").read_text())
    for row in report["rows"]:
        assert [c["label"] for c in row["per_class"]] == [*LABELS, "odd"]
        assert all(len(line) == 3 for line in row["confusion"])
    after.store.close()


def test_a_report_before_the_next_round_knows_the_label_by_name_alone(tmp_path):
    before = campaign(tmp_path, rounds=ROUNDS | {"rounds": 1})
    open_campaign(before)
    finish(before)
    before.store.close()
    after = campaign(tmp_path, labels=MORE)
    open_campaign(after)
    page = write_outputs(after.config, after.store).read_text()
    assert "odd" in page
    (row,) = [
        r
        for r in json.loads((after.config.out / "rounds.json").read_text())["rows"]
        if r["arm"] == "loop"
    ]
    assert [c["recall"] is None for c in row["per_class"]] == [False, False, True]
    assert row["confusion"][2] == [0.0, 0.0, 0.0]
    after.store.close()


def test_an_answer_that_was_unreadable_counts_once_its_label_is_known(tmp_path):
    before = campaign(tmp_path)
    open_campaign(before)
    run_stage(before, "annotate")
    for stage in ("score", "select", "push"):
        run_stage(before, stage)
    item = before.reviewer.open_items()[0]
    before.reviewer.answer(item, "ann", "odd")
    run_stage(before, "pull")
    (kept,) = before.store.annotations("c")
    assert kept.label is None
    assert kept.problem == "unknown label 'odd'"
    before.store.close()
    after = campaign(tmp_path, labels=MORE)
    answer_all(after)
    run_stage(after, "pull")
    assert after.store.gold("c")[item].label == "odd"
    assert all(a.problem is None for a in after.store.annotations("c"))
    after.store.close()


def test_live_progress_that_began_before_the_label_counts_its_answers(tmp_path):
    """`goldloop serve` keeps the campaign file as it was read when it started."""
    before = campaign(tmp_path, people={"overlap": 2})
    for stage in ("annotate", "score", "select", "push"):
        run_stage(before, stage)
    after = campaign(tmp_path, labels=MORE, people={"overlap": 2})
    for item, label in zip(after.reviewer.open_items(), ("odd", "bad", "odd", "bad"), strict=False):
        for person in ("ann", "bob"):
            after.reviewer.answer(item, person, label)
    run_stage(after, "pull")
    found = campaign_progress(before.config, before.store)
    assert found["agreement"] == 1.0
    assert [person["name"] for person in found["people"]] == ["ann", "bob"]
    before.store.close()
    after.store.close()


def test_an_interrupted_annotation_begins_again_with_the_new_prompts(tmp_path, monkeypatch):
    before = campaign(tmp_path)
    open_campaign(before)
    real = RecordedAnnotator.annotate

    def dies_at_the_second(self, variant, items):
        if variant.index == 1:
            raise KeyboardInterrupt
        return real(self, variant, items)

    with monkeypatch.context() as patch:
        patch.setattr(RecordedAnnotator, "annotate", dies_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            run_stage(before, "annotate")
    old = {v.hash for v in variants_of(before)}
    taken = before.store.spent("c").votes
    before.store.close()
    after = campaign(tmp_path, labels=MORE)
    run_stage(after, "annotate")
    assert not old & {v.hash for v in variants_of(after)}
    assert len(variants_of(after)) == 2
    pool = after.store.item_count("c", "pool")
    assert taken
    assert after.store.spent("c").votes == taken + 2 * pool  # the old votes are kept
    after.store.close()


def test_what_failed_is_asked_again_as_it_was_asked_first(tmp_path):
    """With two labels the second column's answer "odd" is none; three labels do not change that."""
    before = campaign(tmp_path)
    run_stage(before, "annotate")
    revision = before.annotator.revision
    failed = len(before.store.unanswered("c", revision))
    assert failed
    before.store.close()
    after = campaign(tmp_path, labels=MORE)
    open_campaign(after)
    frozen = stored_variants(after.config, after.store, revision)
    assert [len(v.labels) for v in frozen] == [2, 2]
    with show_nothing("", 0):
        asked, still = retry_unanswered(
            after.config, after.store, after.annotator, frozen, progress=no_progress
        )
    assert (asked, still) == (failed, failed)
    after.store.close()


@pytest.mark.parametrize(
    "names", [("bad",), ("bad", "odd", "good"), ("bad", "fine"), ("good", "bad")]
)
def test_all_other_changes_are_refused(tmp_path, names):
    before = campaign(tmp_path)
    open_campaign(before)
    before.store.close()
    names = (*names, "x")[: max(2, len(names))]
    changed = campaign(tmp_path, labels=[{"name": name} for name in names])
    with pytest.raises(StoreError, match="new ones go to the end"):
        open_campaign(changed)
    changed.store.close()
    # commands that only read say the same
    with pytest.raises(StoreError, match="new ones go to the end"), open_store(changed.config):
        pass
