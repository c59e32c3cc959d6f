from __future__ import annotations

import hashlib
import subprocess
import sys

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
