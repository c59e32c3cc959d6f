"""How well each person labels: against the others, on hidden checks, and how quickly."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from statistics import median
from typing import TYPE_CHECKING

from loop.campaign.config import Config
from loop.campaign.store import Store
from loop.campaign.tables import Annotation
from loop.people.gold import answer_table, latest_per_person, people_alpha
from loop.people.person import Person, Rate
from loop.people.tally import problems_of, unreadable_line

if TYPE_CHECKING:
    from rich.table import Table

MIN_SHARED, MIN_CHECKS = 20, 8  # fewer say nothing
MARGIN = 0.03  # below the others' rate by more than this, and surely so
SURE_Z = 2.58  # one false alarm among 200 people
FAST_S, WORDS_PER_S, FAST_CAP_S = 0.5, 15.0, 3.0  # nobody reads 900 words a minute
MIN_FAST, FAST_FRAC = 5, 0.1

DIFFERS = "often differs from the others"
MISSES = "misses hidden checks"
HURRIES = "answers faster than one can read"


def campaign_people(config: Config, store: Store) -> list[Person]:
    """Everybody who answered, by name."""
    name = config.campaign.name
    answers, checks = store.annotations(name), store.checks(name)
    texts = store.texts({a.item_id for a in answers} | {check.item_id for check in checks})
    texts |= {check.id: texts[check.item_id] for check in checks}
    return people(
        answers,
        labels=store.labels(name),
        texts=texts,
        checks=labels_of_checks(store, name),
        adjudicator=config.people.adjudicator,
        ordinal=config.campaign.ordinal,
    )


def labels_of_checks(store: Store, campaign: str) -> dict[str, str | None]:
    """Hidden check -> its known label, or None if it has none any more."""
    checks = store.checks(campaign)
    if not checks:
        return {}
    gold = store.gold(campaign)
    source = {key.id: key.known_label for key in store.keys_of({c.item_id for c in checks})}
    return {c.id: gold[c.item_id].label if c.item_id in gold else source[c.item_id] for c in checks}


def people(
    annotations: Sequence[Annotation],
    *,
    labels: Sequence[str],
    texts: Mapping[str, str],
    checks: Mapping[str, str | None],
    adjudicator: str | None = None,
    ordinal: bool = False,
) -> list[Person]:
    """Judges everybody by their newest answers.

    Args:
        texts: item id -> text, to know how long reading takes.
        checks: id of each hidden check -> its known label, or None if it has none any more.
        adjudicator: whose answers settle conflicts; they are compared with nobody.
        ordinal: whether the labels are in order; alpha then counts how far answers lie apart.
    """
    by_item: dict[str, list[Annotation]] = defaultdict(list)
    for a in annotations:
        by_item[a.item_id].append(a)
    for item in by_item:
        by_item[item] = latest_per_person(by_item[item])
    names = sorted({a.annotator for answers in by_item.values() for a in answers})
    shared, agreed = _against_others(by_item, checks, adjudicator)
    asked, right = _on_checks(by_item, checks)
    pairs = _pairs(by_item, checks, adjudicator)
    reliability = _reliability(by_item, names, labels)
    shown = []
    for who in names:
        own = [a for answers in by_item.values() for a in answers if a.annotator == who]
        times = [a.lead_time_s for a in own if a.lead_time_s]
        rest = [a for answers in by_item.values() for a in answers if a.annotator != who]
        fast = sum(
            1
            for a in own
            if a.lead_time_s and not a.skipped and a.lead_time_s < _reading_s(texts, a.item_id)
        )
        person = Person(
            name=who,
            answers=len(own),
            labels=sum(a.label is not None for a in own),
            skipped=sum(a.skipped for a in own),
            unsure=sum(a.problem == "unsure" for a in own),
            unreadable=dict(problems_of((), own)),
            agreement=None if who == adjudicator else Rate.of(agreed[who], shared[who]),
            checks=Rate.of(right[who], asked[who]),
            reliability=reliability.get(who),
            alpha_without=(people_alpha(rest, labels, ordinal=ordinal) if len(names) > 2 else None),
            median_s=median(times) if times else None,
            fast=fast,
        )
        flags = []
        if who != adjudicator and _differs(pairs, who):
            flags.append(DIFFERS)
        if _misses(right, asked, who):
            flags.append(MISSES)
        if fast >= MIN_FAST and fast > FAST_FRAC * len(own):
            flags.append(HURRIES)
        shown.append(replace(person, flags=tuple(flags)))
    return shown


def _against_others(
    by_item: Mapping[str, Sequence[Annotation]],
    checks: Mapping[str, str | None],
    adjudicator: str | None,
) -> tuple[Counter[str], Counter[str]]:
    """How often others decided an item a person labelled too, and how often that was the same."""
    shared: Counter[str] = Counter()
    agreed: Counter[str] = Counter()
    for item, answers in by_item.items():
        if item in checks:
            continue
        final = [a.label for a in answers if a.annotator == adjudicator and a.label]
        for a in answers:
            if a.label is None or a.annotator == adjudicator:
                continue
            others = Counter(
                b.label
                for b in answers
                if b.label and b.annotator not in (a.annotator, adjudicator)
            ).most_common(2)
            if final:
                verdict = final[0]
            elif others and (len(others) == 1 or others[0][1] > others[1][1]):
                verdict = others[0][0]
            else:
                continue
            shared[a.annotator] += 1
            agreed[a.annotator] += a.label == verdict
    return shared, agreed


def _on_checks(
    by_item: Mapping[str, Sequence[Annotation]], checks: Mapping[str, str | None]
) -> tuple[Counter[str], Counter[str]]:
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for item, known in checks.items():
        for a in by_item.get(item, ()):
            if a.label is not None and known is not None:
                asked[a.annotator] += 1
                right[a.annotator] += a.label == known
    return asked, right


def _reliability(
    by_item: Mapping[str, Sequence[Annotation]], names: Sequence[str], labels: Sequence[str]
) -> dict[str, float]:
    from strategies.crowd import dawid_skene

    several = [
        item for item, answers in by_item.items() if sum(a.label is not None for a in answers) > 1
    ]
    if not several:
        return {}
    table = answer_table(several, names, by_item, labels)
    values = dawid_skene(table, len(labels)).reliability
    counts = (table >= 0).sum(axis=0)
    return {who: float(values[i]) for i, who in enumerate(names) if counts[i]}


Pairs = dict[tuple[str, str], list[int]]
"""Two people, in the order of their names -> how often they agreed, and on how many texts."""


def _pairs(
    by_item: Mapping[str, Sequence[Annotation]],
    checks: Mapping[str, str | None],
    adjudicator: str | None,
) -> Pairs:
    pairs: Pairs = {}
    for item, answers in by_item.items():
        if item in checks:
            continue
        given = sorted(
            (a.annotator, a.label) for a in answers if a.label and a.annotator != adjudicator
        )
        for (one, said), (other, said_too) in combinations(given, 2):
            pair = pairs.setdefault((one, other), [0, 0])
            pair[0] += said == said_too
            pair[1] += 1
    return pairs


def _differs(pairs: Pairs, who: str) -> bool:
    """Whether a person agrees with the others surely less than they do among themselves.

    With two people alone nobody can say which of them errs.
    """
    own = [pair for names, pair in pairs.items() if who in names]
    rest = [pair for names, pair in pairs.items() if who not in names]
    n, m = sum(p[1] for p in own), sum(p[1] for p in rest)
    return min(n, m) >= MIN_SHARED and _surely_less(
        sum(p[0] for p in own), n, sum(p[0] for p in rest), m
    )


def _misses(right: Counter[str], asked: Counter[str], who: str) -> bool:
    """Whether a person knows the hidden checks surely less often than the others do."""
    rest, n = right.total() - right[who], asked.total() - asked[who]
    return min(asked[who], n) >= MIN_CHECKS and _surely_less(right[who], asked[who], rest, n)


def _surely_less(hits: int, n: int, more_hits: int, m: int) -> bool:
    """Whether the first share is below the second by more than the margin and by more than luck."""
    low, high = (hits + 1) / (n + 2), (more_hits + 1) / (m + 2)
    error = math.sqrt(low * (1 - low) / n + high * (1 - high) / m)
    return high - low > MARGIN + SURE_Z * error


def _reading_s(texts: Mapping[str, str], item: str) -> float:
    words = len(texts.get(item, "").split())
    return min(FAST_S + words / WORDS_PER_S, FAST_CAP_S)


def people_table(scorecards: Sequence[Person]) -> Table:
    """Everybody, for the terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("who", no_wrap=True)
    for title in (
        "answers",
        "skipped",
        "unsure",
        "unreadable",
        "same as others",
        "checks right",
        "reliability",
    ):
        table.add_column(title, justify="right", no_wrap=" " not in title)
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column("look at")
    for p in scorecards:
        table.add_row(
            Text(p.name.encode("unicode_escape").decode() if not p.name.isprintable() else p.name),
            str(p.answers),
            str(p.skipped),
            str(p.unsure),
            str(sum(p.unreadable.values())),
            _shown(p.agreement),
            _shown(p.checks),
            "–" if p.reliability is None else f"{100 * p.reliability:.0f} %",
            "–" if p.median_s is None else f"{p.median_s:.1f}",
            Text(", ".join(p.flags)),
        )
    return table


def _shown(rate: Rate | None) -> str:
    if rate is None:
        return "–"
    return f"{100 * rate.value:.0f} % ({100 * rate.low:.0f}–{100 * rate.high:.0f}) of {rate.n}"


def unreadable_lines(scorecards: Sequence[Person]) -> list[str]:
    """One line for everybody whose answers could not all be read."""
    return [f"{p.name}: {unreadable_line(p.unreadable)}." for p in scorecards if p.unreadable]


def people_lines(scorecards: Sequence[Person]) -> list[str]:
    """One line for everybody who should be looked at."""
    return [f"{p.name}: {' and '.join(p.flags)}" for p in scorecards if p.flags]
