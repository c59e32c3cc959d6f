import numpy as np
import pytest

from loop.campaign.tables import Annotation
from loop.people.gold import Panel, decide, decide_all, people_alpha


def answer(person, label, *, at="1", skipped=False, problem=None):
    return Annotation(
        campaign="c",
        annotation_id=f"{person}{at}",
        updated_at=at,
        task_id="1",
        item_id="i",
        annotator=person,
        label=label,
        skipped=skipped,
        note="",
        problem=problem,
        raw={},
    )


@pytest.mark.parametrize(
    ("answers", "label", "how", "confidence"),
    [
        ([answer("a", "x")], "x", "single", 1.0),
        ([answer("a", "x"), answer("b", "x")], "x", "agreed", 1.0),
        ([answer("a", "x"), answer("b", "y"), answer("c", "x")], "x", "majority", 2 / 3),
        ([answer("a", "x"), answer("b", "y")], None, "conflict", 0.0),
        ([answer("a", "x"), answer("b", "y"), answer("c", "z")], None, "conflict", 0.0),
        ([answer("a", None, skipped=True)], None, "skipped", 0.0),
        ([answer("a", "x"), answer("b", None, skipped=True)], "x", "single", 1.0),
        ([answer("a", None, problem="unsure")], None, "unsure", 0.0),
        ([answer("a", None, problem="unknown label 'q'")], None, "unreadable", 0.0),
    ],
)
def test_decisions(answers, label, how, confidence):
    decision = decide(answers)
    assert (decision.label, decision.how) == (label, how)
    assert decision.confidence == pytest.approx(confidence)


def test_a_person_counts_once_with_the_newest_answer():
    answers = [answer("a", "x", at="1"), answer("a", "y", at="2"), answer("b", "y", at="1")]
    decision = decide(answers)
    assert (decision.label, decision.how, decision.answers) == ("y", "agreed", 2)


def test_no_model_overrules_people_who_all_agree():
    """Two people who are often wrong, and agree now and then on what the model thinks unlikely."""
    rng = np.random.default_rng(0)
    by_item, truth = {}, rng.integers(3, size=400)
    for i, true in enumerate(truth):
        said = [true if rng.random() < right else rng.integers(3) for right in (0.7, 0.4)]
        by_item[f"i{i}"] = [answer(who, "xyz"[c]) for who, c in zip("ab", said, strict=True)]
    panel = Panel(overlap=2, rule="dawid-skene")
    decisions = decide_all(by_item, ["x", "y", "z"], panel)
    alike = {i: a[0].label for i, a in by_item.items() if a[0].label == a[1].label}
    assert len(alike) > 100
    for item, label in alike.items():
        assert (decisions[item].label, decisions[item].how) == (label, "agreed")
    assert {d.how for i, d in decisions.items() if i not in alike} <= {"dawid-skene", "conflict"}


def test_a_label_taken_back_is_no_disagreement():
    def said(item, *labels):
        rows = [answer(person, label) for person, label in zip("ab", labels, strict=False)]
        for row in rows:
            row.item_id = item
        return rows

    answers = [*said("1", "x", "x"), *said("2", "y", "y"), *said("3", "x", "y")]
    assert people_alpha(answers, ["x", "y"], ordinal=False) < 1
    back = answer("b", None, at="2", skipped=True)
    back.item_id = "3"
    assert people_alpha([*answers, back], ["x", "y"], ordinal=False) == 1
