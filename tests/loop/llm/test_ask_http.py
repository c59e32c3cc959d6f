"""Annotating over HTTP, killed in the middle: what was answered and stored is not asked again."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from campaigns import stored_votes
from fault_llm_server import ALL_FAULTS, running

from loop.campaign.store import Store
from loop.cli import __main__ as cli

CAMPAIGN = """\
[campaign]
name = "c"
task = "Feeling?"

[[labels]]
name = "negative"
[[labels]]
name = "neutral"
[[labels]]
name = "positive"

[texts]
source = "t.csv"
gold_column = "gold"
split_column = "split"

[annotator]
kind = "openai_server"
base_url = "{url}"
model = "tiny"

[prompt]
shots = 1
variants = 1
[[prompt.demonstrations]]
text = "so nice"
label = "positive"

[strategy]
signals = ["margin"]
"""
TEXTS = 600


def annotate(folder):
    return subprocess.Popen(
        [sys.executable, "-m", "loop.cli.__main__", "annotate"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def stored(folder):
    """Texts whose vote is in the store."""
    store = Store(f"sqlite:///{folder / 'c.db'}")
    votes = stored_votes(store)
    texts_of = store.texts([item_id for item_id, _ in votes])
    revisions = store.annotators("c")
    store.close()
    assert len(revisions) <= 1
    return [texts_of[item_id] for item_id, _ in votes]


def write_texts(folder, n):
    rows = [f"text number {i} end,{['negative', 'neutral'][i % 2]},pool" for i in range(n)]
    rows += [f"held out {i},positive,test" for i in range(20)]
    (folder / "t.csv").write_text("text,gold,split\n" + "\n".join(rows) + "\n")


@pytest.fixture
def finish(tmp_path, monkeypatch, capsys):
    """Runs ``goldloop annotate`` in this process, which has the imports behind it.

    Gives its exit code and what it said.
    """
    monkeypatch.chdir(tmp_path)

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["goldloop", "annotate", *options])
        code = 0
        try:
            cli.main()
        except SystemExit as exc:
            code = exc.code
        return code, capsys.readouterr().err

    return run


def spent(folder):
    store = Store(f"sqlite:///{folder / 'c.db'}")
    found = store.spent("c")
    store.close()
    return found


def test_a_killed_annotation_repeats_no_call_that_was_stored(tmp_path, finish):
    write_texts(tmp_path, TEXTS)
    with running("vllm") as server:
        (tmp_path / "goldloop.toml").write_text(CAMPAIGN.format(url=server.url))
        first = annotate(tmp_path)
        deadline = time.monotonic() + 120
        while server.answered.total() < 300 and first.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(first.pid, signal.SIGKILL)
        first.communicate()
        kept = stored(tmp_path)
        assert 0 < len(kept) < TEXTS
        code, err = finish()
        assert code == 0, err
        assert sorted(stored(tmp_path)) == sorted(f"text number {i} end" for i in range(TEXTS))
        calls = {
            text: sum(n for prompt, n in server.calls.items() if f"Text: {text}\n" in str(prompt))
            for text in kept[:100]
        }
        total = server.calls.total()
    assert set(calls.values()) == {1}
    assert total <= TEXTS + 256 + 20  # one chunk under way, and what the checks at start ask


@pytest.mark.slow
def test_the_cap_stops_in_the_middle_and_through_all_faults_no_text_is_lost_or_paid_twice(
    tmp_path, finish
):
    write_texts(tmp_path, 400)
    rng = np.random.default_rng(0)
    faults = [str(rng.choice(ALL_FAULTS)) if rng.random() < 0.12 else None for _ in range(3_000)]
    with running("vllm", faults=faults) as server:
        priced = CAMPAIGN.format(url=server.url).replace(
            'model = "tiny"',
            'model = "tiny"\nusd_per_million_tokens = 100.0\nusd_per_million_output_tokens = 500.0',
        )
        capped = priced + "[budget]\nusd = 2.0\n"
        (tmp_path / "goldloop.toml").write_text(capped)
        code, err = finish()
        assert code == 1
        worst = float(re.findall(r"LLM answer may cost \$([\d.]+), but", err)[0])
        assert "of budget.usd = 2.00" in err
        assert "Traceback" not in err
        first = spent(tmp_path)
        assert 0 < first.votes < 400
        assert 2.0 - 1.1 * worst < first.usd <= 2.0
        asked = server.answered.total()
        code, err = finish()
        assert code == 1
        assert server.answered.total() <= asked + 2  # how the server answers, but about no text
        (tmp_path / "goldloop.toml").write_text(priced + "[budget]\nusd = 500.0\n")
        code, err = finish()
        assert code == 0, err
        texts = stored(tmp_path)
        assert len(texts) == len(set(texts)) == 400
        assert server.answered.total() < 400 + 20


def test_texts_that_fail_are_reported_and_asked_again_on_request(tmp_path, finish):
    write_texts(tmp_path, 320)

    def some(body):
        numbers = re.findall(r"number (\d+) end", str(body["prompt"]))
        return "400" if any(int(number) % 64 == 0 for number in numbers) else None

    with running("vllm", faults=some) as server:
        (tmp_path / "goldloop.toml").write_text(CAMPAIGN.format(url=server.url))
        code, err = finish()
        assert code == 0, err
        assert "Missing LLM answers: 5, to 5 texts (most often:" in err
        assert "cannot read this text" in err
        assert "`goldloop annotate --retry`" in err
        assert len(stored(tmp_path)) == 315
        before = server.answered.total()
        server.faults = []
        code, err = finish("--retry")
        assert code == 0, err
        assert "Asked again: 5 questions, 5 of them are answered now." in err
        assert "missing" not in err
        assert server.answered.total() - before <= 5 + 3  # and what the checks at start ask
        assert len(stored(tmp_path)) == 320
