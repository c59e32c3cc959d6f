"""Packed files, damaged packing, and files whose first bytes are something else than their name."""

import bz2
import gzip
import lzma

import pytest

from connectors.texts.opening import kind_of, look_at
from connectors.texts.read import find_problems, load_texts
from connectors.texts.stream import TextStream
from loop.errors import DataError

GOOD = b"text,gold\r\na,no\r\nb,yes\r\n"
PACKED = {"t.csv.gz": gzip.compress, "t.csv.bz2": bz2.compress, "t.CSV.xz": lzma.compress}


@pytest.mark.parametrize("name", PACKED)
def test_packed_files_are_read_and_damaged_ones_are_one_sentence(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(PACKED[name](GOOD))
    assert [(r.text, r.gold) for r in load_texts(str(path), gold_column="gold")] == [
        ("a", "no"),
        ("b", "yes"),
    ]
    stream = TextStream(path)
    assert [r.text for piece in stream.pieces(9) for r in piece] == ["a", "b"]
    assert (stream.stem, stream.suffix) == ("t", ".csv")
    whole = path.read_bytes()
    last = len(whole) - 7 if name.endswith(".gz") else len(whole) // 2  # of gzip, its checksum
    for at in (12, last):
        path.write_bytes(whole[:at] + b"\1\1\1\1" + whole[at + 4 :])
        problems = find_problems(str(path), gold_column="gold")
        assert [p.kind for p in problems] == ["unreadable"]
        assert problems[0].message.endswith("pack it again.")
        with pytest.raises(DataError, match="pack it again"):
            TextStream(path)
    path.write_bytes(whole[:-9])
    assert [p.kind for p in find_problems(str(path))] == ["unreadable"]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("t.csv", b"PK\x03\x04rest", "workbook"),
        ("t.jsonl", b"\xd0\xcf\x11\xe0rest", "workbook"),
        ("t.csv.zip", b"PK\x03\x04rest", "is an archive; unpack it and name a file in it"),
        ("t.tar.gz", gzip.compress(b"tar"), "is an archive; unpack it"),
        ("t.zst", b"(\xb5/\xfdrest", "is an archive; unpack it"),
        ("t.csv", b"PAR1rest", "Parquet"),
        ("t.csv", "text,gold\na,b\nc,d\n".encode("utf-16-le"), "UTF-16"),
        ("t.jsonl", '{"text": "a"}'.encode("utf-16"), "UTF-16"),
        ("t.csv", f"text,gold\n{'評價很好的' * 9},一\n".encode("utf-16-le"), "UTF-16"),
        ("t.csv", "a,b\n1,2\n".encode("utf-16-be"), "UTF-16"),
        ("t.csv", b'[{"text": "a"},\n{"text": "b"}]', "holds JSON, not CSV"),
        ("t.tsv", b'{ "text" : "a"}\n', "holds JSON, not CSV"),
        ("t.parquet", b"version https://git-lfs.github.com/spec/v1\noid", "`git lfs pull`"),
        ("t.csv.gz", gzip.compress(b"\n<!DOCTYPE html>\n<html>"), "is a web page"),
        ("t.xls", b"<HTML><table>", "is a web page"),
    ],
)
def test_files_of_another_kind_are_named(tmp_path, name, data, said):
    path = tmp_path / name
    path.write_bytes(data)
    (problem,) = find_problems(str(path))
    assert said in problem.message
    with pytest.raises(DataError, match="unpack it" if "unpack it" in said else None):
        TextStream(path)


def test_the_first_bad_byte_is_found_behind_the_first_piece(tmp_path, monkeypatch):
    monkeypatch.setattr("connectors.texts.opening.CHUNK_BYTES", 5)
    path = tmp_path / "t.csv"
    path.write_bytes("a\né\nü,".encode() + b"\xff\n")
    bad = look_at(path).bad
    assert (bad.offset, bad.line, bad.value) == (8, 3, 0xFF)
    path.write_bytes("héé\n".encode()[:-2])  # cut off in a character
    assert look_at(path).bad.offset == 3
    path.write_bytes(b"\xef\xbb\xbf \n\t\r\n")
    assert look_at(path).blank
    path.write_bytes(b"a\0\n\xff\n")  # neither UTF-8 nor UTF-16
    assert (look_at(path).utf16, look_at(path).bad.offset) == ("", 3)


def test_kinds_by_name(tmp_path):
    names = ["a.csv", "a.tsv.gz", "a.ndjson", "a.PQ", "a.xlsx", "a.gz", "a.txt", "a"]
    kinds = ["csv", "csv", "jsonl", "parquet", "excel", "", "", ""]
    assert [kind_of(tmp_path / name) for name in names] == kinds
