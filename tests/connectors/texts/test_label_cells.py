"""One value, one label, whatever the format and the tool; and columns that hold no probability."""

import csv
import json
import math
from collections import Counter
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connectors.texts.label_cells import labels_in, lookup, one_of_each, probability_in
from connectors.texts.read import find_problems, load_texts, read_texts
from connectors.texts.write import write_labels

BOTH = ("negative", "positive")


def in_every_format(tmp_path, columns):
    """The same columns as CSV, JSONL, Parquet and a data set folder; yields sources."""
    names, rows = list(columns), list(zip(*columns.values(), strict=True))
    with (tmp_path / "t.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows(
            [
                names,
                *([c if c == c else "" for c in row] for row in rows),
            ]  # NaN as pandas writes it
        )
    plain = [[float(v) if isinstance(v, Decimal) else v for v in row] for row in rows]
    lines = [json.dumps(dict(zip(names, row, strict=True))) for row in plain]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    table = pa.table(columns)
    pq.write_table(table, tmp_path / "t.parquet")
    encoded = {c: table[c].dictionary_encode() for c in names}
    pq.write_table(pa.table(encoded), tmp_path / "categories.parquet")
    sources = ["t.csv", "t.jsonl", "t.parquet", "categories.parquet"]
    try:
        import datasets
    except ImportError:
        pass
    else:
        datasets.Dataset(table).save_to_disk(str(tmp_path / "saved"))
        sources.append("saved")
    return [str(tmp_path / name) for name in sources]


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0, 1, 1, None], ("0", "1")),
        ([0.0, 1.0, 1.0, None], ("0", "1")),
        ([0.0, 1.0, 1.0, math.nan], ("0", "1")),
        ([0.0, 1.0, 1.0, None], ("0.0", "1.0")),
        ([False, True, True, None], ("0", "1")),
        ([False, True, True, None], ("false", "true")),
        ([False, True, True, None], ("False", "True")),
        (["False", "True", "TRUE", ""], ("false", "true")),
        (["0", "1.0", "1", None], ("0", "1")),
        (["0", "True", "1", None], ("0", "1")),
        ([Decimal("0.00"), Decimal("1.00"), Decimal("1.00"), None], ("0", "1")),
        ([-1, 1, 1, None], ("-1", "1")),
        ([2.5, 3.0, 3.0, None], ("2.5", "3")),
        (["ne\u0301", "oui", "oui\u200b", None], ("né", "oui")),
    ],
)
def test_one_value_is_one_label_in_every_format(tmp_path, values, labels):
    for source in in_every_format(tmp_path, {"text": list("abcd"), "gold": values}):
        table = read_texts(source, gold_column="gold", labels=labels)
        assert [r.gold for r in table.rows] == [*labels, labels[1], None], source
        assert not table.errors


def test_without_known_labels_a_number_has_one_spelling(tmp_path):
    for values in (
        [0, 1, None],
        [0.0, 1.0, None],
        ["0.0", "1", ""],
        [Decimal("0.0"), Decimal(1), None],
    ):
        for source in in_every_format(tmp_path, {"text": list("abc"), "gold": values}):
            rows = load_texts(source, gold_column="gold")
            assert [r.gold for r in rows] == ["0", "1", None], source
    for source in in_every_format(tmp_path, {"text": list("abc"), "gold": ["007", "7", "-01"]}):
        assert [r.gold for r in load_texts(source, gold_column="gold")] == ["007", "7", "-01"]
    for source in in_every_format(tmp_path, {"text": list("abc"), "gold": ["é", "e\u0301", "x"]}):
        assert [r.gold for r in load_texts(source, gold_column="gold")] == ["é", "é", "x"]


def test_what_was_read_in_another_spelling_is_said_and_what_is_none_is_refused(tmp_path):
    source = str(tmp_path / "t.csv")
    write_labels([{"text": f"t{i}", "gold": g} for i, g in enumerate(["1.0", "0", "1.0"])], source)
    (note,) = find_problems(source, gold_column="gold", labels=["0", "1"])
    assert note.level == "note"
    assert "2 values of column 'gold'" in note.message
    assert "'1.0' as '1' (2)" in note.message
    for value in ("Positive", "2", "yes", "positive negative"):
        write_labels([{"text": "a", "gold": value}, {"text": "b", "gold": "positive"}], source)
        kinds = {p.kind for p in find_problems(source, gold_column="gold", labels=BOTH)}
        assert "unknown_label" in kinds


@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        (["positive"], ["positive"]),
        ([], []),
        ("", []),
        (None, []),
        ('["positive"]', ["positive"]),
        ("['positive']", ["positive"]),
        ('{"choices": ["positive", "negative"]}', ["positive", "negative"]),
        ({"choices": ["positive"]}, ["positive"]),
        ("positive#negative", ["positive", "negative"]),
        ("positive, negative", ["positive", "negative"]),
        ("positive#other", ["positive#other"]),
        ("[positive", ["[positive"]),
        ({"positive": 1.0, "negative": 0.0}, ["positive"]),
        ({"positive": True, "negative": False}, ["positive"]),
        ({"positive": 0, "negative": 0}, []),
        ({"label": 1, "user": 1}, ["1"]),
        ({"POSITIVE": 1.0, "NEGATIVE": 0.0}, ["POSITIVE"]),
        ({"positive": 1.0, "negative": 1.0}, ["positive", "negative"]),
        ([{"value": "positive", "status": "submitted"}], ["positive"]),
        (1.0, ["1"]),
    ],
)
def test_labels_in_cells_of_every_tool(cell, labels):
    assert labels_in(cell, BOTH) == labels


def test_a_label_in_an_object_is_found_before_the_labels_are_known():
    for label in (0, 1, 1.0, True, "1"):
        for more in ({}, {"score": 0.9}, {"user": 1, "name": "x"}):
            assert labels_in({"label": label, **more}) == labels_in(label)
    assert labels_in({"positive": 1.0, "negative": 0.0}) == ["positive"]


def test_several_labels_in_one_cell_are_an_error_that_names_the_rows(tmp_path):
    cells = [["positive"], ["positive", "negative"], [], ["negative", "negative"]]
    lines = [json.dumps({"text": f"t{i}", "label": c}) for i, c in enumerate(cells)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    problems = find_problems(str(tmp_path / "t.jsonl"), gold_column="label", labels=BOTH)
    assert [(p.level, p.kind, p.rows) for p in problems if p.level == "error"] == [
        ("error", "several_labels", (2,))
    ]
    assert "line 2: 'positive', 'negative'" in problems[0].message
    rows = read_texts(str(tmp_path / "t.jsonl"), gold_column="label", labels=BOTH).rows
    assert [r.gold for r in rows] == ["positive", None, None, "negative"]


def test_labels_that_people_refused_are_none(tmp_path):
    answers = ["accept", "reject", "ignore", "accept"]
    lines = [
        json.dumps({"text": f"t{i}", "label": BOTH[i % 2], "answer": a})
        for i, a in enumerate(answers)
    ]
    (tmp_path / "prodigy.jsonl").write_text("\n".join(lines))
    table = read_texts(str(tmp_path / "prodigy.jsonl"), gold_column="label", labels=BOTH)
    assert [r.gold for r in table.rows] == ["negative", None, None, "positive"]
    assert (
        "2 labels that people did not confirm: answer = 'reject' (1)" in table.problems[0].message
    )
    lines = [
        json.dumps({"text": f"t{i}", "annotation": BOTH[i % 2], "annotation_agent": "u"} | status)
        for i, status in enumerate([{"status": "Discarded"}, {"status": "Validated"}, {}])
    ]
    (tmp_path / "old.jsonl").write_text("\n".join(lines))
    table = read_texts(str(tmp_path / "old.jsonl"), gold_column="annotation", labels=BOTH)
    assert [r.gold for r in table.rows] == [None, "positive", "negative"]
    own = {"label": ["positive", "negative"], "source": ["llm", "gold"], "how": ["llm", "single"]}
    for source in in_every_format(
        tmp_path, own | {"text": ["a", "b"], "llm_label": ["positive"] * 2}
    ):
        for meta in (None, "plain"):
            table = read_texts(source, gold_column="label", labels=BOTH, meta_columns=meta)
            assert [r.gold for r in table.rows] == [None, "negative"], source
    own = {"label": ["negative", "positive"], "source": ["repaired"] * 2, "how": ["r"] * 2}
    for source in in_every_format(
        tmp_path, own | {"text": ["a", "b"], "llm_label": ["positive"] * 2}
    ):  # the second one was put back: repair never leaves the LLM's label
        table = read_texts(source, gold_column="label", labels=BOTH)
        assert [r.gold for r in table.rows] == [None, "positive"], source
    lines = [
        json.dumps({"text": f"t{i}", "annotations": [{"result": [y], "was_cancelled": i == 0}]})
        for i, y in enumerate(BOTH)
    ]
    (tmp_path / "skipped.jsonl").write_text("\n".join(lines))
    inner = "annotations.0.result.0"
    table = read_texts(str(tmp_path / "skipped.jsonl"), gold_column=inner, labels=BOTH)
    assert [r.gold for r in table.rows] == [None, BOTH[1]]
    assert "skipped (1)" in table.problems[-1].message
    asked = [[("positive", "discarded")], [("negative", "submitted"), ("positive", "draft")]]
    lines = [
        json.dumps({"text": f"t{i}", "q": [{"value": v, "status": s} for v, s in one]})
        for i, one in enumerate(asked)
    ]
    (tmp_path / "feedback.jsonl").write_text("\n".join(lines))
    table = read_texts(str(tmp_path / "feedback.jsonl"), gold_column="q", labels=BOTH)
    assert [r.gold for r in table.rows] == [None, "negative"]
    statuses = [["submitted"], ["discarded"], ["draft", "submitted"]]
    given = [["positive"], ["positive"], ["positive", "negative"]]
    lines = [
        json.dumps({"text": f"t{i}", "q.responses": g, "q.responses.status": s})
        for i, (g, s) in enumerate(zip(given, statuses, strict=True))
    ]
    (tmp_path / "argilla.jsonl").write_text("\n".join(lines))
    table = read_texts(str(tmp_path / "argilla.jsonl"), gold_column="q.responses", labels=BOTH)
    assert [r.gold for r in table.rows] == ["positive", None, "negative"]


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (["1", "1.0", "0", "0.0"], {"1": ["1.0"], "0": ["0.0"]}),
        (["True", "TRUE", "False", "False"], {"False": [], "TRUE": ["True"]}),
        (["1.0", "1.0", "1"], {"1.0": ["1"]}),
        (["true", "1", "no"], {"1": ["true"], "no": []}),
        (["1e3", "1000"], {"1000": ["1e3"]}),
        (["a\tb", "a b", "a\u200bb"], {"a b": ["a\tb"], "a\u200bb": []}),
        (["\u200fa", "a", "e\u0301", "é"], {"a": ["\u200fa"], "é": ["e\u0301"]}),
        (["007", "7", "-01", "-1"], {"7": [], "007": [], "-01": [], "-1": []}),
        (["x²", "x2", "Pos", "pos"], {"x²": [], "x2": [], "Pos": [], "pos": []}),
        (["inf", "Infinity", "nan"], {"inf": [], "Infinity": [], "nan": []}),
    ],
)
def test_spellings_of_one_value_are_one_label(values, labels):
    assert one_of_each(Counter(values)) == labels


def test_dotted_names():
    record = {"a": {"b": [{"c": 1}]}, "x.y": 2}
    assert lookup(record, "a.b.0.c") == 1
    assert lookup(record, "x.y") == 2
    for name in ("a.b.1", "a.c", "x", "b", "a.b.c"):
        assert lookup(record, name) is lookup({}, "nothing")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (["95", "88", "50"], "look like a scale up to 100: divide by it"),
        ([9.5, 8.8, 5], "look like a scale up to 10: divide by it"),
        (["0,95", "0,88", "1"], "write 0,95 as 0.95"),
        (["95%", "88 %", "0.5"], "write 95% as 0.95"),
        ([-0.05, -0.1, -0.7], "look like logarithms"),
        (["high", "low", "0.5"], "they are words"),
        ([1.5, 0.5, 0.2], "up to 10"),
    ],
)
def test_a_column_that_holds_no_probabilities_is_named_with_its_scale(tmp_path, values, says):
    for source in in_every_format(tmp_path, {"text": list("abc"), "sure": values}):
        for meta in (None, "plain"):
            problems = find_problems(source, confidences=["sure"], meta_columns=meta)
            (error,) = [p for p in problems if p.level == "error"]
            assert "in column 'sure' that are not probabilities between 0 and 1" in error.message
            assert says in error.message
            assert error.rows[0] == (2 if source.endswith("csv") else 1)


@pytest.mark.parametrize(
    ("scale", "values", "says"),
    [
        ("percent", ["95", "88%", "0.5"], None),
        ("percent", [100.0, 50.5, None], None),
        ("percent", ["95", "120", "1"], "not percentages between 0 and 100: '120'"),
        ("percent", ["0,95", "88", "50"], "write 0,95 as 0.95"),
        ("percent", [0.95, 0.5, 1.0], "look like probabilities between 0 and 1"),
        ("percent", [-5.0, 50.0, 60.0], "or name another scale"),
        ("0-10", ["9.5", "10", "0"], None),
        ("0-10", [9.5, 11.0, 2.0], "not numbers between 0 and 10: '11"),
        ("0-10", ["0.95", "0.5", "1"], "leave annotator.confidence_scale out"),
        ("log", ["-0.1", "0", "-1e3"], None),
        ("log", [-0.5, 0.7, -2.0], "not logarithms of probabilities, 0 or less: '0.7'"),
        ("log", ["high", "-1", "-2"], '"log" says so'),
    ],
)
def test_values_beyond_a_declared_scale_are_named(tmp_path, scale, values, says):
    for source in in_every_format(tmp_path, {"text": list("abc"), "sure": values}):
        problems = find_problems(source, confidences=["sure"], confidence_scale=scale)
        errors = [p.message for p in problems if p.level == "error"]
        assert len(errors) == (says is not None)
        assert says is None or (says in errors[0] and "in column 'sure'" in errors[0])


def test_probabilities_on_every_scale():
    for scale, values in (
        ("percent", ("80%", " 80 ", 80, "80.0 %")),
        ("0-10", (8, "8.0")),
        ("log", (math.log(0.8),)),
    ):
        assert [probability_in(v, scale) for v in values] == pytest.approx([0.8] * len(values))
    assert probability_in(-math.inf, "log") == 0
    assert [probability_in("8%", s) for s in ("probability", "0-10", "log")] == [None] * 3


def test_probabilities_and_empty_cells_are_fine():
    assert [probability_in(v) for v in (0, 1, 0.5, "0.5", " 1e-3 ")] == [0, 1, 0.5, 0.5, 0.001]
    assert all(math.isnan(probability_in(v)) for v in (None, "", " ", math.nan))
    assert [probability_in(v) for v in (True, "nan", "inf", 1.00001, -1e-5, [])] == [None] * 6
    assert [probability_in(v) for v in (1.0000001, "1.0000000000000002", -1e-9)] == [1, 1, 0]
    assert [probability_in(v, "log") for v in (1e-9, 0.1)] == [1, None]
