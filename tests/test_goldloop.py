"""The public face: a notebook does what the command line does, and keeps nothing open."""

import csv
import inspect
import json
import re
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from campaigns import LABELS, make, texts
from fakes import CentroidStudent
from tiny_encoder import save_encoder

import goldloop
from goldloop import Campaign, ConfigError, DataError, LoopError, NoStoreError, StudentError
from loop import errors
from loop.cli import __main__ as cli
from loop.cli.build import at_work
from loop.cli.face import looked_at

ROOT = Path(__file__).parent.parent
FILE = """\
campaign = {name = "c", task = "t"}
labels = [{name = "bad"}, {name = "good"}]
texts = {source = "x.csv", gold_column = "g"}
annotator = {kind = "recorded", columns = ["llm", "llm_2"]}
store = {url = "sqlite:///c.db"}
budget.labels = 30
rounds = {batch_size = 15, rounds = 2, audit_frac = 0.2}
student = {seeds = 3, references = ["llm_only"], max_tokens = 48}
"""


def write(folder):
    (folder / "goldloop.toml").write_text(FILE, encoding="utf-8")
    with (folder / "x.csv").open("w", newline="", encoding="utf-8") as handle:
        rows = [(r.text, r.gold, r.meta["llm"], r.meta["llm_2"]) for r in texts()]
        csv.writer(handle).writerows([("text", "g", "llm", "llm_2"), *rows])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A campaign file whose people and student are quick stand-ins."""
    quick = make(tmp_path)
    quick.store.close()
    (tmp_path / "c.db").unlink()

    def parts(_config, store):
        quick.store = store
        truth = {i.text: i.gold for i in texts()}

        class Raters(type(quick.parts.raters())):
            def answer(self, project_id, progress=lambda _n: None):
                self.truth = {i.id: truth[i.text] for i in store.items("c")}
                return super().answer(project_id, progress)

            def labels_of(self, items):
                return [truth[i.text] for i in items]

        return type(quick.parts)(
            texts=quick.parts.texts,
            annotator=quick.parts.annotator,
            reviewer=quick.parts.reviewer,
            student=quick.parts.student,
            raters=lambda: Raters(quick.parts.reviewer(), {}),
        )

    monkeypatch.setattr("loop.cli.build.build_parts", parts)
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    return tmp_path


def save_final_model(folder, tmp_path_factory):
    from loop.student.encoder_files import load_classifier, load_tokenizer, save_model

    encoder = save_encoder(tmp_path_factory.mktemp("encoder"))
    model, tokenizer = load_classifier(encoder, LABELS), load_tokenizer(encoder)
    tokenizer.model_max_length = 48
    record = {"labels": list(LABELS), "max_tokens": 48}
    seeds = {"kind": "final", "seeds": ["seeds/seed-0"]}
    save_model(model, tokenizer, folder / "runs/final", record | seeds)
    save_model(model, tokenizer, folder / "runs/final/seeds/seed-0", record)


def test_the_readmes_lines_run(folder, tmp_path_factory):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.split("### In a notebook")[1]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    assert len([line for line in code.splitlines() if line.strip()]) == 6
    save_final_model(folder, tmp_path_factory)
    names = {}
    exec(code, names)  # noqa: S102
    rounds, labels, predicted = names["rounds"], names["labels"], names["predicted"]
    assert list(rounds["name"]) == ["LLM labels only", "Round 1", "Round 2"]
    assert list(rounds["round"])[1:] == [1, 2]
    assert list(rounds["gold_bought"]) == [0, 15, 30]
    assert rounds["accuracy"].between(0.5, 1).all()
    assert (rounds["accuracy_low"] <= rounds["accuracy"]).all()
    assert (labels["source"] == "gold").sum() == 30
    assert set(labels["label"]) == set(LABELS)
    assert predicted.classes == LABELS
    assert set(predicted.labels) <= set(LABELS)
    np.testing.assert_allclose(predicted.probabilities.sum(axis=1), 1, atol=1e-6)
    assert list(predicted.stability) == [1, 1]


def test_it_keeps_neither_the_lock_nor_the_folder(folder, monkeypatch, tmp_path_factory):
    with Campaign.open() as campaign:
        assert campaign.run(rounds=1)
        with at_work(folder / "goldloop.toml", "other"), pytest.raises(goldloop.BusyError):
            campaign.run()
        monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
        assert campaign.status()["round"] == 1
        assert campaign.report() == folder / "runs/report.html"
        assert campaign.export(folder / "labels.csv") == len(campaign.labels())


def test_export_writes_every_row_of_the_source_with_its_label(folder, capsys):
    with (folder / "x.csv").open(encoding="utf-8", newline="") as handle:
        header, *rows = csv.reader(handle)
    header = ["row", "label", "goldloop_round", "round", *header]  # some names are taken
    rows = [
        [str(n), "mine", "x", "y", *row]
        for n, row in enumerate([*rows, rows[0], ["  ", "bad", "", ""]])
    ]
    with (folder / "x.csv").open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows([header, *rows[:-1]])
    campaign = Campaign.open()
    campaign.run(rounds=1)
    with (folder / "x.csv").open("a", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerow(rows[-1])
    plain = campaign.export(folder / "labels.csv")
    assert "--all-rows" in capsys.readouterr().err
    written = campaign.export(folder / "all.csv", all_rows=True)
    with (folder / "all.csv").open(encoding="utf-8", newline="") as handle:
        read = list(csv.DictReader(handle))
    assert [[row[name] for name in header] for row in read] == rows
    assert plain < written == len(rows) - 1 == sum(bool(row["goldloop_label"]) for row in read)
    assert read[-2]["goldloop_label"] == read[0]["goldloop_label"]
    assert {row["source"] for row in read if row["split"] == "test"} == {"known"}
    gold = [row for row in read if row["source"] == "gold"]
    assert len(gold) >= 15
    assert all(row["goldloop_label"] == row["g"] for row in gold)
    assert {row["goldloop_goldloop_round"] for row in gold} == {"1"}
    campaign.export(folder / "all.parquet", all_rows=True)
    assert "have a label" in capsys.readouterr().err
    (folder / "x.csv").rename(folder / "x.txt")  # which would else be a text a line
    named = FILE.replace('source = "x.csv"', 'source = "x.txt", format = "csv"')
    (folder / "goldloop.toml").write_text(named, encoding="utf-8")
    assert Campaign.open().export(folder / "again.csv", all_rows=True) == written


def test_results_never_take_the_place_of_the_campaigns_own_files(folder, monkeypatch):
    campaign = Campaign.open()
    campaign.run(rounds=1)
    (folder / "link.jsonl").symlink_to("x.csv")
    (folder / "c.db-journal").touch()  # empty, SQLite takes it for none
    names = ("x.csv", "goldloop.toml", "c.db", "c.db-journal")
    own = {name: (folder / name).read_bytes() for name in names}
    for out, said in (
        ("x.csv", "x.csv is the source itself; name another file"),
        ("link.jsonl", "is the source itself"),
        ("goldloop.toml", "is the campaign file"),
    ):
        with pytest.raises(DataError, match=said):
            campaign.export(folder / out)
    for card in own:
        with pytest.raises(DataError, match="name another file"):
            campaign.export(folder / "labels.csv", card=folder / card)
    with pytest.raises(DataError, match="cannot hold both labels and card"):
        campaign.export(folder / "labels.csv", card=folder / "labels.csv")
    (folder / "README.md").write_text("# Not of goldloop\n")
    with pytest.raises(DataError, match="no data set card of goldloop's; name another file"):
        campaign.export(folder / "labels.csv", card=folder / "README.md")
    assert (folder / "README.md").read_text() == "# Not of goldloop\n"
    pytest.importorskip("datasets")
    for _ in range(2):  # the folder is made anew, and the card in it as well
        assert campaign.export(folder / "set", card=folder / "set" / "README.md")
        assert "- goldloop" in (folder / "set" / "README.md").read_text()
        assert (folder / "set" / "dataset_info.json").exists()
    (folder / "more.csv").write_text("text\na new text\n")
    monkeypatch.setattr("loop.deliver.predict.saved_model", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["goldloop", "predict", "more.csv", "--out", "x.csv"])
    with pytest.raises(SystemExit):
        cli.main()
    assert {name: (folder / name).read_bytes() for name in own} == own


def test_a_rule_ends_this_run_and_not_the_campaign(folder, capsys):
    campaign = Campaign.open()
    with pytest.raises(LoopError, match="not a stopping rule; write accuracy"):
        campaign.run(until=["acuracy=0.9"])
    assert campaign.run(until=["accuracy=0.01"])
    assert "Stopped as --until asked: accuracy is" in capsys.readouterr().err
    assert campaign.status()["round"] == 1
    assert campaign.plan("accuracy=0.01").goals[0].labels.value == 0
    assert campaign.run()
    assert campaign.status()["round"] == 2


def test_it_says_where_it_stands(folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["goldloop", "status"])
    campaign = Campaign.open(folder / "goldloop.toml")
    assert "not begun" in repr(campaign)
    with pytest.raises(NoStoreError):
        campaign.status()
    campaign.run()
    shown = repr(campaign)
    for part in ("Campaign c", "2 of 2", "done", "accuracy, round 2"):
        assert part in shown
    for fact in ("texts sent", "answered", "gold labels"):
        assert re.search(rf"{fact}\s+30\b", shown)
    (folder / "goldloop.toml").write_text("broken [", encoding="utf-8")
    assert "Correct the TOML" in repr(campaign)


def test_html_is_escaped(folder):
    text = FILE.replace('name = "c"', 'name = "<script>alert(1)</script>"')
    (folder / "goldloop.toml").write_text(text, encoding="utf-8")
    shown = Campaign(folder / "goldloop.toml")._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown


def test_commands_use_the_same_methods(folder, monkeypatch, capsys):
    called = []
    problems, forecast = looked_at(Path("goldloop.toml"))  # what the command check prints
    named = Campaign("goldloop.toml")
    assert (named.check(), named.forecast()) == (problems, list(forecast))
    for name in ("run", "status", "report", "export", "model"):

        def fail(self, *_args, _name=name, **_rest):
            called.append(_name)
            raise LoopError("stop here")

        monkeypatch.setattr(Campaign, name, fail)
        monkeypatch.setattr(sys, "argv", ["goldloop", name, *["x.csv"] * (name == "export")])
        if name == "report":
            continue  # prints the table first, which needs a begun campaign
        with pytest.raises(SystemExit):
            cli.main()
        assert called.pop() == name
    assert "stop here" in capsys.readouterr().err


def test_without_pandas_there_are_dicts(folder, monkeypatch):
    campaign = Campaign.open()
    campaign.run(rounds=1)
    monkeypatch.setitem(sys.modules, "pandas", None)
    rounds, labels = campaign.rounds(), campaign.labels()
    assert rounds[0]["round"] is None
    assert rounds[1]["round"] == 1
    assert {row["source"] for row in labels} <= {"gold", "repaired", "llm"}


def test_predict_says_what_is_wrong(folder, tmp_path_factory):
    campaign = Campaign.open()
    with pytest.raises(StudentError, match=r"no model in .*goldloop model"):
        campaign.predict(["a"])
    save_final_model(folder, tmp_path_factory)
    table = {"text": ["great"]}
    for wrong, why in (
        ("great", r"not a single text; give \[text\]"),
        (["great", None], "number 1 of the list"),
        (table, "give one column of it"),
        (pytest.importorskip("pandas").DataFrame(table), "give one column of it"),
        (np.array([["great"]]), "give one column of it"),
        (np.array("great"), "not a single text"),
    ):
        with pytest.raises(DataError, match=f"predict takes .*{why}"):
            campaign.predict(wrong)
    with pytest.raises(StudentError, match=r"set --device \(in Python: device\) to 'auto'"):
        campaign.predict(["great"], device="nope")
    said = campaign.predict(["", "great"])
    assert said.labels[0] is None
    assert np.isnan(said.probabilities[0]).all()
    assert np.isnan(said.stability[0])
    assert campaign.predict([]).labels == []


def test_check_lists_what_is_wrong(folder):
    campaign = Campaign.open()
    few, steps, known = campaign.check()
    assert (few.level, "test texts have a known label" in few.message) == ("warning", True)
    assert "student.epochs" in steps.message
    assert "goldloop import-labels x.csv --label-column g" in known.message
    assert campaign.forecast()[0].startswith("Texts: ")
    with at_work(folder / "goldloop.toml", "run") as ctx:
        ctx.store.open_campaign("c", LABELS)
    turned = FILE.replace("bad", "GOOD").replace("good", "bad").replace("GOOD", "good")
    (folder / "goldloop.toml").write_text(turned, encoding="utf-8")
    assert "was begun with labels ['bad', 'good']" in str(campaign.check()[0])
    (folder / "goldloop.toml").write_text(FILE, encoding="utf-8")
    (folder / "x.csv").write_text("text,g\nhello,bad\n", encoding="utf-8")
    problems = campaign.check()
    assert {p.level for p in problems} >= {"error"}
    assert "goldloop.toml:3" in str(problems[0])


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('task = "t"', 'task = "u"', "campaign.task = "),
        ('name = "c"', 'name = "d"', "which has not begun"),
        ("sqlite:///c.db", "sqlite:///d.db", "which has not begun"),
        ('"x.csv"', '"y.csv"', "only 0 of its 120 texts"),
        ("batch_size = 15", "batch_size = 14", None),
        ('"x.csv"', '"few.csv"', None),
    ],
)
def test_check_says_of_a_campaign_that_has_begun_what_run_would_say(folder, old, new, says):
    lines = (folder / "x.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "few.csv").write_text("".join(lines[:12]), encoding="utf-8")
    others = "".join(lines).replace("number", "no.")
    (folder / "y.csv").write_text(others, encoding="utf-8")
    campaign = Campaign.open()
    assert campaign.run(1)
    (folder / "goldloop.toml").write_text(FILE.replace(old, new), encoding="utf-8")
    errors = [p.message for p in campaign.check() if p.level == "error"]
    if says is None:  # texts that are gone from the source stay in the campaign
        assert errors == []
        assert campaign.forecast()[0].startswith("Texts:    96 to label")
        return
    (error,) = errors
    assert says in error


class Several:
    def __repr__(self):
        return "one\n   another"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda c: c.run(rounds="2"), "Campaign.run takes a whole number or None as rounds, and n"),
        (lambda c: c.run(rounds=1.5), "a whole number or None as rounds, and not 1.5."),
        (lambda c: c.run(rounds=True), "a whole number or None as rounds, and not True."),
        (lambda c: c.run(wait="no"), "True or False as wait"),
        (lambda c: c.run(until=3), "a text or a list (a text each) as until, and not 3."),
        (lambda c: c.run(until=[3]), "as until, and not [3]."),
        (lambda c: c.run(until={"plateau": 1}), "as until, and not {'plateau': 1}."),
        (lambda c: c.plan(["accuracy=0.8", 1]), "as goals, and not ['accuracy=0.8', 1]."),
        (lambda c: c.export(None), "Campaign.export takes a text or a path as out, and not None."),
        (lambda c: c.export(), "Campaign.export: missing a required argument: 'out'."),
        (lambda c: c.import_labels(Several()), "a path or None as source, and not one another."),
        (lambda c: c.report(out=3), "a text or a path or None as out"),
        (lambda c: c.predict(3), "Campaign.predict takes a list (a text each) as texts"),
        (lambda _: Campaign(3), "Campaign takes a text or a path as file, and not 3."),
        (lambda _: Campaign.open(None), "Campaign.open takes a text or a path as file"),
        (lambda _: goldloop.bench("x.csv", "g", strategies="random"), "as strategies, and not"),
        (lambda _: goldloop.bench("x.csv", "g", seeds="5"), "bench takes a whole number as seeds"),
    ],
)
def test_an_argument_of_another_type_is_named(folder, call, says):
    with pytest.raises(LoopError, match=re.escape(says)) as told:
        call(Campaign.open())
    assert not isinstance(told.value, goldloop.UnforeseenError)


def test_bench_takes_numpys_arrays(folder, monkeypatch):
    monkeypatch.setattr("loop.cli.face.build_encoder_student", lambda *_: CentroidStudent())
    result = goldloop.bench(
        "x.csv",
        "g",
        votes=np.array(["llm", "llm_2"]),
        strategies=np.array(["random", "entropy"]),
        budgets=np.array([0.125, 0.25], dtype=np.float32),
        rounds=1,
        seeds=2,
        repetitions=np.int64(2),
    )
    kept = json.loads(Path("bench/results.json").read_text(encoding="utf-8"))
    assert kept["settings"] == result.settings
    assert {row["budget"] for row in kept["summary"]} >= {0.125, 0.25}


def test_one_rule_and_a_list_of_goals_are_taken_as_they_are_meant(folder):
    campaign = Campaign.open()
    assert campaign.run(rounds=np.int64(1), wait=np.False_, until="accuracy=0.999") is True
    for goals in (("accuracy=0.8",), (["accuracy=0.8"],), (np.array(["accuracy=0.8"]),)):
        assert [goal.rule for goal in campaign.plan(*goals).goals] == ["accuracy=0.8"]
    with pytest.raises(LoopError, match="'x' is not a stopping rule"):
        campaign.run(until="x")


def test_errors_are_ours(folder, monkeypatch):
    with pytest.raises(ConfigError, match="No campaign file"):
        Campaign.open("nothing.toml")
    campaign = Campaign.open()
    with pytest.raises(LoopError, match="rounds must be 1 or more"):
        campaign.run(rounds=0)

    def fail(*_args, **_rest):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("loop.campaign.config.load", fail)
    for call in (campaign.run, campaign.status, campaign.labels, campaign.check, Campaign.open):
        with pytest.raises(goldloop.MachineError, match="no room"):
            call()


def test_what_is_paid_is_stored_after_ctrl_c_twice_in_a_notebook(folder, monkeypatch):
    stored = []

    def asking(*_args, **_rest):
        try:
            signal.raise_signal(signal.SIGINT)
        except errors.Stopped:
            signal.raise_signal(signal.SIGINT)
            stored.append("block")
            raise

    monkeypatch.setattr("loop.campaign.config.load", asking)
    with pytest.raises(KeyboardInterrupt):
        Campaign.open()
    assert stored == ["block"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_every_error_class_is_public_and_nothing_else():
    ours = {
        name
        for name, value in inspect.getmembers(errors, inspect.isclass)
        if issubclass(value, LoopError)
    }
    assert set(goldloop.__all__) == ours | {"Campaign", "bench", "STRATEGIES"}


@pytest.mark.parametrize("dies_in", ["loop.report.collect.write_report", "track_measured"])
def test_results_of_the_last_round_that_were_not_written_are_written_later(
    folder, monkeypatch, capsys, dies_in
):
    campaign, told = Campaign.open(), []
    monkeypatch.setattr("loop.cli.face.track_measured", lambda ctx: told.append(ctx.name))
    assert campaign.run(rounds=1)

    def full(*_args):
        raise OSError(28, "No space left on device", "report.html")

    with monkeypatch.context() as patch:
        patch.setattr(dies_in if "." in dies_in else f"loop.cli.face.{dies_in}", full)
        with pytest.raises(LoopError, match="no room left"):
            campaign.run()
    assert campaign.status()["stage"] == "done"
    (folder / "runs" / "report.html").unlink(missing_ok=True)
    told.clear()
    capsys.readouterr()
    assert campaign.run()
    err = capsys.readouterr().err
    assert "The campaign is finished" in err
    assert told == ["c"]
    if "." in dies_in:
        assert "Round 2 was measured before; its results are written now." in err
        rows = json.loads((folder / "runs" / "rounds.json").read_text())["rows"]
        assert {row["round"] for row in rows} >= {1, 2}
        assert (folder / "runs" / "report.html").exists()
    assert campaign.run()
    assert "results are written now" not in capsys.readouterr().err
