"""The final labels, with where each comes from."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from loop.campaign.config import Config, as_run
from loop.campaign.store import Store
from loop.campaign.tables import Round, StoredText, round_id
from loop.errors import StageError

LABEL_COLUMNS: dict[str, type] = {
    "split": str,
    "label": str,
    "source": str,
    "how": str,
    "confidence": float,
    "round": int,
    "llm_label": str,
    "llm_confidence": float,
    "suspicion": float,
}
"""What is written beside a row of the source, and of which type."""


def labels_by_text(config: Config, store: Store) -> dict[str, dict[str, Any]]:
    """By item id, the ``LABEL_COLUMNS`` of every text of the campaign, whatever its split.

    Texts that are held out have the label that the source knows, and source "known".

    Raises:
        StageError: nothing is labelled yet.
    """
    records = {record["id"]: record for record in final_labels(config, store)}
    labels = {}
    for item in store.keys(config.campaign.name):
        record: dict[str, Any] = {"split": item.split}
        if item.id in records:
            record = records[item.id] | record
        elif item.known_label is not None and item.split != "pool":
            record |= {"label": item.known_label, "source": "known"}
        labels[item.id] = {name: record.get(name) for name in LABEL_COLUMNS}
    return labels


def last_scored(store: Store, campaign: str) -> Round:
    """The round that the LLM labels are of.

    Raises:
        StageError: nothing is labelled yet.
    """
    scored = [r for r in store.rounds(campaign) if store.has_scores(round_id(r))]
    if not scored:
        raise StageError("No label is there to export yet; run `goldloop run` first.")
    return scored[-1]


def final_labels(config: Config, store: Store) -> list[dict[str, Any]]:
    """One record per pool text: label, provenance (gold, repaired, llm, none), confidence, round.

    Gold is what people decided; repaired is what the last round's students learned in place of the
    LLM's label, where that is another class; confidence of an LLM label is its own probability.
    The source's other columns follow, under ``source_NAME`` where a name is taken.
    A text that neither people nor the LLM gave a label has label, ``llm_label`` and confidence None
    and source "none". Where people could give no label, ``how`` is "unsure".

    Raises:
        StageError: nothing is labelled yet.
    """
    name = config.campaign.name
    scored = last_scored(store, name)
    names = config.label_names
    scores = store.all_scores(round_id(scored))
    place = {row: i for i, row in enumerate(scores.rows.tolist())}
    gold = store.gold(name)
    trained = [r for r in store.rounds(name) if store.has_training_labels(round_id(r))]
    learned = store.all_training_labels(round_id(trained[-1])) if trained else None
    mended: dict[int, tuple[int, float]] = {}
    if learned is not None and learned.probs.size:
        best, most = learned.probs.argmax(axis=1).tolist(), learned.probs.max(axis=1).tolist()
        repaired = np.flatnonzero(learned.source == "repaired").tolist()
        mended = {int(learned.rows[i]): (best[i], most[i]) for i in repaired}
    repaired_by = as_run(trained[-1].config).strategy.repair if trained else ""
    outcomes = {r.item_id: r.outcome for r in store.reviews(name)}
    records = []
    for item in store.stored_texts(name, "pool"):
        if item.row not in place:  # it has come since, and has no label yet
            continue
        i = place[item.row]
        known = int(scores.llm[i])
        llm_label = names[known] if known >= 0 else None
        llm_confidence = float(scores.confidence[i]) if known >= 0 else None
        label, source, round_number = llm_label, "llm", scored.number
        confidence, how = llm_confidence, "llm"
        if label is None:
            source = how = "none"
        if item.id in gold:
            decision = gold[item.id]
            label, source, round_number = decision.label, "gold", decision.round_number
            confidence, how = decision.confidence, decision.how
        elif label is not None and item.row in mended:
            class_, share = mended[item.row]
            if class_ != known:
                label, source, round_number = names[class_], "repaired", trained[-1].number
                confidence, how = share, repaired_by
        if outcomes.get(item.id) == "unsure":
            how = "unsure"
        own: dict[str, Any] = {
            "id": item.id,
            "text": item.text,
            "label": label,
            "source": source,
            "how": how,
            "confidence": confidence,
            "round": round_number,
            "llm_label": llm_label,
            "llm_confidence": llm_confidence,
            "suspicion": float(scores.suspicion[i]),
        }
        records.append(own | _source_columns(item, own))
    return records


def _source_columns(item: StoredText, own: Collection[str]) -> dict[str, Any]:
    """The other columns of the source, none of them under a name that is taken."""
    columns = {}
    for name, value in item.meta.items():
        free = name
        while free in own or (free != name and free in item.meta):
            free = f"source_{free}"
        columns[free] = value
    return columns
