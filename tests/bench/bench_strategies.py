"""Compares goldloop's default with its rivals on at least eight data sets.

    python tests/bench/bench_strategies.py --out OUT
    python tests/bench/bench_strategies.py --out OUT --student encoder --encoder minilm --lr 1e-4 \
        --pool 800 --repetitions 1 --only babe_gpt35,imdb --strategies goldloop,entropy,random

reads the data sets that it finds (see ``bench_data.SOURCES``) in ``--data``, GOLDLOOP_DATA or
``../shared/data``. Without any of these it labels the demo's tweets with the embedded language
model and compares on those alone. Sets without LLM labels of their own need labels of the embedded
model: ``--label-missing`` makes them once (minutes each) and keeps them in the cache folder.

What is done is kept in ``--out`` (a file a data set, and with the encoder every label set's
predictions): the same command continues where it broke off, or with further data sets. Delete the
folder to start again, in any case after a change of the code.

Only *development* sets may be looked at while a policy is tuned. The closing tables are drawn once
for them and once for the *reporting* sets.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench_data
import numpy as np
from rich.console import Console

from loop.bench.data_sets import BenchData
from loop.bench.learners import (
    EncoderLearner,
    FrozenLearner,
    KeptPredictions,
    Learner,
    WithJudges,
)
from loop.bench.peers import peers
from loop.bench.policies import POLICIES
from loop.bench.run import run_bench
from loop.bench.tables import (
    REFERENCES,
    SHOWN,
    BenchResult,
    compare,
    median_recovered,
    pooled_recovered,
    reference_table,
    share_table,
    tables,
    write_results,
)
from loop.campaign.metrics import METRICS
from loop.student.steps import fitting_steps

ABLATIONS = (
    "goldloop-no-repair",
    "repair-only",
    "entropy-repair",
    "learned-repair",
    "goldloop-calibrated",
    "goldloop-spread",
    "goldloop-entropy",
    "goldloop-uniform",
)
SINGLE = (
    "entropy",
    "entropy_calibrated",
    "knn_disagreement",
    "student_disagreement",
    "seed_disagreement",
    "learned",
    "off_label_mass",
)


def data_folder(given: str | None) -> Path | None:
    for folder in (given, os.environ.get("GOLDLOOP_DATA"), "../shared/data"):
        if folder and Path(folder).is_dir():
            return Path(folder)
    return None


def few_test_texts(data: BenchData, count: int) -> BenchData:
    """The data set with at most ``count`` test texts, always the same."""
    drawn = np.random.default_rng(2).permutation(len(data.test_gold))[:count]
    return replace(
        data,
        test_embeddings=data.test_embeddings[drawn],
        test_gold=data.test_gold[drawn],
        test_texts=[data.test_texts[i] for i in drawn],
    )


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
    parser.add_argument("--labelled", type=int, default=bench_data.LABELLED, help="texts of a set")
    parser.add_argument("--prompts", type=int, default=bench_data.VARIANTS, help="prompt variants")
    parser.add_argument("--pool", type=int, help="texts in each pool sample (default 80 %%)")
    parser.add_argument("--student", choices=("frozen", "encoder"), default="frozen")
    parser.add_argument(
        "--judges", action="store_true", help="fine-tune judges of the labels of a frozen student"
    )
    parser.add_argument("--encoder", default="minilm", help="hub name, folder, minilm, mpnet")
    parser.add_argument("--lr", type=float, default=1e-4, help="of the fine-tuned student")
    parser.add_argument("--epochs", type=int, default=3, help="of the fine-tuned student")
    parser.add_argument("--batch-size", type=int, default=16, help="of the fine-tuned student")
    parser.add_argument(
        "--fitting-steps", action="store_true", help="epochs and batches as goldloop init has them"
    )
    parser.add_argument("--max-tokens", type=int, default=128, help="of the fine-tuned student")
    parser.add_argument("--test", type=int, help="at most so many test texts")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    if args.judges and args.student != "frozen":
        parser.error("--judges goes with --student frozen; with encoder the student itself judges")

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
        named = args.only.split(",")
        sources = tuple(s for s in (*sources, *bench_data.HUTTO) if s.name in named)
    if args.role:
        sources = tuple(s for s in sources if s.role == args.role)
    began = time.monotonic()
    parts: list[BenchResult] = []
    for source in sources:
        if args.label_missing or source is bench_data.DEMO:
            bench_data.label_missing(source, folder, count=args.labelled, prompts=args.prompts)
        data = bench_data.load(source, folder)
        if data is None:
            print(f"{source.name}: no texts or no LLM labels, left out", file=sys.stderr)
            continue
        if args.test:
            data = few_test_texts(data, args.test)
        settings: dict[str, Any] = {
            "budgets": [float(b) for b in args.budgets.split(",")],
            "rounds": args.rounds,
            "seeds": args.seeds,
            "repetitions": args.repetitions,
            "pool_frac": min(1.0, args.pool / len(data.gold)) if args.pool else 0.8,
        }
        if args.fitting_steps:
            pool = round(settings["pool_frac"] * len(data.gold))
            args.batch_size, args.epochs = fitting_steps(pool)
        learner = student(args)
        asked = settings | {"strategies": names, "student": learner.revision, "test": args.test}
        part = read_part(Path(args.out) / "parts" / f"{data.name}.json", asked)
        if part is None:
            part = run_bench([data], names, learner=learner, policies=policies, **settings)
            keep_part(Path(args.out) / "parts" / f"{data.name}.json", asked, part)
        parts.append(part)
        # Written after every data set: what is done survives an interruption.
        merged = merge(parts)
        write_results(merged, Path(args.out))
        seconds = time.monotonic() - began
        print(f"{source.name}: done after {seconds:.0f} s", file=sys.stderr)
    if not parts:
        sys.exit("no data set could be read")
    (Path(args.out) / "results.md").write_text(markdown(merge(parts)))
    console = Console(width=160)
    console.print(reference_table(merge(parts)))
    console.print(share_table(merge(parts)))
    for role in ("development", "reporting"):
        chosen = [p for p in parts if p.records[0]["role"] == role]
        if chosen:
            console.rule(f"{role} sets")
            for table in tables(merge(chosen)):
                console.print(table)


def student(args: argparse.Namespace) -> Learner:
    """Heads on cached embeddings, or a fine-tuned encoder whose predictions are kept."""
    if args.student == "frozen" and not args.judges:
        return FrozenLearner()
    from connectors.downloads.models import minilm_dir, mpnet_dir
    from loop.student.encoder_student import EncoderStudent

    embedded = {"minilm": minilm_dir, "mpnet": mpnet_dir}
    fine_tuned = EncoderStudent(
        embedded[args.encoder]() if args.encoder in embedded else args.encoder,
        lr=args.lr,
        epochs=args.epochs,
        batch_size=args.batch_size,
        max_tokens=args.max_tokens,
    )
    kept = KeptPredictions(EncoderLearner(fine_tuned), Path(args.out) / "predictions")
    return WithJudges(FrozenLearner(), kept) if args.student == "frozen" else kept


def read_part(path: Path, asked: dict[str, Any]) -> BenchResult | None:
    """A data set's result as kept by ``keep_part``; None where it is missing or asked otherwise."""
    if not path.exists():
        return None
    held = json.loads(path.read_text())
    if held["asked"] != asked:
        return None
    return BenchResult(held["records"], held["summary"], held["comparisons"], held["settings"])


def keep_part(path: Path, asked: dict[str, Any], part: BenchResult) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"asked": asked} | part.to_json()))
    partial.replace(path)


def markdown(result: BenchResult) -> str:
    """At each budget: wins / ties / losses, mean differences, recovered shares."""
    ours = result.settings["strategies"][0]
    # Where students of wrong labels agree more than students of gold there is nothing to recover.
    ends = {(e["data"], e["strategy"]): e for e in result.summary if e["strategy"] in REFERENCES}
    stable = {
        (data, m)
        for data, _ in ends
        for m in ("alpha_k", "p_uc")
        if ends[data, "all_gold"][m]["mean"] is not None
        and ends[data, "llm_only"][m]["mean"] is not None
        and ends[data, "all_gold"][m]["mean"] > ends[data, "llm_only"][m]["mean"]
    }
    out = []
    for budget in result.settings["budgets"]:
        out += [
            f"\n**{budget:.0%} of the pool**\n",
            "| rival | macro-F1 | reliable acc. | alpha_K | p_uc | mean difference F1 / reliable |"
            " F1 gap recovered | reliable gap recovered | of all F1 gaps | of all reliable gaps |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        shares = {m: median_recovered(result.summary, budget, m) for m in SHOWN}
        pooled = [pooled_recovered(result.records, budget, m) for m in SHOWN[:2]]
        for name in result.settings["strategies"]:
            held = [c for c in result.comparisons if (c["budget"], c["rival"]) == (budget, name)]
            cells = []
            for m in SHOWN:
                chosen = [
                    c["verdict"]
                    for c in held
                    if c["metric"] == m
                    and (m in ("macro_f1", "reliable_accuracy") or (c["data"], m) in stable)
                ]
                wins, ties, losses = (chosen.count(v) for v in ("win", "tie", "loss"))
                cells.append("" if name == ours else f"{wins} / {ties} / {losses}")
            means = [
                [100 * c["mean"] for c in held if c["metric"] == m]
                for m in ("macro_f1", "reliable_accuracy")
            ]
            cells.append(" / ".join(f"{np.mean(v):+.1f}" for v in means) if held else "")
            for m in ("macro_f1", "reliable_accuracy"):
                share, sets = shares[m].get(name, (None, 0))
                cells.append("–" if share is None else f"{100 * share:.0f} % ({sets})")
            for of_metric in pooled:
                told = [round(100 * value) for value in of_metric.get(name, ())]
                cells.append("{} % ({} to {})".format(*told) if told else "–")
            out.append(f"| {name} | " + " | ".join(cells) + " |")
        out += ["\n**Against the LLM's labels and against gold for the whole pool**\n"]
        out += against_references(result, budget)
    lost = [
        f"- {c['data']}, {c['budget']:.0%}, {METRICS[c['metric']].title}: {100 * c['mean']:+.1f}"
        f" ({100 * c['low']:+.1f} to {100 * c['high']:+.1f}) against {c['rival']}"
        for c in result.comparisons
        if c["verdict"] == "loss" and c["metric"] in ("macro_f1", "reliable_accuracy")
    ]
    out += ["\n**Every significant loss in macro-F1 and reliable accuracy**\n", *lost]
    out += [
        "\n**Each set at 10 %** (macro-F1 / reliable accuracy)\n",
        "| set | LLM labels | goldloop | entropy | random | all gold |",
        "|---|---|---|---|---|---|",
    ]
    found = {(e["data"], e["strategy"], e["budget"]): e for e in result.summary}
    for data in dict.fromkeys(key[0] for key in found):
        columns = (
            ("llm_only", 0.0),
            (ours, 0.1),
            ("entropy", 0.1),
            ("random", 0.1),
            ("all_gold", 0.0),
        )
        cells = [
            " / ".join(
                f"{100 * found[data, name, b][m]['mean']:.1f}"
                for m in ("macro_f1", "reliable_accuracy")
            )
            if (data, name, b) in found
            else "–"
            for name, b in columns
        ]
        out.append(f"| {data} | " + " | ".join(cells) + " |")
    return "\n".join(out) + "\n"


def against_references(result: BenchResult, budget: float) -> list[str]:
    """Markdown rows: values of LLM labels, ours and gold, and paired differences in points.

    Intervals are over the samples, or over the test texts where there is one sample.
    """
    ours = result.settings["strategies"][0]
    pairs = ((ours, "llm_only"), (ours, "all_gold"), ("all_gold", "llm_only"))
    at = [
        record | {"budget": budget}
        for record in result.records
        if record["budget"] == budget or record["strategy"] in REFERENCES
    ]
    one_sample = {(r["data"], r["strategy"]): r["over_items"] for r in at if "over_items" in r}

    def with_interval(c: dict[str, Any], first: str) -> dict[str, Any]:
        over_texts = one_sample.get((c["data"], first))
        ends = over_texts[c["metric"]]["minus"][c["rival"]] if over_texts else c
        return c if ends["low"] is None else c | ends

    differences = {
        (c["data"], c["metric"], pair): points(with_interval(c, pair[0]))
        for pair in pairs
        for c in compare(at, pair[0], pair[1:])
    }
    values = {(e["data"], e["strategy"]): e for e in result.summary if e["budget"] in (0.0, budget)}
    out = [
        f"| set | metric | LLM / {ours} / gold | {ours} minus LLM | {ours} minus gold |"
        " gold minus LLM |",
        "|---|---|---|---|---|---|",
    ]
    for data in dict.fromkeys(record["data"] for record in at):
        for metric in SHOWN[:3]:
            means = [values[data, name][metric]["mean"] for name in ("llm_only", ours, "all_gold")]
            cells = [" / ".join("–" if m is None else f"{100 * m:.1f}" for m in means)]
            cells += [differences.get((data, metric, pair), "–") for pair in pairs]
            out.append(f"| {data} | {METRICS[metric].title} | " + " | ".join(cells) + " |")
    return out


def points(difference: Mapping[str, Any]) -> str:
    """A difference in points, with its interval where there is one."""
    mean, low, high = (100 * difference[key] for key in ("mean", "low", "high"))
    return f"{mean:+.1f}" + (f" ({low:+.1f} to {high:+.1f})" if low < high else "")


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
