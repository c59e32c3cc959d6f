from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from tiny_encoder import tiny_student

from loop.bench.data_sets import BenchData, data_from_rows
from loop.bench.learners import EncoderLearner, FrozenLearner, KeptPredictions, WithJudges
from loop.bench.peers import peers
from loop.bench.policies import DEFAULT, POLICIES, Policy
from loop.bench.replay import Shared, mended, replay
from loop.bench.run import run_bench
from loop.bench.tables import (
    REFERENCES,
    compare,
    pooled_recovered,
    reference_table,
    share_table,
    summarise,
    tables,
    write_results,
)
from loop.campaign.metrics import METRICS, WITH_SPREADS
from loop.errors import DataError
from loop.student.frozen_student import fit_heads
from strategies.pool import Pool
from strategies.signals.students import out_of_fold_probs

EVERY = {**POLICIES, **peers()}


def planted(seed=0, n=300, test=200, k=3, wrong_frac=0.4, told=False):
    """Clusters of texts; the LLM takes many of one cluster for the next one.

    With ``told`` the LLM is unsure exactly where it is wrong.
    """
    rng = np.random.default_rng(seed)
    centres = 2.0 * rng.normal(size=(k, 8))
    truth, test_truth = rng.integers(k, size=n), rng.integers(k, size=test)
    wrong = rng.random(n) < np.where(truth == 0, 2 * wrong_frac, wrong_frac / 2)
    y = np.where(wrong, (truth + 1) % k, truth)
    sure = np.where(wrong, 0.5, 0.9) if told else rng.uniform(0.5, 0.95, n)
    probs = np.repeat(((1 - sure) / (k - 1))[:, None], k, axis=1)
    probs[np.arange(n), y] = sure
    other = np.where(rng.random(n) < 0.3, (y + 1) % k, y)
    votes = np.stack([probs, 0.8 * np.eye(k)[other] + 0.2 / k], axis=1)
    return BenchData(
        name="planted",
        labels=tuple("abcdef"[:k]),
        probs=probs[:, None] if told else votes,
        y_llm=y,
        gold=truth,
        embeddings=(centres[truth] + rng.normal(size=(n, 8))).astype(np.float32),
        test_embeddings=(centres[test_truth] + rng.normal(size=(test, 8))).astype(np.float32),
        test_gold=test_truth,
        texts=[f"text {i}" for i in range(n)],
        test_texts=[f"test {i}" for i in range(test)],
        off_label_mass=None if told else rng.random((n, 2)),
        ordinal=True,
        role="development",
    )


def judged_by(data):
    """In place of fine-tuned students: heads that read the embeddings alone."""
    return lambda y, weight: out_of_fold_probs(
        data.embeddings, y, weight, data.k, seeds=1, rng=np.random.default_rng(0)
    )[0]


@pytest.mark.parametrize("name", EVERY)
def test_every_policy_buys_its_budget_exactly_and_trains_on_gold(name):
    data = planted(n=60, test=30)
    for budget, rounds in [(17, 2), (1, 2), (60, 2)]:
        bought = replay(data, EVERY[name], budget, rounds=rounds, seed=[1], judge=judged_by(data))
        assert len(np.unique(bought.rows)) == budget == len(bought.rows)
        assert bought.rows.min() >= 0
        assert bought.rows.max() < 60
        np.testing.assert_array_equal(bought.y[bought.rows], np.eye(3)[data.gold[bought.rows]])
        assert (bought.weight[bought.rows] == 1).all()
        np.testing.assert_allclose(bought.y.sum(axis=1), 1.0)


def test_what_was_bought_tells_its_round_and_why():
    guardless = replace(DEFAULT, guard=False)
    bought = replay(planted(n=60, test=30), guardless, 20, rounds=2, seed=[1])
    assert bought.round.tolist() == [1] * 10 + [2] * 10
    for number in (1, 2):
        assert (bought.reason[bought.round == number] == "suspect").sum() == 5
        assert (bought.reason[bought.round == number] == "audit").sum() == 5


def test_labels_are_mended_anew_from_the_same_gold():
    data = planted(n=60, test=30)
    bought = replay(data, DEFAULT, 20, rounds=2, seed=[1])
    gold = np.full(60, -1)
    gold[bought.rows] = data.gold[bought.rows]

    def again(*seed):
        rng = np.random.default_rng(seed)
        return mended(data, DEFAULT, gold, bought.inclusion_prob, Shared(), rng)

    np.testing.assert_array_equal(again(1, 2)[0], bought.y)  # as the replay itself did
    np.testing.assert_array_equal(again(1, 2)[1], bought.weight)
    y, _ = again(5)
    assert not np.array_equal(y, bought.y)
    np.testing.assert_array_equal(y[bought.rows], bought.y[bought.rows])


@pytest.mark.parametrize("name", EVERY)
def test_no_policy_sees_gold_that_it_did_not_buy(name):
    data = planted(n=60, test=30)
    bought = replay(data, EVERY[name], 20, rounds=2, seed=[1], judge=judged_by(data))
    unseen = np.setdiff1d(np.arange(60), bought.rows)
    lied = data.gold.copy()
    lied[unseen] = (lied[unseen] + 1) % 3
    again = replay(
        replace(data, gold=lied), EVERY[name], 20, rounds=2, seed=[1], judge=judged_by(data)
    )
    np.testing.assert_array_equal(bought.rows, again.rows)
    np.testing.assert_array_equal(bought.y, again.y)


def test_records_are_complete_and_the_same_under_the_same_seed(tmp_path):
    names = ["goldloop", "random", "entropy"]
    data = [planted(n=150, test=100)]
    one, two = (
        run_bench(data, names, budgets=(0.1, 0.3), repetitions=2, seeds=2) for _ in range(2)
    )
    timeless = [[{**r, "seconds": 0} for r in result.records] for result in (one, two)]
    assert timeless[0] == timeless[1]
    other = run_bench(data, ["random"], budgets=(0.1,), repetitions=2, seeds=2, seed=1)
    drawn = [
        [r["macro_f1"] for r in result.records if (r["strategy"], r["budget"]) == ("random", 0.1)]
        for result in (one, other)
    ]
    assert len(drawn[0]) == len(drawn[1]) == 2
    assert drawn[0] != drawn[1]
    assert len(one.records) == 2 * (2 + 3 * 2)
    for record in one.records:
        share = record["budget"]
        if record["strategy"] not in REFERENCES:
            assert record["bought"] == round(share * record["pool"])
            assert 0 <= record["errors_caught"] <= 1
        assert all(0 <= record[m] <= 1 for m in ("macro_f1", "reliable_accuracy", "p_uc"))
        assert len(record["per_class"]["recall"]) == 3
    for entry in one.summary:
        low, mean, high = (entry["macro_f1"][name] for name in ("low", "mean", "high"))
        assert low is None or low < mean < high, "samples that happen to agree have no interval"
        if entry["strategy"] not in REFERENCES:
            assert set(entry["recovered"]) == set(METRICS)
    assert {c["rival"] for c in one.comparisons} == {"random", "entropy"}
    paths = write_results(one, tmp_path)
    read = json.loads(paths[0].read_text())
    assert read["settings"]["student"].startswith("frozen")
    assert len(read["records"]) == len(one.records)
    assert "planted (development)" in paths[1].read_text()
    assert paths[2].read_text().startswith("<?xml")
    assert len(tables(one)) == 3


def test_a_policy_that_knows_where_the_llm_errs_recovers_the_whole_gap():
    data = planted(told=True)
    share = float((data.y_llm != data.gold).mean())
    result = run_bench(
        [data], ["entropy", "random"], budgets=(share + 0.08,), repetitions=3, seeds=3, dims=None
    )
    told = next(e for e in result.summary if e["strategy"] == "entropy")
    assert told["errors_caught"]["mean"] == 1.0
    assert told["label_accuracy"]["mean"] == 1.0
    assert told["recovered"]["macro_f1"]["gap"] > 0.1
    assert told["recovered"]["macro_f1"]["share"] == pytest.approx(1.0, abs=0.02)
    won = {(c["metric"], c["verdict"]) for c in result.comparisons}
    assert ("macro_f1", "win") in won


def test_repair_recovers_more_than_replacing_labels():
    result = run_bench(
        [planted(n=500)], ["goldloop", "random"], budgets=(0.15,), repetitions=3, seeds=3
    )
    f1 = {e["strategy"]: e["macro_f1"]["mean"] for e in result.summary}
    assert f1["llm_only"] < f1["random"] < f1["goldloop"]
    assert f1["goldloop"] > f1["llm_only"] + 0.5 * (f1["all_gold"] - f1["llm_only"])


def test_active_label_cleaning_asks_about_doubted_labels_before_unclear_texts():
    said = np.array([[0.5, 0.5], [0.05, 0.95], [0.9, 0.1], [0.7, 0.3]])
    pool = Pool(
        probs=np.full((4, 1, 2), 0.5),
        y_llm=np.zeros(4, dtype=np.int64),
        gold=np.full(4, -1),
        p_student=said[None],
    )
    chosen = peers()["active-label-cleaning"].ranker(
        pool, np.array([0, 1, 2]), 2, np.random.default_rng(0)
    )
    assert chosen.tolist() == [1, 0]


def test_what_the_data_lack_is_left_out():
    data = replace(planted(told=True), off_label_mass=None, ordinal=False)
    result = run_bench(
        [data], ["goldloop", "prompt-flips", "off_label_mass"], budgets=(0.1,), repetitions=1
    )
    assert {r["strategy"] for r in result.records} == {*REFERENCES, "goldloop"}


def test_gaps_of_all_sets_are_recovered_together():
    of_sets = {"large": (40.0, 60.0, 80.0), "small": (70.0, 70.0, 71.0)}
    records = [
        {
            "data": data,
            "strategy": name,
            "budget": budget,
            "macro_f1": value + jump * (name == "goldloop"),
        }
        for data, of_set in of_sets.items()
        for name, budget, value in zip(
            ("llm_only", "goldloop", "all_gold"), (0.0, 0.1, 0.0), of_set, strict=True
        )
        for jump in (-1.0, 1.0)
    ]
    ((name, (share, low, high)),) = pooled_recovered(records, 0.1, "macro_f1").items()
    assert (name, share) == ("goldloop", pytest.approx(20 / 41))
    assert low < share < high < 0.6
    lacking = [*records, records[0] | {"strategy": "other", "budget": 0.1}]
    assert list(pooled_recovered(lacking, 0.1, "macro_f1")) == ["goldloop"]
    no_gap = [r for r in records if r["data"] == "small"]
    no_gap = [r | {"macro_f1": 50.0} if r["strategy"] == "all_gold" else r for r in no_gap]
    assert not pooled_recovered(no_gap, 0.1, "macro_f1")


def test_a_gap_within_the_noise_has_no_recovered_share():
    record = {"role": "", "seconds": 0.0, "bought": 1, "label_accuracy": 1.0}
    record |= {"pushed_wrong": None, "errors_caught": None, "data": "d"}
    values = {"llm_only": (0.5, 0.5), "all_gold": (0.52, 0.54), "mine": (0.55, 0.56)}
    records = [
        {**record, "strategy": name, "budget": 0.1 if name == "mine" else 0.0, "repetition": i}
        | dict.fromkeys(WITH_SPREADS, v)
        for name, pair in values.items()
        for i, v in enumerate(pair)
    ]
    entry = summarise(records, {("d", "macro_f1"): 0.05})[-1]
    assert entry["recovered"]["macro_f1"]["share"] is None
    assert entry["recovered"]["macro_f1"]["gap"] == pytest.approx(0.03)


@pytest.mark.parametrize(("better", "verdict"), [(0.1, "win"), (0.0, "tie"), (-0.1, "loss")])
def test_verdicts_follow_the_paired_interval(better, verdict):
    rng = np.random.default_rng(0)
    records = []
    for i in range(6):
        base = {"data": "d", "role": "", "budget": 0.1, "repetition": i}
        level = rng.random()  # shared by the pair, so that only the difference counts
        noise = 0.02 * rng.normal()
        told = (*METRICS, "label_accuracy")
        records.append(base | {"strategy": "b"} | dict.fromkeys(told, level))
        records.append(base | {"strategy": "a"} | dict.fromkeys(told, level + better + noise))
    (of_labels,) = compare(records, "a", ["b"], ["label_accuracy"])
    assert (of_labels["metric"], of_labels["verdict"]) == ("label_accuracy", verdict)
    found = {c["metric"]: c for c in compare(records, "a", ["b"])}
    assert found["macro_f1"]["verdict"] == verdict
    swapped = {"win": "loss", "loss": "win", "tie": "tie"}
    assert found["churn"]["verdict"] == swapped[verdict]
    level = {"data": "d", "role": "", "budget": 0.1} | dict.fromkeys(METRICS, 0.5)
    alike = [level | {"strategy": s, "repetition": i} for i in range(6) for s in "ab"]
    for record in alike:
        record["accuracy"] += 0.1 * (record["strategy"] == "a")
        record["p_uc"] += 1e-17 * record["repetition"] + (record["strategy"] == "a") / 9
    for c in compare(alike, "a", ["b"]):
        assert c["verdict"] == "tie", "samples that happen to differ by the same prove nothing"


def test_heads_separate_what_can_be_separated():
    data = planted(n=400)
    predicted = FrozenLearner().predict(data, np.eye(3)[data.gold], np.ones(400), range(4))
    assert predicted.shape == (4, 200)
    assert (predicted == data.test_gold).mean() > 0.9
    x = np.hstack([data.embeddings, np.ones((400, 1), np.float32)])
    weight = np.vstack([np.ones(400), np.where(data.gold < 2, 1.0, 0.0)])
    heads = fit_heads(x, np.eye(3)[data.gold], weight, np.zeros((2, 9, 3)), penalty=0.01, steps=100)
    assert ((x @ heads[0]).argmax(axis=1) == data.gold).mean() > 0.9
    assert 2 not in (x @ heads[1]).argmax(axis=1)  # its weights leave class 2 out


class Echo:
    """A Student that predicts the commonest training class."""

    revision = "echo"

    def fit(self, train, eval_texts, labels, seeds, *, keep, on_seed, progress=None):
        from loop.ports import SeedResult

        common = (train.y * train.weight[:, None]).sum(axis=0)
        for seed in reversed(seeds):  # they may come in any order
            on_seed(SeedResult(seed, np.tile(common, (len(eval_texts), 1)), 0.0, None))


def test_an_encoder_student_can_be_judged_instead():
    data = planted()
    result = run_bench([data], ["random"], budgets=(0.1,), repetitions=1, learner=Echo(), seeds=2)
    assert result.settings["student"] == "echo"
    learner = EncoderLearner(Echo())
    predicted = learner.predict(data, np.eye(3)[data.gold], np.ones(300), [5, 6])
    assert (predicted == np.bincount(data.gold).argmax()).all()
    with pytest.raises(DataError, match="no texts"):
        learner.predict(replace(data, texts=()), np.eye(3)[data.gold], np.ones(300), [5, 6])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategies": ["goldlop"]}, "Unknown strategy 'goldlop'. Did you mean 'goldloop'"),
        ({"strategies": []}, "at least one"),
        ({"strategies": ["random", "random"]}, "twice"),
        ({"budgets": (1.5,)}, "budgets"),
        ({"seeds": 1}, "seeds"),
        ({"pool_frac": 0.0}, "share of the pool"),
    ],
)
def test_bad_settings_are_refused(change, message):
    given = {"strategies": ["random"], "budgets": (0.1,)} | change
    with pytest.raises(DataError, match=message):
        run_bench([planted()], **given)


class Row:
    def __init__(self, text, gold, split=None, **meta):
        self.text, self.gold, self.split, self.meta = text, gold, split, meta


def hashed(texts):
    return np.array([[len(t), sum(map(ord, t)) % 17] for t in texts], dtype=np.float32)


def test_a_data_set_is_read_from_rows():
    rows = [
        Row(f"t{i}", "ab"[i % 2], "test" if i % 5 == 0 else None, llm="a", other="?")
        for i in range(60)
    ]
    rows += [Row("no gold", None, llm="a"), Row("no answer", "a", llm="?")]
    data = data_from_rows("file", rows, ["llm", "other"], hashed)
    assert data.labels == ("a", "b")
    assert data.probs.shape == (48, 2, 2)
    assert np.isnan(data.probs[:, 1]).all()
    assert (data.y_llm == 0).all()
    assert len(data.test_gold) == 12
    assert not set(data.texts) & set(data.test_texts)
    unsplit = data_from_rows("file", [Row(r.text, r.gold, llm="a") for r in rows], ["llm"], hashed)
    assert len(unsplit.test_gold) == pytest.approx(0.3 * 61, abs=1)
    with pytest.raises(DataError, match=r"no column 'lm'.*Did you mean 'llm'"):
        data_from_rows("file", rows, ["lm"], hashed)
    with pytest.raises(DataError, match="no gold labels"):
        data_from_rows("file", rows[60:61], ["llm"], hashed)
    with pytest.raises(DataError, match="too few"):
        data_from_rows("file", rows[:20], ["other"], hashed)
    shouted = [Row(r.text, r.gold, "TEST" if r.split else None, llm="a") for r in rows]
    with pytest.raises(DataError, match=r"no texts with a gold label in split 'test', but 'TEST'"):
        data_from_rows("file", shouted, ["llm"], hashed)


def test_llm_labels_of_a_file_are_counted_where_they_are_no_gold_class():
    from connectors.llm.label_spelling import label_in

    llm = ["a", "B", "Ab", "", None, "a."] * 20
    rows = [Row(f"t{i}", "ab"[i % 2], llm=value) for i, value in enumerate(llm)]
    news = []
    data = data_from_rows("file", rows, ["llm"], hashed, read_label=label_in, say=news.append)
    pool = len(data.gold)
    assert news[0].startswith("40 of 120 labels in 'llm' are spelt in another way")
    assert "'B' as 'b' (20)" in news[0]
    assert "60 of 120 labels in 'llm' name no gold class" in news[1]
    assert "(empty) (40), 'Ab' (20)" in news[1]
    assert news[2].startswith(f"{84 - pool} of 84 pool texts are left out")
    news.clear()
    rows = [Row(f"t{i}", ["POSITIVE", "positive", "no"][i % 3], llm="no") for i in range(60)]
    data_from_rows("file", rows, ["llm"], hashed, read_label=label_in, say=news.append)
    (line,) = news
    assert "'POSITIVE' and 'positive' differ in case or spaces alone" in line


def test_arrays_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="rows like gold"):
        replace(planted(), y_llm=np.zeros(3, dtype=np.int64))
    with pytest.raises(ValueError, match="budget"):
        replay(planted(), DEFAULT, 301, rounds=1, seed=[0])
    broken = Policy(ranker=lambda _pool, candidates, n, _rng: np.repeat(candidates[:1], n))
    with pytest.raises(ValueError, match="distinct candidates"):
        replay(planted(), broken, 5, rounds=1, seed=[0])


def test_one_repetition_has_intervals_over_the_test_texts():
    result = run_bench(
        [planted(n=400)], ["goldloop", "random"], budgets=(0.2,), repetitions=1, seeds=3
    )
    entry = next(e for e in result.summary if e["strategy"] == "random")
    assert entry["macro_f1"]["low"] < entry["macro_f1"]["mean"] < entry["macro_f1"]["high"]
    share = entry["recovered"]["macro_f1"]
    assert share["low"] < share["share"] < share["high"]
    (paired,) = [c for c in result.comparisons if c["metric"] == "macro_f1"]
    assert paired["low"] < paired["mean"] < paired["high"]
    assert paired["verdict"] == "win"
    llm, gold = (r for r in result.records if r["strategy"] in REFERENCES)
    minus = gold["over_items"]["macro_f1"]["minus"]
    assert set(minus) == {"llm_only"}
    ends, gap = minus["llm_only"], gold["macro_f1"] - llm["macro_f1"]
    assert 0 < ends["low"] < gap < ends["high"]
    assert "over test texts" in result.settings["intervals"]


def test_several_repetitions_have_intervals_of_the_recovered_share():
    result = run_bench([planted(n=400)], ["random"], budgets=(0.2,), repetitions=4, seeds=3)
    share = result.summary[-1]["recovered"]["macro_f1"]
    assert share["low"] < share["share"] < share["high"]
    for table in (reference_table(result), share_table(result)):
        console = Console(file=io.StringIO(), width=200)
        console.print(table)
        assert "planted" in console.file.getvalue()


def test_predictions_are_kept_and_belong_to_their_label_set(tmp_path):
    data, calls = planted(n=100), []

    class Counting(FrozenLearner):
        def predict(self, *args):
            calls.append(1)
            return super().predict(*args)

    learner = KeptPredictions(Counting(), tmp_path)
    y, weight = np.eye(3)[data.gold], np.ones(100)
    first = learner.predict(data, y, weight, [1, 2])
    np.testing.assert_array_equal(learner.predict(data, y, weight, [1, 2]), first)
    assert len(calls) == 1
    for changed in (
        (data, y[::-1], weight, [1, 2]),
        (data, y, np.linspace(0.1, 1, 100), [1, 2]),
        (data, y, weight, [1, 3]),
        (replace(data, test_texts=[*data.test_texts[1:], "new"]), y, weight, [1, 2]),
    ):
        learner.predict(*changed)
    assert len(calls) == 5


def worded(data):
    """The data with texts of which an encoder can learn two classes."""
    words = ("great warm", "awful cold")
    return replace(
        data,
        texts=[f"{words[c]} {i}" for i, c in enumerate(data.gold)],
        test_texts=[f"{words[c]} {i}" for i, c in enumerate(data.test_gold)],
    )


def test_a_fine_tuned_encoder_judges_strategies_and_goes_on_where_it_broke_off(tiny, tmp_path):
    data = worded(planted(n=60, test=20, k=2))
    student = tiny_student(tiny, epochs=16)
    learner = KeptPredictions(EncoderLearner(student), tmp_path)
    given = {"budgets": (0.2,), "repetitions": 1, "seeds": 2, "rounds": 1}
    first = run_bench([data], ["goldloop", "random"], learner=learner, **given)
    assert first.settings["student"] == student.revision
    assert len(list(tmp_path.glob("*.npy"))) == 4  # two references, two label sets
    for file in tmp_path.glob("*.npy"):
        assert np.load(file).shape == (2, 20)

    class Broken:
        revision = student.revision

        def predict(self, *_):
            raise AssertionError("everything is kept already")

    again = run_bench(
        [data], ["goldloop", "random"], learner=KeptPredictions(Broken(), tmp_path), **given
    )
    values = [[r[m] for r in result.records for m in METRICS] for result in (first, again)]
    assert values[0] == values[1]


def test_judges_get_the_same_gold_and_are_kept_and_need_a_learner_that_fine_tunes(tiny, tmp_path):
    data = worded(planted(n=60, test=20, k=2))
    student = tiny_student(tiny, epochs=16)
    learner = KeptPredictions(EncoderLearner(student), tmp_path)
    names = ["goldloop", "goldloop-fine-tuned"]
    given = {"budgets": (0.2,), "repetitions": 1, "seeds": 2, "rounds": 1}
    records = run_bench([data], names, learner=learner, **given).records
    caught = [r["errors_caught"] for r in records if r["strategy"] in names]
    assert len(caught) == 2
    assert caught[0] == caught[1]

    class Gone:
        revision = student.revision

        def predict(self, *_):
            raise AssertionError("everything is kept already")

        def cross_fit(self, *_, seed):
            raise AssertionError("everything is kept already")

    again = run_bench([data], names, learner=KeptPredictions(Gone(), tmp_path), **given).records
    assert [r["label_accuracy"] for r in again] == [r["label_accuracy"] for r in records]
    plain = run_bench([data], names, learner=FrozenLearner(), **given).records
    assert "goldloop-fine-tuned" not in {r["strategy"] for r in plain}


def test_heads_can_learn_labels_that_fine_tuned_students_judged():
    data = planted(n=60, test=20, k=2)

    class Knows:
        revision = "knows"

        def predict(self, *_):
            raise AssertionError("the heads predict")

        def cross_fit(self, data, y, weight, *, seed):
            return np.eye(data.k)[data.gold]

    names = ["goldloop-fine-tuned", "goldloop"]
    given = {"budgets": (0.2,), "repetitions": 1, "seeds": 2, "rounds": 1}
    learner = WithJudges(FrozenLearner(), Knows())
    result = run_bench([data], names, learner=learner, **given)
    assert "knows" in result.settings["student"]
    right = {r["strategy"]: r["label_accuracy"] for r in result.records}
    assert right["goldloop-fine-tuned"] > right["goldloop"]
    plain = run_bench([data], ["goldloop"], learner=FrozenLearner(), **given).records
    assert right["goldloop"] == {r["strategy"]: r["label_accuracy"] for r in plain}["goldloop"]
