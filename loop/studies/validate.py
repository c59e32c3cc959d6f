"""Validate first: is the LLM good enough for this task, and what will repairing it cost?

A random sample of the pool goes to people as a round of its own, number 0, before any other. It
measures the LLM; nothing is trained. Source: Pangakis and Wolken 2024, arXiv 2406.17633.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from loop.campaign.config import Config
from loop.campaign.context import Context
from loop.campaign.store import Store
from loop.campaign.tables import VALIDATION, ItemKey, Round
from loop.chance import stream
from loop.errors import StageError
from loop.llm.votes import calibrated_votes, read_votes, vote_arrays
from loop.next_round import new_round, open_campaign
from loop.ports import FloatArray
from strategies.estimate import (
    MIN_RANDOM,
    Estimate,
    LabelQuality,
    TooFewRandomError,
    label_quality,
    unseen,
)
from strategies.signals.uncertainty import normalised_entropy

SAFE_FROM = 0.93
RULE = (
    "in the tables of arXiv 2504.15432 the two students of LLM labels that were 93 % accurate lost"
    " at most 3.4 points of alpha_K against students of gold, the six less accurate ones 16 to 41;"
    " a student is about as accurate as its LLM (arXiv 2406.17633)"
)
RESAMPLES = 500

Verdict = Literal["likely", "unlikely", "open"]


@dataclass(frozen=True)
class Price:
    """Gold labels until the goal is reached, with a 95 % interval over other samples.

    Attributes:
        random: bought at random.
        by_entropy: bought where the LLM's calibrated answer is least sure.
    """

    random: Estimate
    by_entropy: Estimate


@dataclass(frozen=True)
class Validation:
    """What the sample says.

    Attributes:
        pool: texts in the pool.
        unanswered: those of them that the LLM gave no label; quality and price leave them out.
        sent: texts in the sample.
        quality: of the LLM's labels as they are used.
        side_by_side: the same for each prompt, or each recorded column, that answered every text
            that has an LLM label.
        verdict: whether a student of these labels is likely to suffer.
        goal: share of right labels that the price is for.
        price: gold labels to the goal.
    """

    pool: int
    unanswered: int
    sent: int
    labels: tuple[str, ...]
    quality: LabelQuality
    side_by_side: tuple[tuple[str, LabelQuality], ...]
    verdict: Verdict
    goal: float
    price: Price


def open_validation(ctx: Context, size: int) -> Round:
    """The campaign's validation round, opened if nothing else has begun.

    Raises:
        StageError: a round has begun without validation.
    """
    open_campaign(ctx)
    rounds = ctx.store.rounds(ctx.name)
    if not rounds:
        return new_round(ctx, VALIDATION, validate_size=size)
    if rounds[0].number != VALIDATION:
        raise StageError(
            "Validation comes before the first round, and round 1 has begun; its random audit"
            " measures the LLM from here on (see `goldloop report`)."
        )
    return rounds[0]


def validation(config: Config, store: Store, annotator: str, *, goal: float) -> Validation:
    """Reads the result of the validation round.

    Args:
        config: the campaign.
        store: with the campaign.
        annotator: revision of the LLM.
        goal: share of right labels in the whole pool that gold labels shall bring, below 1.

    Raises:
        StageError: there is no validation round, or too little of it has come back.
    """
    name = config.campaign.name
    rounds = store.rounds(name)
    if not rounds or rounds[0].number != VALIDATION:
        raise StageError("Nothing was validated yet; run `goldloop validate`.")
    items = store.keys(name, "pool")
    reviews = store.reviews_by_item(name, rounds[0].id)
    decided = store.gold(name)
    index = config.label_index
    gold = np.array(
        [index[decided[i.id].label] if i.id in reviews and i.id in decided else -1 for i in items],
        dtype=np.int64,
    )
    known = gold >= 0
    if known.sum() < MIN_RANDOM:
        raise StageError(
            f"{int(known.sum())} of {len(reviews)} texts of the sample have a gold label; at least"
            f" {MIN_RANDOM} are needed to say anything."
        )
    votes = read_votes(config, store, annotator, items)
    # Texts that came back without a label leave the sample: chance chose those that stayed.
    pi = np.full(len(items), float(known.mean()))
    k = len(index)
    said = votes.answered
    try:
        quality = label_quality(votes.y_llm[said], gold[said], pi[said], k)
    except TooFewRandomError as exc:
        raise StageError(
            f"{int((known & said).sum())} texts of the sample have both a gold label and an LLM"
            f" label; at least {MIN_RANDOM} are needed to say anything."
        ) from exc
    rivals = []
    taken = _taken(config, store, annotator, items)
    said_by = np.where(said[:, None, None], votes.probs, np.nan)
    view = calibrated_votes(config, said_by, votes.content_free)
    for v, title in enumerate(_titles(config, view.shape[1]) if view.shape[1] > 1 else ()):
        if taken[said, v].all():
            own = view[said, v].argmax(axis=1)
            rivals.append((title, label_quality(own, gold[said], pi[said], k)))
    return Validation(
        pool=len(items),
        unanswered=int((~said).sum()),
        sent=len(reviews),
        labels=config.label_names,
        quality=quality,
        side_by_side=tuple(rivals),
        verdict=_verdict(quality.accuracy),
        goal=goal,
        price=price_of_goal(
            normalised_entropy(votes.posterior[known & said]),
            votes.y_llm[known & said] == gold[known & said],
            int(said.sum()),
            goal,
            rng=stream("price of a goal", config.rounds.seed),
        ),
    )


def _taken(
    config: Config, store: Store, annotator: str, items: Sequence[ItemKey]
) -> NDArray[np.bool_]:
    """(n, m) whether each prompt was answered itself; ``read_votes`` fills the first one's gaps."""
    column = {v.hash: i for i, v in enumerate(store.variants(config.campaign.name, annotator))}
    rows = np.array([item.row for item in items], dtype=np.int64)
    probs, _ = vote_arrays(config, store, annotator, rows, column)
    return np.asarray(np.isfinite(probs).all(axis=2))


def _titles(config: Config, m: int) -> Sequence[str]:
    if config.annotator.kind == "recorded":
        return config.annotator.columns
    return [f"prompt {v + 1}" for v in range(m)]


def _verdict(accuracy: Estimate) -> Verdict:
    if accuracy.high < SAFE_FROM:
        return "likely"
    return "unlikely" if accuracy.low >= SAFE_FROM else "open"


def price_of_goal(
    suspicion: FloatArray,
    right: NDArray[np.bool_],
    pool: int,
    goal: float,
    *,
    rng: np.random.Generator,
) -> Price:
    """Gold labels after which a share ``goal`` of the pool's labels is right.

    Args:
        suspicion: (g,) of the sample, higher = more suspect.
        right: (g,) bool, whether the LLM was right.
        pool: texts in the pool.
        goal: in [0, 1).
        rng: draws resamples and breaks ties.

    Raises:
        ValueError: an empty sample, or a goal outside [0, 1).
    """
    g = len(right)
    if not g or not 0 <= goal < 1:
        raise ValueError(f"needs a sample and a goal in [0, 1), not {g} texts and {goal}")
    draws = [np.arange(g), *rng.integers(g, size=(RESAMPLES, g))]
    at_random = np.array([_share_at_random(right[rows], goal) for rows in draws])
    ranked = np.array([_share_ranked(suspicion[rows], right[rows], goal, rng) for rows in draws])
    # Where all labels are right, or all wrong, so many of the other kind may still be in the pool.
    error = unseen(g) if right.all() else 1.0 - unseen(g)
    edge = _share_of_error(error, goal) * pool
    return Price(_interval(at_random * pool, edge), _interval(ranked * pool, edge))


def _share_at_random(right: NDArray[np.bool_], goal: float) -> float:
    return _share_of_error(1.0 - float(right.mean()), goal)


def _share_of_error(error: float, goal: float) -> float:
    return max(0.0, 1.0 - (1.0 - goal) / error) if error > 0 else 0.0


def _share_ranked(
    suspicion: FloatArray, right: NDArray[np.bool_], goal: float, rng: np.random.Generator
) -> float:
    """Share to be checked, most suspect first, until few enough errors are left."""
    order = np.lexsort((rng.random(len(right)), -suspicion))
    wrong_so_far = np.concatenate([[0], (~right[order]).cumsum()])
    enough = wrong_so_far[-1] - wrong_so_far <= (1.0 - goal) * len(right) + 1e-9
    return float(enough.argmax()) / len(right)


def _interval(values: FloatArray, edge: float) -> Estimate:
    """Of the sample itself, the first value, and of its resamples.

    Args:
        edge: where the interval reaches if all resamples are equal.
    """
    low, high = np.quantile(values[1:], [0.025, 0.975])
    if low == high:
        low, high = min(low, edge), max(high, edge)
    return Estimate(float(values[0]), float(min(low, values[0])), float(max(high, values[0])))


def validation_json(result: Validation) -> dict[str, Any]:
    """The result as JSON values, with the rule that the verdict follows."""
    return asdict(result) | {"rule": RULE}


def validation_lines(result: Validation, budget: int) -> list[str]:
    """The result for people to read; ``budget`` is the campaign's, in gold labels."""
    q = result.quality
    lines = [
        f"Validated on {q.n_gold} of {result.sent} texts drawn at random from {result.pool:,}"
        " (times 100, with 95 % intervals).",
        f"LLM accuracy {shown(q.accuracy)}, macro-F1 {shown(q.macro_f1)},"
        f" KL(true mix || LLM's mix) {q.kl.value:.3f} ({q.kl.low:.3f} to {q.kl.high:.3f})",
    ]
    if result.unanswered:
        lines.append(
            f"The LLM gave no label to {result.unanswered:,} of {result.pool:,} texts"
            f" ({100 * result.unanswered / result.pool:.1f} %). They count neither as right nor as"
            " wrong, and each needs a label of people besides those below."
        )
    width = max(len(label) for label in result.labels)
    for label, precision, recall, share in zip(
        result.labels, q.precision, q.recall, q.class_share, strict=True
    ):
        lines.append(
            f"  {label:<{width}}  precision {shown(precision)}, recall {shown(recall)},"
            f" share {shown(share)}"
        )
    if result.side_by_side:
        lines.append("Side by side on the same sample:")
        width = max(len(title) for title, _ in result.side_by_side)
        lines += [
            f"  {title:<{width}}  accuracy {shown(other.accuracy)},"
            f" macro-F1 {shown(other.macro_f1)}, KL {other.kl.value:.3f}"
            f" ({other.kl.low:.3f} to {other.kl.high:.3f})"
            for title, other in result.side_by_side
        ]
    said = {
        "likely": "A student of these labels is likely to suffer",
        "unlikely": "A student of these labels is unlikely to suffer",
        "open": "This sample does not show whether a student of these labels suffers",
    }
    lines.append(f"{said[result.verdict]}: {RULE}.")
    price = result.price.by_entropy
    aim = f"{100 * result.goal:g} % right labels"
    if price.high == 0:
        lines.append(f"{aim}: reached without gold labels.")
    elif price.value == 0:
        lines.append(
            f"{aim}: probably reached without gold labels, but this is not sure; up to"
            f" {price.high:,.0f} gold labels would make it sure."
        )
    else:
        fits = "within" if price.value <= budget else "beyond"
        lines.append(
            f"{100 * result.goal:g} % right labels take about {_count(price)} gold labels where the"
            f" LLM is least sure, or {_count(result.price.random)} at random. The first is {fits}"
            f" budget.labels = {budget}."
        )
    return lines


def shown(estimate: Estimate | None) -> str:
    """Times 100, with its interval."""
    if estimate is None:
        return "– (too few)"
    return f"{100 * estimate.value:.1f} ({100 * estimate.low:.1f}–{100 * estimate.high:.1f})"


def _count(estimate: Estimate) -> str:
    return f"{estimate.value:,.0f} ({estimate.low:,.0f} to {estimate.high:,.0f})"
