"""What a command works with: the campaign file, the store, and the parts that ``cli`` joined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from loop.campaign.config import Config
from loop.campaign.store import Store
from loop.campaign.tables import ItemKey
from loop.ports import (
    Annotator,
    Executor,
    Raters,
    Reviewer,
    Show,
    SourceText,
    Student,
    show_nothing,
)


@dataclass(frozen=True)
class Parts:
    """How to build each part; none is built before it is used.

    Attributes:
        executor: that annotator and student share, or None where they have none.
    """

    texts: Callable[[], Sequence[SourceText]]
    annotator: Callable[[], Annotator]
    reviewer: Callable[[], Reviewer]
    student: Callable[[], Student]
    raters: Callable[[], Raters] | None = None
    executor: Executor | None = None


class Context:
    """One campaign at work.

    Args:
        say: told one line of news at a time.
    """

    def __init__(
        self,
        config: Config,
        store: Store,
        parts: Parts,
        *,
        show: Show = show_nothing,
        say: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self.config = config
        self.store = store
        self.parts = parts
        self.show = show
        self.say = say
        self._keys: dict[str, list[ItemKey]] = {}
        self.texts_read_before: int | None = None
        """Number of the round before which the texts' source was last read."""

    def close(self) -> None:
        """Lets go of the LLM's engine or connections, if they were opened, and of workers."""
        if "annotator" in self.__dict__:
            self.annotator.close()
        if self.parts.executor is not None:
            self.parts.executor.close()

    @property
    def name(self) -> str:
        """The campaign's name."""
        return self.config.campaign.name

    def keys(self, split: str) -> list[ItemKey]:
        """Which texts there are in a split, in source order; read once."""
        if split not in self._keys:
            self._keys[split] = self.store.keys(self.name, split)
        return self._keys[split]

    def read_again(self) -> None:
        """Forgets which texts there are, because the store's have changed."""
        self._keys.clear()

    @cached_property
    def seed(self) -> int:
        """The seed that the campaign was begun with.

        Whatever must stay the same in every round depends on it: which texts are held out, which
        split a text is in, whom the random control buys.
        """
        rounds = self.store.rounds(self.name)
        return rounds[0].seed if rounds else self.config.rounds.seed

    @cached_property
    def annotator(self) -> Annotator:
        """The LLM."""
        return self.parts.annotator()

    @cached_property
    def reviewer(self) -> Reviewer:
        """Label Studio."""
        return self.parts.reviewer()

    @cached_property
    def student(self) -> Student:
        """The classifier."""
        return self.parts.student()

    @cached_property
    def raters(self) -> Raters | None:
        """Simulated people, or None where real ones answer."""
        return self.parts.raters() if self.parts.raters else None
