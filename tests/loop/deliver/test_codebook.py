"""What people could not place: it teaches nothing, and it is news for those who describe labels."""

import pytest
from campaigns import make

from loop.campaign.tables import HiddenCheck
from loop.deliver.codebook import PAGE_EXAMPLES, clear_examples, codebook
from loop.deliver.export import final_labels
from loop.errors import StageError
from loop.next_round import open_campaign
from loop.round import run_round

ROUNDS = {"batch_size": 15, "rounds": 1, "audit_frac": 0.2}
STUDENT = {"seeds": 2, "references": []}
HOSTILE = "neither <b>of</b> these\n- a list | **bold**"


def campaign(tmp_path):
    labels = [{"name": "bad", "description": "a *bad* word"}, {"name": "good"}]
    return make(tmp_path, raters=False, overlap=2, rounds=ROUNDS, student=STUDENT, labels=labels)


@pytest.fixture
def answered(tmp_path):
    """A campaign in which two people answered: most alike, one apart, one could not be placed."""
    ctx = campaign(tmp_path)
    assert run_round(ctx).stage == "pull"
    items = ctx.reviewer.open_items(2)
    truth = {i.id: i.known_label for i in ctx.store.items("c")}
    for item in items:
        for person in ("ann", "bob"):
            ctx.reviewer.answer(item, person, truth[item])
    apart, nowhere, noted = items[:3]
    other = {"bad": "good", "good": "bad"}[truth[apart]]
    ctx.reviewer.answer(apart, "bob", other)
    for person in ("ann", "bob"):
        ctx.reviewer.answer(nowhere, person, None, problem="unsure", note=HOSTILE)
    ctx.reviewer.answer(noted, "ann", truth[noted], note="a borderline case")
    assert run_round(ctx).stage == "done"
    yield ctx, apart, nowhere
    ctx.store.close()


def test_the_codebook_tells_all_of_it_and_escapes_it(answered):
    ctx, apart, nowhere = answered
    texts = {i.id: i.text for i in ctx.store.items("c")}
    book = codebook(ctx.config, ctx.store)
    sections = dict(part.split("\n", 1) for part in book.split("\n## ")[1:])
    assert set(sections) == {
        "bad",
        "good",
        "Where people differ",
        "Where people overrule the LLM",
        "Texts that somebody could not place",
        "Other notes",
    }
    assert "a \\*bad\\* word" in sections["bad"]
    assert "Not described." in sections["good"]
    assert "**bad** or **good**: 1 text." in sections["Where people differ"]
    assert texts[apart] in sections["Where people differ"]
    assert " by the LLM, " in sections["Where people overrule the LLM"]
    unplaced = sections["Texts that somebody could not place"]
    assert texts[nowhere] in unplaced
    assert "<b>" not in book
    assert "\n- a list" not in book
    assert "neither &lt;b&gt;of&lt;/b&gt; these - a list" in unplaced
    assert "a borderline case" in sections["Other notes"]


def test_what_nobody_could_place_teaches_nothing(answered):
    ctx, apart, nowhere = answered
    round_ = ctx.store.last_round("c")
    learned = {t.item_id: t for t in ctx.store.training_labels(round_.id)}
    assert (learned[nowhere].weight, learned[nowhere].source) == (0.0, "dropped")
    assert learned[apart].weight > 0  # a conflict leaves the LLM's word in place
    how = {r["id"]: r["how"] for r in final_labels(ctx.config, ctx.store)}
    assert [item for item, said in how.items() if said == "unsure"] == [nowhere]


def test_people_see_clear_examples_and_none_that_they_may_be_asked_about(answered):
    ctx, apart, nowhere = answered
    texts = {i.text: i.id for i in ctx.store.items("c")}
    gold = ctx.store.gold("c")

    def shown():
        examples = clear_examples(ctx.config, ctx.store)
        return {label: [texts[text] for text in told] for label, told in examples.items()}

    first = shown()
    assert first
    for label, items in first.items():
        assert 0 < len(items) <= PAGE_EXAMPLES
        for item in items:
            assert (gold[item].label, gold[item].how) == (label, "agreed")
            assert item not in (apart, nowhere)
    label, (item, *_) = next(iter(first.items()))
    round_id = ctx.store.last_round("c").id
    check = {"id": "x", "item_id": item, "round_id": round_id, "rank": 0}
    with ctx.store.transaction() as session:
        ctx.store.insert(session, HiddenCheck, [check])
    assert item not in shown().get(label, [])
    people = ctx.config.people.model_copy(update={"check_frac": 0.1})
    checked = ctx.config.model_copy(update={"people": people})
    assert clear_examples(checked, ctx.store) == {}  # what several agreed on may be a check


def test_before_any_answer_there_is_no_codebook(tmp_path):
    ctx = campaign(tmp_path)
    open_campaign(ctx)
    with pytest.raises(StageError, match="Nobody has answered yet"):
        codebook(ctx.config, ctx.store)
    assert clear_examples(ctx.config, ctx.store) == {}
    ctx.store.close()
