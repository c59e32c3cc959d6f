"""What each part of the default strategy brings: the default against itself without that part.

    python tests/bench/bench_ablation.py --only manifestos,mr_smollm2,css_stance_trump
    python tests/bench/bench_ablation.py --tried       # what else was tried, against the default
    python tests/bench/bench_ablation.py --mended      # every student's labels mended anew

Data sets, labels and the frozen student are those of ``bench_strategies.py``, which first takes the
labels of the embedded language model (``--label-missing``). Every run replays the same pool samples
with the same seeds; differences are paired over the samples, with 95 % t intervals. What a data set
lacks, such as the LLM's states, is left out there. Development sets only.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import bench_data
import numpy as np
from bench_strategies import data_folder, few_test_texts, points

from loop.bench.data_sets import BenchData
from loop.bench.learners import FrozenLearner
from loop.bench.policies import DEFAULT, Policy
from loop.bench.policies import POLICIES as EVERY
from loop.bench.replay import Shared, mended, replay
from loop.bench.run import pool_sample, run_bench
from loop.bench.tables import compare, spread
from loop.measure.stability import measure
from strategies import repair
from strategies.fuse import fuse_ranks
from strategies.pool import FloatArray, Pool
from strategies.signals import learned_error, students

SHOWN = ("macro_f1", "reliable_accuracy", "alpha_k", "label_accuracy")
POLICIES = {
    "goldloop-no-repair": "all repair",
    "goldloop-no-states": "the LLM's states",
    "repair-only": "suspects (all asked at random)",
    "goldloop-uniform": "the spread of the audit",
    "goldloop-no-guard": "the guard",
}
STATES = "students of mended labels that read the states"


def none(*_args: object, **_settings: object) -> None:
    """In place of what gives an opinion or nothing."""


def embeddings_alone(pool: Pool) -> list[FloatArray]:
    return [pool.embeddings]


def without(name: str, signals: Mapping[str, FloatArray]) -> FloatArray:
    return fuse_ranks({key: values for key, values in signals.items() if key != name})


Patches = tuple[tuple[object, str, object], ...]
"""(module, name, value to use instead)."""

PARTS: dict[str, Patches] = {
    STATES: ((repair, "views_of", embeddings_alone),),
    "students of gold": ((repair, "gold_students", none), (students, "gold_students", none)),
    "the head on embeddings": ((learned_error, "RESIDUAL_PENALTY", 1e9),),
    "neighbours": ((learned_error, "blind_evidence", none), (repair, "blind_evidence", none)),
    "rare classes count for more": ((repair, "BALANCE", 0.0),),
    "P(label wrong) among the suspicion": ((learned_error, "BELIEVED_FROM", 1e9),),
    "fused ranks once there is gold": ((learned_error, "BELIEVED_FROM", 1e-9),),
    **{
        f"the signal {name}": (
            (learned_error, "fuse_ranks", lambda signals, name=name: without(name, signals)),
        )
        for name in ("label_doubt", "votes_against", "knn_disagreement", "student_disagreement")
    },
}


def sharper(posterior: FloatArray, y: FloatArray, trust: float) -> tuple[FloatArray, FloatArray]:
    labels, weight = repair_balanced(posterior, y, trust)
    sharp = labels**1.5
    return sharp / sharp.sum(axis=1, keepdims=True), weight


repair_balanced = repair.balanced
TRIED: dict[str, tuple[Patches, Policy]] = {
    "a head penalty of 20, not 60": (((learned_error, "RESIDUAL_PENALTY", 20.0),), DEFAULT),
    "rare classes count for more (0.75, not 0.5)": (((repair, "BALANCE", 0.75),), DEFAULT),
    "sharper soft labels (to the power of 1.5)": (((repair, "balanced", sharper),), DEFAULT),
    "P(label wrong) believed from 50 gold labels, not 20": (
        ((learned_error, "BELIEVED_FROM", 50.0),),
        DEFAULT,
    ),
    "a quarter of each batch at random": ((), replace(DEFAULT, audit_frac=0.25)),
    "three quarters of each batch at random": ((), replace(DEFAULT, audit_frac=0.75)),
    "a tenth of the suspects for every predicted class": ((), EVERY["goldloop-quotas"]),
    "suspects by expected_benefit": ((), EVERY["goldloop-benefit"]),
}


@contextmanager
def patched(patches: Patches) -> Iterator[None]:
    with ExitStack() as stack:
        for module, name, value in patches:
            stack.enter_context(patch.object(module, name, value))
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", help="folder with the data sets")
    parser.add_argument("--only", default="manifestos,mr_smollm2,emotion_smollm2,css_stance_trump")
    parser.add_argument("--budget", type=float, default=0.1, help="share of the pool")
    parser.add_argument("--repetitions", type=int, default=8)
    parser.add_argument("--test", type=int, default=600, help="at most so many test texts")
    parser.add_argument("--rows", help="titles of rows, separated by semicolons; of each set too")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--tried", action="store_true", help="alternatives, against the default")
    kinds.add_argument("--mended", action="store_true", help="labels mended anew for every seed")
    args = parser.parse_args()
    folder = data_folder(args.data)
    rows = TRIED if args.tried else {name: (PARTS[name], DEFAULT) for name in PARTS}
    policies = {} if args.tried else POLICIES
    if args.rows:
        named = args.rows.split(";")
        if unknown := set(named) - {*rows, *policies.values()}:
            parser.error(f"no rows of the table: {', '.join(sorted(unknown))}")
        rows = {title: rows[title] for title in rows if title in named}
        policies = {name: title for name, title in policies.items() if title in named}
    differences: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for source in (*bench_data.SOURCES, *bench_data.HUTTO):
        if source.name not in args.only.split(","):
            continue
        if source.role != "development":
            parser.error(f"{source.name} is a reporting set: parts are chosen on development sets")
        data = bench_data.load(source, folder)
        if data is None:
            parser.error(f"{source.name}: no texts or no LLM labels, see bench_strategies.py")
        data = few_test_texts(data, args.test)
        if args.mended:
            print(mended_anew(data, args), flush=True)
            continue
        for part, by_metric in ablate(data, args, rows, policies).items():
            differences.setdefault(part, {})[data.name] = by_metric
    if not args.mended:
        print(table(differences, each=bool(args.rows)))


def ablate(
    data: BenchData,
    args: argparse.Namespace,
    rows: Mapping[str, tuple[Patches, Policy]],
    policies: Mapping[str, str],
) -> dict[str, dict[str, dict[str, float]]]:
    """Row of the table -> metric -> difference: mean, low, high.

    Of a part what it brings, of something tried what it would bring.
    """

    def run(names: list[str], policy: Policy = DEFAULT) -> list[dict[str, Any]]:
        made = run_bench(
            [data],
            names,
            budgets=[args.budget],
            repetitions=args.repetitions,
            policies={**EVERY, "goldloop": policy},
        )
        return list(made.records)

    titles = dict(policies)
    if data.states is None:
        titles.pop("goldloop-no-states", None)
    records = run(["goldloop", *titles])
    for title, (patches, policy) in rows.items():
        if title == STATES and data.states is None:
            continue
        if title == "the signal votes_against" and data.probs.shape[1] == 1:
            continue
        with patched(patches):
            records += [
                record | {"strategy": title}
                for record in run(["goldloop"], policy)
                if record["strategy"] == "goldloop"
            ]
        titles[title] = title
    made: dict[str, dict[str, dict[str, float]]] = {}
    for entry in compare(records, "goldloop", list(titles), SHOWN):
        low, mean, high = (entry[key] for key in ("low", "mean", "high"))
        if args.tried:
            low, mean, high = -high, -mean, -low
        difference = {"low": low, "mean": mean, "high": high, "n": entry["n"]}
        made.setdefault(titles[entry["rival"]], {})[entry["metric"]] = difference
    return made


def mended_anew(data: BenchData, args: argparse.Namespace) -> str:
    """A line on alpha_K of students whose labels are one set, or mended by other folds each."""
    learner = FrozenLearner()
    alphas: dict[str, list[float]] = {}
    for repetition in range(args.repetitions):
        sample = pool_sample(data, repetition, pool_frac=0.8, dims=128, seed=0)
        n, seeds = len(sample.gold), [1000 * repetition + s for s in range(5)]
        origin = [0, repetition]
        bought = replay(sample, DEFAULT, round(args.budget * n), rounds=3, seed=origin)
        gold = np.full(n, -1)
        gold[bought.rows] = sample.gold[bought.rows]
        anew = []
        for seed in seeds:
            rng = np.random.default_rng([*origin, seed])
            y, weight = mended(sample, DEFAULT, gold, bought.inclusion_prob, Shared(), rng)
            anew.append(learner.predict(sample, y, weight, [seed]))
        sets = {
            "the LLM's": (np.eye(sample.k)[sample.y_llm], np.ones(n)),
            "gold": (np.eye(sample.k)[sample.gold], np.ones(n)),
            "mended once": (bought.y, bought.weight),
        }
        said = {name: learner.predict(sample, *labels, seeds) for name, labels in sets.items()}
        for name, predictions in {**said, "mended anew": np.concatenate(anew)}.items():
            rng = np.random.default_rng(0)
            measured = measure(predictions, sample.test_gold, sample.k, bootstrap=0, rng=rng)
            alphas.setdefault(name, []).append(measured.alpha_k.value)
    cells = [f"{name} {100 * np.mean(values):.1f}" for name, values in alphas.items()]
    change = np.array(alphas["mended anew"]) - np.array(alphas["mended once"])
    return f"{data.name}: alpha_K {', '.join(cells)}; change {points(spread(change.tolist()))}"


def table(
    differences: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]], *, each: bool
) -> str:
    """Markdown, a row a part: means over data sets, and on how many a gain or a loss is shown.

    Args:
        each: a row for every data set as well.
    """
    lines = [
        "| part | sets | macro-F1 | reliable acc. | alpha_K | labels right |",
        "|---|---|---|---|---|---|",
    ]
    for part, held in differences.items():
        cells = []
        for metric in SHOWN:
            of_sets = [by_metric[metric] for by_metric in held.values()]
            means = [100 * d["mean"] for d in of_sets]
            error = f" ±{np.std(means, ddof=1) / np.sqrt(len(means)):.1f}" if means[1:] else ""
            gains, losses = sum(d["low"] > 0 for d in of_sets), sum(d["high"] < 0 for d in of_sets)
            cells.append(f"{np.mean(means):+.1f}{error} ({gains} / {losses})")
        lines.append(f"| {part} | {len(held)} | {' | '.join(cells)} |")
        for name, by_metric in held.items() if each else ():
            own = " | ".join(points(by_metric[metric]) for metric in SHOWN)
            lines.append(f"| {part} | {name} | {own} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
