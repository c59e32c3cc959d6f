"""What the student's options do: best epoch against the last one, warm start against a cold one.

    python tests/bench/bench_options.py --data ../shared/data/babe_llm.parquet \
        --llm-column llm_gpt_3_5__0shot

Round 1 learns the LLM's labels of ``--train`` texts; in round 2 a fifth of them, drawn at random,
have their gold label. ``--dev`` further texts with gold choose the best epoch. Differences are
paired over test texts and carry 95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from connectors.assets import minilm_dir
from loop.ports import KnownTexts, TrainingSet
from loop.stability import measure, paired_difference
from loop.student import EncoderStudent

METRICS = ("accuracy", "macro_f1", "alpha_k")


def main() -> None:
    """Trains four sets of seeds and prints two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="Parquet: text, label, split")
    parser.add_argument("--llm-column", required=True)
    parser.add_argument("--encoder", help="model folder or hub name; default: embedded MiniLM")
    parser.add_argument("--train", type=int, default=300)
    parser.add_argument("--dev", type=int, default=60)
    parser.add_argument("--test", type=int, default=900)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=1e-4)
    args = parser.parse_args()

    columns = ["text", "label", "split", args.llm_column]
    table = pq.read_table(args.data, columns=columns).to_pydict()
    names = sorted(set(table["label"]))
    llm, split = np.array(table[args.llm_column]), np.array(table["split"])
    y = np.array([names.index(label) for label in table["label"]])
    rng = np.random.default_rng(0)
    usable = rng.permutation(np.flatnonzero((split == "train") & np.isin(llm, names)))
    train, dev = usable[: args.train], usable[args.train : args.train + args.dev]
    test = rng.permutation(np.flatnonzero(split == "test"))[: args.test]
    y_llm = np.array([names.index(label) for label in llm[train]])
    bought = np.arange(len(train)) < len(train) // 5  # the order is random already
    y_round_2 = np.where(bought, y[train], y_llm)
    texts = [[table["text"][row] for row in rows] for rows in (train, dev, test)]
    print(
        f"{len(train)} texts, {100 * (y_llm == y[train]).mean():.1f} % labelled right, "
        f"{100 * (y_round_2 == y[train]).mean():.1f} % in round 2; {len(dev)} dev, {len(test)} test"
    )

    def student(**options: str) -> EncoderStudent:
        encoder = args.encoder or minilm_dir()
        return EncoderStudent(encoder, lr=args.lr, epochs=args.epochs, **options)

    predictions = {}
    with tempfile.TemporaryDirectory() as folder:
        models = {seed: Path(folder) / f"seed-{seed}" for seed in range(args.seeds)}
        last, best = student(), student(checkpoint="best")
        arms = (
            ("round 1, last epoch", last, y_llm, {"keep": models}),
            ("round 1, best epoch", best, y_llm, {"keep": {}}),
            ("round 2, cold start", last, y_round_2, {"keep": {}}),
            ("round 2, warm start", last, y_round_2, {"keep": {}, "start": models}),
        )
        print(f"{'':20} | seconds | " + " | ".join(f"{m:>20}" for m in METRICS))
        for name, learner, labels, options in arms:
            learner.fit(  # the processes start here, outside the clock
                TrainingSet(["a", "b"], np.eye(len(names))[[0, 1]], np.ones(2)),
                [],
                names,
                range(args.seeds),
                keep={},
                on_seed=lambda _result: None,
            )
            found: dict[int, np.ndarray] = {}
            started = time.perf_counter()
            learner.fit(
                TrainingSet(
                    texts[0],
                    np.eye(len(names))[labels],
                    np.ones(len(train)),
                    KnownTexts(texts[1], y[dev]),
                ),
                texts[2],
                names,
                range(args.seeds),
                on_seed=lambda result, found=found: found.update({result.seed: result.probs}),
                say=print,
                **options,
            )
            seconds = time.perf_counter() - started
            predictions[name] = np.stack([found[s].argmax(1) for s in range(args.seeds)])
            scores = measure(predictions[name], y[test], len(names), rng=np.random.default_rng(0))
            cells = [
                f"{100 * m.value:.1f} ({100 * m.low:.1f}–{100 * m.high:.1f})"
                for m in (getattr(scores, metric) for metric in METRICS)
            ]
            cells = [f"{name:20}", f"{seconds:7.1f}", *(f"{c:>20}" for c in cells)]
            print(" | ".join(cells), flush=True)
        last.close()
        best.close()

    for a, b in (
        ("round 1, last epoch", "round 1, best epoch"),
        ("round 2, cold start", "round 2, warm start"),
    ):
        print(f"\n{b}, minus {a}:")
        for metric in METRICS:
            d = paired_difference(
                predictions[a],
                predictions[b],
                y[test],
                metric,
                k=len(names),
                rng=np.random.default_rng(0),
            )
            print(f"  {metric}: {100 * d.value:+.1f} ({100 * d.low:+.1f} to {100 * d.high:+.1f})")


if __name__ == "__main__":
    main()
