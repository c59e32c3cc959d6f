"""What a campaign has bought, what it is committed to, and what it may still spend.

``spent``      what is known to have been bought: the LLM's answers at what they cost, and people's
               answers at ``budget.usd_per_label``, one for each person and task. A corrected answer
               is paid once, one that was taken back is not.
``committed``  ``spent``, and the most that everything may cost that was asked and is not back.
``cap``        ``budget.usd``.

Whatever spends asks here before it asks anybody, and asks no more than fits. So ``committed`` never
passes the cap by anything that goldloop does; it can where people give answers that nobody asked
for, or where the campaign file is changed. ``budget.labels`` is treated alike: a text counts from
the moment it is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from sqlmodel import Session

from loop.campaign.config import AnnotatorSection, Config
from loop.campaign.store import Store
from loop.campaign.tables import DELETED, HiddenCheck, Review
from loop.errors import AnnotatorError, StageError
from loop.ports import Annotator, ClassProbs, FloatArray, TextItem
from loop.prompt import PromptVariant

ROUNDING_USD = 1e-9  # sums of prices are not exact
MOST_TIMES = 8  # a server is asked the same no oftener before a text goes without an answer


class TokenPrices(NamedTuple):
    """US dollars for one token.

    Attributes:
        fresh: of a prompt.
        cached: of a prompt, out of a server's cache.
        written: of an answer.
    """

    fresh: float
    cached: float
    written: float

    @classmethod
    def of(cls, section: AnnotatorSection) -> TokenPrices:
        """The campaign file's; cached and written tokens cost as much as others unless it says."""
        fresh = section.usd_per_million_tokens
        cached = section.usd_per_million_cached_tokens
        written = section.usd_per_million_output_tokens
        return cls(
            fresh / 1e6,
            (fresh if cached is None else cached) / 1e6,
            (fresh if written is None else written) / 1e6,
        )

    def usd(self, answer: ClassProbs) -> FloatArray:
        """(n,) US dollars for each item of an answer."""
        none = np.zeros(len(answer.tokens), dtype=np.int64)
        written = none if answer.output_tokens is None else answer.output_tokens
        hits = none if answer.cached_tokens is None else answer.cached_tokens
        read = (answer.tokens - written) * self.fresh + hits * self.cached
        return np.asarray(read + written * self.written, dtype=np.float64)

    def most_usd_again(self, answer: ClassProbs) -> FloatArray:
        """(n,) the most US dollars that the same questions may have cost another time.

        ``MOST_TIMES`` what they took now, out of no cache; NaN where they brought no answer.
        """
        fresh = max(self.fresh, self.cached)
        again = MOST_TIMES * TokenPrices(fresh, fresh, self.written).usd(answer)
        return np.where(np.isfinite(answer.probs).all(axis=1), again, np.nan)

    def usd_of_failure(self, tokens: tuple[int, int, int]) -> float:
        """US dollars for what an annotator used before it failed, see ``AnnotatorError``."""
        computed, hits, written = tokens
        return (computed - written) * self.fresh + hits * self.cached + written * self.written


@dataclass(frozen=True)
class Account:
    """A campaign's money, in US dollars.

    Attributes:
        llm_usd: bought of the LLM.
        answers: bought of people.
        open_answers: asked of people and not back.
        open_llm_usd: the most that LLM calls cost which are under way or were interrupted, so that
            nobody knows what they cost.
        answer_usd: price of one person's answer.
        cap_usd: ``budget.usd``, or None without a cap.
    """

    llm_usd: float
    answers: int
    open_answers: int
    open_llm_usd: float
    answer_usd: float
    cap_usd: float | None

    @property
    def spent_usd(self) -> float:
        """What is known to have been bought."""
        return self.llm_usd + self.answers * self.answer_usd

    @property
    def open_usd(self) -> float:
        """The most that everything may cost that was asked and is not back."""
        return self.open_llm_usd + self.open_answers * self.answer_usd

    @property
    def committed_usd(self) -> float:
        """What is bought, and the most that what is not back may cost."""
        return self.spent_usd + self.open_usd

    @property
    def left_usd(self) -> float | None:
        """What may still be spent, 0 where the cap is passed; None without a cap."""
        if self.cap_usd is None:
            return None
        return max(0.0, self.cap_usd - self.committed_usd)

    @property
    def answers_that_fit(self) -> int | None:
        """How many more answers may be asked of people; None for any number."""
        if self.left_usd is None or not self.answer_usd:
            return None
        return int((self.left_usd + ROUNDING_USD) / self.answer_usd)

    def __str__(self) -> str:
        """One clause, for messages."""
        return (
            f"${self.spent_usd:.2f} is spent and ${max(self.open_usd, 0.0):.2f} committed to what"
            f" is not back, or was killed on the way, of budget.usd = {self.cap_usd:.2f}"
        )


def account(config: Config, store: Store, session: Session | None = None) -> Account:
    """The campaign's money now.

    Args:
        config: its prices and its cap.
        store: with the campaign.
        session: sees what is not committed yet; None opens one.
    """
    if session is None:
        with store.transaction() as own:
            return account(config, store, own)
    name = config.campaign.name
    received = store.answer_counts(session, name)
    asked = _asked(config, store, session)
    return Account(
        llm_usd=store.spent(name).usd,
        answers=sum(received.values()),
        open_answers=sum(max(0, n - received.get(task, 0)) for task, n in asked.items()),
        open_llm_usd=store.open_llm_usd(name),
        answer_usd=config.budget.usd_per_label,
        cap_usd=config.budget.usd,
    )


def asked_answers(review: Review | HiddenCheck, first: int) -> int:
    """How many people were, or will be, asked about one text or hidden check.

    Args:
        first: people whom a text that is not sent yet will be given to.
    """
    further = review.wanted if isinstance(review, Review) else None
    return max(review.asked or first, further or 0)


def _asked(config: Config, store: Store, session: Session) -> Mapping[str, int]:
    """Answers asked of people, by the id that a task carries."""
    first = config.people.panel.first
    reviews = store.reviews(config.campaign.name, session=session)
    checks = store.checks(config.campaign.name, session=session)
    there = [r for r in reviews if r.outcome != DELETED]  # nobody can answer a deleted task
    return {r.item_id: asked_answers(r, first) for r in there} | {
        c.id: asked_answers(c, first) for c in checks
    }


# people


def labels_left(config: Config, store: Store) -> int:
    """Texts that ``budget.labels`` still allows to send; 0 where it was lowered since."""
    return max(0, config.budget.labels - store.review_count(config.campaign.name))


def texts_that_fit(config: Config, store: Store) -> int:
    """How many more texts may be sent to people, hidden checks going along as they should."""
    labels = labels_left(config, store)
    if config.budget.usd is None:
        return labels
    answers = account(config, store).answers_that_fit
    if answers is None:
        return labels
    section = config.people
    tasks = answers // section.panel.first
    return next(n for n in range(min(labels, tasks), -1, -1) if n + section.checks_for(n) <= tasks)


def why_nothing_to_buy(config: Config, store: Store) -> str | None:
    """Why not one more text can be sent to people, or None."""
    name, budget = config.campaign.name, config.budget
    if not store.open_texts(name, 1):
        return "every text of the pool has been sent to people, or has an imported label"
    if not labels_left(config, store):
        return f"the budget of {budget.labels} labels is spent (budget.labels)"
    if not texts_that_fit(config, store):
        money = account(config, store)
        usd = config.people.panel.first * money.answer_usd
        back = "; `goldloop pull --withdraw` takes texts back" if money.open_answers else ""
        return f"one more text would cost ${usd:.2f} in answers, but {money}{back}"
    return None


def check_committed(config: Config, store: Store) -> None:
    """Looks once more before tasks are sent: the campaign file may have changed since the choice.

    Raises:
        StageError: what is asked already may cost more than the cap.
    """
    money = account(config, store)
    if money.cap_usd is None or money.committed_usd <= money.cap_usd + ROUNDING_USD:
        return
    raise StageError(
        f"Nothing is sent: {money}, which is ${money.committed_usd - money.cap_usd:.2f} too much."
        " Raise budget.usd, or restore the prices, people.overlap or rule that the texts were"
        " chosen under."
    )


# the LLM


class LlmPurse:
    """Sets money aside before one annotator is asked, and books what its answers cost.

    What is set aside is noted in the store first, so that a process that is killed while it waits
    for answers stays committed to what they may have cost. That is far more than they cost as a
    rule. The next process asks the same again, and first: as much less as its answers can have
    cost than was set aside for them, so much less can those have cost that nobody waited for.
    """

    def __init__(self, config: Config, store: Store, annotator: Annotator) -> None:
        self._config, self._store, self._annotator = config, store, annotator
        self.prices = TokenPrices.of(config.annotator)
        self._account = account(config, store)
        self._open: dict[int | None, dict[str, float]] = {}
        """Of each note in the store: the most that each item may cost which is not booked yet."""
        name = config.campaign.name
        self._killed = store.open_calls(name, annotator.revision) if self.sets_aside else {}
        """Notes of processes that were killed, and what they may have cost."""
        self._settled: tuple[int | None, float] = (None, 0.0)
        """The note of what killed calls may have cost as far as answers have shown it."""

    @property
    def sets_aside(self) -> bool:
        """Whether there is a cap, and anything that costs."""
        return self._account.cap_usd is not None and any(self.prices)

    def reserve(self, variant: PromptVariant, items: Sequence[TextItem], *, least: int = 1) -> int:
        """Sets aside the most that the first items may cost; how many of them fit.

        Beyond ``least``, room is left for one more: whoever continues after a kill can ask that
        one, and so learns what the others can have cost.

        Raises:
            AnnotatorError: fewer than ``least`` fit.
        """
        left = self._account.left_usd
        if left is None or not self.sets_aside:
            return len(items)
        read, written = self._annotator.most_tokens(variant, items)
        costs = read * max(self.prices.fresh, self.prices.cached) + written * self.prices.written
        sums = np.cumsum(costs)
        fit = int(np.searchsorted(sums, left + ROUNDING_USD, side="right"))
        spare = costs[:fit].max(initial=0.0)
        count = int(np.searchsorted(sums, left - spare + ROUNDING_USD, side="right"))
        count = max(count, min(least, fit))
        if count < least:
            raise AnnotatorError(
                f"The next {f'{least} LLM answers' if least > 1 else 'LLM answer'} may cost"
                f" ${sums[least - 1]:.2g}, but {self._account}. Raise budget.usd and run the"
                " command again; every vote so far is kept."
            )
        if count and (usd := float(sums[count - 1])):
            name, revision = self._config.campaign.name, self._annotator.revision
            calls_id = self._store.begin_calls(name, revision, count, usd)
            asked = [item.id for item in items[:count]]
            self._open[calls_id] = dict(zip(asked, costs[:count].tolist(), strict=True))
            self._set_aside(usd)
        return count

    @contextmanager
    def booking(self, item_ids: Sequence[str], answers: Sequence[ClassProbs]) -> Iterator[Session]:
        """The transaction that stores answers books what they cost; if it fails, nothing is booked.

        Args:
            item_ids: of all answers, in their order.
        """
        before = self._account, {at: dict(costs) for at, costs in self._open.items()}
        killed, settled = dict(self._killed), self._settled
        again = np.concatenate([self.prices.most_usd_again(answer) for answer in answers])
        try:
            with self._store.transaction() as session:
                yield session
                self._book(session, dict(zip(item_ids, again.tolist(), strict=True)))
        except BaseException:
            (self._account, self._open), self._killed, self._settled = before, killed, settled
            raise
        usd = sum(float(self.prices.usd(answer).sum()) for answer in answers)
        self._account = replace(self._account, llm_usd=self._account.llm_usd + usd)

    def _book(self, session: Session, again: Mapping[str, float]) -> None:
        for calls_id, costs in list(self._open.items()):
            here = {item: costs.pop(item) for item in costs.keys() & again.keys()}
            if not here:
                continue
            self._set_aside(-sum(here.values()))
            if not costs:
                del self._open[calls_id]
            self._store.lower_calls(session, calls_id, sum(costs.values()))
            known = [item for item in here if math.isfinite(again[item])]
            self._settle(
                session,
                sum(here[item] for item in known),
                sum(min(here[item], again[item]) for item in known),
            )

    def _settle(self, session: Session, set_aside: float, most: float) -> None:
        """Of killed calls, lowers as much as was set aside for answers to what these may cost."""
        share = most / set_aside if set_aside else 1.0
        for calls_id, usd in list(self._killed.items()):
            part = min(usd, set_aside)
            if share >= 1.0 or part <= ROUNDING_USD:
                return
            set_aside -= part
            self._killed[calls_id] = usd - part
            if usd - part <= ROUNDING_USD:
                del self._killed[calls_id]
            self._store.lower_calls(session, calls_id, self._killed.get(calls_id, 0.0))
            note, settled = self._settled
            settled += part * share
            if note is None and settled:
                name, revision = self._config.campaign.name, self._annotator.revision
                note = self._store.begin_calls(name, revision, 0, settled, session)
            self._store.lower_calls(session, note, settled)
            self._settled = note, settled
            self._set_aside(part * (share - 1.0))

    def book_loss(self, usd: float) -> None:
        """There is no answer to store to all that is set aside; what it cost is kept."""
        self._account = replace(self._account, llm_usd=self._account.llm_usd + usd)
        for calls_id, costs in self._open.items():
            self._set_aside(-sum(costs.values()))
            self._store.end_calls(calls_id, usd)
            usd = 0.0
        if usd:  # nothing was set aside, because there is no cap; one may come
            name, revision = self._config.campaign.name, self._annotator.revision
            self._store.end_calls(self._store.begin_calls(name, revision, 0, usd), usd)
        self._open.clear()

    def _set_aside(self, usd: float) -> None:
        self._account = replace(self._account, open_llm_usd=self._account.open_llm_usd + usd)
