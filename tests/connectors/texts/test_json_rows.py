"""JSON in the shapes that tables come in; what is broken is named by its line."""

import json

import pytest

from connectors.texts.read import columns_of, find_problems, load_texts, read_texts
from connectors.texts.stream import TextStream
from connectors.texts.values import one_spelling

ROWS = [{"text": f"text {i}", "gold": "ny"[i % 2], "n": i} for i in range(6)]
LINES = [json.dumps(row) for row in ROWS]
SHAPES = {
    "lines": "\n".join(LINES),
    "lines that end with commas": ",\n".join(LINES) + ",\n",
    "behind each other on one line": "".join(LINES),
    "over several lines": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "list": json.dumps(ROWS),
    "list over lines": "[\n" + ",\n".join(LINES) + "\n]\n",
    "list with a comma at its end": "[\n" + ",\n".join(LINES) + ",\n]",
    "with a mark": "\ufeff" + "\n".join(LINES),
    "data": json.dumps({"version": "1.0", "data": ROWS}),
    "rows, over lines": json.dumps({"rows": ROWS, "n": 6}, indent=1),
    "text sequence": "".join(f"\x1e{line}\n" for line in LINES),
    "rows by number": json.dumps({str(i): r for i, r in enumerate(ROWS)}),
    "rows by name, over lines": json.dumps({f"id-{i}": r for i, r in enumerate(ROWS)}, indent=1),
    "beside another list of objects": json.dumps({"features": [{"name": "n"}], "rows": ROWS}),
    "columns of objects": json.dumps(
        {k: {str(i): r[k] for i, r in enumerate(ROWS)} for k in ROWS[0]}
    ),
    "columns of lists": json.dumps({k: [r[k] for r in ROWS] for k in ROWS[0]}),
    "split": json.dumps(
        {"columns": list(ROWS[0]), "index": [*range(6)], "data": [[*r.values()] for r in ROWS]}
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_reads_the_same(tmp_path, name):
    path = tmp_path / "t.json"
    path.write_text(SHAPES[name])
    rows = load_texts(str(path), gold_column="gold", labels=["n", "y"])
    assert [{"text": r.text, "gold": r.gold, **r.meta} for r in rows] == ROWS
    stream = TextStream(path)
    assert [dict(r.values) for piece in stream.pieces(4) for r in piece] == ROWS


def test_one_object_is_one_row_also_where_it_holds_a_list(tmp_path):
    path = tmp_path / "t.json"
    path.write_text('{"text": "a", "tags": [{"x": 1}]}')
    assert [r.text for r in load_texts(str(path))] == ["a"]
    path.write_text('{"id": 1, "data": {"text": "a"}, "annotations": [{"x": 1}]}')
    assert [r.text for r in load_texts(str(path), text_column="data.text")] == ["a"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[\n" + ",\n".join([*LINES[:3], LINES[3][:-1], *LINES[4:]]) + "\n]\n", "at line 6: Expec"),
        ("[\n" + ",\n".join(LINES), "at line 7: "),
        ("// exported\n" + "\n".join(LINES), "at line 1: Expecting value"),
        ("\n".join(map(repr, ROWS)), "at line 1 (and 5 more lines): Expecting property name"),
        ("\n".join(LINES) + '\n{"text": "a", "text": "b"}', "names 'text' twice"),
        (json.dumps([list(r.values()) for r in ROWS]), "6 rows that are not JSON objects"),
        ("[" * 100_000, "nested too deeply"),
        ("null", "holds 1 row that is no JSON object (row 1)"),
        ('"abc"', "holds 1 row that is no JSON object (row 1)"),
        (json.dumps(ROWS[0], indent=1) + "\nnull", "holds 1 row that is no JSON object (row 2)"),
    ],
)
def test_broken_json_is_told_where_it_breaks(tmp_path, content, said):
    (tmp_path / "t.json").write_text(content)
    problems = find_problems(str(tmp_path / "t.json"))
    assert said in next(p.message for p in problems if p.kind == "not_json")
    assert all(p.level == "error" for p in problems if p.kind == "not_json")


def test_rows_and_columns_of_objects_are_told_apart_without_names(tmp_path):
    path = tmp_path / "t.json"
    for shape in ("rows by number", "columns of objects"):
        path.write_text(SHAPES[shape])
        rows, columns, _ = columns_of(str(path))
        assert (rows, [column.name for column in columns]) == (6, ["text", "gold", "n"])
    path.write_text(json.dumps({"text": {"0": "a", "1": "b"}, "x": {"0": 1, "1": 2}, "y": {}}))
    assert "must hold strings" in find_problems(str(path))[0].message  # columns that do not fit
    path.write_text(json.dumps({"train": ROWS, "test": ROWS}))
    problems = find_problems(str(path), gold_column="gold")
    assert "holds its rows in several lists (train, test)" in problems[-1].message


def test_a_second_list_is_told(tmp_path):
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"data": ROWS[:2], "archive": ROWS[2:]}))
    problems = find_problems(str(path), gold_column="gold")
    assert "several lists (data, archive), of which none is read" in problems[-1].message
    path.write_text(json.dumps({"data": ROWS, "errors": [{"code": 1}]}))
    table = read_texts(str(path))
    assert len(table.rows) == len(ROWS)
    assert "under 'data'; what stands under errors is not read" in table.problems[0].message
    stream = TextStream(path)
    assert (stream.rows, stream.left_out) == (len(ROWS), ["the rows under errors"])


@pytest.mark.parametrize(
    "whole",
    [{"text": ["a", "b"]}, {"text": {"0": "a", "1": "b"}}, {"text": ["a", "b"], "s": [{}] * 2}],
)
def test_columns_that_are_named_are_columns_however_few_they_are(tmp_path, whole):
    path = tmp_path / "t.json"
    path.write_text(json.dumps(whole))
    assert [r.text for r in load_texts(str(path))] == ["a", "b"]
    assert [r.text for piece in TextStream(path).pieces(9) for r in piece] == ["a", "b"]


def test_keys_inside_of_objects_have_dotted_names(tmp_path):
    path = tmp_path / "t.jsonl"
    rows = [{"data": {"text": f"t{i}", "l": [{"c": "ab"[i]}]}, "a.b": i} for i in range(2)]
    path.write_text("\n".join(map(json.dumps, rows)))
    table = read_texts(str(path), text_column="data.text", gold_column="data.l.0.c")
    assert [(r.text, r.gold) for r in table.rows] == [("t0", "a"), ("t1", "b")]
    assert [r.text for r in load_texts(str(path), text_column="a.b")] == ["0", "1"]
    table = read_texts(str(path), text_column="a.b", meta_columns="plain", named=["data.l.0.c"])
    assert [r.meta["data.l.0.c"] for r in table.rows] == ["a", "b"]
    assert [r.text for p in TextStream(path, "data.text").pieces(9) for r in p] == ["t0", "t1"]
    (problem,) = find_problems(str(path))
    assert "no column 'text'; did you mean 'data.text'?" in problem.message


def test_a_number_of_thousands_of_digits_stops_nothing(tmp_path):
    digits = "9" * 5000
    rows = [f'{{"text": "text {i}", "gold": "{"ny"[i % 2]}", "n": {digits}}}' for i in range(4)]
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    assert len(load_texts(str(tmp_path / "t.jsonl"), gold_column="gold")) == 4
    assert (one_spelling(digits), one_spelling("-0")) == (digits, "0")
    (tmp_path / "t.csv").write_text(f"text,gold\none,{digits}\ntwo,-0\n")
    rows, columns, _ = columns_of(str(tmp_path / "t.csv"))
    assert (rows, columns[1].counts) == (2, {digits: 1, "-0": 1})


@pytest.mark.parametrize("content", ["{}", "{}\n{}\n", "[{}]", "[]"])
def test_objects_without_keys_are_no_rows(tmp_path, content):
    (tmp_path / "t.json").write_text(content)
    (problem,) = find_problems(str(tmp_path / "t.json"), gold_column="gold")
    assert "holds no rows" in problem.message
