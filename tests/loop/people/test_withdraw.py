"""What nobody began is taken back; what somebody answered stays."""

from loop.campaign.tables import HiddenCheck, Review
from loop.people.answers import withdraw_unanswered
from loop.round import close_early, run_round
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
