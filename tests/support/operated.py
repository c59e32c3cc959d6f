"""A small campaign that an operator looks after: two people, two rounds."""

from campaigns import make, texts

CAMPAIGN = """\
campaign = {name = "c", task = "t"}
labels = [{name = "bad"}, {name = "good"}]
texts = {source = "x.csv", gold_column = "g"}
annotator = {kind = "recorded", columns = ["llm", "llm_2"]}
budget.labels = 20
rounds = {batch_size = 8, rounds = 2, audit_frac = 0.5}
student = {seeds = 2, references = ["llm_only"]}
people = {overlap = 2}
"""
PEOPLE = ("ann@example.org", "bob@example.org")


def at_work(folder, url=None):
    """The campaign of ``CAMPAIGN`` in a folder."""
    return make(
        folder,
        url=url,
        raters=False,
        overlap=2,
        rows=texts(60),
        budget={"labels": 20},
        rounds={"batch_size": 8, "rounds": 2, "audit_frac": 0.5},
        student={"seeds": 2, "references": ["llm_only"]},
    )


def answer(ctx, n=None):
    """Two people answer texts that are open, one of them sometimes wrongly."""
    truth = {i.id: i.known_label for i in ctx.store.items("c")}
    for at, item_id in enumerate(ctx.reviewer.open_items(2)[:n]):
        right = truth[item_id]
        wrong = {"good": "bad", "bad": "good"}[right]
        for who in PEOPLE:
            ctx.reviewer.answer(item_id, who, wrong if who == PEOPLE[1] and at % 4 == 3 else right)
