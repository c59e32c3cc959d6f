import numpy as np
import pytest

from loop.chance import STREAMS, stream, unit_hash

WITHOUT_A_ROUND = {"cascade", "price of a goal", "rivals", "prompt examples"}


def test_no_two_purposes_of_a_round_draw_the_same_numbers():
    of_rounds = [number for name, number in STREAMS.items() if name not in WITHOUT_A_ROUND]
    assert len(of_rounds) == len(set(of_rounds))
    of_campaigns = [STREAMS[name] for name in WITHOUT_A_ROUND]
    assert len(of_campaigns) == len(set(of_campaigns))


def test_a_campaign_that_goes_on_draws_what_it_would_have_drawn():
    assert stream("batch", 0, 1).random() == np.random.default_rng([0, 1, 3]).random()
    signals = stream("signals", 5, 2, then=[1])
    assert signals.random() == np.random.default_rng([5, 2, 2, 1]).random()


def test_an_unknown_purpose_is_an_error():
    with pytest.raises(KeyError, match="batches"):
        stream("batches", 0, 1)


def test_hashes_depend_on_all_three_and_fill_the_unit_interval():
    values = [unit_hash(1, "p", str(i)) for i in range(2000)]
    assert 0 <= min(values) < 0.01
    assert 0.99 < max(values) < 1
    assert abs(np.mean(values) - 0.5) < 0.03
    others = (unit_hash(2, "p", "0"), unit_hash(1, "q", "0"), unit_hash(1, "p", "1"))
    assert len({values[0], *others}) == 4
