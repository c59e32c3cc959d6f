"""A round's metrics, from the predictions of every arm."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from loop.adjudicate import latest_per_person
from loop.ports import FloatArray, IntArray
from loop.stability import measure, recovered_share
from loop.store import Annotation, Item, Round, Run

if TYPE_CHECKING:
    from loop.context import Context

ONCE = ("llm_only", "all_gold")
"""Arms that are trained once and serve every round."""


def measure_round(ctx: Context, round_: Round, evaluated: Sequence[Item]) -> dict[str, Any]:
    """Everything that the report says of a round, as JSON.

    Accuracy is measured on test items with a known label; without those, on the audit items, each
    weighted by the inverse of its probability of being drawn. Stability needs no label at all.
    """
    runs = ctx.store.runs(ctx.name)
    y, weight = _truth(ctx, evaluated)
    labels = ctx.config.label_names
    arms: dict[str, Any] = {}
    for arm in ("loop", "llm_only", "random", "all_gold"):
        predictions = _predictions(runs, round_, arm, len(evaluated))
        if predictions is None:
            continue
        stability = measure(
            predictions,
            y,
            len(labels),
            weight=weight,
            rng=np.random.default_rng([round_.seed, round_.number, 7]),
        )
        arms[arm] = stability.to_json()
    reviews = ctx.store.reviews(ctx.name)
    return {
        "arms": arms,
        "recovered": _recovered(arms),
        "bought": len(reviews),
        "pool": len(ctx.store.items(ctx.name, "pool")),
        "gold": len(ctx.store.gold(ctx.name)),
        "answers": len(ctx.store.annotations(ctx.name)),
        "evaluated": len(evaluated),
        "accuracy_from": "test" if weight is None else "audit",
        "pushed_wrong": _pushed_wrong(ctx, round_),
        "people_alpha": people_alpha(ctx.store.annotations(ctx.name), labels),
    }


def _predictions(runs: Sequence[Run], round_: Round, arm: str, n: int) -> IntArray | None:
    """(s, n) predictions of an arm's newest complete set of seeds."""
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        if run.arm == arm and (run.round_id == round_.id or arm in ONCE):
            groups[run.label_set].append(run)
    usable = [g for g in groups.values() if all(len(r.predictions) == n for r in g)]
    if not usable:
        return None
    newest = max(usable, key=lambda group: max(r.id or 0 for r in group))
    return np.array([r.predictions for r in sorted(newest, key=lambda r: r.seed)], dtype=np.int64)


def _truth(ctx: Context, evaluated: Sequence[Item]) -> tuple[IntArray | None, FloatArray | None]:
    """(n,) true classes, -1 where unknown, and (n,) weights, None where all count the same."""
    index = {name: i for i, name in enumerate(ctx.config.label_names)}
    known = np.array(
        [index[i.known_label] if i.known_label and i.split == "test" else -1 for i in evaluated],
        dtype=np.int64,
    )
    if (known >= 0).any():
        return known, None
    gold = ctx.store.gold(ctx.name)
    audits = {r.item_id: r for r in ctx.store.reviews(ctx.name) if r.reason == "audit"}
    judged = np.array(
        [index[gold[i.id].label] if i.id in gold and i.id in audits else -1 for i in evaluated],
        dtype=np.int64,
    )
    if not (judged >= 0).any():
        return None, None
    weight = np.array([1.0 / audits[i.id].audit_prob if i.id in audits else 0.0 for i in evaluated])
    return judged, weight


def _recovered(arms: dict[str, Any]) -> dict[str, Any]:
    """Share of the gap between LLM labels and gold labels that the loop closed, per metric."""
    if not {"loop", "llm_only", "all_gold"} <= set(arms):
        return {}
    shares: dict[str, Any] = {}
    for key in ("alpha_k", "p_uc", "accuracy", "macro_f1", "reliable_accuracy"):
        loop, llm, gold = (arms[arm].get(key) for arm in ("loop", "llm_only", "all_gold"))
        if not (loop and llm and gold) or None in (loop["value"], llm["value"], gold["value"]):
            continue
        noise = max((m["high"] - m["low"]) / 2 for m in (llm, gold))
        share = recovered_share(loop["value"], llm["value"], gold["value"], noise=noise)
        shares[key] = {"share": share, "gap": gold["value"] - llm["value"], "noise": noise}
    return shares


def _pushed_wrong(ctx: Context, round_: Round) -> dict[str, Any]:
    """Share of this round's pushed items whose LLM label people found wrong, by reason."""
    gold = ctx.store.gold(ctx.name)
    scores = ctx.store.scores(round_.id or 0)
    wrong: dict[str, list[bool]] = defaultdict(list)
    for review in ctx.store.reviews(ctx.name, round_.id):
        if review.item_id in gold:
            is_wrong = scores[review.item_id].llm_label != gold[review.item_id].label
            wrong[review.reason].append(is_wrong)
    return {
        reason: {"share": sum(found) / len(found), "n": len(found)}
        for reason, found in sorted(wrong.items())
    }


def people_alpha(annotations: Sequence[Annotation], labels: Sequence[str]) -> float | None:
    """Krippendorff's alpha (nominal) among people, or None without two answers to compare."""
    import krippendorff

    by_item: dict[str, list[Annotation]] = defaultdict(list)
    for annotation in annotations:
        if annotation.label is not None:
            by_item[annotation.item_id].append(annotation)
    index = {name: i for i, name in enumerate(labels)}
    counts = np.zeros((len(by_item), len(labels)), dtype=np.int64)
    for row, answers in enumerate(by_item.values()):
        for answer in latest_per_person(answers):
            counts[row, index[str(answer.label)]] += 1
    counts = counts[counts.sum(axis=1) >= 2]
    if not len(counts) or (counts.sum(axis=0) > 0).sum() < 2:
        return None
    return float(krippendorff.alpha(value_counts=counts, level_of_measurement="nominal"))
