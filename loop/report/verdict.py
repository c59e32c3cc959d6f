"""What a campaign shows so far, in four short paragraphs for people who read nothing else.

The page, the status and the end of a run all print these, so that they never contradict each other.
A difference is told as one only where its paired 95 % interval leaves zero out.
"""

from __future__ import annotations

from loop.campaign.config import Config
from loop.campaign.metrics import LlmQuality, Metric, RoundMetrics, ToGoal
from loop.campaign.store import Store
from loop.campaign.tables import VALIDATION
from loop.errors import counted
from loop.measure.collapsed import REMEDY, collapsed_line, learned_nothing, measured_rounds
from loop.measure.stopping import why_good_enough, why_stop
from loop.measure.to_goal import to_goal
from loop.report.contents import Verdict
from loop.report.wording import NOT_SHOWN, count, in_words, percent, rounded, work

TESTED_ON = {"test": "test texts", "audit": "randomly drawn texts that people labelled"}


def campaign_verdict(config: Config, store: Store, step: str) -> Verdict:
    """The verdict on what is in the store now.

    Args:
        step: of ``loop.next_round.what_next``.
    """
    rounds = store.rounds(config.campaign.name)
    measured = measured_rounds(rounds)
    newest = measured[-1][1] if measured else None
    if newest is None:
        validated = any(r.number == VALIDATION and r.stage == "done" for r in rounds)
        return Verdict(
            "No round is measured yet. `goldloop validate` says how good the LLM's labels are."
            if validated
            else "No round is measured yet, so how good the LLM's labels are is not known yet.",
            "The first round measures the LLM's labels, and what people's labels change.",
            "After it goldloop can also say how many labels, hours and dollars a goal takes.",
            _next(None, step),
        )
    if enough := why_good_enough(config, rounds):
        goal = f"The goal is reached: {enough}."
    elif enough := why_stop(config, rounds):
        goal = f"The campaign may end: {enough}."
    else:
        goal = goal_sentence(to_goal(config, newest, store.annotations(config.campaign.name)))
    return Verdict(
        _llm(newest.label_quality or LlmQuality(), newest.pool),
        _gain(newest, simulated=config.raters.kind != "people"),
        goal,
        _next(newest, step),
    )


def _llm(quality: LlmQuality, pool: int) -> str:
    if quality.accuracy is None:
        why = quality.problem or "the round did not measure it"
        return f"How good the LLM's labels are is not known: {why}."
    silent = quality.unanswered.n if quality.unanswered else 0
    told = f"{_share(quality.accuracy)} of the LLM's labels are right."
    if (left := quality.remaining_error) is not None:
        n = pool - silent
        told += (
            f" After people's corrections, about {count(left.value * n)} of {n:,} are still wrong"
            f" ({count(left.low * n)} to {count(left.high * n)})."
        )
    return f"{told} The LLM gave {counted(silent, 'text')} no label." if silent else told


def _gain(newest: RoundMetrics, *, simulated: bool) -> str:
    """The newest students against those of the LLM's labels alone."""
    gold = newest.bought if newest.gold is None else newest.gold
    labels = f"{gold:,} label{'s' * (gold != 1)} from {'simulated ' * simulated}people"
    if collapsed_line(newest) and not learned_nothing(newest):
        return f"Every text has the same label, so what the {labels} changed cannot be shown."
    if learned_nothing(newest):
        return (
            "The students learned nothing: every run gives every text the same label. So what the"
            f" {labels} changed cannot be shown."
        )
    if not gold:
        return "No label from people can be used yet, so what their labels change is not known."
    against = newest.compared.get("llm_only", {})
    steadier = _steadier(against.get("alpha_k"))
    students = newest.arms.get("loop")
    accuracy = None if students is None else students.metric("accuracy")
    if accuracy is None or newest.accuracy_from is None:
        known = students.known if students is not None else 0
        few = "no known label" if not known else f"too few known labels ({known})"
        return (
            f"Whether the {labels} made the students better is not known, because there"
            f" {'are' if known else 'is'} {few} to test them on (texts.gold_column). {steadier}"
        )
    right = f"right on {percent(accuracy.value)} % of the {TESTED_ON[newest.accuracy_from]}"
    more = against.get("accuracy")
    if more is None or not more.known:
        return (
            f"With {labels} the students are {right}; there is nothing to compare this with,"
            ' because student.references does not name "llm_only".'
        )
    word = in_words(more)
    if word == NOT_SHOWN:
        return (
            f"It is not shown that the {labels} made the students better. They are {right}:"
            f" {_points(more)} compared with the LLM's labels alone, which may be chance."
            f" {steadier}"
        )
    size = (
        f"{percent(abs(more.value))} points ({_span(more)}) {'more' if more.value > 0 else 'less'}"
    )
    return (
        f"The {labels} made the students {word}. They are {right}, {size} than with the LLM's"
        f" labels alone. {steadier}"
    )


def _steadier(more: Metric | None) -> str:
    if more is None or not more.known:
        return "Whether they are more stable is not known."
    return {"better": "They are also more stable.", "worse": "They are less stable."}.get(
        in_words(more), "It is not shown that they are more stable."
    )


def goal_sentence(goal: ToGoal) -> str:
    """What it takes until few enough labels are wrong, or what is missing to tell."""
    share = f"{100 * goal.wrong:g} %"
    aim = f"at most {share} wrong labels"
    usual = "" if goal.chosen else f" {share} is the usual goal; rounds.stop_below sets another."
    if goal.labels is None:
        return f"How many labels people must give for {aim} is not known: {goal.missing}.{usual}"
    if goal.labels.high <= 0:
        return f"There are {aim} already, by the whole of the 95 % interval.{usual}"
    if goal.labels.value <= 0:
        more = count(goal.labels.high)
        return (
            f"There are probably {aim} already, but this is not sure. Up to {more} more labels"
            f" would make it sure.{usual}"
        )
    takes = [
        what
        for what in (
            goal.usd and f"${rounded(goal.usd)}",
            goal.hours and work(goal.hours),
        )
        if what
    ]
    return (
        f"For {aim}, people must label about {rounded(goal.labels, ' more texts')}"
        + (f", for {' and '.join(takes)}." if takes else ".")
        + (" The price is not known (budget.usd_per_label is 0)." if goal.usd is None else "")
        + (" The time is not known (nobody's answers were timed)." if goal.hours is None else "")
        + usual
    )


def _next(newest: RoundMetrics | None, step: str) -> str:
    """The next step, after what has to be mended first."""
    if newest is not None and learned_nothing(newest):
        return f"First correct the students' training: {REMEDY[0].lower()}{REMEDY[1:]}. {step}"
    if newest is not None and newest.suspects is not None and newest.suspects.next == "coverage":
        return (
            f"{step} All texts of a further round are drawn at random, because suspects were not"
            " wrong more often than random texts."
        )
    return step


def _share(metric: Metric) -> str:
    """``78 % (72 to 83 %)``."""
    return f"{100 * metric.value:.0f} % ({100 * metric.low:.0f} to {100 * metric.high:.0f} %)"


def _points(more: Metric) -> str:
    """``+3.2 points (−3.8 to +10.2)``."""
    ends = f" ({percent(more.low, sign=True)} to {percent(more.high, sign=True)})"
    return f"{percent(more.value, sign=True)} points{ends * more.has_interval}"


def _span(more: Metric) -> str:
    """The interval of a difference, by its size."""
    low, high = sorted((abs(more.low), abs(more.high)))
    return f"{percent(low)} to {percent(high)}"
