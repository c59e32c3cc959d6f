"""What may change in a campaign that has begun, and what is refused in one sentence."""

import pytest
from campaigns import LABELS

from loop.errors import StoreError
from loop.round import run_round
from tests.loop.test_round import _no_plots, finish, make

__all__ = ["_no_plots"]


def test_a_new_description_reaches_people_and_leaves_the_votes(tmp_path):
    one_round = {"batch_size": 15, "rounds": 1, "audit_frac": 0.2}
    finish(make(tmp_path, rounds=one_round))
    changed = make(
        tmp_path,
        labels=[{"name": name, "description": f"means {name}"} for name in LABELS],
    )
    votes = changed.store.spent("c").votes
    frozen = [v.hash for v in changed.store.variants("c", changed.annotator.revision)]
    assert [la.description for la in changed.config.port_labels] == ["means bad", "means good"]
    finish(changed)
    assert [r.stage for r in changed.store.rounds("c")] == ["done", "done"]
    assert changed.store.spent("c").votes == votes
    assert [v.hash for v in changed.store.variants("c", changed.annotator.revision)] == frozen
    changed.store.close()


@pytest.mark.parametrize("names", [("bad",), (*LABELS, "new"), ("bad", "fine")])
def test_other_labels_are_refused(tmp_path, names):
    finish(make(tmp_path, rounds={"batch_size": 15, "rounds": 1, "audit_frac": 0.2}))
    labels = [{"name": name} for name in (*names, "x")[: max(2, len(names))]]
    changed = make(tmp_path, labels=labels)
    with pytest.raises(StoreError, match="was begun with labels"):
        run_round(changed)
    changed.store.close()
