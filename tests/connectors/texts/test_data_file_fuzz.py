"""Thousands of data files of every format: what goes in comes out, or one sentence says why not.

An oracle keeps what was written by other means than ours, and compares texts, labels and other
columns with what is read, and with what our own files give back.
"""

import bz2
import csv
import gzip
import importlib.util
import io
import json
import lzma
import random
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from workbooks import workbook

from connectors.texts.read import read_texts
from connectors.texts.stream import TextStream, writing
from connectors.texts.tool_exports import read_export
from connectors.texts.write import write_labels
from loop.errors import DataError
from loop.ports import normalise

LABEL_SETS = [
    ["positive", "negative"],
    ["0", "1"],
    ["-1", "0", "1"],
    ["1.0", "2.0", "3.0"],
    ["True", "False"],
    ["true", "false"],
    ["+", "-"],
    ["=a", "@b", "-c"],
    ["'x", "x"],
    ["10:30: morning", "noon; late"],
    ["a|b", 'say "hi"'],
    ["né", "oui"],
    ["é\u0301", "ß"],
    ["[list]", "{obj}"],
    ["Yes", "yes"],
    ["a,b", "a"],
    ["N/A", "null"],
    ["سیاه", "سفید"],
    ["👍", "👎"],
    ["<b>", "&amp;"],
    ["#1", "#2"],
    ["1e3", "x"],
    ["007", "8"],
    ["\u200cz", "z y"],
]
PIECES = [
    "word",
    "two words",
    "=SUM(A1)",
    "+1",
    "-5 stars",
    "@you",
    "'tis",
    "'=x",
    "\t",
    "\n",
    "\r",
    "\r\n",
    '"',
    '""',
    "'",
    ",",
    ";",
    "|",
    "\\",
    "\\n",
    "{",
    "}",
    "[",
    "]",
    "é",
    "e\u0301",
    "\u2028",
    "\u00a0",
    "\u200b",
    "\u202e",
    "👩\u200d💻",
    "می\u200cخواهم",
    "sep=;",
    "#",
    "//",
    "NaN",
    "null",
    "1",
    "0.5",
    "  ",
    "\ufeff",
    "<b>",
    "&lt;",
    "\x1b",
    "\x07",
    "日本",
    "text",
    "guarded_cells",
]
SAME = {"True": True, "False": False, "true": True, "false": False}


class Case:
    """One table, with what a reader must find in it."""

    def __init__(self, seed):
        self.rng = rng = random.Random(seed)
        self.labels = rng.choice(LABEL_SETS)
        self.rows, seen = [], set()
        while len(self.rows) < rng.randint(3, 8):
            text = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 6)))
            if (key := normalise(text)) and key not in seen:
                seen.add(key)
                self.rows.append({"text": text})
        for i, row in enumerate(self.rows):  # two classes at least, and some unknown
            row["gold"] = self.labels[i] if i < 2 else rng.choice([*self.labels, None])
            row["more"] = rng.choice([*PIECES, None, "-3"])
        self.typed = self._typed()

    def _typed(self):
        """The labels as numbers or truth values, where all of them are."""
        if all(label in SAME for label in self.labels):
            return SAME
        try:
            return {label: float(label) for label in self.labels if label != "007"}
        except ValueError:
            return None

    def values(self):
        """Rows with labels as text, or as numbers and truth values."""
        if (
            self.typed
            and len(set(self.typed.values())) == len(self.labels)
            and self.rng.random() < 0.5
        ):
            kind = self.rng.choice([lambda v: v, lambda v: int(v) if v == int(v) else v, float])
            return [
                {**r, "gold": None if r["gold"] is None else kind(self.typed[r["gold"]])}
                for r in self.rows
            ]
        return self.rows


def as_csv(case, rows):
    rng, names = case.rng, list(rows[0])
    rng.shuffle(names)
    delimiter, text = rng.choice(",;\t|"), io.StringIO(newline="")
    quoting = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
    end = rng.choice(["\n", "\r\n"])
    tail = rng.choice([0, 0, 2])
    if declared := rng.random() < 0.2:
        text.write(f"sep={delimiter}{end}")
    # \r\n makes the csv module quote either
    writer = csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator="\r\n")
    writer.writerow(names)
    writer.writerows(
        [["" if r[n] is None else r[n] for n in names] for r in rows] + [[""] * len(names)] * tail
    )
    if declared or rng.random() < 0.5:
        return ("\ufeff" * rng.randint(0, 1) + text.getvalue()).encode(), ".csv"
    suffix = ".tsv" if delimiter == "\t" and rng.random() < 0.5 else ".csv"
    return text.getvalue().encode(), suffix


def as_json(case, rows):
    rng = case.rng
    one = [json.dumps(r, ensure_ascii=rng.random() < 0.5) for r in rows]
    columns = {k: [r[k] for r in rows] for k in rows[0]}
    text = rng.choice(
        [
            "\n".join(one),
            "\r\n".join(one) + "\r\n",
            ",\n".join(one),
            "".join(one),
            json.dumps(rows, indent=rng.choice([None, 1])),
            json.dumps({"data": rows}),
            json.dumps(columns),
            json.dumps({k: dict(enumerate(v)) for k, v in columns.items()}),
            "\n".join(json.dumps(r, indent=2) for r in rows),
            "[\n" + ",\n".join(one) + ",\n]",
        ]
    )
    return text.encode(), rng.choice([".json", ".jsonl", ".ndjson"])


def as_parquet(case, rows):
    table = pa.table({k: pa.array([r[k] for r in rows]) for k in rows[0]})
    if case.rng.random() < 0.3 and pa.types.is_string(table.schema.field("gold").type):
        i = table.schema.get_field_index("gold")
        table = table.set_column(i, "gold", table["gold"].dictionary_encode())
    out = io.BytesIO()
    pq.write_table(table, out, compression=case.rng.choice(["snappy", "zstd", "none"]))
    return out.getvalue(), ".parquet"


def as_workbook(case, rows):
    out = io.BytesIO()
    names = list(rows[0])
    workbook(out, {"one": [names, *([r[n] for n in names] for r in rows)]})
    return out.getvalue(), ".xlsx"


def as_folder(case, rows):
    import datasets

    with tempfile.TemporaryDirectory() as folder:
        columns = {k: [r[k] for r in rows] for k in rows[0]}
        datasets.Dataset.from_dict(columns).save_to_disk(folder)
        return {p.name: p.read_bytes() for p in Path(folder).iterdir()}, ""


WRITERS = [as_csv, as_json, as_parquet]
if importlib.util.find_spec("python_calamine"):
    WRITERS.append(as_workbook)
TEXT = (".csv", ".tsv", ".json", ".jsonl", ".ndjson")
PACKERS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def text_of(value):
    return value.replace("\0", "")


def check_case(seed, folder, writers=WRITERS):
    case = Case(seed)
    rng = case.rng
    write = rng.choice(writers)
    if write is as_workbook:  # XML holds neither control characters nor a lone carriage return
        for row in case.rows:
            for name in ("text", "more"):
                row[name] = row[name] and re.sub(r"[\x00-\x1f]", " ", row[name])
            row["text"] = f"{row['text']} {len(row['text'])}"
    data, suffix = write(case, case.values())
    if write is as_folder:
        check_folder(case, data, folder)
        return
    packed = rng.choice([*PACKERS, "", "", ""]) if suffix in TEXT else ""
    path = folder / f"t{suffix}{packed}"
    path.write_bytes(PACKERS[packed](data))
    wanted = [(r["text"], r["gold"]) for r in case.rows]

    table = read_texts(str(path), gold_column="gold", labels=case.labels)
    assert not table.errors, table.errors
    assert [(r.text, r.gold) for r in table.rows] == wanted
    assert [r.meta["more"] or None for r in table.rows] == [r["more"] for r in case.rows]

    stream = TextStream(path)
    read = [row for piece in stream.pieces(2) for row in piece if row.text]
    assert [r.text for r in read] == [text for text, _ in wanted]
    out = folder / f"out{rng.choice(['.csv', '.tsv', '.jsonl', '.parquet'])}"
    with writing(out, stream, {"predicted": str, "p": float}, case.labels) as put:
        for piece in stream.pieces(3):
            said = [rng.choice(case.labels) for _ in piece]
            put([{**r.values, "predicted": s, "p": 0.5} for r, s in zip(piece, said, strict=True)])
    again = read_texts(str(out), gold_column="gold", labels=case.labels)
    kept = [p for p in again.errors if p.kind != "empty_text"]  # rows that were empty stay
    assert not kept, kept
    assert [(r.text, r.gold) for r in again.rows] == wanted
    assert {r.meta["predicted"] for r in again.rows} <= set(case.labels)

    out = folder / f"labels{rng.choice(['.csv', '.tsv', '.jsonl', '.parquet'])}"
    write_labels([{"id": i, "text": t, "label": g} for i, (t, g) in enumerate(wanted)], out)
    back = read_texts(str(out), gold_column="label", labels=case.labels)
    assert not back.errors, back.errors
    assert [(r.text, r.gold) for r in back.rows] == wanted

    # labels of a labelling tool: the same ones, from the same file
    try:
        given = read_export(str(path), case.labels, text_column="text", label_column="gold").answers
    except DataError as exc:
        raise AssertionError(exc) from exc
    pairs = [(text, a.label) for a in given for text in a.texts.values() if text]
    assert pairs == [(text_of(t), g) for t, g in wanted]

    spoil(path, rng, case.labels)


def check_folder(case, files, folder):
    for name, data in files.items():
        (folder / "saved").mkdir(exist_ok=True)
        (folder / "saved" / name).write_bytes(data)
    table = read_texts(str(folder / "saved"), gold_column="gold", labels=case.labels)
    assert not table.errors, table.errors
    assert [(r.text, r.gold) for r in table.rows] == [(r["text"], r["gold"]) for r in case.rows]
    shutil.rmtree(folder / "saved")


def spoil(path, rng, labels):
    """Damages the file: whatever comes of it is read, or told in a sentence."""
    data = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data))
        if rng.random() < 0.5:
            data[at] = rng.randrange(256)
        else:
            del data[at : at + rng.randint(1, 9)]
        if not data:
            data = bytearray(b"x")
    path.write_bytes(data)
    for problem in read_texts(str(path), gold_column="gold", labels=labels).problems:
        assert problem.message
        assert "\n" not in problem.message
    for read in (lambda: TextStream(path), lambda: read_export(str(path), labels)):
        with suppress(DataError):
            read()


@pytest.mark.parametrize("first", range(0, 100, 25))
def test_what_goes_in_comes_out(first, tmp_path):
    for seed in range(first, first + 25):
        check_case(seed, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("first", range(100, 5100, 500))
def test_what_goes_in_comes_out_of_five_thousand_files(first, tmp_path):
    pytest.importorskip("datasets")
    for seed in range(first, first + 500):
        check_case(seed, tmp_path, [*WRITERS, as_folder])
