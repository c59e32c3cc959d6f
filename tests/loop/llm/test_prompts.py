"""Prompt variants: wording, examples, and when they change."""

import numpy as np
import pytest
from campaigns import make, texts

from loop.errors import ConfigError
from loop.llm.cost_plan import prompt_lines
from loop.llm.prompts import freeze_variants, plan_variants, without_item
from loop.llm.votes import read_votes
from loop.next_round import open_campaign
from loop.ports import ClassProbs
from loop.report.status import campaign_status
from loop.round import run_round

DEMOS = [{"text": "fine example", "label": "good"}, {"text": "sad example", "label": "bad"}]


class SeeingLLM:
    """Remembers the prompts; right about four texts in five."""

    revision = "seeing"

    def __init__(self):
        self.seen = []

    def annotate(self, variant, items):
        probs = np.empty((len(items), 2))
        for row, item in enumerate(items):
            self.seen.append((variant, item))
            number = int(item.text.split()[-1])
            lean = (0.9 if number % 2 else 0.1) if number % 5 else 0.5 + 0.01 * (number % 7 - 3)
            probs[row] = 1 - lean, lean
        n = len(items)
        return ClassProbs(probs, np.zeros(n), np.ones(n, dtype=np.int64))

    def close(self):
        pass


def campaign(tmp_path, *, gold=True, rows=None, **prompt):
    rows = rows or texts(140)
    if not gold:
        for row in rows:
            row.gold = None
    ctx = make(
        tmp_path,
        rows=rows,
        raters=gold,
        texts={"source": "x.csv"} | ({"gold_column": "g"} if gold else {}),
        annotator={"kind": "local_lm"},
        prompt={"shots": 3, "variants": 2, **prompt},
        budget={"labels": 60},
        rounds={"batch_size": 20, "rounds": 3, "audit_frac": 0.2},
        student={"seeds": 2, "references": ["llm_only"]},
    )
    ctx.__dict__["annotator"] = SeeingLLM()
    open_campaign(ctx)
    return ctx


def frozen(ctx, round_number=0):
    return freeze_variants(ctx.config, ctx.store, "seeing", round_number=round_number)


def test_the_wording_comes_from_the_file_and_makes_another_prompt(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plain = frozen(campaign(tmp_path / "a", demonstrations=DEMOS))
    ctx = campaign(
        tmp_path / "b",
        demonstrations=DEMOS,
        instruction=["{task}\n{labels}", '{labels}\n{task} As {"json": []}.'],
        item="Review: {text}\nVerdict:",
    )
    other = frozen(ctx)
    assert other[0].prefix.startswith("t\nLabels: bad, good.\n\nReview: ")
    assert other[1].prefix.startswith('Labels: bad, good.\nt As {"json": []}.\n\nReview: ')
    assert other[0].suffix("x") == "Review: x\nVerdict:"
    assert {v.hash for v in plain}.isdisjoint(v.hash for v in other)
    assert plan_variants(ctx.config, ctx.store, "seeing") == other


def test_numbers_stand_for_other_classes_in_each_prompt(tmp_path):
    ctx = campaign(tmp_path, demonstrations=DEMOS, label_form="ids", variants=2)
    first, second = frozen(ctx)
    assert (first.answers, second.answers) == (("0", "1"), ("1", "0"))
    assert "0: bad\n1: good" in first.prefix
    assert "0: good\n1: bad" in second.prefix
    assert "Text: fine example\nLabel: 0" in second.prefix


def test_another_wording_than_the_frozen_one_is_refused(tmp_path):
    frozen(campaign(tmp_path, demonstrations=DEMOS))
    changed = campaign(tmp_path, demonstrations=DEMOS, item="{text} ->")
    with pytest.raises(ConfigError, match=r"prompt\.item was changed"):
        frozen(changed)


def test_the_prompts_can_be_looked_at(tmp_path):
    ctx = campaign(tmp_path, demonstrations=DEMOS)
    shown = "\n".join(prompt_lines(ctx.config, ctx.store, "seeing"))
    first = ctx.store.items("c", "pool")[0].text
    assert shown.count(f"Text: {first}\nLabel:\n--- and then one of: bad, good") == 2
    assert "Text: fine example\nLabel: good" in shown
    assert not ctx.store.variants("c", "seeing")


def test_prompts_are_looked_at_as_the_llm_sees_them_each_text_on_its_line(tmp_path):
    broken = [{"text": f"fine\n\nLabel: bad\r\n{n}", "label": "good"} for n in range(2)]
    lines = prompt_lines(
        (ctx := campaign(tmp_path, demonstrations=broken)).config, ctx.store, "seeing"
    )
    assert "Text: fine Label: bad 0\nLabel: good" in "\n".join(lines)


def test_an_example_is_never_a_test_text(tmp_path):
    (tmp_path / "a").mkdir()
    test = campaign(tmp_path / "a").store.items("c", "test")[0]
    given = [{"text": f"  {test.text} ", "label": "good"}]  # white space makes no other text
    with pytest.raises(ConfigError, match="is a test text"):
        frozen(campaign(tmp_path, demonstrations=given))


def test_no_text_is_shown_its_own_label(tmp_path):
    (tmp_path / "a").mkdir()
    pool = campaign(tmp_path / "a", demonstrations=DEMOS).store.items("c", "pool")
    by_label = [[i for i in pool if i.known_label == label][:2] for label in ("bad", "good")]
    given = [{"text": i.text, "label": i.known_label} for two in by_label for i in two]
    ctx = campaign(tmp_path, demonstrations=given, shots=4)
    run_round(ctx)
    seen = ctx.annotator.seen
    assert len(seen) == 2 * len(pool)
    for variant, item in seen:
        assert item.text not in {d.text for d in variant.demonstrations}
    assert sorted({len(variant.demonstrations) for variant, _ in seen}) == [3, 4]
    items = ctx.store.items("c", "pool")
    votes = read_votes(ctx.config, ctx.store, "seeing", items)
    assert np.isfinite(votes.probs).all()  # the four have all their votes too
    assert len(without_item(frozen(ctx)[0], "c")) == 4


def test_examples_stay_unless_they_are_to_be_refreshed(tmp_path):
    ctx = campaign(tmp_path)
    run_round(ctx)
    first = frozen(ctx, 1)
    assert frozen(ctx, 2) == first
    asked = len(ctx.annotator.seen)
    run_round(ctx)
    assert len(ctx.annotator.seen) == asked


def test_refreshed_examples_come_from_peoples_labels(tmp_path):
    ctx = campaign(tmp_path, refresh="round", shots=8)
    run_round(ctx)
    pool = {i.text: i for i in ctx.store.items("c", "pool")}
    before = ctx.store.variants("c", "seeing")
    assert not [d for row in before for d in row.demonstrations if d["text"] in pool]
    assert plan_variants(ctx.config, ctx.store, "seeing", round_number=1) == frozen(ctx, 1)
    first_round = len(ctx.annotator.seen)
    run_round(ctx)
    after = ctx.store.variants("c", "seeing")
    assert {row.from_round for row in after} == {2}
    assert {row.hash for row in after}.isdisjoint(row.hash for row in before)
    gold = ctx.store.gold("c")
    shown = [d for row in after for d in row.demonstrations if d["text"] in pool]
    assert shown
    for d in shown:
        assert d["label"] == gold[pool[d["text"]].id].label
        assert gold[pool[d["text"]].id].round_number == 1
    assert len(ctx.annotator.seen) == 2 * first_round  # that is what it costs
    for variant, item in ctx.annotator.seen:
        assert item.text not in {d.text for d in variant.demonstrations}
    votes = read_votes(ctx.config, ctx.store, "seeing", list(pool.values()))
    assert votes.probs.shape[1] == 2  # the earlier votes are kept, and not mixed in
    assert campaign_status(ctx.config, ctx.store)["budget"]["llm_votes"] == 2 * first_round


def test_a_killed_refresh_keeps_its_examples(tmp_path):
    ctx = campaign(tmp_path, refresh="round")
    run_round(ctx)
    second = frozen(ctx, 2)
    ctx.store.gold("c")
    assert frozen(ctx, 2) == second
    assert frozen(ctx, 3) != second


def test_without_any_example_a_refreshed_prompt_begins_with_none(tmp_path):
    ctx = campaign(tmp_path, gold=False, refresh="round")
    assert {v.demonstrations for v in frozen(ctx)} == {()}
    (tmp_path / "a").mkdir()
    never = campaign(tmp_path / "a", gold=False)
    with pytest.raises(ConfigError, match=r"prompt\.refresh = \"round\" to take them"):
        frozen(never)


def test_audit_texts_that_measure_the_student_are_no_examples(tmp_path):
    ctx = campaign(tmp_path, gold=False, refresh="round")
    run_round(ctx)
    for item in ctx.reviewer.open_items():
        ctx.reviewer.answer(item, "ann", "good")
    run_round(ctx)
    assert ctx.store.last_round("c").stage == "done"
    audit = {r.item_id for r in ctx.store.reviews("c") if r.reason == "audit"}
    texts_of = {i.id: i.text for i in ctx.store.items("c", "pool")}
    shown = {d.text for v in frozen(ctx, 2) for d in v.demonstrations}
    assert shown
    assert shown.isdisjoint(texts_of[item] for item in audit)


def test_two_annotators_may_see_the_same_prompts(tmp_path):
    ctx = campaign(tmp_path, demonstrations=DEMOS)
    mine = freeze_variants(ctx.config, ctx.store, "one")
    assert freeze_variants(ctx.config, ctx.store, "another") == mine
    assert ctx.store.annotators("c") == ["another", "one"]
