"""Several annotators on the validation sample."""

import csv
import json

import numpy as np
import pytest
from campaigns import copied, make, texts
from fakes import FakeRaters, FileReviewer

from connectors.llm.recorded import RecordedAnnotator
from loop.cli import __main__ as cli
from loop.cli import build as parts
from loop.errors import ConfigError
from loop.llm.votes import read_votes
from loop.ports import item_id
from loop.report.status import campaign_status
from loop.round import run_round
from loop.studies.rivals import ask_rival, renamed, rival_config, rival_lines, side_by_side
from loop.studies.validate import open_validation

FILE = """\
[campaign]
name = "other"
task = "another task"
[[labels]]
name = "bad"
[[labels]]
name = "{second}"
[texts]
source = "elsewhere.csv"
[annotator]
kind = "recorded"
columns = ["{column}"]
"""


def rival_file(tmp_path, column="llm_2", second="good"):
    path = tmp_path / f"{column}.toml"
    path.write_text(FILE.format(column=column, second=second))
    return path


def campaign(folder, rows=None):
    return make(
        folder,
        rows=rows or texts(400),
        annotator={"kind": "recorded", "columns": ["llm"]},
        budget={"labels": 150},
        student={"seeds": 2, "references": ["llm_only"]},
    )


@pytest.fixture(scope="module")
def once_validated(tmp_path_factory):
    """Folder of a campaign that has validated 120 texts."""
    ctx = campaign(folder := tmp_path_factory.mktemp("validated"))
    open_validation(ctx, 120)
    run_round(ctx)
    ctx.store.close()
    return folder


@pytest.fixture
def validated(once_validated, tmp_path):
    ctx = campaign(copied(once_validated, tmp_path / "validated"))
    yield ctx
    ctx.store.close()


def ask(ctx, path):
    config = rival_config(ctx.config, path)
    own = RecordedAnnotator(config.annotator.columns, config.port_labels)
    annotator = renamed(config, own)
    ask_rival(ctx, config, annotator)
    return path.stem, config, annotator.revision


def test_two_annotators_are_compared_on_the_same_texts(validated, tmp_path):
    ctx = validated
    rival = ask(ctx, rival_file(tmp_path))
    mine, other = side_by_side(ctx, [rival])
    gold = ctx.store.gold("c")
    sample = [i for i in ctx.store.items("c", "pool") if i.id in gold]
    for found, column in ((mine, "llm"), (other, "llm_2")):
        share = np.mean([i.meta[column] == i.known_label for i in sample])
        assert found.compared.accuracy.value == pytest.approx(share)
    assert mine.compared.accuracy_gain is None
    gain = other.compared.accuracy_gain
    pool = ctx.store.items("c", "pool")
    right = {c: np.mean([i.meta[c] == i.known_label for i in pool]) for c in ("llm", "llm_2")}
    assert gain.low <= right["llm_2"] - right["llm"] <= gain.high
    lines = "\n".join(rival_lines([mine, other], ctx.config.label_names))
    assert "this campaign: accuracy" in lines
    assert "llm_2: accuracy" in lines
    assert "against the first: accuracy +" in lines
    assert lines.count("precision") == 4


def test_a_rival_labels_the_sample_only_once_and_decides_nothing(validated, tmp_path):
    ctx = validated
    before = ctx.store.spent("c").votes
    _, _, revision = ask(ctx, rival_file(tmp_path))
    assert ctx.store.spent("c").votes == before + 120
    ask(ctx, rival_file(tmp_path))
    assert ctx.store.spent("c").votes == before + 120
    assert revision != ctx.annotator.revision
    items = ctx.store.items("c", "pool")
    votes = read_votes(ctx.config, ctx.store, ctx.annotator.revision, items)
    assert votes.probs.shape[1] == 1
    run_round(ctx)
    assert ctx.store.last_round("c").number == 1


def test_the_same_model_under_another_prompt_is_another_rival(validated):
    ctx = validated
    own = RecordedAnnotator(["llm"], ctx.config.port_labels)
    plain = renamed(ctx.config, own)
    prompt = ctx.config.prompt.model_copy(update={"item": ("{text} ->",)})
    reworded = renamed(ctx.config.model_copy(update={"prompt": prompt}), own)
    assert len({own.revision, plain.revision, reworded.revision}) == 3
    read = ctx.config.prompt.model_copy(update={"calibrate": "none"})
    assert renamed(ctx.config.model_copy(update={"prompt": read}), own).revision == plain.revision


def test_what_a_rival_cannot_answer_counts_as_wrong_and_is_not_for_retry(tmp_path):
    rows = texts(400)
    for row in rows[::4]:
        row.meta["llm_2"] = "neither"
    ctx = campaign(tmp_path, rows)
    open_validation(ctx, 120)
    run_round(ctx)
    rival = ask(ctx, rival_file(tmp_path))
    compared = side_by_side(ctx, [rival])[1].compared
    assert compared.unanswered == len(ctx.store.unanswered("c", rival[2])) > 10
    assert campaign_status(ctx.config, ctx.store)["budget"]["llm_unanswered"] == 0
    assert f"{compared.unanswered} without an answer" in "\n".join(
        rival_lines(side_by_side(ctx, [rival]), ctx.config.label_names)
    )


def test_other_labels_cannot_be_compared(validated, tmp_path):
    ctx = validated
    with pytest.raises(ConfigError, match="annotators are compared on the same labels"):
        rival_config(ctx.config, rival_file(tmp_path, second="great"))
    with pytest.raises(ConfigError, match="No campaign file"):
        rival_config(ctx.config, tmp_path / "none.toml")


def test_the_command_compares_a_campaign_with_another_file(tmp_path, monkeypatch, capsys):
    campaign = FILE.replace('"elsewhere.csv"', '"t.csv"\ngold_column = "gold"\ntest_frac = 0.2')
    campaign += '[raters]\nkind = "gold"\n[budget]\nlabels = 60\n[rounds]\nbatch_size = 20\n'
    campaign += '[strategy]\nsignals = ["margin"]\n'
    (tmp_path / "goldloop.toml").write_text(campaign.format(column="llm", second="good"))
    with (tmp_path / "t.csv").open("w", newline="") as handle:
        rows = [[r.text, r.gold, r.meta["llm"], r.meta["llm_2"]] for r in texts(200)]
        csv.writer(handle).writerows([["text", "gold", "llm", "llm_2"], *rows])
    reviewer = FileReviewer(tmp_path / "studio.json")
    truth = {item_id("other", r.text): r.gold for r in texts(200)}
    monkeypatch.setattr(parts, "build_reviewer", lambda *_: reviewer)
    monkeypatch.setattr(parts, "build_raters", lambda *_: FakeRaters(reviewer, truth))
    monkeypatch.chdir(tmp_path)
    command = ["goldloop", "validate", "--size", "40", "--json"]
    monkeypatch.setattr("sys.argv", [*command, "--also", str(rival_file(tmp_path))])
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert done.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert [rival["name"] for rival in told["annotators"]] == ["this campaign", "llm_2"]
    assert told["annotators"][1]["compared"]["accuracy_gain"]["low"] <= 0.5
    assert told["quality"]["n_gold"] == 40
