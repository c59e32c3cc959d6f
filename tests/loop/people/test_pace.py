"""How quickly answers come, and when the last one will."""

from datetime import UTC, datetime, timedelta

import pytest

from loop.people.pace import pace

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)


def test_a_steady_pace_of_days_is_carried_on():
    times = [NOW - timedelta(hours=h) for h in range(48)]
    found = pace(times, 24, NOW)
    assert found.per_hour == pytest.approx(48 / 47)
    assert (found.finish - NOW) / timedelta(days=1) == pytest.approx(0.98, abs=0.01)
    assert found.earliest < found.finish < found.latest


def test_the_first_hours_count_as_a_working_day():
    times = [NOW - timedelta(minutes=m) for m in range(61)]
    found = pace(times, 61 * 8 * 2, NOW)
    assert (found.finish - NOW) / timedelta(days=1) == pytest.approx(2.0, abs=0.01)
    assert "8 hours a day" in found.basis


@pytest.mark.parametrize("n", [0, 1, 4])
def test_too_little_forecasts_nothing(n):
    assert pace([NOW] * n, 10, NOW).finish is None


def test_answers_at_one_moment_or_all_back():
    assert pace([NOW] * 9, 10, NOW).finish > NOW
    assert pace([NOW] * 9, 0, NOW).basis == "everything is answered"


def test_only_the_last_seven_days_count():
    recent = [NOW - timedelta(hours=h) for h in range(48)]
    old = [NOW - timedelta(days=7, minutes=m) for m in range(1, 200)]
    assert pace(recent + old, 24, NOW) == pace(recent, 24, NOW)
    assert pace([*recent, NOW - timedelta(days=6.9)], 24, NOW).per_hour < 49 / 6 / 24
