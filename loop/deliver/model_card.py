"""The model card: what a final model is, what it learned from, and how far to trust it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from loop.addresses import without_folders
from loop.campaign.config import Config
from loop.campaign.metrics import COMPARED, METRICS, Metric, RoundMetrics
from loop.campaign.tables import Round
from loop.errors import counted
from loop.measure.collapsed import without_agreement
from loop.report.contents import MISSING
from loop.report.wording import with_interval
from loop.student.learning_rate import EMBEDDED, is_hub_name

SOURCES = {
    "gold": "labelled by people",
    "repaired": "LLM label, changed by repair",
    "llm": "LLM label, kept",
    "dropped": "left out: by repair, or as people could give no label",
}


@dataclass(frozen=True)
class CardFacts:
    """What the card tells.

    Attributes:
        record: the model's goldloop.json.
        llm: what gave the LLM labels, in words.
        learned: (label, source) of every pool text, as the round's students learned it.
        round_: the last finished round.
        rounds: how many are finished.
        own: the model's own test metrics, by key; none where no label says what is right.
        dev_known: dev labels that candidates were compared by.
    """

    config: Config
    record: Mapping[str, Any]
    llm: str
    learned: Sequence[tuple[str, str]]
    round_: Round
    rounds: int
    own: Mapping[str, Metric]
    dev_known: int


def model_card(facts: CardFacts) -> str:
    """The card in Markdown, with the YAML front matter that model hubs read."""
    parts = [
        _front_matter(facts),
        f"# {escape(facts.config.campaign.name)}",
        _what(facts),
        _use(facts),
        _labels(facts),
        _data(facts),
        _figures(facts),
        _choice(facts),
        _calibration(facts),
        _limits(facts),
        _versions(facts),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


_MARKUP = re.compile(r"([\\`*_\[\]#|~$])")
_SPACE = re.compile(r"\s+")


def escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    plain = _SPACE.sub(" ", text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(r"\\\1", plain)


def yaml_string(text: str) -> str:
    """A quoted YAML scalar: JSON, with the line breaks of Unicode escaped, which JSON allows."""
    quoted = json.dumps(text, ensure_ascii=False)
    return re.sub(
        "[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]",
        lambda match: f"\\u{ord(match[0]):04x}",
        quoted,
    )


def _front_matter(facts: CardFacts) -> str:
    encoder = facts.config.student.encoder
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-classification",
        "tags:",
        "- goldloop",
        "- text-classification",
        f"model_name: {yaml_string(facts.config.campaign.name)}",
    ]
    here_alone = encoder not in EMBEDDED and (facts.config.folder / encoder).is_dir()
    if is_hub_name(hub_name := EMBEDDED.get(encoder, encoder)) and not here_alone:
        lines.append(f"base_model: {yaml_string(hub_name)}")
    return "\n".join([*lines, "---"])


def _what(facts: CardFacts) -> str:
    config, record = facts.config, facts.record
    return f"""\
A text classifier made by goldloop: {escape(config.campaign.task)}

{counted(facts.rounds, "round")} of active learning: an LLM labelled the texts, {_people(facts)}
corrected the most suspect labels, and {config.student.seeds} students
({escape(str(record["student"]).split("@")[0])}) were trained with different seeds. This model is
{escape(str(record["chosen"]))}: {escape(str(record["why"]))}."""


def _people(facts: CardFacts) -> str:
    return "people" if facts.config.raters.kind == "people" else "**simulated** raters"


def _use(facts: CardFacts) -> str:
    return f"""\
## How to use it

```python
from transformers import pipeline

classify = pipeline("text-classification", "FOLDER", truncation=True)  # where this file lies
classify(["a text", "another one"])
```

`goldloop predict FILE --model FOLDER` labels a CSV, JSONL, Parquet or text file, with a probability
for every label{_stability_told(facts)}."""


def _stability_told(facts: CardFacts) -> str:
    if facts.record["seeds"]:
        return " and, per text, the share of the seeds that agree with the label"
    return "; the seeds' models were not kept, so it cannot say how stable a label is"


def _labels(facts: CardFacts) -> str:
    lines = ["## Labels", ""]
    for label in facts.config.labels:
        told = f": {escape(label.description)}" if label.description else ""
        lines.append(f"- **{escape(label.name)}**{told}")
    return "\n".join(lines)


def _data(facts: CardFacts) -> str:
    names = facts.config.label_names
    counts = Counter(facts.learned)
    present = [source for source in SOURCES if any(key[1] == source for key in counts)]
    rows = [(escape(name), *(str(counts[name, source]) for source in present)) for name in names]
    totals = ("all", *(str(sum(counts[n, source] for n in names)) for source in present))
    head = ("label", *(SOURCES[source] for source in present))
    return f"""\
## What it learned from

{len(facts.learned)} texts of {escape(without_folders(facts.config.texts.source))}; the LLM:
{escape(facts.llm)}. Labels by where they come from:

{_table(head, [*rows, totals])}"""


def _figures(facts: CardFacts) -> str:
    metrics = without_agreement(facts.round_.metrics or RoundMetrics())
    students, before = metrics.arms.get("loop"), metrics.arms.get("llm_only")
    told = {
        "test": "test texts whose label was known",
        "audit": "texts of the random audit, labelled by people, weighted by inverse probability",
    }
    own = facts.own
    seeds = students.seeds if students else facts.config.student.seeds
    head = ["", f"mean of {seeds} seeds, round {facts.round_.number}"]
    head += ["students of the LLM's labels alone"] * bool(before) + ["this model"] * bool(own)
    rows = []
    for key in COMPARED:
        if students and (value := with_interval(students.metric(key))):
            row = [METRICS[key].name, value]
            row += [with_interval(before.metric(key)) or MISSING] if before else []
            row += [with_interval(own.get(key)) or MISSING] * bool(own)
            rows.append(row)
    recall = [
        f"{escape(name)} {text}"
        for name, metric in zip(
            facts.config.label_names, (students and students.recall) or (), strict=False
        )
        if (text := with_interval(metric))
    ]
    per_class = f"\n\nRecall per label: {'; '.join(recall)}." if recall else ""
    where = told.get(
        str(metrics.accuracy_from), "no text with a known label, so accuracy is not known"
    )
    return f"""\
## How good it is

Times 100, with 95 % intervals over {metrics.evaluated} texts that trained nothing;
accuracy on {where}.

{_table(head, rows)}{per_class}"""


def _choice(facts: CardFacts) -> str:
    judged = facts.record["dev"]
    if facts.dev_known == 0 or all(j["log_loss"] is None for j in judged):
        return f"""\
## Why this one

{_capital(escape(str(facts.record["why"])))}."""
    head = ("candidate", "agrees with the ensemble", "macro-F1", "log-loss", "good enough")
    rows = [
        (
            escape(j["name"]),
            "–" if j["agreement"] is None else f"{100 * j['agreement']:.1f}",
            f"{100 * j['macro_f1']:.1f}",
            f"{j['log_loss']:.3f}",
            "yes" if j["good_enough"] else "no",
        )
        for j in judged
    ]
    return f"""\
## Why this one

{_capital(escape(str(facts.record["why"])))}. Candidates on {facts.dev_known} dev labels that no
strategy saw (some may have been examples in the LLM's prompt); good enough is a log-loss within
one standard error (or 0.01) of the best. The dev figures chose the model and flatter it a little.

{_table(head, rows)}"""


def _calibration(facts: CardFacts) -> str:
    temperature = float(facts.record["temperature"])
    if temperature == 1.0:
        told = (
            "The probabilities are the network's own: there were too few dev labels to calibrate"
            " them. Expect them to be too sure."
        )
    else:
        place = (
            "built into the last layer, so that every user of the model gets it"
            if facts.record["temperature_built_in"]
            else "which `goldloop predict` applies and a plain pipeline does not"
        )
        told = (
            f"Probabilities are calibrated by a temperature of {temperature:.2f}, fitted to"
            f" {facts.dev_known} dev labels, {place}."
        )
    return f"## Calibration\n\n{told}"


LONG_TEXTS = {"head_tail": "head and tail", "windows": "all, in windows of this size"}
"""By ``student.long_texts``, what is read of texts beyond the limit."""


def _limits(facts: CardFacts) -> str:
    counts = Counter(source for _, source in facts.learned)
    by_people = 100 * counts["gold"] / max(1, len(facts.learned))
    limit, long = facts.record["max_tokens"], facts.record.get("long_texts", "head_tail")
    lines = [
        f"People saw {by_people:.0f} % of the training labels; errors that the LLM makes"
        " systematically may be in the others, and the model may have learned them.",
        "It was measured on texts of the same source; elsewhere it may do worse.",
        f"It reads {limit} tokens. Of longer texts `goldloop predict` reads {LONG_TEXTS[long]}, a"
        " plain pipeline with `truncation=True` the head alone.",
    ]
    if facts.config.raters.kind != "people":
        lines.append("No person labelled anything: the answers came from simulated raters.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _versions(facts: CardFacts) -> str:
    told = ", ".join(f"{name} {number}" for name, number in facts.round_.versions.items())
    day = datetime.now(UTC).date().isoformat()
    return f"---\n\nMade on {day}. Round trained with {escape(told)}."


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
