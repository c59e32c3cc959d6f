"""When a campaign ends before its budget is spent: the stopping rules of ``rounds.stop``.

Each rule looks at the rounds that are measured, and holds or not; the first one that holds ends the
campaign, and its sentence says why. The intervals are those of the report. They are looked at after
every round, so that over many rounds a rule may hold by luck somewhat more often than 1 time in 40.
"""

from __future__ import annotations

from collections.abc import Sequence

from loop.campaign.config import Config, stop_rule
from loop.campaign.metrics import METRICS, RoundMetrics
from loop.campaign.tables import VALIDATION, Round
from loop.measure.collapsed import measured_rounds
from loop.measure.metric import points, times_100

PLATEAU_ROUNDS = 2
"""Rounds in a row without a gain after which ``plateau`` holds."""
GAINS = ("accuracy", "macro_f1", "reliable_accuracy")
"""What a round may raise; each needs gold to measure."""


def why_stop(config: Config, rounds: Sequence[Round], rules: Sequence[str] = ()) -> str | None:
    """Why the measured rounds are enough, or None.

    Args:
        rounds: of the campaign, in order.
        rules: further ones besides ``rounds.stop`` and ``rounds.stop_below``.
    """
    done = [r for r in rounds if r.stage == "done"]
    if enough := why_good_enough(config, done):
        return enough
    loops = [metrics for round_, metrics in measured_rounds(done) if round_.number != VALIDATION]
    for rule in (*config.rounds.stop, *rules):
        name, value = stop_rule(rule)
        if reason := _holds(name, value, loops):
            return f"{reason} ({rule})"
    return None


def why_good_enough(config: Config, rounds: Sequence[Round]) -> str | None:
    """Why the labels are good enough to stop by ``rounds.stop_below``, or None."""
    wanted = config.rounds.stop_below
    done = measured_rounds([r for r in rounds if r.stage == "done"])
    if wanted is None or not done:
        return None
    reason = _few_remain(done[-1][1], wanted)
    return reason and f"{reason} (rounds.stop_below = {wanted:g})"


def _few_remain(newest: RoundMetrics, wanted: float) -> str | None:
    quality = newest.label_quality
    bound = quality.remaining_at_most if quality else None
    if bound is None or bound > wanted:
        return None
    return (
        f"with 95 % confidence at most {100 * bound:.1f} % of the labels are still wrong or missing"
    )


def _holds(name: str, value: float, rounds: Sequence[RoundMetrics]) -> str | None:
    if not rounds:
        return None
    newest = rounds[-1]
    if name == "remaining-error":
        return _few_remain(newest, value)
    if name == "gain":
        gain = newest.compared.get("previous", {}).get("accuracy")
        if gain is None or not gain.has_interval or gain.high >= value:
            return None
        return (
            f"the last round changed accuracy by {points(gain)}, less than {100 * value:.1f}"
            " points in the whole interval"
        )
    if name == "plateau":
        last = rounds[-PLATEAU_ROUNDS:]
        if len(last) < PLATEAU_ROUNDS or not all(map(_without_gain, last)):
            return None
        names = ", ".join(METRICS[key].title for key in GAINS)
        return f"the last {PLATEAU_ROUNDS} rounds are not shown to have raised any of {names}"
    arm = newest.arms.get("loop")
    reached = arm.metric(name) if arm is not None else None
    if reached is None or not reached.has_interval or reached.low < value:
        return None
    return (
        f"{METRICS[name].title} is {times_100(reached)}, at least {100 * value:.1f} in the whole"
        " interval"
    )


def _without_gain(metrics: RoundMetrics) -> bool:
    """Whether a round was compared with the one before and nothing is shown to have risen."""
    gains = [metrics.compared.get("previous", {}).get(key) for key in GAINS]
    shown = [gain for gain in gains if gain is not None and gain.has_interval]
    return bool(shown) and all(gain.low <= 0 for gain in shown)
