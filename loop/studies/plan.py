"""What a campaign still takes: labels to a goal, people's time, money and the day.

Before the first round the validation sample says how many labels bring the share of wrong labels
down (``goldloop validate``). After two rounds, each metric's curve over the gold labels says how
many more labels a goal takes. Both come with intervals; a curve of few rounds has a wide one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from loop.campaign.config import Config, stop_rule
from loop.campaign.metrics import METRICS, Arm, Metric, RoundMetrics, as_json
from loop.campaign.store import Store
from loop.campaign.tables import RIVAL_MARK, STAGES, VALIDATION, Annotation, Round
from loop.chance import stream
from loop.errors import StageError, counted
from loop.measure.collapsed import measured_rounds
from loop.measure.stopping import why_stop
from loop.measure.to_goal import answers_per_label, seconds_per_answer, to_goal
from loop.money import account, labels_left
from loop.people.pace import pace, when_given
from loop.studies.gain_curve import GainCurve, fit_gain_curve
from loop.studies.preflight import ANSWER_S
from loop.studies.validate import validation

OWN_SHARE = 0.5
"""Of a point's variance that is its own, where no paired difference tells; the rest is shared."""
MOST_TIMES = 10.0
"""Labels are not told beyond so many times those bought so far."""


@dataclass(frozen=True)
class Goal:
    """What a goal takes.

    Attributes:
        rule: such as ``accuracy=0.8``, as in ``rounds.stop``.
        now: the metric; None where nothing measures it yet.
        labels: further gold labels; inf where the curve never gets there, None where nobody can
            tell yet.
        why: what is missing, where ``labels`` is None.
    """

    rule: str
    now: Metric | None
    labels: Metric | None
    why: str = ""


@dataclass(frozen=True)
class Plan:
    """What is left to do.

    Attributes:
        goals: one for each that was asked for.
        labels_left: of ``budget.labels``, and no more than texts without gold.
        rounds_left: of ``rounds.rounds``, those whose batch is not chosen yet; none where a
            stopping rule holds.
        stopped: which rule that is, in words; empty for none.
        answers_per_label: answers that one gold label has taken so far, or else is asked for.
        usd_per_label: price of these answers.
        seconds: median time of an answer; assumed where nobody has answered.
        measured_time: whether that time is measured.
        usd_left: of ``budget.usd``, None where there is no cap.
        per_day: answers a day at the present pace, None where too few have come.
    """

    goals: tuple[Goal, ...]
    labels_left: int
    rounds_left: int
    batch: int
    answers_per_label: float
    usd_per_label: float
    seconds: float
    measured_time: bool
    usd_left: float | None
    per_day: float | None
    stopped: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values; labels that no curve reaches are null."""
        told: dict[str, Any] = as_json(replace(self, goals=()))
        told["goals"] = [
            {
                "rule": goal.rule,
                "now": as_json(goal.now),
                "labels": _finite(goal.labels),
                "why": goal.why,
            }
            for goal in self.goals
        ]
        return told


def make_plan(
    config: Config, store: Store, goals: Sequence[str] = (), at: datetime | None = None
) -> Plan:
    """The plan of a campaign that has begun.

    Args:
        goals: rules with a value, as in ``rounds.stop``; none takes those of the campaign file.
        at: the present.
    Raises:
        StageError: a goal that is no metric's value or ``remaining-error``.
    """
    name = config.campaign.name
    asked = goals or [r for r in config.rounds.stop if r.partition("=")[0] not in NO_GOALS]
    rounds = store.rounds(name)
    answers = store.annotations(name)
    seconds = seconds_per_answer(config, answers)
    measured = measured_rounds(rounds)
    each = answers_per_label(config, measured[-1][1] if measured else RoundMetrics(), answers)
    money = account(config, store)
    chosen = STAGES[STAGES.index("select") + 1 :]  # whose labels the budget has counted already
    asked_in = sum(r.stage in chosen and r.number != VALIDATION for r in rounds)
    over = all(r.stage == "done" for r in rounds)
    stopped = why_stop(config, rounds) if over else None
    return Plan(
        goals=tuple(_goal(config, store, rounds, rule) for rule in asked),
        labels_left=store.open_texts(name, labels_left(config, store)),
        rounds_left=0 if stopped else max(0, config.rounds.rounds - asked_in),
        batch=config.rounds.batch_size,
        answers_per_label=each,
        usd_per_label=each * money.answer_usd,
        seconds=ANSWER_S if seconds is None else seconds,
        measured_time=seconds is not None,
        usd_left=None if money.cap_usd is None else money.cap_usd - money.committed_usd,
        per_day=_per_day(answers, at or datetime.now(UTC)),
        stopped=stopped or "",
    )


NO_GOALS = ("gain", "plateau")
"""Rules that end a campaign without naming where it should get."""


def points_of(rounds: Sequence[Round], key: str) -> list[tuple[int, Metric, float]]:
    """Gold labels, the metric and the standard deviation of its own error, round by round.

    The first point is the students of the LLM's labels alone.
    """
    points: list[tuple[int, Metric, float]] = []
    for metrics in _loops(rounds):
        first = _of(metrics, "llm_only", key)
        if not points and first is not None and first.has_interval:
            points.append((0, first, _own_sd(first, None)))
        value = _of(metrics, "loop", key)
        bought = metrics.bought if metrics.gold is None else metrics.gold
        if value is None or not value.has_interval or (points and bought <= points[-1][0]):
            continue
        points.append(
            (bought, value, _own_sd(value, metrics.compared.get("previous", {}).get(key)))
        )
    return points


def _loops(rounds: Sequence[Round]) -> list[RoundMetrics]:
    """What the finished rounds measured, oldest first."""
    return [m for r, m in measured_rounds(rounds) if r.stage == "done" and r.number != VALIDATION]


STRAY_SD = {"reliable_accuracy": 0.02}
"""By metric, how far later rounds stray from any curve through the first ones, as a standard
deviation: one seed that gets worse is enough to lower what all get right. In replayed campaigns,
intervals without it held 82 % of the values at 1.5 to 3 times the labels, with it all
(``docs/planning.md``). Accuracy and macro-F1 need none."""


def curve_of(
    points: Sequence[tuple[int, Metric, float]], key: str, rng: np.random.Generator
) -> GainCurve | None:
    """The curve of a metric through three points or more, else None."""
    if len(points) < 3:
        return None
    labels, metrics, own = zip(*points, strict=True)
    whole = np.array([_sd(m) for m in metrics])
    shared = float(np.sqrt(max(0.0, float(np.mean(whole**2 - np.array(own) ** 2)))))
    shared = float(np.hypot(shared, STRAY_SD.get(key, 0.0)))
    values = np.array([m.value for m in metrics])
    return fit_gain_curve(np.array(labels, float), values, shared, np.array(own), rng=rng)


def _goal(config: Config, store: Store, rounds: Sequence[Round], rule: str) -> Goal:
    try:
        key, value = stop_rule(rule)
    except ValueError as exc:
        raise StageError(f"{exc}.") from None
    if key in NO_GOALS:
        raise StageError(f"{rule!r} is a stopping rule, not a goal; name a value to reach.")
    if key == "remaining-error":
        return _remaining(config, store, rounds, rule, value)
    points = points_of(rounds, key)
    newest = _loops(rounds)[-1:]
    now = _of(newest[0], "loop", key) if newest else None
    if newest and now is None:
        return Goal(rule, None, None, "could not be measured in the newest round")
    bought = points[-1][0] if points else 0
    if now is not None and now.value >= value:
        return Goal(rule, now, Metric(0.0, 0.0, 0.0))
    curve = curve_of(points, key, stream("plan", config.rounds.seed, len(points)))
    if curve is None:
        missing = "this needs two finished rounds whose test texts have known labels"
        return Goal(rule, now, None, f"{missing}; {max(0, len(points) - 1)} so far")
    more = np.maximum(curve.labels_to(value) - bought, 0.0)
    more = np.where(more > MOST_TIMES * max(bought, 1), np.inf, more)
    middle, low, high = curve.quantiles(more, (0.5, 0.025, 0.975))
    if middle == 0:  # by the curve it is reached, by the newest round it is not
        return Goal(rule, now, None, "more labels have not raised it so far")
    return Goal(rule, now, Metric(middle, low, high))


def _remaining(
    config: Config, store: Store, rounds: Sequence[Round], rule: str, error: float
) -> Goal:
    """By the newest round, or else by the validation sample."""
    measured = measured_rounds([r for r in rounds if r.number != VALIDATION])
    if not measured:
        missing = "this needs a finished round, or `goldloop validate` before the first one"
        return _priced(config, store, rule, error) or Goal(rule, None, None, missing)
    newest = measured[-1][1]
    told = to_goal(config, newest, store.annotations(config.campaign.name), error)
    now = newest.label_quality.remaining_error if newest.label_quality else None
    return Goal(rule, now, told.labels, told.missing)


def _finite(labels: Metric | None) -> dict[str, float | None] | None:
    if labels is None:
        return None
    ends = {"value": labels.value, "low": labels.low, "high": labels.high}
    return {name: end if math.isfinite(end) else None for name, end in ends.items()}


def _priced(config: Config, store: Store, rule: str, error: float) -> Goal | None:
    """The price that the validation sample gives for a share of wrong labels."""
    annotators = [a for a in store.annotators(config.campaign.name) if RIVAL_MARK not in a]
    try:
        sample = validation(config, store, annotators[-1], goal=1.0 - error)
    except (StageError, IndexError):
        return None
    right, price = sample.quality.accuracy, sample.price.by_entropy
    return Goal(
        rule,
        Metric(1 - right.value, 1 - right.high, 1 - right.low),
        Metric(price.value, price.low, price.high),
    )


def _of(metrics: RoundMetrics, arm: Arm, key: str) -> Metric | None:
    students = metrics.arms.get(arm)
    return students.metric(key) if students is not None else None


def _sd(metric: Metric) -> float:
    return max((metric.high - metric.low) / 3.92, 1e-4)


def _own_sd(metric: Metric, difference: Metric | None) -> float:
    """Of a point's own error: half the variance of its difference to the point before."""
    if difference is not None and difference.has_interval:
        return min(_sd(difference) / math.sqrt(2), _sd(metric))
    return _sd(metric) * math.sqrt(OWN_SHARE)


def to_come(plan: Plan, out: int, at: datetime) -> dict[str, Any]:
    """Rounds and labels that will really be asked for, and the day when all are answered.

    Args:
        out: answers of the present round that are still out.
        at: the present.
    """
    labels = min(plan.labels_left, plan.rounds_left * plan.batch)
    if plan.usd_left is not None and plan.usd_per_label:
        labels = min(labels, max(0, int(plan.usd_left / plan.usd_per_label)))
    answers = out + math.ceil(labels * plan.answers_per_label)
    finish = None
    if answers and plan.per_day:
        finish = at + timedelta(days=min(answers / plan.per_day, 36_500))
    return {
        "rounds": math.ceil(labels / plan.batch),
        "labels": labels,
        "answers": answers,
        "hours": answers * plan.seconds / 3600,
        "usd": labels * plan.usd_per_label,
        "finish": finish and finish.isoformat(timespec="minutes"),
    }


def _per_day(answers: Sequence[Annotation], at: datetime) -> float | None:
    rate = pace([when_given(a) for a in answers], 1, at)
    if rate.finish is None:
        return None
    days = (rate.finish - at).total_seconds() / 86_400
    return 1.0 / days if days > 0 else None


def plan_lines(plan: Plan) -> list[str]:
    """The plan for people to read."""
    lines = []
    rounds = min(plan.rounds_left, math.ceil(plan.labels_left / plan.batch))
    rest = min(plan.labels_left, plan.rounds_left * plan.batch)
    if rest:
        lines.append(
            f"As planned: {counted(rounds, 'more round')} with {counted(rest, 'label')}:"
            f" {_effort(plan, rest)}."
        )
    else:
        why = plan.stopped or "the campaign's rounds or labels are used up"
        lines.append(f"As planned: no further round, because {why}.")
    for goal in plan.goals:
        lines.append(_goal_line(plan, goal, rest))
    if not plan.goals:
        lines.append("Name a goal to learn what it takes: `goldloop plan --goal accuracy=0.8`.")
    if not plan.measured_time:
        lines.append(f"No answer was timed yet; {plan.seconds:.0f} seconds for each are assumed.")
    return lines


def _goal_line(plan: Plan, goal: Goal, rest: int) -> str:
    key, _, value = goal.rule.partition("=")
    title = METRICS[key].title if key in METRICS else "share of wrong labels"
    wanted = f"{title} of {100 * float(value):g}{'' if key == 'alpha_k' else ' %'}"
    if key == "remaining-error":
        wanted = f"At most {100 * float(value):g} % wrong labels"
    now = goal.now
    at = "" if now is None else f" (now {100 * now.value:.1f})"
    labels = goal.labels
    if labels is None:
        return f"{wanted}{at}: not known yet; {goal.why}."
    if labels.value == 0 and labels.high == 0:
        if now is not None and key in METRICS and now.low < float(value):
            return (
                f"{wanted}{at}: reached, but this is not sure: the interval begins at"
                f" {100 * now.low:.1f}."
            )
        return f"{wanted}{at}: reached."
    if labels.value < 0.5:
        sure = "how many more labels make it sure is not known yet"
        if math.isfinite(labels.high):
            sure = f"up to {_rounded(labels.high)} more labels would make it sure"
        return f"{wanted}{at}: probably reached, but this is not sure; {sure}."
    if not math.isfinite(labels.value):
        least = f"at the present rate it takes more than {MOST_TIMES:g} times the labels so far"
        if labels.low < 1:
            least = "the rounds so far cannot tell how many labels it takes, or whether any suffice"
        elif math.isfinite(labels.low):
            least = f"at the present rate it takes at least {_rounded(labels.low)} more labels"
        return f"{wanted}{at}: not in sight; {least}. A better prompt or another LLM may help more."
    told = _round(labels.value)
    enough = "The campaign as planned may be enough."
    if plan.stopped:
        enough = "A stopping rule has ended the campaign (rounds.stop)."
    elif told > rest:
        enough = (
            f"The campaign as planned is about {told - rest:,} labels short: raise budget.labels"
            " and rounds.rounds."
        )
    effort = _effort(plan, told)
    return f"{wanted}{at}: about {_labels(labels)}: {effort}. {enough}"


def _labels(labels: Metric) -> str:
    """``240 more labels (90 to 600)``."""
    low = _rounded(labels.low)
    if math.isfinite(labels.high):
        bounds = f"{low} to {_rounded(labels.high)}"
    else:
        bounds = f"at least {low}; how many at most is not known yet"
    return f"{_rounded(labels.value)} more labels ({bounds})"


def _round(value: float) -> int:
    return 10 * round(value / 10) if value >= 100 else round(value)


def _rounded(value: float) -> str:
    return f"{_round(value):,}"


def _effort(plan: Plan, labels: float) -> str:
    answers = math.ceil(labels * plan.answers_per_label)
    minutes = max(1, round(answers * plan.seconds / 60))
    time = f"{minutes / 60:,.1f} hours" if minutes >= 120 else counted(minutes, "minute")
    parts = [counted(answers, "answer"), f"{time} of people's time"]
    if plan.usd_per_label:
        parts.append(f"${labels * plan.usd_per_label:,.2f}")
    if plan.per_day:
        days = answers / plan.per_day
        parts.append(f"{max(days, 0.1):,.1f} days at the present pace")
    return ", ".join(parts)
