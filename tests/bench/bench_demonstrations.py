"""Do examples that cover the texts give better LLM labels than examples drawn per class?

    python tests/bench/bench_demonstrations.py --only mr_smollm2,manifestos

Both ways take as many examples of each class, from the same texts with gold. One draws them, as
``loop.llm.prompts`` does; the other takes, class by class, the example that brings most texts of
the pool nearer to an example (facility location on the embeddings). A draw is one prompt of either
way, asked about the same fresh texts; differences are paired over the draws. Development sets only;
``bench_strategies.py --label-missing`` must have labelled them once, so that their texts are known.
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
from loop.ports import FloatArray, TextItem
from loop.prompt import Demonstration, Label, PromptVariant
from strategies.calibrate import batch_calibrate

WAYS = ("drawn", "covering")


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
    parser.add_argument("--texts", type=int, default=80, help="that each prompt is asked about")
    args = parser.parse_args()
    folder = data_folder(args.data)
    model = LocalLM(max_text_tokens=96, threads=1)
    print("| set | examples | accuracy | macro-F1 |\n|---|---|---|---|")
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
        told: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        for draw in range(args.draws):
            rng = np.random.default_rng([3, draw])
            rows = rng.permutation(len(data.gold))[: args.texts]
            drawn = draw_demonstrations(candidates, data.labels, shots=shots, variants=1, rng=rng)
            covering = covering_demonstrations(
                candidates, similarity, data.labels, shots=shots, rng=rng
            )
            for way, examples in zip(WAYS, (drawn[0], covering), strict=True):
                prompt = PromptVariant(draw, bench_data.TASKS[source.name], labels, examples)
                answers = model.annotate(prompt, [TextItem(str(i), data.texts[i]) for i in rows])
                said = batch_calibrate(answers.probs).argmax(axis=1)
                right = float((said == data.gold[rows]).mean())
                told[way].append((right, float(f1_score(data.gold[rows], said, average="macro"))))
                print(f"{source.name} {draw} {way}: {told[way][-1]}", file=sys.stderr)
        for way in WAYS:
            cells = (f"{100 * mean:.1f}" for mean in np.mean(told[way], axis=0))
            print(f"| {source.name} | {way} | {' | '.join(cells)} |", flush=True)
        gains = (np.array(told["covering"]) - np.array(told["drawn"])).T
        cells = (points(spread(gain.tolist())) for gain in gains)
        print(f"| {source.name} | covering minus drawn | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
