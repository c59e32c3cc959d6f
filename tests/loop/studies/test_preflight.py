"""What a later stage would refuse is found before anything is spent."""

import json
import os
from collections import Counter

import pytest
from campaigns import make, texts

from loop.campaign.config import RatersSection
from loop.studies.preflight import preflight


def looked_at(tmp_path, rows=None, raters=None, recorded=None, student=None, **sections):
    known = {"seeds": 3, "references": ["llm_only", "random", "all_gold"], "epochs": 15}
    ctx = make(tmp_path, student=known | (student or {}), **sections)
    ctx.store.close()
    config = ctx.config
    if raters:
        config = config.model_copy(update={"raters": RatersSection(**raters)})
    return preflight(config, texts() if rows is None else rows, "llm", recorded)


def split_as(names, **changed):
    rows = texts()
    for i, row in enumerate(rows):
        row.split = names[i % len(names)]
        vars(row).update(changed)
    return rows


SPLIT = {"texts": {"source": "x.csv", "gold_column": "g", "split_column": "s"}}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("train", "test", "validation"), "'validation'; did you mean 'dev'?"),
        (("Train", "Test"), "'Train'; did you mean 'train'?"),
        (("training", "testing"), "'training'; did you mean 'train'?"),
        (("train", "test", ""), "has split ''"),
        (("train",), "No text is held out"),
        (("test",), "leaves 0 texts to label"),
    ],
)
def test_splits_that_the_import_refuses(tmp_path, names, said):
    found = looked_at(tmp_path, split_as(names), **SPLIT)
    assert said in "\n".join(found.errors)
    if "Did you mean" in said:
        assert all(f"{name!r} (" in found.errors[0] for name in names if name not in SPLITS)


SPLITS = ("train", "test")


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"rounds": {"batch_size": 100}, "budget": {"labels": 100}}, "rounds.batch_size 100"),
        ({"budget": {"labels": 2000}}, "budget.labels 2000 is larger"),
        (
            {
                "annotator": {"kind": "local_lm"},
                "texts": {"source": "x.csv"},
                "student": {"references": []},
            },
            "prompt.shots = 3 needs examples",
        ),
        ({"student": {"encoder": "./nowhere"}}, "Encoder folder ./nowhere does not exist"),
        ({"student": {"encoder": "bare"}}, "has no safetensors weights"),
        ({"student": {"encoder": "mute"}}, "has no tokenizer"),
        ({"student": {"encoder": "a b"}}, "student.encoder 'a b' is neither a folder nor a name"),
        ({"annotator": {"kind": "local_lm", "model": "./nowhere"}}, "annotator.model ./nowhere"),
        ({"annotator": {"kind": "local_lm", "model": "hf:x"}}, "annotator.model 'hf:x' is neither"),
        ({"label_studio": {"url": "http://127.0.0.1:9"}}, "Set LABEL_STUDIO_API_KEY"),
        ({"raters": {"kind": "recorded", "ratings_column": "nobody"}}, "holds no ratings"),
    ],
)
def test_what_later_stages_refuse_is_found_before_anything_is_spent(
    tmp_path, monkeypatch, sections, said
):
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)
    for name, files in (("bare", ()), ("mute", ("model.safetensors",))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"hidden_size": 8}))
        for file in files:
            (tmp_path / name / file).write_bytes(b"")
    rows = texts()
    if "gold_column" not in sections.get("texts", {"gold_column": "g"}):
        for row in rows:
            row.gold = None
    found = looked_at(tmp_path, rows, **sections)
    assert said in "\n".join(found.errors)


def test_everything_is_told_at_once(tmp_path):
    found = looked_at(
        tmp_path,
        split_as(("train",), gold=None),
        budget={"labels": 2000},
        rounds={"batch_size": 1000},
        student={"encoder": "./nowhere", "references": ["all_gold"]},
        **SPLIT,
    )
    told = "\n".join(found.errors)
    for part in ("No text is held out", "batch_size 1000", "labels 2000", "all_gold", "./nowhere"):
        assert part in told


def test_few_known_labels_are_warned_of_with_what_that_means(tmp_path, monkeypatch):
    found = looked_at(tmp_path, texts(40), rounds={"batch_size": 10}, budget={"labels": 20})
    (few,) = [w for w in found.warnings if "Only 8 test texts" in w]
    assert "if 80 % of them are labelled right, the true share is between 45 and 95 %" in few
    rows = texts(400)
    for i, row in enumerate(rows):
        row.gold = "bad" if i == 7 else "good"
    (rare,) = looked_at(tmp_path, rows).warnings
    assert rare.startswith("Label 'bad' has only ")
    assert "and only 1 text in all" in rare or "of the 80 known test texts" in rare
    assert looked_at(tmp_path, texts(400)).warnings == ()
    alone = {"seeds": 2, "references": ["llm_only"]}
    (bought_again,) = looked_at(tmp_path, texts(400), student=alone).warnings
    assert bought_again.startswith("320 texts to label have a known label, and people may be asked")
    there = os.path.relpath(tmp_path / "x.csv")  # from here, not from the campaign file
    assert f"`goldloop import-labels {there} --label-column g`" in bought_again
    monkeypatch.chdir(tmp_path)
    (bought_again,) = looked_at(tmp_path, texts(400), student=alone).warnings
    assert "`goldloop import-labels x.csv --label-column g`" in bought_again
    checks = looked_at(tmp_path, texts(400), student=alone, people={"check_frac": 0.1})
    assert checks.warnings == ()


def test_students_that_take_few_steps_are_warned_of_with_what_is_enough(tmp_path):
    (few,) = looked_at(tmp_path, texts(400), student={"epochs": 3}).warnings
    assert few.startswith("A student takes 60 steps (320 texts, epochs = 3, batch_size = 16)")
    assert few.endswith("Set student.batch_size = 8 and student.epochs = 8.")
    (one,) = looked_at(tmp_path, texts(2100), student={"epochs": 1}).warnings
    assert one.endswith("Set student.batch_size = 16 and student.epochs = 3.")
    for enough in ({"epochs": 8, "batch_size": 8}, {"epochs": 4, "batch_size": 4}):
        assert looked_at(tmp_path, texts(400), student=enough).warnings == ()
    # No more is advised than helps, even where it is too little.
    advised = {"epochs": 20, "batch_size": 8}
    told = looked_at(tmp_path, rounds={"batch_size": 10}, budget={"labels": 20}, student=advised)
    assert "student.epochs" not in "".join(told.warnings)


def test_a_file_that_seems_to_lack_its_line_of_column_names_is_warned_of(tmp_path):
    lacks = {"texts": {"source": "x.csv", "gold_column": "good"}}
    (told,) = looked_at(tmp_path, texts(400), **lacks).warnings
    assert told.startswith("texts.gold_column = 'good' is a label's name as well.")


def test_money_that_does_not_reach_is_warned_of(tmp_path):
    cap = {"labels": 30, "usd": 2.0, "usd_per_label": 0.1}
    (told,) = looked_at(tmp_path, texts(400), budget=cap).warnings
    assert "30 texts $3.00" in told


def test_texts_that_say_nearly_the_same_are_counted_before_people_read_them(tmp_path):
    rows = texts(400)
    for i in range(3):
        rows[i].split, rows[i].text = "pool", f"The same text, {'!' * i}"
    for i in range(3, 400):
        rows[i].split = "test" if i % 4 == 0 else "pool"
    rows[4].text = "the SAME text"  # in test
    told = looked_at(tmp_path, rows, **SPLIT)
    assert "1 test text stands among the other texts in nearly the same words" in told.warnings[0]
    (line,) = [line for line in told.lines if line.startswith("Twins")]
    assert "2 of the texts to label say nearly the same as another one" in line


@pytest.mark.parametrize(("usd", "overlap", "paid"), [(0.2, 2, True), (0.19, 2, False)])
def test_money_that_does_not_pay_for_a_single_text_is_refused(tmp_path, usd, overlap, paid):
    money = {"labels": 30, "usd": usd, "usd_per_label": 0.1}
    found = looked_at(tmp_path, texts(400), budget=money, people={"overlap": overlap})
    assert [e for e in found.errors if "does not pay for a single text" in e] == list(found.errors)
    assert (not found.errors) == paid


def test_what_will_happen_is_told(tmp_path):
    said = {"llm": Counter({"bad": 3, "good": 6, "": 1})}
    money = {"labels": 30, "usd_per_label": 0.1}
    found = looked_at(tmp_path, texts(400), recorded=said, budget=money)
    assert (found.errors, found.warnings) == ((), ())
    lines = "\n".join(found.lines)
    for part in (
        "320 to label, 80 to test on (80 with a known label), 0 for examples (dev)",
        "bad 50 %, good 50 % of 400 labels",
        "no calls; column 'llm': bad 30 %, good 60 %, no label 10 % of 10 labels",
        "2 rounds of 15 texts, 30 in all: 30 answers, about 8 minutes",
        "$3.00",
        "roberta-base",
        "6 trainings a round, and 6 once to compare with",
    ):
        assert part in lines
    checked = looked_at(tmp_path, texts(400), budget=money, people={"check_frac": 0.2})
    assert "30 in all: 36 answers" in "\n".join(checked.lines)
    steep = looked_at(tmp_path, texts(400), student={"encoder": "minilm", "lr": 0.1})
    assert "minilm, learning rate 0.1 (0.0001 fits minilm); " in steep.lines[-1]
    judged = looked_at(tmp_path, texts(400), strategy={"repair_students": "fine-tuned"})
    assert (
        "6 trainings a round, 5 more of judges, and 6 once to compare with; 15 epochs each"
        in "\n".join(judged.lines)
    )
    asked = {"kind": "openai_server", "base_url": "http://127.0.0.1:1/v1", "model": "m"}
    asked |= {"usd_per_million_tokens": 10.0}
    (line,) = [
        line
        for line in looked_at(tmp_path, texts(400), annotator=asked).lines
        if line.startswith("LLM")
    ]
    assert "780 calls" in line
    assert "$0." in line


def test_labels_that_stand_for_no_label_are_warned_of(tmp_path):
    for name, told in (("nan", True), ("N/A", True), ("None", True), ("none", False)):
        labels = [{"name": n} for n in ("bad", "good", name)]
        found = looked_at(tmp_path / name.replace("/", ""), labels=labels)
        line = f"Label {name!r} is what tools write into cells without a value."
        assert any(w.startswith(line) for w in found.warnings) == told
