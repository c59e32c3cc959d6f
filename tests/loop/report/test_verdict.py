"""The verdict: what is shown, what is not, what the goal takes; the same words everywhere."""

from dataclasses import replace
from math import nan
from types import SimpleNamespace

import pytest
from campaigns import make, no_plots

from loop.campaign.config import Config
from loop.campaign.metrics import LlmQuality, Metric, NoLlmLabel, RoundMetrics, Share, Stability
from loop.next_round import open_campaign, what_next
from loop.report.collect import campaign_view
from loop.report.rounds_json import rounds_json
from loop.report.status import campaign_status, status_lines
from loop.report.verdict import campaign_verdict
from loop.round import run_round

UNKNOWN = Metric(nan)


def students(accuracy=0.738, alpha=0.75):
    known = Metric(alpha, alpha - 0.05, alpha + 0.05)
    return Stability(
        199,
        5,
        199,
        alpha_k=known,
        ac1=known,
        p_uc=known,
        churn=known,
        alpha_per_class=(),
        accuracy=None if accuracy is None else Metric(accuracy, accuracy - 0.05, accuracy + 0.05),
    )


def metrics(accuracy=(0.102, 0.031, 0.171), alpha=(0.029, -0.056, 0.107), **more):
    compared = {"accuracy": Metric(*accuracy), "alpha_k": Metric(*alpha)}
    quality = LlmQuality(
        accuracy=Metric(0.78, 0.721, 0.829),
        remaining_error=Metric(0.16, 0.111, 0.219),
        n_gold=207,
        n_random=124,
        remaining_at_most=0.23,
    )
    told = RoundMetrics(
        arms={"loop": students()},
        compared={"llm_only": compared},
        label_quality=quality,
        bought=240,
        gold=207,
        pool=900,
        accuracy_from="test",
        pushed_wrong={"suspect": Share(0.5, 40), "audit": Share(0.2, 20)},
    )
    return replace(told, **more)


def verdict_on(newest, answers=(), rounds_=(), **sections):
    settings = {
        "campaign": {"name": "c", "task": "t"},
        "labels": [{"name": "a"}, {"name": "b"}],
        "texts": {"source": "x.csv"},
        "rounds": {"stop_below": 0.05},
        "budget": {"usd_per_label": 0.12},
    }
    rounds = (
        list(rounds_)
        if newest is None
        else [SimpleNamespace(metrics=newest, stage="done", number=1)]
    )
    store = SimpleNamespace(rounds=lambda _: rounds, annotations=lambda _: list(answers))
    return campaign_verdict(Config.model_validate(settings | sections), store, "Next: `x`.")


def test_a_gain_is_told_with_its_size_and_what_is_not_shown():
    answers = [SimpleNamespace(item_id=str(i // 2), lead_time_s=30.0) for i in range(480)]
    told = verdict_on(metrics(), answers)
    assert told.paragraphs == (
        "78 % (72 to 83 %) of the LLM's labels are right. After people's corrections, about 144 of"
        " 900 are still wrong (100 to 197).",
        "The 207 labels from people made the students better. They are right on 73.8 % of the test"
        " texts, 10.2 points (3.1 to 17.1) more than with the LLM's labels alone. It is not shown"
        " that they are more stable.",
        "For at most 5 % wrong labels, people must label about 248 more texts (55 to 535), for $69"
        " (15 to 149) and 5 hours of work (1 to 10).",
        "Next: `x`.",
    )


@pytest.mark.parametrize(
    ("newest", "says"),
    [
        (metrics((0.03, -0.04, 0.1)), "It is not shown that the 207 labels from people made the"),
        (
            metrics((0.03, -0.04, 0.1)),
            "+3.0 points (−4.0 to +10.0) compared with the LLM's",
        ),
        (metrics((-0.08, -0.1, -0.02)), "students worse. They are right on 73.8 %"),
        (metrics((-0.08, -0.1, -0.02)), "8.0 points (2.0 to 10.0) less than with"),
        (metrics(alpha=(0.1, 0.02, 0.2)), " They are also more stable."),
        (metrics(alpha=(-0.1, -0.2, -0.02)), " They are less stable."),
        (metrics(gold=1), "The 1 label from people"),
        (metrics(gold=0), "No label from people can be used yet"),
        (metrics(compared={}), 'student.references does not name "llm_only"'),
        (metrics(accuracy_from="audit"), "% of the randomly drawn texts that people labelled"),
        (
            metrics(accuracy_from=None, arms={"loop": replace(students(accuracy=None), known=0)}),
            "no known label to test them on (texts.gold_column)",
        ),
        (
            metrics(accuracy_from=None, arms={"loop": replace(students(accuracy=None), known=1)}),
            "there are too few known labels (1) to test them on",
        ),
        (metrics((0.1, nan, nan)), "It is not shown"),
    ],
)
def test_what_the_labels_brought(newest, says):
    assert says in verdict_on(newest).gain


def test_students_that_learned_nothing_are_never_called_stable():
    flat = replace(students(), alpha_k=UNKNOWN, p_uc=Metric(1.0), ac1=UNKNOWN)
    told = verdict_on(metrics(arms={"loop": flat}))
    assert told.gain.startswith("The students learned nothing")
    assert "stable" not in told.gain
    assert told.next.startswith("First correct the students' training: set student.lr")
    assert told.next.endswith("Next: `x`.")


@pytest.mark.parametrize("known", [True, False])
def test_where_all_texts_have_one_label_nobody_is_told_to_train_better(known):
    flat = replace(students(), alpha_k=UNKNOWN, p_uc=Metric(1.0), ac1=UNKNOWN)
    flat = replace(flat, accuracy=Metric(1.0) if known else None)
    quality = LlmQuality(accuracy=Metric(1.0), confusion=((1.0, 0.0), (0.0, 0.0)))
    told = verdict_on(metrics(arms={"loop": flat}, label_quality=None if known else quality))
    assert told.gain.startswith("Every text has the same label, so what the")
    assert told.next == "Next: `x`."


def test_what_is_not_known_is_said_with_what_is_missing():
    nothing = verdict_on(None)
    assert "not known yet" in nothing.llm
    validated = SimpleNamespace(metrics=None, stage="done", number=0)
    assert "`goldloop validate` says how good" in verdict_on(None, rounds_=[validated]).llm
    few = verdict_on(metrics(label_quality=LlmQuality(problem="3 gold items cannot speak")))
    assert few.llm == "How good the LLM's labels are is not known: 3 gold items cannot speak."
    assert few.goal.endswith("wrong labels is not known: 3 gold items cannot speak.")
    free = verdict_on(metrics(), budget={}, rounds={})
    assert "The price is not known (budget.usd_per_label is 0). The time is not known" in free.goal
    assert free.goal.endswith("5 % is the usual goal; rounds.stop_below sets another.")
    silent = replace(metrics().label_quality, unanswered=NoLlmLabel(100, 0.1, 90))
    told = verdict_on(metrics(label_quality=silent))
    assert "128 of 800 are still wrong" in told.llm
    assert told.llm.endswith(" The LLM gave 100 texts no label.")
    simulated = verdict_on(
        metrics(), raters={"kind": "gold"}, texts={"source": "x.csv", "gold_column": "g"}
    )
    assert "labels from simulated people" in simulated.gain


def test_a_goal_that_is_reached_is_told():
    good = replace(metrics().label_quality, remaining_error=Metric(0.02, 0.01, 0.04))
    sure = verdict_on(metrics(label_quality=replace(good, remaining_at_most=0.045)))
    assert sure.goal.startswith("The goal is reached: with 95 % confidence at most 4.5 %")
    assert "already, by the whole" in verdict_on(metrics(label_quality=good)).goal
    unsure = replace(good, remaining_error=Metric(0.04, 0.02, 0.08))
    assert "but this is not sure" in verdict_on(metrics(label_quality=unsure)).goal


def test_the_goal_is_that_of_the_stopping_rules():
    asked = verdict_on(metrics(), rounds={"stop": ["gain=0.01", "remaining-error=0.1"]})
    assert asked.goal.startswith("For at most 10 % wrong labels, people must label")
    over = verdict_on(metrics(), rounds={"stop": ["accuracy=0.6"]})
    assert over.goal.startswith("The campaign may end: accuracy is 73.8")
    still = {"accuracy": Metric(0.001, -0.01, 0.005)}
    flat = replace(metrics(), compared={**metrics().compared, "previous": still})
    told = verdict_on(flat, rounds={"stop": ["gain=0.01"]})
    assert told.goal.startswith("The campaign may end: the last round changed accuracy")


def test_page_status_and_json_say_the_same(tmp_path, monkeypatch):
    no_plots(monkeypatch.setattr)
    ctx = make(tmp_path)
    open_campaign(ctx)
    before = campaign_status(ctx.config, ctx.store)["verdict"]
    assert before["next"] == "Next: `goldloop run`."
    run_round(ctx)
    run_round(ctx)
    told = campaign_verdict(ctx.config, ctx.store, what_next(ctx.config, ctx.store))
    view = campaign_view(ctx.config, ctx.store)
    assert view.verdict == told
    assert rounds_json(view)["campaign_verdict"] == told.to_json()
    lines = status_lines(campaign_status(ctx.config, ctx.store))
    assert set(told.paragraphs) <= set(lines)
    assert lines[-1] == told.next
    assert "To continue, raise rounds.rounds" in told.next
