"""What a command works with is let go of in the end, whatever happened."""

import pytest
from campaigns import make
from fault_llm_server import running

from connectors.llm.openai_server import OpenAIServerAnnotator
from loop.campaign.context import Context
from loop.cli import build as parts
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


def test_a_command_closes_its_annotator_even_when_it_fails(tmp_path, monkeypatch):
    (tmp_path / "goldloop.toml").write_text(FILE)
    made = Closing()
    monkeypatch.setattr(parts, "build_annotator", lambda _config: made)

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
