"""The command line as its user meets it: sentences, exit codes, and nothing lost."""

import csv
import gc
import json
import re
import shlex
import subprocess
import sys
import tomllib
from contextlib import closing
from pathlib import Path

import pytest
import typer

from connectors.label_studio.server import server_folder
from loop.campaign.campaign_file import quoted
from loop.campaign.config import load
from loop.campaign.store import Store
from loop.cli import __main__ as cli
from loop.cli.serving import _as_it_is, _Connection
from loop.cli.terminal import say
from loop.errors import LoopError

ROOT = Path(__file__).parents[3]


def goldloop(monkeypatch, capsys, *args, asks=False):
    """Runs the command in this process: exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["goldloop", *map(str, args)])
    monkeypatch.setattr("sys.stdin.isatty", lambda: asks, raising=False)
    try:
        cli.main()
        code = 0
    except SystemExit as exc:
        code = int(exc.code or 0)
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    return lambda *args, **how: goldloop(monkeypatch, capsys, *args, **how)


CAMPAIGN = """\
[campaign]
name = "c"
task = "t"

[[labels]]
name = "yes"

[[labels]]
name = {second}

[texts]
source = {source}
gold_column = "gold"

[annotator]
kind = "recorded"
columns = ["llm"]

[strategy]
signals = ["margin"]

[budget]
labels = 10

[rounds]
batch_size = 10
audit = "uniform"

[label_studio]
url = {url}
"""


def write_campaign(folder, *, source="t.csv", second="no", url="local", extra=""):
    text = CAMPAIGN.format(source=quoted(source), second=quoted(second), url=quoted(url)) + extra
    (folder / "goldloop.toml").write_text(text, encoding="utf-8")


def write_texts(folder, rows, header=("text", "gold", "llm")):
    with (folder / "t.csv").open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([header, *rows])


def good_rows(n=40, second="no"):
    return [(f"text number {i}", ["yes", second][i % 2], "yes") for i in range(n)]


def one_sentence(err):
    lines = [line for line in err.splitlines() if line.startswith(("Error", "error"))]
    assert "Traceback" not in err
    assert lines, err
    return "\n".join(lines)


def test_init_check_and_status_from_flags(run, tmp_path):
    write_texts(tmp_path, good_rows())
    given = (
        "init",
        "t.csv",
        "--task",
        "Decide.",
        "--gold-column",
        "gold",
        "--label",
        "yes: it is",
        "--label",
        "no",
    )
    code, _, err = run(*given, "--source", "u.csv")
    assert code == 1
    assert "t.csv and --source u.csv are two sources; give one of them." in err
    code, _, err = run(*given)
    assert code == 0, err
    data = tomllib.loads(Path("goldloop.toml").read_text())
    assert [la["name"] for la in data["labels"]] == ["yes", "no"]
    # As many steps as are advised for so few texts.
    assert (data["student"]["epochs"], data["student"]["batch_size"]) == (20, 8)
    code, _, err = run("check")
    assert code == 0, err  # the budget follows the source
    Path("goldloop.toml").write_text(
        Path("goldloop.toml").read_text().replace("labels = 10 ", "labels = 300 ")
    )
    code, _, err = run("check")
    assert (code, "budget.labels 300 is larger than the pool" in err) == (1, True)
    write_texts(tmp_path, good_rows(500))
    code, _, err = run("check")
    assert code == 0, err
    assert "is fine" in err
    assert "100 to test on (100 with a known label)" in err
    assert "learning rate 2e-05, which fits roberta-base (student.lr sets another)" in err
    write_campaign(tmp_path)
    write_texts(tmp_path, [(text, gold, llm.upper()) for text, gold, llm in good_rows(500)])
    code, _, err = run("check")
    assert (code, err.count("column 'llm': yes 100 %, no 0 % of 500 labels")) == (0, 1)
    code, _, err = run(*given[:-4], "--force", "--label", "10:30: morning", "--label", "a:b")
    data = tomllib.loads(Path("goldloop.toml").read_text())
    assert (data["student"]["epochs"], data["student"]["batch_size"]) == (6, 8)
    assert [(la["name"], la["description"]) for la in data["labels"]] == [
        ("10:30", "morning"),
        ("a:b", ""),
    ]
    code, _, err = run("status", "--json")
    assert (code, "There is no store" in one_sentence(err), "`goldloop run`" in err) == (
        1,
        True,
        True,
    )
    code, _, err = run("init", "--source", "t.csv", "--task", "x")
    assert (code, "--force" in err) == (1, True)


def test_check_warns_of_class_numbers_for_a_small_model(run, tmp_path):
    write_texts(tmp_path, good_rows())
    write_campaign(tmp_path)
    asked = Path("goldloop.toml").read_text().replace('"recorded"\ncolumns = ["llm"]', '"local_lm"')
    Path("goldloop.toml").write_text(asked + '[prompt]\nlabel_form = "ids"\n')
    code, _, err = run("check")
    assert code == 0, err
    assert "warning: goldloop.toml: prompt.label_form" in err
    assert "near chance with class numbers" in err


@pytest.mark.parametrize(
    ("second", "encoder", "said"),
    [
        ("Unsure / none fits", "minilm", "looks like the page's own answer"),
        ("ye\u200bs", "minilm", r"'yes' and 'ye\u200bs' look the same to people"),
        ("\u200b", "minilm", r"The label '\u200b' holds nothing that people can see"),
        ("no", "./nowhere", "Encoder folder ./nowhere does not exist"),
    ],
)
def test_what_would_stop_the_campaign_later_stops_it_before_the_llm_is_asked(
    run, tmp_path, second, encoder, said
):
    write_texts(tmp_path, good_rows(second=second))
    write_campaign(tmp_path, second=second, extra=f'[student]\nencoder = "{encoder}"\n')
    for command in ("check", "run"):
        code, _, err = run(command)
        assert code == 1
        assert said in one_sentence(err)
    code, _, err = run("status", "--json")
    assert (code, "has not begun" in one_sentence(err)) == (1, True)
    assert (run("plan")[0], "has not begun" in run("export", "o.csv")[2]) == (0, True)


def test_init_without_labels_writes_nothing(run, tmp_path):
    given = ("init", "--source", "t.csv", "--task", "x")
    code, _, err = run(*given, "--label", "only")
    assert (code, "does not exist" in one_sentence(err)) == (1, True)
    write_texts(tmp_path, good_rows())
    for wrong, said in (
        (("--label", "only"), "two labels or more"),
        (("--gold-column", "glod"), "did you mean 'gold'"),
        (("--text-column", "body"), "has no column 'body'"),
    ):
        code, _, err = run(*given, *wrong)
        assert code == 1
        assert said in one_sentence(err)
        assert not Path("goldloop.toml").exists()


def test_init_reads_the_labels_from_the_gold_column(run, tmp_path):
    write_texts(tmp_path, good_rows(second="10:30: morning"))
    (tmp_path / "campaigns").mkdir()
    file = Path("campaigns/a.toml")
    code, _, err = run(
        "init", "--file", file, "--source", "t.csv", "--task", "x", "--gold-column", "gold"
    )
    assert code == 0, err
    assert "t.csv: 40 rows, 3 columns" in err
    assert "gold: 2 values: yes 20, 10:30: morning 20" in err
    assert "goldloop check --file campaigns/a.toml" in err
    data = tomllib.loads(file.read_text())
    assert [label["name"] for label in data["labels"]] == ["10:30: morning", "yes"]
    assert data["texts"]["source"] == "../t.csv"  # the file's paths are relative to it
    assert (data["budget"]["labels"], data["rounds"]["batch_size"]) == (10, 3)


def test_init_finds_a_column_that_looks_like_the_one_named(run, tmp_path):
    lines = [f"it is {i},{'ab'[i % 2]}" for i in range(40)]
    (tmp_path / "t.csv").write_text("\n".join(["Cate\u0301gorie  de texte,gold", *lines]))
    given = ("--text-column", "Cat\u00e9gorie de texte", "--gold-column", "gold")
    code, _, err = run("init", "t.csv", "--task", "x", *given)
    assert code == 0, err
    text = Path("goldloop.toml").read_text()
    assert tomllib.loads(text)["texts"]["text_column"] == "Cate\u0301gorie  de texte"
    Path("goldloop.toml").write_text(text.replace("Cate\u0301gorie  de", "Cat\u00e9gorie  de"))
    code, _, err = run("check")
    assert (code, r"did you mean 'Cate\u0301gorie  de texte'?" in err) == (1, True)


def test_init_takes_the_column_with_prose_for_the_texts_and_says_so(run, tmp_path):
    row = "{i},It was quite good {i},https://example.org/a/very/long/address/indeed/{i},{y}\n"
    rows = "".join(row.format(i=i, y="no" if i % 2 else "yes") for i in range(30))
    (tmp_path / "t.csv").write_text("id,review,url,gold\n" + rows)
    code, _, err = run("init", "t.csv", "--task", "x", "--gold-column", "gold")
    assert (code, "The texts are the column 'review'" in err) == (0, True)
    assert tomllib.loads(Path("goldloop.toml").read_text())["texts"]["text_column"] == "review"
    (tmp_path / "u.csv").write_text("id,url,gold\n1,https://example.org,yes\n2,b,no\n")
    code, _, err = run("init", "u.csv", "--task", "x", "--gold-column", "gold", "--force")
    assert (code, "No column of u.csv looks like texts" in one_sentence(err)) == (1, True)


def test_init_takes_the_spellings_of_one_value_as_one_label(run, tmp_path):
    values = ["1", "1.0", "0", "0", "café", "cafe\u0301"]
    write_texts(tmp_path, [(f"text {i}", values[i % 6], "1") for i in range(60)])
    code, _, err = run("init", "t.csv", "--task", "x", "--gold-column", "gold")
    assert code == 0, err
    assert "Read as one label, '1': '1.0'." in err
    assert r"Read as one label, 'café': 'cafe\u0301'." in err
    data = tomllib.loads(Path("goldloop.toml").read_text())
    assert [label["name"] for label in data["labels"]] == ["0", "1", "café"]


def test_init_takes_many_labels_but_no_cells_of_several(run, tmp_path):
    values = [f"class {i}" for i in range(40)] + ["class 1;class 2", '["class 3", "class 4"]']
    write_texts(tmp_path, [(f"text {i}", values[i % 42], "1") for i in range(84)])
    code, _, err = run("init", "t.csv", "--task", "x", "--gold-column", "gold")
    assert code == 0, err
    assert "because they hold several: '[\"class 3\", \"class 4\"]', 'class 1;class 2'." in err
    assert "The labels are the 40 values of 'gold': class 0, " in err
    assert " and 20 more. Describe them in goldloop.toml" in err
    data = tomllib.loads(Path("goldloop.toml").read_text())
    assert sorted(label["name"] for label in data["labels"]) == sorted(values[:40])
    code, _, err = run("check")
    assert (code, "gives 4 rows several labels in column 'gold'" in err) == (1, True)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (lambda i: "a", "holds one value alone"),
        (lambda i: "", "holds no single labels"),
        (lambda i: f"class {i}", "holds more than 200 different values"),
    ],
)
def test_init_says_why_a_gold_column_gives_no_labels(run, tmp_path, value, said):
    write_texts(tmp_path, [(f"text {i}", value(i), "1") for i in range(300)])
    code, _, err = run("init", "t.csv", "--task", "x", "--gold-column", "gold")
    assert (code, f"the column 'gold' {said}" in one_sentence(err)) == (1, True)


def test_init_says_what_of_a_source_is_not_read(run, tmp_path):
    rows = [{"text": f"It is {i}", "gold": ["yes", "no"][i % 2]} for i in range(40)]
    (tmp_path / "t.json").write_text(json.dumps({"train": rows, "test": rows}))
    err = run("init", "t.json", "--task", "x", "--gold-column", "gold")[2]
    assert "several lists (train, test), of which none is read" in err
    lines = ["text,,gold", *(f"It is {i},x,{'ab'[i % 2]}" for i in range(40))]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    code, _, err = run("init", "t.csv", "--task", "x", "--gold-column", "gold")
    assert (code, "40 values in columns without a name, left out" in err) == (0, True)


@pytest.mark.parametrize(
    "cell",
    [
        lambda name: [name],
        lambda name: json.dumps([name]),
        lambda name: {"choices": [name]},
        lambda name: {"yes": float(name == "yes"), "no": float(name == "no")},
    ],
)
def test_init_takes_labels_out_of_the_lists_and_objects_of_tools(run, tmp_path, cell):
    rows = [{"text": f"text {i}", "label": cell(["yes", "no"][i % 2])} for i in range(40)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, _, err = run("init", "t.jsonl", "--task", "x", "--gold-column", "label")
    assert code == 0, err
    data = tomllib.loads(Path("goldloop.toml").read_text())
    assert [label["name"] for label in data["labels"]] == ["no", "yes"]


def test_a_file_without_a_line_of_column_names_is_told(run, tmp_path):
    rows = [f'"this was really number {i}, I think",{["no", "yes"][i % 2]}\n' for i in range(40)]
    (tmp_path / "t.csv").write_text("".join(rows))
    code, _, err = run("init", "t.csv", "--task", "x", "--label", "no", "--label", "yes")
    assert code == 0, err
    assert "t.csv has a column that is called like the label 'no'" in err
    Path("goldloop.toml").write_text(Path("goldloop.toml").read_text().replace("= 3 ", "= 0 ", 1))
    err = run("check")[2]
    assert "texts.text_column = 'this was really number 0, I think' looks like a text" in err


def test_init_says_where_a_description_may_have_been_meant(run, tmp_path):
    write_texts(tmp_path, good_rows())
    given = ("--label", "yes:it is", "--label", "no：いいえ", "--label", "c: d", "--label", "e:")
    code, _, err = run("init", "t.csv", "--task", "x", *given)
    assert code == 0, err
    for label, told in (("yes:it is", True), ("no：いいえ", True), ("c: d", False), ("e:", False)):
        assert (f"Label {label!r} has no description" in err) == told


def test_init_asks_and_keeps_the_answers(run, tmp_path, monkeypatch):
    write_texts(tmp_path, good_rows(second="no"), header=("body", "label", "llm"))
    asked = []

    def ask(answers):
        given = iter(answers)

        def prompt(question, default=None, **_rest):
            asked.append((question, default))
            if (said := next(given)) is KeyboardInterrupt:
                raise typer.Abort
            return default if said is None else said

        monkeypatch.setattr(typer, "prompt", prompt)
        monkeypatch.setattr(typer, "confirm", prompt)
        return run("init", asks=True)

    code, _, err = ask(["t.csv", None, "nowhere", None, "a b", KeyboardInterrupt])
    assert code == 1
    assert ("Column with the texts", "body") in asked
    assert ("Column with known human labels (empty: none)", "label") in asked
    assert "has no column 'nowhere'" in err
    kept = "--source t.csv --text-column body --gold-column label --name 'a b'"
    assert f"Your answers so far: goldloop init {kept}" in err
    code, _, err = ask(["t.csv", None, None, None, "Is it?", True, "it is not", ""])
    assert code == 0, err
    data = tomllib.loads(Path("goldloop.toml").read_text())
    assert [(la["name"], la["description"]) for la in data["labels"]] == [
        ("no", "it is not"),
        ("yes", ""),
    ]


def test_help_lists_every_command_once(run):
    code, out, _ = run("--help")
    assert code == 0
    listed = [name for names in cli.GROUPS.values() for name in names]
    assert sorted(listed) == sorted(typer.main.get_command(cli.app).commands)
    for title, names in cli.GROUPS.items():
        assert re.search(rf"^{title}:\n  {names[0]}\b", out, re.MULTILINE)
    assert "..." not in out.split("Begin:")[1]


BAD_TEXTS = {
    "missing file": (None, "does not exist|not found|No file|no file"),
    "empty file": (b"", "empty"),
    "header only": (b"text,gold,llm\n", "no rows|no texts|empty"),
    "missing column": (b"txt,gold,llm\nhello,yes,yes\n", r"'text'"),
    "empty texts": (b"text,gold,llm\n,yes,yes\nb,no,no\n", "empty"),
    "conflicting gold": (b"text,gold,llm\na,yes,yes\na,no,no\n", "two different gold labels"),
    "unknown label": (b"text,gold,llm\na,yess,yes\nb,no,no\n", "yess.*yes"),
    "one class only": (b"text,gold,llm\na,yes,yes\nb,yes,no\n", "one class|only one|class"),
    "invalid UTF-8": (b"text,gold,llm\n\xff\xfe\xfa,yes,yes\nb,no,no\n", "UTF-8"),
}


@pytest.mark.parametrize("name", BAD_TEXTS)
@pytest.mark.parametrize("command", ["check", "annotate"])
def test_bad_texts_are_one_sentence_and_leave_nothing_behind(run, tmp_path, name, command):
    content, expected = BAD_TEXTS[name]
    write_campaign(tmp_path)
    if content is not None:
        (tmp_path / "t.csv").write_bytes(content)
    code, _, err = run(command)
    assert code == 1
    assert re.search(expected, one_sentence(err)), err
    if command == "annotate":
        code, _, err = run("status", "--json")
        assert (code, "has not begun" in one_sentence(err)) == (1, True)
    else:
        assert not list(tmp_path.glob("*.db"))


def test_duplicates_are_merged_and_long_texts_accepted(run, tmp_path):
    rows = [*good_rows(), ("text  number 1", "no", "yes"), ("word " * 40_000, "yes", "no")]
    write_texts(tmp_path, rows)
    write_campaign(tmp_path)
    assert run("annotate")[0] == 0
    assert json.loads(run("status", "--json")[1])["texts"] == 41


@pytest.fixture
def served(run, tmp_path, monkeypatch):
    """``goldloop serve`` as far as it says where; what it says, and what it registers."""
    write_texts(tmp_path, good_rows())
    write_campaign(tmp_path)
    registered = []

    def serve_app(_app, listener, ready):
        ready()
        listener.close()

    monkeypatch.setattr("loop.serve.app.serve_app", serve_app)
    monkeypatch.setattr("loop.serve.puller.Puller.start", lambda self: self._pull())
    monkeypatch.setattr(
        "loop.cli.serving.connect_project", lambda _c, _s, url, _t: registered.append(url)
    )
    monkeypatch.setattr("loop.campaign.store.Store.project_id", lambda _self, _name: "7")
    assert run("annotate")[0] == 0
    return lambda *options: (*run("serve", "--connect", *options), registered)


def test_people_and_label_studio_may_reach_the_server_at_two_addresses(served):
    code, out, err, registered = served(
        "--public-url", "http://serve:8500", "--page-url", "https://progress.example.org/"
    )
    assert (code, out, registered) == (0, "https://progress.example.org\n", ["http://serve:8500"])
    assert "Progress at https://progress.example.org; token" in err
    assert "serve:8500" not in err
    assert served("--public-url", "http://serve:8500")[1] == "http://serve:8500\n"
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+\n", served()[1])


def test_it_registers_once_there_is_a_project_and_with_one_that_takes_its_place(capsys):
    projects, registered = iter([None, "7", "7", "7", "8", "8"]), []
    failing = iter([LoopError("it is away"), LoopError("it is away")])

    def connect():
        if failure := next(failing, None):
            raise failure
        registered.append(True)

    connection = _Connection(connect, lambda: next(projects))
    done = []
    for _ in range(6):
        connection.keep()
        done.append(len(registered))
    assert done == [0, 0, 0, 1, 2, 2]
    assert capsys.readouterr().err.count("it is away") == 1


def test_what_is_served_follows_the_campaign_file_while_it_can_be_read(tmp_path):
    write_texts(tmp_path, good_rows())
    write_campaign(tmp_path)
    file = tmp_path / "goldloop.toml"
    now, first = _as_it_is(file, load(file)), file.read_text()
    assert now().people.assist == "blind"
    prefill = 'people.assist = "prefill"\n' + first
    file.write_text(prefill)
    assert now().people.assist == "prefill"
    other = prefill.replace('"c"', '"other"').replace("prefill", "why")
    for unusable in ("[[", other):
        file.write_text(unusable)
        assert now().people.assist == "prefill"


@pytest.mark.parametrize("url", ["progress.example.org", "https://a/b", "http://a:b", "http:"])
def test_an_address_at_which_no_page_can_lie_is_refused(served, url):
    code, _, err, _ = served("--page-url", url)
    assert (code, f"--page-url is {url!r}; it must be http://" in err) == (1, True)


def test_hostile_label_names_survive_to_the_export(run, tmp_path):
    second = 'a "b", <i>c</i> & =1+1'
    write_texts(tmp_path, good_rows(second=second))
    write_campaign(tmp_path, second=second)
    assert run("annotate")[0] == 0
    assert run("score")[0] == 0
    assert run("select")[0] == 0
    assert run("export", "out.jsonl")[0] == 0
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert {r["label"] for r in rows} <= {"yes", second}
    assert run("export", "out.csv")[0] == 0


@pytest.mark.parametrize(
    ("line", "name", "description"),
    [
        ("10:30: morning", "10:30", "morning"),
        ("10:30", "10:30", ""),
        ("http://a.b: a site: two words", "http://a.b", "a site: two words"),
        ("C:\tdrive", "C", "drive"),
        ("No:", "No", ""),
        (" Yes ", "Yes", ""),
    ],
)
def test_a_label_and_its_description_part_at_a_colon_with_a_space(
    run, tmp_path, line, name, description
):
    from loop.campaign.config import load

    write_texts(tmp_path, good_rows())
    code, _, err = run(
        "init", "--source", "t.csv", "--task", "t", "--label", line, "--label", "other: x"
    )
    assert code == 0, err
    label = load(tmp_path / "goldloop.toml").labels[0]
    assert (label.name, label.description) == (name, description)


@pytest.mark.parametrize(
    ("cell", "ratings"),
    [
        (["yes", "no"], ["yes", "no"]),
        ('["yes", "no"]', ["yes", "no"]),  # as CSV holds a list
        ("yes|no", ["yes", "no"]),
        ("Yes", ["yes"]),
        (["yes", "perhaps"], ["yes", "perhaps"]),
        (None, []),  # nobody knows: they skip the text
        ("", []),
        ({"x": "y"}, []),
    ],
)
def test_ratings_are_read_in_every_form(tmp_path, cell, ratings):
    from loop.campaign.config import load
    from loop.cli.build import ratings_in

    write_campaign(tmp_path)
    assert ratings_in(cell, load(tmp_path / "goldloop.toml")) == ratings


def test_labels_of_another_tool_become_gold(run, tmp_path):
    write_texts(tmp_path, good_rows())
    write_campaign(tmp_path)
    lines = [json.dumps({"text": f"text number {i}", "label": ["yes"]}) for i in range(38)]
    lines += [json.dumps({"text": t, "label": []}) for t in ("text number 39", "a stranger")]
    (tmp_path / "doccano.jsonl").write_text("\n".join(lines))
    code, out, err = run("import-labels", "doccano.jsonl")
    assert (code, out) == (0, "")
    assert "doccano.jsonl (column 'label'): 40 texts; the labels of" in err
    assert "no text of the campaign 1 (first in row 40)" in err
    code, out, _ = run("import-labels", "doccano.jsonl", "--json")
    found = json.loads(out)
    assert (code, found["new"], found["same"]) == (0, 0, found["taken"])
    assert found["taken"] + sum(found["not_taken"].values()) == found["texts"] == 40
    assert found["answers_without_label"] == {"empty": 2}
    Path("goldloop.toml").rename("a b.toml")
    err = run("import-labels", "doccano.jsonl", "--file", "a b.toml")[2]
    assert err.endswith("Next: `goldloop run --file 'a b.toml'`.\n")
    Path("a b.toml").rename("goldloop.toml")
    for file, said in (("docano.jsonl", "did you mean 'doccano.jsonl'? check"), ("t.x", "rename")):
        Path("t.x").touch()
        assert said in one_sentence(run("import-labels", file)[2])
    for arguments in (("import-labels",), ("import-labels", "doccano.jsonl", "--project", "1")):
        code, _, err = run(*arguments)
        assert code == 1
        assert "--project NUMBER" in one_sentence(err)


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("[budgett]\nlabels = 3\n", "Did you mean 'budget'"),
        ("[student]\nsead = 3\n", "Did you mean 'seeds'"),
    ],
)
def test_unknown_keys_come_with_a_suggestion(run, tmp_path, extra, expected):
    write_texts(tmp_path, good_rows())
    write_campaign(tmp_path, extra=extra)
    code, _, err = run("run")
    assert code == 1
    assert expected in one_sentence(err)


def test_budget_zero_and_a_batch_beyond_the_pool(run, tmp_path):
    write_texts(tmp_path, good_rows())
    for old, new, expected in (
        ("labels = 10", "labels = 0", "budget.labels = 0"),
        ("batch_size = 10", "batch_size = 11", "larger than budget.labels 10"),
        ("labels = 10\n", "labels = 500\n", "larger than the pool"),
    ):
        write_campaign(tmp_path)
        path = tmp_path / "goldloop.toml"
        path.write_text(path.read_text().replace(old, new))
        code, _, err = run("annotate")
        assert code == 1
        assert expected in one_sentence(err)


def test_a_budget_that_pays_for_nothing_ends_before_the_llm_is_asked(run, tmp_path, monkeypatch):
    from fakes import CentroidStudent

    monkeypatch.setattr("loop.cli.build.build_encoder_student", lambda *_: CentroidStudent())
    write_texts(tmp_path, good_rows())
    write_campaign(tmp_path)
    path = tmp_path / "goldloop.toml"
    too_little = "labels = 10\nusd = 0.5\nusd_per_label = 1.0"
    path.write_text(path.read_text().replace("labels = 10", too_little))
    for command in ("run", "annotate"):
        code, _, err = run(command)
        assert code == 1
        assert "cannot begin: one more text would cost $1.00" in one_sentence(err)
        assert "raise budget.usd" in err
    assert "0 LLM answers" in run("status")[1]


def test_an_annotator_that_answers_nothing(run, tmp_path):
    write_texts(tmp_path, [(t, g, "other") for t, g, _ in good_rows()])
    write_campaign(tmp_path)
    for command in ("check", "annotate"):
        code, _, err = run(command)
        assert code == 1
        assert "other" in one_sentence(err) or "no usable answer" in one_sentence(err)


def test_label_studio_down_or_without_token(run, tmp_path, monkeypatch):
    write_texts(tmp_path, good_rows())
    write_campaign(tmp_path, url="http://127.0.0.1:9")
    for command in ("annotate", "score", "select"):
        assert run(command)[0] == 0
    code, _, err = run("push")
    assert code == 1
    assert "LABEL_STUDIO_API_KEY" in one_sentence(err)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "0123456789abcdef" * 2)
    code, _, err = run("push")
    assert code == 1
    assert "127.0.0.1:9" in one_sentence(err)
    assert "0123456789abcdef" not in err
    found = json.loads(run("status", "--json")[1])
    assert (found["stage"], found["this_round"]["chosen"]) == ("push", 10)


def test_garbage_is_looked_for_seldom(run):
    gc.set_threshold(700)
    run("--help")
    assert gc.get_threshold()[0] == cli.COLLECTED_AFTER


def test_usage_errors_exit_with_2(run):
    assert run("nonsense")[0] == 2
    assert run("run", "--rounds", "0")[0] == 2


def commands():
    import typer

    def walk(command, path):
        for name, sub in sorted(getattr(command, "commands", {}).items()):
            yield from walk(sub, [*path, name])
        if not getattr(command, "commands", None):
            yield path, command

    return list(walk(typer.main.get_command(cli.app), []))


def test_every_command_has_help_and_stands_in_the_docs():
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    for path, command in commands():
        assert command.help, path
        assert f"goldloop {' '.join(path)}" in page, path
        for parameter in command.params:
            if parameter.name != "help" and parameter.param_type_name == "option":
                assert parameter.help, (path, parameter.name)
        start, *words = shlex.split(command.epilog.removeprefix("Example: "))
        assert [start, *words[: len(path)]] == ["goldloop", *path]
        command.make_context(path[-1], words[len(path) :])  # refuses what it cannot read


def test_an_operator_looks_keeps_and_restores(run, tmp_path):
    code, out, _ = run("doctor")
    assert (code, "no goldloop.toml" in out) == (0, True)
    write_texts(tmp_path, good_rows(40))
    write_campaign(tmp_path, extra='[store]\nurl = "sqlite:///deep/c.db"\n')
    assert run("fsck")[0] == 1
    assert run("backup")[2].startswith("Error: There is no store")
    with closing(Store(f"sqlite:///{tmp_path / 'deep' / 'c.db'}")) as store:
        store.open_campaign("c", ["yes", "no"])
    code, out, err = run("doctor", "--json")
    assert (code, json.loads(out)["problems"]) == (0, 0), out
    code, out, err = run("backup", "b.zip")
    assert (code, out.strip()) == (0, "b.zip"), err
    assert "goldloop restore b.zip" in err
    assert "local Label Studio" not in err
    (tmp_path / "new").mkdir()
    code, _, err = run("restore", "b.zip", "-f", "new/goldloop.toml")
    assert (code, "`goldloop status --file new/goldloop.toml`" in err) == (0, True), err
    assert (tmp_path / "new" / "t.csv").read_bytes() == (tmp_path / "t.csv").read_bytes()
    assert "has not begun in the store" in run("status", "-f", "new/goldloop.toml")[2]
    code, out, err = run("fsck", "--offline", "-f", "new/goldloop.toml")
    assert (code, out, "fit together" in err) == (0, "", True)
    (tmp_path / "new" / "deep" / "c.db").chmod(0o644)
    code, out, _ = run("fsck", "-f", "new/goldloop.toml")
    assert (code, "--repair" in out) == (1, True)
    code, out, _ = run("fsck", "--repair", "-f", "new/goldloop.toml")
    assert (code, "repaired" in out) == (0, True)
    with closing(Store(f"sqlite:///{tmp_path / 'deep' / 'c.db'}")) as store:
        store.set_project("c", "7")
    assert f"Not in it: the local Label Studio in {server_folder()}" in run("backup", "c.zip")[2]


def test_help_works_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "loop.cli.__main__", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0
    assert "Usage" in done.stdout


def test_plan_and_validation_from_the_command_line(run, tmp_path):
    write_texts(tmp_path, good_rows(120))
    write_campaign(tmp_path)
    code, out, err = run("annotate", "--plan")
    assert code == 0, err
    assert "at most 1.00 calls a text" in out
    assert "none (annotator.usd_per_million_tokens is 0)" in out
    assert not list(tmp_path.glob("*.db"))  # the plan stored nothing
    code, _, err = run("validate", "--size", "5")
    assert code == 2
    assert "size" in err


def test_bench_has_texts_labelled_by_a_campaigns_annotator(run, tmp_path, monkeypatch):
    from fakes import CentroidStudent

    monkeypatch.setattr("loop.cli.face.build_encoder_student", lambda *_: CentroidStudent())
    write_texts(tmp_path, [(f"{g} word {t}", g, "yes") for t, g, _ in good_rows(120)])
    write_campaign(tmp_path)
    for _ in range(2):  # the second run finds the votes of the first
        code, _, err = run(
            "bench",
            "t.csv",
            "--label",
            "gold",
            "--annotator",
            "goldloop.toml",
            "--repetitions",
            2,
            "--budgets",
            "0.2",
            "--rounds",
            1,
            "--seeds",
            2,
            "--strategies",
            "entropy,random",
            "--out",
            "b",
        )
        assert code == 0, err
    found = json.loads(Path("b/results.json").read_text())
    assert found["records"][0]["pool"] < 96  # four fifths of a pool without test texts
    llm = next(r for r in found["records"] if r["strategy"] == "llm_only")
    assert 0.3 < llm["label_accuracy"] < 0.7  # it says yes to all
    assert Path("b/annotated.db").exists()


def test_bench_replays_strategies_and_writes_results(run, tmp_path, monkeypatch):
    from fakes import CentroidStudent

    monkeypatch.setattr("loop.cli.face.build_encoder_student", lambda *_: CentroidStudent())
    write_texts(tmp_path, [(f"{g} word {t}", g, "yes") for t, g, _ in good_rows(120)])
    code, out, err = run(
        "bench",
        "t.csv",
        "--label",
        "gold",
        "--llm-column",
        "llm",
        "--repetitions",
        2,
        "--budgets",
        "0.2",
        "--rounds",
        1,
        "--seeds",
        2,
        "--out",
        "b",
    )
    assert code == 0, err
    assert "goldloop" in out
    found = json.loads(Path("b/results.json").read_text())
    assert {r["strategy"] for r in found["records"]} >= {"goldloop", "random", "entropy"}
    assert len(found["records"][0]["per_class"]["recall"]) == 2
    for labels in ((), ("--llm-column", "llm", "--annotator", "c.toml")):
        code, _, err = run("bench", "t.csv", "--label", "gold", *labels)
        assert code == 1
        assert "--annotator" in one_sentence(err)
    code, _, err = run(
        "bench", "t.csv", "--label", "gold", "--llm-column", "llm", "--strategies", "entropi"
    )
    assert code == 1
    assert "entropi" in one_sentence(err)


@pytest.mark.parametrize("where", ["plain", "linked/g.toml", "new/g.toml", "home"])
def test_init_names_the_source_as_check_finds_it(run, tmp_path, monkeypatch, where):
    write_texts(tmp_path, good_rows())
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "linked").symlink_to("deep/er")
    file = where if "/" in where else "goldloop.toml"
    source = "~/t.csv" if where == "home" else "t.csv"
    told = ("--gold-column", "gold", "--task", "x", "--label", "yes", "--label", "no")
    code, _, err = run("init", source, *told, "--file", file)
    assert code == 0, err
    code, _, err = run("check", "--file", file)
    assert "does not exist" not in err
    assert code == 0, err
    following = "" if file == "goldloop.toml" else f" --file {file}"
    assert f"Next: `goldloop run{following}`." in err


def test_a_lost_store_is_said_by_commands_that_read_and_none_is_made(run, tmp_path):
    write_texts(tmp_path, good_rows())
    write_campaign(tmp_path)
    assert "There is no store" in run("status")[2]
    (tmp_path / "runs").mkdir()
    for store in (tmp_path / "c.db", tmp_path / "before" / "c.db"):
        mark = {"campaign": "c", "uid": "u", "store": f"sqlite:///{store}"}
        (tmp_path / "runs" / "campaign.json").write_text(json.dumps(mark))
        for command in ("status", "run", "annotate"):
            code, _, err = run(command)
            assert code == 1
            assert "Nothing was spent" in one_sentence(err), command
        assert not list(tmp_path.glob("**/*.db"))


def test_closed_outputs_are_no_error(tmp_path):
    write_texts(tmp_path, good_rows())
    write_campaign(tmp_path)
    command = f"{sys.executable} -m loop.cli.__main__ check --file {tmp_path}/goldloop.toml"
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        done = subprocess.run(
            ["/bin/sh", "-c", f"{command} {closed}"], capture_output=True, text=True, cwd=ROOT
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr


def test_what_others_wrote_does_not_steer_the_terminal(capsys):
    say("a\x1b[2Jb\u202ec\nd\té")
    assert capsys.readouterr().err == "a\\x1b[2Jb\\u202ec\nd\té\n"
