from types import SimpleNamespace

import pytest

from connectors.texts.read import TextRow
from loop.campaign.config import Config
from loop.campaign.import_texts import import_new_texts, import_texts, near_twins_line
from loop.campaign.store import Store
from loop.campaign.tables import Item
from loop.errors import ConfigError, DataError
from loop.ports import item_id


def config(**sections):
    base = {
        "campaign": {"name": "c", "task": "t"},
        "labels": [{"name": "a"}, {"name": "b"}],
        "texts": {"source": "x.csv", "gold_column": "g"},
        "budget": {"labels": 10},
        "rounds": {"batch_size": 5},
    }
    return Config.model_validate(base | sections)


def rows(n, gold="a", split=None):
    return [SimpleNamespace(text=f"text {i}", gold=gold, split=split, meta={}) for i in range(n)]


@pytest.fixture
def store(tmp_path):
    opened = Store(f"sqlite:///{tmp_path / 's.db'}")
    opened.open_campaign("c", ["a", "b"])
    yield opened
    opened.close()


def test_splits_are_drawn_at_random_and_the_same_each_time(store, tmp_path):
    import_texts(config(), store, rows(200))
    found = [i.split for i in store.items("c")]
    assert (found.count("test"), found.count("dev")) == (40, 32)
    other = Store(f"sqlite:///{tmp_path / 'other.db'}")
    other.open_campaign("c", ["a", "b"])
    import_texts(config(), other, rows(200))
    assert [i.split for i in other.items("c")] == found
    other.close()


def test_a_split_column_is_obeyed(store):
    source = config(texts={"source": "x", "gold_column": "g", "split_column": "s"})
    import_texts(source, store, rows(20, split="train") + rows(30, split="test")[20:])
    assert [i.split for i in store.items("c")].count("test") == 10


def test_unknown_split_names_the_row(store):
    source = config(texts={"source": "x", "gold_column": "g", "split_column": "s"})
    with pytest.raises(DataError, match=r"Row 1 of x has split 'tset'; did you mean 'test'"):
        import_texts(source, store, rows(20, split="tset"))
    some = [*rows(20, split="train"), TextRow("x", split="holdout", line=52)]  # others were copies
    with pytest.raises(DataError, match=r"Row 52 of x has split 'holdout'; did you mean 'test'"):
        import_texts(source, store, some)
    texts = [*rows(20, split="train"), *(TextRow(f"x{i}", split=f"x{i}") for i in range(20))]
    with pytest.raises(DataError, match=r"Row 21 .*'x7' \(1 rows\), …\. Correct them, or name"):
        import_texts(source, store, texts)


@pytest.mark.parametrize(
    ("sections", "n", "error", "message"),
    [
        ({}, 5, DataError, "at least 10 are needed"),
        ({"texts": {"source": "x", "test_frac": 0.0}}, 50, DataError, "No text is held out"),
        ({"budget": {"labels": 500}}, 50, ConfigError, "budget.labels 500 is larger than the pool"),
        (
            {"budget": {"labels": 500}, "rounds": {"batch_size": 400}},
            50,
            ConfigError,
            "batch_size 400 is larger than the pool",
        ),
    ],
)
def test_what_cannot_work_is_refused_and_nothing_is_stored(store, sections, n, error, message):
    with pytest.raises(error, match=message):
        import_texts(config(**sections), store, rows(n))
    assert store.items("c") == []


def test_references_need_gold_everywhere(store):
    source = config(student={"references": ["all_gold"]})
    mixed = [*rows(60), SimpleNamespace(text="bare", gold=None, split=None, meta={})]
    with pytest.raises(ConfigError, match="1 have none"):
        import_texts(source, store, mixed)


def test_texts_of_an_older_normal_form_are_known_again(store):
    import_texts(config(), store, rows(20))
    with store.transaction() as session:  # as ids were made when unseen characters counted
        old = session.get(Item, item_id("c", "text 3"))
        session.add(Item(**{**old.model_dump(), "id": "0" * 20, "text": "text\u200b 3", "row": 99}))
        session.delete(old)
    again = rows(20)
    again[3].text = "text\u200b 3"
    assert import_new_texts(config(), store, again, seed=0) == []
    again[3].text = "text 3\u2060"
    assert import_new_texts(config(), store, again, seed=0) == []
    assert store.item_count("c") == 20


def test_near_twins_across_the_split_are_counted(store):
    given = rows(20, split="train") + rows(40, split="test")[20:]
    assert near_twins_line([]) == ""
    for i, text in enumerate(
        ["Text 3!", "RT @you: text 4 https://x.y/z", "text 5 more", "???", "texté"]
    ):
        given[30 + i].text = text
    given[0].text, given[1].text = "!!!", "TEXTE\u0301"
    source = config(texts={"source": "x", "gold_column": "g", "split_column": "s"})
    import_texts(source, store, given)
    line = near_twins_line(store.stored_texts("c"))
    assert line.startswith("3 test texts stand among the other texts in nearly the same words")
    assert "'Text 3!' beside 'text 3'" in line
    assert near_twins_line([i for i in store.stored_texts("c") if i.split == "test"]) == ""
