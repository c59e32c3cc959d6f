"""Which texts the students are evaluated on, and so never learn from; what is known of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from loop.campaign.context import Context
from loop.campaign.tables import VALIDATION, Item, Round, damaged, round_id
from loop.chance import unit_hash
from loop.ports import FloatArray, IntArray

EVALUATED_FRAC = 0.2
"""Share of the texts sent that measures accuracy where no test text has a known label."""


def evaluation_items(ctx: Context) -> list[Item]:
    """Test items, and the audit items with gold where the test items have none.

    Audit items are then kept out of training, so accuracy on them is honest.
    """
    test = ctx.store.items(ctx.name, "test")
    judged = held_out(ctx) & set(ctx.store.gold(ctx.name))
    return test + ctx.store.items_of(judged)


def held_out(ctx: Context) -> set[str]:
    """Audit items that measure accuracy and so teach nothing, where no test text has a known label.

    Of a large audit only so many that they are ``EVALUATED_FRAC`` of all texts sent; which ones
    depends on their ids and on the audit of the round that sent them alone, so that it is the same
    in every round.
    """
    if _has_gold_test(ctx):
        return set()
    share = {r.id: _share(r) for r in ctx.store.rounds(ctx.name)}
    audited = (r for r in ctx.store.reviews(ctx.name) if r.reason == "audit")
    return {
        r.item_id for r in audited if unit_hash(ctx.seed, "held out", r.item_id) < share[r.round_id]
    }


def _share(round_: Round) -> float:
    """Share of a round's audit that measures accuracy."""
    validates = round_.number == VALIDATION  # all of its texts are drawn at random
    audit_frac = 1.0 if validates else round_.config["rounds"]["audit_frac"]
    return min(1.0, EVALUATED_FRAC / max(audit_frac, 1e-9))


def _has_gold_test(ctx: Context) -> bool:
    return any(i.known_label for i in ctx.keys("test"))


@dataclass(frozen=True)
class Truth:
    """What is known of the n evaluated items.

    Attributes:
        y: (n,) true classes, -1 where unknown.
        stable: (n,) bool, items that stability is measured on: the test items.
        weight: (n,) > 0, inverse probability of being evaluated, for accuracy.
        source: ``test``, ``audit``, or None where nothing says what is right.
    """

    y: IntArray
    stable: NDArray[np.bool_]
    weight: FloatArray
    source: Literal["test", "audit"] | None

    def first(self, n: int) -> Truth:
        """The first n items, with what the tests know of them."""
        y = self.y[:n] if self.source == "test" else np.full(n, -1)
        source = self.source if (y >= 0).any() else None
        return Truth(y, self.stable[:n], self.weight[:n], source)


def truth_of(ctx: Context, evaluated: Sequence[Item]) -> Truth:
    """What is known of evaluated items: test labels, or else what the audit found."""
    index = ctx.config.label_index
    stable = np.array([i.split == "test" for i in evaluated])
    ones = np.ones(len(evaluated))
    known = np.array(
        [index[i.known_label] if i.known_label and i.split == "test" else -1 for i in evaluated],
        dtype=np.int64,
    )
    if (known >= 0).any():
        return Truth(known, stable, ones, "test")
    gold = ctx.store.gold(ctx.name)
    audits = {r.item_id: r for r in ctx.store.reviews(ctx.name) if r.reason == "audit"}
    judged = np.array(
        [index[gold[i.id].label] if i.id in gold and i.id in audits else -1 for i in evaluated],
        dtype=np.int64,
    )
    if not (judged >= 0).any():
        return Truth(judged, stable, ones, None)
    rows = np.flatnonzero(judged >= 0)
    drawn_in = np.array([audits[evaluated[i].id].round_id for i in rows])
    weight = np.ones(len(evaluated))
    weight[rows] = 1.0 / _ever_evaluated(ctx, np.array([evaluated[i].row for i in rows]), drawn_in)
    return Truth(judged, stable, weight, "audit")


def _ever_evaluated(ctx: Context, rows: IntArray, drawn_in: IntArray) -> FloatArray:
    """(m,) probability of texts to measure accuracy by the audit of any round so far.

    Each round's audit is drawn from the texts that no round before has sent. Later ones therefore
    hold fewer of the difficult texts, and their own probability alone would make students look
    better from round to round. A text could be drawn in every round until it had been a suspect.

    Args:
        rows: (m,) ``Item.row`` of the texts.
        drawn_in: (m,) id of the round whose audit drew each.
    Source: Horvitz and Thompson 1952, over the rounds taken together.
    """
    never = np.ones(len(rows))  # probability that no audit so far measured accuracy by the text
    waiting = np.ones(len(rows), dtype=bool)  # not drawn in a round before
    candidate = np.ones(len(rows), dtype=bool)  # less suspect than the suspects of earlier rounds
    for round_ in ctx.store.rounds(ctx.name):
        if round_.id not in drawn_in:
            continue
        reviews = ctx.store.reviews(ctx.name, round_.id)
        suspects = [r.suspicion for r in reviews if r.reason == "suspect"]
        prob = float(np.mean([r.audit_prob for r in reviews if r.reason == "audit"]))
        scores = ctx.store.all_scores(round_id(round_))
        if not len(scores.rows):
            raise damaged(f"round {round_.number} has sent texts, and its scores are gone")
        place = np.minimum(np.searchsorted(scores.rows, rows), len(scores.rows) - 1)
        there = scores.rows[place] == rows
        never[there & (candidate | waiting)] *= 1.0 - prob * _share(round_)
        waiting &= drawn_in != round_.id
        if suspects:
            candidate &= ~there | (scores.suspicion[place] < min(suspects))
    return 1.0 - never
