"""What goes wrong while students train: one clear sentence each, and a campaign that continues."""

from __future__ import annotations

import errno
import json
import os
import shutil
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from campaigns import make
from jobs import Unruly
from tiny_encoder import fit, make_texts, tiny_student, training_set

from loop.errors import StudentError
from loop.round import RUN, run_round

# memory

OOM = "CUDA out of memory. Tried to allocate 2 GiB"

pytestmark = pytest.mark.usefixtures("one_thread")


def test_memory_running_out_halves_the_pass_says_so_and_keeps_the_batch(tiny, monkeypatch):
    """The same batches in smaller passes give the same model up to dropout; without it, equal."""
    import torch
    from transformers import BertForSequenceClassification

    texts, y = make_texts(48)
    monkeypatch.setattr("loop.student.train_seed.ByteDropout", lambda seed: nullcontext())
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda x, *a, **k: x)
    whole = fit(tiny_student(tiny, epochs=2), training_set(texts, y), texts)[0]
    real, most, said = BertForSequenceClassification.forward, [], []

    def crowded(self, input_ids=None, **rest):
        if self.training and len(input_ids) > 5:
            raise torch.OutOfMemoryError(OOM)
        most.append(len(input_ids) if self.training else 0)
        return real(self, input_ids=input_ids, **rest)

    monkeypatch.setattr(BertForSequenceClassification, "forward", crowded)
    student = tiny_student(tiny, epochs=2, executor=Unruly())  # whose workers all say it
    parts = fit(student, training_set(texts, y), texts, seeds=(0, 1), say=said.append)
    assert max(most) == 4
    np.testing.assert_allclose(parts[0].probs, whole.probs, atol=1e-4)
    assert said == [
        f"Memory does not hold {a} texts in one pass: continuing with {b}; a batch still has 16."
        for a, b in ((16, 8), (8, 4))
    ]


def test_memory_running_out_while_predicting_halves_the_pass(tiny, monkeypatch):
    import torch
    from transformers import BertForSequenceClassification, BertModel

    texts, y = make_texts(40)
    student = tiny_student(tiny, epochs=1)
    whole, embedded = fit(student, training_set(texts, y), texts)[0].probs, student.embed(texts)
    sizes = []

    def crowd(kind):
        real = kind.forward

        def crowded(self, input_ids=None, **rest):
            if not self.training and input_ids is not None:
                if len(input_ids) > 3:
                    raise torch.OutOfMemoryError(OOM)
                sizes.append(len(input_ids))
            return real(self, input_ids=input_ids, **rest)

        monkeypatch.setattr(kind, "forward", crowded)

    crowd(BertForSequenceClassification)
    parts = fit(student, training_set(texts, y), texts)[0].probs
    crowd(BertModel)
    assert max(sizes) == 3
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    np.testing.assert_allclose(student.embed(texts), embedded, atol=1e-5)

    def refuse(*_, **__):
        raise torch.OutOfMemoryError(OOM)

    monkeypatch.setattr(BertModel, "forward", refuse)
    with pytest.raises(StudentError, match=r"does not hold even one text of \d+ tokens"):
        student.embed(texts)


def test_memory_that_does_not_hold_one_text_or_the_model_is_one_sentence(tiny, monkeypatch):
    import torch
    from transformers import BertForSequenceClassification

    texts, y = make_texts(20)
    real = BertForSequenceClassification.forward

    def full(self, **rest):
        if self.training:
            raise torch.OutOfMemoryError(OOM)
        return real(self, **rest)

    def refuse(*_, **__):
        raise torch.OutOfMemoryError(OOM)

    with monkeypatch.context() as patch:
        patch.setattr(BertForSequenceClassification, "forward", full)
        with pytest.raises(StudentError, match="does not hold even one text of 256 tokens"):
            fit(tiny_student(tiny, epochs=1), training_set(texts, y), texts)
    monkeypatch.setattr(torch.optim.AdamW, "step", refuse)
    with pytest.raises(StudentError, match=r"does not hold encoder .* and its optimiser"):
        fit(tiny_student(tiny, epochs=1), training_set(texts, y), texts)


# labels


def test_a_class_without_texts_keeps_its_column_and_is_named_once(tiny):
    texts, y = make_texts(40)
    y = np.where(y == 2, 0, y)
    student, said = tiny_student(tiny, epochs=1), []
    for _ in range(2):
        result = fit(student, training_set(texts, y), texts, say=said.append)[0]
    assert result.probs.shape == (40, 3)
    assert said == [
        "No training text is labelled ugly: the students keep the class but cannot learn it."
    ]


def test_an_encoder_with_an_old_head_gets_a_new_one_and_says_so(tiny, tmp_path):
    texts, y = make_texts(40)
    kept, said = tmp_path / "kept", []
    fit(tiny_student(tiny, epochs=1), training_set(texts, y), [], keep={0: kept}, say=said.append)
    assert said == []  # a pretrained encoder has no head worth a word
    again = training_set(texts, y % 2, k=2)
    labels = ("yes", "no")
    found = fit(tiny_student(kept, epochs=1), again, texts, labels=labels, say=said.append)
    assert found[0].probs.shape == (40, 2)
    (line,) = said
    assert "was fine-tuned before, for the labels good, bad, ugly; its head is replaced" in line
    assert line.endswith("by a new one for yes, no.")


# encoders


def test_truncated_weights_are_one_sentence(tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    texts, y = make_texts(20)
    with pytest.raises(StudentError, match=r"Encoder .*cut cannot be loaded \(SafetensorError"):
        fit(tiny_student(folder, epochs=1), training_set(texts, y), [])


def test_a_tokenizer_without_padding_is_one_sentence(tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "bare")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings.pop("pad_token")
    path.write_text(json.dumps(settings))
    texts, y = make_texts(20)
    with pytest.raises(StudentError, match=r"bare has no padding token, .*; name one as pad_token"):
        fit(tiny_student(folder, epochs=1), training_set(texts, y), [])


# the campaign


def remove(folder, patch):
    shutil.rmtree(folder)


def break_weights(folder, patch):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def break_loss(folder, patch):
    patch.setattr("loop.student.train_seed.CLIP_NORM", float("nan"))


def break_disk(folder, patch):
    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr("transformers.PreTrainedModel.save_pretrained", refuse)


def break_memory(folder, patch):
    import torch

    def refuse(*_, **__):
        raise torch.OutOfMemoryError(OOM)

    patch.setattr(torch.optim.AdamW, "step", refuse)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (break_weights, "cannot be loaded"),
        (break_disk, "No space left on device"),
        pytest.param(break_loss, "Training diverged", marks=pytest.mark.long),
        pytest.param(break_memory, "its optimiser", marks=pytest.mark.long),
        pytest.param(remove, r"does not exist; check student\.encoder", marks=pytest.mark.long),
    ],
)
def test_a_campaign_waits_at_training_and_goes_on_once_it_is_mended(
    tiny, tmp_path, monkeypatch, broken, message
):
    """Before the first seed is trained and when it is saved; other faults in the long run."""
    folder = shutil.copytree(tiny, tmp_path / "encoder")
    section = {"seeds": 2, "references": [], "epochs": 1, "if_nothing_learned": "go on"}

    def campaign():
        ctx = make(
            tmp_path,
            student=section,
            strategy={"signals": ["entropy"], "repair": "keep"},
            rounds={
                "batch_size": 15,
                "rounds": 2,
                "audit": "uniform",
            },  # embeds nothing
        )
        ctx.parts = replace(ctx.parts, student=lambda: tiny_student(folder, epochs=1))
        return ctx

    ctx = campaign()
    with monkeypatch.context() as patch:
        broken(folder, patch)
        with pytest.raises(StudentError, match=message) as caught:
            run_round(ctx)
    assert str(caught.value).count("\n") == 0
    round_ = ctx.store.last_round("c")
    assert round_.stage == "train"
    labels, gold = ctx.store.training_labels(round_.id), ctx.store.gold("c")
    ctx.store.close()
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(tiny, folder)
    ctx = campaign()
    assert run_round(ctx).stage == "done"
    assert ctx.store.training_labels(round_.id) == labels
    assert ctx.store.gold("c") == gold
    assert sorted((r.arm, r.seed) for r in ctx.store.runs("c")) == [("loop", 0), ("loop", 1)]
    assert (tmp_path / "runs" / "models" / "round-1" / "model.safetensors").is_file()
    assert list((tmp_path / "runs" / "models").iterdir()) == [tmp_path / "runs/models/round-1"]
    ctx.store.close()


def test_the_user_of_a_campaign_hears_the_news(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(RUN, "measure", lambda *_: False)  # training is all that matters here
    ctx = make(
        tmp_path,
        student={
            "seeds": 2,
            "references": [],
            "epochs": 1,
            "checkpoint": "best",
            "if_nothing_learned": "go on",
        },
        strategy={"signals": ["entropy"], "repair": "keep"},
    )
    ctx.parts = replace(ctx.parts, student=lambda: tiny_student(tiny, epochs=1, checkpoint="best"))
    said = []
    ctx.say = said.append
    assert run_round(ctx).stage == "measure"
    n_dev = len(ctx.store.items("c", "dev"))
    assert n_dev > 0
    assert any(f"there are {n_dev}, fewer than 50" in line for line in said)
