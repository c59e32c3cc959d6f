"""Reading: every bad input is one clear sentence. Writing: what goes out comes back."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.texts.formats import Problem
from connectors.texts.read import find_problems, load_texts, read_texts
from connectors.texts.values import escape_cell, unescape_cell
from connectors.texts.write import write_labels
from loop.errors import DataError
from loop.ports import normalise

LABELS = ("negative", "neutral", "positive")
GOOD = "text,gold,who\nso bad,negative,ann\nfine I guess,neutral,bob\nlovely,positive,cy\n"


def put(folder: Path, content: str | bytes, name: str = "texts.csv") -> str:
    path = folder / name
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(data)
    return str(path)


def problems(source: str, **arguments: Any) -> dict[str, Problem]:
    found = find_problems(source, gold_column="gold", labels=LABELS, **arguments)
    for problem in found:
        assert problem.message.endswith(".")
        assert "\n" not in problem.message
    return {p.kind: p for p in found}


# good input


def test_csv_gives_rows_with_gold_meta_and_lines(tmp_path: Path) -> None:
    rows = load_texts(put(tmp_path, GOOD), gold_column="gold", labels=LABELS)
    assert [(r.text, r.gold, r.meta, r.line) for r in rows] == [
        ("so bad", "negative", {"who": "ann"}, 2),
        ("fine I guess", "neutral", {"who": "bob"}, 3),
        ("lovely", "positive", {"who": "cy"}, 4),
    ]


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + GOOD.encode(),
        GOOD.replace("\n", "\r\n").encode(),
        GOOD.replace(",", ";").encode(),
        GOOD.replace(",", "\t").encode(),
        b"\n\n" + GOOD.encode(),
    ],
    ids=["bom", "crlf", "semicolon", "tab", "blank-lines"],
)
def test_csv_dialects_read_the_same(tmp_path: Path, data: bytes) -> None:
    rows = load_texts(put(tmp_path, data), gold_column="gold", labels=LABELS)
    assert [r.text for r in rows] == ["so bad", "fine I guess", "lovely"]
    assert [r.gold for r in rows] == list(LABELS)


def test_multi_line_cells_keep_true_line_numbers(tmp_path: Path) -> None:
    source = put(tmp_path, 'text,gold\n"a\nb",x\n"c, ""d""",y\n')
    rows = load_texts(source, gold_column="gold")
    assert [(r.text, r.line) for r in rows] == [("a\nb", 2), ('c, "d"', 4)]


def test_meta_columns_can_be_left_out_or_chosen(tmp_path: Path) -> None:
    source = put(tmp_path, GOOD)
    assert load_texts(source, meta_columns=None)[0].meta == {}
    assert load_texts(source, meta_columns=["who"])[0].meta == {"who": "ann"}
    assert "missing_column" in problems(source, meta_columns=["whom"])


def test_jsonl_numbers_become_strings_and_null_is_empty(tmp_path: Path) -> None:
    source = put(
        tmp_path,
        '{"text": 12, "gold": 1, "n": 3}\n\n{"text": "b\u2028c", "gold": 0.0}\n{"text": null}\n',
        "t.jsonl",
    )
    table = read_texts(source, gold_column="gold")
    assert [(r.text, r.gold, r.meta) for r in table.rows] == [
        ("12", "1", {"n": 3}),
        ("b\u2028c", "0", {"n": None}),
    ]
    assert [(p.kind, p.rows) for p in table.problems] == [("empty_text", (4,))]


def test_a_list_of_objects_is_read_too(tmp_path: Path) -> None:
    source = put(tmp_path, json.dumps([{"text": "a"}, {"text": "b"}]), "t.json")
    assert [r.text for r in load_texts(source)] == ["a", "b"]


def test_parquet_with_lists_dates_and_class_names(tmp_path: Path) -> None:
    features = {"gold": {"_type": "ClassLabel", "names": ["no", "yes"]}}
    table = pa.table({"text": ["a", "b", "c"], "gold": [1, 0, -1], "r": [[1, 2], [], None]})
    table = table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    pq.write_table(table, tmp_path / "t.parquet")
    rows = load_texts(str(tmp_path / "t.parquet"), gold_column="gold")
    assert [r.gold for r in rows] == ["yes", "no", None]
    assert [r.meta["r"] for r in rows] == [[1, 2], [], None]


def test_a_saved_data_set_with_splits_and_class_names(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "gold": datasets.ClassLabel(names=["no", "yes"])}
    )
    part = datasets.Dataset.from_dict({"text": ["a", "b"], "gold": [0, 1]}, features=features)
    datasets.DatasetDict({"train": part}).save_to_disk(str(tmp_path / "saved"))
    for source in (str(tmp_path / "saved"), f"hf:{tmp_path / 'saved'}"):
        rows = load_texts(source, gold_column="gold")
        assert [(r.text, r.gold) for r in rows] == [("a", "no"), ("b", "yes")]
    problem = problems(str(tmp_path / "saved"), hf_split="trian")["missing_split"]
    assert "did you mean 'train'?" in problem.message


def test_label_names_with_quotes_commas_and_html(tmp_path: Path) -> None:
    names = ['say "hi", then <b>go</b>', "it's"]
    write_labels([{"text": f"t{i}", "gold": n} for i, n in enumerate(names)], tmp_path / "t.csv")
    rows = load_texts(str(tmp_path / "t.csv"), gold_column="gold", labels=names)
    assert [r.gold for r in rows] == names


# bad input


def test_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    put(tmp_path, GOOD, "tweets.csv")
    problem = problems(str(tmp_path / "tweet.csv"))["missing_file"]
    assert problem.level == "error"
    assert "did you mean 'tweets.csv'?" in problem.message


@pytest.mark.parametrize("content", ["", " \n \n", "text,gold\n"])
def test_empty_file(tmp_path: Path, content: str) -> None:
    assert set(problems(put(tmp_path, content))) == {"empty_file"}


@pytest.mark.parametrize("name", ["t.jsonl", "t.json", "t.parquet"])
def test_empty_file_in_other_formats(tmp_path: Path, name: str) -> None:
    assert set(problems(put(tmp_path, "", name))) == {"empty_file"}


def test_missing_columns_are_all_told_with_suggestions(tmp_path: Path) -> None:
    source = put(tmp_path, "Text,label\na,negative\n")
    found = find_problems(source, gold_column="lable", split_column="fold", labels=LABELS)
    assert [p.kind for p in found] == ["missing_column"] * 3
    assert "no column 'text'; did you mean 'Text'? available: Text, label" in found[0].message
    assert "did you mean 'label'?" in found[1].message


def test_empty_texts_are_counted_with_their_first_lines(tmp_path: Path) -> None:
    lines = "".join(f"{'' if i % 2 else 'text ' + str(i)},negative\n" for i in range(14))
    problem = problems(put(tmp_path, "text,gold\n" + lines + "z,positive\n"))["empty_text"]
    assert "7 empty texts (lines 3, 5, 7, 9, 11, …)" in problem.message
    assert problem.rows == (3, 5, 7, 9, 11, 13, 15)


def test_duplicates_with_the_same_gold_are_merged_with_a_note(tmp_path: Path) -> None:
    source = put(tmp_path, "text,gold\na  b,\nx,positive\n a b ,negative\na b,negative\n")
    table = read_texts(source, gold_column="gold", labels=LABELS)
    assert [(r.text, r.gold) for r in table.rows] == [("a  b", "negative"), ("x", "positive")]
    assert [(p.level, p.kind, p.rows) for p in table.problems] == [
        ("note", "duplicate_text", (4, 5))
    ]


def test_a_text_in_test_and_pool_stays_in_test(tmp_path: Path) -> None:
    source = put(tmp_path, "text,split\na,pool\na,test\nb,pool\n")
    table = read_texts(source, split_column="split")
    assert [(r.text, r.split) for r in table.rows] == [("a", "test"), ("b", "pool")]
    assert {p.kind for p in table.problems} == {"duplicate_text", "duplicate_across_splits"}


def test_conflicting_gold_names_both_lines(tmp_path: Path) -> None:
    source = put(tmp_path, "text,gold\nsame,negative\nother,neutral\nsame ,positive\n")
    problem = problems(source)["conflicting_gold"]
    assert problem.level == "error"
    assert problem.rows == (2, 4)
    assert "line 2 says 'negative', line 4 says 'positive' ('same')" in problem.message


def test_unknown_labels_are_counted_with_a_suggestion(tmp_path: Path) -> None:
    source = put(tmp_path, "text,gold\na,Negative\nb,Negative\nc,neutral\nd,zzz\n")
    found = find_problems(source, gold_column="gold", labels=LABELS)
    assert [p.kind for p in found] == ["unknown_label", "unknown_label"]
    assert "'Negative' in column 'gold' 2 times (lines 2, 3); did you mean 'negative'?" in (
        found[0].message
    )


def test_one_class_only_and_no_gold_at_all(tmp_path: Path) -> None:
    assert "one_class" in problems(put(tmp_path, "text,gold\na,neutral\nb,neutral\n"))
    assert "no_gold" in problems(put(tmp_path, "text,gold\na,\nb,\n"))


def test_invalid_utf8_tells_byte_and_line_and_the_rest(tmp_path: Path) -> None:
    found = problems(put(tmp_path, b"text,gold\nok,positive\ncaf\xe9,wrong\n"))
    assert "byte 25 (line 3, 0xe9)" in found["invalid_utf8"].message
    assert "unknown_label" in found
    found = problems(put(tmp_path, b"\xef\xbb\xbftext,gold\n\xff,positive\n"))
    assert "byte 13 (line 2, 0xff)" in found["invalid_utf8"].message


def test_utf16_is_named(tmp_path: Path) -> None:
    assert "UTF-16" in problems(put(tmp_path, GOOD.encode("utf-16")))["invalid_utf8"].message


def test_ragged_rows(tmp_path: Path) -> None:
    source = put(tmp_path, "text,gold\na,negative\nb, oh no,positive\nc\nd,positive\n")
    problem = problems(source)["ragged"]
    assert problem.rows == (3, 4)
    assert "2 rows" in problem.message
    assert "line 3: 3, line 4: 1" in problem.message


def test_an_open_quote_is_told_with_its_line(tmp_path: Path) -> None:
    source = put(tmp_path, 'text,gold\na,negative\n"b,positive\nc,positive\n')
    (problem,) = find_problems(source, gold_column="gold")  # of one class nobody knows
    assert "begins at line 3" in problem.message


def test_a_column_named_twice(tmp_path: Path) -> None:
    assert "'text'" in problems(put(tmp_path, "text,text\na,b\n"))["duplicate_column"].message


def test_wrong_types(tmp_path: Path) -> None:
    source = put(
        tmp_path,
        '{"text": ["a"], "gold": "negative"}\n{"text": "b", "gold": "neutral"}\n',
        "t.jsonl",
    )
    found = problems(source)
    assert set(found) == {"wrong_type"}
    assert "line 1" in found["wrong_type"].message


@pytest.mark.parametrize("line", ['{"text": "b"', "[1]", "7", "[" * 100_000])
def test_bad_json_lines_are_told_and_the_rest_is_read(tmp_path: Path, line: str) -> None:
    source = put(tmp_path, f'{{"text": "a"}}\n{line}\n{{"text": "c"}}\n', "t.jsonl")
    table = read_texts(source)
    assert [(p.kind, p.rows) for p in table.problems] == [("not_json", (2,))]
    assert [r.text for r in table.rows] == ["a", "c"]


def test_a_broken_parquet_file(tmp_path: Path) -> None:
    assert "unreadable" in problems(put(tmp_path, "PAR1 not really", "t.parquet"))


def test_a_very_long_text_is_taken_with_a_note(tmp_path: Path) -> None:
    source = put(tmp_path, f"text,gold\n{'ab ' * 66_667},negative\nshort,positive\n")
    table = read_texts(source, gold_column="gold", labels=LABELS)
    assert [p.level for p in table.problems] == ["note"]
    assert "200,001" in table.problems[0].message
    assert len(table.rows[0].text) == 200_001


def test_nul_and_lone_surrogates_are_repaired_with_a_note(tmp_path: Path) -> None:
    source = put(tmp_path, '{"text": "a\\u0000b\\ud800", "m": "\\udfff"}\n', "t.jsonl")
    table = read_texts(source)
    assert table.rows[0].text == "ab\ufffd"
    assert table.rows[0].meta["m"] == "\ufffd"
    assert [(p.level, p.kind) for p in table.problems] == [("note", "repaired_text")]


def test_unknown_extension_and_strange_folder(tmp_path: Path) -> None:
    assert "'.docx'" in problems(put(tmp_path, "x", "t.docx"))["unknown_format"].message
    assert "unknown_format" in problems(str(tmp_path))


def test_a_data_set_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "goldloop[datasets]" in problems("hf:some/name")["missing_extra"].message


def test_everything_wrong_is_told_at_once_and_raised_together(tmp_path: Path) -> None:
    source = put(
        tmp_path,
        b"text,gold\n,negative\nsame,neutral\nsame,positive\nx,bad\ny\nz\xff,positive\n",
    )
    kinds = {"empty_text", "conflicting_gold", "unknown_label", "ragged", "invalid_utf8"}
    assert set(problems(source)) == kinds
    with pytest.raises(DataError) as caught:
        load_texts(source, gold_column="gold", labels=LABELS)
    assert len(str(caught.value).splitlines()) == len(kinds)


def test_notes_reach_the_caller(tmp_path: Path) -> None:
    notes: list[str] = []
    load_texts(put(tmp_path, "text\na\na\nb\n"), on_note=notes.append)
    assert len(notes) == 1
    assert "1 duplicate text (line 3)" in notes[0]


# writing

# what a database gives back: no NUL, no lone surrogate
stored = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
hostile = st.one_of(
    stored, st.sampled_from(["=1+1", "'=x", "''@", "\tx", "-", "a\rb", 'q"\n', ",;"])
)


HOSTILE_NAMES = st.sampled_from(["note", "=name", "'@x", "a;b;c;d", "a|b", "x\ty", "guard"])


@given(st.lists(st.tuples(hostile, hostile, hostile), min_size=1, max_size=5), HOSTILE_NAMES)
@settings(deadline=None, max_examples=60)
def test_csv_gives_every_cell_back(
    tmp_path_factory: Any, cells: list[tuple[str, str, str]], name: str
) -> None:
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    write_labels(
        [{"text": f"{i}{a}", "label": b, name: c} for i, (a, b, c) in enumerate(cells)], path
    )
    with path.open(encoding="utf-8", newline="") as handle:
        back = list(csv.reader(handle))[1:]
    for row in back:
        for cell in row:
            runs = cell.startswith(("=", "+", "-", "@", "\t", "\r"))
            assert not runs or not re.search("[a-zA-Z0-9]", cell) or float(cell) is not None
    rows = {r.line: r for r in read_texts(str(path), gold_column=None).rows}
    found = [(r.text, r.meta["label"], r.meta[name]) for _, r in sorted(rows.items())]
    unique = {}
    for i, (a, b, c) in enumerate(cells):
        unique.setdefault(normalise(f"{i}{a}"), (f"{i}{a}", b, c))
    assert found == list(unique.values())


@given(st.lists(hostile, min_size=1, max_size=5, unique=True))
@settings(deadline=None, max_examples=60)
def test_jsonl_written_here_is_read_here(tmp_path_factory: Any, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "t.jsonl"
    write_labels([{"text": t, "again": t} for t in texts], path)
    rows = read_texts(str(path)).rows
    assert {r.text for r in rows} <= set(texts)
    assert all(r.meta["again"] == r.text for r in rows)


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=100)
def test_no_bytes_make_reading_fail_without_a_sentence(tmp_path_factory: Any, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    for name in ("t.csv", "t.jsonl", "t.parquet"):
        for problem in find_problems(put(folder, data, name), gold_column="gold"):
            assert problem.message


@given(hostile)
def test_escape_is_reversible(cell: str) -> None:
    assert unescape_cell(escape_cell(cell)) == cell


RECORDS = [
    {"id": "1", "text": "=SUM(A1)", "confidence": 0.25, "round": 1, "why": ["a", "b"], "ok": True},
    {"id": "2", "text": "é\n\u2028", "confidence": None, "round": -2, "why": [], "ok": False},
]


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet", "folder"])
def test_records_come_back_whole(tmp_path: Path, name: str) -> None:
    if name == "folder":
        pytest.importorskip("datasets")
    for _ in range(2):  # the second time replaces the first
        write_labels(RECORDS, tmp_path / name)
    rows = load_texts(str(tmp_path / name))
    assert [{**r.meta, "text": r.text} for r in rows] == RECORDS
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_csv_guards_formulas_but_neither_numbers_nor_signs(tmp_path: Path) -> None:
    labels = ["-1", "+1", "1", "-", "+", "@", "=", "-1.5e3", "'=x"]
    write_labels([{"text": "a", "label": label} for label in labels], tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as handle:
        assert [row["label"] for row in csv.DictReader(handle)] == labels
        assert "guarded" not in (tmp_path / "t.csv").read_text()
    write_labels(RECORDS, tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert rows[0]["text"] == "'=SUM(A1)"
    assert [row["guarded_cells"] for row in rows] == ['["text"]', ""]
    assert [r.text for r in load_texts(str(tmp_path / "t.csv"))] == [r["text"] for r in RECORDS]
    assert rows[1]["round"] == "-2"
    assert rows[0]["why"] == '["a", "b"]'
    assert rows[1]["confidence"] == ""


def test_columns_of_mixed_types_become_strings_in_parquet(tmp_path: Path) -> None:
    write_labels([{"text": "a", "x": 1}, {"text": "b", "x": "one"}], tmp_path / "t.parquet")
    assert pq.read_table(tmp_path / "t.parquet")["x"].to_pylist() == ["1", "one"]


def test_no_records_still_have_a_header(tmp_path: Path) -> None:
    write_labels([], tmp_path / "t.csv", columns=["id", "label"])
    assert (tmp_path / "t.csv").read_text() == "id,label\n"  # universal newlines


def test_a_failed_write_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.csv"
    path.write_text("old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataError, match=r"cannot be written: No space left"):
        write_labels(RECORDS, path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


def test_unknown_extension_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"extension '\.xlsx'; use \.csv"):
        write_labels(RECORDS, tmp_path / "t.xlsx")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_data_set_is_not_overwritten(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_text("x")
    with pytest.raises(DataError, match="not a saved data set"):
        write_labels(RECORDS, tmp_path / "mine")
    with pytest.raises(DataError, match="is a folder"):
        write_labels(RECORDS, tmp_path / "mine", format="csv")
    assert (tmp_path / "mine" / "precious").exists()


@pytest.mark.parametrize(
    ("name", "said"), [("-", "name a file, such as"), ("pipe.csv", "is a pipe or a device")]
)
def test_labels_go_to_files_alone(tmp_path: Path, name: str, said: str) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(DataError, match=said):
        write_labels(RECORDS, tmp_path / name)
    assert [path.is_fifo() for path in tmp_path.iterdir()] == [True]


# what is large, or wrong all over


@pytest.mark.timeout(120)  # each label looked through all rows before
def test_a_wrong_gold_column_gives_five_examples(tmp_path: Path) -> None:
    n = 16_000
    source = put(tmp_path, "text,gold\n" + "".join(f"text {i},label {i}\n" for i in range(n)))
    found = find_problems(source, gold_column="gold", labels=LABELS)
    assert len(found) == 6
    assert [p.kind for p in found] == ["unknown_label"] * 6
    assert "15,995 more unknown labels" in found[-1].message
    assert "set texts.gold_column" in found[-1].message
    texts = find_problems(source, gold_column="text", labels=LABELS)
    assert sum(len(p.message) for p in texts) < 4000


def test_no_problem_grows_with_the_file(tmp_path: Path) -> None:
    rows = "".join(f",\n{'x' * 500} {i},{'long label ' * 50}{i}\n" for i in range(3000))
    columns = ",".join(f"column number {i}" for i in range(3000))
    sources = [
        put(tmp_path, "text,gold\n" + rows, "a.csv"),
        put(tmp_path, columns + "\n" + ",".join("0" * 3000) + "\n", "b.csv"),
        put(tmp_path, "text,gold\n" + "same,a\nsame,b\n" + "a,b,c\n" * 3000, "c.csv"),
        put(tmp_path, "{\n" * 3000, "d.jsonl"),
    ]
    for source in sources:
        found = find_problems(source, gold_column="gold", labels=LABELS)
        assert found
        assert sum(len(p.message) for p in found) < 4000
        assert max(len(p.rows) for p in found) <= 20


MEASURE = """
import resource, sys
from connectors.texts.read import load_texts, find_problems
load_texts(sys.argv[1], gold_column="gold")
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if sys.argv[3] == "check":
    assert not find_problems(sys.argv[2], gold_column="gold", meta_columns=None)
else:
    assert len(load_texts(sys.argv[2], gold_column="gold", meta_columns="plain")) == 40_000
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) // 1024)
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """40,000 short texts beside 640 MB of vectors and bytes in one Parquet file; two in another."""
    n, folder = 40_000, tmp_path_factory.mktemp("wide")
    schema = pa.schema(
        [
            ("text", pa.string()),
            ("gold", pa.string()),
            ("v", pa.list_(pa.float32())),
            ("blob", pa.binary()),
            ("m", pa.int64()),
        ]
    )
    big, small = folder / "big.parquet", folder / "small.parquet"
    vector = pa.array([[0.5] * 2000] * 4000, pa.list_(pa.float32()))
    blob = pa.array([b"\0" * 8000] * 4000, pa.binary())
    with pq.ParquetWriter(big, schema, compression="zstd", use_dictionary=False) as writer:
        for start in range(0, n, 4000):
            rows = range(start, start + 4000)
            columns = [
                pa.array([f"text number {i}" for i in rows]),
                pa.array([["no", "yes"][i % 2] for i in rows]),
                vector,
                blob,
                pa.array(rows, pa.int64()),
            ]
            writer.write_table(pa.table(columns, schema=schema))
    pq.write_table(pa.table({"text": ["a", "b"], "gold": ["no", "yes"]}), small)
    return big, small


@pytest.mark.parametrize("job", ["check", "import"])
def test_columns_that_nobody_needs_cost_no_memory(wide: tuple[Path, Path], job: str) -> None:
    big, small = wide
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, small, big, job],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert int(done.stdout) < 120  # MB


def test_named_columns_are_kept_whatever_they_hold(tmp_path: Path) -> None:
    table = {"text": ["a", "b"], "r": [["x"], []], "v": [[0.5], [0.25]], "n": [1, 2]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    lines = [json.dumps({k: v[i] for k, v in table.items()}) for i in range(2)]
    for source in (str(tmp_path / "t.parquet"), put(tmp_path, "\n".join(lines), "t.jsonl")):
        rows = load_texts(source, meta_columns="plain", named=["r", "absent"])
        assert [row.meta for row in rows] == [{"r": ["x"], "n": 1}, {"r": [], "n": 2}]


def test_a_parquet_file_that_breaks_in_the_middle_is_told(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    texts = [f"text number {i} {i * 7919}" for i in range(60_000)]
    pq.write_table(pa.table({"text": texts}), path, compression="zstd", row_group_size=20_000)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = b"\xff" * 2000
    path.write_bytes(data)
    found = problems(str(path))
    assert "unreadable" in found
    assert "empty_file" not in found
