"""Tables under a header: dialects, titles, columns without a name or with one name, workbooks."""

import datetime as dt

import pytest
from workbooks import workbook

from connectors.texts.read import columns_of, find_problems, load_texts, read_texts
from connectors.texts.sheets import Sheet, csv_delimiter
from connectors.texts.stream import TextStream
from loop.errors import DataError


def put(tmp_path, content, name="t.csv"):
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return str(tmp_path / name)


DIALECTS = {
    "sep line": "sep=;\r\ntext;gold\r\na, b;no\r\nc;yes\r\n",
    "quoted sep line and mark": '\ufeff"SEP=|"\ntext|gold\na, b|no\nc|yes\n',
    "bars": "text|gold\na, b|no\nc|yes\n",
    "commas in a name": '"text";"gold";"a,b,c,d"\na, b;no;1\nc;yes;2\n',
    "commas in texts": "text;gold\na, b;no\nc;yes\n",
    "empty rows at the end": "text;gold\na, b;no\nc;yes\n;\n;\n",
    "delimiters at the ends": "text;gold;\na, b;no;\nc;yes;;;\n",
    "delimiter at the header's end alone": "text;gold;\na, b;no\nc;yes\n",
    "old Macintosh": "text;gold\ra, b;no\rc;yes\r",
    "quotes behind spaces": 'text, gold\n"a, b", "no"\nc, "yes"\n',
    "marks in the header": "\ufeff\ufefftext;\u200bgold\u00a0\na, b;no\nc;yes\n",
    "white space and the end of a DOS file": "text;gold; \na, b;no;\u3000\nc;yes\n\x1a",
    "spaces in the header": '" text ";gold \na, b;no\nc;yes\n',
}


@pytest.mark.parametrize("name", DIALECTS)
def test_every_dialect_reads_the_same(tmp_path, name):
    source = put(tmp_path, DIALECTS[name])
    rows = load_texts(source, gold_column="gold", labels=["no", "yes"])
    assert [(r.text, r.gold) for r in rows] == [("a, b", "no"), ("c", "yes")]
    stream = TextStream(tmp_path / "t.csv")
    assert [r.text for p in stream.pieces(9) for r in p if r.text] == ["a, b", "c"]


def test_a_space_before_a_quote_is_part_of_the_text_where_quoting_does_not_explain_it(tmp_path):
    for cell in (' "Hello" she said', ' "a', '" ""a"""', "' \"a\"'"):
        source = put(tmp_path, f"gold,text,n\nno,{cell},1\nyes,c,2\n")
        text = load_texts(source)[0].text
        assert '"' in text
    source = put(tmp_path, 'gold,text\nno, a\n"no"," ""b, ""c"\n')  # quoted as it should be
    assert [r.text for r in load_texts(source)] == [" a", ' "b, "c']
    source = put(tmp_path, 'gold,text\nno, "a, b"\nyes, "c" d\n')  # neither way is right
    assert any(p.level == "error" for p in find_problems(source))
    long = "".join(f'no, "{"x" * 90}\n{i}"\n' for i in range(1000))  # the sample ends in a cell
    assert len(load_texts(put(tmp_path, f"gold,text\n{long}"))) == 1000


def test_a_tsv_file_with_commas_is_read_as_what_it_is(tmp_path):
    source = put(tmp_path, "text,gold\na,no\nb,yes\n", "t.tsv")
    assert [r.text for r in load_texts(source, gold_column="gold")] == ["a", "b"]
    source = put(tmp_path, "text,n\tgold\na\tno\nb\tyes\n", "t.tsv")
    assert load_texts(source, text_column="text,n")[0].text == "a"


def test_delimiters_are_told_by_names_then_by_even_rows():
    assert csv_delimiter("text,a;b;c;d\nx,1\n", ["text"]) == ","
    assert csv_delimiter("one, two;gold\na, b, c;1\nd, e;2\n") == ";"
    assert csv_delimiter("text\nhello; you|there\n") == ","
    assert csv_delimiter("text\nhello, you\na; b, c\n") in "\t|"  # one column, and no quotes
    assert csv_delimiter("text;gold\na, b;1\nc, d\ne;f;g;h\n") == ";"
    title = 'Report\n\ntext,gold\n"a; b",1\n"c; d",2\n"e",3\n'
    assert csv_delimiter(title) == csv_delimiter(title, ["text"]) == ","
    assert csv_delimiter("text\na,b\nc,d\ne,f\ng,h\n", ["text"]) != ","  # one column


TITLED = {
    "a line": "Report of May\n\n{}",
    "a comment": "# exported, 2026; by me\n{}",
    "a separator in words": "sep=comma\n{}",
}


@pytest.mark.parametrize("name", TITLED)
def test_lines_above_the_header_are_told(tmp_path, name):
    rows = "".join(f'"text {i}; or, so","{"yes" if i % 2 else "no"}"\n' for i in range(9))
    source = put(tmp_path, TITLED[name].format(f"text,gold\n{rows}"))
    for problem in find_problems(source, gold_column="gold")[:2]:
        assert "looks like the header: remove the rows above it" in problem.message
    with pytest.raises(DataError, match="looks like the header: remove the rows above it"):
        TextStream(tmp_path / "t.csv")


def test_a_header_that_lacks_names_is_told(tmp_path):
    source = put(tmp_path, "text,gold\n1,a,no\n2,b,yes\n")  # as R writes the names of rows
    with pytest.raises(DataError, match=r"has 2 cells in its first row.* and 3 in every other row"):
        columns_of(source)
    source = put(tmp_path, "text,gold\na,no,1\nb,yes\n")
    (problem,) = find_problems(source, gold_column="gold")[:1]
    assert "has 1 row whose number of cells is not the header's 2 (line 2: 3)" in problem.message


def test_a_header_that_is_repeated_is_no_text(tmp_path):
    half = "text,gold\na,no\nb,yes\n"
    source = put(tmp_path, f"{half}\ufeff{half}text,yes\n".replace("\n", "\r\n"))
    table = read_texts(source, gold_column="gold", labels=["no", "yes"])
    assert [r.text for r in table.rows] == ["a", "b", "text"]
    assert "repeats the names of its columns in 1 row (line 4), left out" in str(table.problems)
    stream = TextStream(tmp_path / "t.csv")
    assert [r.text for piece in stream.pieces(9) for r in piece] == ["a", "b", "a", "b", "text"]
    assert stream.lines() == ["Left out: 1 row that repeats the column names."]
    source = put(tmp_path, "text\ntext\na\n")  # of one column nobody can tell
    assert [r.text for r in load_texts(source)] == ["text", "a"]


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_rows_that_a_stray_quote_swallows_are_told(tmp_path, mark):
    rows = [[f"text {i}", "yes", "no"] for i in range(9)]
    rows[2][0], rows[6][0] = '"Great, but it broke'.replace(",", " "), 'only 42"'
    path = tmp_path / "t.csv"
    path.write_text("\n".join(mark.join(row) for row in [["text", "gold", "llm"], *rows]))
    (problem, *_) = find_problems(str(path), gold_column="gold", labels=["yes", "no"])
    assert problem.level == "error"
    assert (
        "1 quoted cell that holds lines which look like rows (line 4: 5 lines)" in problem.message
    )
    assert "look like rows" in " ".join(TextStream(path).lines())


@pytest.mark.parametrize(
    "text", ["Roses are red,\nviolets are blue,\nsugar is sweet", "a, b\nc, d\ne", "1\n2\n3"]
)
def test_texts_of_several_lines_are_texts(tmp_path, text):
    path = tmp_path / "t.csv"
    path.write_text(f'text,gold\n"{text}",yes\nplain,no\n')
    assert [r.text for r in read_texts(str(path), gold_column="gold").rows] == [text, "plain"]
    assert TextStream(path).lines() == []


def test_rows_of_empty_cells_are_left_out_and_counted(tmp_path):
    source = put(tmp_path, "text,gold\na,no\n,\nb,yes\n,,,\n")
    problems = find_problems(source, gold_column="gold")
    assert [(p.level, p.kind, p.rows) for p in problems] == [("note", "blank_row", (3, 5))]
    seen = put(tmp_path, "text,gold\na,no\n ,\u00a0\nb,yes\n ,\u3000,\t,\n", "seen.csv")
    assert [p.rows for p in find_problems(seen, gold_column="gold")] == [(3, 5)]
    stream = TextStream(tmp_path / "t.csv")  # rows of a prediction stay in their place
    assert [r.text for p in stream.pieces(9) for r in p] == ["a", "", "b", ""]


def test_names_of_several_lines_stay_in_one_line_of_the_message(tmp_path):
    source = put(tmp_path, '"a\nb",gold\nx,no\ny,yes\n')
    (problem,) = find_problems(source, gold_column="gold")
    assert "available: 'a b', gold; set" in problem.message
    with pytest.raises(DataError, match="available: 'a b', gold; name"):
        TextStream(tmp_path / "t.csv")


def test_a_title_above_the_header_is_told(tmp_path):
    source = put(tmp_path, "Reviews 2024;;\n;;\ntext;gold;n\na;no;1\nb;yes;2\n")
    first, second = find_problems(source, gold_column="gold")[:2]
    found = find_problems(put(tmp_path, "# 2024\ntext,gold\na,no\nb,yes\n", "b.csv"))
    assert [p.kind for p in found] == ["missing_column"]  # and not that the rows are uneven
    assert (first.kind, second.kind) == ("missing_column", "missing_column")
    assert "row 3 looks like the header: remove the rows above it" in first.message


def test_columns_that_nobody_asked_for_stop_nothing(tmp_path):
    source = put(tmp_path, "text,x,x,,gold\na,1,2,,no\nb,3,4,five,yes\n")
    table = read_texts(source, gold_column="gold", labels=["no", "yes"])
    assert [r.meta for r in table.rows] == [{"x": "1"}, {"x": "3"}]
    assert [(p.level, p.kind) for p in table.problems] == [
        ("note", "duplicate_column"),
        ("note", "unnamed_column"),
    ]
    stream = TextStream(tmp_path / "t.csv")
    assert stream.columns == ("text", "x", "gold")
    assert stream.lines() == [
        "Left out: all but the first of the columns x.",
        "Left out: 1 value under no column name.",
    ]
    (problem,) = find_problems(put(tmp_path, "text,text\na,b\n"))
    assert (problem.level, problem.kind) == ("error", "duplicate_column")


def test_a_file_that_is_not_ours_keeps_its_apostrophes(tmp_path):
    source = put(tmp_path, "text,n\n'=1+1,'@x\n'quoted',2\n")
    assert [(r.text, r.meta["n"]) for r in load_texts(source)] == [
        ("'=1+1", "'@x"),
        ("'quoted'", "2"),
    ]
    marked = 'text,guarded_cells\n\'=1+1,"[""text""]"\n\'=1+1,\n=2+2,"[""text""]"\nx,not json\n'
    rows = load_texts(put(tmp_path, marked))
    assert [r.text for r in rows] == ["=1+1", "'=1+1", "=2+2", "x"]
    assert rows[0].meta == {}


def test_cells_of_a_workbook_are_values():
    rows = [(2, ["", ""]), (3, ["text", 1.0, None]), (4, ["a", dt.date(2020, 1, 2), ""])]
    sheet = Sheet(rows, names=["text"])
    assert sheet.columns == ("text", "1")
    assert list(sheet) == [(4, {"text": "a", "1": dt.date(2020, 1, 2)})]


def test_a_workbook_is_read_like_a_table(tmp_path):
    pytest.importorskip("python_calamine", reason="the extra 'excel' is not installed")
    rows = [
        [None, None],
        ["text", "gold", "sure"],
        ["=1+1 is two", 1, 0.5],
        ["b\nc", False, None],
        [None, None, None],
        ["d", "1.0", "-3"],
    ]
    workbook(tmp_path / "t.xlsx", {"Reviews": rows, "other": [["x"]]})
    table = read_texts(str(tmp_path / "t.xlsx"), gold_column="gold", labels=["0", "1"])
    assert [(r.text, r.gold, r.line) for r in table.rows] == [
        ("=1+1 is two", "1", 3),
        ("b\nc", "0", 4),
        ("d", "1", 6),
    ]
    assert [r.meta["sure"] for r in table.rows] == [0.5, "", "-3"]
    first = next(TextStream(tmp_path / "t.xlsx").pieces(9))[0]
    assert repr(first.values["gold"]) == "1"
    assert all(not isinstance(v, float) or v == 0.5 for r in table.rows for v in r.meta.values())
    assert {p.kind for p in table.problems} == {"sheets", "blank_row", "respelt_label"}
    stream = TextStream(tmp_path / "t.xlsx")
    assert (stream.suffix, stream.rows, stream.left_out) == (
        ".csv",
        4,
        ["the sheets besides the first one, 'Reviews'"],
    )
    (tmp_path / "bad.xlsx").write_bytes(b"PK\x03\x04 no workbook")
    (problem,) = find_problems(str(tmp_path / "bad.xlsx"))
    assert "is not a readable workbook" in problem.message


def test_labels_that_merged_cells_swallow_are_told(tmp_path):
    pytest.importorskip("python_calamine", reason="the extra 'excel' is not installed")
    rows = [["text", "gold"], ["a", "no"], ["b", None], ["c", None], ["d", "yes"]]
    workbook(tmp_path / "t.xlsx", {"S": rows}, merged=["B2:B4", "A5:B5"])
    (note,) = find_problems(str(tmp_path / "t.xlsx"), gold_column="gold")
    assert (note.kind, note.rows) == ("merged_cells", (2,))
    assert "1 cell merged over several rows (row 2), of which only the first row" in note.message


def test_without_the_extra_a_workbook_says_what_to_install(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "python_calamine", None)
    (problem,) = find_problems(put(tmp_path, b"PK\x03\x04", "t.xlsx"))
    assert "pip install 'goldloop[excel]'" in problem.message
