"""Label strings as a trie of tokens, and the exact class distribution over it.

A language model gives the probability of the next token only. The probability of a whole label is
the product along its tokens, times the probability that the answer ends there. Labels that begin
alike share their first tokens, so the model is asked once per *node* of the trie: "how probable is
each of these tokens after the prompt and this path?" Nothing is divided by length, nothing is cut
to a first token, and ``positive`` does not swallow ``positive review``.

Labels that are one token each, and different, need one question and no end: the answer is decided
by that token.

What counts is the label in the tokens that the tokenizer itself makes of it. The same letters in
other pieces are no answer, and their probability stays in the off-label mass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from loop.ports import FloatArray

MASS_TOLERANCE = 0.01  # disjoint answers whose probabilities sum to more than 1 by this are garbage


@dataclass(frozen=True)
class Node:
    """One question to the model.

    Attributes:
        path: tokens between the prompt and the one asked for; () at the root.
        asked: the tokens whose log-probabilities are wanted, ascending.
    """

    path: tuple[int, ...]
    asked: tuple[int, ...]


@dataclass(frozen=True)
class LabelTrie:
    """The labels' tokens and what ends an answer.

    Attributes:
        labels: token ids of each class's answer, as they follow the prompt.
        ends: tokens of which any ends an answer; they matter only where ``whole``.
    Raises:
        ValueError: an empty label, two equal labels, an end token within a label, or labels of
            several tokens without ends.
    """

    labels: tuple[tuple[int, ...], ...]
    ends: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not all(self.labels) or len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels must be different and not empty: {self.labels}")
        if self.whole and not self.ends:
            raise ValueError("labels of several tokens need end tokens")
        if self.whole and any(set(self.ends) & set(label) for label in self.labels):
            raise ValueError(f"end tokens {self.ends} occur within labels {self.labels}")

    @property
    def whole(self) -> bool:
        """Whether the whole label and its end are scored, because some label has several tokens."""
        return any(len(label) > 1 for label in self.labels)

    @property
    def longest(self) -> int:
        """Tokens of the longest label."""
        return max(map(len, self.labels))

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Every question, the root first and parents before children."""
        asked: dict[tuple[int, ...], set[int]] = {(): set()}
        for label in self.labels:
            for step, token in enumerate(label):
                asked.setdefault(label[:step], set()).add(token)
            if self.whole:
                asked.setdefault(label, set()).update(self.ends)
        paths = sorted(asked, key=lambda path: (len(path), path))
        return tuple(Node(path, tuple(sorted(asked[path]))) for path in paths)

    @property
    def extra_tokens(self) -> int:
        """Tokens beyond the prompt that the questions hold."""
        return sum(len(node.path) for node in self.nodes)

    def log_masses(self, answers: Sequence[FloatArray]) -> FloatArray:
        """Log-probability of each whole label.

        Args:
            answers: for each of ``nodes`` (..., asked) natural log-probabilities.
        Returns:
            (..., k) in the order of ``labels``; NaN where one that matters is NaN.
        Raises:
            ValueError: an array of another shape.
        """
        if len(answers) != len(self.nodes):
            raise ValueError(f"{len(answers)} answers to {len(self.nodes)} nodes")
        at: dict[tuple[int, ...], tuple[dict[int, int], FloatArray]] = {}
        for node, answer in zip(self.nodes, answers, strict=True):
            if answer.shape[-1:] != (len(node.asked),):
                raise ValueError(f"shape {answer.shape} for {len(node.asked)} tokens asked")
            at[node.path] = {token: i for i, token in enumerate(node.asked)}, answer

        def log_prob(path: tuple[int, ...], token: int) -> FloatArray:
            column, answer = at[path]
            values: FloatArray = answer[..., column[token]]
            return values

        masses = []
        for label in self.labels:
            total = log_prob((), label[0])
            for step in range(1, len(label)):
                total = total + log_prob(label[:step], label[step])
            if self.whole:
                ending = np.stack([log_prob(label, token) for token in self.ends])
                total = total + np.logaddexp.reduce(ending, axis=0)
            masses.append(total)
        return np.stack(masses, axis=-1)


def class_probs(log_masses: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Probabilities of the classes given that the answer is one of them, and the rest.

    Args:
        log_masses: (n, k) log-probability of each class's answer.
    Returns:
        (n, k) rows sum to 1, and (n,) off-label mass. Both are NaN in rows that are no
        distribution: NaN, +inf, all -inf, or masses that sum to more than 1.
    """
    top = log_masses.max(axis=1, keepdims=True)
    sound = np.isfinite(top[:, 0]) & ~np.isnan(log_masses).any(axis=1)
    shift = np.where(sound[:, None], top, 0.0)
    weights = np.exp(np.where(sound[:, None], log_masses - shift, 0.0))
    mass = np.exp(shift[:, 0]) * weights.sum(axis=1)
    sound &= mass <= 1.0 + MASS_TOLERANCE
    probs = np.where(sound[:, None], weights / weights.sum(axis=1, keepdims=True), np.nan)
    return probs, np.where(sound, np.clip(1.0 - mass, 0.0, 1.0), np.nan)
