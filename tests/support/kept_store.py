"""A campaign in a folder that is kept with the tests, on quick parts."""

from campaigns import texts
from fakes import CentroidStudent, FileReviewer

from connectors.llm.recorded import RecordedAnnotator
from loop.campaign.config import load
from loop.campaign.context import Context, Parts
from loop.campaign.store import Store

PEOPLE = 2


def kept_campaign(folder):
    """The campaign at work; whoever answers knows the truth."""
    config = load(folder / "goldloop.toml")
    store = Store(config.store_url)
    reviewer = FileReviewer(folder / "studio.json")
    parts = Parts(
        texts=lambda: texts(30),
        annotator=lambda: RecordedAnnotator(config.annotator.columns, config.port_labels),
        reviewer=lambda: reviewer,
        student=CentroidStudent,
    )
    return Context(config, store, parts)


def answer_all(ctx, share=1.0):
    """People answer the given share of the texts that are open."""
    reviewer = ctx.reviewer
    truth = {i.id: i.known_label for i in ctx.store.items(ctx.name)}
    waiting = reviewer.open_items(PEOPLE)
    for item_id in waiting[: round(len(waiting) * share)]:
        for person in range(PEOPLE):
            reviewer.answer(item_id, f"person-{person}", truth[item_id])
