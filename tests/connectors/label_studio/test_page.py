"""The labelling page is well-formed and says exactly what the campaign says."""

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.label_studio.page import (
    FILTER_FROM,
    UNSURE,
    choice_result,
    page,
    sendable,
    shown_name,
    shown_names,
)
from loop.errors import ReviewerError
from loop.prompt import Label

HOSTILE = [
    'a,"b" <c> & d\'',
    "😀 joy",
    "עברית",
    "$price",
    "costs $5",
    "x|y; z",
    " padded ",
    "back\\slash",
    "two\nlines\tand tab",
    "]]>",
    "<script>alert(1)</script>",
    "&amp;",
]


def choices(xml):
    return [c.attrib["value"] for c in ElementTree.fromstring(xml).iter("Choice")]  # noqa: S314


def test_hostile_labels_come_back_as_they_were():
    labels = [Label(name, f"means {name}") for name in HOSTILE]
    shown = choices(page(labels, task='What <is> "this" & $that?'))
    assert [shown_names(labels)[name] for name in shown[:-1]] == HOSTILE
    assert shown[-1] == UNSURE


def test_plain_labels_are_shown_unchanged():
    for name in ("positive", 'a,"b" <c>', "😀", "a  b"):
        assert shown_name(name) == name


@given(st.lists(st.text(st.characters(exclude_categories=())), min_size=2, unique_by=shown_name))
def test_any_labels_survive_the_page(names):
    labels = [Label(name, name) for name in names]
    xml = page(labels, task=names[0], why=True)
    shown = choices(xml)[:-1]
    assert [shown_names(labels)[name] for name in shown] == names
    for name in names:
        assert choice_result(name)[0]["value"]["choices"][0] in shown


def test_labels_that_look_the_same_are_refused():
    with pytest.raises(ReviewerError, match="look the same"):
        page([Label("a"), Label(" a ")], task="")
    with pytest.raises(ReviewerError, match="Unsure"):
        page([Label(UNSURE), Label("b")], task="")


def test_nothing_but_text_and_why_is_a_variable():
    labels = [Label("$x", "$y"), Label("b", "${z}")]
    xml = page(labels, task="$task", why=True)
    values = [v for e in ElementTree.fromstring(xml).iter() for v in e.attrib.values()]  # noqa: S314
    variables = [v for v in values if "$" in v and not v.split("$", 1)[1].startswith("\u2060")]
    assert variables == ["$why", "$text"]
    assert "$why" not in page(labels, task="")


def test_hotkeys_differ_and_many_labels_get_a_search_box():
    few = ElementTree.fromstring(page([Label(str(k)) for k in range(20)], task=""))  # noqa: S314
    keys = [choice.attrib["hotkey"] for choice in few.iter("Choice")]
    assert len(set(keys)) == len(keys) == 21
    assert few.find(".//Filter") is None
    many = ElementTree.fromstring(  # noqa: S314
        page([Label(str(k)) for k in range(FILTER_FROM + 1)], task="")
    )
    assert many.find(".//Filter") is not None


def test_note_and_descriptions_are_optional():
    bare = page([Label("a"), Label("b")], task="", note=False)
    assert "TextArea" not in bare
    assert "Collapse" not in bare
    full = page([Label("a", "first"), Label("b")], task="")
    assert "TextArea" in full
    assert "a: first" in full
    assert "Collapse" not in full  # a few descriptions are read at a glance
    many = page([Label(str(n), f"means {n}") for n in range(9)], task="")
    assert "Collapse" in many
    assert "8: means 8" in many


def test_unsendable_characters_are_replaced():
    assert sendable("a\x00b\ud800c\ufffe") == "a\ufffdb\ufffdc\ufffd"
    assert sendable("a\tb\nc 😀") == "a\tb\nc 😀"
