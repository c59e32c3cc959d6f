"""Compares goldloop's default with its rivals on at least eight data sets.

    python tests/bench/bench_strategies.py --out /tmp/strategies

reads the data sets that it finds (see ``bench_data.SOURCES``) in ``--data``, GOLDLOOP_DATA or
``../shared/data``. Without any of these it labels the demo's tweets with the embedded language
model and compares on those alone. Sets without LLM labels of their own need labels of the embedded
model: ``--label-missing`` makes them once (minutes each) and keeps them in the cache folder.

Only *development* sets may be looked at while a policy is tuned. The closing tables are drawn once
for them and once for the *reporting* sets.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import bench_data
from rich.console import Console

from loop.bench import POLICIES, BenchResult, run_bench
from loop.bench_peers import peers
from loop.bench_tables import tables, write_results

ABLATIONS = (
    "goldloop-no-repair",
    "goldloop-no-audit",
    "goldloop-no-learning",
    "goldloop-quotas",
    "goldloop-spread",
    "repair-only",
    "entropy-repair",
    "fusion",
)
SINGLE = ("entropy", "entropy_calibrated", "knn_disagreement", "student_disagreement",
          "seed_disagreement", "off_label_mass")  # fmt: skip


def data_folder(given: str | None) -> Path | None:
    for folder in (given, os.environ.get("GOLDLOOP_DATA"), "../shared/data"):
        if folder and Path(folder).is_dir():
            return Path(folder)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", help="folder with the data sets")
    parser.add_argument("--only", help="names of data sets, separated by commas")
    parser.add_argument("--role", choices=("development", "reporting"))
    parser.add_argument("--strategies", help="names, the first is compared with the others")
    parser.add_argument("--budgets", default="0.05,0.1,0.25")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--label-missing", action="store_true")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()

    policies = {**POLICIES, **peers()}
    missing = [p for p in ("cleanlab", "small-text-breaking-ties") if p not in policies]
    if missing:
        print(f"not installed, left out: {', '.join(missing)}", file=sys.stderr)
    names = ["goldloop", "random", "entropy", "prompt-flips", *peers(), *ABLATIONS, "gold-only"]
    names += [s for s in SINGLE if s not in names]
    if args.strategies:
        names = args.strategies.split(",")

    folder = data_folder(args.data)
    sources = bench_data.SOURCES if folder else (bench_data.DEMO,)
    if args.only:
        sources = tuple(s for s in sources if s.name in args.only.split(","))
    if args.role:
        sources = tuple(s for s in sources if s.role == args.role)
    began = time.monotonic()
    parts: list[BenchResult] = []
    for source in sources:
        if args.label_missing or source is bench_data.DEMO:
            bench_data.label_missing(source, folder)
        data = bench_data.load(source, folder)
        if data is None:
            print(f"{source.name}: no texts or no LLM labels, left out", file=sys.stderr)
            continue
        parts.append(
            run_bench(
                [data],
                names,
                budgets=[float(b) for b in args.budgets.split(",")],
                rounds=args.rounds,
                seeds=args.seeds,
                repetitions=args.repetitions,
                policies=policies,
            )
        )
        # Written after every data set: what is done survives an interruption.
        merged = merge(parts)
        write_results(merged, Path(args.out))
        seconds = time.monotonic() - began
        print(f"{source.name}: done after {seconds:.0f} s", file=sys.stderr)
    if not parts:
        sys.exit("no data set could be read")
    console = Console(width=160)
    for role in ("development", "reporting"):
        chosen = [p for p in parts if p.records[0]["role"] == role]
        if chosen:
            console.rule(f"{role} sets")
            for table in tables(merge(chosen)):
                console.print(table)


def merge(parts: list[BenchResult]) -> BenchResult:
    """Results of several data sets as one."""
    return BenchResult(
        [r for p in parts for r in p.records],
        [s for p in parts for s in p.summary],
        [c for p in parts for c in p.comparisons],
        parts[0].settings,
    )


if __name__ == "__main__":
    main()
