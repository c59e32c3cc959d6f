"""A small pool gets more epochs, a large one the usual three, none too many."""

from itertools import pairwise

from loop.student.epochs import ENOUGH_STEPS, MOST, USUAL, enough_epochs, steps_of


def test_steps_count_the_last_batch_of_an_epoch():
    assert [steps_of(n, 3, 16) for n in (1, 16, 17, 300)] == [3, 3, 6, 57]


def test_epochs_are_enough_where_they_can_be_and_no_more():
    assert [enough_epochs(n) for n in (0, 1, 100, 300, 800, 10**6)] == [MOST, MOST, MOST, 8, 3, 3]
    for n in range(1, 3000, 7):
        epochs = enough_epochs(n)
        if USUAL < epochs < MOST:
            assert steps_of(n, epochs, 16) >= ENOUGH_STEPS > steps_of(n, epochs - 1, 16)
    assert all(a >= b for a, b in pairwise(map(enough_epochs, range(1, 3000))))
    assert enough_epochs(300, batch_size=4) == USUAL
