"""What the examples of a prompt do: drawn or covering, in one prompt or in several, tried or not.

    python tests/bench/bench_demonstrations.py --only mr_smollm2,manifestos --draws 20 --texts 200

Prompts are made in two ways, with as many examples of each class from the same texts with gold: one
draws them, as ``loop.llm.prompts`` does; the other takes, class by class, the example that brings
most texts of the pool nearer to an example (facility location on the embeddings). All prompts
answer the same texts. Told are

- the share of right labels and macro-F1 of single prompts of either way, and their difference,
  paired over the draws, with 95 % t intervals;
- the share of right labels of one, three and eight prompts that vote, and of the three that do
  best of eight on 30 texts of known label, measured on the other texts; mean over 400 drawings.

Development sets only; ``bench_strategies.py --label-missing`` must have labelled them once, so that
their texts are known.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import bench_data
import numpy as np
from bench_strategies import data_folder, points
from sklearn.metrics import f1_score

from connectors.llm.local_lm import LocalLM
from loop.bench.tables import spread
from loop.llm.prompts import draw_demonstrations
from loop.ports import FloatArray, IntArray, TextItem
from loop.prompt import Demonstration, Label, PromptVariant
from strategies.calibrate import batch_calibrate

WAYS = ("drawn", "covering")
FEW, MANY = 3, 8
TRIED_ON, DRAWINGS = 30, 400


def covering_demonstrations(
    candidates: Sequence[Demonstration],
    similarity: FloatArray,
    labels: Sequence[str],
    *,
    shots: int,
    rng: np.random.Generator,
) -> tuple[Demonstration, ...]:
    """One prompt's examples, each class in turn, in random order.

    Args:
        candidates: c texts with gold.
        similarity: (c, n) cosines of the candidates to the texts that are to be covered; half of
            these, drawn at random, are looked at, so that prompts differ.
        shots: examples in all.
    """
    seen = similarity[:, rng.permutation(similarity.shape[1])[: similarity.shape[1] // 2]]
    nearest = np.zeros(seen.shape[1])
    names = [name for name in rng.permutation(labels) if any(d.label == name for d in candidates)]
    chosen: list[int] = []
    for shot in range(shots):
        name = names[shot % len(names)]
        rows = [i for i, d in enumerate(candidates) if d.label == name and i not in chosen]
        if rows:
            gains = np.maximum(seen[rows] - nearest, 0.0).sum(axis=1)
            chosen.append(rows[int(gains.argmax())])
            nearest = np.maximum(nearest, seen[chosen[-1]])
    return tuple(candidates[i] for i in rng.permutation(chosen))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", help="folder with the data sets")
    parser.add_argument("--only", default="mr_smollm2,manifestos")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--texts", type=int, default=80, help="that every prompt is asked about")
    args = parser.parse_args()
    folder = data_folder(args.data)
    model = LocalLM(max_text_tokens=96, threads=1)
    heads = " | ".join(
        ("1 prompt", f"{FEW} prompts", f"{MANY} prompts", f"the best {FEW} of {MANY}")
    )
    print(f"| set | examples | accuracy | macro-F1 | {heads} |\n|---|---|---|---|---|---|---|---|")
    for source in bench_data.SOURCES:
        if source.name not in args.only.split(","):
            continue
        texts, data = bench_data.read_texts(source, folder), bench_data.load(source, folder)
        if source.role != "development" or texts is None or data is None or not texts.aside:
            parser.error(
                f"{source.name} is no development set that the embedded model has labelled"
            )
        shortest = sorted((Demonstration(t, y) for t, y in texts.aside), key=lambda d: len(d.text))
        candidates = shortest[: 2 * len(shortest) // 3]
        shown = bench_data.embed(f"{source.file}-aside", [d.text for d in candidates])
        similarity = np.asarray(shown @ data.embeddings.T, dtype=np.float64)
        labels = tuple(Label(name) for name in data.labels)
        shots = max(bench_data.SHOTS, len(labels))
        rows = np.random.default_rng(7).permutation(len(data.gold))[: args.texts]
        items, gold = [TextItem(str(i), data.texts[i]) for i in rows], data.gold[rows]
        said: dict[str, list[FloatArray]] = {way: [] for way in WAYS}
        for draw in range(args.draws):
            rng = np.random.default_rng([3, draw])
            drawn = draw_demonstrations(candidates, data.labels, shots=shots, variants=1, rng=rng)
            covering = covering_demonstrations(
                candidates, similarity, data.labels, shots=shots, rng=rng
            )
            for way, examples in zip(WAYS, (drawn[0], covering), strict=True):
                prompt = PromptVariant(draw, bench_data.TASKS[source.name], labels, examples)
                said[way].append(model.annotate(prompt, items).probs)
            print(f"{source.name}: draw {draw}", file=sys.stderr)
        told = {way: [quality(probs, gold) for probs in said[way]] for way in WAYS}
        for way in WAYS:
            means = [*np.mean(told[way], axis=0), *votes(np.stack(said[way]), gold)]
            cells = (f"{100 * mean:.1f}" for mean in means)
            print(f"| {source.name} | {way} | {' | '.join(cells)} |", flush=True)
        gains = (np.array(told["covering"]) - np.array(told["drawn"])).T
        cells = (points(spread(gain.tolist())) for gain in gains)
        print(f"| {source.name} | covering minus drawn | {' | '.join(cells)} | | | | |", flush=True)


def calibrated(probs: FloatArray) -> FloatArray:
    """(n, k) batch-calibrated answers of one prompt."""
    return np.asarray(batch_calibrate(probs[:, None])[:, 0], dtype=np.float64)


def quality(probs: FloatArray, gold: IntArray) -> tuple[float, float]:
    """Share of right labels, and macro-F1."""
    labels = calibrated(probs).argmax(axis=1)
    return float((labels == gold).mean()), float(f1_score(gold, labels, average="macro"))


def votes(probs: FloatArray, gold: IntArray) -> list[float]:
    """Share of right labels of one, some and many prompts, and of the best of many on a few texts.

    Args:
        probs: (prompts, n, k).
    """
    rng, made = np.random.default_rng(0), []
    view = [calibrated(answers) for answers in probs]
    for _ in range(DRAWINGS):
        prompts = rng.permutation(len(probs))[:MANY]
        texts = rng.permutation(len(gold))
        known, rest = texts[:TRIED_ON], texts[TRIED_ON:]
        tried = np.stack([calibrated(probs[i][known]) for i in prompts])
        likely = np.log(np.maximum(tried[:, np.arange(len(known)), gold[known]], 1e-6)).mean(axis=1)
        best = prompts[np.argsort(-likely, kind="stable")[:FEW]]
        made.append(
            [
                (np.mean([view[i][rest] for i in used], axis=0).argmax(axis=1) == gold[rest]).mean()
                for used in (prompts[:1], prompts[:FEW], prompts, best)
            ]
        )
    return np.mean(made, axis=0).tolist()


if __name__ == "__main__":
    main()
