"""How many flips the consistency cascade finds, on answers that are all known beforehand.

    python tests/bench/bench_cascade.py --data FOLDER

Every prompt was asked of every text, so that flips found can be counted against all flips: `babe`
holds recorded labels of eight LLMs under five settings, without probabilities. The same with
probabilities, and what calibration is worth, is in ``bench_annotators``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from loop.llm.cascade import flipped, next_calls
from loop.llm.votes import mean_vote
from strategies.calibrate import batch_calibrate

SETTINGS = ("0shot", "2shot", "4shot", "8shot", "0shot_system_prompt")
MODELS = (
    *("gpt_3_5", "gpt_4", "llama_13b", "mistral_7b"),
    *("mixtral_8x7b", "openchat", "zephyr", "flan_ul2"),
)
REPEATS = 5


def cascade(full: Any, calls_per_item: float, calibrate: Callable[[Any], Any], seed: int) -> Any:
    """The answers that the cascade takes out of all answers."""
    taken = np.full_like(full, np.nan)
    taken[:, 0] = full[:, 0]
    refused = np.zeros(full.shape[:2], dtype=bool)
    rng = np.random.default_rng(seed)
    budget = int(calls_per_item * len(full))
    while len(calls := next_calls(taken, calibrate, budget=budget, rng=rng, refused=refused)):
        rows, variants = calls.T
        taken[rows, variants] = full[rows, variants]
        mute = ~np.isfinite(full[rows, variants]).all(axis=1)
        refused[rows[mute], variants[mute]] = True
    return taken


def at_random(full: Any, calls_per_item: float, seed: int) -> Any:
    """As many further calls, to any text and prompt."""
    taken = np.full_like(full, np.nan)
    taken[:, 0] = full[:, 0]
    n, m, _ = full.shape
    further = np.random.default_rng(seed).permutation(n * (m - 1))[: int((calls_per_item - 1) * n)]
    rows, variants = further // (m - 1), further % (m - 1) + 1
    taken[rows, variants] = full[rows, variants]
    return taken


def calls_line(name: str, full: Any, gold: Any) -> str:
    """One row of the table."""
    keep = np.isfinite(full[:, 0]).all(axis=1)
    full, gold = full[keep], gold[keep]
    view = batch_calibrate
    every = flipped(view(full))
    cells = [f"{name:<24}", f"{len(full):5}", f"{full.shape[1]}", f"{100 * every.mean():5.1f}"]
    kept = None
    for calls in (1.25, 1.5, 2.0):
        found, shares = [], []
        for seed in range(REPEATS):
            taken = cascade(full, calls, view, seed)
            if calls == 1.5 and seed == 0:
                kept = taken
            found.append((flipped(view(taken)) & every)[every])
            shares.append(np.isfinite(taken).all(axis=2).sum() / len(full))
        low, high = (100 * end for end in _bootstrap(np.mean(found, axis=0)))
        share = 100 * np.mean(found)
        cells.append(f"{share:5.1f} ({low:3.0f}–{high:3.0f}) @{np.mean(shares):.2f}")
    luck = [(flipped(view(at_random(full, 1.5, s))) & every).sum() for s in range(REPEATS)]
    cells.append(f"{100 * np.mean(luck) / max(every.sum(), 1):5.1f}")
    cells.append(f"{1 + 0.9 * every.mean():.2f}")
    for probs in (full[:, :1], kept, full):
        right = mean_vote(view(probs)).argmax(axis=1) == gold
        cells.append(f"{100 * right.mean():5.1f}")
    return " | ".join(cells)


def _bootstrap(values: Any) -> tuple[float, float]:
    if not len(values):
        return float("nan"), float("nan")
    rng = np.random.default_rng(0)
    means = np.asarray(values)[rng.integers(len(values), size=(1000, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def babe(data: Path) -> Iterator[tuple[str, Any, Any]]:
    """Recorded labels as one-hot votes, with the experts' labels."""
    import pandas as pd

    frame = pd.read_parquet(data / "babe_llm.parquet")
    frame = frame[frame["split"] == "train"]
    labels = ("biased", "not biased")
    gold = np.array([labels.index(y) for y in frame["label"]])
    for model in MODELS:
        full = np.full((len(frame), len(SETTINGS), 2), np.nan)
        for v, setting in enumerate(SETTINGS):
            for c, label in enumerate(labels):
                said = (frame[f"llm_{model}__{setting}"] == label).to_numpy()
                full[said, v] = np.eye(2)[c]
        yield f"babe {model}", full, gold


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    given = parser.parse_args()
    print("Flips found in % of all flips (95 %), at calls per text; accuracy of the mean vote in %")
    print(
        "votes | texts | prompts | flip rate | 1.25 | 1.5 | 2.0 | 1.5 at random"
        " | fewest calls for 90 % | first prompt | cascade 1.5 | all prompts"
    )
    for name, full, gold in babe(given.data):
        print(calls_line(name, full, gold), flush=True)


if __name__ == "__main__":
    main()
