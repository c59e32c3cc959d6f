from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.ports import item_id, normalise

any_text = st.text(st.characters(exclude_categories=()))


def test_white_space_is_collapsed_and_stripped() -> None:
    assert normalise("  a\t\tb\r\nc\u00a0d ") == "a b c d"


def test_composed_and_decomposed_letters_are_the_same_text() -> None:
    assert normalise("cafe\u0301") == normalise("caf\u00e9")


def test_case_and_markup_count() -> None:
    assert normalise("A <b>") != normalise("a <b>")
    assert normalise("a &amp; b") != normalise("a & b")


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a\u200bb", "ab"),
        ("co\u00adop", "coop"),
        ("e\u200b\u0301", "\u00e9"),
        ("ab\u200dc", "abc"),
        ("\x01a\x07\n b\x00", "a b"),
        ("\ufeffa\u2060 b", "a b"),
        ("a\ufe0f", "a"),
        ("\u202ea\u202c", "a"),
        ("hi\U000e0067\U000e0062", "hi"),
        ("\u200d", ""),
        ("\u3164 \u2800", ""),
        ("\ufe0f", ""),
        ("\u200b\u00ad\t", ""),
        ("\U000e0067", ""),
        ("\u200c\u200d", ""),
    ],
)
def test_what_nobody_sees_does_not_tell_texts_apart(text: str, seen: str) -> None:
    assert normalise(text) == seen


@pytest.mark.parametrize(
    "text",
    [
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # Persian: another word without it
        "\u0915\u094d\u200d\u0937",  # Hindi: another sign without it
        "\U0001f469\u200d\U0001f4bb",  # one emoji of two
        "\U0001f3f4\U000e0067\U000e0062\U000e007f",  # a flag
        "a\u3164b",
    ],
)
def test_unseen_characters_that_mean_something_count(text: str) -> None:
    assert normalise(text) == text


def test_id_is_the_documented_hash() -> None:
    expected = hashlib.sha256(b"tweets\0hello world").hexdigest()[:20]
    assert item_id("tweets", " hello  world\n") == expected


def test_campaign_and_text_do_not_run_together() -> None:
    assert item_id("a", "b c") != item_id("ab", " c")
    assert item_id("a", "text") != item_id("b", "text")


@given(any_text)
def test_normalise_is_idempotent_and_the_id_follows_it(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert item_id("c", text) == item_id("c", once)
    assert len(item_id("c", text)) == 20


def test_import_is_light() -> None:
    code = "import sys, loop.ports; print(sorted({'torch', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
