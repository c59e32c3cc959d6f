"""What may change in a campaign that has begun; for its labels see ``test_new_label``."""

from campaigns import LABELS

from tests.loop.test_round import finish, make


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
