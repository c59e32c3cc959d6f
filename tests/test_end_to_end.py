"""Whole campaigns on real parts: the small LLM, Label Studio, the encoder, the command line."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from connectors.downloads.hutto import write_demo_texts
from connectors.label_studio import server as label_studio_server
from loop.campaign.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

NAME = "tweets"  # of every campaign here: they must keep apart on one server all the same

CAMPAIGN = """\
[campaign]
name = "{name}"
task = "Decide whether the tweet is negative, neutral or positive."

[[labels]]
name = "negative"
[[labels]]
name = "neutral"
[[labels]]
name = "positive"

[texts]
source = "texts.jsonl"
gold_column = "gold"
split_column = "split"

[annotator]
kind = "local_lm"

[prompt]
shots = 3
variants = 2

[strategy]
signals = ["entropy_calibrated", "flip_rate", "knn_disagreement", "student_disagreement"]

[budget]
labels = 12

[rounds]
rounds = 2
batch_size = 6
audit_frac = 0.2

[student]
encoder = "minilm"
epochs = 1
if_nothing_learned = "go on"   # four steps teach little
seeds = 2
max_tokens = 32
references = ["llm_only", "random"]

[people]
overlap = 3

[raters]
kind = "recorded"
ratings_column = "ratings"
"""


@pytest.fixture
def server(label_studio, monkeypatch):
    """A Label Studio that the commands find through the environment."""
    home = label_studio.data_dir.parent
    for shared in label_studio_server.home().glob("*-*"):  # the installed environment
        if not (home / shared.name).exists():
            (home / shared.name).symlink_to(shared)
    monkeypatch.setenv("GOLDLOOP_LABEL_STUDIO", str(home))
    now = label_studio_server.up()
    assert replace(now, pid=label_studio.pid) == label_studio  # another test may have killed it
    return now


def make(folder, name):
    write_demo_texts(folder / "texts.jsonl", pool=24, test=16, dev=8, seed=1)
    (folder / "goldloop.toml").write_text(CAMPAIGN.format(name=name))


def goldloop(folder, *args, **more):
    return subprocess.Popen(
        [sys.executable, "-m", "loop.cli.__main__", *args],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **more,
    )


def finish(folder, *args):
    process = goldloop(folder, *args)
    out, _ = process.communicate(timeout=900)
    assert process.returncode == 0, out
    return out


def tasks(server, project):
    """Every task of a project, straight from the server."""
    with httpx.Client(
        base_url=server.url, headers={"Authorization": f"Token {server.token}"}, timeout=60
    ) as client:
        response = client.get(f"/api/projects/{project}/export", params={"exportType": "JSON"})
        response.raise_for_status()
        return response.json()


def check_nothing_lost_nothing_doubled(server, store, name):
    with store.transaction() as session:
        from loop.campaign.tables import CampaignRow

        project = session.get(CampaignRow, name).project_id
    found = tasks(server, project)
    reviews = store.reviews(name)
    per_item = Counter(t["data"]["ext_id"] for t in found)
    assert per_item == Counter(r.item_id for r in reviews)
    answers = {str(a["id"]) for t in found for a in t["annotations"]}
    assert {a.annotation_id for a in store.annotations(name)} == answers
    assert len(answers) == 3 * len(reviews)
    items = len(store.items(name, "pool"))
    votes = store.spent(name).votes
    assert votes == 2 * items
    runs = Counter((r.round_id, r.arm, r.seed) for r in store.runs(name))
    assert set(runs.values()) == {1}


def check_told(folder):
    """What the commands, the files and the saved model say of a finished campaign."""
    assert "Round 2" in finish(folder, "status")
    status = json.loads(finish(folder, "status", "--json"))
    assert (status["stage"], status["sent"], status["out"]) == ("done", 12, 0)
    store = Store(f"sqlite:///{folder / NAME}.db")
    rounds = store.rounds(NAME)
    assert [r.metrics.bought for r in rounds] == [6, 12]
    gold = [r.metrics.gold for r in rounds]
    assert 0 < gold[0] < gold[1]
    model = folder / "runs" / "models" / "round-2"
    from transformers import pipeline

    classify = pipeline("text-classification", str(model), device="cpu")
    assert classify("what a lovely day")[0]["label"] in {"negative", "neutral", "positive"}
    html = (folder / "runs" / "report.html").read_text()
    assert "simulated" in html
    finish(folder, "export", "labels.csv")
    with (folder / "labels.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 24
    assert Counter(r["source"] for r in rows)["gold"] == gold[1]
    store.close()


DIE_AFTER_IMPORT = """
import os, signal, sys
from connectors.label_studio.reviewer import LabelStudioReviewer
send = LabelStudioReviewer.send
def dying(self, *args, **more):
    send(self, *args, **more)
    os.kill(os.getpid(), signal.SIGKILL)
LabelStudioReviewer.send = dying
from loop.cli.__main__ import main
sys.argv = ["goldloop", "run"]
main()
"""


@pytest.mark.parametrize("times", [2, pytest.param(10, marks=pytest.mark.long)])
def test_killed_again_and_again_it_loses_and_doubles_nothing(server, tmp_path, times):
    make(tmp_path, NAME)
    # Between the import into Label Studio and our commit.
    done = subprocess.run(
        [sys.executable, "-c", DIE_AFTER_IMPORT],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        timeout=600,
    )
    assert done.returncode == -signal.SIGKILL
    store = Store(f"sqlite:///{tmp_path / NAME}.db")
    assert store.rounds(NAME)[-1].stage == "push"
    chosen = [r.item_id for r in store.reviews(NAME)]
    assert len(chosen) == 6
    store.close()
    rng = random.Random(0)
    kills, folder = 1, tmp_path
    while kills < times:
        process = goldloop(folder, "run", start_new_session=True)
        try:
            out, _ = process.communicate(timeout=rng.uniform(2, 12))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
        else:  # it came through between two kills: the rest of them meet another campaign
            assert process.returncode == 0, out
            check_whole(server, folder)
            folder = tmp_path / f"after-{kills}"
            folder.mkdir()
            make(folder, NAME)
        time.sleep(0.2)
    finish(folder, "run")
    check_whole(server, folder)
    check_whole(server, tmp_path)
    store = Store(f"sqlite:///{tmp_path / NAME}.db")
    assert [r.item_id for r in store.reviews(NAME)][:6] == chosen
    store.close()
    check_told(tmp_path)


def check_whole(server, folder):
    """The campaign in a folder is finished; nothing in it is lost or doubled."""
    store = Store(f"sqlite:///{folder / NAME}.db")
    assert [r.stage for r in store.rounds(NAME)] == ["done", "done"]
    check_nothing_lost_nothing_doubled(server, store, NAME)
    store.close()
