"""Where the project is gone, another one gets what is still open, and nothing is asked twice."""

from dataclasses import replace

import pytest
from campaigns import make
from fakes import FileReviewer

from loop.errors import ProjectGoneError, StageError
from loop.money import account
from loop.operate.fsck import check_campaign
from loop.people.answers import withdraw_unanswered
from loop.people.new_project import begin_new_project
from loop.people.tally import tally
from loop.round import close_early, run_round, run_stage


class Project(FileReviewer):
    """A server with one project, whose tasks are numbered from 1 again after it was deleted."""

    def __init__(self, path):
        super().__init__(path)
        self.number, self.told = 1, {}

    def open_project(self, project_id):
        if project_id not in (None, str(self.number)):
            raise ProjectGoneError(f"no project {project_id}")
        return str(self.number)

    def delete_project(self):
        self.number += 1
        self._save({"tasks": {}, "clock": 0})

    def send(self, tasks, progress=lambda n: None):
        self.told = {task.item_id: task.answered for task in tasks}
        return super().send(tasks, progress)


def waiting(tmp_path, **sections):
    ctx = make(tmp_path, raters=False, **sections)
    reviewer = Project(tmp_path / "project.json")
    ctx.parts = replace(ctx.parts, reviewer=lambda: reviewer)
    assert run_round(ctx).stage == "pull"
    return ctx, reviewer, [r.item_id for r in ctx.store.reviews("c")]


def test_only_what_is_open_is_sent_and_answers_stay(tmp_path):
    budget = {"labels": 30, "usd": 9.0, "usd_per_label": 0.1}
    ctx, reviewer, items = waiting(tmp_path, overlap=2, budget=budget)
    for item in items[:5]:
        reviewer.answer(item, "ann", "good")
    for item in items[:3]:
        reviewer.answer(item, "bob", "good")
    run_round(ctx)
    before = ctx.store.annotations("c")
    money = account(ctx.config, ctx.store).committed_usd
    reviewer.delete_project()
    with pytest.raises(ProjectGoneError):
        run_round(ctx)
    said = []
    ctx.say = said.append
    begin_new_project(ctx)
    assert said == [
        "Project 2 takes the place of 1: it gets the 12 texts that round 1 still waits for."
        " All answers that were read count."
    ]
    assert account(ctx.config, ctx.store).committed_usd == money
    assert run_round(ctx).stage == "pull"
    assert reviewer.told == {item: int(item in items[3:5]) for item in items[3:]}
    assert account(ctx.config, ctx.store).committed_usd == money
    for item in items[3:5]:
        reviewer.answer(item, "bob", "bad")
    for item in items[5:]:
        for person in ("ann", "bob"):
            reviewer.answer(item, person, "good")
    run_stage(ctx, "pull")
    assert [a.label for a in ctx.store.annotations("c")[: len(before)]] == ["good"] * len(before)
    outcomes = {r.item_id: r.outcome for r in ctx.store.reviews("c")}
    assert [outcomes[i] for i in items] == ["agreed"] * 3 + ["conflict"] * 2 + ["agreed"] * 10
    assert run_round(ctx).stage == "done"
    assert account(ctx.config, ctx.store).committed_usd == pytest.approx(3.0)
    assert list(check_campaign(ctx.config, ctx.store, lambda: reviewer)) == []
    ctx.store.close()


def test_further_answers_are_asked_beside_those_of_the_old_project(tmp_path):
    people = {"overlap": 2, "max_overlap": 3, "rule": "ask-one-more"}
    ctx, reviewer, items = waiting(tmp_path, people=people)
    reviewer.answer(items[0], "ann", "good")
    run_round(ctx)
    reviewer.delete_project()
    begin_new_project(ctx)
    run_round(ctx)
    reviewer.answer(items[0], "bob", "bad")  # two who differ: a third is asked
    run_round(ctx)
    assert reviewer._load()["tasks"][items[0]].get("wanted") == 2
    reviewer.answer(items[0], "cid", "bad")
    run_round(ctx)
    assert ctx.store.reviews_by_item("c")[items[0]].outcome == "majority"
    ctx.store.close()


def test_who_answers_a_text_in_both_projects_is_one_person_and_another_is_asked(tmp_path):
    ctx, reviewer, items = waiting(tmp_path, overlap=2)
    reviewer.answer(items[0], "ann", "good")
    run_round(ctx)
    reviewer.delete_project()
    begin_new_project(ctx)
    run_round(ctx)
    assert "wanted" not in reviewer._load()["tasks"][items[0]]
    reviewer.answer(items[0], "ann", "bad")  # one answer more was asked there, and is back
    run_round(ctx)
    assert reviewer._load()["tasks"][items[0]]["wanted"] == 2
    reviewer.answer(items[0], "bob", "bad")
    run_round(ctx)
    review = ctx.store.reviews_by_item("c")[items[0]]
    assert (review.outcome, review.closed_at is not None) == ("agreed", True)
    assert account(ctx.config, ctx.store).answers == 2
    ctx.store.close()


def test_what_earlier_rounds_left_open_may_be_chosen_again(tmp_path):
    ctx, reviewer, items = waiting(tmp_path)
    reviewer.answer(items[0], "ann", "good")
    round_ = run_round(ctx)
    close_early(ctx, round_)
    assert run_round(ctx).stage == "done"
    reviewer.delete_project()
    said = []
    ctx.say = said.append
    begin_new_project(ctx)
    assert "it gets the texts that are chosen from now on" in said[-1]
    run_stage(ctx, "pull")
    assert tally(ctx.store.reviews("c")).deleted == 14
    assert withdraw_unanswered(ctx) == 14
    assert run_round(ctx).stage == "pull"
    assert ctx.store.gold("c")[items[0]].label == "good"
    ctx.store.close()


def test_a_project_that_is_there_is_kept(tmp_path):
    ctx, _, _ = waiting(tmp_path)
    with pytest.raises(StageError, match=r"Project 1 is still there; delete it before"):
        begin_new_project(ctx)
    assert ctx.store.last_round("c").stage == "pull"
    ctx.store.close()
    fresh = make(tmp_path / "fresh", raters=False)
    with pytest.raises(StageError, match="no project yet"):
        begin_new_project(fresh)
    fresh.store.close()
