"""How a round moves on: what is back, how quickly, and the day it will be complete."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from loop.campaign.config import Config
from loop.campaign.store import Store
from loop.people.gold import people_alpha
from loop.people.pace import pace, when_given
from loop.people.scorecards import campaign_people
from loop.report.status import campaign_status


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
    forecast = pace([when_given(a) for a in answers if a.item_id in ours], remaining, at)
    return {
        **status,
        "platform": config.people.platform_name,
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


def _iso(when: datetime | None) -> str | None:
    return None if when is None else when.isoformat(timespec="minutes")
