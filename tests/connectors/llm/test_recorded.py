from __future__ import annotations

import json
import math
import unicodedata
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.llm.label_spelling import label_in
from connectors.llm.recorded import RecordedAnnotator
from loop.errors import AnnotatorError
from loop.ports import TextItem
from loop.prompt import Label, PromptVariant

LABELS = (Label("negative"), Label("positive"))


def variant(index: int = 0) -> PromptVariant:
    return PromptVariant(index, "Sentiment?", LABELS, ())


def items(*values: Any, column: str = "llm") -> list[TextItem]:
    return [TextItem(str(i), f"text {i}", {column: value}) for i, value in enumerate(values)]


def test_names_become_one_hot_rows_and_all_else_no_answer() -> None:
    answer = RecordedAnnotator(["llm"], LABELS).annotate(
        variant(), items("positive", " negative ", "other", None, float("nan"), "good", 3, [])
    )
    assert answer.probs[:2].tolist() == [[0, 1], [1, 0]]
    assert np.isnan(answer.probs[2:]).all()
    assert answer.off_label_mass[:2].tolist() == [0, 0]
    assert answer.tokens.tolist() == [0] * 8


def test_each_variant_has_its_column() -> None:
    both = [TextItem("a", "a", {"one": "negative", "two": "positive"})]
    annotator = RecordedAnnotator(["one", "two"], LABELS)
    assert annotator.annotate(variant(0), both).probs.tolist() == [[1, 0]]
    assert annotator.annotate(variant(1), both).probs.tolist() == [[0, 1]]
    with pytest.raises(AnnotatorError, match="variant 2 has no column"):
        annotator.annotate(variant(2), both)


@pytest.mark.parametrize("wrap", [dict, json.dumps])
@pytest.mark.parametrize(
    ("mapping", "expected", "off"),
    [
        ({"positive": 0.9, "negative": 0.1}, [0.1, 0.9], 0.0),
        ({"positive": 0.6, "negative": 0.2}, [0.25, 0.75], 0.2),
        ({"positive": 0.6, "negative": 0.2, "other": 0.2}, [0.25, 0.75], 0.2),
        ({"positive": 3, "negative": 1, "unsure": 1}, [0.25, 0.75], 0.2),
        ({"positive": 1.0, "negative": None}, [0.0, 1.0], 0.0),
    ],
)
def test_mappings_become_probabilities(
    wrap: Any, mapping: dict[str, Any], expected: list[float], off: float
) -> None:
    answer = RecordedAnnotator(["llm"], LABELS).annotate(variant(), items(wrap(mapping)))
    np.testing.assert_allclose(answer.probs, [expected])
    np.testing.assert_allclose(answer.off_label_mass, [off], atol=1e-12)


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"other": 1.0},
        {"positive": -1.0},
        {"positive": "high"},
        {"positive": float("inf")},
        '{"positive": ',
        "[1, 2]",
        {"positive": 0.0, "negative": 0.0},
    ],
)
def test_broken_mappings_are_no_answer(broken: Any) -> None:
    answer = RecordedAnnotator(["llm"], LABELS).annotate(variant(), items(broken))
    assert np.isnan(answer.probs).all()
    assert np.isnan(answer.off_label_mass).all()


def test_numbers_and_booleans_match_label_names() -> None:
    digits = RecordedAnnotator(["llm"], (Label("0"), Label("1")))
    asked = PromptVariant(0, "t", (Label("0"), Label("1")), ())
    assert digits.annotate(asked, items(0, 1.0, np.int64(1))).probs.argmax(1).tolist() == [0, 1, 1]
    truth = RecordedAnnotator(["llm"], (Label("false"), Label("true")))
    asked = PromptVariant(0, "t", (Label("false"), Label("true")), ())
    assert truth.annotate(asked, items(True, False)).probs.argmax(1).tolist() == [1, 0]


def test_a_number_is_one_label_in_every_spelling() -> None:
    for names, values in {
        ("0", "1"): ["1.0", 1, 1.0, "1", True, "True", "true", "1.00", " 1 ", "+1"],
        ("0.0", "1.0"): ["1", 1, 1.0, True, "1.0", "TRUE"],
        ("False", "True"): ["true", "TRUE", 1, "1.0", True],
        ("-1", "1"): ["1.0", 1],
        ("2", "2.5"): [2.5, "2.50", np.float32(2.5)],
        ("0", "-0.5"): [-0.5, "-.5"],
    }.items():
        labels = tuple(Label(name) for name in names)
        asked = PromptVariant(0, "t", labels, ())
        read = RecordedAnnotator(["llm"], labels).annotate(asked, items(*values))
        assert read.probs.argmax(axis=1).tolist() == [1] * len(values)
    labels = (Label("01"), Label("1.0"))  # nobody can tell which one 1 is
    read = RecordedAnnotator(["llm"], labels).annotate(
        PromptVariant(0, "t", labels, ()), items(1, "1.0", "01", "2")
    )
    assert np.isnan(read.probs).any(axis=1).tolist() == [True, False, False, True]


def test_stated_confidence_is_the_labels_probability() -> None:
    three = (*LABELS, Label("neutral"))
    rows = [
        TextItem(str(i), "t", {"llm": name, "sure": sure})
        for i, (name, sure) in enumerate(
            [
                ("positive", 0.8),
                ("positive", "0.5"),
                ("neutral", None),
                ("neutral", ""),
                ("neutral", 0.1),
                ("neutral", math.nan),
                ("negative", 0),
                ("negative", 1),
            ]
        )
    ]
    annotator = RecordedAnnotator(["llm"], three, prob_columns=["sure"])
    answer = annotator.annotate(PromptVariant(0, "t", three, ()), rows)
    np.testing.assert_allclose(answer.probs[:2], [[0.1, 0.8, 0.1], [0.25, 0.5, 0.25]])
    assert answer.probs.argmax(axis=1).tolist() == [1, 1, 2, 2, 2, 2, 0, 0]
    np.testing.assert_allclose(answer.probs.sum(axis=1), 1)
    assert answer.probs[2:7].max(axis=1) == pytest.approx([1 / 3] * 5, rel=2e-3)
    for value in (80, "95%", "0,95", -0.1, "sure", True, "1e400", math.inf):
        bad = [TextItem("b", "t", {"llm": "positive", "sure": value})]
        with pytest.raises(AnnotatorError, match=r"'sure' holds .* not among probabilities"):
            annotator.annotate(PromptVariant(0, "t", three, ()), bad)
    with pytest.raises(AnnotatorError, match="'sure'"):
        annotator.check(items("positive"))


def test_a_declared_scale_gives_the_same_probabilities() -> None:
    def probs(scale, *stated):
        rows = [TextItem(str(i), "t", {"llm": "positive", "sure": s}) for i, s in enumerate(stated)]
        annotator = RecordedAnnotator(["llm"], LABELS, prob_columns=["sure"], scale=scale)
        return annotator.revision, annotator.annotate(variant(), rows).probs

    plain, wanted = probs("probability", 0.8, 1, None)
    for scale, *stated in (
        ("percent", "80%", 100, ""),
        ("0-10", 8, "10.0", None),
        ("log", math.log(0.8), 0, " "),
    ):
        revision, given = probs(scale, *stated)
        np.testing.assert_allclose(given, wanted)
        assert revision != plain
    with pytest.raises(AnnotatorError, match="holds 101, which is not among percentages between"):
        probs("percent", 101)


def test_check_names_what_is_wrong() -> None:
    RecordedAnnotator(["llm"], LABELS).check(items("other", "positive"))
    RecordedAnnotator(["llm"], LABELS).check([])
    with pytest.raises(AnnotatorError, match=r"no column 'gpt'. Columns: llm"):
        RecordedAnnotator(["gpt"], LABELS).check(items("positive"))
    with pytest.raises(AnnotatorError, match=r"'POS', \(empty\)\. Labels: negative, positive"):
        RecordedAnnotator(["llm"], LABELS).check(items("POS", "POS", None))


def test_a_column_missing_from_some_items_is_no_answer_there() -> None:
    mixed = [*items("positive"), TextItem("x", "t")]
    answer = RecordedAnnotator(["llm"], LABELS).annotate(variant(), mixed)
    assert np.isfinite(answer.probs).all(axis=1).tolist() == [True, False]
    with pytest.raises(AnnotatorError, match="no column 'llm'"):
        RecordedAnnotator(["llm"], LABELS).annotate(variant(), mixed[1:])


def test_no_items_no_rows() -> None:
    assert RecordedAnnotator(["llm"], LABELS).annotate(variant(), []).probs.shape == (0, 2)


@pytest.mark.parametrize("columns", [[], ["a", "a"]])
def test_columns_must_be_distinct_and_there(columns: list[str]) -> None:
    with pytest.raises(AnnotatorError, match="one column per prompt variant"):
        RecordedAnnotator(columns, LABELS)


def test_probability_columns_pair_with_columns() -> None:
    with pytest.raises(AnnotatorError, match="as many probability columns"):
        RecordedAnnotator(["a"], LABELS, prob_columns=["b", "c"])


def test_the_labels_of_the_variant_count() -> None:
    items = [TextItem("1", "t", {"a": LABELS[0].name}), TextItem("2", "t", {"a": LABELS[-1].name})]
    fewer = PromptVariant(0, "t", LABELS[:-1], ())
    found = RecordedAnnotator(["a"], LABELS).annotate(fewer, items).probs
    assert found.shape == (2, len(LABELS) - 1)
    assert found[0, 0] == 1.0
    assert np.isnan(found[1]).all()


def test_revision_knows_the_columns() -> None:
    one = RecordedAnnotator(["a"], LABELS).revision
    assert one.startswith("recorded:")
    assert one == RecordedAnnotator(["a"], LABELS).revision
    assert one != RecordedAnnotator(["b"], LABELS).revision
    assert one != RecordedAnnotator(["a"], LABELS, prob_columns=["p"]).revision
    assert RecordedAnnotator(["a"], LABELS, name="gpt").revision.startswith("gpt:")


# an answer spelt in its own way


DECOMPOSED = unicodedata.normalize("NFD", "Négatif")


@pytest.mark.parametrize(
    ("written", "labels", "meant"),
    [
        *(
            (written, ("negative", "positive"), "positive")
            for written in (
                "Positive",
                "POSITIVE",
                "positive.",
                '"positive"',
                "'Positive'.",
                "`positive`",
                "**Positive**",
                "“positive”",
                "Label: positive",
                "label = Positive.",
                "The answer is: positive",
                "Final answer: positive",
                "**Label:** positive",
                "<think>not negative</think>positive",
                "<think>\n</think>\n\nLabel: Positive",
                '```json\n{"label": "positive"}\n```',
                {"label": "positive"},
                '{"label": "Positive", "confidence": 0.9}',
                "{'label': 'positive'}",
                '["positive"]',
                ["Positive"],
                "['positive']",
                [{"label": "positive"}],
                "posi\u200btive",
                "\ufeffpositive",
                "positive\u00a0",
                "\u200epositive\u200f",
                "positive\u00ad",
                "ｐｏｓｉｔｉｖｅ",
            )
        ),
        ("\u2764\ufe0f", ("\u2764", "\U0001f494"), "\u2764"),  # a heart as models write it
        (' {"b": 1}', ('{"b": 1}', "a"), '{"b": 1}'),
        (DECOMPOSED, ("Négatif", "Positif"), "Négatif"),
        (DECOMPOSED.upper(), ("négatif", "positif"), "négatif"),
        ("STRASSE", ("Straße", "Weg"), "Straße"),
        ("very  positive", ("very positive", "positive"), "very positive"),
        ("US", ("us", "US"), "US"),
        ("-", ("-", "+"), "-"),
        ("c", ("C", "C."), "C"),
        ("10:30: morning", ("10:30: morning", "morning"), "10:30: morning"),
        ("Label: x", ("Label: x", "x"), "Label: x"),
    ],
)
def test_spelling_does_not_change_which_label_is_meant(
    written: Any, labels: tuple[str, ...], meant: str
) -> None:
    named = tuple(Label(name) for name in labels)
    said: list[str] = []
    annotator = RecordedAnnotator(["llm"], named, say=said.append)
    answer = annotator.annotate(PromptVariant(0, "t", named, ()), items(written))
    assert answer.probs.tolist() == [[float(name == meant) for name in labels]]
    annotator.close()
    told = isinstance(written, str) and written.strip() in labels
    assert len(said) == (0 if told else 1)
    assert told or f"as {meant!r} (1)" in said[0]


@pytest.mark.parametrize(
    ("written", "labels"),
    [
        ("Us", ("us", "US")),
        ("c!", ("C", "C.")),
        ('["positive", "negative"]', ("negative", "positive")),
        (["positive", "positive"], ("negative", "positive")),
        ({"label": "positive", "second": "negative"}, ("negative", "positive")),
        ("not positive", ("negative", "positive")),
        ("positive or negative", ("negative", "positive")),
        ("<think>positive", ("negative", "positive")),
        ("not: positive", ("negative", "positive")),
        ("...", ("-", "+")),
        ("\u200b", ("negative", "positive")),
        ('{"label": ', ("negative", "positive")),
        ("[" * 5000, ("negative", "positive")),
        ({"label": None}, ("negative", "positive")),
    ],
)
def test_what_could_be_two_labels_or_none_is_no_answer(
    written: Any, labels: tuple[str, ...]
) -> None:
    named = tuple(Label(name) for name in labels)
    annotator = RecordedAnnotator(["llm"], named)
    answer = annotator.annotate(PromptVariant(0, "t", named, ()), items(written))
    assert np.isnan(answer.probs).all()
    assert "cannot be read as a label" in answer.problems["0"]


@given(
    st.lists(st.text(min_size=1).map(str.strip).filter(bool), min_size=2, max_size=5, unique=True),
    st.data(),
)
def test_a_label_written_exactly_is_always_itself(labels: list[str], data: Any) -> None:
    name = data.draw(st.sampled_from(labels))
    assert label_in(f" {name} ", labels) == name
    spelt = data.draw(st.sampled_from([name.upper(), f'"{name}"', f"{name}.", f"Label: {name}"]))
    alike = [label for label in labels if _letters(label) == _letters(name)]
    assert len(alike) > 1 or label_in(spelt, labels) in (name, spelt.strip(), None)


def _letters(text: str) -> str:
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return "".join(c for c in folded if c.isalnum())


def test_spellings_of_one_label_add_up_among_probabilities() -> None:
    answer = RecordedAnnotator(["llm"], LABELS).annotate(
        variant(), items({"Positive": 0.5, "positive": 0.1, "negative": 0.4})
    )
    np.testing.assert_allclose(answer.probs, [[0.4, 0.6]])


def test_check_lists_what_was_read_and_what_was_not() -> None:
    said: list[str] = []
    values = ["positive"] * 4 + ["Positive"] * 3 + ["positve"] * 2 + [None]
    RecordedAnnotator(["llm"], LABELS, say=said.append).check(items(*values))
    unread, read = said
    assert "3 of 10 values of the column 'llm' cannot be read" in unread
    assert "'positve' (2) did you mean 'positive', (empty) (1)" in unread
    assert "neither as right nor as wrong" in unread
    assert read.startswith("3 values of the column 'llm' are spelt in another way")
    assert "'Positive' as 'positive' (3)" in read
