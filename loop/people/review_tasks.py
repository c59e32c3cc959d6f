"""What people get: why a text is sent, who gets help, hidden checks among the tasks.

Hidden checks are texts whose label is known, sent along to see how well people answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from loop.campaign.context import Context
from loop.campaign.tables import IMPORTED, HiddenCheck, Review, Round, Score
from loop.chance import stream, unit_hash
from loop.people.scorecards import labels_of_checks
from loop.ports import ReviewTask


def why_suspect(score: Score) -> str:
    """What a task says of its choice where people are told; a check must say the same."""
    strongest = max(score.signals, key=lambda name: score.signals[name])
    return f"Suspect: the strongest sign is {strongest.replace('_', ' ')}."


def known_checks(ctx: Context) -> dict[str, str]:
    """Labels of the hidden checks, where they have a say in what the others mean."""
    if ctx.config.people.rule != "dawid-skene":
        return {}
    return {check: label for check, label in labels_of_checks(ctx.store, ctx.name).items() if label}


def draw_checks(ctx: Context, round_: Round, n: int) -> list[dict[str, Any]]:
    """Texts with a known label that go along with n reviews, at random places among them.

    They are gold texts that several people agreed on or an adjudicator settled, and, where tasks
    show nothing but the text, texts whose label the source knows and that train nothing.
    """
    section = ctx.config.people
    wanted = section.checks_for(n)
    if not wanted:
        return []
    gold = ctx.store.gold(ctx.name)
    candidates = sorted(k for k, g in gold.items() if g.how not in ("single", IMPORTED))
    if section.assist == "blind":
        candidates += [i.id for i in ctx.keys("dev") if i.known_label]
    rng = stream("hidden checks", round_.seed, round_.number)
    drawn = rng.permutation(len(candidates))[:wanted]
    return [
        {
            # looks like any other id, so that nobody can tell a check by it
            "id": hashlib.sha256(
                f"{ctx.name}\0check\0{round_.number}\0{candidates[i]}".encode()
            ).hexdigest()[:20],
            "item_id": candidates[i],
            "round_id": round_.id,
            "rank": int(rng.integers(n)),
        }
        for i in drawn
    ]


def with_checks(
    round_: Round,
    tasks: Sequence[ReviewTask],
    checks: Sequence[HiddenCheck],
    texts: Mapping[str, str],
    scores: Mapping[str, Score],
) -> list[ReviewTask]:
    """The tasks with the round's unsent checks among them, ranked again.

    Args:
        texts: by the id of a check's item.
        scores: likewise, where the round scored it.
    """
    placed = [(task.rank, 0, task) for task in tasks]
    for check in checks:
        score_ = scores.get(check.item_id)
        task = ReviewTask(
            item_id=check.id,
            text=texts[check.item_id],
            round_number=round_.number,
            rank=check.rank,
            why=why_suspect(score_) if score_ else "",
            llm_label=(score_.llm_label or "") if score_ else "",
            llm_confidence=(score_.llm_confidence or 0.0) if score_ else 0.0,
        )
        placed.append((check.rank, 1, task))
    placed.sort(key=lambda place: place[:2])
    return [replace(task, rank=rank) for rank, (_, _, task) in enumerate(placed)]


def why_sent(review: Review, score_: Score) -> str:
    """What a task says of its choice where people are told."""
    if review.reason == "audit":
        return "Drawn at random, to measure the LLM."
    if review.reason == "coverage":
        return "Drawn at random, to learn about all kinds of texts."
    return why_suspect(score_)


def is_assisted(ctx: Context, item_id: str) -> bool:
    """Whether the page helps with this item; the same whenever asked."""
    section = ctx.config.people
    if section.assist == "blind":
        return False
    return unit_hash(ctx.seed, "assist", item_id) < section.assist_share
