"""Labels from elsewhere as gold: matched, decided, stored once, and kept through the rounds."""

from campaigns import LABELS, make, texts

from loop.campaign.tables import IMPORTED
from loop.deliver.export import final_labels
from loop.next_round import open_campaign, open_round
from loop.people.import_labels import import_labels
from loop.people.tally import tally
from loop.pool_arrays import order_of_gold
from loop.ports import GivenLabel
from loop.report.collect import campaign_view
from loop.round import close_early, run_round, run_stage


def given(text, label="good", *, person="", at="", problem="", row=1):
    return GivenLabel({"text": text}, row, person, label, problem, at)


def test_a_cell_that_happens_to_be_a_short_text_is_not_the_text(tmp_path):
    ctx = begun(tmp_path)
    pool = [item.text for item in ctx.store.items("c", "pool")]
    rows = [
        {"review": pool[0], "comment": "x"},
        {"review": pool[1], "comment": ""},
        {"review": "a stranger", "comment": pool[2]},
        {"comment": pool[3]},  # a row that has nothing else
    ]
    answers = [GivenLabel(texts, i, "", "good", "", "") for i, texts in enumerate(rows)]
    found = import_labels(ctx, "t.csv", "column 'label'", answers)
    assert (found.column, found.new, found.not_taken.total()) == ("review", 3, 1)
    assert "taken from the column 'review'; --text-column names another" in found.lines()[-1]
    gold = ctx.store.gold("c")
    known = {item.text for item in ctx.store.items("c") if item.id in gold}
    assert known == {pool[0], pool[1], pool[3]}


def test_times_are_compared_as_times(tmp_path):
    ctx = begun(tmp_path)
    pool = [item.text for item in ctx.store.items("c", "pool")]
    times = [
        ("9", "10"),  # seconds
        ("2026-02-09T09:00:00+05:00", "2026-02-09T05:00:00Z"),
        ("9/2/2026 10:00", "10/2/2026 10:00"),
        ("", ""),
    ]
    answers = [
        given(pool[i], label, person="ann", at=at)
        for i, pair in enumerate(times)
        for label, at in zip(("bad", "good"), pair, strict=True)
    ]
    answers += [given(pool[4], "good", person="bob", at=at) for at in times[2]]
    found = import_labels(ctx, "t.csv", "table", answers)
    assert found.not_taken == {"one person gave several labels, at times that cannot be read": 1}
    gold = ctx.store.gold("c")
    by_text = {i.text: gold[i.id].label for i in ctx.store.items("c") if i.id in gold}
    assert by_text == dict.fromkeys((pool[0], pool[1], pool[3], pool[4]), "good")


def begun(tmp_path, **sections):
    ctx = make(tmp_path, **sections)
    open_campaign(ctx)
    return ctx


def test_every_text_is_taken_or_told_and_a_second_time_changes_nothing(tmp_path):
    ctx = begun(tmp_path)
    pool = [item.text for item in ctx.store.items("c", "pool")]
    (test, *_) = ctx.store.items("c", "test")
    answers = [
        given(pool[0] + "\u200b", person="ann"),
        given(pool[1], "bad"),
        given(pool[1], "good"),
        given(pool[1], "good"),
        given(pool[2], "bad"),
        given(pool[2], "good"),
        given(pool[3], "bad", person="ann", at="2026-01-02"),
        given(pool[3], "good", person="ann", at="2026-01-01"),
        given(pool[4], None, problem="skipped", row=9),
        given(test.text),
        given("a stranger"),
        given("a  stranger"),
    ]
    found = import_labels(ctx, "t.json", "Label Studio", answers)
    assert (found.texts, found.new, found.changed, found.same) == (7, 3, 0, 0)
    assert found.taken + found.not_taken.total() == found.texts
    assert found.not_taken == {
        "people disagree": 1,
        "no answer with a label": 1,
        "no text of the campaign": 1,
        "test text: its label belongs into texts.gold_column": 1,
    }
    assert found.answers == {"skipped": 1}
    assert "skipped 1 (first in row 9)" in "\n".join(found.lines())
    gold = ctx.store.gold("c")
    by_text = {item.text: gold[item.id] for item in ctx.store.items("c") if item.id in gold}
    assert [(by_text[pool[i]].label, by_text[pool[i]].how) for i in (0, 1, 3)] == [
        ("good", IMPORTED),
        ("good", IMPORTED),
        ("bad", IMPORTED),
    ]
    assert by_text[pool[1]].confidence == 2 / 3
    event = ctx.store.last_event("c", "import-labels", "labels imported")
    kept = [answer for each in event.detail["answers"].values() for answer in each]
    assert [1, "ann", "bad", "", "2026-01-02"] in kept
    again = import_labels(ctx, "t.json", "Label Studio", answers)
    assert (again.new, again.changed, again.same) == (0, 0, 3)
    assert ctx.store.last_event("c", "import-labels", "labels imported").id == event.id
    changed = import_labels(
        ctx, "u.json", "doccano", [given(pool[0], "bad"), given(pool[3], "bad")]
    )
    assert (changed.new, changed.changed, changed.same) == (0, 1, 1)


def test_imported_gold_trains_is_not_asked_again_and_costs_nothing(tmp_path):
    ctx = begun(tmp_path, budget={"labels": 30, "usd_per_label": 1.0, "usd": 40.0})
    pool = ctx.store.items("c", "pool")
    mine = {item.id for item in pool[:40]}
    import_labels(ctx, "t.json", "x", [given(i.text, str(i.known_label)) for i in pool[:40]])
    first = run_round(ctx)
    assert first.stage == "done"
    asked = {r.item_id for r in ctx.store.reviews("c")}
    assert len(asked) == 15
    assert not asked & mine
    gold = ctx.store.gold("c")
    assert mine <= set(gold)
    assert len(gold) == 55
    rows = {row["id"]: row for row in final_labels(ctx.config, ctx.store)}
    assert all(rows[i]["how"] == "imported" and rows[i]["source"] == "gold" for i in mine)
    last = ctx.store.rounds("c")[-1].metrics
    assert last.gold == 15  # bought
    assert last.label_quality is not None
    weights = {t.item_id: t.source for t in ctx.store.training_labels(first.id)}
    assert {weights[i] for i in mine} == {"gold"}
    free = [item for item in pool if item.id not in gold]
    import_labels(ctx, "u.json", "x", [given(i.text) for i in [*free[:5], *pool[:2]]])
    second = run_round(ctx)
    assert second.stage == "done"
    assert mine <= set(ctx.store.gold("c"))
    # Estimates take each label as known from when it came: the second import is between the rounds.
    keys = ctx.keys("pool")
    chosen, arrived = order_of_gold(ctx, keys, ctx.store.reviews_by_item("c"))
    when = dict(zip([key.id for key in keys], chosen.tolist(), strict=True))
    sent = {r.item_id: r.round_id for r in ctx.store.reviews("c")}
    assert {when[i] for i in mine} == {1}
    assert {when[i.id] for i in free[:5]} == {3}
    assert {when[i] for i, round_id in sent.items() if round_id == first.id} == {2}
    assert {when[i] for i, round_id in sent.items() if round_id == second.id} == {4}
    assert set(arrived.tolist()) == {2}


def test_what_people_of_the_campaign_decided_stays(tmp_path):
    ctx = begun(tmp_path)
    run_round(ctx)
    texts_of = {item.id: item.text for item in ctx.store.items("c")}
    (one, two, *_) = list(ctx.store.gold("c").values())
    other = LABELS[1 - LABELS.index(one.label)]
    answers = [given(texts_of[one.item_id], other), given(texts_of[two.item_id], two.label)]
    found = import_labels(ctx, "t.json", "x", answers)
    assert found.taken == 0
    assert found.not_taken == {
        "people of the campaign decided otherwise": 1,
        "people of the campaign decided the same": 1,
    }
    assert ctx.store.gold("c")[one.item_id].label == one.label


def test_a_text_that_people_still_have_when_its_label_comes_is_not_unreadable(tmp_path):
    ctx = begun(tmp_path, raters=False)
    assert run_round(ctx).stage == "pull"
    first, *others = ctx.reviewer.open_items()
    import_labels(ctx, "t.csv", "table", [given(i.text) for i in ctx.store.items("c", "pool")])
    ctx.reviewer.answer(first, "ann", "bad")
    run_stage(ctx, "pull")
    close_early(ctx, open_round(ctx))
    assert run_round(ctx).stage == "done"
    became = tally(ctx.store.reviews("c"))
    assert (became.back, became.out, became.unreadable) == (1, len(others), 0)
    assert {ctx.store.gold("c")[i].how for i in others} == {IMPORTED}
    assert "without a gold label" not in "\n".join(campaign_view(ctx.config, ctx.store).notes)
    ctx.store.close()


def test_a_pool_that_is_labelled_already_has_nothing_to_buy(tmp_path):
    from loop.money import why_nothing_to_buy

    ctx = begun(tmp_path, rows=texts(60), budget={"labels": 15}, rounds={"batch_size": 10})
    pool = ctx.store.items("c", "pool")
    import_labels(ctx, "t.json", "x", [given(i.text, str(i.known_label)) for i in pool])
    assert "or has an imported label" in why_nothing_to_buy(ctx.config, ctx.store)
