"""A model that labels texts on an executor's workers, one engine in each.

Only models that are computed there are asked so; a server is asked by the process that asks, which
keeps the accounts as well. Weights do not go along with the job: they are too large, so that every
machine finds the model by the name or the folder that the campaign file has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from loop.campaign.extensions import load
from loop.ports import (
    Annotator,
    AnnotatorSetup,
    ClassProbs,
    Executor,
    IntArray,
    Lots,
    News,
    Progress,
    Resources,
    TextItem,
    each_once,
    no_news,
)
from loop.prompt import PromptVariant

ELSEWHERE = {"local_lm": False, "vllm": True}
"""Kinds of annotators that compute in their own process, and whether on a GPU."""


@dataclass(frozen=True)
class Question:
    """One variant about some items; ``count`` asks how many tokens that may take."""

    variant: PromptVariant
    items: Sequence[TextItem]
    count: bool = False


Answer = ClassProbs | tuple[IntArray, IntArray]


@dataclass(frozen=True, eq=False)
class AskTexts:
    """Asks an annotator that each worker builds for itself."""

    kind: str
    setup: AnnotatorSetup

    def load(self) -> _AtWork:
        """Builds it; its model is loaded with the first question."""
        return _AtWork(load("annotators", self.kind)(self.setup))


class _AtWork:
    def __init__(self, annotator: Annotator) -> None:
        self._annotator = annotator
        self.close = annotator.close

    def __call__(self, asked: Question, _progress: Progress, _say: News) -> Answer:
        if asked.count:
            return self._annotator.most_tokens(asked.variant, asked.items)
        return self._annotator.annotate(asked.variant, asked.items)


class AnnotatorElsewhere:
    """A ``StreamingAnnotator`` whose lots are answered side by side.

    Args:
        annotator: the same one in this process, for its name; it loads no model.
        kind: its kind, one of ``ELSEWHERE``.
        setup: what workers build it from.
    """

    def __init__(
        self, annotator: Annotator, kind: str, setup: AnnotatorSetup, executor: Executor
    ) -> None:
        self._annotator, self._kind, self._executor = annotator, kind, executor
        settings = dict(setup.settings)
        if (folder := Path(settings["model"]).expanduser()).is_dir():
            settings["model"] = str(folder.resolve())  # workers run in another folder
        self._job = AskTexts(kind, replace(setup, settings=settings, say=no_news))

    @property
    def revision(self) -> str:
        """As in this process: where a model runs changes nothing but rounding."""
        return self._annotator.revision

    def annotate(self, variant: PromptVariant, items: Sequence[TextItem]) -> ClassProbs:
        """See ``Annotator``."""
        return cast(ClassProbs, self._ask(Question(variant, items)))

    def annotate_stream(
        self, variant: PromptVariant, lots: Lots
    ) -> Iterator[tuple[Sequence[TextItem], ClassProbs]]:
        """See ``StreamingAnnotator``; a lot is one worker's."""
        asked: dict[int, Sequence[TextItem]] = {}

        def blocks() -> Iterator[Question | None]:
            number = 0
            for lot in lots:
                if not lot:
                    yield None
                    continue
                asked[number] = lot
                number += 1
                yield Question(variant, lot)

        results = self._executor.map(self._job, blocks(), self._room())
        with closing(results):
            for number, answer in each_once(results):
                yield asked.pop(number), cast(ClassProbs, answer)

    def most_tokens(
        self, variant: PromptVariant, items: Sequence[TextItem]
    ) -> tuple[IntArray, IntArray]:
        """See ``Annotator``; a worker counts, because some need their engine for it."""
        return cast(tuple[IntArray, IntArray], self._ask(Question(variant, items, count=True)))

    def _ask(self, question: Question) -> Answer:
        with closing(self._executor.map(self._job, [question], self._room())) as results:
            return next(results)[1]

    def _room(self) -> Resources:
        room = self._executor.room
        return room if ELSEWHERE[self._kind] else replace(room, gpus=0.0)

    def close(self) -> None:
        """Ends the workers; the next question starts others."""
        self._executor.close()
