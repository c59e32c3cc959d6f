"""The labelling page is well-formed and says exactly what the campaign says."""

from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.label_studio.page import (
    _STYLE,
    FILTER_FROM,
    GRID_FROM,
    UNSURE,
    choice_result,
    instructions,
    instructions_version,
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


class Look(HTMLParser):
    """Text by tag of the HTML of one label; anything but the four tags of a label fails."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts = [], {}
        self.feed(html)
        self.close()
        assert self.tags == []

    def handle_starttag(self, tag, attrs):
        assert tag in ("span", "kbd", "b", "i")
        assert attrs == ([("class", "gl-choice"), ("dir", "auto")] if tag == "span" else [])
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.tags.pop() == tag

    def handle_data(self, data):
        self.texts[self.tags[-1]] = self.texts.get(self.tags[-1], "") + data


def looks(xml):
    """What stands in each label's row: tag -> text, without what keeps ``$`` from being one."""
    rows = [Look(c.attrib["html"]) for c in ElementTree.fromstring(xml).iter("Choice")]  # noqa: S314
    return [{k: t.replace("\u2060", "") for k, t in row.texts.items()} for row in rows]


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
    for name, row in zip(names, looks(xml), strict=False):
        assert row["b"] == shown_name(name).replace("\u2060", "")
        assert row.get("i", "") == sendable(name.strip()).replace("\u2060", "")
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
    assert variables == ["$place", "$why", "$text"]
    assert "$why" not in page(labels, task="")


def test_every_label_has_its_key_in_a_box_as_far_as_there_are_keys():
    for n in (3, 20, 30, 200):
        root = ElementTree.fromstring(page([Label(str(k)) for k in range(n)], task=""))  # noqa: S314
        keys = [choice.get("hotkey") for choice in root.iter("Choice")]
        given = [key for key in keys if key]
        assert len(set(given)) == len(given) == min(n, 33) + 1
        assert keys[: min(n, 9)] == list("123456789"[:n])
        assert keys[-1] == "0"
        boxes = [row.get("kbd") for row in looks(page([Label(str(k)) for k in range(n)], task=""))]
        assert boxes == keys
        assert (root.find(".//Filter") is not None) == (n > FILTER_FROM)
        views = [view.get("className") for view in root.iter("View")]
        assert ("gl-labels gl-grid" in views) == (n > GRID_FROM)


def test_meanings_stand_beside_their_labels_and_examples_are_folded():
    bare = page([Label("a"), Label("b")], task="", note=False)
    assert "TextArea" not in bare
    assert "Collapse" not in bare
    labels = [Label("a", " first "), Label("b")]
    full = page(labels, task="")
    assert "TextArea" in full
    assert looks(full)[0] == {"kbd": "1", "b": "a", "i": "first"}
    assert "Collapse" not in full  # all of it is in sight
    shown = page(labels, task="", examples={"a": ["one <b>text</b> for $5"]})
    panel = ElementTree.fromstring(shown).find(".//Panel")  # noqa: S314
    told = [header.attrib["value"] for header in panel.iter("Header")]
    assert told == ["a", "first", "Example: one <b>text</b> for $\u20605"]
    long = page([Label("a", "m" * 500), Label("b")], task="")
    assert "gl-grid" in long
    assert long.count("m" * 500) == 3  # in the grid, where it points at it, and in the panel
    many = page([Label(str(n), f"means {n}") for n in range(9)], task="")
    assert 'value="means 8"' in many


def test_the_style_fetches_nothing_and_stays_in_its_element():
    assert not set(_STYLE) & set("<>&\\")
    assert "url(" not in _STYLE
    assert "@import" not in _STYLE


def test_instructions_are_text_and_know_their_version():
    labels = [Label("<i>a</i>", "<script>x</script> & $y"), Label("b")]
    told = instructions(labels, task="Which <one>?", examples={"b": ["<img src=x>"]})
    assert "<p>Which &lt;one&gt;?</p>" in told
    assert "<b>&lt;i&gt;a&lt;/i&gt;</b>: &lt;script&gt;x&lt;/script&gt; &amp; $y" in told
    assert "Example: &lt;img src=x&gt;" in told
    version = instructions_version(told)
    assert version is not None
    assert instructions_version(told.replace("&amp;", "and")) == version  # spelt by the server
    assert instructions_version(instructions(labels, task="Which?")) not in (None, version)
    assert instructions_version("<p>Our own rules.</p>") is None


def test_unsendable_characters_are_replaced():
    assert sendable("a\x00b\ud800c\ufffe") == "a\ufffdb\ufffdc\ufffd"
    assert sendable("a\tb\nc 😀") == "a\tb\nc 😀"
