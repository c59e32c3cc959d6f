"""Servers that tell less: their likeliest tokens only, or nothing but what they say."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from connectors.llm.label_spelling import bare, label_said, thinks
from connectors.llm.server_http import (
    GarbledError,
    Http,
    IncompleteError,
    RejectedError,
    UnansweredError,
    Usage,
)
from connectors.llm.server_ways import (
    LIST,
    TOO_LONG,
    OneByOne,
    Plan,
    choices_of,
    log_prob_of,
)
from loop.ports import FloatArray
from loop.prompt import one_line

log = logging.getLogger(__name__)

TOPK_TOLERANCE = 0.001  # share of the label mass that may be unknown under top-k
DOUBTFUL_TOLERANCE = 0.05  # share of the label mass in pieces that more likely begin other words
LEAST_MASS = 0.5  # under this most of the probability is on something that is no label
FIRST_TOKEN_CHARS = 3  # under top-k a shorter piece of a name could begin any word
SHOWN_TOKENS = 5
ANSWER_TOKENS = 16  # room for what may stand around a label: a sentence, JSON, a code fence
THINKING_TOKENS = 2048  # room for a model that thinks before it answers
PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))
UNPRINTABLE = sorted(set(range(256)) - set(PRINTABLE))
BYTES = {  # how GPT-2's tokenizer and its heirs write each byte as a character
    **{chr(byte): byte for byte in PRINTABLE},
    **{chr(256 + place): byte for place, byte in enumerate(UNPRINTABLE)},
}
NO_ROOM = re.compile(r"output limit was reached|higher max_tokens", re.IGNORECASE)
REFUSES = re.compile(
    r"support|permitted|allowed|unknown|unrecogni|unexpected|invalid|at most|must be", re.IGNORECASE
)
T = TypeVar("T")


@dataclass
class Completions:
    """The two OpenAI-like interfaces, asked in the options that this server takes.

    An option that the server refuses is left out from then on: ``n`` answers are then asked one by
    one, ``stop`` and ``temperature`` are the server's own, ``max_tokens`` has a newer name.
    """

    http: Http
    model: str
    _refused: set[str] = field(default_factory=set)

    def ask(
        self,
        prompt: str | list[str] | list[dict[str, str]],
        options: Mapping[str, Any],
        read: Callable[[Mapping[str, Any]], T],
        usage: Usage,
        attempts: int | None = None,
    ) -> T:
        """What ``read`` makes of the answer to a prompt, to several, or to a chat's messages.

        Raises:
            UnansweredError: as ``Http.post``.
        """
        chat = isinstance(prompt, list) and isinstance(prompt[0], dict)
        path = "/v1/chat/completions" if chat else "/v1/completions"
        asked = {"model": self.model, "messages" if chat else "prompt": prompt, "stream": False}
        while True:
            sent = {key: value for key, value in options.items() if key not in self._refused}
            if "max_tokens" in self._refused:
                sent["max_completion_tokens"] = options["max_tokens"]
            try:
                return self.http.post(path, asked | sent, read, usage, attempts=attempts)
            except RejectedError as exc:
                refused = _refused_option(exc, sent)
                if refused is None:
                    raise
                log.info("%s does not take %s: %s", self.http.shown, refused, exc)
                self._refused.add(refused)


def _refused_option(refusal: RejectedError, sent: Mapping[str, Any]) -> str | None:
    """Which of the options that can be left out a refusal is about."""
    spare = [o for o in ("max_tokens", "stop", "temperature", "n") if o in sent]
    if refusal.status not in (400, 422) or TOO_LONG.search(str(refusal)):
        return None
    if refusal.option in spare:
        return refusal.option
    if not REFUSES.search(str(refusal)):
        return None
    wordings = {"n": r"['\"`]n['\"`]"}  # the letter alone says too little
    named = (o for o in spare if re.search(wordings.get(o, rf"\b{o}\b"), str(refusal)))
    return next(named, None)


@dataclass
class TopK:
    """Any server that lists its likeliest tokens by their text."""

    SHORT = "The server lists only its likeliest tokens"
    http: Http
    model: str
    chat: bool
    listed: int
    votes: Votes | None
    completions: Completions
    exact: bool = False
    _numbered: dict[str, str] = field(default_factory=dict)

    @property
    def means(self) -> str:
        """How it answers, in words."""
        return f"its {self.listed} likeliest first tokens"

    @property
    def at_once(self) -> int:
        """A list of prompts is taken, a list of chats is not."""
        return 1 if self.chat else LIST

    def trie(self, plan: Plan) -> None:
        """The tokens are not known."""
        if self.votes:
            self.votes.trie(plan)

    def most_asked(self, plan: Plan) -> tuple[int, int]:
        """One prompt and one token, and those of the votes where a label is not listed."""
        prompts, written = self.votes.most_asked(plan) if self.votes else (0, 0)
        return prompts + 1, written + 1

    def ask(self, plan: Plan, text: str, usage: Usage) -> FloatArray:
        """(k,) log-masses from the likeliest first tokens, or by votes where one is missing."""
        top = self.top(plan.messages(text) if self.chat else plan.prompt(text), usage)
        return self._log_masses(plan, text, top, usage)

    def ask_all(
        self, plan: Plan, texts: Sequence[str], usage: Sequence[Usage]
    ) -> list[FloatArray | UnansweredError]:
        """See ``connectors.llm.server_ways.Server``."""
        prompts = [plan.prompt(text) for text in texts]

        def read(answer: Mapping[str, Any]) -> list[list[tuple[str, float]]]:
            return [_top_of(choice) for choice in choices_of(answer, len(prompts))]

        used = Usage()
        try:
            tops = self.completions.ask(prompts, self._options, read, used, 1)
        finally:
            used.share_out(usage, [len(prompt.encode()) for prompt in prompts])
        answers: list[FloatArray | UnansweredError] = []
        for text, top, own in zip(texts, tops, usage, strict=True):
            try:
                answers.append(self._log_masses(plan, text, self._texts_of(top), own))
            except UnansweredError as exc:
                answers.append(exc)
        return answers

    def _log_masses(
        self, plan: Plan, text: str, top: list[tuple[str, float]], usage: Usage
    ) -> FloatArray:
        masses, missing = first_token_masses(top, plan.answers)
        if missing is None:
            with np.errstate(divide="ignore"):
                return np.log(masses)
        if self.votes:
            return self.votes.ask(plan, text, usage)
        shown = ", ".join(f"{token!r} {math.exp(lp):.1%}" for token, lp in top[:SHOWN_TOKENS])
        thinking = " The model seems to think before it answers; turn that off on the server."
        raise IncompleteError(
            f"{self.SHORT} ({len(top)} of them: {shown}{', …' if len(top) > SHOWN_TOKENS else ''}),"
            f" and {missing};{' turn the chat template on (annotator.chat),' * (not self.chat)} use"
            " a vLLM or llama.cpp server, class numbers instead of names (label form 'ids'), or"
            f" annotator.votes_when_no_logprobs.{thinking * thinks(top[0][0])}"
        )

    def top(self, prompt: str | list[dict[str, str]], usage: Usage) -> list[tuple[str, float]]:
        """Texts and log-probabilities of the likeliest next tokens.

        Raises:
            GarbledError, UnansweredError: there are none, or nobody knows their texts.
        """
        return self._texts_of(self.completions.ask(prompt, self._options, _top_of_only, usage))

    @property
    def _options(self) -> dict[str, Any]:
        one = {"max_tokens": 1, "temperature": 0}
        if self.chat:
            return one | {"logprobs": True, "top_logprobs": self.listed}
        return one | {"logprobs": self.listed}

    def _texts_of(self, top: list[tuple[str, float]]) -> list[tuple[str, float]]:
        return [(self._text_of(token), log_prob) for token, log_prob in top]

    def _text_of(self, token: str) -> str:
        """The token's text, where vLLM names it by its number."""
        if not re.fullmatch(r"token_id:[0-9]{1,9}", token):
            return token_text(token)
        if token not in self._numbered:
            body = {"model": self.model, "tokens": [int(token.removeprefix("token_id:"))]}
            text = self.http.maybe("POST", "/detokenize", body, lambda answer: answer["prompt"])
            if not isinstance(text, str):
                raise UnansweredError(
                    f"it names tokens by their number, such as {token}, and does not tell their"
                    " text; start it without --return-tokens-as-token-ids"
                )
            self._numbered[token] = text
        return self._numbered[token]


@dataclass
class Votes(OneByOne):
    """Any server at all: sampled answers, counted."""

    http: Http
    model: str
    chat: bool
    votes: int
    completions: Completions
    exact: bool = False
    _room: int | None = None
    _one_line: bool = False

    @property
    def means(self) -> str:
        """How it answers, in words."""
        return f"{self.votes} sampled answers for each item, counted"

    def trie(self, plan: Plan) -> None:
        """The tokens are not known; looks once whether answers think, or begin on a new line."""
        if self._room is not None:
            return
        self._room = ANSWER_TOKENS
        try:
            [answer] = self._sample(plan, "a", Usage(), 1)
        except UnansweredError as exc:
            self._room = None
            if exc.down or (isinstance(exc, RejectedError) and exc.status in Http.REFUSED):
                raise
            if not NO_ROOM.search(str(exc)):  # as some say whose models think
                return
        else:
            # a base model continues with the next text, so it is stopped at the end of the line
            begins_late = answer.text.lstrip(" ").startswith(("\n", "\r"))
            self._one_line = not self.chat and not begins_late
        if self._room is None or answer.thinks:
            self._room = THINKING_TOKENS
            log.warning(
                "The model %s thinks before it answers: each answer may take up to %d tokens, which"
                " may be charged; turn thinking off on the server if labels do not need it",
                self.model,
                THINKING_TOKENS,
            )

    def most_asked(self, plan: Plan) -> tuple[int, int]:
        """A prompt for each vote, where the server gives one answer however many are asked for.

        A server that writes all the answers asked for and gives only one of them writes the sum.
        """
        return self.votes, self.votes * (self.votes + 1) // 2 * self._longest(plan)

    def _longest(self, plan: Plan) -> int:
        """Tokens that one answer may have."""
        return max(map(len, plan.answers)) // 2 + (self._room or ANSWER_TOKENS)

    def ask(self, plan: Plan, text: str, usage: Usage) -> FloatArray:
        """(k,) logarithms of the shares of answers."""
        said: list[Said] = []
        while len(said) < self.votes:  # some servers give one answer, however many are asked for
            wanted = self.votes - len(said)
            said += self._sample(plan, text, usage, wanted)[:wanted]
        counts = np.zeros(len(plan.answers))
        for answer in said:
            if (chosen := label_said(answer.text, plan.answers)) is not None:
                counts[plan.answers.index(chosen)] += 1
        if not counts.any():
            raise UnansweredError(
                f"None of {self.votes} sampled answers could be read as one label; the first was"
                f" {said[0].shown}."
            )
        with np.errstate(divide="ignore"):
            return np.log(counts / self.votes)

    def _sample(self, plan: Plan, text: str, usage: Usage, wanted: int) -> list[Said]:
        options: dict[str, Any] = {
            "max_tokens": self._longest(plan),
            "temperature": 1,
            "n": wanted,
        }
        if self._one_line:
            options["stop"] = ["\n"]
        prompt = plan.messages(text) if self.chat else plan.prompt(text)
        return self.completions.ask(prompt, options, _said, usage)


@dataclass(frozen=True)
class Said:
    """One sampled answer.

    Attributes:
        text: what the model wrote, without what it thought where the server keeps that apart.
        ended: why it ended, as the server says: "stop", "length", "content_filter", …
        thought: whether the server says that the model thought.
    """

    text: str
    ended: str
    thought: bool

    @property
    def thinks(self) -> bool:
        """Whether the model thinks before it answers, as far as this answer shows."""
        cut_off = not self.text.strip() and self.ended == "length"
        return self.thought or cut_off or thinks(self.text)

    @property
    def shown(self) -> str:
        """The answer for a message."""
        text = one_line(self.text)
        quoted = repr(text if len(text) <= 80 else f"{text[:79]}…") if text else "empty"
        return quoted + _why(self.ended)


def token_text(token: str) -> str:
    """The text of a token that a server lists as its tokenizer writes it.

    SentencePiece writes a space as ``▁`` and a byte as ``<0x0A>``; GPT-2's tokenizer and its heirs
    write every byte as a character of its own, a space as ``Ġ``.
    """
    if byte := re.fullmatch(r"<0x([0-9A-F]{2})>", token):
        token = chr(int(byte[1], 16)) if int(byte[1], 16) < 128 else "\ufffd"
    elif not token.isascii() and all(char in BYTES for char in token):
        with suppress(UnicodeDecodeError):
            token = bytes(BYTES[char] for char in token).decode()
    return re.sub("^Ġ", " ", token).replace("▁", " ")


def first_token_masses(
    top: Sequence[tuple[str, float]], answers: Sequence[str]
) -> tuple[FloatArray, str | None]:
    """Label probabilities from the likeliest first tokens, and what is wrong with them.

    A token stands for the one answer that begins with it, however it is spelt: case, quotes and
    Unicode form do not count, and the spellings of one answer add up. Probability of a piece that
    begins several answers, or is under 3 characters and no whole answer, must not be more than a
    thousandth; of one that is spelt otherwise and ends within a word, as "The" for "theft", not
    more than a twentieth. Labels must have half of all probability. A label that is not listed is
    less likely than the last that is: if what can hide there is at most a thousandth of the labels'
    probability, half the bound stands for it.

    Args:
        top: token text and log-probability, likeliest first.
        answers: what the model writes for each class.
    Returns:
        (k,) probabilities, and None or the reason why they must not be used.
    """
    masses = np.zeros(len(answers))
    unclear, doubtful = 0.0, 0.0
    unclear_token, doubtful_token = "", ""
    for token, log_prob in top:
        begun, sure = _begun(token.strip(), answers)
        if len(begun) == 1 and sure:
            masses[begun[0]] += math.exp(log_prob)
        elif len(begun) == 1 and len(token.strip()) >= FIRST_TOKEN_CHARS:
            doubtful += math.exp(log_prob)
            doubtful_token = doubtful_token or token.strip()
        elif begun:
            unclear += math.exp(log_prob)
            unclear_token = unclear_token or token.strip()
    absent = np.flatnonzero(masses == 0)
    rest = max(0.0, 1.0 - math.fsum(math.exp(lp) for _, lp in top))
    bound = min(rest, min((math.exp(lp) for _, lp in top), default=1.0))
    allowed = TOPK_TOLERANCE * masses.sum()
    if unclear > allowed:
        return masses, f"{unclear_token!r} does not tell which label it begins"
    if doubtful > DOUBTFUL_TOLERANCE * masses.sum():
        return masses, f"{doubtful_token!r} does not tell whether it begins a label"
    if not masses.any():
        return masses, f"the label {answers[0]!r} is not among them, nor is any other"
    if masses.sum() < LEAST_MASS:
        share = masses.sum()
        return masses, f"all labels together have only {share:.1%} of the probability"
    if len(absent) * bound > allowed:
        return masses, f"the label {answers[absent[0]]!r} is not among them"
    masses[absent] = bound / 2
    return masses, None


def _begun(piece: str, answers: Sequence[str]) -> tuple[list[int], bool]:
    """The classes whose answer a piece begins, and whether it surely means the only one."""
    said = bare(piece)
    spelt = [bare(answer) for answer in answers]
    begun = [i for i, answer in enumerate(spelt) if said and answer.startswith(said)]
    if len(begun) > 1 and len({spelt[i] for i in begun}) == 1:  # they differ in case alone
        begun = [i for i in begun if answers[i].startswith(piece)] or begun
    if len(begun) != 1:
        return begun, False
    after = spelt[begun[0]][len(said) :]
    word = not after or not after[0].isalnum()
    as_written = word or answers[begun[0]].startswith(piece)
    return begun, not after or (as_written and len(said) >= FIRST_TOKEN_CHARS)


def _top_of_only(answer: Mapping[str, Any]) -> list[tuple[str, float]]:
    return _top_of(choices_of(answer, 1)[0])


def _top_of(choice: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The likeliest first tokens; some servers give chats and completions the same form."""
    log_probs = choice.get("logprobs") or {}
    if content := log_probs.get("content"):
        listed = content[0]["top_logprobs"]
    elif top := log_probs.get("top_logprobs"):
        listed = top[0]
    else:
        raise UnansweredError(f"it gave no log-probabilities in its answer{_why(_ended(choice))}")
    if isinstance(listed, Mapping):
        return _sorted((token, log_prob_of(value)) for token, value in listed.items())
    pairs = [(_token_of(entry), log_prob_of(entry["logprob"])) for entry in listed]
    return _sorted(dict.fromkeys(pairs))  # the sampled token may be listed twice


def _token_of(entry: Mapping[str, Any]) -> str:
    """The token's text, from its bytes where they are text."""
    try:
        return bytes([*entry["bytes"]]).decode()  # of a number it would make so many zeros
    except (KeyError, TypeError, ValueError):
        return str(entry["token"])


def _sorted(pairs: Any) -> list[tuple[str, float]]:
    top = sorted(pairs, key=lambda pair: -pair[1])
    if not top:
        raise GarbledError("it listed no tokens")
    return top


def _said(answer: Mapping[str, Any]) -> list[Said]:
    choices = answer["choices"]
    if not choices:
        raise GarbledError("it gave no choices")
    return [_one_said(choice) for choice in choices]


def _one_said(choice: Mapping[str, Any]) -> Said:
    ended = _ended(choice)
    if "message" not in choice:
        text = choice.get("text") if ended else choice["text"]  # withheld, it may lack altogether
        return Said(_text_in(text), ended, thought=False)
    message = choice["message"] or {}
    thought = any(message.get(key) for key in ("reasoning_content", "reasoning"))
    return Said(_text_in(message.get("content")), ended, thought)


def _ended(choice: Mapping[str, Any]) -> str:
    """Why an answer ended, as the server says; "refusal" where the model says that it refuses."""
    message = choice.get("message")
    refused = isinstance(message, Mapping) and message.get("refusal")
    return "refusal" if refused else str(choice.get("finish_reason") or "")


def _why(ended: str) -> str:
    """What a reason to end says about an answer that cannot be used."""
    if ended.lower() in ("content_filter", "safety", "prohibited_content", "blocklist"):
        return " (withheld by the content filter)"
    return {"refusal": " (refused by the model)", "length": " (cut off)"}.get(ended, "")


def _text_in(content: Any) -> str:
    """A message's text, which may come in parts, or not at all."""
    if content is None:
        return ""
    if isinstance(content, list):
        return "".join(
            part if isinstance(part, str) else str(part.get("text") or "")
            for part in content
            if isinstance(part, str) or part.get("type", "text") in ("text", "output_text")
        )
    if not isinstance(content, str):
        raise GarbledError(f"it gave {type(content).__name__} instead of text")
    return content
