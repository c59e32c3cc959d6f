"""What a round costs on a large pool: CPU time and memory of every step, in the store's own hands.

    python tests/bench/bench_scale.py [--texts 10000 100000] [--store URL] [--plain]

A campaign of made-up texts with the default signals and soft repair; ``--plain`` takes entropy and
no repair instead, so that nothing but the loop itself takes long. The LLM, the embeddings, the
people and the student are looked up rather than computed, so that what is measured is the loop:
five prompts, five classes, embeddings and votes as in ``bench_scoring``. Every step runs in a
process of its own; its memory is that process's peak, Python and the libraries included. The CPU
time of the strategies (signals, repair, selection, frozen students, statistics of the students)
stands apart from the rest, which is reading, writing and moving rows about. The floor is
``executemany`` of as many bare votes into SQLite, one row each.
"""

from __future__ import annotations

import argparse
import gc
import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from bench_scoring import CLASSES, VARIANTS, made_up_embeddings, pool_of
from numpy.typing import NDArray

from loop import next_round
from loop import round as stages
from loop.campaign.config import Config
from loop.campaign.context import Context, Parts
from loop.campaign.store import Store
from loop.deliver.export import final_labels
from loop.ports import (
    ClassProbs,
    Fetched,
    FetchedTask,
    Progress,
    RawAnnotation,
    SeedResult,
    no_progress,
)
from loop.report.collect import write_outputs
from loop.report.status import campaign_status

LABELS = tuple(f"class {c}" for c in range(CLASSES))
TESTS = 1000
STEPS = (
    "import",
    "annotate",
    "score",
    "select",
    "push",
    "pull",
    "adjudicate",
    "repair",
    "train",
    "measure",
    "status",
    "export",
    "report",
)
TIMED = (
    "suspicion_by",
    "select_batch",
    "fuse_ranks",
    "repair_labels",
    "leading_components",
    "predictor_metrics",
)


class Row(NamedTuple):
    """A row of the source."""

    text: str
    gold: str | None
    split: str
    meta: Mapping[str, Any] = {}


class World:
    """What the parts look up: votes, embeddings and the truth about n texts, and their tasks."""

    revision = "made up"

    def __init__(self, folder: Path) -> None:
        self.embeddings = np.load(folder / "embeddings.npy", mmap_mode="r")
        self.probs = np.load(folder / "probs.npy", mmap_mode="r")
        self.truth = np.load(folder / "truth.npy")
        self.path = folder / "tasks.json"
        self.tasks: dict[str, str] = json.loads(self.path.read_text()) if self.path.exists() else {}

    @staticmethod
    def build(folder: Path, n: int) -> None:
        embeddings = made_up_embeddings(n + TESTS)
        pool = pool_of(embeddings)
        truth = (embeddings @ np.random.default_rng(0).normal(size=(384, CLASSES))).argmax(axis=1)
        np.save(folder / "embeddings.npy", embeddings)
        np.save(folder / "probs.npy", pool.probs)
        np.save(folder / "truth.npy", truth)

    # the annotator

    def annotate(self, variant: Any, items: Sequence[Any]) -> ClassProbs:
        rows = [_number(item.text) for item in items]
        n = len(rows)
        return ClassProbs(self.probs[rows, variant.index], np.zeros(n), np.full(n, 100))

    def close(self) -> None:
        pass

    # the student

    def embed(self, texts: Sequence[str], progress: Progress = no_progress) -> NDArray[np.float32]:
        progress(len(texts))
        return np.asarray(self.embeddings[[_number(text) for text in texts]])

    def fit(
        self,
        train: Any,
        eval_texts: Sequence[str],
        labels: Sequence[str],
        seeds: Sequence[int],
        *,
        on_seed: Callable[[SeedResult], None],
        **_: Any,
    ) -> None:
        truth = self.truth[[_number(text) for text in eval_texts]]
        for seed in seeds:
            rng = np.random.default_rng(seed)
            said = np.where(
                rng.random(len(truth)) < 0.2, rng.integers(CLASSES, size=len(truth)), truth
            )
            on_seed(SeedResult(seed, np.eye(CLASSES)[said], 0.0, None))

    # Label Studio and its people

    def open_project(self, project_id: str | None) -> str:
        return project_id or "1"

    def send(self, tasks: Sequence[Any], progress: Progress = no_progress) -> dict[str, str]:
        self.tasks |= {task.item_id: str(_number(task.text)) for task in tasks}
        self.path.write_text(json.dumps(self.tasks))
        return {task.item_id: self.tasks[task.item_id] for task in tasks}

    def fetch(self, cursor: str | None) -> Fetched:
        fetched = [
            FetchedTask(task, item, (self._answer(item, task),))
            for item, task in self.tasks.items()
        ]
        return Fetched(tuple(fetched), "1", whole=cursor is None)

    def _answer(self, item: str, task: str) -> RawAnnotation:
        return RawAnnotation(
            annotation_id=f"a{task}",
            task_id=task,
            item_id=item,
            annotator="ann",
            label=LABELS[self.truth[int(task)]],
            skipped=False,
            note="",
            lead_time_s=9.0,
            updated_at="000001",
            problem=None,
            raw={"result": [{"value": {"choices": [LABELS[self.truth[int(task)]]]}}]},
        )


def _number(text: str) -> int:
    return int(text.rsplit(" ", 1)[1])


def campaign(folder: Path, n: int, url: str, *, plain: bool) -> Context:
    """A campaign of n pool texts and 1,000 test texts."""
    world = World(folder)

    def rows() -> list[Row]:
        said = "A made-up text of about the length of a tweet, and nobody said it, number"
        return [
            Row(
                f"{said} {i}",
                LABELS[world.truth[i]] if i >= n else None,
                "test" if i >= n else "pool",
            )
            for i in range(n + TESTS)
        ]

    config = Config.model_validate(
        {
            "campaign": {"name": "large", "task": "t"},
            "labels": [{"name": name} for name in LABELS],
            "texts": {"source": "made-up.csv", "split_column": "split"},
            "annotator": {"kind": "local_lm"},
            "prompt": {"shots": 0, "variants": VARIANTS, "calls_per_item": 0},
            "budget": {"labels": 3000},
            "rounds": {"batch_size": 1000},
            "student": {"references": ["llm_only"]},
            "strategy": {"signals": ["entropy_calibrated"], "repair": "keep"} if plain else {},
        }
    )
    config._folder = folder
    parts: Any = {
        "texts": rows,
        **dict.fromkeys(("annotator", "reviewer", "student"), lambda: world),
    }
    return Context(config, Store(url), Parts(**parts))


@contextmanager
def clock(spent: dict[str, float]) -> Iterator[None]:
    """Adds up the CPU time that the strategies take; one inside another counts once."""
    inside = False

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            if inside:
                return function(*args, **kwargs)
            began, inside = time.process_time(), True
            try:
                return function(*args, **kwargs)
            finally:
                spent["strategies"] += time.process_time() - began
                inside = False

        return call

    from loop import pool_arrays
    from loop.measure import round_metrics
    from loop.student.frozen_student import FrozenHeads
    from strategies.signals import neighbours, students

    with (
        mock.patch.object(FrozenHeads, "probs", timed(FrozenHeads.probs)),
        mock.patch.multiple(
            students,
            out_of_fold_probs=timed(students.out_of_fold_probs),
            gold_students=timed(students.gold_students),
        ),
        mock.patch.multiple(stages, **{name: timed(getattr(stages, name)) for name in TIMED}),
        mock.patch.object(neighbours, "find_neighbours", timed(neighbours.find_neighbours)),
        mock.patch.object(pool_arrays, "choose_view", timed(pool_arrays.choose_view)),
        mock.patch.object(round_metrics, "_measured", timed(round_metrics._measured)),
    ):
        yield


def one_step(step: str, folder: Path, n: int, url: str, *, plain: bool = False) -> dict[str, float]:
    """Runs a step; its CPU seconds, those of the strategies in it, seconds, and the peak in MB."""
    gc.set_threshold(50_000)  # as the command line does
    ctx = campaign(folder, n, url, plain=plain)
    work: dict[str, Callable[[], object]] = {
        "import": lambda: next_round.open_campaign(ctx),
        "status": lambda: campaign_status(ctx.config, ctx.store),
        "export": lambda: final_labels(ctx.config, ctx.store),
        "report": lambda: write_outputs(ctx.config, ctx.store),
    }
    spent = {"strategies": 0.0}
    began, cpu = time.monotonic(), time.process_time()
    with clock(spent):
        if step in work:
            work[step]()
        else:
            (round_,) = ctx.store.rounds(ctx.name) or [next_round.open_round(ctx)]
            if round_.stage != step:
                raise SystemExit(f"the round is at {round_.stage}, not {step}")
            stages.RUN[step](ctx, round_)
    used = time.process_time() - cpu
    ctx.store.close()
    # ru_maxrss would begin with what the process that started this one held
    (line,) = (x for x in Path("/proc/self/status").read_text().split("\n") if x[:6] == "VmHWM:")
    peak = float(line.split()[1]) / 1024
    return {"cpu": used, "seconds": time.monotonic() - began, "peak": peak} | spent


def floor(folder: Path, n: int) -> float:
    """CPU seconds of ``executemany`` for n x 5 bare votes, one row each, into SQLite."""
    rows = [
        (f"{i:020x}", f"prompt {v}", "[0.1, 0.2, 0.3, 0.2, 0.2]", 0.0)
        for i in range(n)
        for v in range(VARIANTS)
    ]
    began = time.process_time()
    with sqlite3.connect(folder / "floor.db") as connection:
        connection.execute("CREATE TABLE vote (item TEXT, prompt TEXT, probs TEXT, off REAL)")
        connection.executemany("INSERT INTO vote VALUES (?, ?, ?, ?)", rows)
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--texts", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--store", help="PostgreSQL URL of an empty database; default SQLite")
    parser.add_argument("--plain", action="store_true", help="entropy as the signal, no repair")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.folder:
        (n,) = given.texts
        print(json.dumps(one_step(given.step, given.folder, n, given.store, plain=given.plain)))
        return
    for n in given.texts:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            World.build(folder, n)
            url = given.store or f"sqlite:///{folder / 'large.db'}"
            print(f"\n{n:,} texts, {VARIANTS} prompts; floor: {floor(folder, n):.1f} CPU-s\n")
            print("| step | CPU-s | of that strategies | ours, CPU-s per 10,000 | s | peak, MB |")
            print("|---|---|---|---|---|---|", flush=True)
            total = {"cpu": 0.0, "strategies": 0.0, "seconds": 0.0, "peak": 0.0}
            for step in STEPS:
                command = [sys.executable, __file__, "--step", step, "--texts", str(n)]
                command += ["--folder", name, "--store", url, *["--plain"] * given.plain]
                out = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
                used = json.loads(out.splitlines()[-1])
                print(_row(step, used, n), flush=True)
                if step in stages.RUN:
                    for key, value in used.items():
                        total[key] = max(total[key], value) if key == "peak" else total[key] + value
            print(_row("a round", total, n), flush=True)


def _row(step: str, used: Mapping[str, float], n: int) -> str:
    ours = used["cpu"] - used["strategies"]
    return (
        f"| {step} | {used['cpu']:.2f} | {used['strategies']:.2f} | {1e4 * ours / n:.2f}"
        f" | {used['seconds']:.1f} | {used['peak']:.0f} |"
    )


if __name__ == "__main__":
    main()
