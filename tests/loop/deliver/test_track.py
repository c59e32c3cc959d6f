"""Rounds go to experiment trackers once each, without texts, people or secrets."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from campaigns import make, make_small, texts

from connectors.tracking import wandb_runs
from loop.campaign.config import TrackingSection
from loop.deliver.track import round_metrics, track_rounds
from loop.ports import TrackerSetup
from loop.round import run_round

ROOT = Path(__file__).parents[3]
PERSON, EXAMPLE, ADDRESS = "ann@example.org", "an example of ours", "http://llm.example/v1"


class Notebook:
    """A tracker in memory, which fails where it is told to."""

    def __init__(self, error=None):
        self.error, self.steps, self.sent = error, [], []

    def track(self, campaign):
        if self.error:
            raise self.error
        self.sent.append((campaign, {p.name: p.read_text() for p in campaign.files}))
        new = [r.number for r in campaign.rounds if r.number not in self.steps]
        self.steps += new
        return new


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A campaign of two rounds with all that is not to go out."""
    ctx = make(
        tmp_path_factory.mktemp("tracked"),
        rows=texts(80),
        tracking={"to": ["mlflow", "wandb"], "project": "p"},
        prompt={"demonstrations": [{"text": EXAMPLE, "label": "bad"}]},
        people={"adjudicator": PERSON},
        annotator={
            "kind": "recorded",
            "columns": ["llm", "llm_2"],
            "base_url": ADDRESS,
            "options": {"note": EXAMPLE},
        },
        budget={"labels": 30, "usd_per_label": 0.5},
        student={"seeds": 2, "references": ["llm_only"]},
    )
    for _ in range(2):
        run_round(ctx)
    yield ctx
    ctx.store.close()


def test_each_round_goes_once_and_its_numbers_are_those_of_the_store(finished):
    book = Notebook()
    build = lambda _name: book  # noqa: E731
    first, second = track_rounds(finished.config, finished.store, build)
    assert (first.rounds, second.rounds) == ((1, 2), ())
    assert first.line == "Sent to MLflow: rounds 1, 2."
    campaign, _ = book.sent[0]
    assert campaign.id == book.sent[1][0].id == finished.store.campaign_uid("c")
    for sent, stored in zip(campaign.rounds, finished.store.rounds("c"), strict=True):
        loop = stored.metrics.arms["loop"]
        assert sent.metrics["loop/accuracy"] == loop.accuracy.value
        assert sent.metrics["loop/alpha_k_low"] == loop.alpha_k.low
        assert sent.metrics["llm_only/macro_f1"] == stored.metrics.arms["llm_only"].macro_f1.value
        assert sent.metrics["labels/gold"] == stored.metrics.gold
        assert sent.at == stored.closed_at
        assert set(sent.metrics) <= {*round_metrics(stored.metrics), "money/spent_usd"}
    assert [r.metrics["money/spent_usd"] for r in campaign.rounds] == [7.5, 15.0]
    assert campaign.params["budget.usd_per_label"] == 0.5
    assert campaign.params["labels"] == "bad, good"


def test_no_text_person_or_secret_goes_out(finished):
    book = Notebook()
    track_rounds(finished.config, finished.store, lambda _name: book)
    campaign, files = book.sent[0]
    assert json.loads(files["rounds.json"])["rows"]
    assert "goldloop" in files["report.html"]
    everything = repr(campaign) + "".join(files.values())
    kept = [item.text for item in finished.store.items("c")] + [PERSON, EXAMPLE]
    kept += [a.annotator for a in finished.store.annotations("c")]
    assert [text for text in kept if text in everything] == []


def test_a_tracker_that_fails_is_one_sentence_and_stops_no_other(finished):
    book = Notebook()
    broken = Notebook(ConnectionError("refused by http://me:secret@host\nTraceback"))
    trackers = {"mlflow": broken, "wandb": book}
    failed, sent = track_rounds(finished.config, finished.store, trackers.__getitem__)
    assert failed.line == (
        "MLflow did not take the round: ConnectionError: refused by http://…@host. The campaign"
        " loses nothing by it. The next round, or `goldloop track`, sends what is missing."
    )
    assert sent.rounds == (1, 2)
    broken.error = None
    assert track_rounds(finished.config, finished.store, trackers.__getitem__)[0].rounds == (1, 2)


def test_a_campaign_without_trackers_or_rounds_sends_nothing(tmp_path):
    ctx = make_small(tmp_path)
    assert track_rounds(ctx.config, ctx.store, None) == []
    named = ctx.config.model_copy(update={"tracking": TrackingSection(to="mlflow")})
    assert track_rounds(named, ctx.store, None) == []
    ctx.store.close()


# the libraries


SENDING = """
import json, os, signal, sys
from pathlib import Path
from campaigns import make, no_plots
from loop.cli.build import build_tracker
from loop.deliver.track import track_rounds

no_plots()
FOLDER = Path.cwd()

def send(name, uri=None):
    tracking = {"to": name, "project": "p"} | ({"uri": uri} if uri else {})
    ctx = make(FOLDER, tracking=tracking)
    sent = track_rounds(ctx.config, ctx.store, lambda name: build_tracker(ctx.config, name))
    ctx.store.close()
    return sent[0].line
"""
MLFLOW = """
from mlflow import MlflowClient

def killed(uri):  # a process that dies once its first batch has come to the server
    if (child := os.fork()) == 0:
        real = MlflowClient.log_batch
        def log_batch(self, *args, **options):
            real(self, *args, **options)
            os.kill(os.getpid(), signal.SIGKILL)
        MlflowClient.log_batch = log_batch
        send("mlflow", uri)
        os._exit(0)
    return -os.waitpid(child, 0)[1]

uri = f"sqlite:///{FOLDER / 'mlflow.db'}"
told = {"killed": [killed(uri), killed(uri)]}  # behind the parameters, and behind the first round
told |= {"said": [send("mlflow", uri), send("mlflow", uri)]}
client = MlflowClient(tracking_uri=uri)
runs = client.search_runs([client.get_experiment_by_name("p").experiment_id])
id_ = runs[0].info.run_id
points = {name: client.get_metric_history(id_, name) for name in runs[0].data.metrics}
told |= {
    "runs": len(runs), "name": runs[0].info.run_name, "status": runs[0].info.status,
    "params": runs[0].data.params,
    "steps": {name: [point.step for point in points[name]] for name in points},
    "accuracy": [point.value for point in points["loop/accuracy"]],
    "files": sorted(file.path for file in client.list_artifacts(id_)),
}
told |= {"down": send("mlflow", "http://127.0.0.1:9")}
print(json.dumps(told))
"""
WANDB = """
print(json.dumps([send("wandb"), send("wandb")]))
"""


def drive(code, folder):
    """What a Python process says that sends the folder's campaign, and reaches nothing else."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "MLFLOW_"))}
    env |= {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "support"))),
        "HOME": str(folder),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "WANDB_MODE": "offline",
        "WANDB_ERROR_REPORTING": "false",
    }
    command = [sys.executable, "-c", SENDING + code]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def accuracy(finished, tmp_path):
    """The accuracy of each round of a campaign, which is copied to the test's folder."""
    shutil.copytree(finished.config.folder, tmp_path, dirs_exist_ok=True)
    return [r.metrics.arms["loop"].accuracy.value for r in finished.store.rounds("c")]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mlflow") is None, reason="MLflow is not installed")
def test_mlflow_has_every_round_once_whenever_the_process_is_killed(accuracy, tmp_path):
    run = drive(MLFLOW, tmp_path)
    assert run["killed"] == [-signal.SIGKILL] * 2
    assert run["said"] == ["Sent to MLflow: round 2.", "MLflow has every round already."]
    assert (run["runs"], run["name"], run["status"]) == (1, "c", "FINISHED")
    # what the second round is the first to know, and all else
    assert set(map(tuple, run["steps"].values())) == {(2,), (1, 2)}
    assert run["accuracy"] == accuracy
    assert run["files"] == ["report.html", "rounds.json"]
    assert run["params"]["rounds.batch_size"] == "15"
    assert run["down"].startswith("MLflow did not take the round: MlflowException: ")


def records(path):
    """The protocol buffers in a run's file: LevelDB's log format after seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield Record.FromString(record)
            record = b""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("wandb") is None, reason="Weights & Biases is not installed")
def test_an_offline_run_of_weights_and_biases_holds_the_whole_campaign(
    accuracy, finished, tmp_path
):
    assert drive(WANDB, tmp_path) == ["Sent to Weights & Biases: rounds 1, 2."] * 2
    for file in tmp_path.rglob("*.wandb"):
        history = []
        for record in records(file):
            if record.WhichOneof("record_type") == "history":
                items = {"/".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
                history.append((record.history.step.num, json.loads(items["loop/accuracy"])))
        assert history == list(zip((1, 2), accuracy, strict=True))
        assert file.name == f"run-{finished.store.campaign_uid('c')}.wandb"


class FakeWandb:
    """As much of wandb's interface as is used, for a server that has the first round already."""

    def __init__(self, *, mode="online", logged_in=True):
        self.mode, self.logged_in, self.logged, self.asked = mode, logged_in, [], {}
        self.step, self.offline, self.finished = 2, False, False
        self.settings = SimpleNamespace(sync_dir="", mode=mode)

    def Settings(self, **given):  # noqa: N802
        return SimpleNamespace(**given)

    def setup(self, settings):
        return self

    def login(self, **how):
        return self.logged_in

    def init(self, **asked):
        self.asked = asked
        return self

    def Artifact(self, name, type):  # noqa: N802
        return SimpleNamespace(add_file=lambda path: None)

    def log_artifact(self, artifact):
        pass

    def log(self, metrics, step):
        self.logged.append(step)

    def finish(self):
        self.finished = True


def test_an_online_run_of_weights_and_biases_continues_after_its_last_step(
    finished, monkeypatch, tmp_path
):
    def send(wandb):
        monkeypatch.setitem(sys.modules, "wandb", wandb)
        setup = TrackerSetup("team/p", None, tmp_path)
        return track_rounds(finished.config, finished.store, lambda _: wandb_runs.WandbRuns(setup))

    online = FakeWandb()
    assert [tracked.rounds for tracked in send(online)] == [(2,), (2,)]
    assert online.logged == [2, 2]
    assert online.finished
    assert (online.asked["entity"], online.asked["project"]) == ("team", "p")
    assert online.asked["id"] == finished.store.campaign_uid("c")
    assert "run `wandb login`" in send(FakeWandb(logged_in=False))[0].line
    assert "WANDB_MODE=disabled" in send(FakeWandb(mode="disabled"))[0].line
