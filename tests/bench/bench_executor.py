"""Two workers against one, on processes and on a Ray of this machine's own, in one run.

    python tests/bench/bench_executor.py --repeats 3

Trains seeds of a small encoder of random weights and embeds texts with it, in turns with one and
with two workers of one thread each. Workers are started, and what they need is loaded, before the
clock starts. On a machine that others use as well the ratios say more than the seconds.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from tiny_encoder import LABELS, make_texts, save_encoder, training_set  # noqa: E402

from loop.executor.folders import PackedFolder  # noqa: E402
from loop.executor.local import LocalExecutor  # noqa: E402
from loop.executor.ray_actors import RayExecutor  # noqa: E402
from loop.ports import Executor, Resources  # noqa: E402
from loop.student.encoder_student import EmbedTexts, EncoderStudent  # noqa: E402
from loop.student.seed_jobs import Seed, TrainSeeds  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--blocks", type=int, default=8)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    encoder = save_encoder(Path(tempfile.mkdtemp()))
    texts, y = make_texts(args.texts)
    student = EncoderStudent(encoder, epochs=6, lr=2e-3, precision="fp32", device="cpu", workers=1)
    lesson = student._lesson(training_set(texts, y), texts, LABELS, {}, {}, print)
    files = PackedFolder.of(encoder)
    settings = student._settings
    work = {
        "seeds": (TrainSeeds(lesson, files), [Seed(i, None) for i in range(args.seeds)]),
        "embedding": (EmbedTexts(files, settings), [texts * 2] * args.blocks),
    }
    seconds: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    answers: dict[str, list[np.ndarray]] = {}
    for kind in ("processes", "ray"):
        executor: Executor = RayExecutor("local", workers=2) if kind == "ray" else LocalExecutor()
        for name, (job, blocks) in work.items():
            list(run(executor, job, [*blocks[:2]] * 2, 2))
            for _ in range(args.repeats):
                for n in (1, 2):
                    started = time.perf_counter()
                    results = dict(run(executor, job, blocks, n))
                    seconds[f"{kind}, {name}"][n].append(time.perf_counter() - started)
                    first = results[0]
                    numbers = first[0].probs if isinstance(first, tuple) else first
                    answers.setdefault(name, []).append(np.asarray(numbers))
        executor.close()
    for what, by_workers in seconds.items():
        one, two = (sorted(by_workers[n])[len(by_workers[n]) // 2] for n in (1, 2))
        faster = f"{one / two:.2f} times faster"
        print(f"{what:22s} one worker {one:6.2f} s, two {two:6.2f} s, {faster}", flush=True)
    same = all(np.array_equal(a, found[0]) for found in answers.values() for a in found)
    print(f"results equal, digit by digit: {same}")


def run(executor: Executor, job: Any, blocks: list[Any], workers: int) -> Iterator[Any]:
    """Results of a job with so many workers; one is no process of its own but for this."""
    if isinstance(executor, LocalExecutor):
        return executor._crew.map(job, blocks, workers, lambda _n: None, lambda _line: None)
    return executor.map(job, blocks, Resources(workers))


if __name__ == "__main__":
    main()
