"""The default learning rate fits the encoder, by name or by size."""

import json

import pytest

from loop.student.encoder_student import EncoderStudent
from loop.student.learning_rate import BASE, fitting_rate, rate_by_size


def config(hidden, layers, **more):
    return {"hidden_size": hidden, "num_hidden_layers": layers} | more


@pytest.mark.parametrize(
    ("encoder", "rate"),
    [
        ("roberta-base", 2e-5),
        ("FacebookAI/roberta-large", 1e-5),
        ("minilm", 1e-4),
        ("mpnet", 2e-5),
        ("sentence-transformers/all-MiniLM-L6-v2", 1e-4),
        ("google/electra-small-discriminator", 3e-4),
    ],
)
def test_known_encoders_have_the_rate_of_their_authors(encoder, rate):
    found = fitting_rate(encoder)
    assert found.value == rate
    assert found.why == f"fits {encoder.rpartition('/')[2]}"


@pytest.mark.parametrize(
    ("found", "rate"),
    [
        (config(768, 12), BASE),  # roberta-base without its name
        (config(1024, 24), 1e-5),
        (config(384, 6), 1e-4),  # MiniLM
        ({"dim": 768, "n_layers": 6, "model_type": "distilbert"}, 5e-5),
        (config(256, 4), 3e-4),
        (config(32, 2), 1e-3),
        (config(768, 12, model_type="electra"), 1e-4),
        (config("768", None), BASE),
        ({}, BASE),
    ],
)
def test_others_have_the_rate_of_their_size(found, rate):
    assert rate_by_size(found).value == pytest.approx(rate)


def test_smaller_encoders_never_take_smaller_steps():
    rates = [rate_by_size(config(64 * m, 2 + m)).value for m in range(1, 20)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > BASE > rates[-1]


def test_an_encoder_folder_is_read_for_its_size_and_a_given_rate_wins(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config(384, 6)))
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert EncoderStudent(tmp_path).lr == 1e-4
    assert EncoderStudent(tmp_path, lr=3e-5).lr == 3e-5
    assert EncoderStudent(tmp_path).revision == EncoderStudent(tmp_path, lr=1e-4).revision
    (tmp_path / "config.json").write_text("{")
    assert fitting_rate("x", tmp_path).value == BASE
