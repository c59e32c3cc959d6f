"""What every executor promises, on processes and on a real Ray; what uses one needs no more."""

from __future__ import annotations

import importlib.util
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from campaigns import make, make_elsewhere, stored_votes, texts
from jobs import Square, Unruly
from tiny_encoder import LABELS, fit, make_texts, save_encoder, tiny_student, training_set

from connectors.llm.recorded import RecordedAnnotator
from loop.campaign.config import load
from loop.cli.build import at_work, build_annotator
from loop.cli.face import Campaign
from loop.deliver.final_model import KIND
from loop.deliver.predict import Labeller, LabellerElsewhere, label_rows
from loop.errors import ConfigError, MachineError, StudentError, UnforeseenError
from loop.executor.crew import Crew
from loop.executor.local import LocalExecutor
from loop.executor.ray_actors import RayExecutor, _Handle
from loop.llm.elsewhere import AnnotatorElsewhere, AskTexts, Question
from loop.ports import AnnotatorSetup, Resources, TextItem
from loop.prompt import PromptVariant
from loop.round import run_round
from loop.student.encoder_files import load_classifier, load_tokenizer, save_model
from loop.studies.preflight import parts_that_fail

SUPPORT = Path(__file__).parents[2] / "support"
NO_RAY = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="Ray is not installed here: it has no build for this Python or machine",
)
RAY = pytest.param("ray", marks=NO_RAY)
TWO = Resources(workers=2)


@pytest.fixture(scope="module")
def executors():
    """Both, started once; workers find the jobs of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        paths = [str(SUPPORT.parents[1]), str(SUPPORT), os.environ.get("PYTHONPATH")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        patch.setenv("OMP_NUM_THREADS", "1")
        made = {"local": LocalExecutor(), "ray": RayExecutor("local", workers=2)}
        yield made
        for executor in made.values():
            executor.close()


@pytest.fixture(params=["local", RAY])
def executor(request, executors):
    return executors[request.param]


def squares(executor, job, numbers, **more):
    """Number -> its square, and which processes worked."""
    results = list(executor.map(job, numbers, TWO, **more))
    blocks = [n for n in numbers if n is not None]
    assert sorted(number for number, _ in results) == list(range(len(blocks)))
    return {blocks[number]: square for number, (square, _) in results}, {p for _, (_, p) in results}


def times(folder, what):
    return len(list(folder.glob(f"{what}.*")))


def test_results_progress_and_news_come_once_and_workers_stay(executor, tmp_path):
    job, steps, news = Square(tmp_path), [], []
    numbers = list(range(1, 8))
    found, processes = squares(executor, job, numbers, progress=steps.append, say=news.append)
    assert found == {n: n * n for n in numbers}
    assert sum(steps) == 5 * len(numbers)
    assert sorted(news) == sorted(f"{n} is squared" for n in numbers)
    assert os.getpid() not in processes
    again, others = squares(executor, job, [8, None, 9])
    assert again == {8: 64, 9: 81}
    assert times(tmp_path, "loaded") == len(processes | others) <= 2
    found, _ = squares(executor, Square(tmp_path), [3])
    assert times(tmp_path, "loaded") == len(processes | others) + 1  # another job
    assert list(executor.map(job, [], TWO)) == []


def test_a_block_is_taken_when_a_worker_is_free_and_results_are_not_kept_back(executor, tmp_path):
    taken, back = [], []

    def blocks():
        for number in range(1, 7):
            assert len(taken) - len(back) < 2
            taken.append(number)
            yield number
        while len(back) < 6:
            yield None  # the last one depends on all others
        yield sum(back)

    for _, (square, _) in executor.map(Square(tmp_path), blocks(), TWO):
        back.append(square)
    assert back[-1] == sum(n * n for n in range(1, 7)) ** 2
    with pytest.raises(ValueError, match="none is under way"):
        list(executor.map(Square(tmp_path), [None], TWO))


def test_a_map_can_be_run_while_another_one_takes_its_next_block(executor, tmp_path):
    job = Square(tmp_path)

    def blocks():
        for number in (2, 3, 4):
            yield squares(executor, job, [number])[0][number]

    assert squares_of(executor, job, blocks()) == [16, 81, 256]


def squares_of(executor, job, blocks):
    return [square for _, (square, _) in sorted(executor.map(job, blocks, TWO))]


def test_the_block_of_a_dead_worker_is_repeated_once(executor, tmp_path, capfd):
    (tmp_path / "a").mkdir()
    job, steps, news = Square(tmp_path / "a", deaths=((2, 1),)), [], []
    found, _ = squares(executor, job, [1, 2, 3], progress=steps.append, say=news.append)
    assert found == {1: 1, 2: 4, 3: 9}
    assert [times(tmp_path / "a", f"asked-{n}") for n in (1, 2, 3)] == [1, 2, 1]
    assert sum(steps) == 15
    (line,) = [line for line in news if "ended unexpectedly" in line]
    assert line.endswith("Its block of work is done once more.")
    job = Square(tmp_path, deaths=((2, 2),))
    with pytest.raises(MachineError, match=r"ended unexpectedly .*twice over the same") as caught:
        squares(executor, job, [2])
    assert "\n" not in str(caught.value)
    assert times(tmp_path, "asked-2") == 2
    assert capfd.readouterr().out == ""  # stdout is data


def test_ray_words_that_simply_end_are_a_death():
    """So end, now and then, those of an actor that was killed; nobody may wait for more."""
    ray = SimpleNamespace(get=lambda word: word, exceptions=SimpleNamespace(RayActorError=OSError))
    streams = iter([[("progress", 2)], [("progress", 2), ("done", pickle.dumps(9))]])
    method = SimpleNamespace(remote=lambda *_: next(streams))
    actor = SimpleNamespace(ready=SimpleNamespace(remote=lambda: None), run=method)
    heard = []
    for end, what in (("died", "A Ray worker ended unexpectedly"), ("done", "9")):
        handle = _Handle(ray, actor, lambda: None, lambda *_: None)
        handle.begin(3, lambda *word: heard.append(word))
        handle._thread.join()
        kind, said = heard.pop()
        assert (kind, str(said)[: len(what)], handle.alive) == (end, what, end == "done")
        assert heard.pop() == ("progress", 2)


def test_a_job_that_raises_is_one_sentence_and_the_next_one_works(executor, tmp_path):
    with pytest.raises(StudentError, match=r"^There is no root of -2\.") as caught:
        squares(executor, Square(tmp_path), [1, -2])
    assert str(caught.value) == "There is no root of -2."
    with pytest.raises(UnforeseenError, match=r"RuntimeError: unlucky") as caught:
        squares(executor, Square(tmp_path), [13])
    assert "\n" not in str(caught.value)
    assert "in square" in caught.value.__notes__[0]


def test_ctrl_c_ends_the_workers(executor, tmp_path):
    pids = []

    def interrupt(line):
        pids.append(int(line.split()[0]))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        squares(executor, Square(tmp_path), [99], say=interrupt)
    deadline = time.monotonic() + 20
    while is_running(pids[0]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(pids[0])


def test_workers_leave_when_their_parent_is_killed(tmp_path):
    """The parent dies by SIGKILL in the middle of the work; its process is gone soon after."""
    code = """
import sys
from pathlib import Path
from jobs import Square
from loop.executor.local import LocalExecutor
from loop.ports import Resources
executor = LocalExecutor()
def say(_line):
    print(*[w.pid for w in executor._crew.workers], flush=True)
list(executor.map(Square(Path(sys.argv[1])), [98], Resources(2), say=say))
"""
    paths = [str(SUPPORT.parents[1]), str(SUPPORT), os.environ.get("PYTHONPATH")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True, env=env
    ) as parent:
        (pid,) = map(int, parent.stdout.readline().split())
        parent.kill()
    try:
        deadline = time.monotonic() + 60
        while is_running(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not is_running(pid)
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def is_running(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


# workers that are started and never come


class Echo:
    def load(self):
        return self


class Hand:
    """A worker of this process; it dies over the block "death"."""

    alive = True

    def load(self, job):
        pass

    def begin(self, block, tell):
        tell("died", "It died.") if block == "death" else tell("done", block)

    def close(self):
        self.alive = False


def crew_of(*births):
    """Its workers are told apart by how they come: at once, when they are called, or never."""
    called, births = [], iter(births)

    def start(ready, tell):
        how = next(births)
        if how == "at once":
            ready()
        elif how == "dies":
            tell("died", "It died.")
        else:
            called.append((ready, tell))
        return Hand()

    def impatient():
        raise TimeoutError("it waits for nobody")

    return Crew(start, Echo.load, impatient, 1.0), called


def test_a_worker_that_comes_late_or_never_keeps_no_later_map_waiting():
    def mapped(crew, *blocks):
        return dict(crew.map(Echo(), blocks, 2, lambda _: None, lambda _: None))

    for late in ("comes", "dies"):
        crew, called = crew_of("at once", "called", "at once", "at once")
        assert mapped(crew, "a", "b") == {0: "a", 1: "b"}  # the first has done both
        ready, tell = called[0]

        def blocks(ready=ready, tell=tell):
            yield "death"  # of the one that came
            ready() if late == "comes" else tell("died", "It died.")  # noqa: B023

        with pytest.raises(MachineError, match="twice over the same block"):
            list(crew.map(Echo(), blocks(), 2, lambda _: None, lambda _: None))
        assert mapped(crew, "c") == {0: "c"}
    crew, _ = crew_of("dies", "at once")
    assert mapped(crew, "d") == {0: "d"}
    with pytest.raises(MachineError, match="workers one after the other while they were started"):
        mapped(crew_of("dies", "dies")[0], "e")


# what cannot be had


def test_no_ray_and_no_cluster_are_one_sentence(monkeypatch):
    if importlib.util.find_spec("ray") is not None:
        monkeypatch.setattr("ray.is_initialized", lambda: False)
        with pytest.raises(ConfigError, match=r"127\.0\.0\.1:9'.*no Ray cluster answers there"):
            RayExecutor("127.0.0.1:9").check_room()
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'goldloop\[ray\]'"):
        RayExecutor().check_room()


REFUSING = """\
def is_initialized():
    return False

def init(**_):
    import os
    assert os.environ["RAY_AUTH_MODE"] == "token"
    try:
        raise RuntimeError("no client: ray.exceptions.AuthenticationError: InvalidAuthToken")
    except RuntimeError as exc:
        raise ConnectionError("Failed to connect to Ray cluster at 127.0.0.1") from exc

def shutdown():
    pass
"""


def test_a_cluster_is_shown_the_token_and_may_refuse_it(tmp_path, monkeypatch):
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("t")
    (tmp_path / "ray.py").write_text(REFUSING)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "")  # to be put back
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setitem(sys.modules, "ray", None)  # likewise
    monkeypatch.delitem(sys.modules, "ray")
    monkeypatch.syspath_prepend(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        with pytest.raises(ConfigError, match=r"does not take this machine's Ray token.*RAY_AUTH"):
            RayExecutor(address).connect()


FILE = """\
campaign = {name = "c", task = "t"}
labels = [{name = "bad"}, {name = "good"}]
texts.source = "x.csv"
annotator = {kind = "recorded", columns = ["llm"]}
executor = {kind = "ray", address = "127.0.0.1:9"}
"""


def test_a_command_that_spends_looks_for_the_cluster_first(tmp_path, monkeypatch):
    (tmp_path / "goldloop.toml").write_text(FILE)
    if importlib.util.find_spec("ray") is not None:
        monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(ConfigError, match=r"no Ray cluster answers there|pip install"):
        Campaign(tmp_path / "goldloop.toml").run()
    with at_work(tmp_path / "goldloop.toml", "pull") as ctx:  # needs none
        assert ctx.store.spent("c").votes == 0
    monkeypatch.setattr("loop.studies.preflight.find_spec", lambda _name: None)
    problems = [str(problem) for problem in parts_that_fail(load(tmp_path / "goldloop.toml"))]
    assert [p for p in problems if "pip install 'goldloop[ray]'" in p]


@NO_RAY
def test_a_cluster_without_room_is_one_sentence(executors):
    ray = executors["ray"]
    ray.check_room()
    assert ray.capacity(Resources(gpus=1.0)) == 0
    with pytest.raises(ConfigError, match=r"no room|has room for a worker with 1 CPU and 1 GPU"):
        list(ray.map(Square(Path()), [1], Resources(gpus=1.0)))


# the student, annotator and labeller


def test_doubled_and_disordered_results_do_no_harm(tiny, tmp_path, one_thread):
    train_texts, y = make_texts(40)
    train = training_set(train_texts, y)
    first = tmp_path / "first"
    here = fit(tiny_student(tiny, epochs=2), train, train_texts, (0, 1, 2), keep={0: first})
    unruly = Unruly()
    student = tiny_student(tiny, epochs=2, executor=unruly)
    kept = tmp_path / "kept"
    results = []
    student.fit(train, train_texts, LABELS, (0, 1, 2), keep={1: kept}, on_seed=results.append)
    assert sorted(r.seed for r in results) == [0, 1, 2]
    for result in results:
        assert np.array_equal(result.probs, here[result.seed].probs)
    assert [r.path for r in results if r.path] == [kept]
    assert sorted(p.name for p in kept.iterdir()) == sorted(p.name for p in first.iterdir())
    warm = fit(student, train, train_texts, (1,), start={1: kept})[1]
    again = fit(tiny_student(tiny, epochs=2), train, train_texts, (1,), start={1: kept})[1]
    assert np.array_equal(warm.probs, again.probs)
    many = [f"{text} {i}" for i, text in enumerate(make_texts(2100)[0])]
    assert np.allclose(student.embed(many), tiny_student(tiny).embed(many), atol=1e-6)
    assert student.embed([]).shape == (0, 32)
    assert {name for name, _ in unruly.asked} == {"TrainSeeds", "EmbedTexts"}


def test_only_a_model_in_process_is_asked_elsewhere(executor, tmp_path):
    ctx = make(tmp_path)
    section = ctx.config.annotator
    assert isinstance(build_annotator(ctx.config, executor), RecordedAnnotator)
    section = section.model_copy(update={"kind": "local_lm", "model": str(tmp_path)})
    (tmp_path / "config.json").write_text("{}")
    local = ctx.config.model_copy(update={"annotator": section})
    assert isinstance(build_annotator(local, executor), AnnotatorElsewhere)
    ctx.store.close()
    # what workers build by themselves, here the quickest kind that there is
    setup = AnnotatorSetup(ctx.config.annotator.model_dump(), {}, ctx.config.port_labels)
    items = [TextItem(str(i), "text", {"llm": label}) for i, label in enumerate(["good", "bad"])]
    variant = PromptVariant(0, "t", ctx.config.port_labels, ())
    questions = [Question(variant, items), Question(variant, items, count=True)]
    answers = dict(executor.map(AskTexts("recorded", setup), questions, TWO))
    assert answers[0].probs.argmax(axis=1).tolist() == [1, 0]
    assert [len(counts) for counts in answers[1]] == [2, 2]


class Row:
    def __init__(self, text):
        self.text, self.values = text, {"text": text}


@pytest.fixture(scope="module")
def final(tmp_path_factory):
    """A model with two seeds."""
    import torch

    encoder, folder = save_encoder(tmp_path_factory.mktemp("e")), tmp_path_factory.mktemp("m") / "f"
    names = ["seeds/seed-0", "seeds/seed-1"]
    for seed, name in enumerate(["", *names]):
        torch.manual_seed(seed)
        model, tokenizer = load_classifier(encoder, LABELS), load_tokenizer(encoder)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.2)
        tokenizer.model_max_length = 48
        record = {"labels": list(LABELS), "max_tokens": 48}
        kind = {} if name else {"kind": KIND, "seeds": names}
        save_model(model, tokenizer, folder / name, record | kind)
    return folder


def predicted(labeller, pieces):
    rows, done = [], []
    tally = label_rows(labeller, iter(pieces), rows.extend, done.append)
    return rows, tally.labels, sum(done)


def test_predictions_elsewhere_are_those_of_this_machine(final, one_thread, monkeypatch):
    monkeypatch.setattr("loop.deliver.predict.AHEAD", 3)
    rows = [Row(text) for text in [*make_texts(90)[0], " "]]
    pieces = [rows[at : at + 10] for at in range(0, len(rows), 10)]
    for fast in (False, True):
        here = predicted(Labeller(final, device="cpu", fast=fast), pieces)
        unruly = Unruly()
        elsewhere = LabellerElsewhere(final, unruly, device="cpu", fast=fast)
        assert elsewhere.stable is not fast
        assert predicted(elsewhere, pieces) == here
        assert unruly.asked == [("LabelTexts", replace(Unruly.room, gpus=0.0))]


def campaign(folder, tiny, executor, dies_at=None):
    """One round; with an executor its LLM and its student are elsewhere."""
    folder.mkdir()
    ctx = make_elsewhere(folder, tiny, executor, dies_at=dies_at)
    assert run_round(ctx).stage == "done"
    round_ = ctx.store.last_round("c")
    told = {
        "asked": sorted(stored_votes(ctx.store)),
        "votes": {
            (block.variant_hash, row): (probs.tolist(), block.off_label_mass.tolist()[0])
            for block in ctx.store.votes("c", "words")
            for row, probs in zip(
                block.rows.tolist(), block.probs.reshape(len(block.rows), -1), strict=True
            )
        },
        "reviews": [(r.item_id, r.reason, r.rank) for r in ctx.store.reviews("c")],
        "gold": sorted((g.item_id, g.label) for g in ctx.store.gold("c").values()),
        "predictions": {r.seed: r.predictions for r in ctx.store.runs("c")},
        "model": sorted(p.name for p in (ctx.config.out / "models" / "round-1").iterdir()),
    }
    metrics = round_.metrics
    ctx.store.close()  # and not ctx: the executor goes on
    return told, metrics


@pytest.mark.parametrize("kind", ["unruly", RAY])
def test_a_campaign_elsewhere_is_the_same_campaign(
    kind, executors, tiny, tmp_path, one_thread, monkeypatch
):
    monkeypatch.setattr("loop.llm.ask.CHUNK", 16)
    monkeypatch.setattr("loop.report.plots.course_plot", lambda *_: "")
    here, metrics = campaign(tmp_path / "here", tiny, None)
    executor = executors["ray"] if kind == "ray" else Unruly()
    dies_at = texts(90)[40].text if kind == "ray" else None
    elsewhere, others = campaign(tmp_path / "elsewhere", tiny, executor, dies_at)
    assert elsewhere == here
    assert others == metrics
    # the worker that died, the one after it, and the second variant
    assert times(tmp_path / "elsewhere", "dies") == (3 if kind == "ray" else 0)


@NO_RAY
def test_predictions_on_ray_are_those_of_this_machine(final, executors, one_thread):
    """Comes last, because the campaign's workers have loaded the libraries."""
    rows = [Row(text) for text in make_texts(40)[0]]
    pieces = [rows[:20], rows[20:]]
    here = predicted(Labeller(final, device="cpu"), pieces)
    assert predicted(LabellerElsewhere(final, executors["ray"]), pieces) == here
