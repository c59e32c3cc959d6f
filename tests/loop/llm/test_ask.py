"""Asking the LLM: what is asked, what is stored, and where it stops."""

import signal
from collections import deque
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
from campaigns import make, stored_votes, texts
from sqlalchemy import delete

from loop.campaign.tables import ContentFree
from loop.errors import AnnotatorError, NoRoomError, Stopped
from loop.llm.ask import CONTENT_FREE, calls_limit, retry_unanswered, take_votes, unanswered_line
from loop.llm.prompts import freeze_variants, stored_variants
from loop.llm.votes import mean_vote, read_votes
from loop.next_round import open_campaign
from loop.ports import ClassProbs, no_progress
from loop.prompt import Demonstration
from loop.report.status import campaign_status, status_lines
from loop.round import run_stage

DEMOS = [
    {"text": f"{word} example", "label": label}
    for word, label in (("fine", "good"), ("sad", "bad"))
]


class DoubtfulLLM:
    """Sure of most texts; of every sixth, its variants say this or that."""

    revision = "doubtful"

    def __init__(self, mute=(), dies_after=None, tokens=10):
        self.asked = []
        self.mute, self.dies_after, self.tokens = set(mute), dies_after, tokens

    def annotate(self, variant, items):
        if self.dies_after is not None and len(self.asked) >= self.dies_after:
            raise KeyboardInterrupt
        probs = np.empty((len(items), 2))
        for row, item in enumerate(items):
            self.asked.append((variant.index, item.id))
            number = int(item.text.split()[-1])
            lean = 0.97 if number % 2 else 0.03
            if number % 6 == 0:
                lean = 0.5 + (0.1 if (number // 6 + variant.index) % 3 else -0.1)
            probs[row] = (np.nan, np.nan) if number in self.mute else (1 - lean, lean)
        n = len(items)
        muted = {i.id: "it was mute" for i in items if int(i.text.split()[-1]) in self.mute}
        return ClassProbs(
            probs, np.zeros(n), np.full(n, self.tokens, dtype=np.int64), problems=muted
        )

    def most_tokens(self, variant, items):
        return np.full(len(items), self.tokens), np.zeros(len(items), dtype=np.int64)

    def close(self):
        pass


def campaign(tmp_path, llm, *, n=300, **sections):
    settings = {
        "annotator": {"kind": "local_lm", "usd_per_million_tokens": 1000.0},
        "prompt": {"shots": 2, "variants": 5, "demonstrations": DEMOS, "calls_per_item": 1.5},
    }
    ctx = make(tmp_path, rows=texts(n), **(settings | sections))
    ctx.__dict__["annotator"] = llm
    open_campaign(ctx)
    return ctx


def annotate(ctx):
    items = ctx.store.items("c", "pool")
    variants = freeze_variants(ctx.config, ctx.store, ctx.annotator.revision)
    left = take_votes(ctx.config, ctx.store, ctx.annotator, items, variants, progress=no_progress)
    return left, items


def stored(ctx):
    return set(stored_votes(ctx.store))


def test_the_cascade_asks_every_text_once_and_doubtful_ones_again(tmp_path):
    llm = DoubtfulLLM()
    ctx = campaign(tmp_path, llm)
    _, items = annotate(ctx)
    asked_first = [item for variant, item in llm.asked if variant == 0]
    assert sorted(asked_first) == sorted(i.id for i in items)
    assert len(items) < len(llm.asked) <= 1.5 * len(items)
    assert len(set(llm.asked)) == len(llm.asked)
    doubtful = {i.id for i in items if int(i.text.split()[-1]) % 6 == 0}
    again = [item for variant, item in llm.asked if variant > 0]
    assert doubtful <= set(again)
    votes = read_votes(ctx.config, ctx.store, llm.revision, items)
    assert votes.probs.shape == (len(items), 5, 2)
    assert np.isnan(votes.probs[:, 1:]).any()
    assert np.isfinite(votes.posterior).all()


@pytest.mark.parametrize("dies_after", [1, 241, 260, 290])
def test_killed_in_the_cascade_it_goes_on_without_asking_twice(tmp_path, dies_after):
    ctx = campaign(tmp_path, DoubtfulLLM(dies_after=dies_after))
    with pytest.raises(KeyboardInterrupt):
        annotate(ctx)
    before = stored(ctx)
    ctx.__dict__["annotator"] = again = DoubtfulLLM()
    _, items = annotate(ctx)
    hashes = {v.position: v.hash for v in ctx.store.variants("c", "doubtful")}
    asked_again = {(item, hashes[variant]) for variant, item in again.asked}
    assert not asked_again & before
    assert len(before) + len(again.asked) == len(stored(ctx)) <= 1.5 * len(items)


class WaitingLLM(DoubtfulLLM):
    """Has several lots under way, and hands them over when it is stopped."""

    def annotate_stream(self, variant, lots):
        under_way, stopped = deque(), None
        for lot in lots:
            under_way.append(lot)
            try:
                if len(under_way) == 3:
                    done = under_way.popleft()
                    yield done, self.annotate(variant, done)
            except Stopped as exc:
                stopped = exc
                break
        for lot in under_way:
            yield lot, self.annotate(variant, lot)
        if stopped is not None:
            raise stopped


@pytest.mark.parametrize("when", ["before", "within", "after"])
@pytest.mark.parametrize("llm", [DoubtfulLLM, WaitingLLM])
def test_a_request_to_end_while_answers_are_stored_loses_none(tmp_path, monkeypatch, llm, when):
    prompt = {"shots": 2, "variants": 1, "demonstrations": DEMOS}
    monkeypatch.setattr("loop.llm.ask.CHUNK", 64)
    ctx = campaign(tmp_path, stopping := llm(), n=600, prompt=prompt)
    real = ctx.store.add_votes

    def add_votes(*args, **kwargs):
        if when != "after":
            signal.raise_signal(signal.SIGTERM)
        real(*args, **kwargs)
        if when != "before":
            signal.raise_signal(signal.SIGTERM)

    def stop(number, _frame):
        raise Stopped(number)

    monkeypatch.setattr(ctx.store, "add_votes", add_votes)
    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(Stopped):
            annotate(ctx)
    finally:
        signal.signal(signal.SIGTERM, before)
    asked = {item for _, item in stopping.asked}
    assert 0 < len(asked) < len(ctx.store.keys("c", "pool"))
    assert len(stored_votes(ctx.store)) == len(asked)
    assert {item for item, _ in stored(ctx)} == asked
    monkeypatch.setattr(ctx.store, "add_votes", real)
    ctx.__dict__["annotator"] = again = llm()
    _, items = annotate(ctx)
    assert not asked & {item for _, item in again.asked}
    assert len(stored_votes(ctx.store)) == len(items)


def test_paid_answers_wait_for_room_on_a_full_disk_and_free_ones_do_not(tmp_path, monkeypatch):
    monkeypatch.setattr("loop.llm.ask.time.sleep", lambda seconds: full.pop())
    said = []
    for usd, full in ((1000.0, [1, 2, 3]), (0.0, [1])):
        (folder := tmp_path / f"{usd}").mkdir()
        annotator = {"kind": "local_lm", "usd_per_million_tokens": usd}
        ctx = campaign(folder, llm := DoubtfulLLM(), annotator=annotator, **ONE_PROMPT)
        real = ctx.store.add_votes

        def add_votes(*args, real=real, full=full, **kwargs):
            if full:
                raise NoRoomError("The disk is full.")
            real(*args, **kwargs)

        monkeypatch.setattr(ctx.store, "add_votes", add_votes)
        variants = freeze_variants(ctx.config, ctx.store, "doubtful")
        items = ctx.store.items("c", "pool")
        how = {"progress": no_progress, "say": said.append}
        if not usd:
            with pytest.raises(NoRoomError):
                take_votes(ctx.config, ctx.store, llm, items, variants, **how)
            continue
        take_votes(ctx.config, ctx.store, llm, items, variants, **how)
        assert len(stored(ctx)) == len(items) == len(llm.asked)
        assert ctx.store.spent("c").usd == pytest.approx(0.01 * len(items))
        told = "The disk is full or fails, so that the LLM's answers cannot be stored."
        assert [line[: len(told)] for line in said] == [told]


def test_paid_answers_are_kept_where_the_disk_is_full_when_more_are_asked_for(
    tmp_path, monkeypatch
):
    full = [1, 2, 3]
    monkeypatch.setattr("loop.llm.ask.time.sleep", lambda seconds: full.pop())
    monkeypatch.setattr("loop.llm.ask.PAID_CHUNK", 8)
    annotator = {"kind": "local_lm", "usd_per_million_tokens": 1000.0}
    budget = {"labels": 30, "usd": 1000.0}
    ctx = campaign(tmp_path, llm := WaitingLLM(), annotator=annotator, budget=budget, **ONE_PROMPT)
    real = ctx.store.begin_calls

    def begin_calls(*args, **kwargs):
        if full and len(llm.asked) > 40:
            raise NoRoomError("The disk is full.")
        return real(*args, **kwargs)

    monkeypatch.setattr(ctx.store, "begin_calls", begin_calls)
    variants = freeze_variants(ctx.config, ctx.store, llm.revision)
    items = ctx.store.items("c", "pool")
    how = {"progress": no_progress, "say": lambda line: None}
    take_votes(ctx.config, ctx.store, llm, items, variants, **how)
    assert not full
    assert len(stored(ctx)) == len(items) == len(llm.asked)


@pytest.mark.parametrize("calls", [0, 5, 9])
def test_all_prompts_on_everything_stays_available(tmp_path, calls):
    llm = DoubtfulLLM()
    prompt = {"shots": 2, "variants": 5, "demonstrations": DEMOS, "calls_per_item": calls}
    ctx = campaign(tmp_path, llm, n=60, prompt=prompt)
    _, items = annotate(ctx)
    assert len(set(llm.asked)) == len(llm.asked) == 5 * len(items)
    assert calls_limit(ctx.config, len(items), 5) is None


def test_recorded_labels_cost_nothing_and_are_all_read(tmp_path):
    ctx = make(tmp_path)
    run_stage(ctx, "annotate")
    assert len(stored(ctx)) == 2 * len(ctx.store.items("c", "pool"))


def test_texts_that_the_llm_cannot_answer_are_counted_and_asked_again_next_time(tmp_path):
    llm = DoubtfulLLM(mute=range(0, 300, 12))
    ctx = campaign(tmp_path, llm)
    left, items = annotate(ctx)
    mute = {i.id for i in items if int(i.text.split()[-1]) % 12 == 0}
    assert left >= len(mute) > 0
    votes = read_votes(ctx.config, ctx.store, llm.revision, items)
    assert {i.id for i, ok in zip(items, votes.answered, strict=True) if not ok} == mute
    ctx.__dict__["annotator"] = cured = DoubtfulLLM()
    assert annotate(ctx)[0] == 0
    assert mute <= {item for _, item in cured.asked}


def test_a_mute_llm_is_an_error_in_one_sentence(tmp_path):
    ctx = campaign(tmp_path, DoubtfulLLM(mute=range(300)))
    with pytest.raises(AnnotatorError, match="no usable answer to any of"):
        annotate(ctx)
    assert not stored(ctx)


def test_the_cap_on_money_stops_before_the_next_chunk_and_keeps_what_is_paid(tmp_path, monkeypatch):
    monkeypatch.setattr("loop.llm.ask.CHUNK", 32)
    llm = DoubtfulLLM()  # a cent an answer
    ctx = campaign(tmp_path, llm, budget={"labels": 30, "usd": 1.0})
    with pytest.raises(AnnotatorError, match=r"\$1\.00 is spent.*of budget\.usd = 1\.00"):
        annotate(ctx)
    spent = ctx.store.spent("c")
    assert (spent.votes, spent.usd, spent.tokens) == (100, pytest.approx(1.0), 1000)
    richer = campaign(tmp_path, llm, budget={"labels": 30, "usd": 100.0})
    _, items = annotate(richer)
    assert len(set(llm.asked)) == len(llm.asked) <= 1.5 * len(items)


@pytest.mark.parametrize(("usd", "blocks"), [(0.0, 2), (1.0, 8)])
def test_answers_that_come_quickly_are_stored_together_unless_they_are_paid(
    tmp_path, monkeypatch, usd, blocks
):
    monkeypatch.setattr("loop.llm.ask.CHUNK", 32)
    monkeypatch.setattr("loop.llm.ask.STORED_AFTER_S", 60.0)
    annotator = {"kind": "local_lm", "usd_per_million_tokens": usd}
    prompt = {"shots": 2, "variants": 1, "demonstrations": DEMOS, "calls_per_item": 0}
    ctx = campaign(tmp_path, DoubtfulLLM(), annotator=annotator, prompt=prompt)
    _, items = annotate(ctx)
    assert len(stored(ctx)) == len(items) == 240
    # the first ones are stored at once: nobody knows yet whether the LLM answers at all
    assert len(list(ctx.store.votes("c", "doubtful"))) == blocks


def test_demonstrations_come_from_the_file(tmp_path):
    ctx = campaign(tmp_path, DoubtfulLLM(), n=60)
    variants = freeze_variants(ctx.config, ctx.store, "doubtful")
    assert set(variants[0].demonstrations) == {
        Demonstration("fine example", "good"),
        Demonstration("sad example", "bad"),
    }


def test_the_ledger_holds_the_seconds_of_every_vote(tmp_path):
    ctx = campaign(tmp_path, DoubtfulLLM(), n=60)
    assert ctx.store.vote_times("c", "doubtful") == (0, 0.0)
    annotate(ctx)
    timed, seconds = ctx.store.vote_times("c", "doubtful")
    assert timed == len(stored(ctx))
    assert 0 < seconds < 60


def test_where_two_prompts_contradict_each_other_the_first_decides():
    a, b, gap = [1.0, 0.0], [0.0, 1.0], [np.nan, np.nan]
    votes = np.array([[a, b, gap], [b, a, gap], [b, a, a], [gap, b, gap]])
    mean = mean_vote(votes)
    assert mean.argmax(axis=1).tolist() == [0, 1, 0, 1]
    np.testing.assert_allclose(mean.sum(axis=1), 1.0)


# what brought no answer


def test_what_was_not_answered_is_recorded_with_its_reason_and_its_cost(tmp_path):
    ctx = campaign(tmp_path, DoubtfulLLM(mute=range(0, 300, 12)))
    left, items = annotate(ctx)
    failed = ctx.store.unanswered("c", "doubtful")
    mute = {i.id for i in items if int(i.text.split()[-1]) % 12 == 0}
    assert len(failed) == left
    assert {row.item_id for row in failed} == mute
    assert {(row.reason, row.tokens, round(row.usd, 6)) for row in failed} == {
        ("it was mute", 10, 0.01)
    }
    spent = ctx.store.spent("c")
    assert spent.tokens == 10 * (spent.votes + left)
    assert spent.usd == pytest.approx(0.01 * (spent.votes + left))
    assert spent.seconds > 0
    line = unanswered_line(ctx.store, "c", "doubtful")
    assert f"Missing LLM answers: {left}, to {len(mute)} texts (most often: it was mute)" in line
    told = campaign_status(ctx.config, ctx.store)
    assert told["budget"]["llm_unanswered"] == left
    assert "`goldloop annotate --retry`" in "\n".join(status_lines(told))


def test_a_retry_asks_what_failed_and_nothing_else(tmp_path):
    ctx = campaign(tmp_path, DoubtfulLLM(mute=range(0, 300, 12)))
    left, _ = annotate(ctx)
    before = stored(ctx)
    failed = {row.item_id for row in ctx.store.unanswered("c", "doubtful")}
    half_cured = DoubtfulLLM(mute=range(0, 300, 24))

    def retry(llm):
        variants = stored_variants(ctx.config, ctx.store, "doubtful")
        return retry_unanswered(ctx.config, ctx.store, llm, variants, progress=no_progress)

    asked, still = retry(half_cured)
    assert asked == left == len(half_cured.asked)
    assert {item for _, item in half_cured.asked} == failed
    assert 0 < still < asked
    assert len(stored(ctx)) == len(before) + asked - still
    assert len(ctx.store.unanswered("c", "doubtful")) == still
    assert retry(DoubtfulLLM()) == (still, 0)
    assert ctx.store.unanswered("c", "doubtful") == []
    assert unanswered_line(ctx.store, "c", "doubtful") is None
    assert retry(DoubtfulLLM()) == (0, 0)


# texts without content


class BiasedLLM(DoubtfulLLM):
    """Right about every text, but for an inclination that texts without content show."""

    def annotate(self, variant, items):
        lean = np.array([self.lean(i.text) for i in items]) + 1.2
        p = 1 / (1 + np.exp(-lean))
        self.asked += [(variant.index, i.text) for i in items]
        n = len(items)
        return ClassProbs(np.stack([1 - p, p], axis=1), np.zeros(n), np.full(n, 10, dtype=np.int64))

    @staticmethod
    def lean(text):
        if text in CONTENT_FREE:
            return 0.0
        return 0.7 if int(text.split()[-1]) % 2 else -0.7


def contextual(tmp_path, llm):
    prompt = {"shots": 2, "variants": 2, "demonstrations": DEMOS, "calibrate": "contextual"}
    return campaign(tmp_path, llm, n=60, prompt=prompt)


def test_contextual_calibration_asks_empty_texts_once_and_mends_the_labels(tmp_path):
    llm = BiasedLLM()
    ctx = contextual(tmp_path, llm)
    _, items = annotate(ctx)
    annotate(ctx)
    asked = [text for _, text in llm.asked]
    assert [asked.count(text) for text in CONTENT_FREE] == [2, 2, 2]  # once a variant
    votes = read_votes(ctx.config, ctx.store, "doubtful", items)
    gold = np.array([int(i.text.split()[-1]) % 2 for i in items])
    assert (votes.probs[:, 0].argmax(axis=1) == 1).all()  # raw, all lean one way
    assert (votes.y_llm == gold).all()
    spent = ctx.store.spent("c")
    assert spent.votes == 2 * len(items)
    assert spent.tokens == 10 * (2 * len(items) + 6)


def test_without_the_empty_texts_there_is_no_contextual_view(tmp_path):
    ctx = contextual(tmp_path, BiasedLLM())
    _, items = annotate(ctx)
    with ctx.store.transaction() as session:
        session.execute(delete(ContentFree))
    with pytest.raises(AnnotatorError, match="answers to empty texts are not stored"):
        read_votes(ctx.config, ctx.store, "doubtful", items)


# money


def test_each_kind_of_token_has_its_price(tmp_path):
    class Serving(DoubtfulLLM):
        def annotate(self, variant, items):
            answer = super().annotate(variant, items)
            n = len(items)
            return replace(
                answer,
                tokens=np.full(n, 12, dtype=np.int64),
                cached_tokens=np.full(n, 100, dtype=np.int64),
                output_tokens=np.full(n, 2, dtype=np.int64),
            )

    prices = {
        "kind": "local_lm",
        "usd_per_million_tokens": 1.0,
        "usd_per_million_cached_tokens": 0.1,
        "usd_per_million_output_tokens": 5.0,
    }
    prompt = {"shots": 0, "variants": 1}
    ctx = campaign(tmp_path, Serving(), n=60, prompt=prompt, annotator=prices)
    annotate(ctx)
    spent = ctx.store.spent("c")
    assert spent.usd == pytest.approx(spent.votes * (10 * 1.0 + 100 * 0.1 + 2 * 5.0) / 1e6)
    (tmp_path / "b").mkdir()
    prices.pop("usd_per_million_cached_tokens")
    prices.pop("usd_per_million_output_tokens")
    plain = campaign(tmp_path / "b", Serving(), n=60, prompt=prompt, annotator=prices)
    annotate(plain)
    spent = plain.store.spent("c")
    assert spent.usd == pytest.approx(spent.votes * 112 / 1e6)


@pytest.mark.parametrize("usd", [0.005, 0.37, 1.0, 2.0])
def test_the_cap_is_never_passed(tmp_path, usd):
    llm = DoubtfulLLM()
    ctx = campaign(tmp_path, llm, budget={"labels": 30, "usd": usd})
    with pytest.raises(AnnotatorError, match=r"of budget\.usd = .*every vote so far is kept"):
        annotate(ctx)
    spent = ctx.store.spent("c")
    assert usd - 0.01 - 1e-6 < spent.usd <= usd + 1e-6
    assert spent.votes == len(llm.asked)


def test_the_first_question_is_not_asked_where_it_alone_may_cost_more_than_is_left(tmp_path):
    llm = DoubtfulLLM()
    ctx = campaign(tmp_path, llm, budget={"labels": 30, "usd": 0.0001})
    with pytest.raises(AnnotatorError, match="The next LLM answer may cost"):
        annotate(ctx)
    assert not llm.asked


ONE_PROMPT, TWO_PROMPTS = ({"prompt": {"variants": n, "shots": 0}} for n in (1, 2))


def test_the_first_block_tells_how_long_the_rest_will_take(tmp_path, monkeypatch):
    clock = count(step=0.5)  # a second for each block
    monkeypatch.setattr("loop.llm.ask.time.perf_counter", lambda: next(clock) * 256)
    told = {}
    for n, sections in ((600, {}), (150, ONE_PROMPT), (600, TWO_PROMPTS)):
        (folder := tmp_path / f"{n}-{len(sections)}").mkdir()
        ctx = campaign(folder, DoubtfulLLM(), n=n, **sections)
        said = told[n, bool(sections)] = []
        items = ctx.store.items("c", "pool")
        variants = freeze_variants(ctx.config, ctx.store, "doubtful")
        take_votes(
            ctx.config,
            ctx.store,
            ctx.annotator,
            items,
            variants,
            progress=no_progress,
            say=said.append,
        )
        ctx.store.close()
    start = "256 LLM answers took 128 seconds; the other "
    assert [line[: len(start) + 3] for line in told[600, False]] == [f"{start}464"]
    assert told[600, True][0].startswith(f"{start}704 will take about 6 minutes at that pace.")
    assert len(told[600, True]) == 1
    assert told[150, True] == []
