import re
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from campaigns import make_small
from sqlalchemy import event
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import StatementError
from sqlmodel import SQLModel

from loop.campaign import database
from loop.campaign import store as store_module
from loop.campaign.database import damage
from loop.campaign.store import Store
from loop.campaign.tables import ArrayColumn, Gold, Item, Review, Round
from loop.errors import StageError, StoreError
from loop.round import run_round


@pytest.fixture
def store(store_url):
    opened = Store(store_url)
    opened.open_campaign("c", ["a", "b"])
    yield opened
    opened.close()


def item(number, **more):
    return {"id": f"i{number}", "campaign": "c", "text": "t", "split": "pool", "row": number} | {
        "known_label": None,
        "meta": {"q": "é\x00"},
        **more,
    }


def test_migrations_make_exactly_the_tables_that_a_new_store_has(store_url, store):
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext
    from sqlalchemy import inspect

    def schema():
        inspected = inspect(engine)
        return {
            name: (
                {c["name"]: (str(c["type"]), c["nullable"]) for c in inspected.get_columns(name)},
                inspected.get_pk_constraint(name)["constrained_columns"],
                sorted(str(key["constrained_columns"]) for key in inspected.get_foreign_keys(name)),
                sorted(
                    (i["name"], i["unique"], i["column_names"]) for i in inspected.get_indexes(name)
                ),
                sorted(str(u["column_names"]) for u in inspected.get_unique_constraints(name)),
            )
            for name in sorted(inspected.get_table_names())
        }

    engine = store.engine
    new = schema()
    with engine.begin() as connection:
        (version,) = connection.exec_driver_sql("select * from alembic_version").one()
        SQLModel.metadata.drop_all(connection)
        connection.exec_driver_sql("drop table alembic_version")
    with engine.begin() as connection:
        database._upgrade(connection)
    assert schema() == new
    assert len(new) > 10
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, SQLModel.metadata) == []
        assert context.get_current_revision() == version == database._schemas()[-1]


def test_a_transaction_leaves_no_trace_when_it_fails(store):
    def fail():
        with store.transaction() as session:
            store.insert(session, Item, [item(1)])
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError):
        fail()
    assert store.items("c") == []


def test_items_come_in_source_order_with_their_meta(store):
    with store.transaction() as session:
        store.insert(session, Item, [item(2), item(1, split="test")], chunk=1)
    assert [i.id for i in store.items("c")] == ["i1", "i2"]
    assert [i.id for i in store.items("c", "pool")] == ["i2"]
    assert store.items("c")[0].meta == {"q": "é\x00"}


def test_a_campaign_keeps_its_labels(store):
    with pytest.raises(StoreError, match="was begun with labels"):
        store.open_campaign("c", ["a", "z"])


def test_a_store_from_the_future_is_refused(tmp_path):
    path = tmp_path / "s.db"
    Store(f"sqlite:///{path}").close()
    with sqlite3.connect(path) as connection:
        connection.execute("update alembic_version set version_num = '9999'")
    connection.close()
    with pytest.raises(StoreError, match="newer goldloop"):
        Store(f"sqlite:///{path}")


def test_something_else_at_the_path_is_one_sentence(tmp_path):
    path = tmp_path / "s.db"
    path.write_text("this is not a database, it is a text of more than sixteen bytes")
    with pytest.raises(StoreError, match="cannot be opened"):
        Store(f"sqlite:///{path}")
    assert path.read_text().startswith("this is not")


def test_a_damaged_file_is_not_called_whole(tmp_path):
    path = tmp_path / "s.db"
    with closing(Store(f"sqlite:///{path}")) as store:
        store.open_campaign("c", ["a", "b"])
    assert damage(path) is None
    whole = path.read_bytes()
    spoilt = whole[:4096] + b"\xff" * 8192 + whole[12288:]
    for content in (whole[: len(whole) // 2], spoilt):
        path.write_bytes(content)
        assert damage(path)
    with pytest.raises(StoreError, match=r"is damaged .*Restore the newest backup") as refused:
        Store(f"sqlite:///{path}").campaign_uid("c")
    assert "whole" not in str(refused.value)


def test_rounds_advance_with_their_data(store):
    with store.transaction() as session:
        round_ = Round(campaign="c", number=1, stage="annotate", seed=0, config={}, versions={})
        session.add(round_)
    with store.transaction() as session:
        store.advance(session, round_, "done")
    last = store.last_round("c")
    assert last is not None
    assert last.stage == "done"
    assert last.closed_at is not None


def test_a_round_that_another_process_moved_on_is_not_moved_again(store):
    with store.transaction() as session:
        round_ = Round(campaign="c", number=1, stage="annotate", seed=0, config={}, versions={})
        session.add(round_)
    mine, theirs = store.last_round("c"), store.last_round("c")
    with store.transaction() as session:
        store.advance(session, theirs, "score")

    def stale():
        with store.transaction() as session:
            store.insert(session, Item, [item(1)])
            store.advance(session, mine, "score")

    with pytest.raises(StageError, match="no longer at stage 'annotate'"):
        stale()
    assert store.items("c") == []
    assert store.last_round("c").stage == "score"


def test_prompts_frozen_before_annotators_could_share_them_stay(tmp_path):
    from alembic import command
    from alembic.config import Config

    url = f"sqlite:///{tmp_path / 's.db'}"
    old = Store(url)
    old.open_campaign("c", ["a", "b"])
    config = Config()
    config.set_main_option(
        "script_location", str(Path(store_module.__file__).parent / "migrations")
    )
    with old.engine.connect() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0004")
        connection.exec_driver_sql(
            "insert into variant (hash, campaign, position, annotator, prefix, demonstrations,"
            " created_at) values ('h', 'c', 0, 'llm', 'p', '[]', '2026-01-01 00:00:00')"
        )
        connection.commit()
    old.close()
    new = Store(url)
    (kept,) = new.variants("c", "llm")
    assert (kept.hash, kept.prefix, kept.from_round) == ("h", "p", 0)
    new.close()


def test_texts_are_open_until_they_are_chosen_or_have_gold(store):
    with store.transaction() as session:
        store.insert(session, Item, [item(1), item(2), item(3, split="test")])
        round_ = Round(campaign="c", number=1, stage="push", seed=0, config={}, versions={})
        store.add_round(session, round_)
    assert store.open_texts("c", 9) == 2
    assert store.open_texts("c", 1) == 1
    assert store.open_texts("another", 9) == 0
    chosen = {"item_id": "i1", "round_id": round_.id, "reason": "audit", "rank": 0}
    chosen |= {"suspicion": 0.0, "inclusion_prob": 1.0, "audit_prob": 1.0}
    with store.transaction() as session:
        store.insert(session, Review, [chosen])
    assert (store.review_count("c"), store.open_texts("c", 9)) == (1, 1)
    gold = Gold(item_id="i2", label="a", how="imported", confidence=1.0, round_number=0)
    with store.transaction() as session:
        store.put_gold(session, [gold])
    assert store.open_texts("c", 9) == 0


def test_gold_takes_the_place_of_what_an_item_had(store, monkeypatch):
    monkeypatch.setattr(store_module, "IDS_AT_ONCE", 2)  # more texts than one query names

    def put(**labels):
        given = {"how": "single", "confidence": 1.0, "round_number": 1}
        with store.transaction() as session:
            store.put_gold(
                session, [Gold(item_id=i, label=la, **given) for i, la in labels.items()]
            )

    with store.transaction() as session:
        store.insert(session, Item, [item(number) for number in range(4)])
    put(i0="a", i1="a", i2="a")
    put(i1="b", i2="b", i3="b")
    labels = {item_id: gold.label for item_id, gold in store.gold("c").items()}
    assert labels == {"i0": "a", "i1": "b", "i2": "b", "i3": "b"}


def test_texts_that_lie_together_or_far_apart_are_read_alike(store):
    with store.transaction() as session:
        others = [item(9, row=1, split="test"), item(8, row=100)]
        store.insert(session, Item, [item(0), item(2, text="other"), *others])
    zero, two, far = store.keys("c", "pool")
    for keys in ([], [zero, two], [zero, far], [two], [far, two, zero]):
        told = store.text_items("c", keys)
        assert {(i.id, i.text, str(i.meta)) for i in told.values()} == {
            (key.id, "other" if key is two else "t", str({"q": "é\x00"})) for key in keys
        }
        assert set(told) == {key.id for key in keys}
        assert store.texts_of("c", keys) == {i.id: i.text for i in told.values()}


def test_most_texts_are_read_in_one_statement_and_few_by_their_ids(store, monkeypatch):
    monkeypatch.setattr(store_module, "IDS_AT_ONCE", 5)
    with store.transaction() as session:
        store.insert(session, Item, [item(n, text=f"text {n}") for n in range(40)])
    asked = []
    event.listen(store.engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    for n, statements in ((30, 2), (21, 2), (15, 4)):  # one of the two counts the texts
        asked.clear()
        told = store.texts([f"i{i}" for i in range(n)])
        assert told == {f"i{i}": f"text {i}" for i in range(n)}
        assert len([sql for sql in asked if "FROM item" in sql]) == statements


def kept_in(store):
    """All that blocks hold, text by text."""
    rounds = [r.id for r in store.rounds("c")]
    ids = {key.row: key.id for key in store.keys("c")}
    return {
        "votes": sorted(
            (block.variant_hash, block.annotator, ids[row], probs, off)
            for annotator in store.annotators("c")
            for block in store.votes("c", annotator)
            for row, probs, off in zip(
                block.rows.tolist(),
                block.probs.reshape(block.votes, -1).tolist(),
                block.off_label_mass.tolist(),
                strict=True,
            )
        ),
        "spent": store.spent("c"),
        "times": [store.vote_times("c", a) for a in store.annotators("c")],
        "scores": [store.scores(r) for r in rounds],
        "labels": [store.training_labels(r) for r in rounds],
    }


def test_blocks_and_rows_of_earlier_versions_hold_the_same(tmp_path, store_url):
    from alembic import command
    from alembic.config import Config

    ctx = make_small(tmp_path, store_url)
    run_round(ctx)
    (first,) = [r for r in ctx.store.rounds("c") if r.stage == "done"]
    before = kept_in(ctx.store)
    assert len(before["votes"]) == 2 * ctx.store.item_count("c", "pool") > 50
    assert all(len(part) > 50 for part in (before["scores"][0], before["labels"][0]))
    config = Config()
    config.set_main_option(
        "script_location", str(Path(store_module.__file__).parent / "migrations")
    )
    with ctx.store.engine.connect() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0008")
        connection.commit()
        rows = connection.exec_driver_sql("select count(*) from vote").scalar()
        assert rows == len(before["votes"])
        # as one version numbered texts that came later
        connection.exec_driver_sql('update item set "row" = 0 where "row" = 1')
        connection.commit()
    ctx.store.close()
    again = make_small(tmp_path, store_url)
    assert kept_in(again.store) == before
    assert run_round(again).number == first.number + 1
    again.store.close()


def test_a_number_that_does_not_fit_its_column_is_refused(store):
    block = {"campaign": "c", "annotator": "llm", "variant_hash": "h", "probs": np.ones((1, 1))}
    block |= {"off_label_mass": np.zeros(1), "tokens": 1, "usd": 0.0, "seconds": 0.0}
    with pytest.raises(StatementError, match="do not fit"), store.transaction() as session:
        store.add_votes(session, rows=np.array([2**40]), **block)
    assert list(store.votes("c", "llm")) == []


def test_no_sql_stands_outside_the_store():
    statement = re.compile(
        r"\bsession\.(exec|execute|add|merge|delete)\(|import .*\b(select|update)\b"
    )
    loop = Path(__file__).parents[3] / "loop"
    own = {loop / "campaign" / f"{name}.py" for name in ("store", "llm_store", "database")}
    # these care for the database as such, whatever its tables mean
    own |= {loop / "operate" / f"{name}.py" for name in ("backup", "forget", "fsck")}
    outside = [
        f"{path}:{number}"
        for path in sorted(loop.rglob("*.py"))
        if path not in own and "migrations" not in path.parts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if statement.search(line)
    ]
    assert outside == []


@pytest.mark.parametrize("stored", [b"1234567", "12345678", 5, 0.5])
def test_whatever_stands_in_place_of_a_block_is_one_sentence(stored):
    with pytest.raises(StoreError, match="a block holds no whole number of <f8 values"):
        ArrayColumn("<f8").process_result_value(stored, sqlite.dialect())
