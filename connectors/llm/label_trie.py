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

from loop.errors import AnnotatorError
from loop.ports import FloatArray

PROBE_ITEMS = 64  # the first answers, on which an annotator's ways are checked
SMALLEST_MASS = 1e-6  # of all labels together, median over items
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

    def prompts(self, at_once: int) -> int:
        """Prompts that all nodes take, where so many tokens can be asked for at once.

        The root is asked alone, each other node for what any of them asks.
        """
        root, *rest = self.nodes
        wanted = {token for node in rest for token in node.asked}
        return -(-len(root.asked) // at_once) + len(rest) * -(-len(wanted) // at_once)

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


def check_answers(
    texts: Sequence[str], log_masses: FloatArray, *, model: str, chat: bool, fine: bool = True
) -> None:
    """Refuses first answers that cannot be used for ranking.

    Args:
        texts: n texts; of equal ones the last counts.
        log_masses: (n, k) log-probability of each class's answer; rows that are not finite are
            left out.
        model: for the message.
        chat: whether the chat template was used.
        fine: whether many different values are to be expected.
    Raises:
        AnnotatorError: probabilities that sum to more than 1, almost no probability on labels, or
            probabilities so coarse that items tie.
    """
    rows = sorted({text: row for row, text in enumerate(texts)}.values())
    masses = log_masses[rows]
    masses = masses[np.isfinite(masses).all(axis=1)]
    if not len(masses):
        return
    _, off = class_probs(masses)
    if np.isnan(off).all():
        raise AnnotatorError(
            f"The model {model} gives label probabilities that sum to more than 1: they are not"
            " natural log-probabilities of the whole vocabulary (vLLM: leave out --logprobs-mode,"
            " or set it to raw_logprobs)."
        )
    labelled = float(np.nanmedian(1.0 - off))
    if labelled < SMALLEST_MASS:
        raise AnnotatorError(
            f"The model {model} gives all labels together a probability of {labelled:.1g}: it does"
            f" not answer the question that is asked; turn the chat template"
            f" {'off' if chat else 'on'}, show demonstrations, or use another model."
        )
    if fine and coarse(masses):
        raise AnnotatorError(
            f"The model {model} gives different texts the same probabilities: its last layer"
            " computes in too low a precision. Start vLLM with"
            """ --hf-overrides '{"head_dtype": "float32"}'."""
        )


def coarse(log_masses: FloatArray) -> bool:
    """Whether n different texts share few probabilities, as they do under a bf16 last layer.

    Args:
        log_masses: (n, k) finite. Log-odds against the first class are compared, since these are
            what a coarse layer leaves coarse. Under 32 texts are too few to tell.
    """
    if len(log_masses) < PROBE_ITEMS // 2:
        return False
    odds = np.round(log_masses[:, 1:] - log_masses[:, :1], 4)
    distinct = max(len(np.unique(column)) for column in odds.T)
    return distinct < len(log_masses) / 2
