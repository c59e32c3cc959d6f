"""Answers and tasks that people's tools spoil: counted, named, and never in the way of others."""

import random
import sys
import time
from contextlib import nullcontext, suppress
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import pytest
from campaigns import make, texts
from fake_studio import FakeStudio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from malformed import RandomAnswer, answer_shapes
from sqlalchemy import delete
from sqlmodel import select

import loop.people.answers
from connectors.label_studio.client import _decoded
from connectors.label_studio.page import shown_name
from connectors.label_studio.reviewer import LabelStudioReviewer
from loop.campaign.store import Store
from loop.campaign.tables import DELETED, UNSERVED, Annotation, Event, Review
from loop.cli import __main__ as cli
from loop.cli import rounds
from loop.errors import StageError
from loop.money import account
from loop.next_round import open_campaign, open_round
from loop.operate.forget import forget_person
from loop.people.answers import everything_is_due, record_answers, withdraw_unanswered
from loop.people.gold import decide, latest_per_person
from loop.people.scorecards import campaign_people, people_table, unreadable_lines
from loop.people.tally import answer_lines, problems_of, tally, unreadable_line
from loop.ports import FetchedTask, RawAnnotation
from loop.report.collect import campaign_view
from loop.report.status import campaign_status, status_lines
from loop.round import close_early, run_round, run_stage

SUMS = ("back", "out", "unreadable", "skipped", "deleted")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    quick = SimpleNamespace(sleep=lambda seconds: None, monotonic=time.monotonic)
    for name in ("client", "push", "views"):
        monkeypatch.setattr(f"connectors.label_studio.{name}.time", quick)
    monkeypatch.setattr("label_studio_sdk.core.http_client.time.sleep", lambda seconds: None)


def waiting(tmp_path, url=None, *, n=15, **sections):
    """A campaign that waits for people's answers to n texts, its server, and the texts' tasks."""
    ctx = make(
        tmp_path,
        raters=False,
        rows=texts(n=max(120, 4 * n)),
        budget={"labels": 2 * n},
        rounds={"batch_size": n, "rounds": 2, "audit_frac": 0.2},
        strategy={"signals": ["margin"]},
        student={"seeds": 2, "references": ["llm_only", "random"]},
        **sections,
    )
    if url is not None:
        ctx.store.close()
        ctx.store = Store(url)
    studio = FakeStudio()
    reviewer = LabelStudioReviewer(
        "http://127.0.0.1:9",
        "0" * 40,
        project_title="Demo",
        campaign_id="c",
        labels=ctx.config.port_labels,
        task="t",
        transport=studio.transport,
    )
    ctx.parts = replace(ctx.parts, reviewer=lambda: reviewer)
    open_campaign(ctx)
    ctx.store.set_project("c", "1")
    for stage in ("annotate", "score", "select", "push", "pull"):
        assert run_stage(ctx, stage).stage in ("score", "select", "push", "pull")
    return ctx, studio, [int(r.task_id) for r in ctx.store.reviews("c")]


def pull(ctx):
    return run_stage(ctx, "pull").stage


def read_all(ctx):
    ctx.store.read_anew("c")
    return pull(ctx)


def counts(ctx):
    """What became of the round's texts; the sums are checked by the way."""
    status = campaign_status(ctx.config, ctx.store)
    for found in (status, status["this_round"]):
        assert found["sent"] == sum(found[key] for key in SUMS)
    return {key: n for key in SUMS if (n := status["this_round"][key])}


def lines(ctx):
    return "\n".join(status_lines(campaign_status(ctx.config, ctx.store)))


def test_every_shape_at_once_leaves_all_other_labels(tmp_path, store_url):
    shapes = answer_shapes({})
    ctx, studio, tasks = waiting(tmp_path, store_url, n=len(shapes) + 5)
    problems = {}
    for task, name in zip(tasks, shapes, strict=False):
        valid = studio.answer(task, "good")
        shape, problems[task] = answer_shapes(valid)[name]
        studio.put(task, shape)
    for task in tasks[len(shapes) :]:
        studio.put(task, studio.answer(task, "bad"))
    assert pull(ctx) == "repair"
    labels = {r.task_id: ctx.store.gold("c").get(r.item_id) for r in ctx.store.reviews("c")}
    for task in tasks:
        gold = labels[str(task)]
        wanted = None if problems.get(task) else "good" if task in problems else "bad"
        assert (gold.label if gold else None) == wanted
    found = counts(ctx)
    unusable = [p for p in problems.values() if p]
    assert found["unreadable"] == len(unusable) - unusable.count("unsure")
    by_task = {a.task_id: a for a in ctx.store.annotations("c")}
    for task, name in zip(tasks, shapes, strict=False):
        kept = by_task[str(task)]
        if name.startswith(("NUL in a note", "half a pair in a note")):
            assert "\ufffd" in kept.note
        if not isinstance(shapes[name][0], bytes) and name != "nested surprises":
            assert kept.raw == _decoded(studio.tasks[task]["answers"][0].encode())
    ctx.store.close()


NAMES = ("bad", "good", "10:30: noon", "a & b <c>", "né", "0", "Unsure", "unsure / none fits")


def put_random_answers(tmp_path, batches, each=25):
    """Answers as nobody foresaw them: each means what an oracle says, and stops nothing."""
    ctx, studio, tasks = waiting(tmp_path, n=each + 1, labels=[{"name": name} for name in NAMES])
    names = {shown_name(name): name for name in NAMES}
    for batch in range(batches):
        rng = random.Random(batch)
        put = {}
        for task in tasks[:each]:
            numbers = [1000 * task + n for n in range(rng.choice([1, 1, 1, 2]))]
            put[task] = [
                RandomAnswer(rng, studio.answer(task, "good", id=number), names)
                for number in numbers
            ]
            studio.put(task, *(answer.body for answer in put[task]))
        if batch == batches - 1:  # all are back, and the round goes on
            studio.put(tasks[each], studio.answer(tasks[each], "good"))
        assert read_all(ctx) == ("repair" if batch == batches - 1 else "pull")
        kept = ctx.store.annotations("c")
        for task, answers in put.items():
            its = [a for a in kept if a.task_id == str(task)]
            for answer in answers:
                match = next((a for a in its if means(a, answer)), None)
                assert match, (vars(answer), [(a.label, a.annotator, a.problem) for a in its])
                its.remove(match)
            assert not its
        unreadable = [a.reason for answers in put.values() for a in answers if a.reason]
        unreadable = [reason for reason in unreadable if reason not in ("skipped", "unsure")]
        assert problems_of([], kept).total() == len(unreadable)
    gold = {r.task_id: ctx.store.gold("c").get(r.item_id) for r in ctx.store.reviews("c")}
    for task, answers in put.items():
        label = gold[str(task)].label if gold[str(task)] else None
        assert label in {None, *(a.label for a in answers)}
        assert len(answers) > 1 or label == answers[0].label
    counts(ctx)
    ctx.store.close()


def means(stored, answer):
    """Whether the store says of an answer what its maker says."""
    reason = "skipped" if stored.skipped else stored.problem
    person = stored.annotator.partition(" (answer ")[0]  # nobody knows whose deleted accounts were
    return (stored.label, person) == (answer.label, answer.person) and (
        reason is None if answer.reason is None else (reason or "").startswith(answer.reason)
    )


def test_random_answers_mean_what_they_say(tmp_path):
    put_random_answers(tmp_path, 4)


@pytest.mark.long
def test_a_thousand_random_answers_mean_what_they_say(tmp_path):
    put_random_answers(tmp_path, 40)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    ctx = make(tmp_path_factory.mktemp("begun"), raters=False)
    open_campaign(ctx)
    yield ctx
    ctx.store.close()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_answer_can_be_stored_and_changes_no_other(begun, data):
    """Through the port: what a connector may hand over at worst."""
    ctx = begun
    with ctx.store.transaction() as session:
        session.exec(delete(Annotation))
    text = st.text(st.characters(), max_size=5)
    value = st.recursive(st.none() | text | st.integers(), st.lists, max_leaves=4)

    def answers(task):
        return st.builds(
            RawAnnotation,
            annotation_id=st.sampled_from("123") | text,
            task_id=st.just(task),
            item_id=st.just(f"i{task}"),
            annotator=text,
            label=st.sampled_from(["good", "bad", "other", None]),
            skipped=st.booleans(),
            note=text,
            lead_time_s=st.none() | st.floats(0, 1e300),
            updated_at=st.sampled_from("12") | text,
            problem=st.none() | text,
            raw=value,
        )

    good = RawAnnotation("9", "9", "i9", "ann", "good", False, "", None, "2026", None, {})
    tasks = [FetchedTask("9", "i9", (good,))]
    for task in "12":
        its = data.draw(st.lists(answers(task), max_size=4))
        tasks.append(FetchedTask(task, f"i{task}", tuple(its)))
    for order in (tasks, tasks[::-1], tasks[1:], tasks):
        with ctx.store.transaction() as session:
            record_answers(ctx, session, order)
    found = ctx.store.annotations("c")
    assert [(a.label, a.annotator) for a in found if a.item_id == "i9"] == [("good", "ann")]
    for task in tasks[1:]:
        its = [a for a in found if a.task_id == task.task_id]
        assert len(its) <= len(task.annotations)
        assert {a.label for a in its} <= {a.label for a in task.annotations} | {None}


def test_raw_answers_come_back_as_they_were(store_url):
    store = Store(store_url)
    store.open_campaign("c", ["a"])
    raws = ["\0", "\ud800", {"\udc00": ["\0\ud83d"]}, None, 7, [], "é\U0001f600", True]
    with store.transaction() as session:
        for number, raw in enumerate(raws):
            session.add(
                Annotation(
                    campaign="c",
                    annotation_id=str(number),
                    updated_at="1",
                    task_id="1",
                    item_id="i",
                    annotator="a",
                    skipped=False,
                    note="",
                    raw=raw,
                )
            )
    assert [a.raw for a in store.annotations("c")] == raws
    store.close()


def test_unreadable_answers_are_named_everywhere_and_the_sums_add_up(tmp_path):
    ctx, studio, tasks = waiting(tmp_path)
    studio.put(tasks[0], studio.answer(tasks[0], "Positive"))
    for task in tasks[1:3]:
        studio.put(task, studio.answer(task, "good", result=[]))
    studio.put(tasks[3], studio.answer(tasks[3], "good", was_cancelled=True))
    studio.put(tasks[4], studio.answer(tasks[4], "good", person=2, result="x"))
    studio.put(tasks[5], studio.answer(tasks[5], None))
    for task in tasks[6:13]:
        studio.put(task, studio.answer(task, "good"))
    assert pull(ctx) == "pull"
    assert counts(ctx) == {"back": 8, "out": 2, "unreadable": 4, "skipped": 1}
    told = "4 unreadable: empty result 2, result that is not a list 1, unknown label 'Positive' 1"
    assert told in lines(ctx)
    assert "15 sent to people (8 answered, 2 waiting, 4 unreadable, 1 skipped)" in lines(ctx)
    people = {p.name: p for p in campaign_people(ctx.config, ctx.store)}
    assert people["ann@x.org"].unreadable == {"empty result": 2, "unknown label 'Positive'": 1}
    assert unreadable_lines([people["bob@x.org"]]) == [
        "bob@x.org: 1 unreadable: result that is not a list 1."
    ]
    for p in people.values():
        assert p.answers == p.labels + p.skipped + p.unsure + sum(p.unreadable.values())
    assert "unreadable" in [c.header for c in people_table(list(people.values())).columns]
    notes = "\n".join(campaign_view(ctx.config, ctx.store).notes)
    assert told in notes
    assert "2 texts are still with people." in notes
    assert "Of 15 texts sent to people: 8 answered, 2 waiting, 4 unreadable, 1 skipped." in notes
    studio.put(tasks[0], studio.answer(tasks[0], "good"))  # somebody corrects it
    pull(ctx)
    assert counts(ctx) == {"back": 9, "out": 2, "unreadable": 3, "skipped": 1}
    ctx.store.close()


def test_gold_bought_counts_gold(tmp_path):
    ctx, studio, tasks = waiting(tmp_path)
    for task in tasks[:10]:
        studio.put(task, studio.answer(task, "good"))
    for task in tasks[10:13]:
        studio.put(task, studio.answer(task, None))
    for task in tasks[13:]:
        studio.put(task, studio.answer(task, "good", was_cancelled=True))
    assert pull(ctx) == "repair"
    run_stage(ctx, "train")
    rows = {r.arm: r.gold_bought for r in campaign_view(ctx.config, ctx.store).rows}
    assert rows["loop"] == 10
    assert rows["random"] == 15  # all of them have a known label
    ctx.store.close()


# deleted tasks


def test_deleted_tasks_are_named_and_not_waited_for(tmp_path):
    ctx, studio, tasks = waiting(tmp_path)
    for task in tasks[:12]:
        studio.put(task, studio.answer(task, "good"))
    for task in (tasks[0], tasks[13], tasks[14]):  # the first has been answered, but not read
        del studio.tasks[task]
    assert read_all(ctx) == "pull"
    assert counts(ctx) == {"back": 11, "out": 1, "deleted": 3}
    named = ", ".join(map(str, sorted((tasks[0], tasks[13], tasks[14]))))
    assert f"Deleted in Label Studio while waiting for people: tasks {named}." in lines(ctx)
    del studio.tasks[tasks[1]]  # its answer has been read: it stays
    studio.put(tasks[12], studio.answer(tasks[12], "good"))
    assert read_all(ctx) == "repair"
    assert counts(ctx) == {"back": 12, "deleted": 3}
    assert len(ctx.store.gold("c")) == 12
    assert "Deleted in Label Studio" in "\n".join(campaign_view(ctx.config, ctx.store).notes)
    with ctx.store.transaction() as session:
        events = session.exec(select(Event).where(Event.what == "deleted")).all()
    (event,) = events
    assert sorted(map(int, event.detail["tasks"])) == sorted((tasks[0], tasks[13], tasks[14]))
    ctx.store.close()


def test_a_task_that_comes_back_is_waited_for_again(tmp_path):
    ctx, studio, tasks = waiting(tmp_path)
    studio.put(tasks[0], studio.answer(tasks[0], "good"))
    gone = studio.tasks.pop(tasks[1])
    read_all(ctx)
    assert counts(ctx) == {"back": 1, "out": 13, "deleted": 1}
    studio.tasks[tasks[1]] = gone
    read_all(ctx)
    assert counts(ctx) == {"back": 1, "out": 14}
    studio.put(tasks[1], studio.answer(tasks[1], "bad"))
    pull(ctx)
    assert counts(ctx) == {"back": 2, "out": 13}
    ctx.store.close()


def test_a_round_whose_tasks_are_all_gone_does_not_end_by_itself(tmp_path):
    ctx, studio, _ = waiting(tmp_path)
    kept, studio.tasks = studio.tasks, {}
    assert read_all(ctx) == "pull"
    assert counts(ctx) == {"deleted": 15}
    studio.tasks = kept
    assert read_all(ctx) == "pull"
    assert counts(ctx) == {"out": 15}
    with pytest.raises(StageError, match="No text of this round"):
        close_early(ctx, open_round(ctx))
    studio.tasks = {}
    assert read_all(ctx) == "pull"
    close_early(ctx, open_round(ctx))
    assert run_round(ctx).stage == "done"
    assert (withdraw_unanswered(ctx), ctx.store.reviews("c")) == (15, [])
    ctx.store.close()


def test_a_deleted_text_of_a_panel_ends_with_the_answers_it_has(tmp_path):
    ctx, studio, tasks = waiting(tmp_path, people={"overlap": 2})
    for task in tasks[1:]:
        studio.put(task, studio.answer(task, "good"), studio.answer(task, "good", person=2))
    studio.put(tasks[0], studio.answer(tasks[0], "bad"))
    pull(ctx)
    assert counts(ctx) == {"back": 14, "out": 1}
    kept = studio.tasks.pop(tasks[0])
    studio.put(tasks[1])  # somebody takes both answers to another text back
    read_all(ctx)
    studio.tasks[tasks[0]] = kept  # and the task turns up: a second person is asked after all
    read_all(ctx)
    assert counts(ctx) == {"back": 13, "out": 2}
    assert account(ctx.config, ctx.store).open_answers == 3
    del studio.tasks[tasks[0]]
    studio.put(tasks[1], studio.answer(tasks[1], "good"), studio.answer(tasks[1], "good", person=2))
    assert read_all(ctx) == "repair"
    assert len(ctx.store.gold("c")) == 15
    assert account(ctx.config, ctx.store).open_answers == 0
    ctx.store.close()


def test_a_text_deleted_after_its_round_counts_with_the_answers_it_has(tmp_path):
    ctx, studio, tasks = waiting(tmp_path, people={"overlap": 2})
    for task in tasks[:2]:
        studio.put(task, studio.answer(task, "good"), studio.answer(task, "good", person=2))
    studio.put(tasks[2], studio.answer(tasks[2], "bad"))
    pull(ctx)
    close_early(ctx, open_round(ctx))
    assert run_round(ctx).stage == "done"
    for task in tasks[2:4]:
        del studio.tasks[task]
    for _ in range(2):
        ctx.store.read_anew("c")
        run_stage(ctx, "pull")
        assert counts(ctx) == {"back": 3, "out": 11, "deleted": 1}
        assert account(ctx.config, ctx.store).open_answers == 22
    ctx.store.close()


def test_asking_about_a_deleted_task_stops_nothing(tmp_path):
    panel = {"rule": "ask-one-more", "overlap": 2, "max_overlap": 3}
    ctx, studio, tasks = waiting(tmp_path, people=panel)
    for task in tasks:
        studio.put(task, studio.answer(task, "good"), studio.answer(task, "bad", person=2))
    fetch = ctx.reviewer.fetch

    def fetched_and_then_deleted(cursor):
        found = fetch(cursor)
        studio.tasks.pop(tasks[0], None)
        return found

    ctx.reviewer.fetch = fetched_and_then_deleted
    assert pull(ctx) == "pull"
    assert read_all(ctx) == "pull"
    assert counts(ctx) == {"deleted": 1, "out": 14}
    ctx.store.close()


def test_deleted_tasks_are_noticed_now_and_then_by_themselves(tmp_path, monkeypatch):
    ctx, studio, tasks = waiting(tmp_path)
    studio.put(tasks[0], studio.answer(tasks[0], "good"))
    del studio.tasks[tasks[1]]
    pull(ctx)
    assert counts(ctx) == {"back": 1, "out": 14}
    later = loop.people.answers.now() + timedelta(seconds=loop.people.answers.READ_ALL_AFTER_S + 1)
    with monkeypatch.context() as patch:
        patch.setattr(loop.people.answers, "now", lambda: later)
        pull(ctx)
    assert counts(ctx) == {"back": 1, "out": 13, "deleted": 1}
    reads = [p for path, p in studio.asked if path == "/api/tasks/"]
    pull(ctx)
    latest = [p for path, p in studio.asked if path == "/api/tasks/"][len(reads) :]
    assert all("updated_at" in p["query"] for p in latest)
    ctx.store.close()


def test_a_clock_that_was_set_back_makes_everything_due(tmp_path, monkeypatch):
    ctx, *_ = waiting(tmp_path)
    pull(ctx)
    read = loop.people.answers.now()
    for minutes, due in ((1, False), (60, True), (-60, True)):
        then = read + timedelta(minutes=minutes)
        monkeypatch.setattr(loop.people.answers, "now", lambda then=then: then)
        assert everything_is_due(ctx) is due
    ctx.store.close()


def test_pull_all_reads_everything_at_once(tmp_path, monkeypatch, capsys):
    ctx, studio, tasks = waiting(tmp_path)
    studio.put(tasks[0], studio.answer(tasks[0], "Positive"))
    del studio.tasks[tasks[1]]
    monkeypatch.setattr(rounds, "at_work", lambda file, command: nullcontext(ctx))
    said = {}
    for command in ("pull", "pull --all"):
        monkeypatch.setattr(sys, "argv", ["goldloop", *command.split()])
        with suppress(SystemExit):
            cli.main()
        said[command] = "".join(capsys.readouterr())
    for text in said.values():
        assert "1 unreadable: unknown label 'Positive' 1." in text
    assert "15 texts sent, 0 answered, 14 waiting, 1 unreadable." in said["pull"]
    assert "15 texts sent, 0 answered, 13 waiting, 1 unreadable, 1 deleted." in said["pull --all"]
    assert (
        f"Deleted in Label Studio while waiting for people: task {tasks[1]}."
        in (said["pull --all"])
    )
    ctx.store.close()


def test_texts_of_deleted_tasks_can_be_chosen_again(tmp_path):
    ctx, studio, tasks = waiting(tmp_path)
    for task in tasks[1:]:
        studio.put(task, studio.answer(task, "good"))
    del studio.tasks[tasks[0]]
    assert read_all(ctx) == "repair"
    assert withdraw_unanswered(ctx) == 1
    assert counts(ctx) == {"back": 14}
    assert answer_lines(ctx.store.reviews("c"), [], "desk") == []
    ctx.store.close()


# tasks that cannot be shown


def test_tasks_that_cannot_be_shown_are_named_and_not_waited_for(tmp_path):
    ctx, studio, tasks = waiting(tmp_path)
    for task in tasks:
        studio.put(task, studio.answer(task, "good"))
    studio.broken = {tasks[4]}
    assert pull(ctx) == "repair"
    assert counts(ctx) == {"back": 14, "unreadable": 1}
    assert "1 unreadable: the task cannot be shown 1" in lines(ctx)
    assert f"Label Studio fails to show task {tasks[4]};" in lines(ctx)
    ctx.store.close()


def test_a_task_that_can_be_shown_again_is_read(tmp_path):
    ctx, studio, tasks = waiting(tmp_path)
    studio.put(tasks[0], studio.answer(tasks[0], "good"))
    studio.put(tasks[1], studio.answer(tasks[1], "bad"))
    studio.broken = {tasks[1]}
    pull(ctx)
    assert counts(ctx) == {"back": 1, "out": 13, "unreadable": 1}
    studio.broken = set()
    studio.put(tasks[1], studio.answer(tasks[1], "good"))
    pull(ctx)
    assert counts(ctx) == {"back": 2, "out": 13}
    ctx.store.close()


def test_a_task_that_cannot_be_shown_is_not_withdrawn_and_hinders_no_other(tmp_path):
    ctx, studio, tasks = waiting(tmp_path)
    for task in tasks[:2]:
        studio.put(task, studio.answer(task, "good"))
    studio.broken = {tasks[1]}
    pull(ctx)
    close_early(ctx, open_round(ctx))
    run_stage(ctx, "pull")
    assert withdraw_unanswered(ctx) == 13
    assert set(studio.tasks) == set(tasks[:2])
    assert {r.task_id for r in ctx.store.reviews("c")} == {str(t) for t in tasks[:2]}
    ctx.store.close()


# what answers mean beside each other


def test_late_answers_to_an_earlier_round_are_counted_back(tmp_path):
    ctx, studio, tasks = waiting(tmp_path)
    for task in tasks[:10]:
        studio.put(task, studio.answer(task, "good"))
    pull(ctx)
    close_early(ctx, open_round(ctx))
    run_stage(ctx, "pull")
    run_stage(ctx, "train")
    for stage in ("annotate", "score", "select", "push"):
        run_stage(ctx, stage)
    for task in tasks[10:13]:
        studio.put(task, studio.answer(task, "good"))
    pull(ctx)
    status = campaign_status(ctx.config, ctx.store)
    assert {key: status[key] for key in ("sent", "back", "out")} == {
        "sent": 30,
        "back": 13,
        "out": 17,
    }
    ctx.store.close()


def test_an_answer_that_nobody_can_read_takes_none_back():
    def answer(at, label, problem=None):
        return Annotation(
            campaign="c",
            annotation_id=at,
            updated_at=at,
            task_id="1",
            item_id="i",
            annotator="ann",
            label=label,
            skipped=False,
            note="",
            problem=problem,
            raw={},
        )

    good, odd, unsure = answer("1", "x"), answer("2", None, "empty result"), answer("3", None)
    unsure.problem = "unsure"
    assert decide([good, odd]).label == "x"
    assert decide([odd, good]).label == "x"
    assert latest_per_person([good, odd, unsure]) == [unsure]
    assert decide([odd]).how == "unreadable"


def test_an_answer_that_vanishes_for_a_while_counts_again(tmp_path):
    ctx, studio, tasks = waiting(tmp_path)
    given_ = studio.answer(tasks[0], "good")
    studio.put(tasks[0], given_)
    pull(ctx)
    studio.put(tasks[0])
    pull(ctx)
    assert counts(ctx) == {"out": 15}
    studio.put(tasks[0], given_)
    pull(ctx)
    assert counts(ctx) == {"back": 1, "out": 14}
    ctx.store.close()


def test_a_person_whom_the_server_names_late_is_one_person(tmp_path):
    ctx, studio, tasks = waiting(tmp_path, people={"overlap": 2})
    studio.names_people = False
    given = [studio.answer(task, "good") for task in tasks[:2]]
    for task, answer in zip(tasks, given, strict=False):
        studio.put(task, answer)
    pull(ctx)
    assert {a.annotator for a in ctx.store.annotations("c")} == {"user 1"}
    studio.names_people = True
    ctx.reviewer._pull = None  # as in another process
    studio.put(tasks[0], given[0], studio.answer(tasks[0], "bad", id=7))
    read_all(ctx)
    assert {a.annotator for a in ctx.store.annotations("c")} == {"ann@x.org"}
    assert counts(ctx) == {"out": 15}  # nobody answers one text for two
    assert account(ctx.config, ctx.store).answers == 2
    studio.names_people = False
    ctx.reviewer._pull = None
    studio.put(tasks[1], given[1] | {"completed_by": None})  # the account was deleted
    read_all(ctx)
    assert {a.annotator for a in ctx.store.annotations("c")} == {"ann@x.org"}
    ctx.store.close()


def test_a_forgotten_person_who_goes_by_another_name_stays_forgotten(tmp_path):
    ctx, studio, tasks = waiting(tmp_path)
    studio.names_people = False
    studio.put(tasks[0], studio.answer(tasks[0], "good"))
    pull(ctx)
    pseudonym = forget_person(ctx.config, ctx.store, "user 1").pseudonym
    studio.names_people = True
    ctx.reviewer._pull = None  # as in another process
    note = {"from_name": "note", "type": "textarea", "value": {"text": ["ann@x.org was here"]}}
    second = studio.answer(tasks[1], "bad")
    studio.put(tasks[1], second | {"result": [*second["result"], note]})
    for _ in range(2):
        read_all(ctx)
        answers = ctx.store.annotations("c")
        assert [a.annotator for a in answers] == [pseudonym] * 2
        assert "ann@x.org" not in f"{answers} {[a.raw for a in answers]}"
    studio.put(tasks[2], studio.answer(tasks[2], "bad"))
    pull(ctx)
    assert [a.annotator for a in ctx.store.annotations("c")] == [pseudonym] * 3
    ctx.store.close()


def test_a_task_that_one_person_answered_twice_is_given_to_another(tmp_path, monkeypatch):
    """A server that wants two answers shows it to nobody else: it has two."""
    ctx, studio, tasks = waiting(tmp_path, people={"overlap": 2})
    asked = []
    monkeypatch.setattr(ctx.reviewer, "ask", asked.append)
    first = studio.answer(tasks[0], "good")
    studio.put(tasks[0], first)
    pull(ctx)
    assert asked == []
    studio.put(tasks[0], first, studio.answer(tasks[0], "bad", id=7))
    pull(ctx)
    assert asked == [{str(tasks[0]): 3}]
    assert counts(ctx) == {"out": 15}
    studio.put(tasks[0], first, studio.answer(tasks[0], "bad", person=2))
    pull(ctx)
    assert (counts(ctx), len(asked)) == ({"back": 1, "out": 14}, 1)
    ctx.store.close()


def test_the_clock_set_back_hides_no_answer_from_a_campaign(tmp_path):
    ctx, studio, tasks = waiting(tmp_path)
    studio.put(tasks[0], studio.answer(tasks[0], "good"))
    pull(ctx)
    studio.clock -= timedelta(hours=3)
    for task in tasks[1:]:
        studio.put(task, studio.answer(task, "good"))
    assert pull(ctx) == "repair"
    assert len(ctx.store.gold("c")) == 15
    ctx.store.close()


def test_another_platform_is_called_by_its_name():
    def review(task, outcome):
        return Review(
            round_id=1, item_id=task, rank=0, reason="suspect", outcome=outcome, task_id=task
        )

    answer = Annotation(item_id="c", annotator="ann", problem="empty result")
    told = answer_lines([review("a", UNSERVED), review("b", DELETED)], [answer], "desk")
    assert [line.count("desk") for line in told] == [1, 1, 1]
    assert "Label Studio" not in " ".join(told)


def test_many_reasons_still_add_up():
    problems = {f"unknown label '{'x' * 300}{n}'": n + 1 for n in range(9)}
    line = unreadable_line(problems)
    assert line.startswith("45 unreadable: ")
    assert sum(int(part.rsplit(" ", 1)[1]) for part in line.split(": ", 1)[1].split(", ")) == 45
    assert len(line) < 600
    assert unreadable_line({}) == ""
    assert answer_lines([], [], "desk") == []
    assert tally([]).sent == 0
