"""What each part of the default strategy brings: the default against itself without that part.

    python tests/bench/bench_ablation.py --only manifestos,mr_smollm2,css_stance_trump

Data sets, labels and the frozen student are those of ``bench_strategies.py``, which first takes the
labels of the embedded language model (``--label-missing``). Every run replays the same pool samples
with the same seeds; differences are paired over the samples, with 95 % t intervals. What a data set
lacks, such as the LLM's states, is left out there. Development sets only.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import bench_data
import numpy as np
from bench_strategies import data_folder, few_test_texts

from loop.bench.data_sets import BenchData
from loop.bench.run import run_bench
from loop.bench.tables import compare
from strategies import repair
from strategies.fuse import fuse_ranks
from strategies.pool import FloatArray, Pool
from strategies.signals import learned_error, students

SHOWN = ("macro_f1", "reliable_accuracy", "alpha_k")
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


PARTS: dict[str, tuple[tuple[object, str, object], ...]] = {
    STATES: ((repair, "views_of", embeddings_alone),),
    "students of gold": ((repair, "gold_students", none), (students, "gold_students", none)),
    "the head on embeddings": ((learned_error, "RESIDUAL_PENALTY", 1e9),),
    "neighbours": ((learned_error, "blind_evidence", none), (repair, "blind_evidence", none)),
    "rare classes count for more": ((repair, "BALANCE", 0.0),),
    "P(label wrong) among the suspicion": ((learned_error, "PRIOR_GOLD", 1e9),),
    "fused ranks once there is gold": ((learned_error, "PRIOR_GOLD", 1e-9),),
    **{
        f"the signal {name}": (
            (learned_error, "fuse_ranks", lambda signals, name=name: without(name, signals)),
        )
        for name in ("label_doubt", "votes_against", "knn_disagreement", "student_disagreement")
    },
}


@contextmanager
def lacking(part: str) -> Iterator[None]:
    with ExitStack() as patches:
        for module, name, value in PARTS[part]:
            patches.enter_context(patch.object(module, name, value))
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", help="folder with the data sets")
    parser.add_argument("--only", default="manifestos,mr_smollm2,emotion_smollm2,css_stance_trump")
    parser.add_argument("--budget", type=float, default=0.1, help="share of the pool")
    parser.add_argument("--repetitions", type=int, default=8)
    parser.add_argument("--test", type=int, default=600, help="at most so many test texts")
    args = parser.parse_args()
    folder = data_folder(args.data)
    differences: dict[str, dict[str, dict[str, float]]] = {}
    for source in bench_data.SOURCES:
        if source.name not in args.only.split(","):
            continue
        if source.role != "development":
            parser.error(f"{source.name} is a reporting set: parts are chosen on development sets")
        data = bench_data.load(source, folder)
        if data is None:
            parser.error(f"{source.name}: no texts or no LLM labels, see bench_strategies.py")
        for part, by_metric in ablate(few_test_texts(data, args.test), args).items():
            differences.setdefault(part, {})[data.name] = by_metric
    print(table(differences))


def ablate(data: BenchData, args: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """Part -> metric -> what it brings, in points: mean, low, high."""

    def run(names: list[str]) -> list[dict[str, Any]]:
        made = run_bench([data], names, budgets=[args.budget], repetitions=args.repetitions)
        return list(made.records)

    records = run(["goldloop", *POLICIES])
    names = dict(POLICIES)
    if data.states is None:
        del names["goldloop-no-states"]
    for part in PARTS:
        if part == STATES and data.states is None:
            continue
        if part == "the signal votes_against" and data.probs.shape[1] == 1:
            continue
        with lacking(part):
            records += [
                record | {"strategy": part}
                for record in run(["goldloop"])
                if record["strategy"] == "goldloop"
            ]
        names[part] = part
    made: dict[str, dict[str, dict[str, float]]] = {}
    for entry in compare(records, "goldloop", list(names)):
        made.setdefault(names[entry["rival"]], {})[entry["metric"]] = entry
    return made


def table(differences: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]) -> str:
    """Markdown, a row a part: means over data sets, and on how many a gain or a loss is shown."""
    lines = ["| part | sets | macro-F1 | reliable acc. | alpha_K |", "|---|---|---|---|---|"]
    for part, held in differences.items():
        cells = []
        for metric in SHOWN:
            of_sets = [by_metric[metric] for by_metric in held.values()]
            means = [100 * d["mean"] for d in of_sets]
            spread = f" ±{np.std(means, ddof=1) / np.sqrt(len(means)):.1f}" if means[1:] else ""
            gains, losses = sum(d["low"] > 0 for d in of_sets), sum(d["high"] < 0 for d in of_sets)
            cells.append(f"{np.mean(means):+.1f}{spread} ({gains} / {losses})")
        lines.append(f"| {part} | {len(held)} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
