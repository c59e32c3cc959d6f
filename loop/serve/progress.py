"""How a round moves on: what is back, how quickly, and the day it will be complete."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from loop.campaign.config import Config
from loop.campaign.store import Store
from loop.campaign.tables import Annotation
from loop.people.gold import people_alpha
from loop.people.scorecards import campaign_people
from loop.report.status import campaign_status

WINDOW = timedelta(days=7)
MIN_ANSWERS = 5  # fewer forecast nothing
WORKING_DAY_H = 8.0  # assumed until a whole day has been seen


@dataclass(frozen=True)
class Pace:
    """How quickly answers come, and when the last one will.

    Attributes:
        per_hour: answers an hour, over the time that people were at it.
        remaining: answers that are still out.
        finish: the forecast, None where too little is back.
        earliest: lower end of its 95 % interval, which holds the luck of the pace alone.
        latest: upper end.
        basis: what the forecast assumes.
    """

    per_hour: float | None
    remaining: int
    finish: datetime | None
    earliest: datetime | None
    latest: datetime | None
    basis: str


def pace(times: Sequence[datetime], remaining: int, at: datetime) -> Pace:
    """The pace of the last seven days, or less where the first answer is younger.

    A whole day or more holds nights and breaks, so it is taken as it is. Before that, people are
    assumed to work eight hours a day at the pace of their time so far.
    """
    recent = sorted(t for t in times if at - WINDOW <= t <= at)
    if len(recent) < MIN_ANSWERS:
        return Pace(None, remaining, None, None, None, f"fewer than {MIN_ANSWERS} answers so far")
    span_h = max((at - recent[0]).total_seconds() / 3600, 1 / 60)
    whole_day = span_h >= 24
    if whole_day:
        per_hour = len(recent) / span_h
        per_day = 24 * per_hour
        basis = "at the pace of the last days"
    else:
        worked_h = max((recent[-1] - recent[0]).total_seconds() / 3600, 1 / 60)
        per_hour = len(recent) / worked_h
        per_day = WORKING_DAY_H * per_hour
        basis = f"at the pace so far, {WORKING_DAY_H:.0f} hours a day"
    if remaining == 0:
        return Pace(per_hour, 0, None, None, None, "everything is back")
    n, luck = len(recent), 1.96 * math.sqrt(len(recent))

    def after(share: float) -> datetime | None:
        days = remaining / (per_day * share) if share > 0 else math.inf
        return at + timedelta(days=days) if days < 36_500 else None

    return Pace(
        per_hour, remaining, after(1.0), after((n + luck) / n), after((n - luck) / n), basis
    )


def campaign_progress(config: Config, store: Store, at: datetime | None = None) -> dict[str, Any]:
    """The status, with agreement, pace, forecast and people, as JSON."""
    name = config.campaign.name
    at = at or datetime.now(UTC)
    status = campaign_status(config, store)
    last = store.last_round(name)
    reviews = store.reviews(name, last.id) if last else []
    answers = store.annotations(name)
    by_item: dict[str, set[str]] = {}
    for a in answers:
        by_item.setdefault(a.item_id, set()).add(a.annotator)
    first = config.people.panel.first
    waiting = last is not None and last.stage == "pull"
    remaining = sum(
        max(0, (r.wanted or first) - len(by_item.get(r.item_id, ())))
        for r in reviews
        if waiting and r.closed_at is None
    )
    ours = {r.item_id for r in reviews}
    forecast = pace([_when(a) for a in answers if a.item_id in ours], remaining, at)
    return {
        **status,
        "at": at.isoformat(timespec="seconds"),
        "agreement": people_alpha(answers, store.labels(name), ordinal=config.campaign.ordinal),
        "conflicts": sum(r.outcome == "conflict" and r.closed_at is None for r in reviews),
        "pace": {
            "answers_per_hour": forecast.per_hour,
            "answers_out": forecast.remaining,
            "finish": _iso(forecast.finish),
            "earliest": _iso(forecast.earliest),
            "latest": _iso(forecast.latest),
            "basis": forecast.basis,
        },
        "people": [person.to_json() for person in campaign_people(config, store)],
    }


def _when(a: Annotation) -> datetime:
    """When an answer was given, or else when it was read."""
    try:
        when = datetime.fromisoformat(a.updated_at)
    except ValueError:
        when = a.fetched_at
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def _iso(when: datetime | None) -> str | None:
    return None if when is None else when.isoformat(timespec="minutes")
