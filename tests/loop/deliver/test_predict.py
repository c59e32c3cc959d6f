"""Labelling with saved models: the same labels as a pipeline, stability, damage told."""

import json
import shutil
import sys

import numpy as np
import pytest
from tiny_encoder import LABELS, make_texts, save_encoder

from loop.deliver.final_model import KIND
from loop.deliver.predict import Labeller, label_rows, prediction_columns
from loop.errors import StudentError
from loop.student.inference import load_whole


@pytest.fixture(autouse=True)
def _one_thread():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def save(folder, encoder, seed, **record):
    """An untrained classifier whose head is drawn by the seed; heads of chance often disagree."""
    import torch

    from loop.student.encoder_files import load_classifier, load_tokenizer, save_model

    torch.manual_seed(seed)
    model, tokenizer = load_classifier(encoder, LABELS), load_tokenizer(encoder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:  # far apart, so that texts and heads of chance differ
                parameter.normal_(std=0.3 if "classifier" in name else 0.2)
    tokenizer.model_max_length = 48
    save_model(model, tokenizer, folder, {"labels": list(LABELS), "max_tokens": 48} | record)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    encoder = save_encoder(tmp_path_factory.mktemp("encoder"))
    folder = tmp_path_factory.mktemp("models") / "final"
    names = [f"seeds/seed-{seed}" for seed in range(4)]
    save(folder, encoder, 2, kind=KIND, seeds=names, same_as=names[2])
    for seed, name in enumerate(names):
        save(folder / name, encoder, seed)
    return folder


@pytest.fixture
def final(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "final")
    return tmp_path / "final"


def labeller(folder, **rest):
    return Labeller(folder, device="cpu", precision="fp32", **rest)


def test_labels_and_probabilities_are_the_pipelines(final):
    from transformers import pipeline

    texts = make_texts(60)[0]
    found = labeller(final)(texts)
    answers = pipeline("text-classification", str(final), device="cpu", top_k=None)(texts)
    for row, answer in enumerate(answers):
        assert answer[0]["label"] == LABELS[found.y[row]]
        scores = {a["label"]: a["score"] for a in answer}
        np.testing.assert_allclose(found.probs[row], [scores[n] for n in LABELS], atol=2e-5)


def test_stability_is_the_share_of_seeds_that_agree(final):
    texts = make_texts(60)[0]
    found = labeller(final)(texts)
    each = [labeller(final / f"seeds/seed-{s}")(texts).y for s in range(4)]
    expected = np.mean([y == found.y for y in each], axis=0)
    np.testing.assert_allclose(found.stability, expected)
    assert 0.25 <= found.stability.min() < found.stability.max()
    assert labeller(final, fast=True)(texts).stability is None
    assert labeller(final / "seeds/seed-1")(texts).stability is None


def test_lanes_and_order_make_no_difference(final, monkeypatch):
    texts = make_texts(41, seed=3)[0]
    found = {}
    for cores in (1, 2, 3, 8):
        monkeypatch.setattr("loop.deliver.predict.cores", lambda cores=cores: cores)
        found[cores] = labeller(final)(texts)
    for other in (2, 3, 8):
        np.testing.assert_allclose(found[other].probs, found[1].probs, atol=1e-6)
        np.testing.assert_array_equal(found[other].stability, found[1].stability)
    one = labeller(final)
    np.testing.assert_allclose(
        np.concatenate([one([t]).probs for t in texts]), found[1].probs, atol=1e-5
    )


def test_a_temperature_that_is_not_in_the_weights_is_applied(final):
    texts = make_texts(20)[0]
    before = labeller(final)(texts)
    record = json.loads((final / "goldloop.json").read_text())
    record |= {"temperature": 2.0, "temperature_built_in": False}
    (final / "goldloop.json").write_text(json.dumps(record))
    after = labeller(final)(texts)
    odds = [np.log(p.probs[:, 0] / p.probs[:, 1]) for p in (before, after)]
    np.testing.assert_allclose(odds[1], odds[0] / 2, atol=1e-4)
    np.testing.assert_array_equal(before.stability, after.stability)


class Row:
    def __init__(self, text):
        self.text, self.values = text, {"text": text, "id": 7}


def test_rows_without_text_stay_and_get_no_label(final):
    out, done = [], []
    pieces = [[Row("great"), Row(" ")], [Row("")], [Row("awful")]]
    tally = label_rows(labeller(final), pieces, out.extend, done.append)
    assert [row["text"] for row in out] == ["great", " ", "", "awful"]
    assert list(out[0]) == ["text", "id", *prediction_columns(LABELS)]
    assert [row["predicted_label"] is None for row in out] == [False, True, True, False]
    assert out[1]["stability"] is None
    assert out[1]["p_good"] is None
    assert done == [2, 1, 1]
    assert tally.labels.total() == 2
    assert "2 texts" in tally.lines()[0]


# what goes wrong


def test_no_model_says_how_to_make_one(tmp_path):
    with pytest.raises(StudentError, match=r"no model in .*; make one with `goldloop model`"):
        labeller(tmp_path / "none")
    with pytest.raises(StudentError, match=r"no readable goldloop\.json"):
        labeller(tmp_path)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def lose_head(path):
    from safetensors.torch import load_file, save_file

    kept = {name: w for name, w in load_file(path).items() if "classifier" not in name}
    save_file(kept, path, {"format": "pt"})


def other_labels(path):
    config = json.loads(path.read_text())
    config["id2label"]["0"] = "splendid"
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("part", ["", "seeds/seed-3"])
@pytest.mark.parametrize(
    ("file", "harm", "said"),
    [
        ("model.safetensors", cut, "its weights cannot be read"),
        ("model.safetensors", lose_head, "2 of its weights are not there"),
        ("config.json", other_labels, "config.json names the labels"),
        ("config.json", lambda p: p.unlink(), "config.json names the labels None"),
        ("goldloop.json", lambda p: p.write_text("{"), "holds no readable goldloop.json"),
    ],
)
def test_damage_is_one_sentence_and_never_random_weights(final, part, file, harm, said):
    harm(final / part / file)
    with pytest.raises(StudentError, match=said) as told:
        labeller(final)
    assert str(final / part) in str(told.value)
    assert "\n" not in str(told.value)
    if part:
        assert labeller(final, fast=True)(["great"]).probs.shape == (1, 3)


def test_a_lost_weights_file_or_seed_is_told(final):
    shutil.rmtree(final / "seeds/seed-0")
    with pytest.raises(StudentError, match=r"There is no model in .*seed-0"):
        labeller(final)
    (final / "model.safetensors").unlink()
    with pytest.raises(StudentError, match="weights"):
        labeller(final, fast=True)


@pytest.mark.parametrize(
    "kind", ["bert", "roberta", "distilbert", "modernbert", "mpnet", "deberta"]
)
def test_whole_models_of_every_family_are_seen_as_whole(kind, tmp_path):
    from loop.student.encoder_files import load_classifier, load_tokenizer, save_model

    encoder = save_encoder(tmp_path / "e", kind)
    model = load_classifier(encoder, LABELS)
    save_model(model, load_tokenizer(encoder), tmp_path / "m", {})
    assert load_whole(tmp_path / "m").config.num_labels == 3


# the command


@pytest.fixture
def goldloop(monkeypatch, capsys, tmp_path):
    from loop.cli import __main__ as cli

    def run(*args):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["goldloop", *map(str, args)])
        code = 0
        try:
            cli.main()
        except SystemExit as exc:
            code = exc.code or 0
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_predict_labels_a_file(goldloop, final, tmp_path):
    texts = make_texts(30)[0]
    lines = ["id,review", *(f"{i},{t}" for i, t in enumerate(texts)), "30,", "31,a,b"]
    (tmp_path / "more.csv").write_text("\n".join(lines) + "\n")
    code, out, err = goldloop(
        "predict", "more.csv", "--model", final, "--text-column", "review", "--device", "cpu"
    )
    assert code == 0, err
    assert out.strip() == "more.predicted.csv"
    written = (tmp_path / "more.predicted.csv").read_text().splitlines()
    assert written[0] == "id,review,predicted_label,p_good,p_bad,p_ugly,stability"
    assert len(written) == 32
    assert written[-1] == "30,,,,,,"
    assert "get no label: 1 (line 32)" in err
    assert "left out: 1 (line 33)" in err
    assert "Labelled 30 texts" in err
    assert "All seeds agree on" in err
    # quickly, into another format
    code, _, err = goldloop(
        "predict",
        "more.csv",
        "--model",
        final,
        "--text-column",
        "review",
        "--fast",
        "--out",
        "quick.jsonl",
        "--device",
        "cpu",
    )
    assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path / "quick.jsonl").read_text().splitlines()]
    assert rows[0]["stability"] is None
    assert rows[0]["predicted_label"] == written[1].split(",")[2]


def test_predict_in_one_sentence_what_is_wrong(goldloop, final, tmp_path):
    (tmp_path / "x.csv").write_text("id\n1\n")
    for args, said in (
        (("x.csv", "--model", final), "has no column 'text'"),
        (("none.csv", "--model", final), "none.csv does not exist"),
        (("x.csv",), "There is no model in runs/final; make one with `goldloop model`"),
    ):
        code, _, err = goldloop("predict", *args)
        assert code == 1
        errors = [line for line in err.splitlines() if line.startswith("Error: ")]
        assert len(errors) == 1
        assert said in errors[0]
    assert not (tmp_path / "x.predicted.csv").exists()


def test_predict_wants_the_campaigns_labels_of_its_own_model(goldloop, final, tmp_path):
    (tmp_path / "x.csv").write_text("text\ngreat\n")
    (tmp_path / "goldloop.toml").write_text(
        '[campaign]\nname = "c"\ntask = "t"\n[[labels]]\nname = "yes"\n[[labels]]\nname = "no"\n'
        '[texts]\nsource = "x.csv"\n'
    )
    shutil.copytree(final, tmp_path / "runs" / "final")
    code, _, err = goldloop("predict", "x.csv")
    assert code == 1
    assert "knows the labels good, bad, ugly, not yes, no" in err
    code, _, err = goldloop("predict", "x.csv", "--model", final, "--device", "cpu")
    assert code == 0, err
