"""Hands measured rounds to experiment trackers, as numbers: no text, no person and no secret."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from loop.addresses import hidden, without_secrets
from loop.campaign.config import Config
from loop.campaign.metrics import METRICS, Metric, RoundMetrics
from loop.campaign.store import Store
from loop.errors import LoopError
from loop.measure.collapsed import measured_rounds
from loop.ports import TrackedCampaign, TrackedRound, Tracker
from loop.report.collect import campaign_view
from loop.report.contents import ReportView
from loop.report.html import write_report
from loop.report.rounds_json import write_rounds

STAY_HERE = frozenset(
    {
        "prompt.demonstrations",
        "annotator.options",
        "people.options",
        "people.adjudicator",
        "store.url",
    }
)
"""Keys of the campaign file that hold texts, names, or what only another package can judge."""
NAMES = {"mlflow": "MLflow", "wandb": "Weights & Biases"}


@dataclass(frozen=True)
class Tracked:
    """What became of one tracker.

    Attributes:
        rounds: numbers of the rounds that it took now.
        problem: why it took none, as one sentence; or empty.
    """

    tracker: str
    rounds: tuple[int, ...] = ()
    problem: str = ""

    @property
    def name(self) -> str:
        """The tracker's, for people."""
        return NAMES.get(self.tracker, self.tracker)

    @property
    def line(self) -> str:
        """One sentence for people."""
        if self.problem:
            return (
                f"{self.name} did not take the round: {self.problem} The campaign loses nothing by"
                " it. The next round, or `goldloop track`, sends what is missing."
            )
        if not self.rounds:
            return f"{self.name} has every round already."
        rounds = ", ".join(map(str, self.rounds))
        return f"Sent to {self.name}: round{'s' if len(self.rounds) > 1 else ''} {rounds}."


def track_rounds(config: Config, store: Store, build: Callable[[str], Tracker]) -> list[Tracked]:
    """Sends every tracker of the campaign file the measured rounds that it does not have yet.

    A tracker that fails is told and left: the rounds are in the store, and are sent another time.

    Args:
        build: makes the tracker of that name.
    """
    if not config.tracking.to or not measured_rounds(store.rounds(config.campaign.name)):
        return []
    with TemporaryDirectory(prefix="goldloop-") as folder:
        campaign = tracked_campaign(config, store, Path(folder))
        return [_tracked(name, campaign, build) for name in config.tracking.to]


def _tracked(name: str, campaign: TrackedCampaign, build: Callable[[str], Tracker]) -> Tracked:
    try:
        return Tracked(name, tuple(build(name).track(campaign)))
    except Exception as exc:  # a tracker's library may raise anything
        said = hidden((str(exc).strip().splitlines() or [""])[0])[:300]
        kind = "" if isinstance(exc, LoopError) else f"{type(exc).__name__}: "
        return Tracked(name, problem=f"{kind}{said.rstrip('.')}.")


def tracked_campaign(config: Config, store: Store, folder: Path) -> TrackedCampaign:
    """The campaign as trackers see it.

    Args:
        folder: where report.html and rounds.json are written for them, without texts and people.
    """
    name = config.campaign.name
    spent = {
        e.detail.get("round"): e.detail.get("spent_usd") for e in store.events(name, "measure")
    }
    rounds = measured_rounds(store.rounds(name))
    first, _ = rounds[0]
    view = _without_texts(campaign_view(config, store))
    write_report(view, folder / "report.html")
    write_rounds(view, folder / "rounds.json")
    return TrackedCampaign(
        id=store.campaign_uid(name),
        name=name,
        params=dict(_params(first.config)),
        rounds=[
            TrackedRound(
                round_.number,
                round_.closed_at or round_.opened_at,
                _finite(round_metrics(metrics) | {"money/spent_usd": spent.get(round_.number)}),
            )
            for round_, metrics in rounds
        ],
        files=[folder / "report.html", folder / "rounds.json"],
    )


def round_metrics(metrics: RoundMetrics) -> dict[str, float | None]:
    """A round's numbers by name, ``arm/metric`` with ``_low`` and ``_high`` for its interval.

    Shares lie between 0 and 1.
    """
    named: dict[str, Metric | float | None] = {
        f"{arm}/{key}": students.metric(key)
        for arm, students in metrics.arms.items()
        for key in METRICS
    }
    named |= {
        "labels/sent": metrics.bought,
        "labels/gold": metrics.gold,
        "labels/answers": metrics.answers,
        "people/alpha": metrics.people_alpha,
    }
    if quality := metrics.label_quality:
        named |= {"llm/accuracy": quality.accuracy, "llm/macro_f1": quality.macro_f1}
        named |= {"llm/remaining_error": quality.remaining_error}
    if suspects := metrics.suspects:
        for kind, wrong in (("suspects", suspects.suspects), ("random", suspects.random)):
            named[f"batch/{kind}_wrong"] = wrong.wrong / wrong.n if wrong.n else None
    values: dict[str, float | None] = {}
    for name, value in named.items():
        if isinstance(value, Metric):
            ends = {"": value.value, "_low": value.low, "_high": value.high}
            values |= {f"{name}{end}": number for end, number in ends.items()}
        else:
            values[name] = value
    return values


def _finite(values: Mapping[str, float | None]) -> dict[str, float]:
    return {n: float(x) for n, x in values.items() if x is not None and math.isfinite(x)}


def _params(config: Mapping[str, Any]) -> Iterator[tuple[str, str | int | float | bool]]:
    """The campaign file as one row of values; what is empty or not to go out is left out."""
    for section, keys in config.items():
        if section == "labels":
            yield "labels", ", ".join(label["name"] for label in keys)
            continue
        for key, value in keys.items():
            name = f"{section}.{key}"
            if name in STAY_HERE or section == "tracking" or value in (None, [], {}):
                continue
            shown = without_secrets(value)
            yield name, shown if isinstance(shown, str | int | float | bool) else str(shown)


def _without_texts(view: ReportView) -> ReportView:
    """The report without examples, people's names and the keys that stay here."""
    provenance = dict(view.provenance)
    provenance["config"] = {
        section: {k: v for k, v in keys.items() if f"{section}.{k}" not in STAY_HERE}
        if isinstance(keys, dict)
        else keys
        for section, keys in provenance["config"].items()
    }
    people = view.people and replace(view.people, rows=())
    return replace(view, caught=(), people=people, provenance=provenance)
