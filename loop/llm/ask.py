"""Asks the LLM: takes the votes that are missing, keeps the accounts, stops where money ends.

Votes are stored block by block, while further answers are under way, and found again by text and
prompt hash, so an interrupted annotation continues where it stopped. What cannot be answered is
stored too, with the reason and what it cost.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from loop.campaign.config import Config
from loop.campaign.store import Store
from loop.campaign.tables import ContentFree, ItemKey, Unanswered, now
from loop.chance import stream
from loop.errors import AnnotatorError, NoRoomError, Stopped, counted, ending_later
from loop.llm.prompts import without_item
from loop.llm.states import StateFile
from loop.llm.votes import calibrated_votes, content_free_probs, vote_arrays
from loop.money import LlmPurse
from loop.ports import (
    Annotator,
    ClassProbs,
    FloatArray,
    IntArray,
    Lots,
    News,
    Progress,
    StreamingAnnotator,
    TextItem,
    no_news,
)
from loop.prompt import PromptVariant

log = logging.getLogger(__name__)
T = TypeVar("T")

CHUNK = 256  # items that an annotator is handed at once
PAID_CHUNK = 32  # likewise where each may cost money, which stays committed after a kill
ROOM_AGAIN_S, ROOM_AFTER_S = 10.0, 600.0  # a full disk is tried again so often, and so long
STORED_AFTER_S = 2.0  # answers that came are kept back no longer
KEPT_BACK = 2048  # nor are more of them; half a chunk of those that may have a price
NO_PRICE = ("local_lm", "recorded")  # a server may bill what the campaign file has no price of
READ_AT_ONCE = 2048  # texts that are in memory while many are asked
LONG_S = 60.0  # from here on people are told how long the LLM will take
RETRY = "goldloop annotate --retry"
CONTENT_FREE = ("N/A", "", "[MASK]")  # Zhao et al. 2021


def take_votes(
    config: Config,
    store: Store,
    annotator: Annotator,
    items: Sequence[ItemKey],
    variants: Sequence[PromptVariant],
    *,
    progress: Progress,
    say: News = no_news,
) -> int:
    """Asks for the votes that are worth their price; returns the number that stayed unanswered.

    The first variant is asked of every item. With ``prompt.calls_per_item`` the others are asked
    where the cascade expects a flip, else of every item.

    Args:
        say: told how long the rest will take, once the first block of answers shows the pace.
    Raises:
        AnnotatorError: not one item of a whole chunk got an answer, or the cap is reached.
    """
    clerk = _Clerk(config, store, annotator, variants, progress, say)
    if config.prompt.calibrate == "contextual":
        clerk.ask_content_free(variants)
    limit = calls_limit(config, len(items), len(variants))
    clerk.to_come = clerk.missing(items, variants) if limit is None else limit
    for variant in variants if limit is None else variants[:1]:
        clerk.ask(variant, items)
    if limit is not None:
        _ask_where_worth_it(config, store, clerk, items, variants, limit)
    return clerk.unanswered


def retry_unanswered(
    config: Config,
    store: Store,
    annotator: Annotator,
    variants: Sequence[PromptVariant],
    *,
    progress: Progress,
) -> tuple[int, int]:
    """Asks again what brought no vote; how many questions that were, and how many failed again.

    Raises:
        AnnotatorError: the cap is reached, or the annotator is down.
    """
    name = config.campaign.name
    failed = {(u.item_id, u.variant_hash) for u in store.unanswered(name, annotator.revision)}
    items = store.keys(name, "pool")
    clerk = _Clerk(config, store, annotator, variants, progress)
    for variant in variants:
        chosen = [item for item in items if (item.id, variant.hash) in failed]
        clerk.ask(variant, chosen, all_may_fail=True)
    return len(failed), clerk.unanswered


def calls_limit(config: Config, n: int, m: int) -> int | None:
    """Most calls that m variants of n items may take together, or None for all of them."""
    per_item = config.prompt.calls_per_item
    if config.annotator.kind == "recorded" or per_item == 0 or per_item >= m:
        return None
    return round(per_item * n)


def unanswered_line(
    store: Store, campaign: str, annotator: str, *, recorded: bool = False
) -> str | None:
    """How many texts have a question without an answer, why, and what to do; None for none.

    Args:
        recorded: the answers come from columns of the source, so that asking again changes nothing.
    """
    failed = store.unanswered(campaign, annotator)
    if not failed:
        return None
    texts = len({row.item_id for row in failed})
    (reason, _), *_ = Counter(row.reason for row in failed).most_common(1)
    line = f"Missing LLM answers: {len(failed):,}, to {counted(texts, 'text')}"
    line = f"{line} (most often: {reason.rstrip('.')})."
    if recorded:
        return (
            f"{line} `goldloop check` lists what could not be read; values that are corrected in"
            " the source are read in the next round."
        )
    return f"{line} They are asked for again in the next round, or now with `{RETRY}`."


def _ask_where_worth_it(
    config: Config,
    store: Store,
    clerk: _Clerk,
    items: Sequence[ItemKey],
    variants: Sequence[PromptVariant],
    limit: int,
) -> None:
    """Further variants, wave by wave, where a flip is likeliest, until the limit."""
    from loop.llm.cascade import next_calls

    rng = stream("cascade", config.rounds.seed)
    column = {variant.hash: i for i, variant in enumerate(variants)}
    rows_of = np.array([item.row for item in items], dtype=np.int64)
    place = {item.id: i for i, item in enumerate(items)}
    refused = np.zeros((len(items), len(variants)), dtype=np.bool_)
    content_free = content_free_probs(config, store, clerk.revision)
    while True:
        probs, _ = vote_arrays(config, store, clerk.revision, rows_of, column)
        calls = next_calls(
            probs,
            lambda p: calibrated_votes(config, p, content_free),
            budget=limit,
            rng=rng,
            refused=refused,
        )
        if not len(calls):
            return
        for v in np.unique(calls[:, 1]):
            rows = calls[calls[:, 1] == v, 0]
            vain = clerk.ask(variants[v], [items[i] for i in rows], all_may_fail=True)
            refused[[place[item] for item in vain], v] = True


class _Clerk:
    """Takes votes chunk by chunk and stores them; knows which are there already."""

    def __init__(
        self,
        config: Config,
        store: Store,
        annotator: Annotator,
        variants: Sequence[PromptVariant],
        progress: Progress,
        say: News = no_news,
    ) -> None:
        self.config, self.store, self.annotator, self.progress = config, store, annotator, progress
        self.say = say
        self.to_come = 0
        """Answers that are to be asked for, as far as they are known; 0 once the pace was told."""
        self.name = config.campaign.name
        self.revision = annotator.revision
        self.have = store.voted(self.name, self.revision)
        """See ``LlmStore.voted``."""
        self.unanswered = 0
        self.purse = LlmPurse(config, store, annotator)
        # Of the first prompt alone: it is the one that every text is asked with.
        self.states_of = variants[0].hash if variants else ""
        self.states = StateFile.of(config.out, self.revision, self.states_of)

    def missing(self, items: Sequence[ItemKey], variants: Sequence[PromptVariant]) -> int:
        """How many votes are not there yet."""
        rows = np.array([item.row for item in items], dtype=np.int64)
        return sum(int((~self._voted(variant.hash, rows)).sum()) for variant in variants)

    def _voted(self, variant_hash: str, rows: IntArray) -> NDArray[np.bool_]:
        """(n,) whether each text has its vote."""
        size = int(rows.max(initial=-1)) + 1
        have = self.have.get(variant_hash, np.zeros(0, dtype=np.bool_))
        if len(have) < size:
            have = np.pad(have, (0, size - len(have)))
        self.have[variant_hash] = have
        return np.asarray(have[rows], dtype=np.bool_)

    def tell_pace(self, asked: int, seconds: float) -> None:
        """How long the rest will take, at the pace of the first block; once, and if it is long."""
        rest, self.to_come = self.to_come - asked, 0
        if rest * seconds >= LONG_S:
            self.say(
                f"{asked} LLM answers took {asked * seconds:,.0f} seconds; the other {rest:,} will"
                f" take about {counted(round(rest * seconds / 60), 'minute')} at that pace. What"
                " is answered is kept if you stop."
            )

    def ask(
        self, variant: PromptVariant, items: Sequence[ItemKey], *, all_may_fail: bool = False
    ) -> list[str]:
        """Asks one variant where its vote is missing; the ids of items that got no answer.

        Raises:
            AnnotatorError: not one item of a first lot got an answer, or the cap is reached.
        """
        rows = np.array([item.row for item in items], dtype=np.int64)
        missing = [items[i] for i in np.flatnonzero(~self._voted(variant.hash, rows))]
        self.progress(len(items) - len(missing))
        answered_before = all_may_fail or len(missing) < len(items)
        in_vain: list[str] = []
        own = without_item(variant, self.name)
        shown = [item for item in missing if item.id in own]
        todo = [item for item in missing if item.id not in own]
        asked = [(variant, todo), *((own[item.id], [item]) for item in shown)]
        for wording, items_so in asked:
            if items_so:
                asking = _Asking(self, wording, variant.hash, items_so, must=not answered_before)
                in_vain += asking.run()
                answered_before = True
        self.unanswered += len(in_vain)
        return in_vain

    def ask_content_free(self, variants: Sequence[PromptVariant]) -> None:
        """Asks each variant about texts without content, once.

        Raises:
            AnnotatorError: one of them gets no answer, or the cap is reached.
        """
        stored = self.store.content_free(self.name, self.revision)
        texts = [TextItem(f"content-free {i}", text) for i, text in enumerate(CONTENT_FREE)]
        for variant in variants:
            if variant.hash in stored:
                continue
            self.purse.reserve(variant, texts, least=len(texts))
            started = time.perf_counter()
            try:
                answer = self.annotator.annotate(variant, texts)
            except AnnotatorError as exc:
                self.purse.book_loss(self.purse.prices.usd_of_failure(exc.tokens))
                raise
            self.check(variant, texts, answer)
            seconds = (time.perf_counter() - started) / len(texts)
            usd = self.purse.prices.usd(answer).tolist()
            good = _usable(answer.probs).tolist()
            if not all(good):
                self.purse.book_loss(sum(usd))
                raise AnnotatorError(
                    f"The annotator {self.revision} gave no usable answer to the text"
                    f" {CONTENT_FREE[good.index(False)]!r}, which prompt.calibrate ="
                    ' "contextual" needs; take "batch".'
                )
            rows = [
                {
                    "variant_hash": variant.hash,
                    "campaign": self.name,
                    "annotator": self.revision,
                    "text": text,
                    "probs": [float(p) for p in probs],
                    "tokens": int(tokens),
                    "usd": cost,
                    "seconds": seconds,
                    "created_at": now(),
                }
                for text, probs, tokens, cost in zip(
                    CONTENT_FREE, answer.probs, answer.tokens, usd, strict=True
                )
            ]
            with self.purse.booking([text.id for text in texts], [answer]) as session:
                self.store.insert(session, ContentFree, rows)

    def keep(
        self,
        variant_hash: str,
        rows: IntArray,
        block: Sequence[tuple[Sequence[TextItem], ClassProbs]],
        seconds: float,
    ) -> list[tuple[str, str]]:
        """Stores answers to a variant and what they cost; the items without one, and why.

        Args:
            rows: (n,) of the block's items, in its order.
            seconds: that each item took.
        """
        item_ids = [item.id for items, _ in block for item in items]
        probs = np.concatenate([answer.probs for _, answer in block])
        off_label_mass = np.concatenate([answer.off_label_mass for _, answer in block])
        tokens = np.concatenate([answer.tokens for _, answer in block])
        usd = np.concatenate([self.purse.prices.usd(answer) for _, answer in block])
        problems = {item: why for _, answer in block for item, why in answer.problems.items()}
        good = _usable(probs)
        failures = [
            {
                "item_id": item_ids[i],
                "variant_hash": variant_hash,
                "annotator": self.revision,
                "reason": problems.get(item_ids[i], "it gave no usable probabilities"),
                "tokens": int(tokens[i]),
                "usd": float(usd[i]),
                "seconds": seconds,
                "created_at": now(),
            }
            for i in np.flatnonzero(~good)
        ]
        for items, answer in block:
            if answer.states is not None and variant_hash == self.states_of:
                self._keep_states([item.id for item in items], answer.states)
        with self.purse.booking(item_ids, [answer for _, answer in block]) as session:
            self.store.add_votes(
                session,
                self.name,
                self.revision,
                variant_hash,
                rows=rows[good],
                probs=probs[good],
                off_label_mass=off_label_mass[good],
                tokens=int(tokens[good].sum()),
                usd=float(usd[good].sum()),
                seconds=seconds * int(good.sum()),
            )
            self.store.insert(session, Unanswered, failures)
        self.have[variant_hash][rows[good]] = True
        return [(str(row["item_id"]), str(row["reason"])) for row in failures]

    def _keep_states(self, item_ids: Sequence[str], states: NDArray[np.float16]) -> None:
        """Before the votes are committed, so that no vote is without its state."""
        try:
            self.states.add(item_ids, states)
        except OSError as exc:  # the votes are worth more than the states
            log.warning(
                "The LLM's states cannot be kept in %s: %s. Repair continues without them.",
                self.states.path,
                exc.strerror or exc,
            )

    def check(self, variant: PromptVariant, items: Sequence[TextItem], answer: ClassProbs) -> None:
        """Refuses an answer of another shape than was asked for.

        Raises:
            AnnotatorError: its shape.
        """
        n, k = len(items), len(variant.labels)
        if not isinstance(answer, ClassProbs):
            raise AnnotatorError(
                f"The annotator {self.revision} answered with {type(answer).__name__} where"
                " ClassProbs is expected."
            )
        if answer.probs.shape != (n, k):
            raise AnnotatorError(
                f"The annotator {self.revision} answered with shape {answer.probs.shape}"
                f" to {n} items and {k} labels; it must be ({n}, {k})."
            )
        if answer.states is not None and len(answer.states) != n:
            raise AnnotatorError(
                f"The annotator {self.revision} gave states of shape {answer.states.shape}"
                f" for {n} items; it must be ({n}, d)."
            )


class _Asking:
    """One wording of a prompt is asked of many items.

    Args:
        clerk: stores the answers and keeps the accounts.
        asked: the variant as it is asked.
        variant_hash: of the variant that the votes count for.
        must: raise if not one item of the first lot is answered.
    """

    def __init__(
        self,
        clerk: _Clerk,
        asked: PromptVariant,
        variant_hash: str,
        items: Sequence[ItemKey],
        *,
        must: bool,
    ) -> None:
        self._clerk, self._asked, self._variant_hash = clerk, asked, variant_hash
        self._items = items
        self._must = must
        self._rows: dict[str, int] = {}
        """Of the items that were handed over and are not stored."""
        self._under_way = 0
        """Items that were handed over and are not back."""
        self._block: list[tuple[Sequence[TextItem], ClassProbs]] = []
        """Answers that came and are not stored."""
        self._waiting = 0
        """Items of the block."""
        self._stored = 0
        self._patient = True
        """Whether answers may wait for room to be stored; not once it shall end."""
        self._failures: list[tuple[str, str]] = []
        self._started = time.perf_counter()
        self._stored_at = time.monotonic()

    def run(self) -> list[str]:
        """Asks all; the ids of items that got no answer.

        Raises:
            AnnotatorError: not one item of the first lot got an answer, the cap is reached, or the
                annotator is down.
        """
        answers = self._answers()
        try:
            try:
                for items, answer in answers:
                    self._take(items, answer)
            except Stopped as exc:  # out here the annotator has not heard of it
                self._take(*answers.throw(exc))
                for items, answer in answers:
                    self._take(items, answer)
        except BaseException:  # what came is paid; what is under way stays committed
            self._patient = False
            self._store()
            raise
        self._store()
        self._raise_if_all_failed()
        return [item_id for item_id, _ in self._failures]

    def _take(self, items: Sequence[TextItem], answer: ClassProbs) -> None:
        with ending_later():
            self._clerk.check(self._asked, items, answer)
            self._under_way -= len(items)
            self._block.append((items, answer))
            self._waiting += len(items)
        if self._is_due():
            self._store()

    def _is_due(self) -> bool:
        """Whether what came is stored now rather than with what comes next."""
        if time.monotonic() - self._stored_at > STORED_AFTER_S:
            return True
        if not self._is_free or self._stored == len(self._failures):
            return not self._under_way or self._waiting >= max(1, CHUNK // 2)
        return self._waiting >= KEPT_BACK

    @property
    def _is_free(self) -> bool:
        """Whether the answers cost no money for sure."""
        prices = self._clerk.purse.prices
        return self._clerk.config.annotator.kind in NO_PRICE and not any(prices)

    def _answers(self) -> Generator[tuple[Sequence[TextItem], ClassProbs]]:
        purse = self._clerk.purse
        try:
            yield from answers_of(self._clerk.annotator, self._asked, self._lots())
        except (AnnotatorError, Stopped) as exc:
            self._patient = isinstance(exc, AnnotatorError)
            self._store()
            if exc.tokens is not None:
                purse.book_loss(purse.prices.usd_of_failure(exc.tokens))
            raise

    def _lots(self) -> Lots:
        """As many items at a time as the money allows, see ``loop.ports.Lots``."""
        clerk, at = self._clerk, 0
        streams = isinstance(clerk.annotator, StreamingAnnotator)  # else it waits for each lot
        size = min(CHUNK, PAID_CHUNK) if streams and clerk.purse.sets_aside else CHUNK
        told: dict[str, TextItem] = {}
        while at < len(self._items):
            if not self._under_way:
                self._raise_if_all_failed()
            elif self._must and at and self._stored == len(self._failures):
                yield []  # nobody knows yet whether the annotator answers at all
                continue
            lot = self._items[at : at + size]
            if lot[-1].id not in told:
                told = clerk.store.text_items(clerk.name, self._items[at : at + READ_AT_ONCE])
            texts = [told[item.id] for item in lot]
            least = 0 if self._under_way else 1
            count = self._with_room(partial(clerk.purse.reserve, self._asked, texts, least=least))
            self._rows.update((item.id, item.row) for item in lot[:count])
            at += count
            self._under_way += count
            yield texts[:count]

    def _store(self) -> None:
        if self._waiting:
            self._with_room(self._store_block)

    def _with_room(self, write: Callable[[], T]) -> T:
        """Writes to the store; where the disk is full, paid answers wait in memory for a while.

        Raises:
            StoreError: nothing was written; what waits is kept for another try.
        """
        give_up_at = None
        while True:
            try:
                with ending_later():
                    return write()
            except NoRoomError:
                paid = (self._waiting or self._under_way) and not self._is_free
                if not paid or not self._patient:
                    raise
                if give_up_at is None:
                    give_up_at = time.monotonic() + ROOM_AFTER_S
                    self._clerk.say(
                        "The disk is full or fails, so that the LLM's answers cannot be stored."
                        " Make room: they wait in memory, and are tried again every"
                        f" {ROOM_AGAIN_S:.0f} seconds for {ROOM_AFTER_S / 60:.0f} minutes."
                    )
                elif time.monotonic() > give_up_at:
                    raise
                time.sleep(ROOM_AGAIN_S)

    def _store_block(self) -> None:
        block, count = self._block, self._waiting
        ended = time.perf_counter()
        seconds = (ended - self._started) / count
        rows = np.array([self._rows[i.id] for items, _ in block for i in items], dtype=np.int64)
        self._failures += self._clerk.keep(self._variant_hash, rows, block, seconds)
        self._block, self._waiting, self._started = [], 0, ended
        for items, _ in block:
            for item in items:
                del self._rows[item.id]
        self._stored += count
        self._stored_at = time.monotonic()
        self._clerk.tell_pace(count, seconds)
        self._clerk.progress(count)

    def _raise_if_all_failed(self) -> None:
        if not self._must or not self._stored or self._stored > len(self._failures):
            return
        raise AnnotatorError(
            f"The annotator {self._clerk.revision} gave no usable answer to any of {self._stored}"
            f" items ({self._failures[0][1].rstrip('.')}); look at its model, columns and label"
            " names, then run the command again."
        )


def answers_of(
    annotator: Annotator, variant: PromptVariant, lots: Lots
) -> Iterator[tuple[Sequence[TextItem], ClassProbs]]:
    """Items and their answers as they come: one by one from who streams them, else lot by lot."""
    if isinstance(annotator, StreamingAnnotator):
        yield from annotator.annotate_stream(variant, lots)
    else:
        for lot in lots:
            yield lot, annotator.annotate(variant, lot)


def _usable(probs: FloatArray) -> NDArray[np.bool_]:
    """(n,) whether each row is finite and sums to 1."""
    return np.asarray(np.isfinite(probs).all(axis=1) & (np.abs(probs.sum(axis=1) - 1.0) < 1e-3))
