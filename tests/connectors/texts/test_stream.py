"""Streams of texts: every format in and out, faults told, constant memory, nothing half-written."""

import csv
import errno
import json
import os
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connectors.texts.stream import TextStream, writing
from loop.errors import DataError

ADDED = {"predicted_label": str, "p_a": float}


def rows_of(stream, size=2):
    return [row for piece in stream.pieces(size) for row in piece]


def copy(source, out, text_column="text"):
    """Everything through, with two columns more."""
    stream = TextStream(source, text_column)
    with writing(out, stream, ADDED) as write:
        for piece in stream.pieces(2):
            write([{**r.values, "predicted_label": "=a", "p_a": 0.25} for r in piece])
    return stream


def test_csv_rows_keep_their_lines_and_columns(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('\ufeffid,text\n1,"two\nlines"\n\n2,plain\n', encoding="utf-8")
    stream = TextStream(path)
    assert stream.columns == ("id", "text")
    assert [(r.number, r.text) for r in rows_of(stream)] == [(2, "two\nlines"), (5, "plain")]
    assert rows_of(stream)[0].values == {"id": "1", "text": "two\nlines"}
    assert stream.rows == 2


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiters_are_found(tmp_path, delimiter):
    path = tmp_path / "x.csv"
    path.write_text(f"id{delimiter}text\n1{delimiter}hello\n")
    assert rows_of(TextStream(path))[0].text == "hello"


def test_json_lines_and_lists_and_plain_text(tmp_path):
    lines = tmp_path / "x.jsonl"
    lines.write_text('{"text": "a", "n": 1}\n\n{"text": 2, "m": [1]}\n')
    stream = TextStream(lines)
    assert stream.columns == ("text", "n", "m")
    assert [(r.number, r.text) for r in rows_of(stream)] == [(1, "a"), (3, "2")]
    listed = tmp_path / "x.json"
    listed.write_text(' [{"text": "a"}, 3, {"text": "b"}]')
    stream = TextStream(listed)
    assert [r.text for r in rows_of(stream)] == ["a", "b"]
    assert stream.unreadable.first == [2]
    plain = tmp_path / "x.txt"
    plain.write_text("one\r\n\r\ntwo\n")
    stream = TextStream(plain)
    assert [(r.number, r.text) for r in rows_of(stream)] == [(1, "one"), (2, ""), (3, "two")]
    assert stream.empty.first == [2]


@pytest.mark.parametrize("name", ["t.txt", "t.data", "t"])
def test_a_file_is_what_the_campaign_says_it_is(tmp_path, name):
    path = tmp_path / name
    path.write_text("text;n\na;1\nb;2\n")
    stream = TextStream(path, format="csv")
    assert [r.text for p in stream.pieces(9) for r in p] == ["a", "b"]
    assert (stream.columns, stream.suffix) == (("text", "n"), ".csv")


def test_faulty_rows_are_reported_and_left_out(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("id,text\n1,a\n2,b,c\n3,  \n4,d\n")
    stream = TextStream(path)
    assert [r.values["id"] for r in rows_of(stream)] == ["1", "3", "4"]
    told = stream.lines()
    assert told[0] == "Rows without a text, which get no label: 1 (line 4)."
    assert "left out: 1 (line 3); the first is line 3 with 3 cells, not 2." in told[1]
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a"}\nnonsense\n[1]\n{"text": {"x": 1}}\n')
    stream = TextStream(path)
    assert (stream.unreadable.first, stream.empty.first) == ([2, 3], [4])


def test_a_missing_column_is_one_sentence(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("id,Texts\n1,a\n")
    with pytest.raises(DataError) as told:
        TextStream(path)
    assert "has no column 'text'; did you mean 'Texts'? available: id, Texts;" in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("x.csv", b"text\n", "holds no text"),
        ("x.csv", b"", "holds no text"),
        ("x.csv", b"text,text\na,b\n", "names a column twice"),
        ("x.csv", b'text\n"never closed\n', "is broken CSV"),
        ("x.csv", b"text\ncaf\xe9\n", "is not valid UTF-8"),
        ("x.txt", b"\n \n", "holds no text"),
        ("x.jsonl", b"nonsense\n{\n", "holds no text; its first fault is line 1"),
        ("x.jsonl", b"nonsense\n", "is not valid JSON at line 1"),
        ("x.json", b"[1, 2", "is not valid JSON"),
        ("x.parquet", b"nonsense", "is not a readable Parquet file"),
        ("x.doc", b"text", "Cannot tell the format"),
    ],
)
def test_hopeless_files_are_one_sentence(tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=said) as told:
        TextStream(tmp_path / name)
    assert "\n" not in str(told.value)


def test_a_missing_file_suggests_its_neighbour(tmp_path):
    (tmp_path / "reviews.csv").write_text("text\na\n")
    with pytest.raises(DataError, match=r"does not exist; did you mean 'reviews\.csv'\?"):
        TextStream(tmp_path / "review.csv")
    with pytest.raises(DataError, match="is a folder"):
        TextStream(tmp_path)


def test_csv_out_disarms_formulas_and_keeps_numbers(tmp_path):
    source = tmp_path / "x.csv"
    source.write_text("text,n\n=1+1,-5\n@you,+1e3\n-5 apples,\n")
    copy(source, tmp_path / "y.csv")
    with (tmp_path / "y.csv").open(newline="") as handle:
        found = list(csv.DictReader(handle))
    assert [r["text"] for r in found] == ["'=1+1", "'@you", "'-5 apples"]
    assert [r.text for r in rows_of(TextStream(tmp_path / "y.csv"))] == [
        "=1+1",
        "@you",
        "-5 apples",
    ]
    assert [r["n"] for r in found] == ["-5", "+1e3", ""]
    assert found[0]["predicted_label"] == "'=a"
    assert found[0]["guarded_cells"] == '["text", "predicted_label"]'
    assert float(found[0]["p_a"]) == 0.25


def test_parquet_out_keeps_the_types_of_parquet_in(tmp_path):
    schema = pa.schema(
        [("text", pa.large_string()), ("n", pa.int16()), ("l", pa.list_(pa.float32()))]
    )
    table = pa.table({"text": ["a", None, "b"], "n": [1, None, 3], "l": [[1.5], [], None]}, schema)
    pq.write_table(table, tmp_path / "x.parquet")
    stream = copy(tmp_path / "x.parquet", tmp_path / "y.parquet")
    found = pq.read_table(tmp_path / "y.parquet")
    assert found.select(["text", "n", "l"]).equals(table)
    assert found.schema.field("p_a").type == pa.float64()
    assert stream.empty.first == [2]
    copy(tmp_path / "x.parquet", tmp_path / "y.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "y.jsonl").read_text().splitlines()]
    assert lines[1] == {"text": None, "n": None, "l": [], "predicted_label": "=a", "p_a": 0.25}


def test_formulas_are_disarmed_whatever_type_they_come_in(tmp_path):
    formula = ["=1+1", "plain"]
    for cells in (pa.array(formula).dictionary_encode(), pa.array(formula, pa.string_view())):
        pq.write_table(pa.table({"text": ["a", "b"], "x": cells}), tmp_path / "t.parquet")
        assert TextStream(tmp_path / "t.parquet").formulas
        copy(tmp_path / "t.parquet", tmp_path / "out.csv")
        assert "'=1+1" in (tmp_path / "out.csv").read_text()
        copy(tmp_path / "t.parquet", tmp_path / "out.parquet")
        assert pq.read_table(tmp_path / "out.parquet")["x"].to_pylist() == formula
    (tmp_path / "t.jsonl").write_text('{"text": "\\u0000=1+1"}')
    assert TextStream(tmp_path / "t.jsonl").formulas


def test_broken_unicode_can_be_written_everywhere(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "a", "by\\ud83d": "\\ud83d bob"}')
    for suffix in ("csv", "jsonl", "parquet"):
        copy(tmp_path / "t.jsonl", tmp_path / f"out.{suffix}")
        (row,) = rows_of(TextStream(tmp_path / f"out.{suffix}"))
        assert row.values["by\ufffd"] == "\ufffd bob"


def test_texts_inside_of_objects_and_bytes_that_are_no_texts_in_parquet(tmp_path):
    path = tmp_path / "t.parquet"
    columns = {
        "x": [{"text": "a", "l": ["b"]}],
        "bytes": pa.array([b"c"], pa.binary()),
        "category": pa.array(["d"]).dictionary_encode(),
    }
    pq.write_table(pa.table(columns), path)
    for name, text in (("x.text", "a"), ("x.l.0", "b"), ("category", "d")):
        assert [r.text for r in rows_of(TextStream(path, name))] == [text]
    for name in ("x", "bytes"):  # and not what Python shows of them
        with pytest.raises(DataError, match="holds no text"):
            TextStream(path, name)


def test_json_to_parquet_has_strings_where_types_differ(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a", "x": 1}\n{"text": "b", "x": "y"}\n')
    copy(tmp_path / "x.jsonl", tmp_path / "y.parquet")
    assert pq.read_table(tmp_path / "y.parquet")["x"].to_pylist() == ["1", "y"]


def test_writing_is_all_or_nothing(tmp_path):
    source, out = tmp_path / "x.csv", tmp_path / "y.csv"
    source.write_text("text\na\n")
    out.write_text("old")
    stream = TextStream(source)

    def stopped(write):
        write([{"text": "a"}])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), writing(out, stream, ADDED) as write:
        stopped(write)
    assert out.read_text() == "old"

    def refuse():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with (
        pytest.raises(DataError, match=r"cannot be written: No space left on device; nothing was"),
        writing(out, stream, ADDED),
    ):
        refuse()
    assert out.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.csv", "y.csv"]


def test_places_that_cannot_be_written_to(tmp_path):
    source = tmp_path / "x.csv"
    source.write_text("text,p_a\na,1\n")
    os.mkfifo(tmp_path / "pipe.csv")
    stream = TextStream(source)
    for out, said in (
        (tmp_path / "pipe.csv", "is a pipe or a device"),
        (source, "is the source itself"),
        (tmp_path / "y.doc", "Cannot tell the format"),
        (tmp_path, "Cannot tell the format|is a folder"),
        (tmp_path / "y.csv", "has a column 'p_a' already"),
    ):
        with pytest.raises(DataError, match=said), writing(out, stream, ADDED):
            pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pipe.csv", "x.csv"]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path, suffix):
    def peak(n):
        path, out = tmp_path / f"{n}.{suffix}", tmp_path / f"{n}-out.{suffix}"
        text = "words and more words " * 20
        if suffix == "parquet":
            pq.write_table(pa.table({"text": [text] * n}), path)
        else:
            with path.open("w") as handle:
                handle.write("text\n" if suffix == "csv" else "")
                row = text if suffix == "csv" else json.dumps({"text": text})
                handle.writelines(f"{row}\n" for _ in range(n))
        tracemalloc.start()
        stream = TextStream(path)
        with writing(out, stream, ADDED) as write:
            for piece in stream.pieces(200):
                write([{**r.values, "predicted_label": "a", "p_a": 0.5} for r in piece])
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(400)  # what is imported and cached once
    small, large = peak(2_000), peak(12_000)  # 5 MB of texts more
    assert large < small + 1_500_000
