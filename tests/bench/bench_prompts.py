"""What do more prompts bring, before and after repair?

    python tests/bench/bench_prompts.py --only manifestos,mr_smollm2,hutto_tweets_3 --prompts 1,3,8

The embedded language model labels development sets with each number of prompts, and the frozen
student learns from its labels and from what goldloop makes of them, on the same pool samples with
the same seeds. Labels are kept in the cache folder, so that they are made once (minutes each).
Means over the data sets with standard errors, and on how many sets a gain / a loss is shown by
paired 95 % t intervals over the samples. Then the share of macro-F1 that is recovered of what the
labels of the fewest prompts cost.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import bench_data
import numpy as np
from bench_ablation import SHOWN
from bench_strategies import data_folder, few_test_texts

from connectors.downloads.packages import cache_dir
from loop.bench.run import run_bench
from loop.bench.tables import spread
from loop.ports import FloatArray

BUDGETS = (0.05, 0.1, 0.25)
ROWS = {("llm_only", 0.0): "the LLM's"} | {
    ("goldloop", budget): f"mended, {100 * budget:g} % gold" for budget in BUDGETS
}

Records = Mapping[tuple[str, int], list[dict[str, Any]]]
"""(data set, prompts) -> what was measured."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", help="folder with the data sets")
    parser.add_argument("--only", required=True, help="names of data sets, separated by commas")
    parser.add_argument("--prompts", default="1,3,8", help="numbers of prompts, ascending")
    parser.add_argument("--labelled", type=int, default=600, help="at most so many texts of a set")
    parser.add_argument("--test", type=int, default=600, help="at most so many test texts")
    parser.add_argument("--repetitions", type=int, default=8, help="pool samples")
    args = parser.parse_args()
    numbers = [int(number) for number in args.prompts.split(",")]
    folder = data_folder(args.data)
    records: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for source in (*bench_data.SOURCES, *bench_data.HUTTO):
        if source.name not in args.only.split(","):
            continue
        texts = bench_data.read_texts(source, folder)
        if texts is None or source.columns or source.role != "development":
            parser.error(f"{source.name} is no development set without LLM labels of its own")
        for number in numbers:
            kept = cache_dir() / "bench" / f"prompts-{number}-{args.labelled}"
            bench_data.label_with_llm(source, texts, kept, count=args.labelled, prompts=number)
            data = bench_data.load(source, folder, labels_folder=kept)
            assert data is not None
            made = run_bench(
                [few_test_texts(data, args.test)],
                ["goldloop"],
                budgets=BUDGETS,
                repetitions=args.repetitions,
            )
            records[source.name, number] = list(made.records)
    print("| labels | prompts | macro-F1 | reliable acc. | alpha_K | labels right |")
    print("|---|---|---|---|---|---|")
    for (strategy, budget), title in ROWS.items():
        for fewer, more in pairwise(numbers):
            cells = [gain(records, strategy, budget, metric, fewer, more) for metric in SHOWN]
            print(f"| {title} | {more} instead of {fewer} | {' | '.join(cells)} |")
    for budget in BUDGETS:
        shares = [f"{100 * recovered(records, budget, n, numbers[0]):.0f} % ({n})" for n in numbers]
        print(f"recovered macro-F1 (prompts), gold for {100 * budget:g} %: {', '.join(shares)}")


def values(
    records: Records, name: str, number: int, strategy: str, budget: float, metric: str
) -> FloatArray:
    """(repetitions,) of one label set."""
    held = records[name, number]
    return np.array([r[metric] for r in held if (r["strategy"], r["budget"]) == (strategy, budget)])


def gain(records: Records, strategy: str, budget: float, metric: str, fewer: int, more: int) -> str:
    """A cell: what more prompts bring in points, over the data sets."""
    held = []
    for name in {name for name, _ in records}:
        after, before = (
            values(records, name, number, strategy, budget, metric) for number in (more, fewer)
        )
        held.append(spread((after - before).tolist()))
    means = [100 * d["mean"] for d in held]
    error = f" ±{np.std(means, ddof=1) / np.sqrt(len(means)):.1f}" if means[1:] else ""
    gains, losses = sum(d["low"] > 0 for d in held), sum(d["high"] < 0 for d in held)
    return f"{np.mean(means):+.1f}{error} ({gains} / {losses})"


def recovered(records: Records, budget: float, number: int, fewest: int) -> float:
    """Sum of the gains in macro-F1 over that of the gaps, from the labels of the fewest prompts."""
    gained = gap = 0.0
    for name in {name for name, _ in records}:
        start = values(records, name, fewest, "llm_only", 0.0, "macro_f1").mean()
        gained += values(records, name, number, "goldloop", budget, "macro_f1").mean() - start
        gap += values(records, name, fewest, "all_gold", 0.0, "macro_f1").mean() - start
    return float(gained / gap)


if __name__ == "__main__":
    main()
