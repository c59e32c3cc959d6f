"""What a way of reading class probabilities out of a server must do."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from connectors.llm.label_trie import LabelTrie
from connectors.llm.server_http import GarbledError, UnansweredError, Usage
from loop.ports import FloatArray
from loop.prompt import PromptVariant

LIST = 16  # prompts in one request, where a server takes several
TOO_LONG = re.compile(  # how servers say so
    r"context|too (?:long|large)|n_ctx|longer than|too many tokens|less than \d+ tokens"
    r"|exceeds? .*(?:length|tokens)",
    re.IGNORECASE,
)


@dataclass
class Plan:
    """A variant, made ready for a server.

    Attributes:
        answers: what the model writes for each class, without the space before it.
        fresh: whether nothing was asked yet.
    """

    variant: PromptVariant
    answers: tuple[str, ...]
    trie: LabelTrie | None = None
    fresh: bool = True

    @cached_property
    def _prefix(self) -> str:
        return self.variant.prefix

    @property
    def known_trie(self) -> LabelTrie:
        """The trie, which must be there."""
        if self.trie is None:
            raise ValueError("the plan has no trie")
        return self.trie

    def prompt(self, text: str) -> str:
        """The whole prompt."""
        return self._prefix + self.variant.suffix(text)

    def messages(self, text: str) -> list[dict[str, str]]:
        """The prompt as a chat's only message; the template ends it, so no space does."""
        return [{"role": "user", "content": self.prompt(text).rstrip(" ")}]


class Server(Protocol):
    """One way of reading class probabilities out of a server."""

    @property
    def exact(self) -> bool:
        """Whether every label's probability is known."""
        ...

    @property
    def means(self) -> str:
        """How it answers, in words."""
        ...

    @property
    def at_once(self) -> int:
        """How many texts ``ask_all`` may be asked about."""
        ...

    def trie(self, plan: Plan) -> LabelTrie | None:
        """The answers' tokens, where the server tells."""
        ...

    def most_asked(self, plan: Plan) -> tuple[int, int]:
        """Prompts that one item takes at most, and tokens that are written; each asked once."""
        ...

    def ask(self, plan: Plan, text: str, usage: Usage) -> FloatArray:
        """(k,) log-probability of each class's answer.

        Raises:
            UnansweredError: this item gets none.
        """
        ...

    def ask_all(
        self, plan: Plan, texts: Sequence[str], usage: Sequence[Usage]
    ) -> list[FloatArray | UnansweredError]:
        """Likewise of several texts in one request, which is not repeated; why one has none.

        Raises:
            UnansweredError: all of them should be asked one by one.
        """
        ...


class OneByOne(ABC):
    """A way that takes one text in a request."""

    at_once = 1

    @abstractmethod
    def ask(self, plan: Plan, text: str, usage: Usage) -> FloatArray:
        """See ``Server``."""

    def ask_all(
        self, plan: Plan, texts: Sequence[str], usage: Sequence[Usage]
    ) -> list[FloatArray | UnansweredError]:
        """See ``Server``."""
        return [self.ask(plan, text, used) for text, used in zip(texts, usage, strict=True)]


# reading answers: whatever is not as it must be is garbled


def choices_of(answer: Mapping[str, Any], count: int) -> list[Mapping[str, Any]]:
    """The answer's choices by their number.

    Raises:
        GarbledError: not as many as asked for.
    """
    choices = answer.get("choices")
    if not isinstance(choices, list) or len(choices) != count:
        got = len(choices) if isinstance(choices, list) else "no"
        raise GarbledError(f"it gave {got} choices, not {count}")
    if count == 1:  # some servers do not number the only one
        return list(choices)
    by_index = {choice["index"]: choice for choice in choices}
    if sorted(by_index) != list(range(count)):
        raise GarbledError(f"its choices are numbered {sorted(by_index)}")
    return [by_index[i] for i in range(count)]


def log_prob_of(value: object) -> float:
    """A log-probability."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value <= 0.01:
        raise GarbledError(f"it gave {value!r} as a log-probability")
    return float(value)
