"""The final model of a small campaign whose students are real, if tiny."""

import errno
import json
import os
import shutil
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import campaigns
import numpy as np
import pytest
from sqlalchemy import update
from sqlmodel import col
from tiny_encoder import save_encoder

from loop.campaign.config import Config
from loop.campaign.metrics import Metric
from loop.campaign.tables import Round
from loop.deliver.candidates import Choice, choose
from loop.deliver.export import final_labels
from loop.deliver.final_model import make_final_model
from loop.deliver.model_card import SOURCES, _front_matter
from loop.deliver.saved_models import average, build_in_temperature
from loop.errors import StageError, StoreError, StudentError
from loop.round import run_round
from loop.student.encoder_student import EncoderStudent
from loop.studies.side_runs import merged_labels, side_runs

TRICKY = 'a "quoted" <b>label</b>: |\n---\n# `x`'


@pytest.fixture(autouse=True)
def _one_thread():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows(dev=24):
    found = campaigns.texts(150 + dev)
    for i, row in enumerate(found):
        row.split = "test" if i < 40 else "dev" if i < 40 + dev else "pool"
    return found


def open_campaign(folder, encoder, rows, **sections):
    settings = {
        "campaign": {"name": "c", "task": TRICKY},
        "texts": {"source": "x.csv", "gold_column": "g", "split_column": "s"},
        "rounds": {"batch_size": 15, "rounds": 1, "audit_frac": 0.2},
        "student": {"seeds": 3, "references": []},
    }
    ctx = campaigns.make(folder, rows=rows, **(settings | sections))

    def student():
        return EncoderStudent(encoder, epochs=6, lr=2e-3, workers=1, precision="fp32", device="cpu")

    ctx.parts = replace(ctx.parts, student=student)
    return ctx


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, encoder):
    """The folder of a campaign with one finished round."""
    folder = tmp_path_factory.mktemp("finished")
    ctx = open_campaign(folder, encoder, rows())
    assert run_round(ctx).stage == "done"
    ctx.store.close()
    return folder


@pytest.fixture
def ctx(finished, encoder, tmp_path):
    folder = tmp_path / "campaign"
    campaigns.copied(finished, folder)
    ctx = open_campaign(folder, encoder, rows())
    yield ctx
    ctx.store.close()


@pytest.fixture(scope="module")
def modelled(finished, encoder, tmp_path_factory):
    """A campaign with a final model, to look at: how it was made, and the seeds trained for it."""
    folder = campaigns.copied(finished, tmp_path_factory.mktemp("modelled") / "campaign")
    ctx = open_campaign(folder, encoder, rows())
    seeds = trained(ctx)
    made = make_final_model(ctx, ctx.config.out / "final")
    yield SimpleNamespace(ctx=ctx, made=made, seeds=sorted(seeds), folder=folder)
    ctx.store.close()


@pytest.fixture
def ctx_with_model(modelled, encoder, tmp_path):
    """A copy of that campaign, to go on with."""
    ctx = open_campaign(campaigns.copied(modelled.folder, tmp_path / "c"), encoder, rows())
    yield ctx
    ctx.store.close()


def record_of(folder):
    return json.loads((folder / "goldloop.json").read_text())


def trained(ctx):
    """Seeds that are trained from now on, as a list that grows."""
    seeds, fit = [], ctx.student.fit

    def watch(train, evaluated, labels, wanted, **rest):
        seeds.extend(wanted)
        fit(train, evaluated, labels, wanted, **rest)

    ctx.student.fit = watch
    return seeds


def test_a_final_model_is_a_plain_pipeline_with_card_and_seeds(modelled):
    from transformers import pipeline

    from loop.student.inference import predict

    ctx, made = modelled.ctx, modelled.made
    record = record_of(made.folder)
    texts = [i.text for i in ctx.store.items("c", "test")]
    answers = pipeline("text-classification", str(made.folder), device="cpu")(texts)
    ours = predict(made.folder, texts, device="cpu", precision="fp32")
    assert [a["label"] for a in answers] == [record["labels"][c] for c in ours.argmax(1)]
    np.testing.assert_allclose([a["score"] for a in answers], ours.max(1), atol=1e-4)
    assert record["labels"] == ["bad", "good"]
    assert record["long_texts"] == "head_tail"
    assert record["seeds"] == ["seeds/seed-0", "seeds/seed-1", "seeds/seed-2"]
    for name in record["seeds"]:
        assert predict(made.folder / name, texts, device="cpu").shape == (40, 2)
    truth = [i.known_label for i in ctx.store.items("c", "test")]
    right = np.mean([a["label"] == t for a, t in zip(answers, truth, strict=True)])
    assert right > 0.7
    assert not list((ctx.config.out / "models").glob("final-*"))  # the workshop is cleared
    assert not list(made.folder.parent.glob(".final.*"))


def test_the_temperature_is_in_the_weights_and_leaves_labels_alone(ctx, monkeypatch):
    from loop.student.inference import predict

    monkeypatch.setattr(
        "loop.deliver.candidates.choose",
        lambda probs, *_: Choice(next(iter(probs)), "so", (), None, 2.5),
    )
    made = make_final_model(ctx, ctx.config.out / "final")
    record = record_of(made.folder)
    assert (record["temperature"], record["temperature_built_in"]) == (2.5, True)
    texts = [i.text for i in ctx.store.items("c", "test")]
    scaled, raw = (
        np.log(predict(f, texts, device="cpu", precision="fp32"))
        for f in (made.folder, made.folder / record["same_as"])
    )
    ratio = (raw[:, 0] - raw[:, 1]) / (scaled[:, 0] - scaled[:, 1])
    np.testing.assert_allclose(ratio, 2.5, rtol=1e-3)


def test_only_missing_seeds_are_trained_again_and_nothing_twice(modelled, ctx_with_model):
    assert modelled.seeds == [1, 2, 3, 4]  # 0 was kept by the round, 3 and 4 are distilled
    ctx = ctx_with_model
    seeds = trained(ctx)
    again = make_final_model(ctx, ctx.config.out / "final")
    assert seeds == []
    assert "up to date" in again.news[0]
    cut_short = ctx.config.out / "models" / "round-1" / "model.safetensors"
    data = cut_short.read_bytes()
    cut_short.unlink()  # the final model's seed is another name of the same bytes
    cut_short.write_bytes(data[:-100])
    shutil.rmtree(ctx.config.out / "final" / "seeds" / "seed-1")
    make_final_model(ctx, ctx.config.out / "final")
    assert {0, 1} <= set(seeds)
    for seed in (0, 1):
        found = ctx.config.out / "final" / "seeds" / f"seed-{seed}" / "model.safetensors"
        assert found.stat().st_size == len(data)


def test_labels_that_changed_since_are_refused(finished, encoder, tmp_path):
    campaigns.copied(finished, tmp_path / "campaign")
    ctx = open_campaign(
        tmp_path / "campaign", encoder, rows(), labels=[{"name": "yes"}, {"name": "no"}]
    )
    with pytest.raises(StoreError, match=r"begun with labels \['bad', 'good'\]"):
        make_final_model(ctx, ctx.config.out / "final")
    ctx.store.close()


def test_a_label_that_came_after_the_last_round_has_its_column(finished, encoder, tmp_path):
    campaigns.copied(finished, tmp_path / "campaign")
    labels = [{"name": name} for name in ("bad", "good", "odd")]
    student = {"seeds": 3, "references": [], "if_nothing_learned": "go on"}
    ctx = open_campaign(tmp_path / "campaign", encoder, rows(), labels=labels, student=student)
    said = []
    ctx.say = said.append
    made = make_final_model(ctx, ctx.config.out / "final")
    assert record_of(made.folder)["labels"] == ["bad", "good", "odd"]
    assert any("New label: odd" in line for line in said)
    assert any("No training text is labelled odd" in line for line in said)
    for parts in ("encoder", "frozen"):
        runs = side_runs(ctx, parts)
        y, weight = merged_labels(runs)
        assert y.shape == (len(runs.pool), 3)
        assert not y[weight > 0, 2].any()
    ctx.store.close()


def test_seeds_trained_again_answer_as_in_the_round(modelled):
    from loop.student.inference import predict

    ctx, made = modelled.ctx, modelled.made
    texts = [i.text for i in ctx.store.items("c", "test")]
    runs = {r.seed: r.predictions for r in ctx.store.runs("c")}
    for seed in (0, 1, 2):
        found = predict(made.folder / f"seeds/seed-{seed}", texts, device="cpu", precision="fp32")
        assert found.argmax(1).tolist() == runs[seed]
    assert not any("answer differently" in line for line in made.news)


def test_an_interrupted_run_keeps_what_it_trained(ctx, monkeypatch):
    seeds = trained(ctx)

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("loop.deliver.final_model._assemble", killed)
    with pytest.raises(KeyboardInterrupt):
        make_final_model(ctx, ctx.config.out / "final")
    assert not (ctx.config.out / "final").exists()
    monkeypatch.undo()
    del seeds[:]
    make_final_model(ctx, ctx.config.out / "final")
    assert seeds == []


def test_without_seeds_says_so_and_leftovers_of_a_killed_run_are_removed(ctx):
    left = ctx.config.out / ".final.0123456789ab.part"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    made = make_final_model(ctx, ctx.config.out / "final", keep_seeds=False)
    assert not (made.folder / "seeds").exists()
    assert record_of(made.folder)["seeds"] == []
    assert "were not kept" in (made.folder / "README.md").read_text()
    assert not left.exists()


def test_the_card_is_sound_yaml_and_tells_the_counts(modelled):
    import yaml

    ctx, made = modelled.ctx, modelled.made
    card = (made.folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["pipeline_tag"] == "text-classification"
    assert front["model_name"] == "c"
    assert "<b>" not in card
    assert "&lt;b&gt;label&lt;/b&gt;: \\| --- \\# \\`x\\`" in card
    exported = Counter(record["source"] for record in final_labels(ctx.config, ctx.store))
    assert f"{exported.total()} texts" in card
    assert exported["gold"] == 15
    lines = card.splitlines()
    total = next(i for i, line in enumerate(lines) if line.startswith("| all |"))
    heads, counts = ([c.strip() for c in lines[i].split("|")[2:-1]] for i in (total - 4, total))
    named = {SOURCES[source]: str(n) for source, n in exported.items()}
    assert dict(zip(heads, counts, strict=True)) == named  # as the export and its card count
    assert "labels recorded in the columns llm, llm\\_2" in card
    assert "simulated" not in card.lower() or ctx.config.raters.kind != "people"
    assert "alpha\\_K" in card or "alpha_K" in card


@pytest.mark.parametrize(
    ("encoder", "base_model"),
    [
        ("minilm", "sentence-transformers/all-MiniLM-L6-v2"),
        ("mpnet", "sentence-transformers/all-mpnet-base-v2"),
        ("roberta-base", "roberta-base"),
        ("here", None),
        ("/srv/encoder", None),
    ],
)
def test_the_base_model_is_one_that_the_hub_has(tmp_path, encoder, base_model):
    (tmp_path / "here").mkdir()
    config = settings(student={"encoder": encoder})
    config._folder = tmp_path
    lines = _front_matter(SimpleNamespace(config=config)).splitlines()
    named = [line for line in lines if line.startswith("base_model")]
    assert named == [f'base_model: "{base_model}"'] * (base_model is not None)


def settings(**sections):
    whole = {
        "campaign": {"name": "c", "task": "t"},
        "labels": [{"name": "a"}, {"name": "b"}],
        "texts": {"source": "x.csv"},
    }
    return Config.model_validate(whole | sections)


def test_yaml_strings_survive_every_character():
    import yaml

    from loop.deliver.model_card import yaml_string

    nasty = "".join(map(chr, [*range(1, 0x180), 0x2028, 0x2029, 0xFEFF, 0x1F600])) + "': # \n---\n"
    assert yaml.safe_load(f"x: {yaml_string(nasty)}") == {"x": nasty}


def test_few_dev_labels_fall_back_on_the_distilled_model(tmp_path, encoder):
    ctx = open_campaign(tmp_path, encoder, rows(dev=5))
    run_round(ctx)
    made = make_final_model(ctx, ctx.config.out / "final")
    assert made.choice.name == "the distilled model"
    assert "5 dev labels are too few" in made.choice.why
    assert record_of(made.folder)["temperature"] == 1.0
    assert "the network's own" in (made.folder / "README.md").read_text()
    ctx.store.close()


def test_a_campaign_without_dev_trains_one_distilled_model(tmp_path, encoder):
    ctx = open_campaign(tmp_path, encoder, rows(dev=0))
    run_round(ctx)
    seeds = trained(ctx)
    made = make_final_model(ctx, ctx.config.out / "final")
    assert sorted(seeds) == [1, 2, 3]
    assert made.choice.name == "the distilled model"
    ctx.store.close()


def test_no_finished_round_is_one_sentence(tmp_path, encoder):
    ctx = open_campaign(tmp_path, encoder, rows())
    with pytest.raises(StageError, match="No round is finished yet"):
        make_final_model(ctx, ctx.config.out / "final")
    ctx.store.close()


def test_the_command_says_what_comes_first(tmp_path, monkeypatch, capsys):
    from loop.cli import __main__ as cli

    (tmp_path / "goldloop.toml").write_text(
        '[campaign]\nname = "c"\ntask = "t"\n[[labels]]\nname = "yes"\n[[labels]]\nname = "no"\n'
        '[texts]\nsource = "x.csv"\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["goldloop", "model"])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err.startswith("Error: No round is finished yet")
    assert not (tmp_path / "runs").exists()


def test_a_foreign_folder_is_left_alone(ctx, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(StudentError, match="is not a final model that goldloop made"):
        make_final_model(ctx, mine)
    assert [p.name for p in mine.iterdir()] == ["thesis.txt"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(StudentError, match="it was not changed"):
        make_final_model(ctx, tmp_path / "file")


def test_full_disk_leaves_no_half_model_and_the_campaign_intact(ctx_with_model, monkeypatch):
    ctx, final = ctx_with_model, ctx_with_model.config.out / "final"
    before = {p.name: p.read_bytes() for p in final.iterdir() if p.is_file()}
    events = len(ctx.store.runs("c"))

    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("loop.deliver.final_model._link_or_copy", refuse)  # the seeds come last
    with pytest.raises(StudentError, match=r"cannot be saved to .*final: No space left on device"):
        make_final_model(ctx, final, force=True)
    assert {p.name: p.read_bytes() for p in final.iterdir() if p.is_file()} == before
    assert not list(final.parent.glob(".final.*"))
    assert len(ctx.store.runs("c")) == events
    assert ctx.store.last_round("c").stage == "done"


# choosing


def probs_of(y, right, seed, sure=0.8):
    """(n, 2) probabilities that give the right class to a share of the texts."""
    rng = np.random.default_rng(seed)
    said = np.where(rng.random(len(y)) < right, y, 1 - y)
    probs = np.full((len(y), 2), 1 - sure)
    probs[np.arange(len(y)), said] = sure
    return probs


def test_a_candidate_that_is_clearly_worse_is_never_taken():
    y = np.arange(100) % 2
    good, poor = probs_of(y, 0.9, 1), probs_of(y, 0.55, 2)
    found = choose({"good": good, "poor": poor}, poor, y, 2)  # though the ensemble says as it does
    assert found.name == "good"
    assert [j.good_enough for j in found.judged] == [True, False]


def test_among_equals_the_one_that_agrees_with_the_ensemble_is_taken():
    y = np.arange(100) % 2
    a, b = probs_of(y, 0.8, 1), probs_of(y, 0.8, 2)
    for ensemble, name in ((a, "a"), (b, "b")):
        found = choose({"a": a, "b": b}, ensemble, y, 2)
        assert all(j.good_enough for j in found.judged)
        assert found.name == name
        assert "agrees most with the ensemble" in found.why


def test_differences_too_small_to_matter_decide_nothing():
    y = np.arange(100) % 2
    a = probs_of(y, 0.8, 1, sure=0.80)
    b = np.where(a > 0.5, a + 0.001, a - 0.001)  # surely another loss, if hardly
    found = choose({"a": a, "b": b}, a, y, 2)
    assert [j.good_enough for j in found.judged] == [True, True]


def test_texts_without_a_label_count_for_agreement_alone():
    y = np.where(np.arange(100) < 40, np.arange(100) % 2, -1)
    truth = np.arange(100) % 2
    a, b = probs_of(truth, 0.8, 1), probs_of(truth, 0.8, 2)
    b[:40] = a[:40]
    assert choose({"a": a, "b": b}, b, y, 2).name == "b"


def test_agreement_with_an_ensemble_that_says_one_class_is_not_told():
    y = np.arange(100) % 2
    one = np.tile([0.8, 0.2], (100, 1))
    for rival in (probs_of(y, 0.5, 1, sure=0.55), one - [[0.1, -0.1]]):
        found = choose({"a": one, "b": rival}, one, y, 2)
        assert [j.agreement for j in (*found.judged, found.ensemble)] == [None] * 3
        assert "agrees most" not in found.why


def test_no_final_model_is_made_of_students_that_learned_nothing(ctx):
    (round_,) = ctx.store.rounds("c")
    students = replace(round_.metrics.arms["loop"], alpha_k=Metric(float("nan")), p_uc=Metric(1.0))
    students = replace(students, accuracy=Metric(0.5))
    flat = replace(round_.metrics, arms={"loop": students})
    with ctx.store.transaction() as session:
        session.exec(update(Round).where(col(Round.id) == round_.id).values(metrics=flat))
    with pytest.raises(StageError, match=r"no final model of round 1\. The students give every"):
        make_final_model(ctx, ctx.config.out / "final")


# weights


def saved(folder, kind, tmp_path, seeds):
    import torch

    from loop.student.encoder_files import load_classifier, load_tokenizer, save_model

    folders = []
    for seed in seeds:
        torch.manual_seed(seed)
        place = tmp_path / f"{kind}-{seed}"
        model = load_classifier(folder, ("x", "y", "z"))
        save_model(model, load_tokenizer(folder), place, {"max_tokens": 32})
        folders.append(place)
    return folders


def test_the_soup_is_the_mean_of_the_weights(encoder, tmp_path):
    from loop.student.encoder_files import load_classifier

    folders = saved(encoder, "bert", tmp_path, (1, 2, 3))
    soup = average(folders).state_dict()
    models = [load_classifier(f).state_dict() for f in folders]
    for name, value in soup.items():
        mean = np.mean([m[name].numpy() for m in models], axis=0)
        np.testing.assert_allclose(value.numpy(), mean, atol=1e-6)
    assert not np.allclose(soup["classifier.weight"], models[0]["classifier.weight"], atol=1e-4)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "modernbert", "mpnet"])
def test_a_temperature_goes_into_the_last_layer_of_every_family(kind, tmp_path):
    import torch

    from loop.student.encoder_files import load_classifier

    folder = saved(save_encoder(tmp_path / "e", kind), kind, tmp_path, (0,))[0]
    model = load_classifier(folder).eval()
    tokens = torch.arange(8)[None] + 3
    with torch.inference_mode():
        before = model(tokens).logits
        assert build_in_temperature(model, 2.5)
        np.testing.assert_allclose(model(tokens).logits, before / 2.5, rtol=1e-4, atol=1e-6)


def test_a_model_without_a_last_linear_layer_stays_as_it_is():
    model = SimpleNamespace(
        base_model=SimpleNamespace(modules=list), modules=list, config=SimpleNamespace(num_labels=2)
    )
    assert not build_in_temperature(model, 2.0)
