"""The pool as arrays: the one place where items become rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from loop.campaign.config import as_run
from loop.campaign.context import Context
from loop.campaign.extensions import BUILT_IN, load, needs_of, what
from loop.campaign.tables import Gold, Item, ItemKey, Review, Round, damaged, round_id
from loop.chance import stream
from loop.errors import ConfigError
from loop.llm.calibration import View, choose_view
from loop.llm.states import KeptStates, StateFile, kept_states
from loop.llm.votes import LlmVotes, read_votes
from loop.ports import FloatArray, IntArray
from loop.student.kept_vectors import (
    item_embeddings,
    item_neighbours,
    item_students,
    kept_judges,
)
from strategies.estimate import over_all_rounds
from strategies.needs import BY_NEIGHBOURS
from strategies.pool import Neighbours, Pool, Vectors


@dataclass(frozen=True)
class Arrays:
    """The pool as arrays; row i of each is ``items[i]``. The one place where rows become ids.

    Attributes:
        news: one sentence where the LLM's states are not all there; else empty.
    """

    items: list[ItemKey]
    votes: LlmVotes
    pool: Pool
    view: View
    news: str = ""


def pool_arrays(
    ctx: Context, round_: Round, signals: Sequence[str], *, hidden: Collection[str] = ()
) -> Arrays:
    """The pool with what the signals need; hidden items appear as if they had no gold."""
    items = ctx.keys("pool")
    votes = read_votes(ctx.config, ctx.store, ctx.annotator.revision, items)
    reviews, people = ctx.store.reviews_by_item(ctx.name), ctx.store.gold(ctx.name)
    shown = ~by_item(items, dict.fromkeys(hidden, True), default=False)
    gold = np.where(shown, _classes(ctx, items, people), -1)
    prob_in_round = inclusion_prob_of(items, reviews)
    chosen, arrived = order_of_gold(ctx, items, reviews)
    # Only gold of earlier rounds has a say in how this round uses the LLM's answers.
    earlier = by_item(
        items, {i: g.round_number < round_.number for i, g in people.items()}, default=False
    )
    old_gold = np.where(earlier, gold, -1)
    view = choose_view(
        ctx.config,
        votes,
        old_gold,
        audited(items, reviews),
        over_all_rounds(old_gold, prob_in_round, chosen, arrived=arrived),
        rng=stream("calibration", round_.seed, round_.number),
    )
    votes = replace(votes, posterior=view.posterior)
    unsure = {i: r.outcome == "unsure" and i not in hidden for i, r in reviews.items()}
    needs = set().union(*(needs_of(name) for name in signals)) if signals else set()
    embeddings: Vectors | None = None
    neighbours: Neighbours | None = None
    p_student: FloatArray | None = None
    states = KeptStates(None)
    if needs & {"embeddings", "p_student"}:
        embeddings = item_embeddings(ctx, items)
    if BY_NEIGHBOURS & set(signals) and embeddings is not None and len(items) > 1:
        neighbours = item_neighbours(ctx, items, embeddings)
    if "p_student" in needs and embeddings is not None:
        states = llm_states(ctx, items, votes.answered)
        y: IntArray = np.where(gold >= 0, gold, votes.y_llm)
        taught = (votes.answered | (gold >= 0)).astype(np.float64)
        purpose = "suspicion" if "learned_error" in signals else "repair"
        p_student = item_students(ctx, items, embeddings, y, taught, round_, purpose=purpose)
    pool = Pool(
        probs=votes.probs,
        y_llm=votes.y_llm,
        gold=gold,
        embeddings=embeddings,
        p_student=p_student,
        off_label_mass=votes.off_label_mass,
        class_prior=view.prior,
        ordinal=ctx.config.campaign.ordinal,
        inclusion_prob=over_all_rounds(gold, prob_in_round, chosen, arrived=arrived),
        unsure=by_item(items, unsure, default=False),
        answered=votes.answered,
        states=states.values,
        neighbours=neighbours,
    )
    if "learned_error" in signals:
        from strategies.signals.students import gold_students

        rng = stream("states", round_.seed, round_.number)
        pool = replace(pool, p_gold=gold_students(pool, rng=rng))
        pool = replace(pool, p_tuned=_judged_before(ctx, round_, items, pool))
    return Arrays(items, votes, pool, view, states.news)


def _judged_before(
    ctx: Context, round_: Round, items: Sequence[ItemKey], pool: Pool
) -> FloatArray | None:
    """(n, k) what fine-tuned judges of the round before said of the labels, if it had any.

    Of texts that have come since, the quick students' opinion.
    """
    before = [r for r in ctx.store.rounds(ctx.name) if r.number == round_.number - 1]
    if not as_run(round_.config).strategy.judged or not before or before[0].number < 1:
        return None
    said = kept_judges(ctx, items, before[0], pool.k)
    if said is None or pool.p_student is None:
        return None
    return np.where(np.isfinite(said), said, pool.p_student.mean(axis=0))


def gold_classes(ctx: Context, items: Sequence[ItemKey]) -> IntArray:
    """(n,) class that people gave each item, -1 where they gave none."""
    return _classes(ctx, items, ctx.store.gold(ctx.name))


def _classes(ctx: Context, items: Sequence[ItemKey], people: Mapping[str, Gold]) -> IntArray:
    index = ctx.config.label_index
    return by_item(items, {i: index[gold.label] for i, gold in people.items()}, -1)


def inclusion_prob_of(items: Sequence[ItemKey], reviews: Mapping[str, Review]) -> FloatArray:
    """(n,) probability with which each item was chosen in its round; 1 where none chose it."""
    return by_item(items, {i: r.inclusion_prob for i, r in reviews.items()}, 1.0)


def order_of_gold(
    ctx: Context, items: Sequence[ItemKey], reviews: Mapping[str, Review]
) -> tuple[IntArray, IntArray]:
    """When each of n texts was chosen, and when each came, as ``label_quality`` asks.

    Round r counts as 2 r. Gold that was imported after it and before the next counts as 2 r + 1.

    Returns:
        (n,) when each text was chosen or its gold imported, -1 where neither has happened, and
        (n,) the first round that could choose it.
    """
    rounds = ctx.store.rounds(ctx.name)
    numbers = {r.id: 2 * r.number for r in rounds}
    imported = {
        i: 2 * g.round_number + 1 for i, g in ctx.store.gold(ctx.name).items() if i not in reviews
    }
    chosen = {i: numbers[r.round_id] for i, r in reviews.items()}
    scored = [(r, ctx.store.last_scored(round_id(r))) for r in rounds]
    seen = [(2 * r.number, last) for r, last in scored if last >= 0]
    ends = np.maximum.accumulate([last for _, last in seen] or [-1])
    first = np.array([number for number, _ in seen] + [2 * (len(rounds) + 1)])
    place = np.searchsorted(ends, [item.row for item in items])
    return by_item(items, imported | chosen, -1), first[np.minimum(place, len(first) - 1)]


def audited(items: Sequence[ItemKey], reviews: Mapping[str, Review]) -> NDArray[np.bool_]:
    """(n,) whether each item was drawn at random, to measure the LLM."""
    return by_item(items, {i: r.reason == "audit" for i, r in reviews.items()}, default=False)


def by_item(items: Sequence[ItemKey], values: Mapping[str, Any], default: Any) -> NDArray[Any]:
    """(n,) the value of each item by its id; the default of those that have none, mostly many."""
    out = np.full(len(items), default)
    rows = [row for row, item in enumerate(items) if item.id in values]
    out[rows] = [values[items[row].id] for row in rows]
    return out


def llm_states(
    ctx: Context, items: Sequence[Item | ItemKey], answered: NDArray[np.bool_]
) -> KeptStates:
    """The LLM's own states of n items under its first prompt, where it shows them."""
    variants = ctx.store.variants(ctx.name, ctx.annotator.revision)
    if not variants:
        return KeptStates(None)
    file = StateFile.of(ctx.config.out, ctx.annotator.revision, variants[0].hash)
    return kept_states(file, [item.id for item in items], answered)


def suspicion_of(ctx: Context, round_: Round, items: Sequence[ItemKey]) -> FloatArray:
    """(n,) suspicion that a round has stored for each of the pool's n texts.

    Raises:
        StoreError: the scores are damaged, or not those of these texts.
    """
    scores = ctx.store.all_scores(round_id(round_))
    if scores.rows.tolist() != [item.row for item in items]:
        raise damaged(f"the scores of round {round_.number} are not those of its texts")
    return scores.suspicion


def suspicion_by(name: str, pool: Pool, rng: np.random.Generator) -> FloatArray:
    """(n,) suspicion of every item by one strategy; higher = more suspect.

    Raises:
        ConfigError: another package's strategy fails, or answers with something else.
    """
    strategy = load("strategies", name)
    if name in BUILT_IN["strategies"]:
        return cast(FloatArray, strategy(pool, rng))
    try:
        suspicion = np.asarray(strategy(pool, rng), dtype=np.float64)
    except Exception as exc:  # another package's code may raise anything
        raise ConfigError(
            f"{what('strategies', name)} failed ({type(exc).__name__}: {exc}). Update it, or take"
            " another."
        ) from exc
    if suspicion.shape != (pool.n,) or not np.isfinite(suspicion).all():
        raise ConfigError(
            f"{what('strategies', name)} must give one finite number for each of {pool.n} texts; it"
            f" gave shape {suspicion.shape} with {np.isfinite(suspicion).sum()} finite numbers."
        )
    return suspicion
