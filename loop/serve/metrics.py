"""What Prometheus reads of ``goldloop serve``: the campaign and its pulls as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from loop import __version__
from loop.campaign.tables import STAGES
from loop.serve.puller import Pulls

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def metrics_text(status: Mapping[str, Any], pulls: Pulls) -> str:
    """The campaign's state in Prometheus' text format 0.0.4.

    Args:
        status: what ``goldloop status --json`` prints.
        pulls: how reading people's answers went since the server started.
    """
    return "".join(_lines(status, pulls))


def _lines(status: Mapping[str, Any], pulls: Pulls) -> Iterator[str]:
    budget, name = status["budget"], status["campaign"]

    def metric(key: str, kind: str, about: str, *values: tuple[Mapping[str, str], float]) -> str:
        key = f"goldloop_{key}"
        rows = "".join(
            f"{key}{_labels({'campaign': name, **labels})} {value:.15g}\n"
            for labels, value in values
        )
        return f"# HELP {key} {about}\n# TYPE {key} {kind}\n{rows}"

    def gauge(key: str, about: str, value: float) -> str:
        return metric(key, "gauge", about, ({}, value))

    yield metric("info", "gauge", "The version that serves.", ({"version": __version__}, 1))
    yield gauge("round", "The round under way, or the last one.", status["round"])
    yield gauge("rounds", "Rounds that the campaign file asks for.", status["rounds"])
    yield metric(
        "stage",
        "gauge",
        "1 for the stage that comes next in the round.",
        *(({"stage": stage}, float(stage == status["stage"])) for stage in STAGES),
    )
    yield gauge("texts", "Texts of the campaign.", status["texts"])
    yield gauge("labels_sent", "Texts that were sent to people, in all rounds.", status["sent"])
    yield gauge("labels_back", "Texts that people have answered.", status["back"])
    yield gauge("labels_gold", "Gold labels.", status["gold"])
    yield gauge("labels_left", "Texts of the budget that may still be sent.", budget["labels_left"])
    yield gauge("llm_votes", "Answers of the LLM.", budget["llm_votes"])
    yield gauge("spent_usd", "Money spent on the LLM and people.", budget["usd_spent"])
    yield gauge(
        "committed_usd",
        "Money spent, with what is asked and not back yet.",
        budget["usd_committed"],
    )
    if budget["usd"] is not None:
        yield gauge("cap_usd", "The most that may be spent.", budget["usd"])
    yield metric("pulls_total", "counter", "Times that answers were read.", ({}, pulls.good))
    yield metric("pull_failures_total", "counter", "Times that this failed.", ({}, pulls.failed))
    yield gauge("pull_failures_in_a_row", "Failures since it last worked.", pulls.failed_in_a_row)
    yield gauge(
        "seconds_since_last_good_pull",
        "Since answers were last read, or since the server started.",
        pulls.since_good_s,
    )


def _labels(labels: Mapping[str, str]) -> str:
    def quoted(value: str) -> str:
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'

    return "{" + ",".join(f"{key}={quoted(value)}" for key, value in labels.items()) + "}"
