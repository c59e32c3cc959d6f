"""What leads of annotators find in Label Studio: tabs with the columns that say something."""

import pytest
from fake_studio import FakeStudio

from connectors.label_studio.client import Client
from connectors.label_studio.page import instructions_version
from connectors.label_studio.reviewer import LabelStudioReviewer
from connectors.label_studio.views import show_round
from loop.ports import ReviewTask
from loop.prompt import Label


@pytest.fixture
def studio():
    return FakeStudio()


@pytest.fixture
def client(studio):
    return Client("http://127.0.0.1:1", "t", transport=studio.transport)


def reviewer(studio, **more):
    return LabelStudioReviewer(
        "http://127.0.0.1:1",
        "t",
        project_title="t",
        campaign_id="c",
        labels=[Label("a"), Label("b")],
        task="Which?",
        transport=studio.transport,
        **more,
    )


def test_a_tab_hides_the_columns_that_say_nothing(studio, client):
    show_round(client, 1, 2)
    (tab,) = studio.views
    assert tab["data"]["title"] == "Round 2"
    hidden = tab["data"]["hiddenColumns"]
    assert hidden["explore"] == hidden["labeling"] == ["tasks:id", "tasks:updated_by"]
    assert tab["data"]["columnsWidth"]["tasks:data.text"] > 400


def test_tabs_of_people_and_columns_that_they_chose_stay(studio, client):
    theirs = {"id": 1, "data": {"title": "Mine", "hiddenColumns": {"explore": []}}}
    old = {"id": 2, "data": {"title": "Round 1", "filters": {}, "gridWidth": 3}}
    studio.views = [theirs, old]
    show_round(client, 1, 1)  # made by an older version
    assert studio.views[0] == {"id": 1, "data": {"title": "Mine", "hiddenColumns": {"explore": []}}}
    made = studio.views[1]["data"]
    assert made["hiddenColumns"]["explore"]
    assert made["gridWidth"] == 3
    made["hiddenColumns"], made["columnsWidth"] = {"explore": ["tasks:id"]}, {}
    made["filters"] = {}
    show_round(client, 1, 1)
    made = studio.views[1]["data"]
    assert made["hiddenColumns"] == {"explore": ["tasks:id"]}
    assert made["filters"]["items"]


def test_each_task_says_its_place_in_its_round(studio):
    there = reviewer(studio)
    there.open_project("1")
    tasks = [ReviewTask(f"i{n}", "t", n // 3, 9 - n, "", "", 0.0) for n in range(5)]
    there.send(tasks)
    places = {t["data"]["ext_id"]: t["data"]["place"] for t in studio.tasks.values()}
    assert places == {
        "i4": "Text 1 of 2 in round 1",
        "i3": "Text 2 of 2 in round 1",
        "i2": "Text 1 of 3",  # the validation sample
        "i1": "Text 2 of 3",
        "i0": "Text 3 of 3",
    }


def test_instructions_are_kept_up_to_date_until_people_write_their_own(studio):
    reviewer(studio).open_project("1")
    first = studio.project["expert_instruction"]
    assert "<b>a</b>" in first
    studio.project["expert_instruction"] = first.replace(
        "<p>", '<p class="">'
    )  # as it may spell it
    asked = len(studio.asked)
    reviewer(studio).open_project("1")
    assert not [call for call in studio.asked[asked:] if call[0].endswith("/projects/1")][1:]
    assert studio.project["expert_instruction"] != first
    reviewer(studio, examples={"a": ["clear"]}).open_project("1")
    assert "Example: clear" in studio.project["expert_instruction"]
    studio.project["expert_instruction"] = "<p>Ask Ann.</p>"
    reviewer(studio).open_project("1")
    assert studio.project["expert_instruction"] == "<p>Ask Ann.</p>"
    assert instructions_version(first)
