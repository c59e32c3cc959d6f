"""What asking the LLM will cost, told before anything is spent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from loop.campaign.config import Config
from loop.campaign.store import Store
from loop.llm.ask import calls_limit
from loop.llm.prompts import plan_variants
from loop.money import MOST_TIMES, TokenPrices, account
from loop.ports import IntArray
from loop.prompt import CHAT_FRAME_TOKENS, PromptVariant, one_line

CHARS_PER_TOKEN = 4  # the rule of thumb where the tokenizer is not at hand
BY_TOKEN = ("openai_server", "vllm")  # annotators that may ask for the tokens of the labels


@dataclass(frozen=True)
class Plan:
    """Calls, tokens, time and money that are still to be spent.

    Attributes:
        texts: in the pool.
        variants: prompts.
        stored: answers that are there already and cost nothing more.
        calls: answers to be asked for, at most.
        branches: prompts that one answer takes where an LLM is asked for the tokens of the labels:
            one, or where labels have several words, one for each branch of what they begin with.
        tokens: computed where each prompt's shared beginning is computed once.
        tokens_uncached: where it is computed for every text.
        usd: price of ``tokens``.
        usd_uncached: price of ``tokens_uncached``.
        seconds: at the pace of the stored answers, or None before there are any.
        spent_calls: votes that the campaign has paid for, of every annotator; likewise
            ``spent_tokens``, ``spent_seconds`` and ``spent_usd``.
        counted: how tokens were counted.
        refresh: ``prompt.refresh``, by which later rounds may ask as many again; 'never' where
            there is only one round.
        cap_usd: what the campaign may still spend, or None without a cap.
        most_usd: about the most that one answer may cost, which is set aside until it is there.
    """

    texts: int
    variants: int
    stored: int
    calls: int
    branches: int
    tokens: int
    tokens_uncached: int
    usd: float
    usd_uncached: float
    seconds: float | None
    spent_calls: int
    spent_tokens: int
    spent_seconds: float
    spent_usd: float
    counted: str
    refresh: str
    cap_usd: float | None
    most_usd: float


def four_chars_a_token(texts: Sequence[str]) -> IntArray:
    """Tokens by the rule of thumb, at least one a text."""
    return np.array([max(1, -(-len(text) // CHARS_PER_TOKEN)) for text in texts], dtype=np.int64)


def plan_annotation(
    config: Config,
    store: Store,
    annotator: str,
    *,
    count: Callable[[Sequence[str]], IntArray] | None = None,
) -> Plan:
    """Plans the calls that are missing; asks and stores nothing.

    Args:
        config: the campaign.
        store: with the campaign's texts.
        annotator: revision of the LLM.
        count: counts tokens, or None for ``CHARS_PER_TOKEN``.

    Raises:
        ConfigError: shots are asked for and no example with a label is at hand.
    """
    name = config.campaign.name
    items = store.stored_texts(name, "pool")
    variants = _coming_variants(config, store, annotator)
    rows, hashes = np.array([i.row for i in items]), {v.hash for v in variants}
    stored = sum(
        int(there[rows[rows < len(there)]].sum())
        for variant, there in store.voted(name, annotator).items()
        if variant in hashes
    )
    limit = calls_limit(config, len(items), len(variants))
    calls = max(0, (len(items) * len(variants) if limit is None else limit) - stored)
    counts = count or four_chars_a_token
    kind = config.annotator.kind
    branches = max(_branches(v.answers) for v in variants) if kind in BY_TOKEN else 1
    prefixes = texts_tokens = 0.0
    if calls and kind != "recorded":
        limit_tokens = config.annotator.max_text_tokens
        texts = np.minimum(counts([i.text for i in items]), limit_tokens)
        frame = counts([v.suffix("") for v in variants]).mean()
        texts_tokens = calls * float(texts.mean() + frame)
        prefixes = float(counts([v.prefix for v in variants]).sum())
    fresh, cached_price, written = TokenPrices.of(config.annotator)
    computed = prefixes + texts_tokens
    whole = calls * prefixes / max(1, len(variants)) + texts_tokens
    uncached = max(computed, branches * whole)
    # Only servers charge for what they had in a cache, and for what they write: one token, or as
    # many labels as they are asked for where they tell no log-probabilities.
    serves = kind == "openai_server"
    votes_asked = config.annotator.votes_when_no_logprobs
    label = int(counts([answer for v in variants for answer in v.answers]).max())
    written_usd = calls * max(branches, votes_asked * label) * written if serves else 0.0
    hits_usd = (uncached - computed) * cached_price if serves else 0.0
    usd_uncached = uncached * fresh + written_usd
    frame = CHAT_FRAME_TOKENS * config.annotator.chat * branches * max(fresh, cached_price)
    most_usd = MOST_TIMES * (CHARS_PER_TOKEN * usd_uncached / calls + frame) if calls else 0.0
    times = store.vote_times(name, annotator)
    votes = store.spent(name)
    return Plan(
        texts=len(items),
        variants=len(variants),
        stored=stored,
        calls=calls,
        branches=branches,
        tokens=round(computed),
        tokens_uncached=round(uncached),
        usd=computed * fresh + hits_usd + written_usd,
        usd_uncached=usd_uncached,
        seconds=calls * times.seconds / times.timed if times.timed else None,
        spent_calls=votes.votes,
        spent_tokens=votes.tokens,
        spent_seconds=votes.seconds,
        spent_usd=votes.usd,
        counted="by the model's tokenizer" if count else f"as {CHARS_PER_TOKEN} characters each",
        refresh=config.prompt.refresh if config.rounds.rounds > 1 else "never",
        cap_usd=account(config, store).left_usd,
        most_usd=most_usd if serves else 0.0,
    )


def _branches(answers: Sequence[str]) -> int:
    """Nodes of the labels' trie, if each word is one token."""
    labels = [tuple(answer.split()) for answer in answers]
    if max(map(len, labels)) == 1:
        return 1
    return 1 + len({label[:i] for label in labels for i in range(1, len(label) + 1)})


def prompt_lines(config: Config, store: Store, annotator: str) -> list[str]:
    """Every prompt as the LLM will see it, about the first text of the pool.

    Raises:
        ConfigError: as ``plan_annotation``.
    """
    first = store.keys(config.campaign.name, "pool")[0]
    (text,) = store.texts([first.id]).values()
    return [
        line
        for variant in _coming_variants(config, store, annotator)
        for line in (
            f"--- prompt {variant.index + 1}, {variant.hash}",
            variant.tidied().prefix + variant.suffix(one_line(text)),
            f"--- and then one of: {', '.join(map(one_line, variant.answers))}",
        )
    ]


def _coming_variants(config: Config, store: Store, annotator: str) -> list[PromptVariant]:
    """What the unfinished round asks, or the next one."""
    last = store.last_round(config.campaign.name)
    coming = 1 if last is None else last.number + (last.stage == "done")
    return plan_variants(config, store, annotator, round_number=coming)


def plan_lines(plan: Plan) -> list[str]:
    """The plan for people to read."""
    per_text = (plan.stored + plan.calls) / max(1, plan.texts)
    saved = 1.0 - plan.tokens / plan.tokens_uncached if plan.tokens_uncached else 0.0
    time = "not known before the first answers"
    if plan.seconds is not None:
        time = f"about {plan.seconds / 60:,.1f} minutes, at the pace so far"
    money = f"${plan.usd:,.2f} (${plan.usd_uncached:,.2f} without the cache)"
    if plan.usd_uncached == 0:
        money = "none (annotator.usd_per_million_tokens is 0)"
        if not plan.calls:
            money = "none, because nothing is left to ask"
    calls = f"at most {plan.calls:,}" if plan.refresh == "better" else f"{plan.calls:,}"
    lines = [
        f"Texts:   {plan.texts:,}, {plan.variants} prompts, at most {per_text:.2f} calls a text",
        f"Calls:   {calls} to make, {plan.stored:,} answers are stored",
        f"Tokens:  about {plan.tokens:,}, counted {plan.counted}",
        f"Cache:   saves {100 * saved:.0f} % of {plan.tokens_uncached:,} tokens, if the server"
        " caches the beginnings of prompts",
        f"Time:    {time}",
        f"Money:   {money}",
    ]
    if plan.branches > 1:
        lines.append(
            "Labels:  some have several words; the money is for vLLM and llama.cpp, which read"
            f" {plan.branches} prompts for each answer, all but the first mostly out of the cache;"
            " servers that only list their likeliest tokens read one"
        )
    if plan.refresh == "round":
        lines.append('Rounds:  each later round asks every text again (prompt.refresh = "round")')
    if plan.refresh == "better":
        lines.append(
            "Rounds:  each later round tries other examples where people labelled, and asks every"
            ' text again if they are better (prompt.refresh = "better")'
        )
    if plan.spent_calls:
        lines.append(
            f"Spent:   {plan.spent_calls:,} calls, {plan.spent_tokens:,} tokens,"
            f" {plan.spent_seconds / 60:,.1f} minutes, ${plan.spent_usd:,.2f}"
        )
    if plan.cap_usd is not None:
        fits = "enough"
        if plan.usd_uncached > plan.cap_usd:
            fits = "it may stop before the end"
        elif plan.usd_uncached + plan.most_usd > plan.cap_usd:
            fits = (
                "it may stop before the end, because until an answer is there the most that it may"
                f" cost is set aside, about ${plan.most_usd:,.2g}"
            )
        lines.append(f"Limit:   ${plan.cap_usd:,.2f} are left of budget.usd: {fits}")
    return lines
