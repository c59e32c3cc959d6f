"""Other examples are tried where people labelled, and ask every text only where they are better."""

import numpy as np
import pytest
from campaigns import make, texts

from loop.llm.new_examples import compare
from loop.next_round import open_campaign
from loop.ports import ClassProbs
from loop.round import run_round

GIVEN = [{"text": "fine example", "label": "good"}, {"text": "sad example", "label": "bad"}]


class KilledError(Exception):
    pass


class SwayedLLM:
    """Right about a share of the texts that depends on whose examples it sees."""

    revision = "swayed"

    def __init__(self, *, first, later):
        self.first, self.later = first, later
        self.asked = []
        self.dies_after = None

    def annotate(self, variant, items):
        given = {d["text"] for d in GIVEN}
        first = {d.text for d in variant.demonstrations} <= given
        share = self.first if first else self.later
        probs = np.empty((len(items), 2))
        for row, item in enumerate(items):
            if self.dies_after is not None and len(self.asked) >= self.dies_after:
                raise KilledError
            self.asked.append((first, variant.hash, item.id))
            number = int(item.text.split()[-1])
            truth = number % 2  # what the people of these tests say
            right = number * 7 % 100 < 100 * share
            said = truth if right else 1 - truth
            probs[row] = np.where(np.arange(2) == said, 0.8, 0.2)
        return ClassProbs(probs, np.zeros(len(items)), np.ones(len(items), dtype=np.int64))

    def close(self):
        pass


def campaign(tmp_path, *, first, later, batch=44, rounds=2):
    news = []
    ctx = make(
        tmp_path,
        rows=texts(240),
        annotator={"kind": "local_lm"},
        prompt={"shots": 2, "variants": 2, "refresh": "better", "demonstrations": GIVEN},
        budget={"labels": 150},
        rounds={"batch_size": batch, "rounds": rounds, "audit_frac": 0.5},
        student={"seeds": 2, "references": ["llm_only"]},
    )
    ctx.__dict__["annotator"] = SwayedLLM(first=first, later=later)
    ctx.__dict__["say"] = news.append
    open_campaign(ctx)
    return ctx, news


def later_calls(ctx):
    return [item for first, _, item in ctx.annotator.asked if not first]


def audited(ctx, round_number=1):
    (of_round,) = [r.id for r in ctx.store.rounds("c") if r.number == round_number]
    reviews = ctx.store.reviews("c")
    return {r.item_id for r in reviews if (r.round_id, r.reason) == (of_round, "audit")}


def test_better_examples_ask_every_text_again(tmp_path):
    ctx, news = campaign(tmp_path, first=0.55, later=0.95)
    run_round(ctx)
    assert not later_calls(ctx)
    run_round(ctx)
    variants = ctx.store.variants("c", "swayed")
    assert {v.from_round for v in variants} == {2}
    pool = {key.id for key in ctx.store.keys("c", "pool")}
    # the texts of the trial are asked with the others, not once more
    assert sorted(later_calls(ctx)) == sorted([*pool, *pool])
    (told,) = [line for line in news if "other examples were tried" in line]
    assert told.startswith("Round 2: ")
    assert told.endswith("They answer better, so every text is asked again.")


def test_examples_that_are_not_better_cost_a_trial_and_no_more(tmp_path):
    ctx, news = campaign(tmp_path, first=0.75, later=0.7, rounds=3)
    run_round(ctx)
    before = ctx.store.variants("c", "swayed")
    run_round(ctx)
    assert ctx.store.variants("c", "swayed") == before
    audit = audited(ctx)
    assert len(audit) == 22
    # suspects say nothing: they were chosen because the prompts in use seemed wrong
    assert set(later_calls(ctx)) == audit
    assert len(later_calls(ctx)) == 2 * len(audit)
    (told,) = [line for line in news if "other examples were tried" in line]
    assert "no text is asked again" in told
    run_round(ctx)  # the third round draws others, and tries these
    assert set(later_calls(ctx)) == audit | audited(ctx, 2)
    assert ctx.store.variants("c", "swayed") == before


def test_few_labels_are_no_trial(tmp_path):
    ctx, news = campaign(tmp_path, first=0.55, later=0.95, batch=20)
    run_round(ctx)
    run_round(ctx)
    assert not later_calls(ctx)
    assert [line for line in news if "xamples" in line] == [
        "Round 2: the prompts stay. Other examples are tried once people have labelled 20 texts"
        " that were drawn at random (now 10)."
    ]


@pytest.mark.parametrize("after", [1, 30, 60, 200])
def test_a_trial_that_is_killed_goes_on_and_asks_nothing_twice(tmp_path, after):
    ctx, _ = campaign(tmp_path, first=0.55, later=0.95)
    run_round(ctx)
    ctx.annotator.dies_after = len(ctx.annotator.asked) + after
    with pytest.raises(KilledError):
        run_round(ctx)
    ctx.annotator.dies_after = None
    run_round(ctx)
    assert ctx.store.last_round("c").stage == "done"
    paid = ctx.store.voted("c", "swayed")
    pool = len(ctx.store.keys("c", "pool"))
    assert {h: int(there.sum()) for h, there in paid.items()} == dict.fromkeys(paid, pool)
    assert len(paid) == 4  # two prompts at first, two later: the trial's are those that stay


def test_the_comparison_is_paired_and_leaves_out_what_was_not_answered():
    gold = np.array([0, 1, 0, 1, 0])
    right = np.where(np.eye(2)[gold] == 1, 0.9, 0.1)
    half = np.full((5, 2), 0.5)
    half[4] = np.nan
    tried = compare(right, half, gold)
    assert (tried.n, tried.right) == (4, 1.0)
    assert tried.gain == pytest.approx(np.log(0.9 / 0.5))
    assert tried.better
    assert not compare(half, right, gold).better
    assert not compare(right, right, gold).better
    assert compare(right, np.full((5, 2), np.nan), gold) is None
    sure = np.array([[1.0, 0.0]] * 5)  # one confident error does not weigh endlessly
    assert compare(sure, half, gold).gain == pytest.approx(
        np.mean([np.log(1 / 0.5), np.log(0.02 / 0.5)])
    )
