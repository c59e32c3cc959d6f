"""Servers that tell less: their likeliest tokens only, or nothing but what they say."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from connectors.llm.prompt_text import one_line
from connectors.llm.server_http import GarbledError, Http, IncompleteError, UnansweredError, Usage
from connectors.llm.server_ways import Plan, choices_of, log_prob_of
from loop.ports import FloatArray

TOPK_TOLERANCE = 0.001  # share of the label mass that may be unknown under top-k
FIRST_TOKEN_CHARS = 3  # under top-k a shorter piece of a name could begin any word


@dataclass
class TopK:
    """Any server that lists its likeliest tokens by their text."""

    SHORT = "The server lists only its likeliest tokens"
    http: Http
    model: str
    chat: bool
    listed: int
    votes: Votes | None
    exact: bool = False

    @property
    def means(self) -> str:
        """How it answers, in words."""
        return f"its {self.listed} likeliest first tokens"

    def trie(self, plan: Plan) -> None:
        """The tokens are not known."""

    def most_asked(self, plan: Plan) -> tuple[int, int]:
        """One prompt and one token, and those of the votes where a label is not listed."""
        prompts, written = self.votes.most_asked(plan) if self.votes else (0, 0)
        return prompts + 1, written + 1

    def ask(self, plan: Plan, text: str, usage: Usage) -> FloatArray:
        """(k,) log-masses from the likeliest first tokens, or by votes where one is missing."""
        top = self.top(plan.messages(text) if self.chat else plan.prompt(text), usage)
        masses, missing = first_token_masses(top, plan.answers)
        if missing is None:
            with np.errstate(divide="ignore"):
                return np.log(masses)
        if self.votes:
            return self.votes.ask(plan, text, usage)
        raise IncompleteError(
            f"{self.SHORT} ({len(top)} of them), and {missing}; use a vLLM or llama.cpp server,"
            " class numbers instead of names (label form 'ids'), or"
            " annotator.votes_when_no_logprobs."
        )

    def top(self, prompt: str | list[dict[str, str]], usage: Usage) -> list[tuple[str, float]]:
        """Texts and probabilities of the likeliest next tokens.

        Raises:
            GarbledError, UnansweredError: there are none.
        """
        body: dict[str, Any] = {"model": self.model, "max_tokens": 1, "temperature": 0}
        if isinstance(prompt, str):
            body |= {"prompt": prompt, "logprobs": self.listed}
            return self.http.post("/v1/completions", body, _top_of_completion, usage)
        body |= {"messages": prompt, "logprobs": True, "top_logprobs": self.listed}
        return self.http.post("/v1/chat/completions", body, _top_of_chat, usage)


@dataclass
class Votes:
    """Any server at all: sampled answers, counted."""

    http: Http
    model: str
    chat: bool
    votes: int
    exact: bool = False

    @property
    def means(self) -> str:
        """How it answers, in words."""
        return f"{self.votes} sampled answers for each item, counted"

    def trie(self, plan: Plan) -> None:
        """The tokens are not known."""

    def most_asked(self, plan: Plan) -> tuple[int, int]:
        """A prompt for each vote, where the server gives one answer however many are asked for.

        A server that writes all the answers asked for and gives only one of them writes the sum.
        """
        return self.votes, self.votes * (self.votes + 1) // 2 * self._longest(plan)

    @staticmethod
    def _longest(plan: Plan) -> int:
        """Tokens that one answer may have."""
        return max(map(len, plan.answers)) // 2 + 4

    def ask(self, plan: Plan, text: str, usage: Usage) -> FloatArray:
        """(k,) logarithms of the shares of answers."""
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": self._longest(plan),
            "temperature": 1,
            "stop": ["\n"],
        }
        if self.chat:
            path, body["messages"] = "/v1/chat/completions", plan.messages(text)
        else:
            path, body["prompt"] = "/v1/completions", plan.prompt(text)
        said: list[str] = []
        while len(said) < self.votes:  # some servers give one answer, however many are asked for
            body["n"] = self.votes - len(said)
            said += self.http.post(path, body, _said, usage)[: body["n"]]
        counts = np.zeros(len(plan.answers))
        for words in said:
            chosen = spoken_label(words, plan.answers)
            if chosen is not None:
                counts[chosen] += 1
        if not counts.any():
            raise UnansweredError(f"None of {self.votes} sampled answers was a label.")
        with np.errstate(divide="ignore"):
            return np.log(counts / self.votes)


def first_token_masses(
    top: Sequence[tuple[str, float]], answers: Sequence[str]
) -> tuple[FloatArray, str | None]:
    """Label probabilities from the likeliest first tokens, and what is wrong with them.

    A token stands for the one answer that begins with it. Probability of a piece that begins
    several answers, or is under 3 characters and no whole answer, must not be more than a
    thousandth. A label that is not listed is less likely than the last that is: if
    what can hide there is at most a thousandth of the labels' probability, half the bound stands
    for it.

    Args:
        top: token text and log-probability, likeliest first.
        answers: what the model writes for each class.
    Returns:
        (k,) probabilities, and None or the reason why they must not be used.
    """
    masses = np.zeros(len(answers))
    unclear = 0.0
    unclear_token = ""
    for token, log_prob in top:
        piece = token.strip()
        begun = [i for i, answer in enumerate(answers) if piece and answer.startswith(piece)]
        if len(begun) == 1 and (len(piece) >= FIRST_TOKEN_CHARS or answers[begun[0]] == piece):
            masses[begun[0]] += math.exp(log_prob)
        elif begun:
            unclear += math.exp(log_prob)
            unclear_token = unclear_token or piece
    absent = np.flatnonzero(masses == 0)
    rest = max(0.0, 1.0 - math.fsum(math.exp(lp) for _, lp in top))
    bound = min(rest, min((math.exp(lp) for _, lp in top), default=1.0))
    allowed = TOPK_TOLERANCE * masses.sum()
    if unclear > allowed:
        return masses, f"{unclear_token!r} does not tell which label it begins"
    if len(absent) * bound > allowed or not masses.any():
        return masses, f"the label {answers[absent[0]]!r} is not among them"
    masses[absent] = bound / 2
    return masses, None


def spoken_label(words: str, answers: Sequence[str]) -> int | None:
    """The class that a sampled answer names: the longest that it begins with, or None."""
    said = one_line(words).casefold().lstrip("\"'*( ")
    fitting = [
        i
        for i, answer in enumerate(answers)
        if re.match(re.escape(answer.casefold()) + r"(?!\w)", said)
    ]
    return max(fitting, key=lambda i: len(answers[i]), default=None)


def _top_of_completion(answer: Mapping[str, Any]) -> list[tuple[str, float]]:
    listed = choices_of(answer, 1)[0]["logprobs"]["top_logprobs"][0]
    return _sorted((token, log_prob_of(value)) for token, value in listed.items())


def _top_of_chat(answer: Mapping[str, Any]) -> list[tuple[str, float]]:
    listed = choices_of(answer, 1)[0]["logprobs"]["content"][0]["top_logprobs"]
    return _sorted((str(entry["token"]), log_prob_of(entry["logprob"])) for entry in listed)


def _sorted(pairs: Any) -> list[tuple[str, float]]:
    top = sorted(pairs, key=lambda pair: -pair[1])
    if not top:
        raise GarbledError("it listed no tokens")
    return top


def _said(answer: Mapping[str, Any]) -> list[str]:
    choices = answer["choices"]
    if not choices:
        raise GarbledError("it gave no choices")
    return [
        str(choice["message"]["content"] if "message" in choice else choice["text"])
        for choice in choices
    ]
