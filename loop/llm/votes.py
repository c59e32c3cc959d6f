"""The stored votes as arrays, and the labels that are read from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from loop.addresses import without_folders
from loop.campaign.config import Config, as_run
from loop.campaign.extensions import BUILT_IN
from loop.campaign.store import Store
from loop.campaign.tables import Item, ItemKey, Round
from loop.errors import AnnotatorError
from loop.ports import BoolArray, FloatArray, IntArray


@dataclass(frozen=True)
class LlmVotes:
    """The stored votes of n items as arrays.

    Attributes:
        probs: (n, m, k) raw; NaN where a vote is missing; uniform where an item has none at all.
        off_label_mass: (n, m), NaN where a vote is missing.
        posterior: (n, k) mean over variants, batch-calibrated where the campaign says so.
        answered: (n,) bool, whether the LLM answered at all.
        content_free: (m, k) mean answer to texts without content, None where nobody asked.
    """

    probs: FloatArray
    off_label_mass: FloatArray
    posterior: FloatArray
    answered: BoolArray
    content_free: FloatArray | None = None

    @property
    def y_llm(self) -> IntArray:
        """(n,) the LLM's label."""
        best: IntArray = self.posterior.argmax(axis=1).astype(np.int64)
        return best


def llm_in_words(store: Store, round_: Round) -> str:
    """What gave the LLM labels of a round, as readers of cards and papers are told.

    An annotator of another package says itself what it is, with its votes: ``annotator.model`` has
    a default of which it may know nothing.
    """
    section = as_run(round_.config).annotator
    if section.kind == "recorded":
        return "labels recorded in the columns " + ", ".join(section.columns)
    if section.kind in BUILT_IN["annotators"]:
        return without_folders(section.model)
    for event in reversed(store.events(round_.campaign, "annotate", "done")):
        if event.detail["round"] == round_.number and "annotator" in event.detail:
            return str(event.detail["annotator"])
    return store.last_annotator(round_.campaign, round_.closed_at) or section.kind


def read_votes(
    config: Config, store: Store, annotator: str, items: Sequence[Item | ItemKey]
) -> LlmVotes:
    """Votes of the items as arrays, in the items' order.

    Raises:
        AnnotatorError: no vote is stored.
    """
    column = {v.hash: i for i, v in enumerate(store.variants(config.campaign.name, annotator))}
    rows = np.array([item.row for item in items], dtype=np.int64)
    probs, off = vote_arrays(config, store, annotator, rows, column)
    n, k = len(items), len(config.labels)
    taken: BoolArray = np.asarray(np.isfinite(probs).all(axis=2))
    answered: BoolArray = np.asarray(taken.any(axis=1))
    if not answered.any():
        raise AnnotatorError("No LLM label is stored yet; run `goldloop annotate` first.")
    content_free = content_free_probs(config, store, annotator)
    view = calibrated_votes(config, probs, content_free)
    posterior = np.full((n, k), 1.0 / k)
    posterior[answered] = mean_vote(view[answered])
    # The first variant stands for the item in every strategy: where only a later one answered,
    # that answer moves forward; where none did, the item is as doubtful as can be.
    for i in np.flatnonzero(~taken[:, 0]):
        later = np.flatnonzero(taken[i])
        probs[i, 0] = probs[i, later[0]] if len(later) else 1.0 / k
        off[i, 0] = off[i, later[0]] if len(later) else 1.0
    return LlmVotes(probs, off, posterior, answered, content_free)


def vote_arrays(
    config: Config, store: Store, annotator: str, rows: IntArray, column: Mapping[str, int]
) -> tuple[FloatArray, FloatArray]:
    """(n, m, k) probabilities and (n, m) off-label mass by text and variant, NaN if missing.

    Args:
        rows: (n,) ``Item.row`` of each text.
        column: variant hash -> its place among the m variants.
    """
    n, m, k = len(rows), max(1, len(column)), len(config.labels)
    probs = np.full((n, m, k), np.nan)
    off = np.full((n, m), np.nan)
    place = np.full(int(rows.max(initial=-1)) + 1, -1, dtype=np.int64)
    place[rows] = np.arange(n)
    for block in store.votes(config.campaign.name, annotator):
        if block.variant_hash not in column:
            continue
        known = block.rows < len(place)
        at = place[block.rows[known]]
        known[known], at = at >= 0, at[at >= 0]
        values = widened(block.probs.reshape(block.votes, -1)[known], k)
        v = column[block.variant_hash]
        probs[at, v] = values / values.sum(axis=1, keepdims=True)
        off[at, v] = block.off_label_mass[known]
    return probs, off


def widened(
    rows: Sequence[Sequence[float]] | Sequence[FloatArray] | FloatArray, k: int
) -> FloatArray:
    """(n, k) stored class probabilities; labels that have come since have probability 0."""
    out = np.zeros((len(rows), k))
    if len(rows):
        stored = np.array(rows, dtype=np.float64)
        out[:, : stored.shape[1]] = stored
    return out


def content_free_probs(config: Config, store: Store, annotator: str) -> FloatArray | None:
    """(m, k) mean answer to the texts without content, or None where the campaign asks none.

    Raises:
        AnnotatorError: a variant's are not stored yet.
    """
    if config.calibration != "contextual":
        return None
    name = config.campaign.name
    stored = store.content_free(name, annotator)
    hashes = [variant.hash for variant in store.variants(name, annotator)]
    if not all(hash in stored for hash in hashes):
        raise AnnotatorError(
            "The LLM's answers to empty texts are not stored yet; run `goldloop annotate` first."
        )
    means = [np.mean(stored[hash], axis=0) for hash in hashes]
    return widened(means, len(config.labels))


def calibrated_votes(
    config: Config, probs: FloatArray, content_free: FloatArray | None = None
) -> FloatArray:
    """(n, m, k) what labels are read from before any gold is known.

    Args:
        content_free: see ``content_free_probs``; contextual calibration alone needs it.
    """
    from strategies.calibrate import batch_calibrate, contextual_calibrate

    if config.calibration == "none":
        return probs
    if config.calibration == "contextual":
        if content_free is None:
            raise ValueError("the answers to texts without content are missing")
        return contextual_calibrate(probs, content_free, class_prior(config))
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
