"""What a command works with is let go of in the end, whatever happened."""

import json
from types import SimpleNamespace

import pytest
from campaigns import make
from fault_llm_server import running

from connectors.llm.openai_server import OpenAIServerAnnotator
from loop.campaign.context import Context
from loop.cli import build as parts
from loop.errors import ReviewerError
from loop.ports import TextItem
from loop.prompt import Label, PromptVariant

FILE = """\
[campaign]
name = "c"
task = "t"
[[labels]]
name = "bad"
[[labels]]
name = "good"
[texts]
source = "t.csv"
[prompt]
shots = 0
[strategy]
signals = ["margin"]
"""


class Closing:
    revision = "closing"

    def __init__(self):
        self.closed = 0

    def close(self):
        self.closed += 1


def test_closing_opens_nothing(tmp_path):
    ctx = make(tmp_path)
    ctx.close()
    assert "annotator" not in ctx.__dict__


def test_a_campaign_on_another_platform_starts_no_label_studio_to_read_a_project(tmp_path):
    config = make(tmp_path).config
    people = config.people.model_copy(update={"platform": "desk"})
    with pytest.raises(ReviewerError, match=r"label in desk.*label_studio\.url"):
        parts.project_tasks(config.model_copy(update={"people": people}), 3)


def test_a_command_closes_its_annotator_even_when_it_fails(tmp_path, monkeypatch):
    (tmp_path / "goldloop.toml").write_text(FILE)
    made = Closing()
    monkeypatch.setattr(parts, "build_annotator", lambda *_: made)

    def work(fail):
        with parts.at_work(tmp_path / "goldloop.toml", "test") as ctx:
            assert isinstance(ctx, Context)
            assert ctx.annotator is made
            if fail:
                raise RuntimeError("boom")

    work(fail=False)
    assert made.closed == 1
    with pytest.raises(RuntimeError, match="boom"):
        work(fail=True)
    assert made.closed == 2


def test_a_closed_server_annotator_answers_again():
    variant = PromptVariant(0, "t", (Label("negative"), Label("positive")), ())
    with running() as server:
        annotator = OpenAIServerAnnotator(server.url, "tiny")
        annotator.close()
        for _ in range(2):
            answer = annotator.annotate(variant, [TextItem("i", "text")])
            assert answer.probs.sum() == pytest.approx(1.0)
            annotator.close()
        annotator.close()


def test_students_have_the_rate_that_fits_unless_the_file_or_an_earlier_round_names_one(tmp_path):
    def rate(encoder, lr=None, rounds=None):
        student = {"encoder": encoder} | ({"lr": lr} if lr else {})
        ctx = make(tmp_path, student=student)
        last = SimpleNamespace(config={"student": rounds}) if rounds else None
        store = SimpleNamespace(last_round=lambda _name: last)
        config = parts.with_learning_rate(ctx.config, store, fetch=False)
        ctx.store.close()
        assert config.folder == tmp_path
        return config.student.lr, config.lr_why

    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.json").write_text(
        json.dumps({"hidden_size": 384, "num_hidden_layers": 6})
    )
    assert rate("minilm") == (1e-4, "fits minilm")
    assert rate("small")[0] == 1e-4
    assert "11 million weights" in rate("small")[1]
    assert rate("minilm", lr=3e-5) == (3e-5, "")
    begun = {"encoder": "minilm", "lr": 2e-5}  # before there was a default that fits
    assert rate("minilm", rounds=begun) == (2e-5, "is that of the rounds so far")
    assert rate("mpnet", rounds=begun | {"lr": 1e-3}) == (2e-5, "fits mpnet")
    assert rate("minilm", lr=1e-4, rounds=begun) == (1e-4, "")
    assert rate("./nowhere") == (None, "")


@pytest.mark.parametrize(
    ("sections", "begins"),
    [
        ({"annotator": {"kind": "local_lm"}}, True),
        ({}, False),  # recorded labels are there at once: nothing to wait beside
        ({"annotator": {"kind": "local_lm"}, "label_studio": {"url": "http://ls.example"}}, False),
    ],
)
def test_label_studio_is_installed_while_the_llm_labels(tmp_path, monkeypatch, sections, begins):
    began = []
    monkeypatch.setattr(parts, "start_label_studio", lambda: began.append(True))
    monkeypatch.setattr("loop.studies.preflight.parts_that_fail", lambda _config: [])
    ctx = make(tmp_path, **sections)
    parts.make_ready(ctx)
    assert began == [True] * begins
