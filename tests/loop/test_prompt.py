from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.prompt import Demonstration, Label, PromptTemplate, PromptVariant

LABELS = (Label("bad", "worse than good"), Label("so so"), Label("good", "better"))
SHOWN = (Demonstration("nice", "good"), Demonstration("meh", "so so"))


def variant(**how) -> PromptVariant:
    return PromptVariant(2, " Feeling? ", LABELS, SHOWN, **how)


def test_names():
    asked = variant()
    assert asked.prefix + asked.suffix("it is") == (
        "Feeling?\nLabels: bad, so so, good.\nbad: worse than good\ngood: better\n\n"
        "Text: nice\nLabel: good\n\nText: meh\nLabel: so so\n\nText: it is\nLabel:"
    )
    assert asked.continuations == (" bad", " so so", " good")


def test_ids_in_another_order():
    asked = variant(label_form="ids", order=(2, 0, 1))
    assert asked.prefix + asked.suffix("it is") == (
        "Feeling?\n0: good — better\n1: bad — worse than good\n2: so so\n\n"
        "Text: nice\nLabel: 0\n\nText: meh\nLabel: 2\n\nText: it is\nLabel: "
    )
    assert asked.continuations == asked.answers == ("1", "2", "0")


def test_stored_hashes_stay():
    """Votes are found by this hash: another one would ask every question again."""
    assert variant().hash == "64f92d888a8cbd72"


def test_every_change_that_the_llm_sees_changes_the_hash():
    plain = PromptTemplate("{task}", "{text} ->")
    variants = [
        variant(),
        variant(order=(1, 0, 2)),
        variant(label_form="ids"),
        variant(label_form="ids", order=(1, 0, 2)),
        variant(template=plain),
        variant(label_form="ids", template=plain),
        variant(label_form="ids", template=plain, order=(1, 0, 2)),
        PromptVariant(3, "Feeling?", LABELS, SHOWN),
    ]
    assert len({v.hash for v in variants}) == len(variants)
    assert variant(order=(0, 1, 2)).hash == variant().hash


@given(st.text())
def test_braces_in_texts_stay(text):
    asked = PromptVariant(0, "{labels} {text}", LABELS, (Demonstration("{task}", "bad"),))
    assert asked.suffix(text) == f"Text: {text}\nLabel:"
    assert asked.prefix.startswith("{labels} {text}\nLabels: bad")
    assert "Text: {task}\nLabel: bad" in asked.prefix


def test_wrong_templates_and_orders_are_refused():
    with pytest.raises(ValueError, match="once"):
        PromptTemplate(item="no text")
    for order in ((0, 1), (0, 1, 1), (1, 2, 3)):
        with pytest.raises(ValueError, match="order"):
            variant(order=order)
