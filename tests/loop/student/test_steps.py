"""A small pool gets smaller batches and more epochs, a large one the usual, none too many."""

from itertools import pairwise

from loop.student.steps import ENOUGH_STEPS, MOST_EPOCHS, fitting_steps, steps_of


def test_steps_count_the_last_batch_of_an_epoch():
    assert [steps_of(n, 16, 3) for n in (1, 16, 17, 300)] == [3, 3, 6, 57]


def test_steps_are_enough_where_they_can_be_and_no_more():
    advised = {n: fitting_steps(n) for n in (0, 1, 100, 300, 400, 600, 1584, 1585, 10**6)}
    few, most = (8, MOST_EPOCHS), (16, 3)
    assert list(advised.values()) == [few, few, few, (8, 8), (8, 6), (8, 4), (8, 3), most, most]
    for n in range(1, 3000, 7):
        batch_size, epochs = fitting_steps(n)
        if 3 < epochs < MOST_EPOCHS:
            assert steps_of(n, batch_size, epochs) >= ENOUGH_STEPS
            assert steps_of(n, batch_size, epochs - 1) < ENOUGH_STEPS
    assert all(a[1] >= b[1] for a, b in pairwise(map(fitting_steps, range(1, 3000))))
