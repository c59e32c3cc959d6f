"""What nobody began is taken back; what somebody answered stays."""

from loop.campaign.tables import HiddenCheck, Review
from loop.money import account
from loop.people.answers import withdraw_unanswered
from loop.people.tally import tally
from loop.round import close_early, run_round, run_stage
from tests.loop.test_round import make


def waiting(tmp_path):
    ctx = make(tmp_path, raters=False)
    round_ = run_round(ctx)
    assert round_.stage == "pull"
    return ctx, round_, [r.item_id for r in ctx.store.reviews("c")]


def test_only_rounds_that_are_over_are_withdrawn(tmp_path):
    ctx, round_, items = waiting(tmp_path)
    assert withdraw_unanswered(ctx) == 0
    for item in items[:4]:
        ctx.reviewer.answer(item, "ann", "good")
    run_round(ctx)
    close_early(ctx, round_)
    assert withdraw_unanswered(ctx) == len(items) - 4
    assert [r.item_id for r in ctx.store.reviews("c")] == items[:4]
    assert set(ctx.reviewer._load()["tasks"]) == set(items[:4])
    assert withdraw_unanswered(ctx) == 0
    ctx.store.close()


def test_what_is_withdrawn_costs_nothing_and_may_be_sent_again(tmp_path):
    ctx, round_, items = waiting(tmp_path)
    ctx.reviewer.answer(items[0], "ann", "good")
    run_round(ctx)
    close_early(ctx, round_)
    withdraw_unanswered(ctx)
    assert run_round(ctx).stage == "done"
    second = run_round(ctx)
    assert (second.number, second.stage) == (2, "pull")
    now = ctx.store.reviews("c")
    assert len(now) == 1 + 15  # the budget of 30 has 29 left
    assert set(items[1:]) & {r.item_id for r in now}
    ctx.store.close()


def test_an_answer_in_between_keeps_its_text_and_counts(tmp_path, monkeypatch):
    ctx, round_, items = waiting(tmp_path)
    ctx.reviewer.answer(items[0], "ann", "good")
    run_round(ctx)
    close_early(ctx, round_)
    real = ctx.reviewer.withdraw

    def late(item_ids):
        ctx.reviewer.answer(items[5], "bob", "bad")
        return real(item_ids)

    monkeypatch.setattr(ctx.reviewer, "withdraw", late)
    assert withdraw_unanswered(ctx) == len(items) - 2
    assert {r.item_id for r in ctx.store.reviews("c")} == {items[0], items[5]}
    assert run_round(ctx).stage == "done"
    second = run_round(ctx)  # its pull reads the late answer
    for review in ctx.store.reviews("c", second.id):
        ctx.reviewer.answer(review.item_id, "ann", "good")
    assert run_round(ctx).stage == "done"
    assert ctx.store.gold("c")[items[5]].label == "bad"
    ctx.store.close()


def test_interrupted_before_the_outbox_knows_it_goes_on(tmp_path):
    ctx, round_, items = waiting(tmp_path)
    ctx.reviewer.answer(items[0], "ann", "good")
    run_round(ctx)
    close_early(ctx, round_)
    ctx.reviewer.withdraw(items[1:])  # and then the process was killed
    assert withdraw_unanswered(ctx) == len(items) - 1
    assert [r.item_id for r in ctx.store.reviews("c")] == items[:1]
    ctx.store.close()


def test_hidden_checks_go_with_their_round(tmp_path):
    ctx, round_, items = waiting(tmp_path)
    row = {"id": "check", "item_id": items[0], "round_id": round_.id, "rank": 0, "task_id": "99"}
    with ctx.store.transaction() as session:
        ctx.store.insert(session, HiddenCheck, [row])
    ctx.reviewer.answer(items[0], "ann", "good")
    run_round(ctx)
    close_early(ctx, round_)
    assert withdraw_unanswered(ctx) == len(items) - 1
    assert ctx.store.checks("c") == []
    with ctx.store.transaction() as session:
        assert session.get(Review, items[0]) is not None
    ctx.store.close()


def test_money_for_further_answers_to_answered_texts_is_free_again(tmp_path):
    budget = {"labels": 30, "usd": 3.0, "usd_per_label": 0.1}
    ctx = make(tmp_path, raters=False, overlap=2, budget=budget)
    round_ = run_round(ctx)
    items = [r.item_id for r in ctx.store.reviews("c")]
    row = {"id": "check", "item_id": items[0], "round_id": round_.id, "rank": 0, "task_id": "99"}
    with ctx.store.transaction() as session:
        ctx.store.insert(session, HiddenCheck, [row])
    data = ctx.reviewer._load()
    data["tasks"]["check"] = {"id": "99", "answers": {}, "at": 0}
    ctx.reviewer._save(data)
    for item in [*items[:14], "check"]:  # the first of two people
        ctx.reviewer.answer(item, "ann", "good")
    ctx.reviewer.answer(items[0], "bob", "good")
    run_round(ctx)
    close_early(ctx, round_)
    assert run_round(ctx).stage == "done"
    assert account(ctx.config, ctx.store).open_answers == 13 + 2 + 1
    said = []
    ctx.say = said.append
    assert withdraw_unanswered(ctx) == 1
    assert said == ["Texts that have answers, and about which nobody else is asked: 14."]
    assert account(ctx.config, ctx.store).open_answers == 0
    assert ctx.reviewer.open_items(2) == []
    assert tally(ctx.store.reviews("c")).out == 0
    ctx.reviewer.answer(items[3], "bob", "bad")  # it was open in a browser
    run_stage(ctx, "pull")
    assert (account(ctx.config, ctx.store).answers, ctx.store.gold("c").get(items[3])) == (17, None)
    assert withdraw_unanswered(ctx) == 0
    ctx.store.close()
