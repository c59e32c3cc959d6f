"""Whether a trained student learned anything at all from its labels.

A student that answers one class for everything agrees with itself whatever the seed. That looks
like perfect stability and is none. The question is put to the texts that the student learned from:
it has seen their labels, so that even on a hard task its answers go with them. Answers that would
fit shuffled labels as well show that training failed, most often because the learning rate is too
small for the encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from loop.ports import IntArray, OwnAnswers, SeedResult

OWN_TEXTS = 200
"""Of those that a student learned from, so many are put to it again."""
LEVEL = 0.05
SHUFFLES = 999
ONE_SIDED = 0.95
"""Share of the labels from which on one class for everything is no sign of failed training."""
FEW_OTHERS = 5
"""Texts of other classes that must be there for a student to be blamed for missing them."""


@dataclass(frozen=True)
class NothingLearned:
    """What such a student answers.

    Attributes:
        texts: asked, of those that it learned from.
        top: the class that it answers most.
        top_share: of its answers.
        right: share of its answers that are the label it had learned; soft labels count by share.
        commonest: the same share for the commonest class, answered for every text.
    """

    texts: int
    top: int
    top_share: float
    right: float
    commonest: float


def asked_again(n: int) -> IntArray:
    """Rows, of n that a student learned from, that are put to it again: spread evenly."""
    return np.unique(np.linspace(0, n - 1, min(n, OWN_TEXTS)).astype(np.int64))


def nothing_learned(own: OwnAnswers) -> NothingLearned | None:
    """What a student answers that learned nothing; None for one that did, or could not.

    The labels are shuffled against the answers: a student has learned something if fewer than one
    shuffle in twenty fits as well as the labels themselves. Rare classes that are found count in
    full, so that a student trained with class weights is not held against the commonest class.
    Where nearly all labels are of one class, or hardly a text has another, nobody is blamed for
    answering that class.

    Source: Ojala & Garriga 2010, Permutation tests for studying classifier performance.
    """
    y, weight, answers = own.y, own.weight / own.weight.sum(), own.answers
    mass = weight @ y
    others = int((y.argmax(axis=1) != mass.argmax()).sum())
    if mass.max() >= ONE_SIDED or others < FEW_OTHERS:
        return None
    value = weight[:, None] * y
    fit = value[np.arange(len(y)), answers].sum()
    rng = np.random.default_rng(0)
    shuffled = [value[np.arange(len(y)), rng.permutation(answers)].sum() for _ in range(SHUFFLES)]
    as_good = int((np.array(shuffled) >= fit - 1e-12).sum())
    if (1 + as_good) / (1 + SHUFFLES) <= LEVEL:
        return None
    counts = np.bincount(answers, minlength=y.shape[1])
    return NothingLearned(
        len(answers),
        int(counts.argmax()),
        float(counts.max() / counts.sum()),
        float(fit),
        float(mass.max()),
    )


def answers_told(verdict: NothingLearned, labels: Sequence[str]) -> str:
    """One clause on what the student answers: ``answers 'x' for all 200 texts …``."""
    asked = f"{verdict.texts} texts that it was asked about again after learning from them"
    if verdict.top_share == 1:
        return f"answers {labels[verdict.top]!r} for all {asked}"
    return (
        f"answers {labels[verdict.top]!r} for {100 * verdict.top_share:.0f} % of the {asked}, and"
        f" what it answers has nothing to do with their labels: {100 * verdict.right:.0f} % are"
        f" right, where the commonest label alone gives {100 * verdict.commonest:.0f} %"
    )


def has_learned(result: SeedResult) -> bool | None:
    """Whether a seed learned anything; None where nobody asked it."""
    return None if result.own is None else nothing_learned(result.own) is None


def checked(
    on_seed: Callable[[SeedResult], None],
    failed: Callable[[SeedResult, NothingLearned], None],
    *,
    first: int | None = None,
) -> Callable[[SeedResult], None]:
    """``on_seed``, told only of seeds that ``failed`` lets pass.

    Args:
        failed: told of a seed that learned nothing; raises to stop the training.
        first: the seed to judge first. Of seeds that train side by side it is chance which ends
            first; those that end before this one wait for it, so that the verdict is always its.
    """
    early: list[SeedResult] | None = None if first is None else []

    def judge(result: SeedResult) -> None:
        verdict = nothing_learned(result.own) if result.own is not None else None
        if verdict is not None:
            failed(result, verdict)
        on_seed(result)

    def told(result: SeedResult) -> None:
        nonlocal early
        if early is not None and result.seed != first:
            early.append(result)
            return
        waiting, early = early or [], None
        for ended in (result, *waiting):
            judge(ended)

    return told
