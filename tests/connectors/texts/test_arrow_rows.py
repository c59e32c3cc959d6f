"""Parquet columns of every type: read where they are asked for, else carried along untouched."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connectors.texts.arrow_rows import class_features, column_values, with_class_names
from connectors.texts.read import load_texts, read_texts
from connectors.texts.stream import TextStream, writing

FAR = 253402300800000000 * 10  # microseconds: beyond the year 9999
ODD = {
    "far": pa.array([FAR, None], pa.timestamp("us")),
    "nanoseconds": pa.array([1, None], pa.timestamp("ns")),
    "zone": pa.array([1, None], pa.timestamp("us", tz="Mars/Phobos")),
    "day": pa.array([10**8, None], pa.date32()),
    "time": pa.array([1, None], pa.time64("ns")),
    "duration": pa.array([2**62, None], pa.duration("us")),
    "map": pa.array([[("a", 1), ("a", 2)], None], pa.map_(pa.string(), pa.int64())),
    "struct": pa.array([{"a": 1}, None], pa.struct([("a", pa.int64())])),
    "far list": pa.array([[FAR], None], pa.list_(pa.timestamp("us"))),
    "far struct": pa.array([{"a": FAR}, None], pa.struct([("a", pa.timestamp("us"))])),
    "categories": pa.array(["x", None]).dictionary_encode(),
    "decimal": pa.array([None, None], pa.decimal128(10, 2)),
    "bytes": pa.array([b"\xff", None]),
    "single": pa.array([0.1, None], pa.float32()),
    "unsigned": pa.array([2**64 - 1, None], pa.uint64()),
}


@pytest.mark.parametrize("name", ODD)
def test_a_column_of_any_type_stops_nothing_and_stays_what_it_is(tmp_path, name):
    table = pa.table({"text": ["a", "b"], "gold": ["n", "y"], name: ODD[name]})
    path = tmp_path / "t.parquet"
    pq.write_table(table, path)
    assert [r.gold for r in load_texts(str(path), gold_column="gold")] == ["n", "y"]
    stream = TextStream(path)
    for suffix in ("parquet", "csv", "jsonl"):
        with writing(tmp_path / f"o.{suffix}", stream, {"p": float}) as write:
            for piece in stream.pieces(1):
                write([{**row.values, "p": 0.5} for row in piece])
    back = pq.read_table(tmp_path / "o.parquet")
    written = pq.read_table(path)  # Parquet itself turns some types into others
    assert back.select(["text", "gold", name]).equals(written)
    first, second = map(json.loads, (tmp_path / "o.jsonl").read_text().splitlines())
    assert first[name] is not None or name == "decimal"
    assert second[name] is None


def test_values_that_python_cannot_hold_are_written_as_numbers(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": ["a", "b"], **ODD}), path)
    meta = load_texts(str(path))[0].meta
    assert meta["far"] == FAR
    assert meta["day"] == 10**8
    assert meta["zone"] == "1970-01-01T00:00:00.000001 UTC"
    assert meta["far list"] == [FAR]
    assert meta["far struct"] == {"a": FAR}
    assert meta["unsigned"] == 2**64 - 1


def test_columns_of_one_name_are_left_out_and_said(tmp_path):
    path = tmp_path / "t.parquet"
    names = ["text", "x", "x", "gold"]
    pq.write_table(
        pa.Table.from_arrays([pa.array(["a", "b"])] * 3 + [pa.array(["n", "y"])], names), path
    )
    table = read_texts(str(path), gold_column="gold")
    assert [(p.level, p.kind) for p in table.problems] == [("note", "duplicate_column")]
    assert [r.meta for r in table.rows] == [{}, {}]
    stream = TextStream(path)
    with writing(tmp_path / "o.parquet", stream, {"p": float}) as write:
        for piece in stream.pieces(9):
            write([{**row.values, "p": 0.5} for row in piece])
    assert pq.read_table(tmp_path / "o.parquet").column_names == ["text", "gold", "p"]
    assert "the columns x, which are there several times" in stream.left_out


def test_short_floats_keep_the_digits_that_they_were_written_with():
    values = [0.1, None, 0.7, 1e20]
    for kind, exact in ((pa.float32(), values), (pa.float16(), values[:3])):
        assert column_values(pa.array(exact, kind)) == exact


CLASSES = {"names": ["bad", "good"], "_type": "ClassLabel"}
PLACES = {
    "a number": (CLASSES, [0, 1, -1], ["bad", "good", None]),
    "a list": ({"feature": CLASSES, "_type": "Sequence"}, [[0], [1], []], ["bad", "good", None]),
    "a list as it was": ([CLASSES], [[0], [1], None], ["bad", "good", None]),
    "an object": ({"label": CLASSES}, [{"label": 0}, {"label": 1}, None], ["bad", "good", None]),
    "a list of objects": (
        {"feature": {"label": CLASSES}, "_type": "List"},
        [[{"label": 0}], [{"label": 1}], []],
        ["bad", "good", None],
    ),
}


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("labels", [None, ["bad", "good"]])
def test_class_numbers_have_their_names_wherever_they_are(tmp_path, name, labels):
    feature, values, gold = PLACES[name]
    features = {"text": {"dtype": "string", "_type": "Value"}, "gold": feature}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"text": ["a", "b", "c"], "gold": values}).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "t.parquet")
    rows = load_texts(str(tmp_path / "t.parquet"), gold_column="gold", labels=labels)
    assert [r.gold for r in rows] == gold


def test_what_names_no_classes_changes_nothing():
    for features in ({}, {"a": [CLASSES, CLASSES]}, {"a": "ClassLabel"}, {"b": CLASSES}, [1]):
        metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
        for record in ({"a": 1}, {"a": [1]}, {"a": {"names": 1}}):
            assert with_class_names(dict(record), class_features(metadata)) == record
    for metadata in (None, {}, {b"huggingface": b"[]"}, {b"huggingface": b"\xff"}):
        assert class_features(metadata) == {}
