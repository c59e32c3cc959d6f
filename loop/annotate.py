"""Asks the LLM: takes the votes that are missing, keeps the accounts, stops where money ends.

Votes are stored chunk by chunk and found again by item and prompt hash, never by row number, so an
interrupted annotation goes on where it stopped. What cannot be answered is stored too, with the
reason and what it cost.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from loop.config import Config
from loop.errors import AnnotatorError
from loop.ports import Annotator, ClassProbs, FloatArray, Progress, PromptVariant, TextItem
from loop.store import ContentFree, Item, Store, Unanswered, Vote, insert_all, now
from loop.variants import without_item
from loop.votes import calibrated_votes, content_free_probs, vote_arrays

CHUNK = 256  # items per commit: a kill loses at most one chunk of answers
FIRST_CHARS_PER_TOKEN = 2  # before any answer is paid for: dear rather than cheap
CONTENT_FREE = ("N/A", "", "[MASK]")  # Zhao et al. 2021


def text_item(item: Item) -> TextItem:
    """An item as annotators and raters see it."""
    return TextItem(item.id, item.text, item.meta)


def take_votes(
    config: Config,
    store: Store,
    annotator: Annotator,
    items: Sequence[Item],
    variants: Sequence[PromptVariant],
    *,
    progress: Progress,
) -> int:
    """Asks for the votes that are worth their price; returns the number that stayed unanswered.

    The first variant is asked of every item. With ``prompt.calls_per_item`` the others are asked
    where the cascade expects a flip, else of every item.

    Raises:
        AnnotatorError: not one item of a whole chunk got an answer, or the money is spent.
    """
    clerk = _Clerk(config, store, annotator, progress)
    if config.prompt.calibrate == "contextual":
        clerk.ask_content_free(variants)
    limit = calls_limit(config, len(items), len(variants))
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
        AnnotatorError: the money is spent, or the annotator is down.
    """
    name = config.campaign.name
    failed = {(u.item_id, u.variant_hash) for u in store.unanswered(name, annotator.revision)}
    items = store.items(name, "pool")
    clerk = _Clerk(config, store, annotator, progress)
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


def unanswered_line(store: Store, campaign: str, annotator: str) -> str | None:
    """How many texts have a question without an answer, why, and what to do; None for none."""
    failed = store.unanswered(campaign, annotator)
    if not failed:
        return None
    texts = len({row.item_id for row in failed})
    (reason, _), *_ = Counter(row.reason for row in failed).most_common(1)
    return (
        f"{len(failed)} LLM answers to {texts} texts are missing (most often:"
        f" {reason.rstrip('.')}). They are asked for again in the next round, or now with"
        " `goldloop annotate --retry`."
    )


def _ask_where_worth_it(
    config: Config,
    store: Store,
    clerk: _Clerk,
    items: Sequence[Item],
    variants: Sequence[PromptVariant],
    limit: int,
) -> None:
    """Further variants, wave by wave, where a flip is likeliest, until the limit."""
    from loop.cascade import next_calls

    rng = np.random.default_rng([config.rounds.seed, 9])
    column = {variant.hash: i for i, variant in enumerate(variants)}
    row = {item.id: i for i, item in enumerate(items)}
    refused = np.zeros((len(items), len(variants)), dtype=np.bool_)
    content_free = content_free_probs(config, store, clerk.revision)
    while True:
        probs, _ = vote_arrays(config, store, clerk.revision, row, column)
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
            refused[[row[item] for item in vain], v] = True


class _Clerk:
    """Takes votes chunk by chunk and stores them; knows which are there already."""

    def __init__(
        self, config: Config, store: Store, annotator: Annotator, progress: Progress
    ) -> None:
        self.config, self.store, self.annotator, self.progress = config, store, annotator, progress
        self.name = config.campaign.name
        self.revision = annotator.revision
        self.have = store.vote_keys(self.name, self.revision)
        self.unanswered = 0
        self.purse = _Purse(config, store, self.revision)

    def ask(
        self, variant: PromptVariant, items: Sequence[Item], *, all_may_fail: bool = False
    ) -> list[str]:
        """Asks one variant where its vote is missing; the ids of items that got no answer.

        Raises:
            AnnotatorError: not one item of a whole chunk got an answer, or the money is spent.
        """
        prompt = variant.hash
        missing = [item for item in items if (item.id, prompt) not in self.have]
        self.progress(len(items) - len(missing))
        answered_before = all_may_fail or len(missing) < len(items)
        in_vain: list[str] = []
        own = without_item(variant, self.name)
        shown = [item for item in missing if item.id in own]
        todo = [item for item in missing if item.id not in own]
        while todo or shown:
            asked = variant if todo else own[shown[0].id]
            wanted = todo[:CHUNK] or shown[:1]
            chunk = wanted[: self.purse.affordable(asked, wanted)]
            failed = self._ask_chunk(asked, variant.hash, chunk, must=not answered_before)
            answered_before = True
            in_vain += failed
            todo, shown = todo[len(chunk) :], shown if todo else shown[len(chunk) :]
        self.unanswered += len(in_vain)
        return in_vain

    def ask_content_free(self, variants: Sequence[PromptVariant]) -> None:
        """Asks each variant about texts without content, once.

        Raises:
            AnnotatorError: one of them gets no answer, or the money is spent.
        """
        stored = self.store.content_free(self.name, self.revision)
        texts = [TextItem(f"content-free {i}", text) for i, text in enumerate(CONTENT_FREE)]
        for variant in variants:
            if variant.hash in stored:
                continue
            if self.purse.affordable(variant, texts) < len(texts):
                raise self.purse.spent_error()
            answer, seconds = self._timed(variant, texts)
            usd = _usd(self.config, answer)
            good = [_usable(probs) for probs in answer.probs]
            if not all(good):
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
                    "usd": float(cost),
                    "seconds": seconds,
                    "created_at": now(),
                }
                for text, probs, tokens, cost in zip(
                    CONTENT_FREE, answer.probs, answer.tokens, usd, strict=True
                )
            ]
            with self.store.transaction() as session:
                insert_all(session, ContentFree, rows)
            self.purse.pay(usd)

    def _ask_chunk(
        self, asked: PromptVariant, variant_hash: str, chunk: Sequence[Item], *, must: bool
    ) -> list[str]:
        """Asks and stores; the ids of items that got no answer.

        Args:
            asked: the variant as it is asked.
            variant_hash: of the variant that the votes count for.
            must: raise if not one item is answered.
        """
        answer, seconds = self._timed(asked, [text_item(item) for item in chunk])
        usd = _usd(self.config, answer)
        votes: list[dict[str, Any]] = []
        failures: list[dict[str, Any]] = []
        for i, item in enumerate(chunk):
            row = {
                "item_id": item.id,
                "variant_hash": variant_hash,
                "annotator": self.revision,
                "tokens": int(answer.tokens[i]),
                "usd": float(usd[i]),
                "seconds": seconds,
                "created_at": now(),
            }
            if _usable(answer.probs[i]):
                probs = [float(p) for p in answer.probs[i]]
                votes.append(
                    row | {"probs": probs, "off_label_mass": float(answer.off_label_mass[i])}
                )
            else:
                reason = answer.problems.get(item.id, "it gave no usable probabilities")
                failures.append(row | {"reason": reason})
        if must and not votes:
            raise AnnotatorError(
                f"The annotator {self.revision} gave no usable answer to any of {len(chunk)}"
                " items; look at its model, columns and label names, then run the command"
                " again."
            )
        with self.store.transaction() as session:
            insert_all(session, Vote, votes)
            insert_all(session, Unanswered, failures)
        self.purse.pay(usd)
        self.have |= {(row["item_id"], variant_hash) for row in votes}
        self.progress(len(chunk))
        return [row["item_id"] for row in failures]

    def _timed(self, variant: PromptVariant, items: Sequence[TextItem]) -> tuple[ClassProbs, float]:
        """The answer, checked for its shape, and the seconds that each item took."""
        started = time.perf_counter()
        answer = self.annotator.annotate(variant, items)
        seconds = (time.perf_counter() - started) / len(items)
        n, k = len(items), len(variant.labels)
        if answer.probs.shape != (n, k):
            raise AnnotatorError(
                f"The annotator {self.revision} answered with shape {answer.probs.shape}"
                f" to {n} items and {k} labels; it must be ({n}, {k})."
            )
        return answer, seconds


class _Purse:
    """What of ``budget.usd`` may still be spent on answers.

    An answer is expected to cost no more than the dearest so far, so the cap is not passed unless
    one costs more than every other before it.
    """

    def __init__(self, config: Config, store: Store, annotator: str) -> None:
        self.config = config
        self.cap = config.budget.usd
        self.spent = money_spent(config, store) if self.cap is not None else 0.0
        self.dearest = store.vote_costs(config.campaign.name, annotator).dearest_usd

    def affordable(self, variant: PromptVariant, items: Sequence[Any]) -> int:
        """How many of the items may be asked now, one at least.

        Raises:
            AnnotatorError: the money is spent.
        """
        if self.cap is None:
            return len(items)
        dearest = self.dearest
        if dearest is None:
            longest = len(variant.prefix) + max(len(variant.suffix(item.text)) for item in items)
            price = self.config.annotator.usd_per_million_tokens / 1e6
            dearest = longest / FIRST_CHARS_PER_TOKEN * price
        left = self.cap - self.spent + 1e-9  # sums of prices are not exact
        if left <= 1e-8 or dearest > left:
            raise self.spent_error(dearest)
        return len(items) if dearest == 0 else min(len(items), int(left / dearest))

    def pay(self, usd: FloatArray) -> None:
        """Books what was answered."""
        self.spent += float(usd.sum())
        self.dearest = max(self.dearest or 0.0, float(usd.max(initial=0.0)))

    def spent_error(self, dearest: float | None = None) -> AnnotatorError:
        """Says that the money is spent."""
        next_one = f", and the next answer may cost ${dearest:.2g}" if dearest else ""
        return AnnotatorError(
            f"The money is spent: ${self.spent:.2f} of budget.usd = {self.cap:.2f}{next_one};"
            " raise it to go on. Every vote so far is kept."
        )


def money_spent(config: Config, store: Store) -> float:
    """US dollars spent on the LLM and on people."""
    name = config.campaign.name
    people = len(store.annotations(name)) * config.budget.usd_per_label
    return store.spent(name).usd + people


def _usd(config: Config, answer: ClassProbs) -> FloatArray:
    """(n,) US dollars for each item, at the campaign file's prices."""
    section = config.annotator
    fresh, cached, written = token_prices(section)
    none = np.zeros(len(answer.tokens), dtype=np.int64)
    output = none if answer.output_tokens is None else answer.output_tokens
    hits = none if answer.cached_tokens is None else answer.cached_tokens
    usd = (answer.tokens - output) * fresh + hits * cached + output * written
    return np.asarray(usd, dtype=np.float64)


def token_prices(section: Any) -> tuple[float, float, float]:
    """US dollars for one prompt token, for one out of a server's cache, for a written one."""
    fresh = section.usd_per_million_tokens
    cached, written = section.usd_per_million_cached_tokens, section.usd_per_million_output_tokens
    return (
        fresh / 1e6,
        (fresh if cached is None else cached) / 1e6,
        (fresh if written is None else written) / 1e6,
    )


def _usable(probs: FloatArray) -> bool:
    return bool(np.isfinite(probs).all()) and abs(float(probs.sum()) - 1.0) < 1e-3
