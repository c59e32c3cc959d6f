"""Errors of the LLM that people caught: some examples, and which signal saw each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from loop.campaign.config import Config
from loop.campaign.store import Store
from loop.campaign.tables import IMPORTED, Review, Round, Score, round_id
from loop.ports import FloatArray
from loop.report.contents import CaughtError

SHOWN, FROM_RANDOM = 12, 4
"""Examples in all, and at most so many of them that no suspicion led to."""
MAX_CHARS = 300


def caught_errors(config: Config, store: Store, rounds: Sequence[Round]) -> tuple[CaughtError, ...]:
    """At most ``SHOWN`` examples, of the newest rounds, most suspect first.

    Different pairs of labels come first, so that the examples show different kinds of errors.
    """
    name = config.campaign.name
    gold = {item: g.label for item, g in store.gold(name).items() if g.how != IMPORTED}
    caught: list[CaughtError] = []
    for round_ in reversed(rounds):
        room = SHOWN - len(caught)
        reviews = [r for r in store.reviews(name, round_.id) if r.item_id in gold]
        if not reviews or room <= 0:
            continue
        scores = store.scores(round_id(round_), [r.item_id for r in reviews])
        wrong = [r for r in reviews if scores[r.item_id].llm_label not in (None, gold[r.item_id])]
        chosen = _varied(wrong, scores, gold, room)
        texts = store.texts([r.item_id for r in chosen])
        signals = store.all_scores(round_id(round_)).signals if chosen else {}
        sorted_ = {name: np.sort(values) for name, values in signals.items()}
        for review in chosen:
            score = scores[review.item_id]
            ahead_of, signal = _best(score, sorted_)
            text = texts[review.item_id]
            caught.append(
                CaughtError(
                    text=text if len(text) <= MAX_CHARS else f"{text[: MAX_CHARS - 1]}…",
                    llm_label=str(score.llm_label),
                    gold=gold[review.item_id],
                    round=round_.number,
                    reason=review.reason,
                    signal=signal,
                    ahead_of=ahead_of,
                )
            )
    return tuple(caught)


def _varied(
    wrong: Sequence[Review], scores: Mapping[str, Score], gold: Mapping[str, str], room: int
) -> list[Review]:
    """Some of them by rank: first one of each pair of labels, then others; few random ones."""
    suspects = [r for r in wrong if r.reason == "suspect"]
    others = [r for r in wrong if r.reason != "suspect"]
    few = others[: max(min(FROM_RANDOM, room), room - len(suspects))]
    seen: set[tuple[str | None, str]] = set()
    first: list[Review] = []
    then: list[Review] = []
    for review in suspects:
        pair = scores[review.item_id].llm_label, gold[review.item_id]
        (then if pair in seen else first).append(review)
        seen.add(pair)
    kept = {r.item_id for r in [*first, *then][: max(0, room - len(few))]}
    return [r for r in suspects if r.item_id in kept] + few[:room]


def _best(score: Score, sorted_: Mapping[str, FloatArray]) -> tuple[float, str]:
    """The share of texts that the best signal held less suspect, and that signal's name."""
    ranked = [
        (float(np.searchsorted(sorted_[name], value)) / max(len(sorted_[name]), 1), name)
        for name, value in score.signals.items()
    ]
    return max(ranked, default=(0.0, ""))
