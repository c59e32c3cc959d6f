"""What it takes until few enough labels are wrong: labels of people, money and hours.

The figures follow from what the newest round measured. They hold for the LLM's labels with people's
corrections; repair may bring the goal nearer.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from loop.campaign.config import Config, stop_rule
from loop.campaign.metrics import LlmQuality, Metric, RoundMetrics, ToGoal
from loop.campaign.tables import Annotation

USUAL_GOAL = 0.05
"""Share of wrong labels that is asked for where the campaign file names none; the same as the
default of ``goldloop validate --goal``."""


def to_goal(
    config: Config,
    newest: RoundMetrics,
    answers: Sequence[Annotation],
    chosen: float | None = None,
) -> ToGoal:
    """What it takes to the goal of the campaign file, or to the usual one.

    Args:
        config: names the goal and the price of an answer.
        newest: the newest measured round.
        answers: of people so far; they say how long one takes, and how many one text needs.
        chosen: a share of wrong labels, instead of the campaign file's.

    Returns:
        Further labels, dollars and hours, each with what its interval allows; ``missing`` says why
        there are none. Simulated people have no hours.
    """
    goal = _chosen(config) if chosen is None else chosen
    wrong = USUAL_GOAL if goal is None else goal
    quality = newest.label_quality or LlmQuality()
    if quality.remaining_error is None:
        missing = quality.problem or "no round has measured how many labels are wrong"
        return ToGoal(wrong, goal is not None, missing=missing)
    silent = quality.unanswered.n if quality.unanswered else 0
    labels = labels_to_goal(
        quality.remaining_error,
        wrong,
        texts=max(0, newest.pool - silent),
        checked=quality.n_gold,
        hit_rate=_hit_rate(newest),
    )
    per_label = answers_per_label(config, newest, answers)
    price = config.budget.usd_per_label * per_label
    seconds = seconds_per_answer(config, answers)
    hours = None if seconds is None else seconds * per_label / 3600
    return ToGoal(
        wrong,
        goal is not None,
        labels=labels,
        usd=_times(labels, price) if price else None,
        hours=_times(labels, hours) if hours else None,
    )


def labels_to_goal(
    remaining: Metric, goal: float, *, texts: int, checked: int, hit_rate: float | None
) -> Metric:
    """Texts that people must still label until a share ``goal`` of all labels is wrong at most.

    A label of people puts right at most one wrong label, which gives the lower end, from the lower
    end of ``remaining``. Texts drawn at random need the upper end, from its upper end; suspects
    need no more than those, unless they are wrong less often than random texts.

    Args:
        remaining: share of labels that are still wrong, with its interval.
        goal: in (0, 1).
        texts: with a label of the LLM.
        checked: those of them that people have labelled.
        hit_rate: share of the last batch that was wrong; the value assumes it for what comes. None
            assumes that of random texts.
    """
    allowed, unchecked = goal * texts, max(0, texts - checked)

    def at_random(share: float) -> float:
        wrong = share * texts
        return unchecked * max(0.0, 1.0 - allowed / wrong) if wrong > 0 else 0.0

    too_many = max(0.0, remaining.value * texts - allowed)
    most = at_random(remaining.high)
    least = min(max(0.0, remaining.low * texts - allowed), most)
    value = too_many / hit_rate if hit_rate else at_random(remaining.value)
    value = min(max(value, too_many), most)
    return Metric(value, least, most)


def _chosen(config: Config) -> float | None:
    """The share of wrong labels that the campaign file names as its goal."""
    if config.rounds.stop_below is not None:
        return config.rounds.stop_below
    rules = dict(map(stop_rule, config.rounds.stop))
    return rules.get("remaining-error")


def _hit_rate(newest: RoundMetrics) -> float | None:
    """Share of the last batch whose label people found wrong."""
    groups = [s for s in newest.pushed_wrong.values() if s.n]
    n = sum(s.n for s in groups)
    return sum(s.share * s.n for s in groups) / n if n else None


def answers_per_label(config: Config, newest: RoundMetrics, answers: Sequence[Annotation]) -> float:
    """Answers that a gold label has taken so far; before there are any, those that it is asked for.

    Hidden checks and texts on which people disagree bring no label, but cost as much as the others.
    """
    with_checks = 1.0 + config.people.check_frac
    texts = {a.item_id for a in answers}  # among them the checks, which have ids of their own
    if not texts:
        return config.people.panel.first * with_checks
    each = len(answers) / len(texts) * with_checks
    return each * max(1.0, newest.bought / (newest.gold or 1))


def seconds_per_answer(config: Config, answers: Sequence[Annotation]) -> float | None:
    """The median; None where nobody's time is known, as that of simulated people."""
    times = [a.lead_time_s for a in answers if a.lead_time_s]
    return median(times) if times and config.raters.kind == "people" else None


def _times(labels: Metric, factor: float) -> Metric:
    return Metric(labels.value * factor, labels.low * factor, labels.high * factor)
