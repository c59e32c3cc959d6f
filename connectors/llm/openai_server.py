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

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from typing import Any

import httpx
import numpy as np

from connectors.llm.label_trie import PROBE_ITEMS, check_answers, class_probs
from connectors.llm.prompt_text import answers_of, most_tokens_of, one_line, without_control_marks
from connectors.llm.server_exact import LlamaCpp, Vllm, token_list
from connectors.llm.server_http import Http, RejectedError, StoppedError, UnansweredError, Usage
from connectors.llm.server_listed import Completions, TopK, Votes
from connectors.llm.server_ways import TOO_LONG, Plan, Server
from loop.errors import AnnotatorError, suggestion
from loop.ports import (
    AnnotatorSetup,
    ClassProbs,
    FloatArray,
    IntArray,
    Progress,
    TextItem,
    no_progress,
)
from loop.prompt import PromptVariant

log = logging.getLogger(__name__)

FORM = "server-2"  # how labels are scored; raise the number when answers change
SHORTEST_TEXT = 64  # a text is halved down to this to fit into the model's context


def build(setup: AnnotatorSetup) -> OpenAIServerAnnotator:
    """The annotator of a campaign with ``annotator.kind = "openai_server"``."""
    settings = setup.settings
    return OpenAIServerAnnotator(
        settings["base_url"],
        settings["model"],
        api_key_env=settings["api_key_env"],
        chat=settings["chat"],
        concurrency=settings["concurrency"],
        votes_when_no_logprobs=settings["votes_when_no_logprobs"],
    )


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
        self._progress = progress
        self._http = Http(
            base_url,
            api_key_env,
            timeout_s=timeout_s,
            max_attempts=max_attempts,
            backoff_s=backoff_s,
            concurrency=concurrency,
            transport=transport,
        )
        self._server: Server | None = None
        self._plans: dict[str, Plan] = {}
        self._unchecked = True
        self._failures: dict[str, str] = {}

    @property
    def revision(self) -> str:
        """Model, and all settings that change answers; not where the server stands."""
        chat = ":chat" if self._chat else ""
        votes = f":votes{self._votes}" if self._votes else ""
        return f"{self._model}@{FORM}{chat}{votes}:{self._max_text_chars}"

    def close(self) -> None:
        """Closes the connections; the next question opens others."""
        self._http.close()

    def annotate(self, variant: PromptVariant, items: Sequence[TextItem]) -> ClassProbs:
        """Class probabilities of n items; a row of NaN for an item that got no answer.

        Items are independent: one that the server cannot answer, or answers with garbage to the
        last attempt, leaves the others as they are. ``problems`` says why.

        Returns:
            (n, k) probabilities, in the items' order. ``tokens`` is what the server says it
            computed, prompt tokens out of its cache left out, repeated attempts counted.
        Raises:
            AnnotatorError: the server refuses, is down, or answers in a way that cannot be right.
        """
        n, k = len(items), len(variant.labels)
        log_masses = np.full((n, k), np.nan)
        usage = [Usage() for _ in range(n)]
        self._failures = {}
        self._http.begin()
        if n:
            server = self._server_or_detect()
            plan = self._plan(server, variant)
            first = self._unchecked
            early = range(min(n, PROBE_ITEMS)) if first else range(0)
            try:
                if early:
                    self._ask(server, plan, items, early, log_masses, usage)
                    self._check(server, items, early, log_masses)
                    self._unchecked = False
                self._ask(server, plan, items, range(len(early), n), log_masses, usage)
            except AnnotatorError as exc:
                exc.tokens = (
                    sum(u.computed for u in usage),
                    sum(u.cached for u in usage),
                    sum(u.output for u in usage),
                )
                raise
            if self._failures:
                reason = next(iter(self._failures.values()))
                log.warning("%d of %d items got no answer: %s", len(self._failures), n, reason)
        probs, off = class_probs(log_masses)
        return ClassProbs(
            probs,
            off,
            np.array([u.computed for u in usage], dtype=np.int64),
            np.array([u.cached for u in usage], dtype=np.int64),
            np.array([u.output for u in usage], dtype=np.int64),
            dict(self._failures),
        )

    def most_tokens(
        self, variant: PromptVariant, items: Sequence[TextItem]
    ) -> tuple[IntArray, IntArray]:
        """The most tokens that the server may charge for each item, repeated attempts counted.

        At the first call the server is asked a few questions of one token, which nobody counts, to
        see how it answers.

        Raises:
            AnnotatorError: the server refuses, or is down.
        """
        self._http.begin()
        server = self._server_or_detect()
        plan = self._plan(server, variant)
        prompts, written = server.most_asked(plan)
        longest = plan.trie.longest if plan.trie else 0
        tokens = [
            most_tokens_of(plan.prompt(self._plain(item.text)), chat=self._chat) + longest
            for item in items
        ]
        attempts = self._http.max_attempts
        return (
            attempts * prompts * np.array(tokens, dtype=np.int64),
            np.full(len(items), attempts * written, dtype=np.int64),
        )

    def _ask(
        self,
        server: Server,
        plan: Plan,
        items: Sequence[TextItem],
        rows: Sequence[int],
        log_masses: FloatArray,
        usage: Sequence[Usage],
    ) -> None:
        """Fills the rows in, as far as the server goes.

        Raises:
            AnnotatorError: the server is down, or refuses for good.
        """
        todo = list(rows)
        while todo:
            # one item alone at first, so that what all prompts share is in the server's cache
            at_once = 1 if plan.fresh else len(todo)
            plan.fresh = False
            now, later = todo[:at_once], todo[at_once:]
            unasked, reason = self._ask_at_once(server, plan, items, now, log_masses, usage)
            todo = unasked + later
            if reason is None:
                continue
            if not np.isfinite(log_masses).any():
                raise AnnotatorError(reason)
            for row in todo:  # what was answered is kept; the next call will raise
                self._failures[items[row].id] = reason
            return

    def _ask_at_once(
        self,
        server: Server,
        plan: Plan,
        items: Sequence[TextItem],
        rows: Sequence[int],
        log_masses: FloatArray,
        usage: Sequence[Usage],
    ) -> tuple[list[int], str | None]:
        """Fills the rows in, until the server refuses or too many items in turn get no answer.

        Returns:
            The rows that were not asked, and why no more should be; None to go on.
        """
        unasked: list[int] = []
        reason: str | None = None
        down = 0  # items in turn that the server, rather than the item, left without an answer
        stop = self._http.stop
        stop.clear()
        with ThreadPoolExecutor(self._concurrency, "annotate") as pool:
            row_of = {
                pool.submit(self._ask_one, server, plan, items[row].text, usage[row]): row
                for row in rows
            }
            try:
                for future in as_completed(row_of):
                    row = row_of[future]
                    try:
                        log_masses[row] = future.result()
                        down = 0
                    except StoppedError:
                        unasked.append(row)
                        continue
                    except UnansweredError as exc:
                        self._failures[items[row].id] = str(exc)
                        down += exc.down
                        status = exc.status if isinstance(exc, RejectedError) else 0
                        moderated = status == 403 and np.isfinite(log_masses).any()
                        if status in Http.REFUSED and not moderated:
                            reason = str(exc)
                    except AnnotatorError as exc:
                        reason = str(exc)
                    if reason or down >= max(8, 2 * self._concurrency):
                        stop.set()
                    self._progress(1)
            except BaseException:  # an interrupt must not wait for pauses
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        stopped = stop.is_set()
        stop.clear()
        if down and not reason and (stopped or not np.isfinite(log_masses[list(rows)]).any()):
            reason = self._still_down(server, plan)
        return sorted(unasked), reason

    def _ask_one(self, server: Server, plan: Plan, text: str, usage: Usage) -> FloatArray:
        """(k,) log-masses; a text that is too long for the model's context loses its middle."""
        text = self._plain(text)
        while True:
            try:
                return server.ask(plan, text, usage)
            except RejectedError as exc:
                if len(text) < SHORTEST_TEXT or not TOO_LONG.search(str(exc)):
                    raise
                text = f"{text[: len(text) // 4]} {text[-(len(text) // 4) :]}"

    def _still_down(self, server: Server, plan: Plan) -> str | None:
        """Why the server does not even answer about a harmless text, or None if it does."""
        try:
            server.ask(plan, "a", Usage())
        except UnansweredError as exc:
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
        return without_control_marks(text)

    def _plan(self, server: Server, variant: PromptVariant) -> Plan:
        if variant.hash not in self._plans:
            shown = tuple(
                replace(d, text=self._plain(d.text), label=one_line(d.label))
                if variant.label_form == "names"
                else replace(d, text=self._plain(d.text))
                for d in variant.demonstrations
            )
            plan = Plan(replace(variant, demonstrations=shown), answers_of(variant))
            try:
                plan.trie = server.trie(plan)
            except UnansweredError as exc:
                raise AnnotatorError(str(exc)) from exc
            self._plans[variant.hash] = plan
        return self._plans[variant.hash]

    def _server_or_detect(self) -> Server:
        if self._server is None:
            try:
                self._server = _detect(self._http, self._model, self._chat, self._votes)
            except UnansweredError as exc:
                raise AnnotatorError(str(exc)) from exc
            log.info("%s answers by %s", self._http.shown, self._server.means)
        return self._server

    def _check(
        self,
        server: Server,
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
            if self._failures.get(items[row].id, "").startswith(TopK.SHORT)
        ]
        if len(short) > len(rows) / 10:
            raise AnnotatorError(f"{short[0]} This holds for {len(short)} of {len(rows)} items.")
        check_answers(
            [items[row].text for row in rows],
            log_masses[list(rows)],
            model=f"{self._model} at {self._http.shown}",
            chat=self._chat,
            # lists of likeliest tokens are coarse where a bound stands for a missing label
            fine=server.exact,
        )


def _detect(http: Http, model: str, chat: bool, votes: int) -> Server:
    """Finds out what the server is and what it can tell.

    Raises:
        AnnotatorError: it does not serve the model, or tells nothing that can be used.
        UnansweredError: it cannot be reached.
    """
    served = http.maybe("GET", "/v1/models", None, _model_names, refusable=True)
    if served and not any(_same_model(model, name) for name in served):
        hint = suggestion(model, served)
        raise AnnotatorError(
            f"{http.shown} does not serve the model {model!r}; it serves"
            f" {', '.join(served[:5])}{', …' if len(served) > 5 else ''}"
            f"{';' + hint if hint else '.'}"
        )
    counted = http.maybe("POST", "/tokenize", {"model": model, "prompt": "a"}, Http.as_is)
    if counted and "max_model_len" in counted:
        vllm = Vllm(http, model, chat)
        try:
            vllm._log_probs(["a"], vllm.tokens("a\n", bare=True)[-1:], Usage())
        except RejectedError as exc:
            if exc.status in Http.REFUSED:
                raise
            log.info("no log-probabilities of chosen tokens: %s", exc)
        except UnansweredError as exc:
            if exc.down:
                raise
            log.info("no log-probabilities of chosen tokens: %s", exc)
        else:
            return vllm
    elif http.maybe("POST", "/tokenize", {"content": "a"}, token_list):
        return LlamaCpp(http, model, chat)
    completions = Completions(http, model)
    voting = Votes(http, model, chat, votes, completions) if votes else None
    problem = "it gives no log-probabilities"
    for listed in (20, 5):
        server = TopK(http, model, chat, listed, voting, completions)
        try:
            server.top([{"role": "user", "content": "a"}] if chat else "a", Usage())
        except UnansweredError as exc:
            if exc.down or (isinstance(exc, RejectedError) and exc.status in Http.REFUSED):
                raise
            problem = str(exc)
        else:
            return server
    if voting:
        log.warning(
            "%s gives no log-probabilities that can be read (%s): %d sampled answers are counted"
            " for each item, so that probabilities are coarse and items tie",
            http.shown,
            problem.rstrip("."),
            votes,
        )
        return voting
    raise AnnotatorError(
        f"{http.shown} gives no log-probabilities that can be read ({problem.rstrip('.')}); use"
        " `vllm serve` or a llama.cpp server, or set annotator.votes_when_no_logprobs to the"
        " number of answers to sample for each item instead (coarse, and it costs as many times"
        " more)."
    )


def _model_names(answer: Mapping[str, Any]) -> list[str]:
    return [str(entry["id"]) for entry in answer["data"]]


def _same_model(model: str, served: str) -> bool:
    """Ollama adds a tag to a name and Gemini a folder; both take the name without it."""
    return served in (model, f"{model}:latest", f"models/{model}")
