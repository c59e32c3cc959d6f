import pytest

from loop.campaign.tables import Annotation
from loop.people.gold import decide


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
