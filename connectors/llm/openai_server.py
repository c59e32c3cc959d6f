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

import itertools
import logging
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import httpx
import numpy as np

from connectors.llm.label_trie import PROBE_ITEMS, check_answers, class_probs
from connectors.llm.prompt_text import answers_of, most_tokens_of, without_control_marks
from connectors.llm.server_exact import LlamaCpp, Vllm, token_list
from connectors.llm.server_http import Http, RejectedError, StoppedError, UnansweredError, Usage
from connectors.llm.server_listed import Completions, TopK, Votes
from connectors.llm.server_ways import LIST, TOO_LONG, Plan, Server
from loop.errors import AnnotatorError, Stopped, suggestion
from loop.ports import (
    AnnotatorSetup,
    ClassProbs,
    FloatArray,
    IntArray,
    Lots,
    Progress,
    TextItem,
    no_progress,
)
from loop.prompt import PromptVariant, one_line

log = logging.getLogger(__name__)

FORM = "server-2"  # how labels are scored; raise the number when answers change
AHEAD = 2  # requests that wait for a free thread while answers are being stored
FIRST_LIST, SHORTEST_LIST = 4, 2  # texts in a list, see _fit_list
LIST_S = 8.0  # so long may a list take: a slow server must not run into timeout_s
LISTS_IN_VAIN = 3  # lists without an answer in turn, after which questions are asked one by one
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
        self._list = FIRST_LIST  # texts in one request, where the server takes lists
        self._lists_failed = 0  # in turn
        self._told_of_length = False

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
        questions = [_Question(item) for item in items]
        asking = self._asked(variant, iter([questions]))
        try:
            while True:
                next(asking)
        except StopIteration as end:
            reason: str | None = end.value
        except AnnotatorError as exc:
            exc.tokens = _tokens(questions)
            raise
        if reason is not None:  # what was answered is kept; the next call will raise
            if all(q.log_masses is None for q in questions):
                raise AnnotatorError(reason, tokens=_tokens(questions))
            for question in questions:
                if question.log_masses is None:
                    question.problem = question.problem or reason
        if problems := [q.problem for q in questions if q.problem]:
            log.warning(
                "%d of %d items got no answer: %s", len(problems), len(questions), problems[0]
            )
        return _class_probs(questions, len(variant.labels))

    def annotate_stream(
        self, variant: PromptVariant, lots: Lots
    ) -> Iterator[tuple[Sequence[TextItem], ClassProbs]]:
        """See ``loop.ports.StreamingAnnotator``."""
        open_: set[_Question] = set()

        def opened() -> Iterator[Sequence[_Question]]:
            for lot in lots:
                questions = [_Question(item) for item in lot]
                open_.update(questions)
                yield questions

        asking = self._asked(variant, opened())
        try:
            done = next(asking)
            while True:
                open_.difference_update(done)
                try:
                    yield [q.item for q in done], _class_probs(done, len(variant.labels))
                except Stopped as exc:  # what is under way comes still
                    done = asking.throw(exc)
                else:
                    done = next(asking)
        except StopIteration as end:
            if end.value is not None:
                raise AnnotatorError(end.value, tokens=_tokens(open_)) from None
        except (AnnotatorError, Stopped) as exc:  # no request is under way any more
            exc.tokens = _tokens(open_)
            raise
        finally:
            asking.close()

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
        attempts = self._http.max_attempts + (server.at_once > 1)  # once in a list
        return (
            attempts * prompts * np.array(tokens, dtype=np.int64),
            np.full(len(items), attempts * written, dtype=np.int64),
        )

    def _asked(self, variant: PromptVariant, lots: Iterator[Sequence[_Question]]) -> _Asking:
        """Questions as they get an answer, or none for a reason of their own.

        Returns:
            Why the others should not be asked; None once all are.
        Raises:
            AnnotatorError: the first answers cannot be right.
        """
        first = next(lots, ())
        if not first:
            return None
        self._http.begin()
        server = self._server_or_detect()
        plan = self._plan(server, variant)
        reason: str | None = None
        if self._unchecked:
            early, first = first[:PROBE_ITEMS], first[PROBE_ITEMS:]
            asking = self._ask(server, plan, iter([early]))
            try:
                while True:
                    next(asking)
            except StopIteration as end:
                reason = end.value
            except (Stopped, KeyboardInterrupt):
                done = [q for q in early if q.done]
                with suppress(AnnotatorError):
                    self._check(server, early, len(variant.labels))
                    self._unchecked = False
                if done and not self._unchecked:  # else they cannot be right
                    yield done
                raise
            if reason is None or any(q.log_masses is not None for q in early):
                self._check(server, early, len(variant.labels))
                self._unchecked = False
            yield [q for q in early if q.done]
            if reason is not None:
                return reason
        return (yield from self._ask(server, plan, itertools.chain([first], lots)))

    def _ask(self, server: Server, plan: Plan, lots: Iterator[Sequence[_Question]]) -> _Asking:
        """Keeps as many requests under way as may be, until the server refuses.

        A list of questions that gets no answer is asked again one by one, and so are all others
        where that happens to several lists in turn. Where too many items in turn get no answer, the
        server is asked about a harmless text, and the others go on if it answers.
        """
        waiting: deque[_Question] = deque()
        alone: deque[_Question] = deque()
        under_way: dict[Future[list[FloatArray | UnansweredError]], list[_Question]] = {}
        ended: SimpleQueue[Future[list[FloatArray | UnansweredError]]] = SimpleQueue()
        more, answered = True, False
        reason: str | None = None
        down = 0  # items in turn that the server, rather than the item, left without an answer
        stop = self._http.stop
        stop.clear()
        with ThreadPoolExecutor(self._concurrency, "annotate") as pool:
            try:
                while True:
                    warming = False
                    while not (warming or reason or stop.is_set()):
                        free = self._concurrency - len(under_way)
                        lists = self._lists_failed < LISTS_IN_VAIN
                        at_once = min(server.at_once, self._list) if lists else 1
                        full = free + AHEAD <= 0
                        if more and not full and len(waiting) < at_once:
                            lot = next(lots, None)
                            more = lot is not None
                            waiting.extend(lot or ())
                        # one item alone at first, so that what all prompts share is in the cache
                        warming = plan.fresh
                        if full or not (alone or waiting) or (warming and under_way):
                            break
                        plan.fresh = False
                        if alone:
                            batch = [alone.popleft()]
                        else:
                            share = -(-len(waiting) // max(1, free))
                            size = 1 if warming else min(at_once, share)
                            batch = [waiting.popleft() for _ in range(size)]
                        future = pool.submit(self._ask_some, server, plan, batch)
                        under_way[future] = batch
                        future.add_done_callback(ended.put)
                    if not under_way:
                        if stop.is_set() and reason is None:
                            stop.clear()
                            reason, down = self._still_down(server, plan), 0
                        if reason is not None or not (more or waiting or alone):
                            break
                        continue
                    future = ended.get()
                    batch = under_way.pop(future)
                    try:
                        answers = future.result()
                    except StoppedError:
                        waiting.extendleft(reversed(batch))
                        continue
                    except UnansweredError as exc:
                        log.info("a list of %d questions got no answer: %s", len(batch), exc)
                        self._lists_failed += 1
                        self._list = max(SHORTEST_LIST, len(batch) // 2)
                        alone.extend(batch)
                        continue
                    except AnnotatorError as exc:
                        reason = str(exc)
                        stop.set()
                        continue
                    if len(batch) > 1:
                        self._lists_failed = 0
                    for question, answer in zip(batch, answers, strict=True):
                        if not isinstance(answer, UnansweredError):
                            question.log_masses = answer
                            answered, down = True, 0
                            continue
                        question.problem = str(answer)
                        down += answer.down
                        status = answer.status if isinstance(answer, RejectedError) else 0
                        if status in Http.REFUSED and not (status == 403 and answered):
                            reason = reason or str(answer)
                    if reason or down >= max(8, 2 * self._concurrency):
                        stop.set()
                    self._progress(len(batch))
                    yield batch
            except GeneratorExit:  # nobody takes what comes now
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
            except BaseException:  # an interrupt must not wait for pauses; what came is paid
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                if done := _answered(under_way):
                    yield done
                raise
            finally:
                stop.clear()
            if reason is None and down and not answered:
                reason = self._still_down(server, plan)
        return reason

    def _ask_some(
        self, server: Server, plan: Plan, questions: Sequence[_Question]
    ) -> list[FloatArray | UnansweredError]:
        """(k,) log-masses of each question, or why it got none.

        Raises:
            UnansweredError: several questions should be asked one by one.
        """
        if len(questions) > 1:
            texts = [self._plain(question.item.text) for question in questions]
            began = time.monotonic()
            answers = server.ask_all(plan, texts, [question.usage for question in questions])
            self._fit_list(len(questions), time.monotonic() - began)
            return answers
        [question] = questions
        try:
            return [self._ask_one(server, plan, question.item.text, question.usage)]
        except StoppedError:
            raise
        except UnansweredError as exc:
            return [exc]

    def _fit_list(self, texts: int, seconds: float) -> None:
        """Longer lists where one was answered quickly, shorter ones where it took long."""
        if seconds > LIST_S:
            self._list = max(SHORTEST_LIST, texts // 2)
        elif seconds < LIST_S / 4 and texts >= self._list:
            self._list = min(LIST, 2 * texts)

    def _ask_one(self, server: Server, plan: Plan, text: str, usage: Usage) -> FloatArray:
        """(k,) log-masses; a text that is too long for the model's context loses its middle."""
        text = self._plain(text)
        while True:
            try:
                return server.ask(plan, text, usage)
            except RejectedError as exc:
                if len(text) < SHORTEST_TEXT or not TOO_LONG.search(str(exc)):
                    raise
                if not self._told_of_length:
                    self._told_of_length = True
                    log.warning("Texts that are too long for the model lose their middle: %s", exc)
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
            plan = Plan(variant.tidied(self._plain), answers_of(variant))
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

    def _check(self, server: Server, questions: Sequence[_Question], k: int) -> None:
        """Refuses first answers that cannot be used for ranking.

        Raises:
            AnnotatorError: too many items without all classes, almost no probability on labels,
                or probabilities so coarse that items tie.
        """
        short = [q.problem for q in questions if q.problem.startswith(TopK.SHORT)]
        if len(short) > len(questions) / 10:
            many = f"{len(short)} of {len(questions)} items"
            raise AnnotatorError(f"{short[0]} This holds for {many}.")
        check_answers(
            [q.item.text for q in questions],
            _log_masses(questions, k),
            model=f"{self._model} at {self._http.shown}",
            chat=self._chat,
            # lists of likeliest tokens are coarse where a bound stands for a missing label
            fine=server.exact,
        )


@dataclass(eq=False)
class _Question:
    """An item, what it took so far, and its (k,) log-masses or why it has none."""

    item: TextItem
    usage: Usage = field(default_factory=Usage)
    log_masses: FloatArray | None = None
    problem: str = ""

    @property
    def done(self) -> bool:
        return self.log_masses is not None or bool(self.problem)


def _answered(
    under_way: Mapping[Future[list[FloatArray | UnansweredError]], list[_Question]],
) -> list[_Question]:
    """The questions of ended requests that got an answer."""
    done = []
    for future, batch in under_way.items():
        if future.cancelled() or future.exception() is not None:
            continue
        for question, answer in zip(batch, future.result(), strict=True):
            if not isinstance(answer, UnansweredError):
                question.log_masses = answer
                done.append(question)
    return done


_Asking = Generator[list[_Question], None, str | None]


def _tokens(questions: Iterable[_Question]) -> tuple[int, int, int]:
    """Tokens computed, out of a cache, and written."""
    used = [question.usage for question in questions]
    return sum(u.computed for u in used), sum(u.cached for u in used), sum(u.output for u in used)


def _log_masses(questions: Sequence[_Question], k: int) -> FloatArray:
    """(n, k), rows of NaN for questions without an answer."""
    nothing = np.full(k, np.nan)
    rows = [nothing if q.log_masses is None else q.log_masses for q in questions]
    return np.array(rows).reshape(-1, k)


def _class_probs(questions: Sequence[_Question], k: int) -> ClassProbs:
    """A row for each question, of NaN where it got no answer."""
    failures = {q.item.id: q.problem for q in questions if q.problem}
    probs, off = class_probs(_log_masses(questions, k))
    used = np.array([(q.usage.computed, q.usage.cached, q.usage.output) for q in questions])
    computed, cached, output = used.reshape(-1, 3).astype(np.int64).T
    return ClassProbs(probs, off, computed, cached, output, failures)


def _detect(http: Http, model: str, chat: bool, votes: int) -> Server:
    """Finds out what the server is and what it can tell.

    Raises:
        AnnotatorError: it does not serve the model, or tells nothing that can be used.
        UnansweredError: it cannot be reached.
    """
    served = http.maybe("GET", "/v1/models", None, _model_names, refusable=True)
    if why := unserved(http, model, served or (), chat=chat):
        raise AnnotatorError(why)
    asked = {"model": model, "prompt": "a"}
    counted = http.maybe("POST", "/tokenize", asked, Http.as_is, rare=True)
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
    elif http.maybe("POST", "/tokenize", {"content": "a"}, token_list, rare=True):
        return LlamaCpp(http, model, chat)
    completions = Completions(http, model)
    voting = Votes(http, model, chat, votes, completions) if votes else None
    problem = "it gives no log-probabilities"
    for listed in (20, 5):
        server = TopK(http, model, chat, listed, voting, completions)
        try:
            server.top([{"role": "user", "content": "a"}] if chat else "a", Usage())
        except UnansweredError as exc:
            status = exc.status if isinstance(exc, RejectedError) else 0
            if status == 404 and not chat:
                raise AnnotatorError(
                    f"{exc} If this server takes chats alone, set annotator.chat = true."
                ) from exc
            if exc.down or status in Http.REFUSED:
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


def unserved(http: Http, model: str, listed: Sequence[str], *, chat: bool) -> str | None:
    """Why a server does not have a model, in a sentence; None where it has it, or lists none.

    One that is not listed is asked, and so is one that there cannot be: gateways list wildcards,
    and Azure models rather than deployments. Where both end alike, the name counts for nothing.
    """
    if not listed or any(_same_model(model, name) for name in listed):
        return None
    if _outcome(http, model, chat) != _outcome(http, f"{model}-none", chat):
        return None
    hint = suggestion(model, listed)
    return (
        f"{http.shown} does not serve the model {model!r}; it serves"
        f" {', '.join(map(http.quoted, listed[:5]))}{', …' if len(listed) > 5 else ''}"
        f"{';' + hint if hint else '.'}"
    )


def _outcome(http: Http, model: str, chat: bool) -> str:
    """What comes of a question to a model, but for its name."""
    prompt: str | list[dict[str, str]] = [{"role": "user", "content": "a"}] if chat else "a"
    try:
        Completions(http, model).ask(prompt, {"max_tokens": 1}, Http.as_is, Usage(), attempts=1)
    except UnansweredError as exc:
        return str(exc).replace(model, "")
    return ""


def _same_model(model: str, served: str) -> bool:
    """Ollama adds a tag to a name and Gemini a folder; both take the name without it."""
    return served in (model, f"{model}:latest", f"models/{model}")
