"""The plan: what the LLM will cost, without asking it."""

import numpy as np
import pytest
from campaigns import make, texts

from connectors.llm.label_trie import LabelTrie
from loop.llm.ask import take_votes
from loop.llm.cost_plan import four_chars_a_token, plan_annotation, plan_lines
from loop.llm.prompts import freeze_variants
from loop.next_round import open_campaign
from loop.ports import ClassProbs, no_progress
from loop.report.status import campaign_status, status_lines

DEMOS = [{"text": "fine example", "label": "good"}, {"text": "sad example", "label": "bad"}]


class CountingLLM:
    """Computes a shared prefix once, as a prefix cache does; a token is a character."""

    revision = "counting"

    def __init__(self):
        self.seen = set()

    def most_tokens(self, variant, items):
        tokens = [len(variant.prefix) + len(variant.suffix(i.text)) for i in items]
        return np.array(tokens), np.zeros(len(items), dtype=np.int64)

    def annotate(self, variant, items):
        tokens = np.array([len(variant.suffix(i.text)) for i in items], dtype=np.int64)
        if variant.hash not in self.seen:
            self.seen.add(variant.hash)
            tokens[0] += len(variant.prefix)
        lean = np.array([[0.5 + 0.3 * np.sin(len(i.id) + v) for v in (0, 1)] for i in items])
        n = len(items)
        return ClassProbs(lean / lean.sum(axis=1, keepdims=True), np.zeros(n), tokens)


def characters(found):
    return np.array([len(text) for text in found], dtype=np.int64)


def campaign(tmp_path, **prompt):
    ctx = make(
        tmp_path,
        rows=texts(120),
        annotator={"kind": "local_lm", "usd_per_million_tokens": 2.0},
        prompt={"shots": 2, "variants": 3, "demonstrations": DEMOS, **prompt},
        budget={"labels": 30, "usd": 5.0},
    )
    ctx.__dict__["annotator"] = CountingLLM()
    open_campaign(ctx)
    return ctx


def plan(ctx, count=characters):
    return plan_annotation(ctx.config, ctx.store, "counting", count=count)


def test_the_plan_comes_true_to_the_token(tmp_path):
    ctx = campaign(tmp_path, calls_per_item=0)
    told = plan(ctx)
    assert not ctx.store.variants("c", "counting")  # nothing is frozen by looking
    items = ctx.store.items("c", "pool")
    variants = freeze_variants(ctx.config, ctx.store, "counting")
    take_votes(ctx.config, ctx.store, ctx.annotator, items, variants, progress=no_progress)
    spent = ctx.store.spent("c")
    assert (told.calls, told.tokens) == (spent.votes, spent.tokens)
    assert told.usd == pytest.approx(spent.usd)
    assert told.cap_usd == 5.0
    assert told.tokens_uncached == spent.tokens + sum(
        (len(items) - 1) * len(v.prefix) for v in variants
    )
    after = plan(ctx)
    assert (after.calls, after.tokens, after.stored) == (0, 0, spent.votes)
    assert after.cap_usd == pytest.approx(5.0 - spent.usd)


def test_a_cascade_plans_its_limit_and_tells_the_time_from_what_is_stored(tmp_path):
    ctx = campaign(tmp_path, calls_per_item=1.5)
    items = ctx.store.items("c", "pool")
    assert plan(ctx).calls == round(1.5 * len(items))
    assert plan(ctx).seconds is None
    variants = freeze_variants(ctx.config, ctx.store, "counting")
    take_votes(ctx.config, ctx.store, ctx.annotator, items[:10], variants[:1], progress=no_progress)
    told = plan(ctx)
    assert told.stored == 10
    assert told.calls == round(1.5 * len(items)) - 10
    timed, seconds = ctx.store.vote_times("c", "counting")
    assert told.seconds == pytest.approx(told.calls * seconds / timed)


def test_recorded_labels_are_free(tmp_path):
    ctx = make(tmp_path)
    open_campaign(ctx)
    told = plan_annotation(ctx.config, ctx.store, ctx.annotator.revision)
    assert (told.calls, told.tokens, told.usd) == (2 * told.texts, 0, 0.0)


def test_refreshed_examples_are_planned_for(tmp_path):
    told = plan(campaign(tmp_path, refresh="round"))
    assert "each later round asks every text again" in "\n".join(plan_lines(told))
    (tmp_path / "a").mkdir()
    told = plan(campaign(tmp_path / "a", refresh="better"))
    lines = "\n".join(plan_lines(told))
    assert "asks every text again if they are better" in lines
    assert f"at most {told.calls:,} to make" in lines


def test_the_plan_in_words(tmp_path):
    ctx = campaign(tmp_path, calls_per_item=0)
    lines = "\n".join(plan_lines(plan(ctx, None)))
    assert "counted as 4 characters each" in lines
    assert "3 prompts, at most 3.00 calls a text" in lines
    assert "$5.00 are left of budget.usd: enough" in lines
    assert "not known before the first answers" in lines
    assert list(four_chars_a_token(["", "abcd", "abcde"])) == [1, 1, 2]


def test_what_servers_charge_for_cached_and_written_tokens_is_planned(tmp_path):
    def planned(**prices):
        ctx = make(
            tmp_path,
            rows=texts(120),
            annotator={
                "kind": "openai_server",
                "base_url": "http://127.0.0.1:1",
                "usd_per_million_tokens": 2.0,
                **prices,
            },
            prompt={"shots": 2, "variants": 3, "demonstrations": DEMOS},
        )
        open_campaign(ctx)
        return plan(ctx)

    plain, free = planned(), planned(usd_per_million_cached_tokens=0.0)
    hits = plain.tokens_uncached - plain.tokens
    assert plain.usd == pytest.approx((plain.tokens_uncached + plain.calls) * 2.0 / 1e6)
    assert plain.usd - free.usd == pytest.approx(hits * 2.0 / 1e6)
    dear = planned(usd_per_million_output_tokens=10.0)
    assert dear.usd - plain.usd == pytest.approx(plain.calls * 8.0 / 1e6)
    voting = planned(votes_when_no_logprobs=10)  # ten times a label of four characters
    assert voting.usd - plain.usd == pytest.approx(plain.calls * 39 * 2.0 / 1e6)


def serving(tmp_path, labels=("bad", "good"), usd=5.0, **annotator):
    """The plan of a campaign with a server that takes $2 for a million tokens."""
    ctx = make(
        tmp_path,
        rows=texts(120),
        labels=[{"name": name} for name in labels],
        annotator={
            "kind": "openai_server",
            "base_url": "http://127.0.0.1:1",
            "usd_per_million_tokens": 2.0,
            **annotator,
        },
        prompt={"shots": 0, "variants": 1},
        budget={"labels": 30, "usd": usd},
    )
    open_campaign(ctx)
    return plan(ctx)


def test_labels_of_several_words_take_a_prompt_for_each_branch(tmp_path):
    short = serving(tmp_path)
    names = ("bad", "good", "very good", "very bad")
    long = serving(tmp_path, labels=names, usd_per_million_cached_tokens=0.2)
    trie = LabelTrie(((1,), (2,), (3, 2), (3, 1)), ends=(9,))
    assert (short.branches, long.branches) == (1, trie.prompts(128)) == (1, 6)
    assert long.tokens_uncached / long.calls > 5.5 * short.tokens_uncached / short.calls
    assert long.usd < long.usd_uncached
    assert "vLLM and llama.cpp, which read 6 prompts for each answer" in "\n".join(plan_lines(long))
    assert "Labels:" not in "\n".join(plan_lines(short))


@pytest.mark.parametrize("chat", [False, True])
def test_money_is_enough_only_where_the_last_answer_can_still_be_set_aside(tmp_path, chat):
    told = serving(tmp_path, chat=chat)
    just = serving(tmp_path, usd=told.usd_uncached * 1.001, chat=chat)
    ample = serving(tmp_path, usd=told.usd_uncached + told.most_usd, chat=chat)
    said = [plan_lines(each)[-1] for each in (just, ample)]
    assert "it may stop before the end, because until an answer is there the most" in said[0]
    assert said[1].endswith("enough")


def test_the_plan_and_the_status_tell_what_was_spent(tmp_path):
    ctx = campaign(tmp_path)
    assert not any(line.startswith("Spent") for line in plan_lines(plan(ctx)))
    variants = freeze_variants(ctx.config, ctx.store, "counting")
    items = ctx.store.items("c", "pool")
    take_votes(ctx.config, ctx.store, ctx.annotator, items, variants, progress=no_progress)
    spent = ctx.store.spent("c")
    assert "Money:   none, because nothing is left to ask" in plan_lines(plan(ctx))
    told = next(line for line in plan_lines(plan(ctx)) if line.startswith("Spent"))
    assert f"{spent.votes:,} calls, {spent.tokens:,} tokens" in told
    assert f"${spent.usd:,.2f}" in told
    status = "\n".join(status_lines(campaign_status(ctx.config, ctx.store)))
    assert f"{spent.votes:,} LLM answers ({spent.tokens:,} tokens," in status
