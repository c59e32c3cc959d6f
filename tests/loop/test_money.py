"""Everything that spends asks first: each spender at its edge, and what the messages say."""

from contextlib import suppress
from inspect import signature

import numpy as np
import pytest
from campaigns import make, texts
from sqlmodel import select

import loop.round
from connectors.llm.openai_server import OpenAIServerAnnotator
from loop.campaign.tables import LlmCalls
from loop.errors import AnnotatorError, StageError, Stopped
from loop.llm.ask import take_votes
from loop.llm.prompts import freeze_variants
from loop.money import MOST_TIMES, LlmPurse, TokenPrices, account, labels_left, texts_that_fit
from loop.next_round import open_campaign, why_finished
from loop.people.answers import withdraw_unanswered
from loop.ports import ClassProbs, no_progress
from loop.report.collect import campaign_view
from loop.report.status import campaign_status, status_lines
from loop.round import close_early, run_round, run_stage
from loop.studies.rivals import Renamed, ask_rival
from loop.studies.validate import open_validation

ONE_ROUND = {"batch_size": 6, "rounds": 3, "audit_frac": 0.0}


@pytest.fixture(autouse=True)
def _no_training(monkeypatch):
    for stage in ("repair", "train", "measure"):
        monkeypatch.setitem(
            loop.round.RUN, stage, lambda ctx, r, stage=stage: loop.round._advance(ctx, r, stage)
        )


def campaign(tmp_path, usd, *, labels=30, **sections):
    news = []
    settings = {"rounds": ONE_ROUND, "rows": texts(60)} | sections
    budget = {"labels": labels, "usd": usd, "usd_per_label": 0.1}
    ctx = make(tmp_path, raters=False, budget=budget, **settings)
    ctx.say = news.append
    ctx.news = news
    return ctx


def money(ctx):
    return account(ctx.config, ctx.store)


def answer_all(ctx, choose=lambda item, n: "good"):
    """Everybody who is asked answers once."""
    for item, task in ctx.reviewer._load()["tasks"].items():
        first = ctx.config.people.overlap
        for n in range(len(task["answers"]), task.get("wanted", first)):
            ctx.reviewer.answer(item, f"p{n}", choose(item, n))


def differ(_item, n):
    return ("good", "bad")[n % 2]


# people


@pytest.mark.parametrize(("overlap", "chosen"), [(1, 6), (2, 5), (3, 3), (11, 0)])
def test_a_text_is_chosen_only_if_all_its_first_answers_fit(tmp_path, overlap, chosen):
    ctx = campaign(tmp_path, 1.0, people={"overlap": overlap})
    if not chosen:
        with pytest.raises(StageError, match=r"one more text would cost \$1.10 in answers, but"):
            run_round(ctx)
        return
    run_round(ctx)
    assert len(ctx.store.reviews("c")) == chosen
    now = money(ctx)
    assert now.spent_usd == 0
    assert now.committed_usd == pytest.approx(0.1 * overlap * chosen)
    answer_all(ctx)
    run_round(ctx)
    assert money(ctx).spent_usd == pytest.approx(now.committed_usd)


def test_hidden_checks_are_paid_for(tmp_path):
    ctx = campaign(
        tmp_path,
        1.0,
        people={"overlap": 2, "check_frac": 0.5},
        annotator={"kind": "local_lm"},  # its examples bring split dev, which checks are drawn from
        prompt={"shots": 2, "variants": 1},
    )
    ctx.__dict__["annotator"] = PricedLLM()
    run_round(ctx)
    sent = len(ctx.store.reviews("c")), len(ctx.store.checks("c"))
    assert sent == (3, 2)  # five tasks of two answers; four texts would bring two checks
    assert money(ctx).committed_usd == pytest.approx(1.0)
    assert {c.asked for c in ctx.store.checks("c")} == {2}


def test_one_more_is_asked_while_money_lasts_the_most_suspect_first(tmp_path):
    ctx = campaign(
        tmp_path,
        1.4,
        people={"overlap": 2, "rule": "ask-one-more", "max_overlap": 4},
    )
    run_round(ctx)
    assert len(ctx.store.reviews("c")) == 6
    answer_all(ctx, differ)  # 12 answers for $1.20, and every text wants a third
    assert run_round(ctx).stage == "pull"
    asked = {r.rank: r.asked for r in ctx.store.reviews("c")}
    assert asked == {0: 3, 1: 3, 2: 2, 3: 2, 4: 2, 5: 2}
    assert money(ctx).committed_usd == pytest.approx(1.4)
    assert "4 texts want one more answer" in ctx.news[-1]
    told = len(ctx.news)
    run_round(ctx)
    assert len(ctx.news) == told  # said once
    answer_all(ctx, lambda item, n: "good")
    assert run_round(ctx).stage == "done"
    assert {g.how for g in ctx.store.gold("c").values()} == {"majority"}
    assert len(ctx.store.gold("c")) == 2


def test_more_money_opens_the_texts_that_went_without(tmp_path):
    section = {"overlap": 2, "rule": "ask-one-more", "max_overlap": 3}
    ctx = campaign(tmp_path, 1.3, people=section)
    run_round(ctx)
    answer_all(ctx, differ)
    assert run_round(ctx).stage == "pull"
    assert sum(r.closed_at is None for r in ctx.store.reviews("c")) == 1
    ctx.store.close()
    richer = campaign(tmp_path, 1.8, people=section)
    run_round(richer)
    assert sum(r.asked == 3 for r in richer.store.reviews("c")) == 6


def test_the_adjudicator_is_paid_like_everybody(tmp_path):
    ctx = campaign(tmp_path, 1.3, people={"overlap": 2, "adjudicator": "judge"})
    run_round(ctx)
    answer_all(ctx, differ)
    run_round(ctx)
    (queued,) = ctx.reviewer.queues["Conflicts"]
    assert money(ctx).committed_usd == pytest.approx(1.3)
    ctx.reviewer.answer(queued, "judge", "bad")
    assert run_round(ctx).stage == "done"
    assert list(ctx.store.gold("c")) == [queued]


def test_killed_while_label_studio_is_told_the_answer_is_committed_all_the_same(
    tmp_path, monkeypatch
):
    ctx = campaign(tmp_path, 1.3, people={"overlap": 2, "rule": "ask-one-more"})
    run_round(ctx)
    answer_all(ctx, differ)
    real = ctx.reviewer.ask

    def ask(wanted):
        real(wanted)
        raise KeyboardInterrupt

    monkeypatch.setattr(ctx.reviewer, "ask", ask)
    with pytest.raises(KeyboardInterrupt):
        run_round(ctx)
    assert max(r.asked for r in ctx.store.reviews("c")) == 2
    assert money(ctx).committed_usd == pytest.approx(1.3)


def test_what_is_withdrawn_is_free_again(tmp_path):
    ctx = campaign(tmp_path, 0.6)
    run_round(ctx)
    ctx.reviewer.answer(ctx.store.reviews("c")[0].item_id, "ann", "good")
    run_round(ctx)
    close_early(ctx, ctx.store.last_round("c"))
    run_round(ctx)
    reason = why_finished(ctx)
    assert "one more text would cost $0.10 in answers, but $0.10 is spent and $0.50" in reason
    assert "`goldloop pull --withdraw`" in reason
    withdraw_unanswered(ctx)
    assert money(ctx).committed_usd == pytest.approx(0.1)
    assert why_finished(ctx) is None
    assert texts_that_fit(ctx.config, ctx.store) == 5


def test_an_answer_is_paid_once_and_one_that_nobody_asked_for_counts(tmp_path):
    ctx = campaign(tmp_path, 0.6)
    run_round(ctx)
    item = ctx.store.reviews("c")[0].item_id
    for label in ("good", "bad", "good"):  # corrected twice
        ctx.reviewer.answer(item, "ann", label)
        run_round(ctx)
    assert (money(ctx).answers, money(ctx).open_answers) == (1, 5)
    ctx.reviewer.answer(item, "ann", None)  # taken back: somebody else may be paid for it
    run_round(ctx)
    assert (money(ctx).answers, money(ctx).open_answers) == (0, 6)
    ctx.reviewer.answer(item, "ann", "good")
    ctx.reviewer.answer(item, "bob", "good")
    run_round(ctx)
    assert (money(ctx).answers, money(ctx).open_answers) == (2, 5)
    assert (money(ctx).left_usd, texts_that_fit(ctx.config, ctx.store)) == (0.0, 0)


def test_a_file_that_asks_for_more_is_refused_before_anything_is_sent(tmp_path):
    ctx = campaign(tmp_path, 0.6)
    run_stage(ctx, "annotate")
    run_stage(ctx, "score")
    run_stage(ctx, "select")
    ctx.store.close()
    changed = campaign(tmp_path, 0.6, people={"overlap": 2})
    with pytest.raises(StageError, match=r"Nothing is sent: .* which is \$0.60 too much"):
        run_stage(changed, "push")
    assert not changed.reviewer._load()["tasks"]


def test_the_cap_on_labels_holds_where_it_is_lowered(tmp_path):
    ctx = campaign(tmp_path, 9.0)
    run_round(ctx)
    answer_all(ctx)
    run_round(ctx)
    ctx.store.close()
    lowered = campaign(tmp_path, 9.0, labels=6, rounds={"batch_size": 4, "rounds": 3})
    assert labels_left(lowered.config, lowered.store) == 0
    assert "6 labels is spent" in why_finished(lowered)
    ctx.store.close()
    lower = campaign(tmp_path, 9.0, labels=4, rounds={"batch_size": 4, "rounds": 3})
    assert campaign_status(lower.config, lower.store)["budget"]["labels_left"] == 0


# the LLM


class PricedLLM:
    """Ten tokens an answer, and it says so."""

    revision = "priced"

    def __init__(self, fails=None):
        self.calls, self.fails = 0, fails

    def most_tokens(self, variant, items):
        n = len(items)
        return np.full(n, 10, dtype=np.int64), np.zeros(n, dtype=np.int64)

    def annotate(self, variant, items):
        self.calls += len(items)
        if self.fails is not None:
            raise self.fails
        probs = np.full((len(items), len(variant.labels)), 1 / len(variant.labels))
        return ClassProbs(probs, np.zeros(len(items)), np.full(len(items), 10, dtype=np.int64))

    def close(self):
        pass


def answered(n, tokens=10):
    return ClassProbs(np.full((n, 2), 0.5), np.zeros(n), np.full(n, tokens, dtype=np.int64))


CENTS = {"kind": "local_lm", "usd_per_million_tokens": 1000.0}  # a cent an answer


def annotated(tmp_path, llm, usd, **more):
    prompt = {"shots": 0, "variants": 1}
    ctx = campaign(tmp_path, usd, **({"annotator": CENTS, "prompt": prompt} | more))
    ctx.__dict__["annotator"] = llm
    open_campaign(ctx)
    return ctx


def ask(ctx):
    variants = freeze_variants(ctx.config, ctx.store, ctx.annotator.revision)
    items = ctx.store.items("c", "pool")
    return take_votes(ctx.config, ctx.store, ctx.annotator, items, variants, progress=no_progress)


def test_what_people_are_asked_is_kept_from_the_llm(tmp_path):
    ctx = annotated(tmp_path, PricedLLM(), 1.2)
    run_round(ctx)  # 48 answers for $0.48, and six texts for $0.60
    assert money(ctx).committed_usd == pytest.approx(1.08)
    other = PricedLLM()
    other.revision = "other"
    ctx.__dict__["annotator"] = other
    with pytest.raises(AnnotatorError, match=r"but \$0.60 is spent and \$0.60 committed to what"):
        ask(ctx)
    assert other.calls == 12


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), RuntimeError("killed")])
def test_calls_that_were_interrupted_stay_committed(tmp_path, interrupt):
    ctx = annotated(tmp_path, PricedLLM(interrupt), 0.6)
    with pytest.raises(type(interrupt)):
        ask(ctx)
    assert (money(ctx).spent_usd, money(ctx).committed_usd) == (0, pytest.approx(0.48))
    ctx.__dict__["annotator"] = again = PricedLLM()
    with pytest.raises(AnnotatorError, match=r"\$0.12 is spent and \$0.48 committed"):
        ask(ctx)
    assert again.calls == 12


@pytest.mark.parametrize(("tokens", "usd"), [((0, 0, 0), 0.0), ((50, 10, 0), 0.06)])
def test_what_a_failure_cost_is_kept_and_no_more(tmp_path, tokens, usd):
    failure = AnnotatorError("The server is down.", tokens=tokens)
    ctx = annotated(tmp_path, PricedLLM(failure), 0.6)
    for _ in range(2):
        with pytest.raises(AnnotatorError, match="down"):
            ask(ctx)
    assert money(ctx).spent_usd == money(ctx).committed_usd == pytest.approx(2 * usd)


def test_what_a_failure_cost_is_kept_where_there_is_no_cap_yet(tmp_path):
    failure = AnnotatorError("The server is down.", tokens=(50, 10, 0))
    ctx = annotated(tmp_path, PricedLLM(failure), None)
    for _ in range(2):
        with pytest.raises(AnnotatorError, match="down"):
            ask(ctx)
    assert money(ctx).spent_usd == pytest.approx(0.12)
    assert campaign_status(ctx.config, ctx.store)["budget"]["usd_spent"] == pytest.approx(0.12)


def test_an_interrupt_that_leaves_nothing_under_way_commits_nothing(tmp_path):
    stopped = Stopped(2)
    stopped.tokens = (50, 10, 0)  # told by who knows that no answer is under way any more
    ctx = annotated(tmp_path, PricedLLM(stopped), 0.6)
    with pytest.raises(Stopped):
        ask(ctx)
    assert money(ctx).spent_usd == money(ctx).committed_usd == pytest.approx(0.06)


def test_a_written_token_of_a_failure_costs_what_written_tokens_do():
    prices = TokenPrices(fresh=1.0, cached=0.5, written=3.0)
    assert prices.usd_of_failure((10, 4, 2)) == 8 * 1.0 + 4 * 0.5 + 2 * 3.0


def test_what_is_booked_is_no_longer_set_aside(tmp_path):
    ctx = annotated(tmp_path, PricedLLM(), 0.6)
    (variant,) = freeze_variants(ctx.config, ctx.store, ctx.annotator.revision)
    purse = LlmPurse(ctx.config, ctx.store, ctx.annotator)
    items = ctx.store.items("c", "pool")[:5]
    assert purse.reserve(variant, items) == 5
    for booked, left in ((2, 0.03), (5, 0.0)):
        with purse.booking([item.id for item in items[:booked]], [answered(booked)]):
            pass
        assert money(ctx).open_llm_usd == pytest.approx(left)  # killed now, so much is committed


class CarefulLLM(PricedLLM):
    """Sets aside 500 tokens for each answer, which takes ten, as a server may that is asked again.

    Dies once it has been asked about so many texts, whose answers nobody sees.
    """

    revision = "careful"

    def __init__(self, dies_after=None, tokens=10):
        super().__init__()
        self.dies_after, self.tokens, self.asked = dies_after, tokens, []

    def most_tokens(self, variant, items):
        n = len(items)
        return np.full(n, 500, dtype=np.int64), np.zeros(n, dtype=np.int64)

    def annotate_stream(self, variant, lots):
        for lot in lots:
            for item in lot:
                self.asked.append(item.id)
                if self.dies_after is not None and len(self.asked) > self.dies_after:
                    raise RuntimeError("killed")
                yield [item], answered(1, self.tokens)


def test_the_next_process_finds_out_what_killed_calls_can_have_cost(tmp_path, monkeypatch):
    monkeypatch.setattr("loop.llm.ask.CHUNK", 8)
    ctx = annotated(tmp_path, killed := CarefulLLM(dies_after=9), 3.0)
    with pytest.raises(RuntimeError):  # whatever was in the block is stored, as it never is
        ask(ctx)
    stored = money(ctx)
    assert stored.open_usd > 20 * stored.spent_usd  # it has taken what was left, but for one
    ctx.__dict__["annotator"] = again = CarefulLLM()
    assert ask(ctx) == 0
    after, texts = money(ctx), len(ctx.store.keys("c", "pool"))
    assert after.spent_usd == pytest.approx(0.01 * texts)
    lost = len(killed.asked) + len(again.asked) - texts
    assert 0.01 * lost <= after.open_usd <= 8 * 0.01 * stored.open_usd / 0.5 + 1e-9
    ctx.__dict__["annotator"] = CarefulLLM()
    ask(ctx)
    assert money(ctx) == after  # nothing is lowered twice


def after_a_kill(tmp_path):
    """Money is set aside for five texts that a killed process has asked about, too."""
    ctx = annotated(tmp_path, CarefulLLM(), 30.0)
    ctx.store.begin_calls("c", "careful", 5, 2.5)
    (variant,) = freeze_variants(ctx.config, ctx.store, "careful")
    items = ctx.store.items("c", "pool")[:5]
    purse = LlmPurse(ctx.config, ctx.store, ctx.annotator)
    purse.reserve(variant, items)
    return ctx, purse, items


def test_what_killed_calls_cost_is_not_lowered_by_what_brings_no_answer(tmp_path):
    ctx, purse, items = after_a_kill(tmp_path)
    mute = answered(5, tokens=0)
    mute.probs[:] = np.nan
    with purse.booking([item.id for item in items], [mute]):
        pass
    assert money(ctx).open_llm_usd == pytest.approx(2.5)


def test_an_answer_that_cost_nothing_does_not_hide_what_the_next_one_shows(tmp_path):
    ctx, purse, items = after_a_kill(tmp_path)
    for item, tokens in zip(items, (0, 10, 10, 10, 10), strict=True):
        with purse.booking([item.id], [answered(1, tokens)]):
            pass
    open_usd = pytest.approx(4 * 8 * 0.01)
    assert (money(ctx).open_llm_usd, purse._account.open_llm_usd) == (open_usd, open_usd)


def test_where_answers_cannot_be_stored_nothing_is_booked(tmp_path):
    ctx, purse, items = after_a_kill(tmp_path)
    for fails in (True, False):
        with suppress(RuntimeError), purse.booking([i.id for i in items], [answered(5)]):
            if fails:
                raise RuntimeError
        open_usd = pytest.approx(5.0 if fails else 5 * 8 * 0.01)
        assert (money(ctx).open_llm_usd, purse._account.open_llm_usd) == (open_usd, open_usd)


def test_no_server_is_asked_oftener_than_killed_calls_are_counted():
    attempts = signature(OpenAIServerAnnotator).parameters["max_attempts"].default
    assert attempts + 1 <= MOST_TIMES  # once in a list


def test_cached_tokens_that_cost_more_than_others_stay_below_the_cap(tmp_path):
    prices = CENTS | {"usd_per_million_cached_tokens": 2000.0}
    ctx = annotated(tmp_path, PricedLLM(), 0.1, annotator=prices)
    (variant,) = freeze_variants(ctx.config, ctx.store, ctx.annotator.revision)
    items = ctx.store.items("c", "pool")
    assert LlmPurse(ctx.config, ctx.store, ctx.annotator).reserve(variant, items) == 4  # and one


def test_useless_answers_are_paid_for(tmp_path):
    class Useless(PricedLLM):
        def annotate(self, variant, items):
            answer = super().annotate(variant, items)
            answer.probs[:] = np.nan
            return answer

    ctx = annotated(tmp_path, Useless(), 0.6)
    with pytest.raises(AnnotatorError, match="no usable answer"):
        ask(ctx)
    assert money(ctx).spent_usd == pytest.approx(0.48)
    (tmp_path / "b").mkdir()
    prompt = {"shots": 0, "variants": 1, "calibrate": "contextual"}
    empty = annotated(tmp_path / "b", Useless(), 0.6, prompt=prompt)
    with pytest.raises(AnnotatorError, match="no usable answer to the text"):
        ask(empty)
    assert money(empty).spent_usd == pytest.approx(0.03)


def test_texts_without_content_are_asked_only_if_all_of_them_fit(tmp_path):
    prompt = {"shots": 0, "variants": 1, "calibrate": "contextual"}
    llm = PricedLLM()
    ctx = annotated(tmp_path, llm, 0.025, prompt=prompt)
    with pytest.raises(AnnotatorError, match=r"The next 3 LLM answers may cost \$0.03, but"):
        ask(ctx)
    assert llm.calls == 0


def test_a_rival_spends_from_the_same_purse_at_its_own_price(tmp_path):
    llm = PricedLLM()
    ctx = annotated(tmp_path, llm, 2.0)
    open_validation(ctx, 10)
    run_round(ctx)  # $0.48, and ten texts for $1.00
    dear = CENTS | {"usd_per_million_tokens": 10_000.0}
    section = ctx.config.annotator.model_validate(dear)
    rival = ctx.config.model_copy(update={"annotator": section})
    before = llm.calls
    with pytest.raises(AnnotatorError, match=r"may cost \$0.1, but \$0.98 is spent and \$1.00"):
        ask_rival(ctx, rival, Renamed(llm, "dear"))
    assert llm.calls - before == 5


def test_without_a_cap_or_a_price_nothing_is_noted(tmp_path):
    class Silent(PricedLLM):
        def most_tokens(self, variant, items):
            raise AssertionError

    for folder, usd, prices in (("a", None, CENTS), ("b", 1.0, {"kind": "local_lm"})):
        (tmp_path / folder).mkdir()
        ctx = annotated(tmp_path / folder, Silent(), usd, annotator=prices)
        ask(ctx)
        with ctx.store.transaction() as session:
            assert not session.exec(select(LlmCalls)).all()
        ctx.store.close()


# what is shown


def test_status_and_report_show_spent_committed_and_cap(tmp_path):
    ctx = annotated(tmp_path, PricedLLM(), 2.0)
    run_round(ctx)
    ctx.reviewer.answer(ctx.store.reviews("c")[0].item_id, "ann", "good")
    run_round(ctx)
    status = campaign_status(ctx.config, ctx.store)
    budget = status["budget"]
    shown = budget["usd_spent"], budget["usd_committed"], budget["usd"]
    assert shown == (pytest.approx(0.58), pytest.approx(1.08), 2.0)
    assert "$0.58 spent, $1.08 with the answers that are still to come, of $2.00" in "\n".join(
        status_lines(status)
    )
    lines = {b.name: (b.spent, b.limit) for b in campaign_view(ctx.config, ctx.store).budget}
    assert lines["USD spent"] == (pytest.approx(0.58), 2.0)
    assert lines["USD spent or committed"] == (pytest.approx(1.08), 2.0)
