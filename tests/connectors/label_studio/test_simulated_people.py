"""Simulated people: the same answer whenever asked, and each answer given once."""

from collections import Counter

import httpx
import pytest

from connectors.label_studio import server as label_studio_server
from connectors.label_studio.reviewer import LabelStudioReviewer
from connectors.label_studio.simulated_people import RecordedRaters, drawn, majority
from loop.errors import ReviewerError
from loop.ports import ReviewTask, TextItem
from loop.prompt import Label

LABELS = ["good", "bad", "mixed <&>"]
RATINGS = {
    f"i{n}": [LABELS[n % 3], LABELS[n % 3], LABELS[(n + 1) % 3], LABELS[n % 3]] for n in range(12)
}


def raters(**options):
    options = {"ratings": RATINGS, "overlap": 3, "seed": 7, **options}
    return RecordedRaters("http://127.0.0.1:9", {"a": "1", "b": "2", "c": "3"}, **options)


def test_draws_are_without_replacement_and_fixed():
    ratings = ["a", "b", "c", "d", "e"]
    assert sorted(drawn(ratings, 5, 1, "x")) == ratings
    assert drawn(ratings, 5, 1, "x") == drawn(ratings, 5, 1, "x")
    assert drawn(ratings, 5, 1, "x")[:2] == drawn(ratings, 2, 1, "x")
    assert drawn(["a", "b"], 5, 1, "x").count("a") in (2, 3)
    assert drawn([], 3, 1, "x") == []


def test_draws_follow_the_recorded_shares():
    first = Counter(drawn(["a", "a", "a", "b"], 1, 5, f"item {n}")[0] for n in range(4000))
    assert 0.72 < first["a"] / 4000 < 0.78


def test_seed_and_item_change_the_draw():
    ratings = [str(n) for n in range(20)]
    draws = {tuple(drawn(ratings, 3, seed, item)) for seed in range(5) for item in "abcde"}
    assert len(draws) == 25


def test_majority():
    assert majority(["a", "b", "a"]) == "a"
    assert majority(["a", "b"]) is None
    assert majority([]) is None


def test_labels_of_are_the_majority_of_the_same_draws():
    items = [TextItem(f"i{n}", "text") for n in range(13)]
    expected = [majority(drawn(RATINGS.get(i.id, []), 3, 7, i.id)) for i in items]
    assert raters().labels_of(items) == expected
    assert expected[12] is None


def test_too_few_raters():
    with pytest.raises(ValueError, match="overlap of 4"):
        raters(overlap=4)
    with pytest.raises(ValueError, match="at least one"):
        raters(overlap=0)


def test_server_down_and_wrong_token_are_one_sentence():
    def down(request):
        raise httpx.ConnectError("refused")

    with pytest.raises(ReviewerError, match="is it running"):
        raters(transport=httpx.MockTransport(down)).answer("1")
    refuse = httpx.MockTransport(lambda request: httpx.Response(401))
    with pytest.raises(ReviewerError, match="refuses a rater's token"):
        raters(transport=refuse).answer("1")


class Losing(httpx.BaseTransport):
    """Loses every third confirmation of an answer, each at most once."""

    def __init__(self):
        self.inner, self.count, self.lost = httpx.HTTPTransport(), 0, set()

    def handle_request(self, request):
        answer = self.inner.handle_request(request)
        if request.method == "POST":
            self.count += 1
            asked = (request.headers["authorization"], str(request.url))
            if self.count % 3 == 0 and asked not in self.lost:
                self.lost.add(asked)
                answer.read()
                raise httpx.ReadError("reset")
        return answer

    def close(self):
        self.inner.close()


@pytest.fixture
def reviewer(label_studio, request):
    reviewer = LabelStudioReviewer(
        label_studio.url,
        label_studio.token,
        project_title="Raters",
        campaign_id=request.node.name,
        labels=[Label(name) for name in LABELS],
        task="",
        overlap=3,
    )
    reviewer.open_project(None)
    yield reviewer
    reviewer.delete_project()


def make_user(label_studio):
    return lambda name: label_studio_server.create_user(name, data_dir=label_studio.data_dir)


def send(reviewer, numbers):
    reviewer.send([ReviewTask(f"i{n}", "text", 1, n, "", "good", 0.5) for n in numbers])


@pytest.mark.slow
def test_each_rater_answers_each_task_once_whatever_is_lost(label_studio, reviewer):
    send(reviewer, range(13))  # nothing is recorded of the last
    simulated = RecordedRaters(
        label_studio.url,
        make_user(label_studio),
        ratings=RATINGS,
        overlap=3,
        seed=7,
        transport=Losing(),
    )
    told = []
    simulated.answer(reviewer.open_project(None), told.append)
    assert sum(told) == 39
    assert simulated.answer(reviewer.open_project(None)) == 0
    for task in reviewer.fetch(None).tasks:
        by_name = sorted(task.annotations, key=lambda a: a.annotator)
        assert [a.annotator for a in by_name] == [
            f"simulated-{n}@goldloop.local" for n in (1, 2, 3)
        ]
        if task.item_id == "i12":
            assert all(a.skipped for a in by_name)
        else:
            expected = drawn(RATINGS[task.item_id], 3, 7, task.item_id)
            assert [a.label for a in by_name] == expected


@pytest.mark.slow
def test_stopped_raters_go_on_where_they_stopped(label_studio, reviewer):
    send(reviewer, range(6))
    project = reviewer.open_project(None)
    tokens = {f"simulated-{n}": make_user(label_studio)(f"simulated-{n}") for n in (1, 2, 3)}

    def people():
        return RecordedRaters(label_studio.url, tokens, ratings=RATINGS, overlap=3, seed=7)

    count = 0

    def stop(done):
        nonlocal count
        count += done
        if count == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        people().answer(project, stop)
    given = sum(len(t.annotations) for t in reviewer.fetch(None).tasks)
    assert 5 <= given < 18
    assert people().answer(project) == 18 - given
    assert {len(t.annotations) for t in reviewer.fetch(None).tasks} == {3}


@pytest.mark.slow
def test_real_answers_count_towards_the_overlap(label_studio, reviewer):
    send(reviewer, range(1))
    project = reviewer.open_project(None)
    owner = RecordedRaters(
        label_studio.url,
        {"owner": label_studio.token},
        ratings={"i0": ("bad",)},
        overlap=1,
        seed=7,
    )
    assert owner.answer(project) == 1
    simulated = RecordedRaters(
        label_studio.url, make_user(label_studio), ratings=RATINGS, overlap=3, seed=7
    )
    assert simulated.answer(project) == 2


@pytest.mark.slow
def test_project_that_is_gone(label_studio):
    owner = RecordedRaters(
        label_studio.url, {"owner": label_studio.token}, ratings={}, overlap=1, seed=7
    )
    with pytest.raises(ReviewerError):
        owner.answer("987654")
