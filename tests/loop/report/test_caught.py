"""Caught errors: what people overruled alone, varied, with the signal that saw each."""

from types import SimpleNamespace

import numpy as np
import pytest

from loop.report.caught import FROM_RANDOM, MAX_CHARS, SHOWN, caught_errors

CONFIG = SimpleNamespace(campaign=SimpleNamespace(name="c"))


def signals_of(scores):
    """Signal -> its values, of those that have it."""
    names = {name for score in scores for name in score.signals}
    return {n: np.array([s.signals[n] for s in scores if n in s.signals]) for n in names}


def campaign(rounds):
    """A store of rounds, each a list of (reason, LLM label, gold, signals) by rank."""
    reviews, scores, gold, texts = {}, {}, {}, {}
    for number, sent in enumerate(rounds, start=1):
        scores[number] = {}
        reviews[number] = []
        for rank, (reason, llm, label, signals) in enumerate(sent):
            item = f"{number}-{rank}"
            texts[item] = f"text {item} " + "x" * 400 * (rank == 0)
            scores[number][item] = SimpleNamespace(llm_label=llm, signals=signals)
            reviews[number].append(SimpleNamespace(item_id=item, reason=reason))
            if label is not None:
                gold[item] = SimpleNamespace(label=label, how="single")
    store = SimpleNamespace(
        gold=lambda _: gold,
        reviews=lambda _, number: reviews[number],
        scores=lambda number, ids: {item: scores[number][item] for item in ids},
        all_scores=lambda number: SimpleNamespace(signals=signals_of(scores[number].values())),
        texts=lambda ids: {item: texts[item] for item in ids},
    )
    return store, [SimpleNamespace(id=n, number=n) for n in scores]


def test_only_overruled_labels_are_shown_with_the_signal_that_ranked_them_highest():
    store, rounds = campaign(
        [
            [
                ("suspect", "a", "b", {"margin": 0.9, "votes": 0.2}),
                ("suspect", "a", "a", {"margin": 0.8, "votes": 0.1}),  # the LLM was right
                ("suspect", None, "a", {"margin": 0.7, "votes": 0.3}),  # it said nothing
                ("suspect", "a", None, {"margin": 0.6, "votes": 0.4}),  # people gave no label
                ("audit", "b", "a", {"margin": 0.1, "votes": 0.9}),
            ]
        ]
    )
    suspect, found_by_chance = caught_errors(CONFIG, store, rounds)
    assert (suspect.llm_label, suspect.gold, suspect.reason) == ("a", "b", "suspect")
    assert (suspect.signal, suspect.ahead_of) == ("margin", pytest.approx(0.8))
    assert len(suspect.text) == MAX_CHARS
    assert suspect.text.endswith("…")
    assert (found_by_chance.signal, found_by_chance.reason) == ("votes", "audit")


def test_there_are_few_of_them_and_of_different_kinds():
    alike = [("suspect", "a", "b", {"m": 1 - i / 100}) for i in range(30)]
    other = [("suspect", "b", "c", {"m": 0.1})]
    random = [("audit", "a", "c", {"m": 0.2})] * 10
    store, rounds = campaign([[("suspect", "a", "b", {"m": 0.5})], alike + other + random])
    shown = caught_errors(CONFIG, store, rounds)
    assert len(shown) == SHOWN
    assert {error.round for error in shown} == {2}  # the newest round
    assert sum(error.reason == "audit" for error in shown) == FROM_RANDOM
    assert ("b", "c") in {(error.llm_label, error.gold) for error in shown}
    store, rounds = campaign([alike[:3], random])
    assert [error.round for error in caught_errors(CONFIG, store, rounds)] == [2] * 10 + [1] * 2


def test_without_scores_or_gold_there_is_nothing():
    assert caught_errors(CONFIG, *campaign([])) == ()
    assert caught_errors(CONFIG, *campaign([[("suspect", "a", None, {})]])) == ()
    store, rounds = campaign([[("audit", "a", "b", {})]])  # a validation round has no signals
    assert caught_errors(CONFIG, store, rounds)[0].signal == ""
