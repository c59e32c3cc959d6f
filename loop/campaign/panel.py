"""The policy of the campaign file about people: how many answer a text, and who decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Rule = Literal["majority", "dawid-skene", "ask-one-more"]


@dataclass(frozen=True)
class Panel:
    """How many people answer an item, and how their answers become one.

    Attributes:
        rule: ``majority`` and ``dawid-skene`` ask ``overlap`` people; ``ask-one-more`` asks that
            many and then one more at a time while nobody leads, up to ``most``.
        early_stop: whether the first two rules ask only as many as can decide, and the rest where
            those differ.
        most: for ``ask-one-more``.
        adjudicator: whose answer decides, where the others' do not; everywhere else too.
    """

    rule: Rule = "majority"
    overlap: int = 1
    early_stop: bool = False
    most: int = 0
    adjudicator: str | None = None

    @property
    def first(self) -> int:
        """People who are asked at once."""
        if self.rule != "ask-one-more" and self.early_stop:
            return self.overlap // 2 + 1
        return self.overlap

    @property
    def last(self) -> int:
        """People who are asked at most, the adjudicator apart."""
        return max(self.overlap, self.most) if self.rule == "ask-one-more" else self.overlap
