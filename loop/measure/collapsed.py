"""Stored figures without the stability of students that answer one class for everything.

Rounds that earlier versions measured say of such students that all seeds agree on 100 %. What reads
a stored round, reads it through here.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from loop.campaign.tables import Round
from loop.measure.metric import AGREEMENT
from loop.measure.stability import ONE_CLASS


def measured(rounds: Sequence[Round]) -> list[Round]:
    """The rounds that have been measured, without the stability that is none; copies."""
    found: list[Round] = []
    before: set[str] = set()
    for round_ in rounds:
        if not round_.metrics:
            continue
        collapsed = _collapsed(round_.metrics)
        if collapsed | before:
            metrics = _without(round_.metrics, collapsed, before)
            round_ = Round(**round_.model_dump() | {"metrics": metrics})
        before = collapsed
        found.append(round_)
    return found


def collapsed_line(metrics: dict[str, Any], arm: str = "loop") -> str | None:
    """One sentence on a measured round whose students answer one class, or None."""
    if arm not in _collapsed(metrics):
        return None
    return (
        "The students give every test text the same label, so no stability is shown: seeds that"
        " have nothing to disagree about agree, whatever the labels are worth. Set student.lr to"
        " the rate that fits the encoder (`goldloop check` names it), raise student.epochs, or"
        " choose another student.encoder"
    )


def _collapsed(metrics: dict[str, Any]) -> set[str]:
    """Arms all of whose seeds give every text the same class: alpha, alone, is undefined there."""
    return {
        arm
        for arm, found in metrics.get("arms", {}).items()
        if found.get("items")
        and found.get("seeds", 0) > 1
        and (found.get("alpha_k") or {}).get("value", 0) is None
    }


def _without(metrics: dict[str, Any], collapsed: set[str], before: set[str]) -> dict[str, Any]:
    metrics = copy.deepcopy(metrics)
    nothing = {"value": None, "low": None, "high": None, "note": ONE_CLASS}
    for arm in collapsed:
        metrics["arms"][arm] |= {key: dict(nothing) for key in AGREEMENT}
    for reference, differences in metrics.get("compared", {}).items():
        other = "loop" in before if reference == "previous" else reference in collapsed
        if other or "loop" in collapsed:
            for key in AGREEMENT:
                differences.pop(key, None)
    if collapsed & {"loop", "llm_only", "all_gold"}:
        for key in AGREEMENT:
            metrics.get("recovered", {}).pop(key, None)
    if "loop" in collapsed:
        metrics["frozen"] = {}
    return metrics
