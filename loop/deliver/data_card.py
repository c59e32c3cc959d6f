"""The data set card: what exported labels are, where they come from, and how far to trust them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loop.addresses import without_folders
from loop.campaign.config import Config
from loop.campaign.store import Store
from loop.campaign.tables import VALIDATION
from loop.deliver.export import last_scored
from loop.deliver.model_card import escape, yaml_string
from loop.errors import DataError
from loop.llm.votes import llm_in_words
from loop.measure.collapsed import measured_rounds
from loop.measure.metric import times_100
from loop.people.gold import people_alpha

SOURCES = {
    "gold": "people decided it",
    "repaired": "the LLM's label, changed by goldloop's repair",
    "llm": "the LLM's label as it came",
    "none": "no label: the LLM gave none that can be read",
}
COLUMNS = {
    "id": "hash of campaign and text",
    "text": "the text as it stood in the source",
    "label": "the final label; empty where there is none",
    "source": "where the label comes from, see above",
    "how": "how it was decided: by which rule people's answers became one, or by which repair",
    "confidence": "probability of the label; of the LLM's own labels as the LLM gave it",
    "round": "round of the campaign in which it was decided",
    "llm_label": "the LLM's label, also where another one is final",
    "llm_confidence": "the LLM's probability for its label",
    "suspicion": "how suspect the LLM's label was, from 0 to 1, when goldloop last looked",
}
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
TAG = "- goldloop"


def refuse_other_files(path: Path) -> None:
    """Whether a card would take the place of a file that is no such card, perhaps a README.

    Raises:
        DataError: it would.
    """
    if path.is_file():
        front = path.read_bytes()[:10_000].decode("utf-8", "replace").split("\n---\n")[0]
        if not front.startswith("---\n") or TAG not in front.splitlines():
            raise DataError(f"{path} is no data set card of goldloop's; name another file.")


def data_card(config: Config, store: Store, records: Sequence[Mapping[str, Any]]) -> str:
    """The card in Markdown, with the YAML front matter that data set hubs read.

    Args:
        records: the final labels, as ``final_labels`` gives them.
    """
    people = "people" if config.raters.kind == "people" else "**simulated** raters"
    rounds = [r for r in store.rounds(config.campaign.name) if r.number != VALIDATION]
    done = sum(r.stage == "done" for r in rounds)
    answers = [a for a in store.annotations(config.campaign.name) if a.label]
    n = len({a.annotator for a in answers})
    llm = llm_in_words(store, last_scored(store, config.campaign.name))
    silent = any(record["llm_label"] is None for record in records)
    persons = f"{n} {'person' if n == 1 else 'people'}"
    parts = [
        _front_matter(config, len(records)),
        f"# {escape(config.campaign.name)}",
        f"{len(records):,} texts of {escape(without_folders(config.texts.source))}. The question:"
        f" {escape(config.campaign.task)}",
        f"An LLM labelled {'the texts' if silent else 'every text'}: {escape(llm)}. In {done}"
        f" finished round{'s' * (done != 1)} goldloop asked {people} about the labels that were"
        f" probably wrong and about texts drawn at random: {len(answers):,} answers by {persons}.",
        "## Labels\n\n" + _labels(config),
        "## Where the labels come from\n\n" + _sources(config, records),
        "## How good they are\n\n" + _quality(config, store),
        "## Columns\n\n" + "\n".join(f"- `{name}`: {what}" for name, what in COLUMNS.items()),
        "Further columns are those of the source.",
        "## Before you publish\n\n- Say under which licence the texts may be passed on.\n"
        "- Look for personal data in the texts and in the columns of the source.\n"
        "- Texts were not chosen at random for people's answers: shares among the gold labels are"
        " not those of the collection.\n"
        "- The test texts that measured the campaign are not in this table.",
        f"Made with goldloop on {datetime.now(UTC):%Y-%m-%d}.",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(config: Config, n: int) -> str:
    size = next((name for most, name in SIZES if n < most), "n>1M")
    made_by = ["machine-generated"]
    if config.raters.kind == "people":
        made_by.append("expert-generated")
    return "\n".join(
        [
            "---",
            f"pretty_name: {yaml_string(config.campaign.name)}",
            "task_categories:",
            "- text-classification",
            "annotations_creators:",
            *(f"- {name}" for name in made_by),
            "size_categories:",
            f"- {size}",
            "tags:",
            TAG,
            "---",
        ]
    )


def _labels(config: Config) -> str:
    return "\n".join(
        f"- **{escape(label.name)}**{f': {escape(label.description)}' * bool(label.description)}"
        for label in config.labels
    )


def _sources(config: Config, records: Sequence[Mapping[str, Any]]) -> str:
    counts = Counter((record["source"], record["label"]) for record in records)
    present = [s for s in SOURCES if any(source == s for source, _ in counts)]
    lines = [f"- `{source}`: {SOURCES[source]}" for source in present]
    head = ["label", *(f"`{source}`" for source in present)]
    rows = [head, ["---"] * len(head)]
    for name in (*config.label_names, None):
        cells = [str(counts[source, name]) for source in present]
        if name is not None or any(cell != "0" for cell in cells):
            rows.append([escape(name) if name is not None else "(none)", *cells])
    return "\n".join(lines) + "\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _quality(config: Config, store: Store) -> str:
    name = config.campaign.name
    measured = measured_rounds(store.rounds(name))
    quality = measured[-1][1].label_quality if measured else None
    lines = []
    if quality is not None and quality.accuracy is not None:
        lines.append(
            f"- Of the LLM's labels {times_100(quality.accuracy, ' %')} are right, estimated from"
            f" {quality.n_gold} gold labels, {quality.n_random} of them drawn at random."
        )
        if quality.remaining_error is not None:
            lines.append(
                f"- After people's corrections, {times_100(quality.remaining_error, ' %')} of the"
                " labels are still wrong, without what repair corrects."
            )
    else:
        lines.append("- Nobody knows yet how many of the labels are right.")
    alpha = people_alpha(
        store.annotations(name), store.labels(name), ordinal=config.campaign.ordinal
    )
    if alpha is not None:
        lines.append(f"- People agree with each other to {100 * alpha:.1f} (Krippendorff's alpha).")
    return "\n".join(lines)
