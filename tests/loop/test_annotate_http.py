"""Annotating over HTTP, killed in the middle: what was answered and stored is not asked again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from fault_llm_server import running

from loop.store import Store

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
TEXTS = 2_000


def annotate(folder):
    return subprocess.Popen(
        [sys.executable, "-m", "loop.cli", "annotate"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def stored(folder):
    """Texts whose vote is in the store."""
    store = Store(f"sqlite:///{folder / 'c.db'}")
    revisions = set()
    with store.transaction() as session:
        from sqlmodel import select

        from loop.store import Item, Vote

        query = select(Item.text, Vote.annotator).join(Vote)
        rows = session.exec(query).all()
        revisions = {annotator for _, annotator in rows}
    store.close()
    assert len(revisions) <= 1
    return [text for text, _ in rows]


def test_a_killed_annotation_repeats_no_call_that_was_stored(tmp_path):
    rows = [f"text number {i} end,{['negative', 'neutral'][i % 2]},pool" for i in range(TEXTS)]
    rows += [f"held out {i},positive,test" for i in range(20)]
    (tmp_path / "t.csv").write_text("text,gold,split\n" + "\n".join(rows) + "\n")
    with running("vllm") as server:
        (tmp_path / "goldloop.toml").write_text(CAMPAIGN.format(url=server.url))
        first = annotate(tmp_path)
        deadline = time.monotonic() + 120
        while server.answered.total() < 700 and first.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(first.pid, signal.SIGKILL)
        first.communicate()
        kept = stored(tmp_path)
        assert 0 < len(kept) < TEXTS
        again = annotate(tmp_path)
        _, err = again.communicate(timeout=300)
        assert again.returncode == 0, err
        assert sorted(stored(tmp_path)) == sorted(f"text number {i} end" for i in range(TEXTS))
        calls = {
            text: sum(n for prompt, n in server.calls.items() if f"Text: {text}\n" in str(prompt))
            for text in kept[:100]
        }
        total = server.calls.total()
    assert set(calls.values()) == {1}
    assert total <= TEXTS + 256 + 20  # one chunk under way, and what the checks at start ask
