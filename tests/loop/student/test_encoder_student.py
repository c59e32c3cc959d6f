"""The student: a tiny random BERT for every rule, the real MiniLM where the name says slow."""

from __future__ import annotations

import errno
import gc
import json
import os
import resource
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from tiny_encoder import LABELS, fit, make_texts, save_encoder, tiny_student, training_set

from loop.errors import StudentError
from loop.ports import Draws, KnownTexts, TrainingSet
from loop.student.encoder_student import EncoderStudent

pytestmark = pytest.mark.usefixtures("one_thread")


# learning


def test_learns_and_reports_progress(tiny):
    texts, y = make_texts(240)
    test_texts, test_y = make_texts(60, seed=1)
    steps = []
    result = fit(tiny_student(tiny), training_set(texts, y), test_texts, progress=steps.append)[0]
    assert result.probs.shape == (60, 3)
    np.testing.assert_allclose(result.probs.sum(1), 1)
    assert (result.probs.argmax(1) == test_y).mean() > 0.9
    assert sum(steps) == 14 * 240
    assert result.path is None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_same_seed_same_predictions_other_seed_others(tiny, precision):
    texts, y = make_texts(60)
    student = tiny_student(tiny, epochs=1, precision=precision)
    first = fit(student, training_set(texts, y), texts[:20], seeds=(3, 4))
    again = fit(student, training_set(texts, y), texts[:20], seeds=(4,))
    assert np.array_equal(first[4].probs, again[4].probs)
    assert not np.array_equal(first[3].probs, first[4].probs)


def test_what_a_seed_draws_can_be_taken_apart(tiny):
    texts, y = make_texts(60)
    weight = np.ones(60)
    weight[:5] = 0
    rows = np.random.default_rng(0).integers(0, 60, 60)
    draws = {
        10: Draws(3, 3),
        11: Draws(4, 3),
        12: Draws(3, 4),
        13: Draws(3, 3, rows),
        14: Draws(3, 3, rows[rows >= 5]),
    }
    found = {}
    student = tiny_student(tiny, epochs=1)
    student.fit(
        training_set(texts, y, weight=weight),
        texts[:20],
        LABELS,
        (3, *draws),
        keep={},
        on_seed=lambda result: found.update({result.seed: result.probs}),
        draws=draws,
    )
    assert np.array_equal(found[10], found[3]), "a seed draws everything by its own number"
    assert np.array_equal(found[14], found[13]), "rows of weight 0 are left out of a draw"
    for one, other in combinations((10, 11, 12, 13), 2):
        assert not np.array_equal(found[one], found[other])
    with pytest.raises(StudentError, match="none with a positive weight"):
        student.fit(
            training_set(texts, y, weight=weight),
            [],
            LABELS,
            (1,),
            keep={},
            on_seed=print,
            draws={1: Draws(1, 1, np.arange(5))},
        )


@pytest.mark.parametrize(
    "kind", ["bert", "roberta", "distilroberta", "distilbert", "modernbert", "mpnet", "deberta"]
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_families_of_encoders_are_plain_pipelines_once_saved(kind, tmp_path):
    from transformers import pipeline

    from loop.student.inference import predict

    texts, y = make_texts(40)
    folder = save_encoder(tmp_path / kind, kind)
    kept = tmp_path / "kept"
    student = tiny_student(folder, epochs=3)
    probs = fit(student, training_set(texts, y), texts, keep={0: kept})[0].probs
    again = predict(kept, texts, device="cpu", precision="fp32")
    np.testing.assert_allclose(again, probs, atol=2e-5)
    answers = pipeline("text-classification", str(kept), device="cpu", top_k=None)(texts)
    by_name = [{a["label"]: a["score"] for a in answer} for answer in answers]
    named = np.array([[scores[name] for name in LABELS] for scores in by_name])
    np.testing.assert_allclose(named, probs, atol=2e-5)
    assert student.embed(texts[:3]).shape == (3, 32)


def test_a_class_absent_from_training_keeps_its_column(tiny):
    texts, y = make_texts(40)
    y = np.where(y == 2, 0, y)
    result = fit(tiny_student(tiny, epochs=1), training_set(texts, y), texts)[0]
    assert result.probs.shape == (40, 3)
    one_class = fit(tiny_student(tiny, epochs=1), training_set(texts, y * 0), texts)[0]
    assert np.isfinite(one_class.probs).all()


def test_weight_zero_leaves_out_and_scale_does_not_matter(tiny):
    texts, y = make_texts(60)
    half = np.arange(60) < 30
    student = tiny_student(tiny, epochs=1)
    only = fit(student, training_set(texts[:30], y[:30]), texts)[0]
    wrong = np.where(half, y, 0)
    left_out = fit(student, training_set(texts, wrong, weight=np.where(half, 5.0, 0.0)), texts)[0]
    assert np.array_equal(only.probs, left_out.probs)


def test_weights_decide_between_contradicting_labels(tiny):
    texts, y = make_texts(120)
    weight = np.concatenate([np.full(120, 1.0), np.full(120, 0.05)])
    both = training_set([*texts, *texts], np.concatenate([y, (y + 1) % 3]), weight=weight)
    test_texts, test_y = make_texts(40, seed=2)
    trusted = fit(tiny_student(tiny), both, test_texts)[0].probs.argmax(1)
    swapped = TrainingSet(both.texts, both.y, weight[::-1].copy())
    other = fit(tiny_student(tiny), swapped, test_texts)[0].probs.argmax(1)
    assert (trusted == test_y).mean() > 0.8
    assert (other == (test_y + 1) % 3).mean() > 0.8


def test_soft_labels_are_learnt_as_probabilities(tiny):
    texts, _ = make_texts(160)
    soft = np.tile([0.6, 0.3, 0.1], (160, 1))
    probs = fit(tiny_student(tiny), TrainingSet(texts, soft, np.ones(160)), texts[:20])[0].probs
    np.testing.assert_allclose(probs.mean(0), [0.6, 0.3, 0.1], atol=0.08)


def test_no_evaluation_texts(tiny):
    texts, y = make_texts(20)
    assert fit(tiny_student(tiny, epochs=1), training_set(texts, y), [])[0].probs.shape == (0, 3)


# shortcuts


def test_shortcuts_leave_logits_as_they_are(tiny):
    import torch

    from loop.student.encoder_files import load_classifier, load_tokenizer
    from loop.student.inference import encode, pad
    from loop.student.speedups import first_token_only, trim_vocabulary

    texts, _ = make_texts(12)
    ids = encode(load_tokenizer(tiny), texts, 32)
    torch.manual_seed(0)
    model = load_classifier(tiny, LABELS, attention="eager").eval()
    table = model.get_input_embeddings().weight.detach().clone()
    tokens, mask = pad(ids, 0, torch.device("cpu"))
    before = model(input_ids=tokens, attention_mask=mask).logits
    trimmed = trim_vocabulary(model, ids, 0)
    assert trimmed is not None
    assert len(model.get_input_embeddings().weight) < len(table)
    new_ids = [trimmed.ids(row) for row in ids]
    assert first_token_only(model, new_ids, trimmed.pad_id)
    tokens, mask = pad(new_ids, trimmed.pad_id, torch.device("cpu"))
    torch.testing.assert_close(model(input_ids=tokens, attention_mask=mask).logits, before)
    trimmed.restore()
    assert torch.equal(model.get_input_embeddings().weight, table)


def test_no_model_outlives_its_training(tiny):
    import torch

    texts, y = make_texts(40)
    gc.collect()
    gc.disable()  # a model that refers to itself stays until the collector comes
    try:
        fit(tiny_student(tiny, epochs=1), training_set(texts, y), texts[:4])
        left = [o for o in gc.get_objects() if type(o) is torch.nn.Parameter]
    finally:
        gc.enable()
    assert not left


def test_first_token_is_taken_for_bert_and_roberta_only(tmp_path, tiny):
    from loop.student.encoder_files import load_classifier, load_tokenizer
    from loop.student.inference import encode
    from loop.student.speedups import first_token_only

    texts, _ = make_texts(6)
    for kind, taken in (("bert", True), ("roberta", True), ("mpnet", False), ("distilbert", False)):
        folder = save_encoder(tmp_path / kind, kind)
        tokenizer = load_tokenizer(folder)
        model = load_classifier(folder, LABELS, attention="eager")
        ids = encode(tokenizer, texts, 32)
        assert first_token_only(model, ids, tokenizer.pad_token_id) is taken, kind


def test_byte_dropout_keeps_rate_expectation_and_gradient():
    import torch
    import torch.nn.functional as F  # noqa: N812

    from loop.student.speedups import ByteDropout

    x = torch.ones(200, 501, requires_grad=True)
    with ByteDropout(0):
        out = F.dropout(x, 0.1, True)
        assert F.dropout(x, 0.1, False) is x
        assert F.dropout(x, 1.0, True).abs().sum() == 0
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())
    assert float((out == 0).float().mean()) == pytest.approx(26 / 256, abs=0.004)
    assert float(out.detach().mean()) == pytest.approx(1, abs=0.005)
    with ByteDropout(0):
        assert torch.equal(F.dropout(x, 0.1, True), out)


def test_long_texts_keep_head_and_tail(tiny):
    from loop.student.encoder_files import load_tokenizer
    from loop.student.inference import encode

    tokenizer = load_tokenizer(tiny)
    long = " ".join(f"w{i}" for i in range(40))
    (whole,) = encode(tokenizer, [long], 64)
    (cut,) = encode(tokenizer, [long], 18)
    assert (len(whole), len(cut)) == (42, 18)
    assert cut[0] == tokenizer.cls_token_id
    assert cut[-1] == tokenizer.sep_token_id
    assert tokenizer.convert_ids_to_tokens(cut[1:5]) == ["w0", "w1", "w2", "w3"]
    assert tokenizer.convert_ids_to_tokens(cut[5:7]) == ["w28", "w29"]
    assert encode(tokenizer, ["w1 w2"], 18)[0].tolist() == whole[[0, 2, 3, -1]].tolist()
    assert encode(tokenizer, [], 18) == []


@pytest.mark.parametrize("long_texts", ["head_tail", "windows"])
def test_half_a_surrogate_pair_is_read_as_the_sign_that_stands_for_it_in_files(tiny, long_texts):
    from loop.student.encoder_files import load_tokenizer
    from loop.student.inference import tokenise

    tokenizer = load_tokenizer(tiny)
    halves = tokenise(tokenizer, ["w1 \ud800 w2", "\udfff", "w1 \U0001f600"], 64, long_texts)
    whole = tokenise(tokenizer, ["w1 \ufffd w2", "\ufffd", "w1 \U0001f600"], 64, long_texts)
    for one, other in zip(halves.rows, whole.rows, strict=True):
        assert one.tolist() == other.tolist()


# embeddings


def test_embeddings_are_means_over_tokens(tiny):
    import torch

    from loop.student.encoder_files import load_encoder, load_tokenizer

    texts, _ = make_texts(9)
    student = tiny_student(tiny)
    seen = []
    found = student.embed([*texts, ""], progress=seen.append)
    assert found.dtype == np.float32
    assert found.shape == (10, 32)
    assert sum(seen) == 10
    batch = load_tokenizer(tiny)(texts[4], return_tensors="pt")
    with torch.inference_mode():
        hidden = load_encoder(tiny).eval()(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        )
    np.testing.assert_allclose(found[4], hidden.last_hidden_state[0].mean(0), atol=1e-5)
    assert np.array_equal(found, student.embed([*texts, ""]))
    assert student.embed([]).shape == (0, 32)


# saving


def test_saved_folder_is_a_plain_pipeline(tiny, tmp_path):
    from transformers import pipeline

    from loop.student.inference import predict

    texts, y = make_texts(120)
    test_texts, _ = make_texts(30, seed=5)
    kept = tmp_path / "models" / "round-0"
    student = tiny_student(tiny)
    result = fit(student, training_set(texts, y), test_texts, keep={0: kept})[0]
    assert result.path == kept
    answers = pipeline("text-classification", str(kept), device="cpu")(test_texts)
    assert [a["label"] for a in answers] == [LABELS[c] for c in result.probs.argmax(1)]
    np.testing.assert_allclose([a["score"] for a in answers], result.probs.max(1), atol=2e-5)
    again = predict(kept, test_texts, device="cpu", precision="fp32")
    np.testing.assert_allclose(again, result.probs, atol=2e-5)
    record = json.loads((kept / "goldloop.json").read_text())
    assert record["labels"] == list(LABELS)
    assert record["student"] == student.revision
    assert (record["seed"], record["trained_texts"]) == (0, 120)
    assert list(kept.parent.iterdir()) == [kept]
    assert not list(kept.glob("*.bin"))
    # a second training replaces the folder, and an old head of any size makes way for a new one
    fit(tiny_student(tiny, epochs=1), training_set(texts, y), [], keep={0: kept})
    two = fit(tiny_student(kept, epochs=1), training_set(texts, y % 2, 2), texts, labels=("a", "b"))
    assert two[0].probs.shape == (120, 2)
    seeds = fit(tiny_student(kept, epochs=1, lr=1e-9), training_set(texts, y), texts, seeds=(1, 2))
    assert np.abs(seeds[1].probs - seeds[2].probs).max() > 1e-3


def test_full_disk_leaves_no_half_model_and_keeps_the_old_one(tiny, tmp_path):
    texts, y = make_texts(20)
    kept = tmp_path / "model"
    student = tiny_student(tiny, epochs=1)
    fit(student, training_set(texts, y), [], keep={0: kept})
    before = {p.name: p.read_bytes() for p in kept.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # larger files fail to be written
    try:
        with pytest.raises(StudentError, match=r"cannot be saved to .*nothing was left there"):
            fit(student, training_set(texts, y), [], seeds=(1,), keep={1: kept})
        with pytest.raises(StudentError, match="cannot be saved"):
            fit(student, training_set(texts, y), [], keep={0: tmp_path / "new"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {p.name: p.read_bytes() for p in kept.iterdir()} == before
    assert list(tmp_path.iterdir()) == [kept]


def test_no_space_left_is_named(tiny, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", refuse)
    texts, y = make_texts(20)
    with pytest.raises(StudentError, match="No space left on device"):
        fit(tiny_student(tiny, epochs=1), training_set(texts, y), [], keep={0: tmp_path / "m"})
    assert not list(tmp_path.iterdir())


# what goes wrong


def test_divergence_is_one_sentence(tiny):
    texts, y = make_texts(40)
    with pytest.raises(StudentError, match=r"Training diverged: .*NaN.* \(seed 5, lr 1e\+30"):
        fit(tiny_student(tiny, lr=1e30), training_set(texts, y), texts, seeds=(5,))


def test_missing_encoder_names_it_and_says_what_to_do(tmp_path):
    with pytest.raises(StudentError, match="'no-such-encoder' is neither a folder nor in the"):
        EncoderStudent("no-such-encoder", cache_dir=tmp_path).embed(["a"])
    with pytest.raises(StudentError, match=r"does not exist; check student\.encoder"):
        EncoderStudent("/no/such/folder").embed(["a"])
    with pytest.raises(StudentError, match=r"no config\.json"):
        EncoderStudent(tmp_path).embed(["a"])


def test_pickled_weights_are_refused(tiny, tmp_path):
    import shutil

    folder = tmp_path / "pickled"
    shutil.copytree(tiny, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(StudentError, match="no safetensors weights, and pickled ones are refused"):
        EncoderStudent(folder).embed(["a"])
    (folder / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(StudentError, match="cannot be loaded"):
        EncoderStudent(folder).embed(["a"])


def test_custom_code_is_never_run(tiny, tmp_path):
    import shutil

    folder = tmp_path / "custom"
    shutil.copytree(tiny, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "m.C", "AutoModel": "m.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "m.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(StudentError, match="cannot be loaded"):
        EncoderStudent(folder).embed(["a"])
    assert not (tmp_path / "ran").exists()


def test_predict_wants_a_model_of_ours(tiny):
    from loop.student.inference import predict

    with pytest.raises(StudentError, match=r"no readable goldloop\.json"):
        predict(tiny, ["a"])


def test_bad_arguments_are_refused(tiny):
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        EncoderStudent(tiny, epochs=0)
    with pytest.raises(ValueError, match="precision must be one of"):
        EncoderStudent(tiny, precision="int8")
    with pytest.raises(ValueError, match="need lr > 0"):
        EncoderStudent(tiny, lr=0)
    student = tiny_student(tiny)
    texts, y = make_texts(6)
    with pytest.raises(ValueError, match=r"need y \(6, 3\)"):
        fit(student, training_set(texts, y % 2, k=2), [])
    with pytest.raises(ValueError, match="sum to 1"):
        fit(student, TrainingSet(texts, np.ones((6, 3)), np.ones(6)), [])
    with pytest.raises(ValueError, match="finite and >= 0"):
        fit(student, training_set(texts, y, weight=-np.ones(6)), [])
    with pytest.raises(ValueError, match="different names"):
        fit(student, training_set(texts, y * 0, k=1), [], labels=("a",))
    with pytest.raises(ValueError, match="seeds must differ"):
        fit(student, training_set(texts, y), [], seeds=(1, 1))
    with pytest.raises(StudentError, match="no text to train on"):
        fit(student, training_set(texts, y, weight=np.zeros(6)), [])
    with pytest.raises(StudentError, match=r"'cuda:99' cannot.*set student.device to"):
        fit(tiny_student(tiny, device="cuda:99"), training_set(texts, y), [])


def test_revision_follows_weights_and_settings_but_not_the_device(tiny, tmp_path):
    same = EncoderStudent(tiny).revision
    assert EncoderStudent(tiny, device="cpu", workers=3).revision == same
    assert EncoderStudent(tiny, lr=1e-4).revision != same
    other = save_encoder(tmp_path / tiny.name, "roberta")
    assert EncoderStudent(other).revision != same


# processes


def every_option(executor, tiny):
    """What the options change does not depend on the number of processes either."""
    texts, y = make_texts(40)
    texts = [" ".join([text] * 4) for text in texts]  # longer than a window
    dev = KnownTexts(*make_texts(60, seed=3))
    train = replace(training_set(texts, y), dev=dev)
    options = {
        "epochs": 2,
        "max_tokens": 20,
        "long_texts": "windows",
        "class_weights": "balanced",
        "checkpoint": "best",
    }
    alone = fit(tiny_student(tiny, **options), train, texts, seeds=(0, 1))
    student = tiny_student(tiny, **options, workers=2, executor=executor)
    found = fit(student, train, texts, seeds=(0, 1))
    for seed in (0, 1):
        assert np.array_equal(found[seed].probs, alone[seed].probs)


def test_processes_equal_sequential_training_and_stay_alive(tiny, tmp_path):
    texts, y = make_texts(60)
    train = training_set(texts, y)
    alone = fit(tiny_student(tiny, epochs=2), train, texts, seeds=(0, 1, 2))
    student = tiny_student(tiny, epochs=2, workers=2)
    steps = []

    def processes():
        return student._executor._crew.workers

    try:
        kept = tmp_path / "kept"
        found = fit(student, train, texts, (0, 1, 2), keep={2: kept}, progress=steps.append)
        for seed in (0, 1, 2):
            assert np.array_equal(found[seed].probs, alone[seed].probs)
        assert (kept / "goldloop.json").is_file()
        assert found[2].path == kept
        assert sum(steps) == 3 * 2 * 60
        pids = [w.pid for w in processes()]
        again = fit(student, train, texts, seeds=(1,))
        assert np.array_equal(again[1].probs, alone[1].probs)
        assert [w.pid for w in processes()] == pids
        every_option(student._executor, tiny)
        assert [w.pid for w in processes()] == pids
        blocked = tmp_path / "file"
        blocked.write_text("no folder")
        with pytest.raises(StudentError, match="cannot be saved"):
            fit(student, train, texts, seeds=(1,), keep={1: blocked / "model"})
        assert not processes()
    finally:
        student.close()


# the real encoder


@pytest.fixture(scope="module")
def minilm():
    from connectors.downloads.models import minilm_dir

    return minilm_dir()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.long)])
def test_minilm_learns_and_its_saved_model_agrees(minilm, tmp_path, workers):
    from transformers import pipeline

    texts, y = make_texts(160)
    test_texts, test_y = make_texts(80, seed=9)
    kept = tmp_path / "kept"
    student = EncoderStudent(minilm, lr=1e-4, epochs=2, workers=workers, device="cpu")
    seeds = (0, 1) if workers > 1 else (1,)
    try:
        found = fit(student, training_set(texts, y), test_texts, seeds=seeds, keep={1: kept})
    finally:
        student.close()
    for result in found.values():
        assert (result.probs.argmax(1) == test_y).mean() > 0.9
    if workers > 1:
        alone = EncoderStudent(minilm, lr=1e-4, epochs=2, workers=1, device="cpu")
        again = fit(alone, training_set(texts, y), test_texts, seeds=(1,))[1]
        assert np.array_equal(again.probs, found[1].probs)
    sure = np.sort(found[1].probs, 1)[:, -1] - np.sort(found[1].probs, 1)[:, -2] > 0.1
    answers = pipeline("text-classification", str(kept), device="cpu")(test_texts)
    named = np.array([a["label"] for a in answers])
    assert (named == np.array(LABELS)[found[1].probs.argmax(1)])[sure].all()
    assert sure.mean() > 0.9


@pytest.mark.slow
def test_minilm_embeddings_place_meaning(minilm):
    student = EncoderStudent(minilm, device="cpu")
    a, b, c = student.embed(["The cat sat.", "A kitten was sitting.", "Shares fell on Monday."])

    def cosine(x, y):
        return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))

    assert cosine(a, b) > 0.5 > cosine(a, c)
    full = EncoderStudent(minilm, device="cpu", precision="fp32").embed(["The cat sat."])[0]
    assert cosine(a, full) > 0.999
