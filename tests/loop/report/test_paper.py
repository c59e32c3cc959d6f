"""For a paper: tables that LaTeX and spreadsheets read, and a paragraph that says what was done."""

import csv
import io
import re
import subprocess
from dataclasses import replace
from math import nan
from shutil import which

import numpy as np
import pytest
from campaigns import LABELS, make_small

from loop.campaign.config import Config
from loop.campaign.metrics import (
    Calibration,
    LlmQuality,
    Metric,
    RoundMetrics,
    Share,
    Stability,
)
from loop.campaign.tables import Round
from loop.deliver.data_card import data_card
from loop.deliver.export import final_labels
from loop.llm.votes import llm_in_words
from loop.next_round import open_campaign
from loop.report.collect import campaign_view
from loop.report.contents import ReportRow, ReportView
from loop.report.paper import REFERENCES, csv_table, latex, latex_table, methods
from loop.round import run_round

VIEW = ReportView(
    campaign="50 % of $x_{1}$ & #2",
    task="t",
    labels=("a", "b"),
    rows=(
        ReportRow(
            "loop",
            1,
            1240,
            {
                "accuracy": Metric(0.725, 0.7, 0.75),
                "accuracy_sd": Metric(0.0104),
                "alpha_k": Metric(-0.02, -0.1, 0.06),
                "macro_f1": Metric(nan),
            },
        ),
        ReportRow("llm_only", None, 0),
    ),
    seeds=5,
    simulated=True,
    over="items and seeds",
)


def test_the_latex_table_is_whole_and_escaped():
    table = latex_table(VIEW)
    assert r"50 \% of \$x\_\{1\}\$ \& \#2: students by round" in table
    assert "People are simulated" in table
    columns = re.search(r"\\begin\{tabular\}\{@\{\}(\w+)@\{\}\}", table)[1]
    rows = [line for line in table.splitlines() if line.endswith(r"\\")]
    assert {len(re.split(r"(?<!\\)&", line)) for line in rows} == {len(columns)}
    assert r"Round 1 & 1,240 & 72.5 $\pm$ 1.0 & -- & $-$2.0 & -- & --" in table
    assert r"{\scriptsize [70.0, 75.0]}" in table
    assert rows[1].startswith("LLM labels only & 0 & --")
    assert [table.count(rf"\{rule}rule") for rule in ("top", "mid", "bottom")] == [1, 2, 1]
    assert table.count("{") == table.count("}")


ALL = {key: Metric(0.7253, 0.7012, 0.7534) for key in ("accuracy", "macro_f1", "p_uc")}
ALL |= {"alpha_k": Metric(-0.02, -0.1, 0.06), "reliable_accuracy": Metric(0.5, 0.4, 0.6)}
ALL |= {"accuracy_sd": Metric(0.0104), "macro_f1_sd": Metric(0.0123)}


@pytest.mark.skipif(which("pdflatex") is None, reason="LaTeX is not installed")
def test_latex_sets_the_table_within_the_page(tmp_path):
    rows = [
        ReportRow("loop", 12, 12400, ALL, not_comparable=("student.lr",)),
        ReportRow("random", 12, 12400, ALL),
        ReportRow("all_gold", None, 40000, ALL),
    ]
    hostile = "[x] & % $ # _ { } ~ ^ \\ < > | \" ` ' größe – … ± − † é œ “q” €"
    table = latex_table(replace(VIEW, rows=tuple(rows), campaign=hostile))
    (tmp_path / "t.tex").write_text(
        "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n"
        f"{table}\\end{{document}}\n"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "Overfull" not in done.stdout


@pytest.mark.parametrize(
    ("given", "set_as"),
    [
        ("a_b^c~d\\e", r"a\_b\textasciicircum{}c\textasciitilde{}d\textbackslash{}e"),
        ("two\nlines\u202e", "two lines"),
        ("größer – 1 ± 2", "größer -- 1 $\\pm$ 2"),
        ('"q" †', r"\char34{}q\char34{} $\dagger$"),  # \textquotedbl needs another font encoding
    ],
)
def test_text_is_set_as_it_is(given, set_as):
    assert latex(given) == set_as


def test_the_csv_table_holds_every_metric():
    llm, first = csv.DictReader(io.StringIO(csv_table(VIEW)))
    assert (llm["labels"], llm["round"], llm["accuracy"]) == ("LLM labels only", "", "")
    assert (first["round"], first["gold_bought"], first["seeds"]) == ("1", "1240", "5")
    assert [first[f"accuracy{end}"] for end in ("", "_low", "_high", "_sd")] == [
        *("0.725", "0.7", "0.75", "0.0104"),
    ]
    assert first["alpha_k_low"] == "-0.1"
    assert first["macro_f1"] == ""


def settings(**sections):
    whole = {
        "campaign": {"name": "c", "task": "t"},
        "labels": [{"name": "a"}, {"name": "b"}],
        "texts": {"source": "x.csv"},
    }
    return Config.model_validate(whole | sections)


def students(**more):
    known = Metric(0.75, 0.7, 0.8)
    told = Stability(
        199,
        5,
        199,
        alpha_k=known,
        ac1=known,
        p_uc=known,
        churn=known,
        alpha_per_class=(),
        accuracy=known,
        macro_f1=known,
        over="items and seeds",
    )
    return replace(told, **more)


FULL = RoundMetrics(
    arms={"loop": students()},
    compared={"llm_only": {"accuracy": Metric(0.1, 0.02, 0.18), "alpha_k": Metric(nan)}},
    label_quality=LlmQuality(accuracy=Metric(0.78, 0.72, 0.83), n_gold=207, n_random=124),
    calibration=Calibration("batch", ""),
    pool=900,
    bought=240,
    gold=207,
    accuracy_from="test",
    people_alpha=0.71,
)


def told_of(config, measured):
    return methods(config, measured, llm="smollm2-135m", version="1.2.3")


def test_the_paragraph_has_this_campaigns_figures_and_cites_in_order():
    told = told_of(settings(people={"overlap": 3, "rule": "dawid-skene"}), [FULL, FULL])
    for said in (
        "A pool of 900 texts was given one of 2 labels by smollm2-135m",
        "In 2 rounds, 240 texts were sent to people",
        "3 answers for each text, settled by the model of Dawid and Skene",
        "of which 207 got a gold label",
        "alpha 71.0",
        "50.0 % of them were a random sample",
        "roberta-base, 3 epochs, batch size 16",
        "evaluated on 199 test texts with known labels",
        "78.0 (72.0 to 83.0) % were right, estimated from 207 gold labels (124 drawn at random)",
        "accuracy +10.0 (+2.0 to +18.0)",
        "goldloop 1.2.3",
    ):
        assert said in told.paragraph, said
    numbers = [int(n) for n in re.findall(r"(?<=[\[ ])\d+(?=[,\]])", told.paragraph)]
    first_seen = list(dict.fromkeys(n for n in numbers if n <= len(told.references)))
    assert first_seen == list(range(1, len(told.references) + 1))
    assert set(told.references) <= set(REFERENCES.values())
    assert "[[" not in told.paragraph
    assert "nan" not in told.paragraph


@pytest.mark.parametrize(
    ("config", "newest", "says"),
    [
        ({}, RoundMetrics(pool=9), "0 texts were sent to people (one answer each)"),
        ({"strategy": {"repair": "keep"}}, FULL, "the other labels stayed the LLM's"),
        ({"student": {"encoder": "/home/me/models/little"}}, FULL, "classifier (little, 3 epochs"),
        ({}, replace(FULL, accuracy_from="audit"), "randomly drawn texts with gold, weighted"),
        (
            {},
            replace(FULL, accuracy_from=None, arms={"loop": students(known=0, accuracy=None)}),
            "199 test texts without known labels",
        ),
        ({}, replace(FULL, arms={"loop": students(seeds=1)}), "with 1 random seed on"),
        (
            {},
            replace(FULL, pushed_wrong={"coverage": Share(0.1, 9)}),
            "in 1 round all were drawn at random",
        ),
        (
            {"annotator": {"kind": "recorded", "columns": ["x"]}},
            FULL,
            "the LLM labels recorded in 1 column",
        ),
    ],
)
def test_the_paragraph_says_what_was_done_here(config, newest, says):
    assert says in told_of(settings(**config), [newest]).paragraph


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A campaign with a finished round."""
    ctx = make_small(tmp_path_factory.mktemp("ran"), strategy={"repair": "relabel"})
    open_campaign(ctx)
    run_round(ctx)
    yield ctx
    ctx.store.close()


def test_what_is_said_of_a_round_is_what_ran_and_not_the_file_as_it_was_edited_since(ran):
    sections = {
        "student": {"encoder": "bert-large-cased", "epochs": 7},
        "strategy": {"repair": "drop"},
        "annotator": {"kind": "local_lm", "model": "another"},
        "labels": [{"name": name} for name in (*LABELS, "new")],
    }
    edited = Config.model_validate(ran.config.model_dump() | sections)
    records = final_labels(edited, ran.store)
    assert {r["how"] for r in records if r["source"] == "repaired"} == {"relabel"}
    paragraph = campaign_view(edited, ran.store).methods.paragraph
    for said in (
        "one of 2 labels from the LLM labels recorded in 2 columns",
        "became the likeliest class",
        "(roberta-base, 3 epochs",
    ):
        assert said in paragraph, said
    assert "labels recorded in the columns llm, llm\\_2" in data_card(edited, ran.store, records)


@pytest.mark.parametrize(
    ("kind", "name"), [("their_llm", "their-llm-1"), ("openai_server", "gpt-oss-20b")]
)
def test_the_llm_is_what_answered_and_no_default(ran, kind, name):
    annotator = {"kind": kind} | ({} if kind == "their_llm" else {"model": name})
    config = ran.config.model_dump(mode="json") | {"annotator": annotator}
    round_ = Round(campaign="c", number=9, stage="score", seed=0, config=config, versions={})
    variant = ran.store.variants("c", ran.annotator.revision)[0].hash
    for revision in ("their-llm-1", "their-llm-1~rival"):
        with ran.store.transaction() as session:
            ran.store.add_votes(
                session,
                "c",
                revision,
                variant,
                rows=np.array([0]),
                probs=np.array([[0.5, 0.5]]),
                off_label_mass=np.zeros(1),
                tokens=0,
                usd=0.0,
                seconds=0.0,
            )
    assert llm_in_words(ran.store, round_) == name


def test_an_llm_that_was_named_again_without_new_votes_is_the_one_of_its_round(ran):
    config = ran.config.model_dump(mode="json") | {"annotator": {"kind": "their_llm"}}
    with ran.store.transaction() as session:
        for number, revision in ((21, "first"), (22, "second"), (23, "first")):
            ran.store.log(session, "c", "annotate", "done", round=number, annotator=revision)
    said = [
        llm_in_words(
            ran.store,
            Round(campaign="c", number=n, stage="score", seed=0, config=config, versions={}),
        )
        for n in (21, 22, 23)
    ]
    assert said == ["first", "second", "first"]
    [began] = ran.store.events("c", "annotate", "done")[:1]
    assert began.detail["annotator"] == ran.annotator.revision
