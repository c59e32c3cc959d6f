"""Which texts the students are evaluated on, and so never learn from."""

from __future__ import annotations

from loop.context import Context
from loop.items import unit_hash as hashed
from loop.store import Item

EVALUATED_FRAC = 0.2
"""Share of the texts sent that measures accuracy where no test text has a known label."""


def evaluation_items(ctx: Context) -> list[Item]:
    """Test items, and the audit items with gold where the test items have none.

    Audit items are then kept out of training, so accuracy on them is honest.
    """
    test = ctx.store.items(ctx.name, "test")
    judged = held_out(ctx) & set(ctx.store.gold(ctx.name))
    return test + [i for i in ctx.store.items(ctx.name, "pool") if i.id in judged]


def held_out(ctx: Context) -> set[str]:
    """Audit items that measure accuracy and so teach nothing, where no test text has a known label.

    Of a large audit only so many that they are ``EVALUATED_FRAC`` of all texts sent; which ones
    depends on their ids and on the audit of the round that sent them alone, so that it is the same
    in every round.
    """
    if _has_gold_test(ctx):
        return set()
    share = {
        r.id: min(1.0, EVALUATED_FRAC / max(r.config["rounds"]["audit_frac"], 1e-9))
        for r in ctx.store.rounds(ctx.name)
    }
    audited = (r for r in ctx.store.reviews(ctx.name) if r.reason == "audit")
    return {r.item_id for r in audited if unit_hash(ctx, "held out", r.item_id) < share[r.round_id]}


def _has_gold_test(ctx: Context) -> bool:
    return any(i.known_label for i in ctx.store.items(ctx.name, "test"))


def unit_hash(ctx: Context, purpose: str, item_id: str) -> float:
    """A number in [0, 1) that depends only on the campaign's first seed, purpose and item."""
    return hashed(ctx.seed, purpose, item_id)
