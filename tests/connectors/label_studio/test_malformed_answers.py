"""Whatever stands in the place of an answer: it is judged by itself, and all others are read."""

import json
import math
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
from fake_studio import FakeStudio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from malformed import answer_shapes

from connectors.label_studio.client import _decoded
from connectors.label_studio.pull import CURSOR_OVERLAP_S
from connectors.label_studio.reviewer import LabelStudioReviewer
from loop.errors import ReviewerError
from loop.prompt import Label

SHAPES = answer_shapes(
    FakeStudio().answer(1, "good") | {"updated_at": "2026-05-01T12:00:00.000000Z", "id": 5}
)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    quick = SimpleNamespace(sleep=lambda seconds: None, monotonic=time.monotonic)
    monkeypatch.setattr("connectors.label_studio.client.time", quick)
    monkeypatch.setattr("label_studio_sdk.core.http_client.time.sleep", lambda seconds: None)


def reviewer(studio):
    made = LabelStudioReviewer(
        "http://127.0.0.1:9",
        "0" * 40,
        project_title="Demo",
        campaign_id="c",
        labels=[Label("good"), Label("bad")],
        task="Which?",
        transport=studio.transport,
    )
    made._project = 1
    return made


def three_tasks(*answers):
    """A task before and a task after the one with these answers, both labelled "bad" by Bob."""
    studio = FakeStudio()
    first, odd, last = (studio.add(f"i{n}") for n in range(3))
    studio.put(odd, *answers)
    for task in (first, last):
        studio.put(task, studio.answer(task, "bad", person=2))
    return studio


def read(studio, cursor=None):
    return {t.item_id: t.annotations for t in reviewer(studio).fetch(cursor).tasks}


@pytest.mark.parametrize("name", SHAPES)
def test_each_answer_is_judged_by_itself(name):
    shape, problem = SHAPES[name]
    valid = FakeStudio().answer(2, "bad", person=2, id=77)
    answers = read(three_tasks(shape, valid))
    assert [a.label for a in (*answers["i0"], *answers["i2"])] == ["bad", "bad"]
    by_label = {a.label: a for a in answers["i1"]}
    assert len(answers["i1"]) == 2
    assert by_label["bad"].annotator == "bob@x.org"
    (one,) = [a for a in answers["i1"] if a is not by_label["bad"]]
    if problem is None:
        assert (one.label, one.problem) == ("good", None)
    else:
        assert one.label is None
        assert (one.problem or "").startswith(problem)
    assert one.lead_time_s is None or (math.isfinite(one.lead_time_s) and one.lead_time_s >= 0)
    kept = json.loads(one.raw) if name == "nested surprises" else one.raw
    if not isinstance(shape, bytes):
        assert kept == _decoded(json.dumps(shape))
    json.dumps(one.raw, allow_nan=False)


def test_there_are_many_shapes():
    assert len(SHAPES) >= 30


def test_what_no_number_can_hold_is_kept_as_text():
    raws = [
        a.raw
        for name in ("not a number", "beyond all numbers", "digits without end")
        for a in read(three_tasks(SHAPES[name][0]))["i1"]
    ]
    assert raws[0] == {"id": 9, "lead_time": "NaN", "x": "-Infinity"}
    assert raws[1]["x"] == "1e999"
    assert raws[2]["id"] == "1" * 6000


@pytest.mark.parametrize("annotations", ["7", '"good"', '{"id": 1}', "true", "null"])
def test_annotations_that_are_no_list(annotations):
    studio = three_tasks()
    real = studio._row
    studio._row = lambda task, whole: (
        json.dumps({"id": task, "data": studio.tasks[task]["data"], "updated_at": 7})[:-1]
        + f', "annotations": {annotations}}}'
        if task == 2
        else real(task, whole)
    )
    answers = read(studio)
    assert [a.label for a in (*answers["i0"], *answers["i2"])] == ["bad", "bad"]
    assert [a.label for a in answers["i1"]] == [None] * (annotations != "null")


@pytest.mark.parametrize("data", [None, "text", 7, [], {"ext_id": 7}, {"ext_id": None}])
def test_tasks_that_are_not_ours_may_be_anything(data):
    studio = three_tasks()
    studio.tasks[2]["data"] = data
    assert [t.item_id for t in reviewer(studio).fetch(None).tasks] == ["i0", "i2"]


def test_two_answers_of_one_number_are_both_kept():
    valid = FakeStudio().answer(2, "good")
    answers = read(three_tasks(valid, valid | {"lead_time": 2.0}))["i1"]
    assert [(a.label, a.problem) for a in answers] == [
        ("good", None),
        (None, "no number of its own"),
    ]
    assert len({a.annotation_id for a in answers}) == 2


def test_an_answer_without_a_time_is_read_anew_when_it_changes():
    valid = FakeStudio().answer(2, "good", updated_at=None)
    before = read(three_tasks(valid))["i1"][0]
    after = read(three_tasks(valid | FakeStudio().answer(2, "bad", updated_at=None)))["i1"][0]
    assert before.annotation_id == after.annotation_id
    assert before.updated_at != after.updated_at
    assert before.updated_at < "2026"


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
# JSON that comes near an answer finds more than JSON at large.
near = st.fixed_dictionaries(
    {},
    optional={
        "id": anything,
        "completed_by": anything,
        "result": anything
        | st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "from_name": st.sampled_from(["label", "note"]) | anything,
                    "type": st.just("choices") | anything,
                    "value": anything
                    | st.fixed_dictionaries({}, optional={"choices": anything, "text": anything}),
                },
            ),
            max_size=3,
        ),
        "was_cancelled": anything,
        "lead_time": anything,
        "updated_at": anything,
    },
)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(shapes=st.lists(anything | near, min_size=1, max_size=4))
def test_no_json_in_place_of_an_answer_stops_a_pull_or_changes_another(shapes):
    studio = three_tasks(*shapes, FakeStudio().answer(2, "bad", person=2, id=2**40))
    answers = read(studio)
    assert [a.label for a in (*answers["i0"], *answers["i2"])] == ["bad", "bad"]
    found = answers["i1"]
    assert len(found) == len(shapes) + 1
    assert len({a.annotation_id for a in found}) == len(found)
    assert "bad" in [a.label for a in found if a.annotator == "bob@x.org"]
    for a in found:
        assert a.label in (None, "good", "bad")
        assert a.label is None or a.problem is None
        json.dumps(a.raw, allow_nan=False)


# tasks that the server cannot show


@pytest.mark.parametrize("broken", [{1}, {7}, {3, 4}, {1, 2, 3, 4, 5, 6, 7}, {2, 5, 7}])
@pytest.mark.parametrize(("page", "most"), [(1, 9), (2, 9), (3, 9), (4, 9), (500, 9), (500, 3)])
def test_a_task_that_cannot_be_shown_is_named_and_the_rest_is_read(monkeypatch, broken, page, most):
    monkeypatch.setattr("connectors.label_studio.pull.PAGE_TASKS", page)
    studio = FakeStudio()
    studio.most_on_page = most  # a server may give fewer than it is asked for
    for n in range(1, 8):
        studio.put(studio.add(f"i{n}"), studio.answer(n, "good"))
    studio.broken = broken
    fetched = reviewer(studio).fetch(None)
    assert {t.task_id for t in fetched.tasks} == {str(n) for n in range(1, 8)} - set(
        map(str, broken)
    )
    assert fetched.unserved == tuple(str(n) for n in sorted(broken))
    assert [a.label for t in fetched.tasks for a in t.annotations] == ["good"] * (7 - len(broken))


@pytest.mark.parametrize("left", [3, 2, 0])
def test_tasks_that_vanish_between_two_pages_hide_no_other(monkeypatch, left):
    studio = FakeStudio()
    for n in range(4):
        studio.add(f"i{n}")
    studio.most_on_page = 2
    listed = studio._listed

    def vanishing(params):
        found = listed(params)
        for task in [*studio.tasks][: len(studio.tasks) - left]:
            del studio.tasks[task]
        return found

    monkeypatch.setattr(studio, "_listed", vanishing)
    fetched = reviewer(studio).fetch(None)
    assert [t.item_id for t in fetched.tasks] == [f"i{n}" for n in range(4 - left, 4)]


def test_one_broken_task_of_many_costs_few_questions():
    studio = FakeStudio()
    for n in range(1200):
        studio.add(f"i{n}")
    studio.broken = {777}
    fetched = reviewer(studio).fetch(None)
    assert fetched.unserved == ("777",)
    assert len(fetched.tasks) == 1199
    assert len([path for path, _ in studio.asked if path == "/api/tasks/"]) < 40


def test_json_that_breaks_off_in_one_task_is_that_task_alone():
    studio = three_tasks()
    studio.tasks[2]["answers"] = ['{"id": 5, "x"']
    fetched = reviewer(studio).fetch(None)
    assert fetched.unserved == ("2",)
    assert [t.item_id for t in fetched.tasks] == ["i0", "i2"]


def test_a_nest_deeper_than_the_stack_is_one_task_alone():
    studio = three_tasks()
    studio.tasks[2]["answers"] = ["[" * 100_000 + "]" * 100_000]
    fetched = reviewer(studio).fetch(None)
    assert fetched.unserved == ("2",)
    assert [t.item_id for t in fetched.tasks] == ["i0", "i2"]


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_server_that_is_down_names_no_task(status):
    studio = three_tasks()
    studio.broken, studio.status_of_broken = {2}, status
    with pytest.raises(ReviewerError, match=f"failed to read answers \\({status}\\)"):
        reviewer(studio).fetch(None)


def test_a_server_that_fails_at_everything_names_no_task(monkeypatch):
    studio = three_tasks()
    monkeypatch.setattr(studio, "_listed", lambda params: (500, "<html>Server Error</html>"))
    with pytest.raises(ReviewerError, match=r"failed to read answers \(500\)"):
        reviewer(studio).fetch(None)
    assert len(studio.asked) < 10


# the server's clock


def answered(studio, *tasks, cursor=None):
    """Labels by task number that a reading brings, and its cursor."""
    fetched = reviewer(studio).fetch(cursor)
    labels = {int(t.task_id): [a.label for a in t.annotations] for t in fetched.tasks}
    return labels, fetched


@pytest.mark.parametrize("back", [timedelta(seconds=30), timedelta(hours=2), timedelta(days=1500)])
def test_answers_are_read_after_the_clock_was_set_back(back):
    studio = three_tasks()
    cursor = reviewer(studio).fetch(None).cursor
    studio.clock -= back
    studio.put(2, studio.answer(2, "good"))
    labels, fetched = answered(studio, cursor=cursor)
    assert labels[2] == ["good"]
    assert fetched.whole
    studio.put(1, studio.answer(1, "good"))
    labels, fetched = answered(studio, cursor=fetched.cursor)
    assert labels[1] == ["good"]


def test_a_cursor_never_lies_in_the_servers_future():
    studio = three_tasks()
    studio.tasks[1]["at"] += timedelta(days=1500)
    cursor = reviewer(studio).fetch(None).cursor
    assert cursor <= studio.stamp(studio.clock + timedelta(seconds=1))
    studio.put(2, studio.answer(2, "good"))
    labels, fetched = answered(studio, cursor=cursor)
    assert labels[2] == ["good"]
    assert not fetched.whole


def test_with_a_steady_clock_only_changes_are_read():
    studio = three_tasks()
    studio.clock += timedelta(seconds=60)
    first = reviewer(studio).fetch(None)
    assert first.whole
    studio.clock += timedelta(seconds=3600)
    studio.put(2, studio.answer(2, "good"))
    labels, fetched = answered(studio, cursor=first.cursor)
    assert 2 in labels
    assert not fetched.whole
    studio.clock += timedelta(seconds=CURSOR_OVERLAP_S + 60)
    studio.put(3, studio.answer(3, "good"))
    labels, fetched = answered(studio, cursor=fetched.cursor)
    assert set(labels) == {2, 3}  # the last one read comes again: the overlap


def test_a_server_without_a_date_is_read_all_the_same():
    studio = three_tasks()
    studio.dated = False
    fetched = reviewer(studio).fetch(None)
    studio.put(2, studio.answer(2, "good"))
    assert answered(studio, cursor=fetched.cursor)[0][2] == ["good"]


@pytest.mark.parametrize("cursor", ["", "soon", "\0", "0001-01-01T00:00:00Z", "9999-12-31T23:59Z"])
def test_a_position_that_is_no_time_reads_everything(cursor):
    studio = three_tasks()
    labels, fetched = answered(studio, cursor=cursor)
    assert len(labels) == 3
    assert fetched.whole
    assert fetched.cursor > "2026"
