"""An Annotator that asks any server with an OpenAI-like interface, ``vllm serve`` first.

How exact the answer is depends on what the server tells:

    vLLM              log-probabilities of exactly the tokens asked for: exact for every label,
                      of one token or of many, and the off-label mass with them
    llama.cpp         the same, read out of its native list of likeliest tokens, and where a label
                      is not in it, out of a second list under a known bias
    others, top-k     the likeliest tokens only (hosted interfaces: 5 to 20): a label is known by
                      the first token of its answer. Where a label that matters is not listed, or
                      two labels begin alike, the item gets no answer rather than a wrong one
    none of these     votes, if ``votes_when_no_logprobs`` allows: n sampled answers are counted,
                      so that probabilities are multiples of 1/n, items tie, and n answers are paid

What the server does is looked up at the first question and checked: an option that is silently
ignored shows, because the answers must hold exactly the tokens asked for.
"""

from __future__ import annotations

import email.utils
import logging
import math
import os
import random
import re
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import httpx
import numpy as np

from connectors.label_trie import LabelTrie, class_probs
from connectors.local_lm import _one_line as one_line
from loop.errors import AnnotatorError
from loop.ports import ClassProbs, FloatArray, Progress, PromptVariant, TextItem, no_progress

log = logging.getLogger(__name__)

FORM = "server-1"  # how labels are scored; raise the number when answers change
ASKED_AT_ONCE = 128  # vLLM's limit on logprob_token_ids
LISTED = 64  # llama.cpp: likeliest tokens to list at first
BIAS = 40.0  # llama.cpp: lifts what is likelier than exp(-40) above all else
PROBE_ITEMS = 64  # the first answers, on which the server's ways are checked
TOPK_TOLERANCE = 0.001  # share of the label mass that may be unknown under top-k
LONGEST_WAIT_S = 300.0  # a server that asks for more patience than this is not waited for
FIRST_TOKEN_CHARS = 3  # under top-k a shorter piece of a name could begin any word
SMALLEST_MASS = 1e-6  # of all labels together, median over items
SHORTEST_TEXT = 64  # a text is halved down to this to fit into the model's context
TOO_LONG = re.compile(r"context|too long|too large|n_ctx", re.IGNORECASE)
T = TypeVar("T")

# Texts must not close their turn or open another's. A space after the first character breaks the
# marks that chat models use, and leaves them legible.
CONTROL = re.compile(
    r"<\|(?=[^<>|\s]{1,40}\|>)|<(?=/?s>)|<(?=(?:bos|eos|pad|unk|start_of_turn|end_of_turn)>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|TOOL_CALLS|AVAILABLE_TOOLS)\])"
)
ENDS = (
    *("\n" * n for n in range(1, 5)),
    *("\r\n", "\r\n\r\n", "\n ", "\n  ", "\n    ", "\n\t", " \n", " \n\n"),
    *("</s>", "<eos>", "<end_of_turn>", "<turn|>"),
    *(f"<|{name}|>" for name in ("im_end", "endoftext", "eot_id", "end_of_text", "end", "return")),
)


@dataclass(frozen=True)
class Prices:
    """US dollars for a million tokens, as the server's owner asks for them."""

    input: float = 0.0
    cached_input: float | None = None
    output: float = 0.0


@dataclass
class _Usage:
    """What one item took, failed attempts included."""

    prompt: int = 0
    cached: int = 0
    output: int = 0

    def add(self, usage: object, prompts: int = 1) -> None:
        """Counts an answer's ``usage``; what is missing or no number counts nothing.

        vLLM states the cached tokens of the last prompt only. The prompts of a request share all
        but their last few tokens, so each has as many.
        """
        if not isinstance(usage, Mapping):
            return
        details = usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, Mapping) else 0
        prompt, hits = _count(usage.get("prompt_tokens")), _count(cached)
        self.prompt += prompt
        self.cached += hits * prompts if hits * prompts <= prompt else hits
        self.output += _count(usage.get("completion_tokens"))

    @property
    def computed(self) -> int:
        """Tokens that were not in a cache."""
        return max(0, self.prompt - self.cached) + self.output

    def usd(self, prices: Prices) -> float:
        """What this costs."""
        cached = prices.input if prices.cached_input is None else prices.cached_input
        fresh = max(0, self.prompt - self.cached)
        return (fresh * prices.input + self.cached * cached + self.output * prices.output) / 1e6


class _GarbledError(Exception):
    """An answer that cannot be used; another attempt may do better."""


class _UnansweredError(Exception):
    """An item gets no answer; ``down`` if the server rather than the item seems to be why."""

    def __init__(self, reason: str, *, down: bool = False) -> None:
        super().__init__(reason)
        self.down = down


class _StoppedError(_UnansweredError):
    """Nobody asked, because the others stopped."""


class _IncompleteError(_UnansweredError):
    """The server lists too few tokens for this item."""


class _RejectedError(_UnansweredError):
    """The server says no, and would say it again."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class OpenAIServerAnnotator:
    """Class probabilities from a server with an OpenAI-like interface.

    The server is asked at the first question, not before. The key is read from the environment
    and goes nowhere but into the request's header.

    Args:
        base_url: the server, or its OpenAI-like interface: a path is kept, a bare host gets
            ``/v1``.
        model: as the server names it.
        api_key_env: environment variable with the key; an unset one sends none.
        chat: wrap the prompt in the model's chat template.
        concurrency: requests under way at once.
        timeout_s: how long one request may be silent.
        max_attempts: for each request, before its item goes without an answer. Being told to wait
            (429) does not count while other requests succeed.
        votes_when_no_logprobs: answers to sample where log-probabilities are missing; 0 refuses.
        max_text_chars: longer texts lose their middle.
        prices: gives ``ClassProbs.usd``.
        backoff_s: first pause between attempts; it doubles, up to 30 s, and varies at random.
        transport: for tests.
        progress: told of finished items.
    Raises:
        AnnotatorError: the address is none, or holds a password.
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_env: str = "OPENAI_API_KEY",
        chat: bool = False,
        concurrency: int = 8,
        timeout_s: float = 60.0,
        max_attempts: int = 6,
        votes_when_no_logprobs: int = 0,
        max_text_chars: int = 8192,
        prices: Prices | None = None,
        backoff_s: float = 0.5,
        transport: httpx.BaseTransport | None = None,
        progress: Progress = no_progress,
    ) -> None:
        if min(concurrency, max_attempts) < 1 or timeout_s <= 0 or max_text_chars < 32:
            raise ValueError(
                f"concurrency {concurrency} and max_attempts {max_attempts} must be >= 1,"
                f" timeout_s {timeout_s} > 0, max_text_chars {max_text_chars} >= 32"
            )
        if votes_when_no_logprobs < 0:
            raise ValueError(f"votes_when_no_logprobs {votes_when_no_logprobs} must be >= 0")
        self._model = model
        self._chat = chat
        self._concurrency = concurrency
        self._votes = votes_when_no_logprobs
        self._max_text_chars = max_text_chars
        self._prices = prices or Prices()
        self._progress = progress
        self._http = _Http(
            base_url,
            api_key_env,
            timeout_s=timeout_s,
            max_attempts=max_attempts,
            backoff_s=backoff_s,
            concurrency=concurrency,
            transport=transport,
        )
        self._server: _Server | None = None
        self._plans: dict[str, _Plan] = {}
        self._unchecked = True
        self._failures: dict[str, str] = {}

    @property
    def revision(self) -> str:
        """Model, and all settings that change answers; not where the server stands."""
        chat = ":chat" if self._chat else ""
        votes = f":votes{self._votes}" if self._votes else ""
        return f"{self._model}@{FORM}{chat}{votes}:{self._max_text_chars}"

    @property
    def failures(self) -> Mapping[str, str]:
        """Item id -> why it got no answer, in the last call of ``annotate``."""
        return dict(self._failures)

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def annotate(self, variant: PromptVariant, items: Sequence[TextItem]) -> ClassProbs:
        """Class probabilities of n items; a row of NaN for an item that got no answer.

        Items are independent: one that the server cannot answer, or answers with garbage to the
        last attempt, leaves the others as they are. ``failures`` says why.

        Returns:
            (n, k) probabilities, in the items' order. ``tokens`` is what the server says it
            computed, prompt tokens out of its cache left out, repeated attempts counted.
        Raises:
            AnnotatorError: the server refuses, is down, or answers in a way that cannot be right.
        """
        n, k = len(items), len(variant.labels)
        log_masses = np.full((n, k), np.nan)
        usage = [_Usage() for _ in range(n)]
        self._failures = {}
        self._http.begin()
        if n:
            server = self._server_or_detect()
            plan = self._plan(server, variant)
            first = self._unchecked
            early = range(min(n, PROBE_ITEMS)) if first else range(0)
            if early:
                self._ask(server, plan, items, early, log_masses, usage)
                self._check(server, items, early, log_masses)
                self._unchecked = False
            self._ask(server, plan, items, range(len(early), n), log_masses, usage)
            if self._failures:
                reason = next(iter(self._failures.values()))
                log.warning("%d of %d items got no answer: %s", len(self._failures), n, reason)
        probs, off = class_probs(log_masses)
        return ClassProbs(
            probs,
            off,
            np.array([u.computed for u in usage], dtype=np.int64),
            math.fsum(u.usd(self._prices) for u in usage),
        )

    def _ask(
        self,
        server: _Server,
        plan: _Plan,
        items: Sequence[TextItem],
        rows: Sequence[int],
        log_masses: FloatArray,
        usage: Sequence[_Usage],
    ) -> None:
        """Fills the rows in, as far as the server goes.

        Raises:
            AnnotatorError: the server is down, or refuses for good.
        """
        todo = list(rows)
        patience = max(8, 2 * self._concurrency)
        lock = threading.Lock()
        stop = self._http.stop
        down = 0
        left: list[int] = []
        fatal: list[AnnotatorError] = []

        def one(row: int) -> None:
            nonlocal down
            if stop.is_set():
                with lock:
                    left.append(row)
                return
            item = items[row]
            try:
                log_masses[row] = self._ask_one(server, plan, item.text, usage[row])
            except _StoppedError:
                with lock:
                    left.append(row)
                return
            except _UnansweredError as exc:
                with lock:
                    self._failures[item.id] = str(exc)
                    down = down + 1 if exc.down else down
                    if down >= patience:
                        stop.set()
                    status = exc.status if isinstance(exc, _RejectedError) else 0
                    moderated = status == 403 and np.isfinite(log_masses).any()
                    if status in _Http.REFUSED and not moderated:
                        fatal.append(AnnotatorError(str(exc)))
                        stop.set()
            except AnnotatorError as exc:
                fatal.append(exc)
                stop.set()
            else:
                with lock:
                    down = 0
            with lock:
                self._progress(1)

        while todo:
            stop.clear()
            down = 0
            left.clear()
            if plan.fresh:  # alone, so that what all prompts share is in the server's cache
                plan.fresh = False
                one(todo.pop(0))
            with ThreadPoolExecutor(self._concurrency, "annotate") as pool:
                try:
                    for _ in pool.map(one, todo):
                        pass
                except BaseException:  # an interrupt must not wait for pauses
                    stop.set()
                    pool.shutdown(wait=True, cancel_futures=True)
                    raise
            stopped, todo = stop.is_set(), sorted(left)
            stop.clear()
            nothing = not np.isfinite(log_masses[list(rows)]).any()
            reason = str(fatal[0]) if fatal else None
            if down and not fatal and (stopped or nothing):
                reason = self._still_down(server, plan)
            if reason is None:
                continue
            if not np.isfinite(log_masses).any():
                raise AnnotatorError(reason)
            for row in todo:  # what was answered is kept; the next call will raise
                self._failures[items[row].id] = reason
            return

    def _ask_one(self, server: _Server, plan: _Plan, text: str, usage: _Usage) -> FloatArray:
        """(k,) log-masses; a text that is too long for the model's context loses its middle."""
        text = self._plain(text)
        while True:
            try:
                return server.ask(plan, text, usage)
            except _RejectedError as exc:
                if len(text) < SHORTEST_TEXT or not TOO_LONG.search(str(exc)):
                    raise
                text = f"{text[: len(text) // 4]} {text[-(len(text) // 4) :]}"

    def _still_down(self, server: _Server, plan: _Plan) -> str | None:
        """Why the server does not even answer about a harmless text, or None if it does."""
        try:
            server.ask(plan, "a", _Usage())
        except _UnansweredError as exc:
            return str(exc) if exc.down else None
        return None

    def _plain(self, text: str) -> str:
        """One line without control marks, at most max_text_chars long."""
        half = self._max_text_chars // 2
        if len(text) > 8 * half:  # white space may still shrink, so not to the last character
            text = f"{text[: 4 * half]} {text[-4 * half :]}"
        text = one_line(text)
        if len(text) > 2 * half:
            text = f"{text[:half]} {text[-half:]}"
        return CONTROL.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)

    def _plan(self, server: _Server, variant: PromptVariant) -> _Plan:
        if variant.hash not in self._plans:
            shown = tuple(
                replace(d, text=self._plain(d.text), label=one_line(d.label))
                if variant.label_form == "names"
                else replace(d, text=self._plain(d.text))
                for d in variant.demonstrations
            )
            answers = tuple(one_line(answer) for answer in variant.answers)
            for i, answer in enumerate(answers):
                if answer in answers[:i]:
                    twin = variant.labels[answers.index(answer)].name
                    raise AnnotatorError(
                        f"The labels {twin!r} and {variant.labels[i].name!r} look the same to the"
                        " model; rename one."
                    )
            plan = _Plan(replace(variant, demonstrations=shown), answers)
            try:
                plan.trie = server.trie(plan)
            except _UnansweredError as exc:
                raise AnnotatorError(str(exc)) from exc
            self._plans[variant.hash] = plan
        return self._plans[variant.hash]

    def _server_or_detect(self) -> _Server:
        if self._server is None:
            try:
                self._server = _detect(self._http, self._model, self._chat, self._votes)
            except _UnansweredError as exc:
                raise AnnotatorError(str(exc)) from exc
            log.info("%s answers by %s", self._http.shown, self._server.means)
        return self._server

    def _check(
        self,
        server: _Server,
        items: Sequence[TextItem],
        rows: Sequence[int],
        log_masses: FloatArray,
    ) -> None:
        """Refuses first answers that cannot be used for ranking.

        Raises:
            AnnotatorError: too many items without all classes, almost no probability on labels,
                or probabilities so coarse that items tie.
        """
        short = [
            self._failures[items[row].id]
            for row in rows
            if self._failures.get(items[row].id, "").startswith(_TopK.SHORT)
        ]
        if len(short) > len(rows) / 10:
            raise AnnotatorError(f"{short[0]} This holds for {len(short)} of {len(rows)} items.")
        different = {items[row].text: row for row in rows}
        masses = log_masses[sorted(different.values())]
        masses = masses[np.isfinite(masses).all(axis=1)]
        probs, off = class_probs(masses)
        if len(masses) and np.isnan(probs).all():
            raise AnnotatorError(
                f"{self._http.shown} gives label probabilities that sum to more than 1;"
                " it does not answer with natural log-probabilities of the whole vocabulary"
                " (vLLM: leave out --logprobs-mode, or set it to raw_logprobs)."
            )
        if len(masses) and np.nanmedian(1.0 - off) < SMALLEST_MASS:
            raise AnnotatorError(
                f"The model {self._model} gives all labels together a probability of"
                f" {np.nanmedian(1.0 - off):.1g}: it does not answer the question that is asked;"
                f" turn the chat template {'off' if self._chat else 'on'}, show demonstrations, or"
                " use another model."
            )
        if server.exact and coarse(masses):
            raise AnnotatorError(
                f"The model {self._model} gives different texts the same probabilities: its last"
                " layer computes in too low a precision. Start vLLM with"
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


# what servers can do


@dataclass
class _Plan:
    """A variant, made ready for a server.

    Attributes:
        answers: what the model writes for each class, without the space before it.
        fresh: whether nothing was asked yet.
    """

    variant: PromptVariant
    answers: tuple[str, ...]
    trie: LabelTrie | None = None
    fresh: bool = True

    def prompt(self, text: str) -> str:
        return self.variant.prefix + self.variant.suffix(text)

    def messages(self, text: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.prompt(text).rstrip(" ")}]


class _Server(Protocol):
    """One way of reading class probabilities out of a server."""

    @property
    def exact(self) -> bool:
        """Whether every label's probability is known."""
        ...

    @property
    def means(self) -> str:
        """How it answers, in words."""
        ...

    def trie(self, plan: _Plan) -> LabelTrie | None:
        """The answers' tokens, where the server tells."""
        ...

    def ask(self, plan: _Plan, text: str, usage: _Usage) -> FloatArray:
        """(k,) log-probability of each class's answer.

        Raises:
            _UnansweredError: this item gets none.
        """
        ...


@dataclass
class _Tokens(ABC):
    """Servers that tokenise for us: the label trie is built here."""

    http: _Http
    model: str
    chat: bool
    _ends: tuple[int, ...] | None = field(default=None, init=False)

    @abstractmethod
    def tokens(self, text: str, *, bare: bool = False) -> list[int]:
        """Token ids; ``bare`` without what stands before a whole prompt."""

    def trie(self, plan: _Plan) -> LabelTrie:
        """The answers as they follow the prompt, and what ends them."""
        if self.chat:  # the answer begins the model's turn
            labels = [tuple(self.tokens(answer, bare=True)) for answer in plan.answers]
        else:
            prompt = plan.variant.suffix("a")
            before = self.tokens(prompt)
            lead = " " if plan.variant.label_form == "names" else ""
            labels = []
            for answer in plan.answers:
                after = self.tokens(prompt + lead + answer)
                if after[: len(before)] != before:
                    raise AnnotatorError(
                        f"The model's tokenizer cannot tell the label {answer!r} from the prompt"
                        " before it; use another model or another label name."
                    )
                labels.append(tuple(after[len(before) :]))
        if plan.variant.label_form == "ids":
            long = [
                answer for answer, ids in zip(plan.answers, labels, strict=True) if len(ids) > 1
            ]
            if long:
                raise AnnotatorError(
                    f"The class number {long[0]} is several tokens to this model, so it cannot be"
                    " read as one; use the label form 'names'."
                )
        if not all(labels) or len(set(labels)) < len(labels):
            raise AnnotatorError(
                f"The model's tokenizer cannot tell the labels {', '.join(plan.answers)} apart;"
                " rename them."
            )
        whole = any(len(ids) > 1 for ids in labels)
        return LabelTrie(tuple(labels), self.ends(labels) if whole else ())

    def ends(self, labels: Sequence[Sequence[int]]) -> tuple[int, ...]:
        """Tokens that end an answer: line breaks, and the end marks of common models."""
        if self._ends is None:
            before = self.tokens("a", bare=True)
            found = {
                after[-1]
                for after in (self.tokens("a" + end, bare=True) for end in ENDS)
                if after[:-1] == before
            }
            self._ends = tuple(sorted(found))
        used = {token for label in labels for token in label}
        ends = tuple(token for token in self._ends if token not in used)
        if not ends:
            raise AnnotatorError(
                "The model's tokenizer has no token for the end of a line, so that labels of"
                " several tokens cannot be scored; use the label form 'ids'."
            )
        return ends


@dataclass
class _Vllm(_Tokens):
    """vLLM: log-probabilities of the tokens asked for, over the whole vocabulary."""

    exact: bool = True
    means: str = "log-probabilities of exactly the labels' tokens (vLLM)"

    def tokens(self, text: str, *, bare: bool = False) -> list[int]:
        body = {"model": self.model, "prompt": text, "add_special_tokens": not bare}
        return self.http.post("/tokenize", body, _token_list)

    def ask(self, plan: _Plan, text: str, usage: _Usage) -> FloatArray:
        trie = plan.trie
        if trie is None:
            raise ValueError("the plan has no trie")
        prompt: str | list[int] = plan.prompt(text)
        if self.chat:
            body = {"model": self.model, "messages": plan.messages(text)}
            prompt = self.http.post("/tokenize", body, _token_list)
        root, *rest = trie.nodes
        found, tokens = self._log_probs([prompt], root.asked, usage)
        answers = [found[0]]
        if rest:
            if isinstance(prompt, str):
                prompt = tokens or self.tokens(prompt)
            wanted = tuple(sorted({token for node in rest for token in node.asked}))
            paths = [[*prompt, *node.path] for node in rest]
            found, _ = self._log_probs(paths, wanted, usage)
            answers += found
        return trie.log_masses(
            [
                np.array([answer[token] for token in node.asked])
                for node, answer in zip(trie.nodes, answers, strict=True)
            ]
        )

    def _log_probs(
        self, prompts: Sequence[str | list[int]], ids: Sequence[int], usage: _Usage
    ) -> tuple[list[dict[int, float]], list[int] | None]:
        """For each prompt the log-probability of each id as the next token.

        Also the tokens of the first prompt, where the server gives them.
        """
        found: list[dict[int, float]] = [{} for _ in prompts]
        tokens: list[int] | None = None

        def read(answer: Mapping[str, Any]) -> tuple[list[dict[int, float]], object]:
            choices = _choices(answer, len(prompts))
            return [_by_token_id(c, part) for c in choices], choices[0].get("prompt_token_ids")

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
                "return_token_ids": True,
            }
            values, given = self.http.post("/v1/completions", body, read, usage, len(prompts))
            for known, new in zip(found, values, strict=True):
                known.update(new)
            if isinstance(given, list) and all(isinstance(token, int) for token in given):
                tokens = given
        return found, tokens


@dataclass
class _LlamaCpp(_Tokens):
    """llama.cpp: its native list of likeliest tokens, and a second look at those not in it."""

    exact: bool = True
    means: str = "its list of likeliest tokens, and biased lists for the others (llama.cpp)"

    def tokens(self, text: str, *, bare: bool = False) -> list[int]:
        return self._tokens(text, add_special=not bare, parse_special=bare)

    def _tokens(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        body = {"content": text, "add_special": add_special, "parse_special": parse_special}
        return self.http.post("/tokenize", body, _token_list)

    def ask(self, plan: _Plan, text: str, usage: _Usage) -> FloatArray:
        trie = plan.trie
        if trie is None:
            raise ValueError("the plan has no trie")
        if self.chat:
            body = {"messages": plan.messages(text)}
            wrapped = self.http.post("/apply-template", body, lambda a: str(a["prompt"]))
            prompt = self._tokens(wrapped, add_special=False, parse_special=True)
        else:
            prompt = self.tokens(plan.prompt(text))
        answers = []
        for node in trie.nodes:
            found = self._log_probs([*prompt, *node.path], node.asked, usage)
            answers.append(np.array([found[token] for token in node.asked]))
        return trie.log_masses(answers)

    def _log_probs(self, prompt: list[int], ids: Sequence[int], usage: _Usage) -> dict[int, float]:
        """Log-probability of each id as the next token.

        Tokens that are not among the likeliest are asked for again with a bias that puts them
        there, together with the likeliest of all: the ratios tell what they were without it.
        """
        body = {"prompt": prompt, "n_predict": 1, "cache_prompt": True}
        plain = {"n_probs": LISTED, "temperature": -1, "post_sampling_probs": False}
        found, tokens = self.http.post("/completion", body | plain, _native_list)
        usage.add({"prompt_tokens": tokens, "completion_tokens": 1})
        likeliest = max(found, key=lambda token: found[token])
        hidden = [token for token in ids if token not in found]
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
                raise _UnansweredError("The server does not heed logit_bias.")
            for token in hidden:
                below = again.get(token, -BIAS) - again[likeliest]
                found[token] = found[likeliest] + min(0.0, below)
        return found


@dataclass
class _TopK:
    """Any server that lists its likeliest tokens by their text."""

    SHORT = "The server lists only its likeliest tokens"
    http: _Http
    model: str
    chat: bool
    listed: int
    votes: _Votes | None
    exact: bool = False

    @property
    def means(self) -> str:
        return f"its {self.listed} likeliest first tokens"

    def trie(self, plan: _Plan) -> None:
        """The tokens are not known."""

    def ask(self, plan: _Plan, text: str, usage: _Usage) -> FloatArray:
        top = self.top(plan.messages(text) if self.chat else plan.prompt(text), usage)
        masses, missing = first_token_masses(top, plan.answers)
        if missing is None:
            with np.errstate(divide="ignore"):
                return np.log(masses)
        if self.votes:
            return self.votes.ask(plan, text, usage)
        raise _IncompleteError(
            f"{self.SHORT} ({len(top)} of them), and {missing}; use a vLLM or llama.cpp server,"
            " class numbers instead of names (label form 'ids'), or"
            " annotator.votes_when_no_logprobs."
        )

    def top(self, prompt: str | list[dict[str, str]], usage: _Usage) -> list[tuple[str, float]]:
        """Texts and probabilities of the likeliest next tokens.

        Raises:
            _GarbledError, _UnansweredError: there are none.
        """
        body: dict[str, Any] = {"model": self.model, "max_tokens": 1, "temperature": 0}
        if isinstance(prompt, str):
            body |= {"prompt": prompt, "logprobs": self.listed}
            return self.http.post("/v1/completions", body, _top_of_completion, usage)
        body |= {"messages": prompt, "logprobs": True, "top_logprobs": self.listed}
        return self.http.post("/v1/chat/completions", body, _top_of_chat, usage)


@dataclass
class _Votes:
    """Any server at all: sampled answers, counted."""

    http: _Http
    model: str
    chat: bool
    votes: int
    exact: bool = False

    @property
    def means(self) -> str:
        return f"{self.votes} sampled answers for each item, counted"

    def trie(self, plan: _Plan) -> None:
        """The tokens are not known."""

    def ask(self, plan: _Plan, text: str, usage: _Usage) -> FloatArray:
        longest = max(map(len, plan.answers))
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": longest // 2 + 4,
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
            raise _UnansweredError(f"None of {self.votes} sampled answers was a label.")
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


def _detect(http: _Http, model: str, chat: bool, votes: int) -> _Server:
    """Finds out what the server is and what it can tell.

    Raises:
        AnnotatorError: it does not serve the model, or tells nothing that can be used.
        _UnansweredError: it cannot be reached.
    """
    served = http.maybe("GET", "/v1/models", None, _model_names, refusable=True)
    if served is not None and served and model not in served:
        raise AnnotatorError(
            f"{http.shown} does not serve the model {model!r}; it serves"
            f" {', '.join(served[:5])}{', …' if len(served) > 5 else ''}."
        )
    counted = http.maybe("POST", "/tokenize", {"model": model, "prompt": "a"}, _Http.as_is)
    if counted and "max_model_len" in counted:
        vllm = _Vllm(http, model, chat)
        try:
            vllm._log_probs(["a"], vllm.tokens("a\n", bare=True)[-1:], _Usage())
        except _RejectedError as exc:
            if exc.status in _Http.REFUSED:
                raise
            log.info("no log-probabilities of chosen tokens: %s", exc)
        except _UnansweredError as exc:
            if exc.down:
                raise
            log.info("no log-probabilities of chosen tokens: %s", exc)
        else:
            return vllm
    elif http.maybe("POST", "/tokenize", {"content": "a"}, _token_list):
        return _LlamaCpp(http, model, chat)
    voting = _Votes(http, model, chat, votes) if votes else None
    problem = "it gives no log-probabilities"
    for listed in (20, 5):
        server = _TopK(http, model, chat, listed, voting)
        try:
            server.top([{"role": "user", "content": "a"}] if chat else "a", _Usage())
        except _UnansweredError as exc:
            if exc.down or (isinstance(exc, _RejectedError) and exc.status in _Http.REFUSED):
                raise
            problem = str(exc)
        else:
            return server
    if voting:
        log.warning(
            "%s gives no log-probabilities: %d sampled answers are counted for each item, so that"
            " probabilities are coarse and items tie",
            http.shown,
            votes,
        )
        return voting
    raise AnnotatorError(
        f"{http.shown} gives no log-probabilities ({problem.rstrip('.')}); use `vllm serve` or a"
        " llama.cpp server, or set annotator.votes_when_no_logprobs to the number of answers to"
        " sample for each item instead (coarse, and as many times dearer)."
    )


# reading answers: whatever is not as it must be is garbled


def _choices(answer: Mapping[str, Any], count: int) -> list[Mapping[str, Any]]:
    choices = answer.get("choices")
    if not isinstance(choices, list) or len(choices) != count:
        got = len(choices) if isinstance(choices, list) else "no"
        raise _GarbledError(f"it gave {got} choices, not {count}")
    by_index = {choice["index"]: choice for choice in choices}
    if sorted(by_index) != list(range(count)):
        raise _GarbledError(f"its choices are numbered {sorted(by_index)}")
    return [by_index[i] for i in range(count)]


def _number(value: object) -> float:
    """A log-probability."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value <= 0.01:
        raise _GarbledError(f"it gave {value!r} as a log-probability")
    return float(value)


def _by_token_id(choice: Mapping[str, Any], ids: Sequence[int]) -> dict[int, float]:
    listed = choice["logprobs"]["top_logprobs"][0]
    missing = [token for token in ids if f"token_id:{token}" not in listed]
    if missing:
        raise _GarbledError(
            f"it left out {len(missing)} of {len(ids)} log-probabilities that were asked for"
        )
    return {token: _number(listed[f"token_id:{token}"]) for token in ids}


def _top_of_completion(answer: Mapping[str, Any]) -> list[tuple[str, float]]:
    listed = _choices(answer, 1)[0]["logprobs"]["top_logprobs"][0]
    return _sorted((token, _number(value)) for token, value in listed.items())


def _top_of_chat(answer: Mapping[str, Any]) -> list[tuple[str, float]]:
    listed = _choices(answer, 1)[0]["logprobs"]["content"][0]["top_logprobs"]
    return _sorted((str(entry["token"]), _number(entry["logprob"])) for entry in listed)


def _sorted(pairs: Any) -> list[tuple[str, float]]:
    top = sorted(pairs, key=lambda pair: -pair[1])
    if not top:
        raise _GarbledError("it listed no tokens")
    return top


def _native_list(answer: Mapping[str, Any]) -> tuple[dict[int, float], int]:
    listed = answer["completion_probabilities"][0]["top_logprobs"]
    found = {int(entry["id"]): _number(entry["logprob"]) for entry in listed}
    return found, _fresh_tokens(answer)


def _biased_list(answer: Mapping[str, Any]) -> tuple[dict[int, float], int]:
    """Likewise under a bias, where probabilities are given instead of their logarithms."""
    listed = answer["completion_probabilities"][0]["top_probs"]
    found = {
        int(entry["id"]): math.log(entry["prob"]) if entry["prob"] > 0 else -BIAS
        for entry in listed
    }
    return found, _fresh_tokens(answer)


def _fresh_tokens(answer: Mapping[str, Any]) -> int:
    timings = answer.get("timings")
    fresh = timings.get("prompt_n") if isinstance(timings, Mapping) else None
    return _count(answer.get("tokens_evaluated") if fresh is None else fresh)


def _said(answer: Mapping[str, Any]) -> list[str]:
    choices = answer["choices"]
    if not choices:
        raise _GarbledError("it gave no choices")
    return [
        str(choice["message"]["content"] if "message" in choice else choice["text"])
        for choice in choices
    ]


def _token_list(answer: Mapping[str, Any]) -> list[int]:
    tokens = answer["tokens"]
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise _GarbledError("it gave no list of tokens")
    return tokens


def _model_names(answer: Mapping[str, Any]) -> list[str]:
    return [str(entry["id"]) for entry in answer["data"]]


def _count(value: object) -> int:
    return value if type(value) is int and value > 0 else 0


# the wire


class _Http:
    """Posts, waits and posts again. Safe to use from many threads."""

    REFUSED = frozenset({401, 402, 403, 404})

    def __init__(
        self,
        base_url: str,
        api_key_env: str,
        *,
        timeout_s: float,
        max_attempts: int,
        backoff_s: float,
        concurrency: int,
        transport: httpx.BaseTransport | None,
    ) -> None:
        try:
            url = httpx.URL(base_url)
        except (httpx.InvalidURL, TypeError) as exc:
            raise AnnotatorError("annotator.base_url is not an address.") from exc
        if url.scheme not in ("http", "https") or not url.host:
            raise AnnotatorError("annotator.base_url must begin with http:// or https://.")
        if url.userinfo or url.query:
            raise AnnotatorError(
                "annotator.base_url holds a password or a query; put the key into the environment"
                f" variable {api_key_env}."
            )
        given = str(url).rstrip("/")
        self._interface = given if url.path.strip("/") else f"{given}/v1"
        self.shown = self._root = given.removesuffix("/v1")
        self.stop = threading.Event()
        self._key_env = api_key_env
        self._max_attempts = max_attempts
        self._backoff_s = backoff_s
        self._timeout_s = timeout_s
        key = os.environ.get(api_key_env, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise AnnotatorError(f"The key in {api_key_env} holds characters that no key has.")
        self._redacted: Callable[[str], str] = lambda text: text.replace(key, "…") if key else text
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout_s, connect=min(10.0, timeout_s), pool=None),
            limits=httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
            transport=transport,
        )
        weakref.finalize(self, self._client.close)
        self._lock = threading.Lock()
        self._wait_until = 0.0
        self._last_success = time.monotonic()

    def begin(self) -> None:
        """Forgets that it was stopped, and how long nothing succeeded."""
        self.stop.clear()
        self._last_success = time.monotonic()

    def close(self) -> None:
        self._client.close()

    @staticmethod
    def as_is(answer: Mapping[str, Any]) -> Mapping[str, Any]:
        return answer

    def maybe(
        self,
        method: str,
        path: str,
        body: object,
        read: Callable[[Mapping[str, Any]], T],
        *,
        refusable: bool = False,
    ) -> T | None:
        """Like ``post``; None where the server has no such thing, or refuses it to us.

        Args:
            refusable: raise where the key is refused.
        """
        try:
            return self._call(method, path, body, read, None, 1)
        except _RejectedError as exc:
            if refusable and exc.status in (401, 402, 403):
                raise
            return None
        except _UnansweredError as exc:
            if exc.down:
                raise
            return None

    def post(
        self,
        path: str,
        body: object,
        read: Callable[[Mapping[str, Any]], T],
        usage: _Usage | None = None,
        prompts: int = 1,
    ) -> T:
        """What ``read`` makes of the answer.

        Raises:
            _RejectedError: the server refuses this request and would refuse it again.
            _UnansweredError: no usable answer after the last attempt.
        """
        return self._call("POST", path, body, read, usage, prompts)

    def _call(
        self,
        method: str,
        path: str,
        body: object,
        read: Callable[[Mapping[str, Any]], T],
        usage: _Usage | None,
        prompts: int,
    ) -> T:
        own = path.startswith("/v1/")
        url = self._interface + path.removeprefix("/v1") if own else self._root + path
        attempt = 0
        pauses = 0
        while True:
            attempt += 1
            wait_s: float | None = None
            down = True
            try:
                self._pause(0.0)
                response = self._client.request(method, url, json=body)
            except httpx.TimeoutException:
                problem = f"did not answer within {self._timeout_s:g} s"
            except httpx.HTTPError as exc:
                problem = f"cannot be reached ({self._redacted(str(exc)) or type(exc).__name__})"
            else:
                status = response.status_code
                if status == 200:
                    try:
                        found = self._read(response, read, usage, prompts)
                    except _GarbledError as exc:
                        problem, down = f"answered with garbage: {exc}", False
                    else:
                        self._last_success = time.monotonic()
                        return found
                elif status in (408, 409, 425, 429) or status >= 500:
                    problem = f"answered {status}{self._message(response)}"
                    if status == 501 or "insufficient_quota" in response.text:
                        raise _RejectedError(
                            402 if status == 429 else 501, f"{self.shown} {problem}."
                        )
                    wait_s = _retry_after_s(response)
                    if wait_s is not None and wait_s > LONGEST_WAIT_S:
                        raise AnnotatorError(
                            f"{self.shown} asks to wait {wait_s:.0f} s before the next question;"
                            " run the command again then. Every vote so far is kept."
                        )
                    idle_s = time.monotonic() - self._last_success
                    if status == 429 and idle_s < LONGEST_WAIT_S / 2:
                        attempt -= 1  # told to wait is not failed
                else:
                    raise _RejectedError(status, self._refusal(response))
            if attempt >= self._max_attempts:
                raise _UnansweredError(f"{self.shown} {problem}.", down=down)
            if wait_s is not None:
                with self._lock:  # for all threads: the limit is the server's, not the request's
                    self._wait_until = max(self._wait_until, time.monotonic() + wait_s)
            pauses += 1
            log.debug("%s %s; trying again", path, problem)
            backoff_s = min(30.0, self._backoff_s * 2 ** min(pauses - 1, 10))
            self._pause(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311 (no secret)

    def _pause(self, seconds: float) -> None:
        """Waits, and as long as the server asked everybody to wait; less when stopping."""
        self.stop.wait(seconds)
        while (left := self._wait_until - time.monotonic()) > 0 and not self.stop.is_set():
            self.stop.wait(left)
        if self.stop.is_set():
            raise _StoppedError(f"{self.shown} was not asked any more.")

    def _read(
        self,
        response: httpx.Response,
        read: Callable[[Mapping[str, Any]], T],
        usage: _Usage | None,
        prompts: int,
    ) -> T:
        try:
            answer = response.json()
        except ValueError as exc:
            raise _GarbledError("it is no JSON, or cut off") from exc
        if not isinstance(answer, dict):
            raise _GarbledError("it is no JSON object")
        if usage is not None:
            usage.add(answer.get("usage"), prompts)
        try:
            return read(answer)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as exc:
            raise _GarbledError("log-probabilities, tokens or choices are missing") from exc

    def _message(self, response: httpx.Response) -> str:
        """The server's own words in brackets, if it has any."""
        try:
            error = response.json()["error"]
            said = str(error["message"] if isinstance(error, dict) else error)
        except (ValueError, KeyError, TypeError):
            return ""
        return f" ({one_line(self._redacted(said))[:300].rstrip('.')})"

    def _refusal(self, response: httpx.Response) -> str:
        status = response.status_code
        if status in (401, 403):  # such answers may quote the key, so they are not quoted
            return (
                f"{self.shown} refuses access ({status});"
                f" set the environment variable {self._key_env} to a valid key."
            )
        return f"{self.shown} refused the question: {status}{self._message(response)}."


def _retry_after_s(response: httpx.Response) -> float | None:
    """Seconds that the server asks to wait, from a number or a date; None if it does not."""
    value = response.headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None
