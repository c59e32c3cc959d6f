"""Servers that give the log-probability of every label's tokens: vLLM and llama.cpp."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from connectors.llm.label_trie import LabelTrie
from connectors.llm.prompt_text import answer_tokens
from connectors.llm.server_http import GarbledError, Http, UnansweredError, Usage, count_of
from connectors.llm.server_ways import LIST, OneByOne, Plan, choices_of, log_prob_of
from loop.errors import AnnotatorError
from loop.ports import FloatArray

ASKED_AT_ONCE = 128  # vLLM's limit on logprob_token_ids
LISTED = 64  # llama.cpp: likeliest tokens to list at first
BIAS = 40.0  # llama.cpp: lifts what is likelier than exp(-40) above all else
ENDS = (
    *("\n" * n for n in range(1, 5)),
    *("\r\n", "\r\n\r\n", "\n ", "\n  ", "\n    ", "\n\t", " \n", " \n\n"),
    *("</s>", "<eos>", "<end_of_turn>", "<turn|>"),
    *(f"<|{name}|>" for name in ("im_end", "endoftext", "eot_id", "end_of_text", "end", "return")),
)


@dataclass
class Tokens(ABC):
    """Servers that tokenise for us: the label trie is built here."""

    http: Http
    model: str
    chat: bool
    _ends: tuple[int, ...] | None = field(default=None, init=False)

    @abstractmethod
    def tokens(self, text: str, *, bare: bool = False) -> list[int]:
        """Token ids; ``bare`` without what stands before a whole prompt."""

    def trie(self, plan: Plan) -> LabelTrie:
        """The answers as they follow the prompt, and what ends them."""
        labels = answer_tokens(plan.variant, self.tokens, chat=self.chat)
        whole = any(len(ids) > 1 for ids in labels)
        return LabelTrie(labels, self.ends(labels) if whole else ())

    def ends(self, labels: Sequence[Sequence[int]]) -> tuple[int, ...]:
        """Tokens that end an answer: line breaks, and the end marks of common models."""
        if self._ends is None:
            before = self.tokens("a", bare=True)
            end_tokens = {
                after[-1]
                for after in (self.tokens("a" + end, bare=True) for end in ENDS)
                if after[:-1] == before
            }
            self._ends = tuple(sorted(end_tokens))
        used = {token for label in labels for token in label}
        ends = tuple(token for token in self._ends if token not in used)
        if not ends:
            raise AnnotatorError(
                "The model's tokenizer has no token for the end of a line, so that labels of"
                " several tokens cannot be scored; use the label form 'ids'."
            )
        return ends


@dataclass
class Vllm(Tokens):
    """vLLM: log-probabilities of the tokens asked for, over the whole vocabulary."""

    exact: bool = True
    means: str = "log-probabilities of exactly the labels' tokens (vLLM)"
    at_once: int = LIST

    def tokens(self, text: str, *, bare: bool = False) -> list[int]:
        """Asks ``/tokenize``."""
        body = {"model": self.model, "prompt": text, "add_special_tokens": not bare}
        return self.http.post("/tokenize", body, token_list)

    def most_asked(self, plan: Plan) -> tuple[int, int]:
        """A prompt for every node, and a token for every prompt."""
        prompts = plan.known_trie.prompts(ASKED_AT_ONCE)
        return prompts, prompts

    def ask(self, plan: Plan, text: str, usage: Usage) -> FloatArray:
        """(k,) log-masses, node by node of the trie."""
        log_masses: FloatArray = self._log_masses(plan, [text], usage, None)[0]
        return log_masses

    def ask_all(
        self, plan: Plan, texts: Sequence[str], usage: Sequence[Usage]
    ) -> list[FloatArray | UnansweredError]:
        """See ``connectors.llm.server_ways.Server``."""
        used = Usage()
        try:
            return [*self._log_masses(plan, texts, used, 1)]
        finally:
            used.share_out(usage, [len(plan.prompt(text).encode()) for text in texts])

    def _log_masses(
        self, plan: Plan, texts: Sequence[str], usage: Usage, attempts: int | None
    ) -> FloatArray:
        """(n, k) log-masses: the root of the trie for all texts, then its other nodes."""
        trie = plan.known_trie
        root, *rest = trie.nodes
        prompts: list[str | list[int]] = [plan.prompt(text) for text in texts]
        if self.chat:
            bodies = [{"model": self.model, "messages": plan.messages(text)} for text in texts]
            prompts = [self.http.post("/tokenize", body, token_list) for body in bodies]
        answered, tokens = self._log_probs(prompts, root.asked, usage, attempts, tokens=bool(rest))
        answers = [_column(answered, root.asked)]
        if rest:
            begun = [
                (given or self.tokens(prompt)) if isinstance(prompt, str) else prompt
                for prompt, given in zip(prompts, tokens, strict=True)
            ]
            wanted = tuple(sorted({token for node in rest for token in node.asked}))
            paths: list[str | list[int]] = [[*ids, *node.path] for node in rest for ids in begun]
            answered, _ = self._log_probs(paths, wanted, usage, attempts)
            n = len(texts)
            answers += [
                _column(answered[i * n : (i + 1) * n], node.asked) for i, node in enumerate(rest)
            ]
        return trie.log_masses(answers)

    def _log_probs(
        self,
        prompts: Sequence[str | list[int]],
        ids: Sequence[int],
        usage: Usage,
        attempts: int | None = None,
        *,
        tokens: bool = False,
    ) -> tuple[list[dict[int, float]], list[list[int] | None]]:
        """For each prompt the log-probability of each id as the next token.

        Also the tokens of each prompt, where they are wanted and the server gives them.
        """
        log_probs: list[dict[int, float]] = [{} for _ in prompts]
        prompt_tokens: list[list[int] | None] = [None for _ in prompts]

        def read(answer: Mapping[str, Any]) -> tuple[list[dict[int, float]], list[object]]:
            choices = choices_of(answer, len(prompts))
            given = [choice.get("prompt_token_ids") for choice in choices]
            return [_by_token_id(choice, part) for choice in choices], given

        for start in range(0, len(ids), ASKED_AT_ONCE):
            part = list(ids[start : start + ASKED_AT_ONCE])
            body = {
                "model": self.model,
                "prompt": prompts[0] if len(prompts) == 1 else list(prompts),
                "max_tokens": 1,
                "temperature": 0,
                "logprobs": 1,
                "logprob_token_ids": part,
                "return_tokens_as_token_ids": True,
                "return_token_ids": tokens,
            }
            values, given = self.http.post(
                "/v1/completions", body, read, usage, len(prompts), attempts
            )
            for row, (new, its_tokens) in enumerate(zip(values, given, strict=True)):
                log_probs[row].update(new)
                if isinstance(its_tokens, list) and all(isinstance(t, int) for t in its_tokens):
                    prompt_tokens[row] = its_tokens
        return log_probs, prompt_tokens


def _column(answers: Sequence[Mapping[int, float]], tokens: Sequence[int]) -> FloatArray:
    """(n, tokens) log-probabilities."""
    return np.array([[answer[token] for token in tokens] for answer in answers])


@dataclass
class LlamaCpp(Tokens, OneByOne):
    """llama.cpp: its native list of likeliest tokens, and a second look at those not in it."""

    exact: bool = True
    means: str = "its list of likeliest tokens, and biased lists for the others (llama.cpp)"

    def tokens(self, text: str, *, bare: bool = False) -> list[int]:
        """Asks ``/tokenize``."""
        return self._tokens(text, add_special=not bare, parse_special=bare)

    def _tokens(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        body = {"content": text, "add_special": add_special, "parse_special": parse_special}
        return self.http.post("/tokenize", body, token_list)

    def most_asked(self, plan: Plan) -> tuple[int, int]:
        """Each node twice, the second time under a bias, and a token each time."""
        prompts = 2 * len(plan.known_trie.nodes)
        return prompts, prompts

    def ask(self, plan: Plan, text: str, usage: Usage) -> FloatArray:
        """(k,) log-masses, node by node of the trie."""
        trie = plan.known_trie
        if self.chat:
            body = {"messages": plan.messages(text)}
            wrapped = self.http.post("/apply-template", body, _wrapped)
            prompt = self._tokens(wrapped, add_special=False, parse_special=True)
        else:
            prompt = self.tokens(plan.prompt(text))
        answers = []
        for node in trie.nodes:
            log_probs = self._log_probs([*prompt, *node.path], node.asked, usage)
            answers.append(np.array([log_probs[token] for token in node.asked]))
        return trie.log_masses(answers)

    def _log_probs(self, prompt: list[int], ids: Sequence[int], usage: Usage) -> dict[int, float]:
        """Log-probability of each id as the next token.

        Tokens that are not among the likeliest are asked for again with a bias that puts them
        there, together with the likeliest of all: the ratios tell what they were without it.
        """
        body = {"prompt": prompt, "n_predict": 1, "cache_prompt": True}
        plain = {"n_probs": LISTED, "temperature": -1, "post_sampling_probs": False}
        log_probs, tokens = self.http.post("/completion", body | plain, _native_list)
        usage.add({"prompt_tokens": tokens, "completion_tokens": 1})
        likeliest = max(log_probs, key=lambda token: log_probs[token])
        hidden = [token for token in ids if token not in log_probs]
        if hidden:
            raised = [likeliest, *hidden]
            biased = {
                "n_probs": len(raised),
                "temperature": 1,
                "samplers": ["temperature"],
                "repeat_penalty": 1,
                "logit_bias": [[token, BIAS] for token in raised],
                "post_sampling_probs": True,
            }
            again, tokens = self.http.post("/completion", body | biased, _biased_list)
            usage.add({"prompt_tokens": tokens, "completion_tokens": 1})
            if likeliest not in again:
                raise UnansweredError("The server ignores logit_bias.")
            for token in hidden:
                below = again.get(token, -BIAS) - again[likeliest]
                log_probs[token] = log_probs[likeliest] + min(0.0, below)
        return log_probs


def _by_token_id(choice: Mapping[str, Any], ids: Sequence[int]) -> dict[int, float]:
    listed = choice["logprobs"]["top_logprobs"][0]
    missing = [token for token in ids if f"token_id:{token}" not in listed]
    if missing:
        raise GarbledError(
            f"it left out {len(missing)} of {len(ids)} log-probabilities that were asked for"
        )
    return {token: log_prob_of(listed[f"token_id:{token}"]) for token in ids}


def _wrapped(answer: Mapping[str, Any]) -> str:
    prompt = answer["prompt"]
    if not isinstance(prompt, str):
        raise GarbledError("it gave no text in its chat template")
    return prompt


def _native_list(answer: Mapping[str, Any]) -> tuple[dict[int, float], int]:
    listed = answer["completion_probabilities"][0]["top_logprobs"]
    if not listed:
        raise GarbledError("it listed no tokens")
    log_probs = {int(entry["id"]): log_prob_of(entry["logprob"]) for entry in listed}
    return log_probs, _fresh_tokens(answer)


def _biased_list(answer: Mapping[str, Any]) -> tuple[dict[int, float], int]:
    """Likewise under a bias, where probabilities are given instead of their logarithms."""
    listed = answer["completion_probabilities"][0]["top_probs"]
    log_probs = {
        int(entry["id"]): math.log(entry["prob"]) if entry["prob"] > 0 else -BIAS
        for entry in listed
    }
    return log_probs, _fresh_tokens(answer)


def _fresh_tokens(answer: Mapping[str, Any]) -> int:
    timings = answer.get("timings")
    fresh = timings.get("prompt_n") if isinstance(timings, Mapping) else None
    return count_of(answer.get("tokens_evaluated") if fresh is None else fresh)


def token_list(answer: Mapping[str, Any]) -> list[int]:
    """What ``/tokenize`` answers.

    Raises:
        GarbledError: no list of tokens.
    """
    tokens = answer["tokens"]
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise GarbledError("it gave no list of tokens")
    return tokens
