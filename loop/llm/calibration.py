"""Which view of the LLM's answers is used, and why: raw, calibrated, or fitted to gold.

Batch calibration assumes a class mix. Once the random audit has brought enough gold, the mix moves
half way to the one that it says. Harm to accuracy or to the Brier score switches the calibration
off. If the campaign asks for it (``prompt.calibrate = "gold"``), a scaling is fitted to gold, under
the same guard. Raw answers stay in the store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from loop.campaign.config import Config
from loop.campaign.metrics import Calibration, Reliability
from loop.llm.votes import LlmVotes, class_prior, mean_vote
from loop.ports import FloatArray, IntArray
from strategies.calibrate import (
    batch_calibrate,
    brier,
    brier_harm_p_value,
    calibration_error,
    harm_p_value,
    prior_from_gold,
    reliability,
    scale_with_gold,
)

PRIOR_FROM = 20  # audit gold from which the class mix is estimated and harm is tested
SCALE_FROM = 100  # audit gold from which a scaling is fitted
BY_GOLD = 0.5  # by the whole mix, an unsure LLM's labels bury the rare classes
PSEUDO = 3.0  # gold labels per class assumed beforehand: few audit labels are not the whole truth
HARM_LEVEL = 0.05

ViewName = Literal["raw", "batch", "contextual", "gold"]


@dataclass(frozen=True)
class View:
    """The answers as they are used.

    Attributes:
        name: what was done to them.
        reason: one sentence, where gold had a say; else empty.
        posterior: (n, k).
        prior: (k,) class mix that makes batch calibration of the raw answers agree with this view,
            for the strategies; None for a flat mix.
    """

    name: ViewName
    reason: str
    posterior: FloatArray
    prior: FloatArray | None


def choose_view(
    config: Config,
    votes: LlmVotes,
    gold: IntArray,
    audit: NDArray[np.bool_],
    inclusion_prob: FloatArray,
    *,
    rng: np.random.Generator,
) -> View:
    """The view that the campaign asks for, as far as audit gold bears it out.

    Args:
        config: says which calibration is wanted, and the stated class mix.
        votes: of the n items.
        gold: (n,) class, -1 where unknown.
        audit: (n,) bool, items drawn at random to measure the LLM.
        inclusion_prob: (n,) probability of each gold item of being chosen.
        rng: deals gold to folds.

    Returns:
        The view.
    """
    raw = _posterior(votes, votes.probs)
    stated = class_prior(config)
    wanted: str = config.calibration
    if wanted == "none":
        return View("raw", "", raw, stated)
    sample = audit & (gold >= 0) & votes.answered
    n = int(sample.sum())
    if n < PRIOR_FROM:
        if wanted == "contextual":
            return View("contextual", "", votes.posterior, _contextual_prior(votes, stated))
        return View("batch", "", votes.posterior, stated)
    if wanted == "contextual":
        view = View("contextual", "", votes.posterior, _contextual_prior(votes, stated))
        return _unharmed(view, raw, votes, np.where(sample, gold, -1))
    k = raw.shape[1]
    before = np.full(k, 1.0 / k) if stated is None else stated
    prior = prior_from_gold(
        np.where(votes.answered, gold, -1), inclusion_prob, k, pseudo=PSEUDO, towards=stated
    )
    prior = (1.0 - BY_GOLD) * before + BY_GOLD * prior
    # What stands for a missing answer is flat, and would draw the means towards a flat mix.
    said = np.where(votes.answered[:, None, None], votes.probs, np.nan)
    batch = _posterior(votes, batch_calibrate(said, prior))
    shares = ", ".join(
        f"{name} {100 * p:.0f} %" for name, p in zip(config.label_names, prior, strict=True)
    )
    other = "an even one" if stated is None else "the stated one"
    reason = f"class mix half way from {other} to that of {n} audit labels: {shares}"
    view = View("batch", reason, batch, prior)
    view = _unharmed(view, raw, votes, np.where(sample, gold, -1))
    if wanted == "gold" and n >= SCALE_FROM:
        view = _scaled(view, votes, np.where(sample, gold, -1), rng)
    return view


def _unharmed(view: View, raw: FloatArray, votes: LlmVotes, gold: IntArray) -> View:
    """The calibrated view, or the raw answers if audit gold says that calibration harms."""
    harm = _harm(raw, view.posterior, gold)
    if harm is None:
        return view
    return View(
        "raw", f"{view.name} calibration is off: {harm}", raw, _mean(votes, votes.probs[:, 0])
    )


def _scaled(view: View, votes: LlmVotes, gold: IntArray, rng: np.random.Generator) -> View:
    """The view scaled to gold, if left-out gold says that this is better."""
    known = gold >= 0
    scaled = scale_with_gold(view.posterior, gold, rng=rng)
    before, after = (_log_loss(p[known], gold[known]) for p in (view.posterior, scaled))
    told = f"log-loss on {int(known.sum())} audit labels, each left out, {before:.3f}"
    harm = _harm(view.posterior, scaled, gold)
    if after >= before or harm is not None:
        worse = f"{told}, with it {after:.3f}" if after >= before else harm
        reason = f"the scaling to gold is not used: {worse}"
        return View(view.name, _joined(view.reason, reason), view.posterior, view.prior)
    reason = f"scaled to gold: {told} before, {after:.3f} after"
    if view.name == "raw":
        reason = _joined(view.reason, reason)
    scaled[~votes.answered] = 1.0 / scaled.shape[1]
    return View("gold", reason, scaled, _mean(votes, scaled))


def _harm(before: FloatArray, after: FloatArray, gold: IntArray) -> str | None:
    """How the later probabilities are worse where gold is known, beyond chance; else None.

    They harm if they lower the accuracy, or if they raise the Brier score without raising the
    accuracy.
    """
    known = gold >= 0
    was, now, truth = before[known], after[known], gold[known]
    told = f"on {len(truth)} audit labels it"
    p_value = harm_p_value(was, now, truth)
    if p_value < HARM_LEVEL:
        lower, higher = (100 * _accuracy(p, truth) for p in (was, now))
        return (
            f"{told} lowered the LLM's accuracy from {lower:.1f} to {higher:.1f} (paired test,"
            f" p = {p_value:.3f})"
        )
    p_value = brier_harm_p_value(was, now, truth)
    if p_value < HARM_LEVEL and _accuracy(now, truth) <= _accuracy(was, truth):
        low, high = (float(brier(p, truth).mean()) for p in (was, now))
        return (
            f"{told} raised the Brier score of the LLM's probabilities from {low:.3f} to"
            f" {high:.3f} (paired test, p = {p_value:.3f})"
        )
    return None


def summary(view: View, votes: LlmVotes, gold: IntArray, audit: NDArray[np.bool_]) -> Calibration:
    """Confidence against accuracy on audit gold, raw and as used, where there is enough of it."""
    sample = audit & (gold >= 0) & votes.answered
    if sample.sum() < PRIOR_FROM:
        return Calibration(view.name, view.reason)

    def measured(posterior: FloatArray) -> Reliability:
        bins = reliability(posterior[sample], gold[sample])
        return Reliability(
            calibration_error(bins),
            _accuracy(posterior[sample], gold[sample]),
            tuple((b.confidence, b.accuracy, b.n) for b in bins),
        )

    raw, used = measured(_posterior(votes, votes.probs)), measured(view.posterior)
    return Calibration(view.name, view.reason, int(sample.sum()), raw, used)


def _posterior(votes: LlmVotes, probs: FloatArray) -> FloatArray:
    """(n, k) mean over variants; uniform where the LLM gave no answer."""
    out = np.full((len(probs), probs.shape[2]), 1.0 / probs.shape[2])
    out[votes.answered] = mean_vote(probs[votes.answered])
    return out


def _mean(votes: LlmVotes, probs: FloatArray) -> FloatArray:
    return np.asarray(np.maximum(probs[votes.answered].mean(axis=0), 1e-6), dtype=np.float64)


def _contextual_prior(votes: LlmVotes, stated: FloatArray | None) -> FloatArray:
    """(k,) the mix that batch calibration needs to do what contextual calibration did."""
    if votes.content_free is None:
        raise ValueError("the answers to texts without content are missing")
    means = np.nanmean(votes.probs[votes.answered], axis=0)
    mix = (means / np.maximum(votes.content_free, 1e-6)).mean(axis=0)
    mix = mix if stated is None else mix * stated
    return np.asarray(np.maximum(mix / mix.sum(), 1e-6), dtype=np.float64)


def _accuracy(probs: FloatArray, gold: IntArray) -> float:
    return float((probs.argmax(axis=1) == gold).mean())


def _log_loss(probs: FloatArray, gold: IntArray) -> float:
    own = probs[np.arange(len(gold)), gold]
    return -float(np.log(np.maximum(own, 1e-6)).mean())


def _joined(*reasons: str) -> str:
    return "; ".join(r for r in reasons if r)
