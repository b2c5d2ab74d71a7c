from __future__ import annotations

import pytest

from csd.runtime.decoding.refresh.period import AutoPeriod, FixedPeriod, period_of


def steps_of(period, count, errors=()):
    """Which of some AR steps are full, given the errors that are measured at full ones."""
    full, local, errors = [], 0, iter(errors)
    for step in range(count):
        full.append(period.full(step, local))
        local = 0 if full[-1] else local + 1
        if full[-1] and period.measures(step):
            period.observe(next(errors, 0.0))
    return "".join("F" if is_full else "." for is_full in full)


@pytest.mark.parametrize(
    ("refresh", "wanted"),
    [
        (1, "FFFFFFFFFFFF"), ((1, 1), "FFFFFFFFFFFF"),
        (2, "FFFF.F.F.F.F"), ((2, 1), "F.F.F.F.F.F."), ((2, 4), "FFFF.F.F.F.F"),
        ((3, 1), "F..F..F..F.."), ((3, 6), "FFFFFF..F..F"), ((4, 99), "FFFFFFFFFFFF"),
        ((99, 2), "FF.........."),
    ],
)  # fmt: skip
def test_the_first_steps_are_full_and_then_every_nth(refresh, wanted):
    assert steps_of(period_of(refresh, 0.1), 12) == wanted


def test_an_automatic_period_grows_while_local_steps_are_as_full_ones():
    period = AutoPeriod(0.1)
    assert steps_of(period, 18) == "FFFFF.F..F...F...."
    assert period.period == 5
    assert period.first == 4


def test_it_shrinks_where_the_error_is_too_large_and_stays_in_between():
    period = AutoPeriod(0.1, period=9)
    for error, wanted in ((0.11, 4), (5.0, 2), (0.1, 2), (0.06, 2), (1.0, 1), (1.0, 1), (0.05, 2)):
        period.observe(error)
        assert period.period == wanted


def test_it_never_leaves_full_steps_where_the_error_stays_large():
    assert steps_of(AutoPeriod(0.1), 12, [1.0] * 12) == "F" * 12


def test_nothing_is_measured_where_no_step_could_be_local():
    assert [AutoPeriod(0.1).measures(step) for step in (0, 3, 4, 9)] == [False, False, True, True]
    assert not FixedPeriod(2).measures(9)


def test_an_option_makes_its_period():
    assert period_of("auto", 0.2) == AutoPeriod(0.2)
    assert period_of(3, 0.2) == FixedPeriod(3, 4)
    assert period_of((3, 1), 0.2) == FixedPeriod(3, 1)
