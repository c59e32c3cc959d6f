"""What the cascade and calibration are worth, on answers that are all known beforehand.

    python tests/bench/bench_cascade.py --data FOLDER [--votes FOLDER] [--label sst5 …]

Every prompt was asked of every text, so that flips found can be counted against all flips.
`babe` holds recorded labels of eight LLMs under five settings, without probabilities. For
``NAME.npz`` files with ``probs`` (n, m, k) and ``ids`` the votes have probabilities; ``--label``
has the embedded language model make them (500 texts, 5 prompts).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from bench_data import SOURCES, TASKS, read_texts

from connectors.assets import cache_dir
from loop.votes import mean_vote
from loop.cascade import flipped, next_calls
from strategies.calibrate import batch_calibrate, prior_from_gold
from strategies.scaling import calibration_error, reliability, scale_with_gold
from strategies.uncertainty import normalised_entropy

SETTINGS = ("0shot", "2shot", "4shot", "8shot", "0shot_system_prompt")
MODELS = (
    *("gpt_3_5", "gpt_4", "llama_13b", "mistral_7b"),
    *("mixtral_8x7b", "openchat", "zephyr", "flan_ul2"),
)
TEXTS, PROMPTS, AUDIT, REPEATS = 500, 5, 150, 5


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


def calls_line(name: str, full: Any, prior: Any, gold: Any) -> str:
    """One row of the first table."""
    keep = np.isfinite(full[:, 0]).all(axis=1)
    full, gold = full[keep], None if gold is None else gold[keep]

    def view(probs: Any) -> Any:
        return batch_calibrate(probs, prior)

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
    if gold is not None:
        for probs in (full[:, :1], kept, full):
            right = mean_vote(view(probs)).argmax(axis=1) == gold
            cells.append(f"{100 * right.mean():5.1f}")
    return " | ".join(cells)


def calibration_lines(name: str, full: Any, prior: Any, gold: Any) -> Iterator[str]:
    """Rows of the second table: measured on texts outside the audit, all prompts asked."""
    from sklearn.metrics import f1_score, roc_auc_score

    rng = np.random.default_rng(0)
    audit = np.isin(np.arange(len(gold)), rng.choice(len(gold), AUDIT, replace=False))
    known = np.where(audit, gold, -1)
    k = full.shape[2]
    mix = prior_from_gold(known, None, k, pseudo=3.0)
    fitted = np.nanmean(batch_calibrate(full, mix), axis=1)
    views = {
        "raw": np.nanmean(full, axis=1),
        "batch, flat mix": np.nanmean(batch_calibrate(full), axis=1),
        "batch, stated mix": np.nanmean(batch_calibrate(full, prior), axis=1),
        f"batch, mix of {AUDIT} gold": fitted,
        f"scaled to {AUDIT} gold": scale_with_gold(fitted, known, rng=rng),
    }
    for title, probs in views.items():
        p, truth = probs[~audit], gold[~audit]
        right = p.argmax(axis=1) == truth
        low, high = (100 * end for end in _bootstrap(right))
        f1 = f1_score(truth, p.argmax(axis=1), average="macro", zero_division=0)
        auroc = (
            np.nan
            if right.all() or not right.any()
            else float(roc_auc_score(~right, normalised_entropy(p)))
        )
        yield (
            f"{name:<12} | {title:<22} | {100 * right.mean():5.1f} ({low:.0f}–{high:.0f})"
            f" | {100 * f1:5.1f} | {100 * calibration_error(reliability(p, truth)):5.1f}"
            f" | {100 * auroc:5.1f}"
        )


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


def label(name: str, data: Path, folder: Path) -> None:
    """Has the embedded language model answer every prompt for every text."""
    from connectors.local_lm import LocalLM
    from loop.variants import draw_demonstrations
    from loop.ports import Demonstration, Label, PromptVariant, TextItem

    source = next(s for s in SOURCES if s.name == name)
    texts = read_texts(source, data)
    if texts is None or (folder / f"{name}.npz").exists():
        return
    shown = sorted((Demonstration(t, y) for t, y in texts.aside), key=lambda d: len(d.text))
    sets = draw_demonstrations(
        shown[: 2 * len(shown) // 3],
        texts.labels,
        shots=max(3, len(texts.labels)),
        variants=PROMPTS,
        rng=np.random.default_rng(0),
    )
    drawn = np.random.default_rng(1).permutation(len(texts.ids))[:TEXTS]
    items = [TextItem(texts.ids[i], texts.texts[i]) for i in drawn]
    model = LocalLM(max_text_tokens=96, threads=1)
    labels = tuple(Label(y) for y in texts.labels)
    answers = [
        model.annotate(PromptVariant(v, TASKS[name], labels, demos), items)
        for v, demos in enumerate(sets)
    ]
    counts = np.bincount([texts.labels.index(y) for _, y in texts.aside], minlength=len(labels))
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        folder / f"{name}.npz",
        ids=np.array([item.id for item in items]),
        probs=np.stack([a.probs for a in answers], axis=1),
        class_prior=(counts + 1) / (counts + 1).sum(),
    )


def votes(folder: Path, data: Path) -> Iterator[tuple[str, Any, Any, Any]]:
    """Votes with probabilities, and the gold labels of their texts."""
    for path in sorted(folder.glob("*.npz")):
        source = next((s for s in SOURCES if s.name == path.stem), None)
        texts = read_texts(source, data) if source else None
        if texts is None:
            continue
        held = np.load(path, allow_pickle=False)
        truth = dict(zip(texts.ids, texts.gold, strict=True))
        gold = np.array([texts.labels.index(truth[str(i)]) for i in held["ids"]])
        yield path.stem, held["probs"], held["class_prior"], gold


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--votes", type=Path, default=cache_dir() / "bench" / "cascade")
    parser.add_argument("--label", nargs="*", default=[])
    given = parser.parse_args()
    for name in given.label:
        label(name, given.data, given.votes)
    print("Flips found in % of all flips (95 %), at calls per text; accuracy of the mean vote in %")
    print(
        "votes | texts | prompts | flip rate | 1.25 | 1.5 | 2.0 | 1.5 at random"
        " | fewest calls for 90 % | first prompt | cascade 1.5 | all prompts"
    )
    for name, full, gold in babe(given.data):
        print(calls_line(name, full, None, gold), flush=True)
    held = list(votes(given.votes, given.data))
    for name, full, prior, gold in held:
        print(calls_line(f"{name}, stated mix", full, prior, gold), flush=True)
        print(calls_line(f"{name}, flat mix", full, None, gold), flush=True)
    print(
        "\nAll prompts, on texts outside the audit; ECE and AUROC of entropy at wrong labels in %"
    )
    print("votes | view | accuracy (95 %) | macro-F1 | ECE | AUROC")
    for name, full, prior, gold in held:
        print(*calibration_lines(name, full, prior, gold), sep="\n", flush=True)


if __name__ == "__main__":
    main()
