"""Exports of labelling tools: whose answer, which label, and why there is none."""

import csv
import io
import json

import pytest

from connectors.texts.read import read_texts
from connectors.texts.tool_exports import read_export
from loop.errors import DataError

BOTH = ("positive", "negative")


def choices(*labels, tag="sentiment"):
    value = {"choices": list(labels)}
    return [{"from_name": tag, "to_name": "text", "type": "choices", "value": value}]


def answers(tmp_path, content, name="t.json", **columns):
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    found = read_export(str(tmp_path / name), BOTH, **columns)
    told = ((next(iter(a.texts.values())), a) for a in found.answers)
    return found.tool, [(text, a.person, a.label, a.problem) for text, a in told]


def task(text, *annotations, **more):
    return {"id": 1, "data": {"text": text}, "annotations": list(annotations), **more}


def test_label_studio_tasks(tmp_path):
    said = {"completed_by": 1, "was_cancelled": False}
    tasks = [
        task("one", said | {"result": choices("positive")}),
        task("skip", said | {"result": choices("positive"), "was_cancelled": True}),
        task("empty", said | {"result": []}),
        task("none", predictions=[{"result": choices("positive")}]),
        task("draft", drafts=[{"result": choices("positive")}]),
        task(
            "two",
            said | {"result": choices("positive")},
            said | {"result": choices("Negative"), "completed_by": {"id": 2, "email": "b@x"}},
        ),
        task("several", said | {"result": choices("positive", "negative")}),
        task("other", said | {"result": choices("neutral")}),
        task("unsure", said | {"result": choices("Unsure / none fits")}),
        task("stars", said | {"result": [{"type": "rating", "value": {"rating": 4}}]}),
        task("odd", None, said | {"result": "x"}, 7),
    ]
    tool, found = answers(tmp_path, tasks)
    assert tool == "Label Studio"
    assert found == [
        ("one", "1", "positive", ""),
        ("skip", "1", None, "skipped"),
        ("empty", "1", None, "empty"),
        ("none", "", None, "nobody answered"),
        ("draft", "", None, "draft alone"),
        ("two", "1", "positive", ""),
        ("two", "b@x", "negative", ""),
        ("several", "1", None, "several labels"),
        ("other", "1", None, "unknown label 'neutral'"),
        ("unsure", "1", None, "unsure"),
        ("stars", "1", None, "unknown label '4'"),
        ("odd", "1", None, "empty"),
    ]
    tags = [task("a", said | {"result": choices("negative") + choices("positive", tag="mood")})]
    assert answers(tmp_path, tags)[1][0][2:] == (None, "several labels")
    assert answers(tmp_path, tags, label_column="mood")[1][0][2] == "positive"


def test_label_studio_of_several_tags_and_of_old(tmp_path):
    both = {"result": choices("positive", tag="a") + choices("positive", tag="b")}
    tool, found = answers(tmp_path, [task("one", both), task("two", both)])
    assert "whose tags a, b all hold labels: name one with --label-column" in tool
    assert [f[2:] for f in found] == [(None, "several labels")] * 2  # a and b may ask other things
    assert answers(tmp_path, [task("one", both)], label_column="b")[1][0][2] == "positive"
    topic = {"result": choices("positive", tag="a") + choices("sports", tag="topic")}
    assert answers(tmp_path, [task("one", topic)])[1][0][2:] == ("positive", "")
    old = {"data": {"text": "b"}, "completions": [{"result": choices("negative")}]}
    tool, found = answers(tmp_path, [{"data": {"text": "a"}}, old, task("c", 7) | {"x": 1}])
    assert tool == "Label Studio"
    assert [f[2:] for f in found] == [
        (None, "nobody answered"),
        ("negative", ""),
        (None, "nobody answered"),
    ]


ROWS = [
    {"annotation_id": 1, "annotator": 1, "lead_time": 2.5, "text": "a", "mood": "positive"},
    {"annotation_id": 2, "annotator": 2, "lead_time": 2.5, "text": "a", "mood": "negative"},
    {
        "annotation_id": 3,
        "annotator": 1,
        "lead_time": 2.5,
        "text": "b",
        "mood": {"choices": ["positive", "negative"]},
    },
    {"annotation_id": 4, "annotator": 1, "lead_time": 2.5, "text": "c", "mood": ""},
]


def as_csv(rows):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(
        {k: json.dumps(v) if isinstance(v, dict) else v for k, v in row.items()} for row in rows
    )
    return text.getvalue()


@pytest.mark.parametrize("name", ["min.json", "t.csv"])
def test_label_studio_rows(tmp_path, name):
    content = json.dumps(ROWS) if name.endswith("json") else as_csv(ROWS)
    tool, found = answers(tmp_path, content, name)
    assert tool == "Label Studio"
    assert found == [
        ("a", "1", "positive", ""),
        ("a", "2", "negative", ""),
        ("b", "1", None, "several labels"),
        ("c", "1", None, "empty"),
    ]


def lines(*rows):
    return "\n".join(map(json.dumps, rows))


@pytest.mark.parametrize(
    ("tool", "content", "found"),
    [
        (
            "doccano",
            lines(
                {"id": 1, "text": "a", "label": ["positive"], "Comments": []},
                {"id": 2, "text": "b", "label": [], "Comments": []},
                {"id": 3, "text": "c", "label": ["positive", "negative"], "Comments": []},
            ),
            [("positive", ""), (None, "empty"), (None, "several labels")],
        ),
        (
            "Prodigy",
            lines(
                {"text": "a", "accept": ["positive"], "answer": "accept", "_input_hash": 1},
                {"text": "b", "accept": ["positive"], "answer": "reject", "_input_hash": 2},
                {"text": "c", "accept": [], "answer": "accept", "_input_hash": 3},
                {"text": "d", "accept": ["negative"], "answer": "ignore", "_input_hash": 4},
            ),
            [
                ("positive", ""),
                (None, "answer = 'reject'"),
                (None, "empty"),
                (None, "answer = 'ignore'"),
            ],
        ),
        (
            "Prodigy",
            lines(
                {"text": "a", "label": "positive", "answer": "accept"},
                {"text": "b", "label": "positive", "answer": "reject"},
            ),
            [("positive", ""), (None, "answer = 'reject'")],
        ),
        (
            "Argilla",  # until version 1
            lines(
                {"text": "a", "annotation": "positive", "annotation_agent": "u"}
                | {"status": "Validated", "prediction": [["negative", 0.9]]},
                {"text": "b", "annotation": "positive", "annotation_agent": "u"}
                | {"status": "Discarded"},
            ),
            [("positive", ""), (None, "status = 'Discarded'")],
        ),
        (
            "column 'mood'",  # Argilla's feedback of version 1, in two forms
            lines(
                {
                    "text": "a",
                    "mood": [
                        {"user_id": "u", "value": "positive", "status": "submitted"},
                        {"user_id": "v", "value": "negative", "status": "discarded"},
                    ],
                },
                {
                    "text": "b",
                    "mood": {
                        "user_id": ["u", "v"],
                        "value": ["positive", "negative"],
                        "status": ["draft", "submitted"],
                    },
                },
            ),
            [
                ("positive", ""),
                (None, "status 'discarded'"),
                (None, "status 'draft'"),
                ("negative", ""),
            ],
        ),
        (
            "column 'annotations'",  # doccano until version 1
            lines(
                {
                    "text": "a",
                    "annotations": [
                        {"label": "positive", "user": 1},
                        {"label": "negative", "user": 2},
                    ],
                },
                {"text": "b", "annotations": [{"label": 3, "user": 1}]},
            ),
            [("positive", ""), ("negative", ""), (None, "unknown label '3'")],
        ),
        (
            "Prodigy",  # whose options have numbers
            lines(
                *(
                    {
                        "text": "a",
                        "options": [{"id": 0, "text": "negative"}, {"id": "P", "text": "positive"}],
                        "accept": [chosen],
                        "answer": "accept",
                    }
                    for chosen in (0, "P", 7)
                )
            ),
            [("negative", ""), ("positive", ""), (None, "unknown label '7'")],
        ),
        (
            "spaCy",
            lines(
                {"text": "a", "cats": {"positive": 1.0, "negative": 0.0}},
                {"text": "b", "cats": {"positive": 0.0, "negative": 0.0}},
                {"text": "c", "cats": {"positive": 1.0, "negative": 1.0}},
            ),
            [("positive", ""), (None, "empty"), (None, "several labels")],
        ),
        (
            "Argilla",
            lines(
                {
                    "text": "a",
                    "q.responses": ["positive", "negative", "negative"],
                    "q.responses.users": ["u", "v", "w"],
                    "q.suggestion": "negative",
                    "q.responses.status": ["submitted", "submitted", "discarded"],
                },
                {"text": "b", "q.responses": [], "q.suggestion": "positive"},
            ),
            [
                ("positive", ""),
                ("negative", ""),
                (None, "status 'discarded'"),
                (None, "nobody answered"),
            ],
        ),
        (
            "Argilla",
            lines(
                {
                    "fields": {"text": "a"},
                    "suggestions": {"q": {"value": "negative"}},
                    "responses": {"q": [{"value": "positive", "user_id": "u"}]},
                },
                {"fields": {"text": "b"}, "responses": {}},
            ),
            [("positive", ""), (None, "nobody answered")],
        ),
    ],
)
def test_tools_that_write_one_record_a_text(tmp_path, tool, content, found):
    wrote, read = answers(tmp_path, content, "t.jsonl")
    assert wrote == tool
    assert [answer[2:] for answer in read] == found
    assert read[0][0] == "a"


def test_questions_and_predictions_are_not_taken_for_one_answer(tmp_path):
    given = {q: [{"value": "positive", "user_id": "u"}] for q in ("spam", "toxic")}
    record = {"fields": {"text": "a"}, "responses": given}
    with pytest.raises(DataError, match="several questions with labels: spam, toxic"):
        answers(tmp_path, [record])
    assert answers(tmp_path, [record], label_column="toxic")[1] == [("a", "u", "positive", "")]
    with pytest.raises(DataError, match=r"but for predictions \(pred, gpt4\)"):
        answers(tmp_path, "text,pred,gpt4\na,positive,negative\n", "t.csv")


def test_labels_of_a_machine_in_our_own_exports_are_nobodys(tmp_path):
    header = "text,label,source,how,llm_label\n"
    rows = (
        "a,positive,llm,llm,positive\n"
        "b,negative,llm,llm,positive\n"  # somebody corrected it
        "c,positive,gold,single,negative\n"
        "d,positive,repaired,soft,negative\n"
        "e,positive,known,,\n"
    )
    want = [
        (None, "source = 'llm'"),
        ("negative", ""),
        ("positive", ""),
        (None, "source = 'repaired'"),
        ("positive", ""),
    ]
    tool, found = answers(tmp_path, header + rows, "t.csv")
    assert (tool, [f[2:] for f in found]) == ("goldloop", want)
    taken = header.replace("label,source", "goldloop_label,goldloop_source") + rows
    (tmp_path / "u.csv").write_text(taken.replace("\n", ",negative\n").replace("h,n", "h,l", 1))
    source = str(tmp_path / "u.csv")
    table = read_texts(source, gold_column="goldloop_label", labels=BOTH)
    assert [r.gold for r in table.rows] == [label for label, _ in want]
    assert "2 labels that people did not confirm: source = 'llm' (1)" in table.problems[0].message
    beside = [line.replace(",", ",negative,", 1) for line in (header + rows).splitlines()]
    beside[0] = header.replace(",", ",gold,", 1).strip()  # all rows of a source with gold
    tool, found = answers(tmp_path, "\n".join(beside), "t.csv")
    assert (tool, [f[2:] for f in found]) == ("goldloop", want)
    plain = "text,label,source\na,positive,llm\n"  # anybody's table
    assert answers(tmp_path, plain, "t.csv")[1][0][2] == "positive"


REFUSED = {
    "Label Sleuth, not of the category": (
        "text,category_name,label,label_type\na,positive,true,Standard\nb,positive,false,Standard\n",
        "label = 'false'",
    ),
    "Label Sleuth, of a rule": (
        "text,category_name,label,label_type\na,positive,true,Standard\nb,negative,true,Weak\n",
        "label_type = 'Weak'",
    ),
    "Mechanical Turk": (
        "WorkerId,AssignmentStatus,text,Answer.mood\nw,Approved,a,positive\nw,Rejected,b,positive\n",
        "AssignmentStatus = 'Rejected'",
    ),
    "Toloka": (
        "INPUT:text,OUTPUT:mood,ASSIGNMENT:status\na,positive,APPROVED\nb,positive,REJECTED\n",
        "ASSIGNMENT:status = 'REJECTED'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_answers_that_were_refused_are_none(tmp_path, name):
    content, why = REFUSED[name]
    _, found = answers(tmp_path, content, "t.csv")
    assert [f[2:] for f in found] == [("positive", ""), (None, why)]
    header = content.partition("\n")[0].split(",")
    gold = next(n for n in header if n in ("category_name", "Answer.mood", "OUTPUT:mood"))
    text = next(n for n in header if n.endswith("text"))
    columns = {"text_column": text, "gold_column": gold, "labels": BOTH, "meta_columns": None}
    table = read_texts(str(tmp_path / "t.csv"), **columns)
    assert [r.gold for r in table.rows] == ["positive", None]


def test_one_record_alone_is_not_taken_for_a_list(tmp_path):
    options = [{"id": 0, "text": "positive"}, {"id": 1, "text": "negative"}]
    record = {"text": "a", "options": options, "accept": [1], "answer": "accept"}
    assert answers(tmp_path, record)[1] == [("a", "", "negative", "")]
    record = {"text": "a", "mood": [{"user_id": "u", "value": "positive"}]}
    assert answers(tmp_path, record, "t.jsonl")[1] == [("a", "u", "positive", "")]


def test_questions_that_nobody_answered_yet_are_no_error(tmp_path):
    for given in (None, []):
        record = {"text": "a", "q.suggestion": "positive", "q.responses": given}
        tool, found = answers(tmp_path, lines(record, record), "t.jsonl")
        assert (tool, found[0][2:]) == ("Argilla", (None, "nobody answered"))


def test_a_table_must_tell_which_column_holds_the_labels(tmp_path):
    table = "text,mood,second,model_label\na,positive,negative,positive\nb,negative,,positive\n"
    with pytest.raises(DataError, match="several columns with labels: mood, second"):
        answers(tmp_path, table, "t.csv")
    found = answers(tmp_path, table, "t.csv", label_column="mood")[1]
    assert [f[2] for f in found] == ["positive", "negative"]
    with pytest.raises(DataError, match="no column whose values are the campaign's labels"):
        answers(tmp_path, "text,mood\na,happy\n", "t.csv")
    with pytest.raises(DataError, match="holds no rows"):
        answers(tmp_path, "text,mood\n", "t.csv")
    with pytest.raises(DataError, match="does not exist"):
        read_export(str(tmp_path / "none.json"), BOTH)


def test_columns_that_are_not_there_are_refused(tmp_path):
    table = "text,label,who\none,positive,ann\ntwo,negative,bob\n"
    for columns in ({"label_column": "labl"}, {"text_column": "txt"}):
        with pytest.raises(DataError, match=r"has no column .*; did you mean .*it has text, label"):
            answers(tmp_path, table, "t.csv", **columns)
    assert answers(tmp_path, table, "t.csv", text_column="text", label_column="label")[1]
    tasks = [task("one", {"completed_by": 1, "result": choices("positive")})]
    with pytest.raises(DataError, match="has no column 'words'"):
        answers(tmp_path, tasks, text_column="words")
    for columns in ({"text_column": "text"}, {"text_column": "data.text"}):
        assert answers(tmp_path, tasks, label_column="sentiment", **columns)[1][0][2] == "positive"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([task("a", {"result": choices("positive")})], "no tag 'sentimnt'; did you mean 'sentime"),
        (
            [{"fields": {"text": "a"}, "responses": {"sentiment": [{"value": "positive"}]}}],
            "has no question 'sentimnt'; did you mean 'sentiment'",
        ),
    ],
)
def test_a_tag_or_question_that_is_not_there_is_refused(tmp_path, content, said):
    with pytest.raises(DataError, match=said):
        answers(tmp_path, content, label_column="sentimnt")
    assert answers(tmp_path, content, label_column="sentiment")[1][0][2] == "positive"


def test_what_is_no_text_is_not_taken_for_one(tmp_path):
    record = {"text": None, "inputs": {"review": "fine"}, "annotation": "positive"}
    record |= {"annotation_agent": "argilla", "status": "Validated", "id": "x1"}
    (tmp_path / "t.json").write_text(json.dumps([record]))
    assert read_export(str(tmp_path / "t.json"), BOTH).answers[0].texts == {"review": "fine"}
    (tmp_path / "t.csv").write_text("comment,label,annotator,city\nfine,positive,ann,Rome\n")
    (answer,) = read_export(str(tmp_path / "t.csv"), BOTH).answers
    assert answer.texts == {"comment": "fine", "city": "Rome"}


def test_the_split_of_a_data_set_can_be_named(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the extra 'datasets' is not installed")
    rows = datasets.Dataset.from_dict({"text": ["a"], "label": ["positive"]})
    datasets.DatasetDict({"test": rows}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DataError, match="no split 'train'"):
        read_export(str(tmp_path / "saved"), BOTH)
    assert read_export(str(tmp_path / "saved"), BOTH, hf_split="test").answers[0].label


def test_what_of_a_file_is_not_read_is_told(tmp_path):
    rows = [{"text": "a", "label": "positive"}]
    (tmp_path / "t.json").write_text(json.dumps({"data": rows, "archive": rows}))
    (note,) = read_export(str(tmp_path / "t.json"), BOTH).notes
    assert "what stands under archive is not read" in note
    (tmp_path / "u.json").write_text(json.dumps(rows))
    assert read_export(str(tmp_path / "u.json"), BOTH).notes == ()
