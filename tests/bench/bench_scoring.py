"""Time and memory of scoring and selection for a large pool, against FAISS's own search.

    python tests/bench/bench_scoring.py [--items 100000] [--embeddings FILE.npy …]

5 prompt variants, 5 classes and 2 % gold are made up. So are the 384-dimensional embeddings (2,000
overlapping topics whose variance falls along the dimensions as in sentence encoders, 2 % exact
copies), unless files with real ones are named, such as those that the strategy benchmark keeps.
Every step runs in a process of its own after a small warm-up call; memory is its peak minus what
the process held with its arrays loaded (Linux). The floor is the search of the very index that the
neighbour signals use beyond 50,000 items, on the same vectors.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loop.bench.error_predictor import build_features, error_predictor, gold_free_signals
from loop.bench.preferred import preferred
from strategies import STRATEGIES
from strategies.fuse import fuse_ranks
from strategies.pool import Pool
from strategies.repair import repair
from strategies.select import select_batch
from strategies.signals.neighbours import K_NEIGHBOURS, SPARE, nearest
from strategies.signals.students import out_of_fold_probs

CLASSES, VARIANTS, DIMENSIONS, SEEDS, TOPICS = 5, 5, 384, 5, 2000
COPIES, GOLD = 0.02, 0.02
STATES = 576  # dimensions of the LLM's states
BATCH = 1000
QUERIES = 1000
ARRAYS = ("probs", "y_llm", "gold", "embeddings", "p_student", "off_label_mass", "inclusion_prob")


def made_up_embeddings(n: int) -> NDArray[np.float32]:
    """(n, d) unit rows of overlapping topics, some of them copies of others."""
    rng = np.random.default_rng(0)
    spectrum = (np.arange(1, DIMENSIONS + 1) ** -0.35).astype(np.float32)
    centres = rng.normal(size=(TOPICS, DIMENSIONS)).astype(np.float32)
    rows = rng.normal(size=(n, DIMENSIONS)).astype(np.float32)
    rows = (rows + centres[rng.integers(TOPICS, size=n)]) * spectrum
    copies = rng.choice(n, round(COPIES * n), replace=False)
    rows[copies] = rows[rng.integers(n, size=len(copies))]
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def real_embeddings(files: list[Path], n: int) -> NDArray[np.float32]:
    """(at most n, d) distinct rows of .npy files, in random order."""
    rows = np.unique(np.concatenate([np.load(f, allow_pickle=False) for f in files]), axis=0)
    chosen: NDArray[np.float32] = np.random.default_rng(0).permutation(rows)[:n]
    return chosen


def pool_of(embeddings: NDArray[np.float32]) -> Pool:
    """A pool whose LLM errs on about a fifth, as its neighbours and students tell."""
    rng = np.random.default_rng(0)
    n = len(embeddings)
    truth = (embeddings @ rng.normal(size=(DIMENSIONS, CLASSES))).argmax(axis=1)
    leaning = np.where(rng.random(n) < 0.2, rng.integers(CLASSES, size=n), truth)
    probs = rng.dirichlet(np.full(CLASSES, 0.4), size=(n, VARIANTS))
    probs[np.arange(n), :, leaning] += 1.0
    probs /= probs.sum(axis=2, keepdims=True)
    p_student = rng.dirichlet(np.ones(CLASSES), size=(SEEDS, n))
    p_student[:, np.arange(n), truth] += 1.0
    p_student /= p_student.sum(axis=2, keepdims=True)
    return Pool(
        probs=probs,
        y_llm=probs.mean(axis=1).argmax(axis=1).astype(np.int64),
        gold=np.where(rng.random(n) < GOLD, truth, -1).astype(np.int64),
        embeddings=embeddings,
        p_student=p_student,
        off_label_mass=rng.random((n, VARIANTS)),
        ordinal=True,
        inclusion_prob=rng.uniform(0.01, 1.0, size=n),
    )


def with_states(pool: Pool) -> Pool:
    """The pool with states as wide as those of the embedded language model."""
    assert pool.embeddings is not None
    wide = np.hstack([pool.embeddings, pool.embeddings[:, : STATES - DIMENSIONS]])
    return replace(pool, states=wide.astype(np.float16))


def steps() -> dict[str, Callable[[Pool], Any]]:
    """What is measured, by name; each takes the pool."""

    def signal(name: str) -> Callable[[Pool], Any]:
        return lambda pool: STRATEGIES[name](pool, np.random.default_rng(0))

    def suspicion(pool: Pool) -> Any:
        return np.random.default_rng(1).random(pool.n)

    def select(pool: Pool) -> Any:
        return select_batch(
            suspicion(pool),
            np.arange(pool.n),
            min(BATCH, pool.n // 2),
            audit_frac=0.2,
            rng=np.random.default_rng(0),
        )

    def students(pool: Pool) -> Any:
        rng = np.random.default_rng(0)
        weight = np.ones(pool.n)
        return out_of_fold_probs(arrays_of(pool), pool.y_llm, weight, pool.k, seeds=SEEDS, rng=rng)

    def predictor(pool: Pool) -> Any:
        signals = gold_free_signals(replace(pool, embeddings=None))
        features = build_features(signals, pool.y_llm, pool.k, pool.embeddings)
        rows = np.flatnonzero(pool.gold >= 0)
        wrong = pool.gold[rows] != pool.y_llm[rows]
        return error_predictor(features, wrong, rows, rng=np.random.default_rng(0))

    def fuse(pool: Pool) -> Any:
        return fuse_ranks({str(v): pool.probs[:, v, 0] for v in range(4)})

    def mend(pool: Pool) -> Any:
        return repair(pool, "soft", rng=np.random.default_rng(0))

    def quotas(pool: Pool) -> Any:
        return preferred(
            suspicion(pool),
            np.arange(pool.n),
            min(BATCH, pool.n // 2),
            pool,
            min_class_frac=0.1,
            same_text=0.95,
            rng=np.random.default_rng(0),
        )

    return {
        **{name: signal(name) for name in STRATEGIES if name not in ("random", "class_rarity")},
        "out-of-fold students, 5 seeds": students,
        "fusion of 4 signals": fuse,
        "error predictor": predictor,
        f"selection of {BATCH:,}": select,
        "quotas and spread": quotas,
        "repair (soft)": mend,
        "repair (soft), with the LLM's states": lambda pool: mend(with_states(pool)),
    }


def arrays_of(pool: Pool) -> Any:
    """(n, d) embeddings."""
    if pool.embeddings is None:
        raise ValueError("the benchmark's pool has embeddings")
    return pool.embeddings


def load(folder: Path) -> Pool:
    """The pool that the parent wrote."""
    return Pool(ordinal=True, **{name: np.load(folder / f"{name}.npy") for name in ARRAYS})


def memory(field: str) -> int | None:
    """Bytes of a field of /proc/self/status, or None off Linux."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measured(step: Callable[[Pool], Any], pool: Pool) -> dict[str, Any]:
    """Seconds, CPU seconds and bytes above the loaded arrays of one call in this process."""
    step(pool_of(made_up_embeddings(300)))  # imports and first-use costs are not the step's
    held = memory("VmRSS")
    if held is not None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    cpu, began = time.process_time(), time.monotonic()
    step(pool)
    seconds, cpu_s = time.monotonic() - began, time.process_time() - cpu
    peak = memory("VmHWM")
    above = None if held is None or peak is None else max(0, peak - held)
    return {"s": seconds, "cpu_s": cpu_s, "peak_bytes": above}


def floor(pool: Pool) -> dict[str, Any]:
    """FAISS's own time in parts, and what the index finds of what exact search finds."""
    import faiss

    spent: dict[str, float] = {}

    def timed(part: str) -> Callable[..., Any]:
        original = getattr(faiss.IndexRefine, part)

        def call(self: Any, *args: Any) -> Any:
            began = time.process_time()
            try:
                return original(self, *args)
            finally:
                spent[part] = spent.get(part, 0.0) + time.process_time() - began

        return call

    for part in ("train", "add", "search"):
        setattr(faiss.IndexRefine, part, timed(part))
    found: list[Any] = []

    def step(pool: Pool) -> None:
        found[:] = nearest(arrays_of(pool), K_NEIGHBOURS + SPARE + 1, exact_up_to=0)

    whole = measured(step, pool)
    units = arrays_of(pool).astype(np.float32)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    rows = np.random.default_rng(0).choice(pool.n, min(QUERIES, pool.n), replace=False)
    exact = faiss.IndexFlatIP(DIMENSIONS)
    exact.add(units)
    began = time.process_time()
    _, truth = exact.search(units[rows], K_NEIGHBOURS + SPARE + 1)
    cpu_s = time.process_time() - began
    hits = [len(np.intersect1d(a, b)) / len(b) for a, b in zip(found[1][rows], truth, strict=True)]
    error = float(np.std(hits) / np.sqrt(len(hits)))
    return whole | {
        **{f"{part}_cpu_s": value for part, value in spent.items()},
        "recall": float(np.mean(hits)),
        "recall_half_width": 1.96 * error,
        "exact_cpu_s_estimated": cpu_s * pool.n / len(rows),
    }


def report(results: dict[str, dict[str, Any]]) -> str:
    """A Markdown table, the floor's own line first."""
    low = results["floor"]
    own = low["search_cpu_s"]
    out = [
        f"FAISS on the same vectors, CPU-s: training {low['train_cpu_s']:.1f}, adding"
        f" {low['add_cpu_s']:.1f}, searching {own:.1f}; it finds {100 * low['recall']:.1f}"
        f" ± {100 * low['recall_half_width']:.1f} % of the exact neighbours of {QUERIES:,} queries;"
        f" exact search would take {low['exact_cpu_s_estimated']:.0f}.",
        "",
        "| step | CPU-s | of FAISS's search | s | peak memory, MB |",
        "|---|---|---|---|---|",
    ]
    for name, r in results.items():
        title = "FAISS index and search" if name == "floor" else name
        peak = "" if r["peak_bytes"] is None else f"{r['peak_bytes'] / 1e6:.0f}"
        out.append(
            f"| {title} | {r['cpu_s']:.2f} | {r['cpu_s'] / own:.2f} | {r['s']:.1f} | {peak} |"
        )
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--embeddings", type=Path, nargs="+", help="(n, 384) .npy files")
    parser.add_argument("--only", nargs="*", help="names of steps")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        pool = load(given.folder)
        one = floor(pool) if given.step == "floor" else measured(steps()[given.step], pool)
        print(json.dumps(one))
        return
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        if given.embeddings:
            rows = real_embeddings(given.embeddings, given.items)
        else:
            rows = made_up_embeddings(given.items)
        pool = replace(pool_of(rows), embeddings=rows.astype(np.float16))  # as campaigns keep them
        for name in ARRAYS:
            np.save(Path(folder) / f"{name}.npy", getattr(pool, name))
        del pool, rows
        for name in ("floor", *steps()):
            if given.only and name not in ("floor", *given.only):
                continue
            command = [sys.executable, __file__, "--step", name, "--folder", folder]
            # Threads that wait for each other must not count as work.
            calm = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=calm)
            results[name] = json.loads(done.stdout)
            print(f"{name}: {done.stdout.strip()}", file=sys.stderr, flush=True)
    print(report(results))
    if given.out:
        given.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
