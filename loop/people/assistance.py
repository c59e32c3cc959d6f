"""What showing people the LLM's label, or why a text is asked, does to their answers.

Where ``assist_share`` is below 1, each text gets the help or not by the hash of its id, so the two
groups differ by chance alone and the difference between them is the effect of the help.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from loop.campaign.config import Config
from loop.campaign.store import Store
from loop.campaign.tables import Annotation
from loop.people.gold import latest_per_person
from loop.people.scorecards import labels_of_checks
from strategies.estimate import share_interval

MIN_TEXTS = 5  # in each group; fewer have no interval worth the name


@dataclass(frozen=True)
class Effect:
    """One quantity with help and without it.

    Attributes:
        what: ``agrees_with_llm`` and ``checks_right``, shares of answers, or ``seconds``, the
            geometric mean of the time per answer.
        shown: over the texts with help; each text counts once, with the mean of its answers.
        hidden: over the others.
        difference: shown minus hidden; of ``seconds``, shown over hidden, minus 1.
        low: lower end of its 95 % Welch interval.
        high: upper end.
        n_shown: texts with help.
        n_hidden: texts without.
    """

    what: str
    shown: float
    hidden: float
    difference: float
    low: float
    high: float
    n_shown: int
    n_hidden: int

    def to_json(self) -> dict[str, Any]:
        """Plain values by field name."""
        return asdict(self)


def campaign_assistance(config: Config, store: Store) -> list[Effect]:
    """The effects of a campaign's help; empty where all texts get it, or none."""
    section = config.people
    if section.assist == "blind" or section.assist_share == 1.0:
        return []
    name = config.campaign.name
    help_: dict[str, bool] = {}
    llm: dict[str, str] = {}
    known = {check: label for check, label in labels_of_checks(store, name).items() if label}
    reviews = store.reviews(name)
    ids = [r.item_id for r in reviews]
    rounds = {r.id: store.scores(r.id, ids) for r in store.rounds(name) if r.id is not None}
    for review in reviews:
        if review.assisted is not None:
            help_[review.item_id] = review.assisted
            if label := rounds[review.round_id][review.item_id].llm_label:
                llm[review.item_id] = label
    help_ |= {c.id: c.assisted for c in store.checks(name) if c.assisted is not None}
    return effects(
        store.annotations(name), help_, llm=llm, known=known, adjudicator=section.adjudicator
    )


def effects(
    annotations: Sequence[Annotation],
    help_: Mapping[str, bool],
    *,
    llm: Mapping[str, str],
    known: Mapping[str, str],
    adjudicator: str | None = None,
) -> list[Effect]:
    """What the help does, from the newest answer of each person to each text.

    Args:
        help_: item id -> whether the page helped.
        llm: item id -> the LLM's label.
        known: id of each hidden check -> its label.
        adjudicator: whose answers do not count; they are given with other answers in view.
    """
    by_item: dict[str, list[Annotation]] = defaultdict(list)
    for a in annotations:
        if a.item_id in help_ and a.annotator != adjudicator:
            by_item[a.item_id].append(a)
    agrees: dict[bool, list[float]] = {True: [], False: []}
    right: dict[bool, list[float]] = {True: [], False: []}
    log_s: dict[bool, list[float]] = {True: [], False: []}
    for item, given in by_item.items():
        answers = latest_per_person(given)
        labels = [a.label for a in answers if a.label is not None]
        times = [a.lead_time_s for a in answers if a.lead_time_s]
        if labels and item in llm:
            agrees[help_[item]].append(float(np.mean([label == llm[item] for label in labels])))
        if labels and item in known:
            right[help_[item]].append(float(np.mean([label == known[item] for label in labels])))
        if times:
            log_s[help_[item]].append(float(np.mean(np.log(times))))
    compared = [
        _effect("agrees_with_llm", agrees[True], agrees[False]),
        _effect("checks_right", right[True], right[False]),
        _effect("seconds", log_s[True], log_s[False], ratio=True),
    ]
    return [effect for effect in compared if effect is not None]


def _effect(
    what: str, shown: Sequence[float], hidden: Sequence[float], *, ratio: bool = False
) -> Effect | None:
    """Welch's interval for two independent groups of texts; None where one is too small.

    Source: Newcombe 1998, method 10, for shares that do not vary within a group.
    """
    n, m = len(shown), len(hidden)
    if min(n, m) < MIN_TEXTS:
        return None
    from scipy.special import stdtrit

    a, b = np.asarray(shown), np.asarray(hidden)
    va, vb = float(a.var(ddof=1)) / n, float(b.var(ddof=1)) / m
    difference = float(a.mean() - b.mean())
    if va + vb > 0:
        df = (va + vb) ** 2 / (va**2 / (n - 1) + vb**2 / (m - 1))
        half = float(stdtrit(df, 0.975)) * float(np.sqrt(va + vb))
        low, high = difference - half, difference + half
    elif ratio:
        return None  # times that are all the same were not measured
    else:  # all alike in each group, which a few texts do not make certain
        (a_low, a_high), (b_low, b_high) = (share_interval(float(x.mean()), len(x)) for x in (a, b))
        low = difference - float(np.hypot(a.mean() - a_low, b_high - b.mean()))
        high = difference + float(np.hypot(a_high - a.mean(), b.mean() - b_low))
    values = [float(a.mean()), float(b.mean()), difference, low, high]
    if ratio:
        values = [float(np.exp(v)) for v in values]
        values[2:] = [v - 1 for v in values[2:]]
    return Effect(what, values[0], values[1], values[2], values[3], values[4], n, m)


def assistance_lines(assist: str, measured: Sequence[Effect]) -> list[str]:
    """One sentence for each quantity."""
    lines = []
    for e in measured:
        texts = f"({e.n_shown} and {e.n_hidden} texts)"
        if e.what == "seconds":
            lines.append(
                f'With "{assist}" people take {e.shown:.1f} s a text, without {e.hidden:.1f} s:'
                f" {100 * e.difference:+.0f} % ({100 * e.low:+.0f} to {100 * e.high:+.0f}) {texts}."
            )
            continue
        what = {
            "agrees_with_llm": "agree with the LLM on",
            "checks_right": "know the hidden check in",
        }[e.what]
        changed = f", so they change {100 * (1 - e.shown):.0f} %" if e.what[0] == "a" else ""
        lines.append(
            f'With "{assist}" people {what} {100 * e.shown:.0f} % of the texts{changed}; without,'
            f" {100 * e.hidden:.0f} %: {100 * e.difference:+.0f} points"
            f" ({100 * e.low:+.0f} to {100 * e.high:+.0f}) {texts}."
        )
    return lines
