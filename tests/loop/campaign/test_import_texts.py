from types import SimpleNamespace

import pytest

from loop.campaign.config import Config
from loop.campaign.import_texts import import_texts
from loop.campaign.store import Store
from loop.errors import ConfigError, DataError


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
