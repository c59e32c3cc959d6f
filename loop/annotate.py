"""Asks the LLM: freezes prompt variants, takes the votes that are missing, reads them back.

Votes are stored chunk by chunk and found again by item and prompt hash, never by row number, so an
interrupted annotation goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loop.config import Config
from loop.errors import AnnotatorError, ConfigError
from loop.ports import (
    Annotator,
    Demonstration,
    FloatArray,
    IntArray,
    Progress,
    PromptVariant,
    TextItem,
)
from loop.store import Item, Store, Variant, Vote, insert_all, now

BoolArray = NDArray[np.bool_]

CHUNK = 256  # items per commit: a kill loses at most one chunk of answers


def text_item(item: Item) -> TextItem:
    """An item as annotators and raters see it."""
    return TextItem(item.id, item.text, item.meta)


def draw_demonstrations(
    candidates: Sequence[Demonstration],
    labels: Sequence[str],
    *,
    shots: int,
    variants: int,
    rng: np.random.Generator,
) -> list[tuple[Demonstration, ...]]:
    """One set of demonstrations per variant, balanced over classes, in random order.

    Sets differ as long as there are enough candidates. Every variant takes each class in turn,
    beginning with another class, so that no class is left out when shots < classes.
    """
    by_class = {name: [d for d in candidates if d.label == name] for name in labels}
    for drawn in by_class.values():
        rng.shuffle(drawn)  # type: ignore[arg-type]
    filled = [name for name in labels if by_class[name]]
    used = dict.fromkeys(filled, 0)
    sets = []
    for variant in range(variants):
        chosen: list[Demonstration] = []
        for shot in range(shots if filled else 0):
            name = filled[(variant * shots + shot) % len(filled)]
            pile = by_class[name]
            candidate = pile[used[name] % len(pile)]
            used[name] += 1
            if candidate not in chosen:
                chosen.append(candidate)
        order = rng.permutation(len(chosen))
        sets.append(tuple(chosen[i] for i in order))
    return sets


def freeze_variants(config: Config, store: Store, annotator: str) -> list[PromptVariant]:
    """The campaign's prompt variants: stored ones if there are any, else new ones, stored.

    Raises:
        ConfigError: shots are asked for and no example with a label is at hand.
    """
    variants = plan_variants(config, store, annotator)
    name = config.campaign.name
    if store.variants(name, annotator):
        return variants
    with store.transaction() as session:
        for variant in variants:
            session.add(
                Variant(
                    hash=variant.hash,
                    campaign=name,
                    position=variant.index,
                    annotator=annotator,
                    prefix=variant.prefix,
                    demonstrations=[
                        {"text": d.text, "label": d.label} for d in variant.demonstrations
                    ],
                )
            )
    return variants


def plan_variants(config: Config, store: Store, annotator: str) -> list[PromptVariant]:
    """The variants that are frozen, or those that would be; stores nothing.

    Raises:
        ConfigError: shots are asked for and no example with a label is at hand.
    """
    name = config.campaign.name
    found = store.variants(name, annotator)
    if found:
        frozen = [
            _variant(
                config,
                row.position,
                tuple(Demonstration(d["text"], d["label"]) for d in row.demonstrations),
            )
            for row in found
        ]
        if [variant.hash for variant in frozen] != [row.hash for row in found]:
            raise ConfigError(
                "The prompt is no longer the one that the stored votes answered: campaign.task, a"
                " label's description or prompt.label_form was changed. Restore it, or give the"
                " campaign a new name."
            )
        return frozen
    if config.annotator.kind == "recorded":
        sets: list[tuple[Demonstration, ...]] = [() for _ in config.annotator.columns]
    else:
        candidates = list(config.given_demonstrations) or [
            Demonstration(item.text, item.known_label)
            for item in store.items(name, "dev")
            if item.known_label is not None
        ]
        if config.prompt.shots and not candidates:
            raise ConfigError(
                f"prompt.shots = {config.prompt.shots} needs examples: add"
                " [[prompt.demonstrations]] with text and label, name a texts.gold_column, or set"
                " prompt.shots = 0."
            )
        sets = draw_demonstrations(
            candidates,
            config.label_names,
            shots=config.prompt.shots,
            variants=config.prompt.variants,
            rng=np.random.default_rng([config.rounds.seed, 1]),
        )
    return [_variant(config, i, demos) for i, demos in enumerate(sets)]


def _variant(
    config: Config, index: int, demonstrations: tuple[Demonstration, ...]
) -> PromptVariant:
    """Variant number ``index``; numbers stand for other classes in each, so that bias shows."""
    form, k = config.prompt.label_form, len(config.labels)
    order = tuple((place + index) % k for place in range(k)) if form == "ids" else ()
    return PromptVariant(
        index,
        config.campaign.task,
        config.port_labels,
        demonstrations,
        label_form=form,
        order=order,
    )


def take_votes(
    config: Config,
    store: Store,
    annotator: Annotator,
    items: Sequence[Item],
    variants: Sequence[PromptVariant],
    *,
    progress: Progress,
) -> int:
    """Asks for the votes that are worth their price; returns the number that stayed unanswered.

    The first variant is asked of every item. With ``prompt.calls_per_item`` the others are asked
    where the cascade expects a flip, else of every item.

    Raises:
        AnnotatorError: not one item of a whole chunk got an answer, or the money is spent.
    """
    clerk = _Clerk(config, store, annotator, progress)
    limit = calls_limit(config, len(items), len(variants))
    for variant in variants if limit is None else variants[:1]:
        clerk.ask(variant, items)
    if limit is not None:
        _ask_where_worth_it(config, store, clerk, items, variants, limit)
    return clerk.unanswered


def calls_limit(config: Config, n: int, m: int) -> int | None:
    """Most calls that m variants of n items may take together, or None for all of them."""
    per_item = config.prompt.calls_per_item
    if config.annotator.kind == "recorded" or per_item == 0 or per_item >= m:
        return None
    return round(per_item * n)


def _ask_where_worth_it(
    config: Config,
    store: Store,
    clerk: _Clerk,
    items: Sequence[Item],
    variants: Sequence[PromptVariant],
    limit: int,
) -> None:
    """Further variants, wave by wave, where a flip is likeliest, until the limit."""
    from loop.cascade import next_calls

    rng = np.random.default_rng([config.rounds.seed, 9])
    column = {variant.hash: i for i, variant in enumerate(variants)}
    row = {item.id: i for i, item in enumerate(items)}
    refused = np.zeros((len(items), len(variants)), dtype=np.bool_)
    while True:
        probs, _ = _vote_arrays(config, store, clerk.revision, row, column)
        calls = next_calls(
            probs, lambda p: calibrated_votes(config, p), budget=limit, rng=rng, refused=refused
        )
        if not len(calls):
            return
        for v in np.unique(calls[:, 1]):
            rows = calls[calls[:, 1] == v, 0]
            vain = clerk.ask(variants[v], [items[i] for i in rows], all_may_fail=True)
            refused[[row[item] for item in vain], v] = True


class _Clerk:
    """Takes votes chunk by chunk and stores them; knows which are there already."""

    def __init__(
        self, config: Config, store: Store, annotator: Annotator, progress: Progress
    ) -> None:
        self.config, self.store, self.annotator, self.progress = config, store, annotator, progress
        self.revision = annotator.revision
        votes = store.votes(config.campaign.name, self.revision)
        self.have = {(item, variant) for item, variant, _, _ in votes}
        self.unanswered = 0

    def ask(
        self, variant: PromptVariant, items: Sequence[Item], *, all_may_fail: bool = False
    ) -> list[str]:
        """Asks one variant where its vote is missing; the ids of items that got no answer.

        Raises:
            AnnotatorError: not one item of a whole chunk got an answer, or the money is spent.
        """
        missing = [item for item in items if (item.id, variant.hash) not in self.have]
        self.progress(len(items) - len(missing))
        answered_before = all_may_fail or len(missing) < len(items)
        in_vain: list[str] = []
        for start in range(0, len(missing), CHUNK):
            _check_money(self.config, self.store)
            chunk = missing[start : start + CHUNK]
            started = time.perf_counter()
            answer = self.annotator.annotate(variant, [text_item(item) for item in chunk])
            seconds = (time.perf_counter() - started) / len(chunk)
            rows = _vote_rows(self.config, self.revision, variant, chunk, answer, seconds)
            if not rows and not answered_before:
                raise AnnotatorError(
                    f"The annotator {self.revision} gave no usable answer to any of {len(chunk)}"
                    " items; look at its model, columns and label names, then run the command"
                    " again."
                )
            answered_before = True
            answered = {row["item_id"] for row in rows}
            in_vain += [item.id for item in chunk if item.id not in answered]
            with self.store.transaction() as session:
                insert_all(session, Vote, rows)
            self.have |= {(item, variant.hash) for item in answered}
            self.progress(len(chunk))
        self.unanswered += len(in_vain)
        return in_vain


def _vote_rows(
    config: Config,
    revision: str,
    variant: PromptVariant,
    chunk: Sequence[Item],
    answer: Any,
    seconds: float,
) -> list[dict[str, Any]]:
    k = len(config.labels)
    if answer.probs.shape != (len(chunk), k):
        raise AnnotatorError(
            f"The annotator {revision} answered with shape {answer.probs.shape}"
            f" to {len(chunk)} items and {k} labels; it must be ({len(chunk)}, {k})."
        )
    usd = answer.tokens * config.annotator.usd_per_million_tokens / 1e6 + answer.usd / len(chunk)
    at = now()
    return [
        {
            "item_id": item.id,
            "variant_hash": variant.hash,
            "annotator": revision,
            "probs": [float(p) for p in probs],
            "off_label_mass": float(off),
            "tokens": int(tokens),
            "usd": float(cost),
            "seconds": seconds,
            "created_at": at,
        }
        for item, probs, off, tokens, cost in zip(
            chunk, answer.probs, answer.off_label_mass, answer.tokens, usd, strict=True
        )
        if np.isfinite(probs).all() and abs(float(probs.sum()) - 1.0) < 1e-3
    ]


def _check_money(config: Config, store: Store) -> None:
    if config.budget.usd is None:
        return
    _, usd, _ = store.spent(config.campaign.name)
    labels = len(store.gold(config.campaign.name)) * config.budget.usd_per_label
    if usd + labels >= config.budget.usd:
        raise AnnotatorError(
            f"The money is spent: ${usd + labels:.2f} of budget.usd = {config.budget.usd:.2f};"
            " raise it to go on. Every vote so far is kept."
        )


@dataclass(frozen=True)
class LlmVotes:
    """The stored votes of n items as arrays.

    Attributes:
        probs: (n, m, k) raw; NaN where a vote is missing; uniform where an item has none at all.
        off_label_mass: (n, m), NaN where a vote is missing.
        posterior: (n, k) mean over variants, batch-calibrated where the campaign says so.
        answered: (n,) bool, whether the LLM answered at all.
    """

    probs: FloatArray
    off_label_mass: FloatArray
    posterior: FloatArray
    answered: BoolArray

    @property
    def y_llm(self) -> IntArray:
        """(n,) the LLM's label."""
        best: IntArray = self.posterior.argmax(axis=1).astype(np.int64)
        return best


def read_votes(config: Config, store: Store, annotator: str, items: Sequence[Item]) -> LlmVotes:
    """Votes of the items as arrays, in the items' order.

    Raises:
        AnnotatorError: no vote is stored.
    """
    column = {v.hash: i for i, v in enumerate(store.variants(config.campaign.name, annotator))}
    row = {item.id: i for i, item in enumerate(items)}
    probs, off = _vote_arrays(config, store, annotator, row, column)
    n, k = len(items), len(config.labels)
    taken: BoolArray = np.asarray(np.isfinite(probs).all(axis=2))
    answered: BoolArray = np.asarray(taken.any(axis=1))
    if not answered.any():
        raise AnnotatorError("No LLM label is stored yet; run `goldloop annotate` first.")
    view = calibrated_votes(config, probs)
    posterior = np.full((n, k), 1.0 / k)
    posterior[answered] = mean_vote(view[answered])
    # The first variant stands for the item in every strategy: where only a later one answered,
    # that answer moves forward; where none did, the item is as doubtful as can be.
    for i in np.flatnonzero(~taken[:, 0]):
        later = np.flatnonzero(taken[i])
        probs[i, 0] = probs[i, later[0]] if len(later) else 1.0 / k
        off[i, 0] = off[i, later[0]] if len(later) else 1.0
    return LlmVotes(probs, off, posterior, answered)


def _vote_arrays(
    config: Config, store: Store, annotator: str, row: dict[str, int], column: dict[str, int]
) -> tuple[FloatArray, FloatArray]:
    """(n, m, k) probabilities and (n, m) off-label mass by item and variant, NaN if missing."""
    n, m, k = len(row), max(1, len(column)), len(config.labels)
    probs = np.full((n, m, k), np.nan)
    off = np.full((n, m), np.nan)
    for item_id, variant, p, mass in store.votes(config.campaign.name, annotator):
        if item_id in row and variant in column:
            values = np.asarray(p)
            probs[row[item_id], column[variant]] = values / values.sum()
            off[row[item_id], column[variant]] = mass
    return probs, off


def calibrated_votes(config: Config, probs: FloatArray) -> FloatArray:
    """(n, m, k) what labels are read from before any gold is known."""
    from strategies.calibrate import batch_calibrate

    if config.prompt.calibrate == "none":
        return probs
    return batch_calibrate(probs, class_prior(config))


def mean_vote(view: FloatArray) -> FloatArray:
    """(n, k) mean over the variants that were asked; where it ties, the first one decides.

    Args:
        view: (n, m, k), NaN where a variant was not asked, one at least was.
    """
    first = np.where(np.isfinite(view[:, 0]), view[:, 0], np.nanmean(view, axis=1))
    return np.asarray((np.nanmean(view, axis=1) + 1e-9 * first) / (1.0 + 1e-9), dtype=np.float64)


def class_prior(config: Config) -> FloatArray | None:
    """(k,) the stated class shares, summing to 1, or None for a flat mix."""
    stated = config.prompt.class_prior
    if not stated:
        return None
    prior = np.array([stated[name] for name in config.label_names])
    return np.asarray(prior / prior.sum(), dtype=np.float64)
