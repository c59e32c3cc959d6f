"""How quickly people answer, and when they will have answered all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from loop.campaign.tables import Annotation

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
        return Pace(per_hour, 0, None, None, None, "everything is answered")
    n, luck = len(recent), 1.96 * math.sqrt(len(recent))

    def after(share: float) -> datetime | None:
        days = remaining / (per_day * share) if share > 0 else math.inf
        return at + timedelta(days=days) if days < 36_500 else None

    return Pace(
        per_hour, remaining, after(1.0), after((n + luck) / n), after((n - luck) / n), basis
    )


def when_given(a: Annotation) -> datetime:
    """When an answer was given, or else when it was read."""
    try:
        when = datetime.fromisoformat(a.updated_at)
    except ValueError:
        when = a.fetched_at
    return when if when.tzinfo else when.replace(tzinfo=UTC)
