"""One person's work in figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from strategies.estimate import share_interval


@dataclass(frozen=True)
class Rate:
    """A share of n things with its 95 % Wilson interval."""

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, hits: int, n: int) -> Rate | None:
        """None of nothing."""
        if n == 0:
            return None
        return cls(hits / n, *share_interval(hits / n, n), n)


@dataclass(frozen=True)
class Person:
    """One person's work.

    Attributes:
        answers: newest answers to different texts, whatever they are.
        labels: those with a usable label; the rest were skipped, unsure or unreadable.
        unreadable: why answers could not be used -> how many, for everything but "unsure".
        agreement: with what the others alone decide: their strict majority, or the adjudicator.
        checks: right answers to texts whose label was known before.
        reliability: expected share of right answers under Dawid and Skene's model.
        alpha_without: agreement of the others when this person is left out.
        median_s: time per answer.
        fast: answers given faster than the text can be read.
        flags: what somebody should look at.
    """

    name: str
    answers: int
    labels: int
    skipped: int
    unsure: int
    unreadable: Mapping[str, int]
    agreement: Rate | None
    checks: Rate | None
    reliability: float | None
    alpha_without: float | None
    median_s: float | None
    fast: int
    flags: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values by field name."""
        return asdict(self)
