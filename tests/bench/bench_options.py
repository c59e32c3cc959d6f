"""What the student's options do to quality and time, each against the default.

    python tests/bench/bench_options.py --data babe_llm.parquet --llm-column llm_gpt_3_5__0shot
    python tests/bench/bench_options.py --data toxic.parquet --only class_weights
    python tests/bench/bench_options.py --data manifestos.parquet --only epochs batch_size \
        --max-tokens 64
    python tests/bench/bench_options.py --data imdb.parquet --llm-column llm_llama2_70b \
        --only long_texts --max-tokens 128
    python tests/bench/bench_options.py --data babe_llm.parquet --only learning_rate \
        --rates 2e-5 1e-4 5e-4 --train 1000 --test 400 --seeds 3 --max-tokens 64

The students learn the LLM's labels of ``--train`` texts, or gold without ``--llm-column``;
``--dev`` further texts with gold choose the best epoch. For the warm start a fifth of the texts,
drawn at random, have their gold label in a second round. Differences are paired over test texts
and carry 95 % bootstrap intervals; seeds are the same on both sides.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from connectors.downloads.models import minilm_dir
from loop.measure.stability import measure, paired_differences
from loop.ports import KnownTexts, TrainingSet
from loop.student.encoder_student import EncoderStudent
from loop.student.nothing_learned import has_learned

METRICS = ("accuracy", "macro_f1", "alpha_k")
OPTIONS = {
    "checkpoint": "best",
    "class_weights": "balanced",
    "long_texts": "windows",
    "epochs": 9,
    "batch_size": 8,
}
COMPARED = (*OPTIONS, "warm_start", "learning_rate")


@dataclass(frozen=True)
class Data:
    """Texts and classes of the three splits, and what the LLM said of the first."""

    names: list[str]
    train: list[str]
    y_train: np.ndarray
    y_llm: np.ndarray
    dev: KnownTexts
    test: list[str]
    y_test: np.ndarray


def read(args: argparse.Namespace) -> Data:
    """Draws the splits."""
    columns = ["text", "label", "split", *([args.llm_column] if args.llm_column else [])]
    table = pq.read_table(args.data, columns=columns).to_pydict()
    names = sorted(set(table["label"]))
    llm, split = np.array(table[args.llm_column or "label"]), np.array(table["split"])
    y = np.array([names.index(label) for label in table["label"]])
    rng = np.random.default_rng(0)
    usable = rng.permutation(np.flatnonzero((split == "train") & np.isin(llm, names)))
    train, dev = usable[: args.train], usable[args.train : args.train + args.dev]
    test = rng.permutation(np.flatnonzero(split == "test"))[: args.test]

    def texts(rows: np.ndarray) -> list[str]:
        return [table["text"][row] for row in rows]

    y_llm = np.array([names.index(label) for label in llm[train]])
    known = KnownTexts(texts(dev), y[dev])
    return Data(names, texts(train), y[train], y_llm, known, texts(test), y[test])


def main() -> None:
    """Trains two sets of seeds for each option and prints how they differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="Parquet: text, label, split")
    parser.add_argument("--llm-column", help="default: learn gold")
    parser.add_argument("--only", nargs="+", choices=COMPARED, default=["checkpoint", "warm_start"])
    parser.add_argument("--encoder", help="model folder or hub name; default: embedded MiniLM")
    parser.add_argument("--train", type=int, default=300)
    parser.add_argument("--dev", type=int, default=60)
    parser.add_argument("--test", type=int, default=900)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-5, 1e-4, 5e-4])
    parser.add_argument("--max-tokens", type=int, default=256)
    args = parser.parse_args()
    data = read(args)
    bought = np.arange(len(data.train)) < len(data.train) // 5  # the order is random already
    y_round_2 = np.where(bought, data.y_train, data.y_llm)
    print(
        f"{args.data.name}: {len(data.train)} texts, "
        f"{100 * (data.y_llm == data.y_train).mean():.1f} % labelled right, "
        f"{100 * (y_round_2 == data.y_train).mean():.1f} % in round 2; "
        f"{len(data.dev.texts)} dev, {len(data.test)} test"
    )
    print(f"{'':22} | learned | seconds | " + " | ".join(f"{m:>20}" for m in METRICS))
    with tempfile.TemporaryDirectory() as folder:
        models = {seed: Path(folder) / f"seed-{seed}" for seed in range(args.seeds)}
        for rate in args.rates if "learning_rate" in args.only else ():
            trained(args, data, f"learning rate {rate:g}", data.y_llm, {"lr": rate})
        compared = [name for name in args.only if name != "learning_rate"]
        if compared:
            base = trained(args, data, "default", data.y_llm, keep=models)
        for name in compared:
            if name == "warm_start":
                cold = trained(args, data, "round 2, cold start", y_round_2)
                warm = trained(args, data, "round 2, warm start", y_round_2, start=models)
                tell(data, "warm start against cold start", cold, warm)
            else:
                value = OPTIONS[name]
                other = trained(args, data, f"{name} {value}", data.y_llm, {name: value})
                tell(data, f"{name} = {value} against the default", base, other)


def trained(
    args: argparse.Namespace,
    data: Data,
    what: str,
    y: np.ndarray,
    options: dict[str, Any] | None = None,
    **places: Any,
) -> np.ndarray:
    """(s, n) classes of the test texts; prints a row, with how many seeds learned anything."""
    k, results = len(data.names), {}
    settings = {"lr": args.lr, "epochs": args.epochs, "max_tokens": args.max_tokens}
    learner = EncoderStudent(args.encoder or minilm_dir(), **(settings | (options or {})))
    two = TrainingSet(["a", "b"], np.eye(k)[[0, 1]], np.ones(2))
    # the processes start here, outside the clock
    learner.fit(two, [], data.names, range(args.seeds), keep={}, on_seed=lambda _: None)
    started = time.perf_counter()
    learner.fit(
        TrainingSet(data.train, np.eye(k)[y], np.ones(len(y)), data.dev),
        data.test,
        data.names,
        range(args.seeds),
        on_seed=lambda result: results.update({result.seed: result}),
        say=print,
        **({"keep": {}} | places),
    )
    seconds = time.perf_counter() - started
    learner.close()
    predictions = np.stack([results[seed].probs.argmax(1) for seed in range(args.seeds)])
    scores = measure(predictions, data.y_test, k, rng=np.random.default_rng(0))
    cells = [
        f"{100 * m.value:.1f} ({100 * m.low:.1f}–{100 * m.high:.1f})"
        for m in (getattr(scores, metric) for metric in METRICS)
    ]
    learned = f"{sum(map(bool, map(has_learned, results.values())))} of {args.seeds}"
    print(
        " | ".join(
            [f"{what:22}", f"{learned:>7}", f"{seconds:7.1f}", *(f"{c:>20}" for c in cells)]
        ),
        flush=True,
    )
    return predictions


def tell(data: Data, what: str, a: np.ndarray, b: np.ndarray) -> None:
    """Prints b minus a, paired."""
    told, rng = [], np.random.default_rng(0)
    found = paired_differences(a, b, data.y_test, list(METRICS), k=len(data.names), rng=rng)
    for metric, d in found.items():
        told.append(f"{metric} {100 * d.value:+.1f} ({100 * d.low:+.1f} to {100 * d.high:+.1f})")
    print(f"  {what}: {', '.join(told)}", flush=True)


if __name__ == "__main__":
    main()
