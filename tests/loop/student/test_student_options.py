"""What users may set of the student: best epoch, windows, class weights, warm start."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from tiny_encoder import FILLERS, LABELS, WORDS, fit, make_texts, tiny_student, training_set

from loop.ports import KnownTexts, TrainingSet
from loop.student.encoder_student import EncoderStudent

pytestmark = pytest.mark.usefixtures("one_thread")


def record_of(folder):
    return json.loads((folder / "goldloop.json").read_text())


# the best epoch


@pytest.fixture
def dev():
    return KnownTexts(*make_texts(60, seed=3))


@pytest.mark.parametrize(
    ("f1", "kept_epoch"), [((0.3, 0.9, 0.5), 1), ((0.5, 0.5, 0.1), 1), ((0.1, 0.2, 0.9), 2)]
)
def test_the_epoch_of_the_best_dev_f1_is_kept_the_later_of_equals(
    tiny, dev, tmp_path, monkeypatch, f1, kept_epoch
):
    from loop.student import train_seed as training
    from loop.student.inference import predict

    seen, real = [], training.text_probs

    def watched(*args):
        seen.append(real(*args))
        return seen[-1]

    scores = iter(f1)
    monkeypatch.setattr(training, "text_probs", watched)
    monkeypatch.setattr(training, "macro_f1", lambda *_: next(scores))
    texts, y = make_texts(60)
    kept = tmp_path / "kept"
    student = tiny_student(tiny, epochs=3, checkpoint="best")
    train = training_set(texts, y, dev=dev)
    found = fit(student, train, dev.texts, keep={0: kept})[0].probs
    assert len(seen) == 5  # one evaluation an epoch, the result, and texts that it learned from
    assert np.array_equal(found, seen[kept_epoch])
    assert not np.array_equal(seen[0], seen[1])
    again = predict(kept, dev.texts, device="cpu", precision="fp32")
    np.testing.assert_allclose(again, found, atol=2e-5)
    assert record_of(kept)["dev_macro_f1"] == list(f1)
    assert record_of(kept)["checkpoint"] == "best"
    if kept_epoch == 2:  # looking at the dev texts does not disturb training
        last = fit(tiny_student(tiny, epochs=3), train, dev.texts)[0].probs
        assert np.array_equal(found, last)


def test_dev_f1_is_that_of_the_kept_model(tiny, dev, tmp_path):
    from sklearn.metrics import f1_score

    texts, y = make_texts(120)
    student = tiny_student(tiny, epochs=4, checkpoint="best")
    train = training_set(texts, y, dev=dev)
    result = fit(student, train, dev.texts, keep={0: tmp_path / "kept"})[0]
    found = f1_score(dev.y, result.probs.argmax(1), average="macro")
    assert found == pytest.approx(max(record_of(result.path)["dev_macro_f1"]))


def test_macro_f1_is_that_of_scikit_learn():
    from sklearn.metrics import f1_score

    from loop.student.train_seed import macro_f1

    rng = np.random.default_rng(0)
    for k in (2, 3, 6):
        for n in (1, 7, 50):
            y, chosen = rng.integers(0, k, (2, n))
            assert macro_f1(y, chosen) == pytest.approx(f1_score(y, chosen, average="macro"))


@pytest.mark.parametrize("n", [0, 49])
def test_too_few_dev_texts_keep_the_last_epoch_and_say_so(tiny, n):
    texts, y = make_texts(40)
    dev = KnownTexts(*make_texts(n, seed=3)) if n else None
    said = []
    student = tiny_student(tiny, epochs=2, checkpoint="best")
    train = training_set(texts, y, dev=dev)
    found = fit(student, train, texts, seeds=(0, 1), say=said.append)
    fit(student, train, texts, say=said.append)
    (line,) = said
    assert f"there are {n}, fewer than 50: the last epoch is kept" in line
    last = fit(tiny_student(tiny, epochs=2), train, texts)
    assert np.array_equal(found[0].probs, last[0].probs)


def test_dev_classes_are_checked(tiny):
    texts, y = make_texts(60)
    student = tiny_student(tiny, checkpoint="best")
    for bad in (y[:-1], np.full(60, 3), np.full(60, -1)):
        with pytest.raises(ValueError, match=r"dev needs 60 classes in 0\.\.2"):
            fit(student, training_set(texts, y, dev=KnownTexts(texts, bad)), [])


# long texts


def test_windows_cover_every_token_and_overlap_by_a_quarter(tiny):
    from loop.student.encoder_files import load_tokenizer
    from loop.student.inference import tokenise

    tokenizer = load_tokenizer(tiny)
    words = [f"w{i}" for i in range(40)]
    tokens = tokenise(tokenizer, ["w1 w2", " ".join(words), ""], 18, "windows")
    assert tokens.n == 3
    assert tokens.text.tolist() == [0, 1, 1, 1, 2]
    assert [len(row) for row in tokens.rows] == [4, 18, 18, 18, 2]
    for row in tokens.rows:
        assert (row[0], row[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    seen = [tokenizer.convert_ids_to_tokens(row[1:-1]) for row in tokens.rows[1:4]]
    assert seen == [words[:16], words[12:28], words[24:]]
    np.testing.assert_allclose(tokens.share, [1, 1 / 3, 1 / 3, 1 / 3, 1])
    values = np.array([[1.0], [3.0], [6.0], [0.0], [5.0]])
    np.testing.assert_allclose(tokens.mean(values), [[1], [3], [5]])
    some = tokens.take(np.array([2, 1, 1]))
    assert some.text.tolist() == [0, 1, 1, 1, 2, 2, 2]
    assert np.array_equal(some.rows[4], tokens.rows[1])
    steps = []
    progress = some.per_text(steps.append)
    for rows in (2, 4, 1, 7):
        progress(rows)
    assert (sum(steps), min(steps) >= 0) == (6, True)
    assert tokenise(tokenizer, [], 18, "windows").n == 0


def long_texts(n, seed):
    """Texts of 45 words whose class shows only in the middle."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    texts = []
    for c in y:
        words = [str(w) for w in rng.choice(FILLERS, 45)]
        words[10:14] = [str(w) for w in rng.choice(WORDS[LABELS[c]], 4)]
        texts.append(" ".join(words))
    return texts, y


def test_windows_read_what_head_and_tail_leave_out(tiny, tmp_path):
    from loop.student.inference import predict

    texts, y = long_texts(160, 0)
    test_texts, test_y = long_texts(60, 1)
    kept, steps = tmp_path / "kept", []
    right = {}
    for mode in ("head_tail", "windows"):
        student = tiny_student(tiny, max_tokens=20, long_texts=mode)
        steps.clear()
        probs = fit(
            student,
            training_set(texts, y),
            test_texts,
            keep={0: kept},
            progress=steps.append,
        )[0].probs
        np.testing.assert_allclose(probs.sum(1), 1)
        right[mode] = (probs.argmax(1) == test_y).mean()
        assert sum(steps) == 14 * 160
        assert record_of(kept)["trained_texts"] == 160
        done = []
        again = predict(kept, test_texts, device="cpu", precision="fp32", progress=done.append)
        np.testing.assert_allclose(again, probs, atol=2e-5)
        assert sum(done) == 60
    assert right["windows"] > 0.8 > 0.6 > right["head_tail"]
    assert student.embed(test_texts).shape == (60, 32)


def test_a_temperature_on_windows_is_one_on_texts():
    from loop.student.inference import Tokens
    from strategies.calibrate import with_temperature

    row = np.zeros(3, dtype=np.int64)
    tokens = Tokens([row] * 5, np.array([0, 0, 0, 1, 2]), 3)
    probs = np.random.default_rng(0).dirichlet(np.ones(4), 5)
    before = with_temperature(tokens.together(probs), 2.5)
    after = tokens.together(with_temperature(probs, 2.5))
    np.testing.assert_allclose(before, after, atol=1e-12)
    np.testing.assert_allclose(after.sum(1), 1)
    np.testing.assert_allclose(tokens.together(probs)[1:], probs[3:], atol=1e-12)


def test_a_text_counts_once_however_many_windows_it_has(tiny):
    """Six windows of one text say a, a text like each of them says b: neither wins."""
    long, short = " ".join(["story"] * 50), " ".join(["story"] * 10)
    train = training_set([long, short] * 60, np.tile([0, 1], 60), k=2)
    student = tiny_student(tiny, epochs=4, max_tokens=12, long_texts="windows")
    probs = fit(student, train, [long, short], labels=("a", "b"))[0].probs
    np.testing.assert_allclose(probs, 0.5, atol=0.2)  # windows counted whole: 0.86


# class weights


def test_balancing_weights_are_inverse_frequencies_of_mean_one():
    from loop.student.train_seed import balancing_weights

    y = np.array([[1.0, 0, 0], [1, 0, 0], [0.5, 0.5, 0], [0, 1, 0]])
    weight = np.array([1.0, 1.0, 2.0, 0.5])
    found = balancing_weights(y, weight)
    np.testing.assert_allclose(found, [4.5 / (2 * 3), 4.5 / (2 * 1.5), 1])
    assert (weight[:, None] * y * found).sum() == pytest.approx(weight.sum())


def test_class_weights_even_out_what_texts_do_not_tell(tiny):
    texts = ["the film was a story"] * 80
    y = np.array(([0] * 9 + [1]) * 8)
    train = training_set(texts, y, k=2)
    probs = {
        mode: fit(tiny_student(tiny, class_weights=mode), train, texts[:1], labels=("a", "b"))
        for mode in ("none", "balanced")
    }
    assert probs["none"][0].probs[0, 1] == pytest.approx(0.1, abs=0.06)
    assert probs["balanced"][0].probs[0, 1] == pytest.approx(0.5, abs=0.15)


# warm start


def test_a_seed_goes_on_from_a_saved_model(tiny, tmp_path):
    texts, y = make_texts(120)
    kept, again = tmp_path / "one", tmp_path / "two"
    train = training_set(texts, y)
    first = fit(tiny_student(tiny), train, texts, keep={0: kept})[0].probs
    still = tiny_student(tiny, epochs=1, lr=1e-12)
    warm = fit(still, train, texts, keep={0: again}, start={0: kept})[0].probs
    np.testing.assert_allclose(warm, first, atol=2e-5)
    assert [record_of(k)["warm_start"] for k in (kept, again)] == [False, True]
    cold = fit(still, train, texts)[0].probs
    assert np.abs(cold - first).max() > 0.2


def test_a_model_of_other_labels_or_another_encoder_is_no_start(tiny, tmp_path):
    from tiny_encoder import save_encoder

    texts, y = make_texts(40)
    train = training_set(texts, y)
    kept = tmp_path / "kept"
    fit(tiny_student(tiny, epochs=1), train, [], keep={0: kept})
    said = []
    student = tiny_student(tiny, epochs=1)
    swapped = (LABELS[1], LABELS[0], LABELS[2])
    cold = fit(student, train, texts, labels=swapped)[0].probs
    found = fit(student, train, texts, labels=swapped, start={0: kept}, say=said.append)[0].probs
    assert np.array_equal(found, cold)
    other = tiny_student(save_encoder(tmp_path / "other", "mpnet"), epochs=1)
    fit(other, train, texts, start={0: kept}, say=said.append)
    assert len(said) == 2
    assert all("another encoder or other labels; its seed starts from" in line for line in said)


@pytest.mark.parametrize("damage", ["gone", "no record", "no weights", "cut", "zeros"])
def test_a_model_that_is_damaged_is_no_start(tiny, tmp_path, damage):
    texts, y = make_texts(40)
    train = training_set(texts, y)
    kept = tmp_path / "kept"
    student = tiny_student(tiny, epochs=1)
    fit(student, train, [], keep={0: kept})
    weights = kept / "model.safetensors"
    if damage == "gone":
        shutil.rmtree(kept)
    elif damage == "no record":
        (kept / "goldloop.json").write_text("{")
    elif damage == "no weights":
        weights.unlink()
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        weights.write_bytes(bytes(weights.stat().st_size))
    said = []
    cold = fit(student, train, texts)[0].probs
    found = fit(student, train, texts, start={0: kept}, say=said.append)[0].probs
    assert np.array_equal(found, cold)
    assert said == [
        f"The model in {kept} is missing or damaged; its seed starts from the pretrained weights."
    ]


def test_unknown_choices_are_refused(tiny):
    for name, value in (
        ("long_texts", "middle"),
        ("class_weights", "even"),
        ("checkpoint", "first"),
    ):
        with pytest.raises(ValueError, match=f"{name} must be one of .*, got '{value}'"):
            EncoderStudent(tiny, **{name: value})
    revisions = {
        EncoderStudent(tiny, **changed).revision
        for changed in (
            {},
            {"long_texts": "windows"},
            {"class_weights": "balanced"},
            {"checkpoint": "best"},
        )
    }
    assert len(revisions) == 4


def test_training_sets_without_dev_texts_are_as_before():
    assert TrainingSet(["a"], np.eye(2)[:1], np.ones(1)).dev is None
