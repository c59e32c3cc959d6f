"""Holds forecasts and stopping rules against what happened in replayed campaigns.

    python tests/bench/bench_plan.py --out OUT

replays goldloop's default with frozen students and simulated people, round by round, on the
development sets that it finds (see ``bench_data.SOURCES``) in ``--data``, GOLDLOOP_DATA or
``../shared/data``. After each round from the second on, the curve through the rounds so far
forecasts all later rounds; the table says how many of the measured values lie in the stated 95 %
intervals, and how wide these are. Then each stopping rule: after which round it ends the campaign,
the labels that it saves and the accuracy that it costs against the last round.

What is done is kept in ``--out``; the same command continues where it broke off.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bench_data
import numpy as np
from bench_strategies import data_folder

from loop.bench.data_sets import BenchData
from loop.bench.learners import FrozenLearner
from loop.bench.policies import POLICIES
from loop.bench.replay import Shared, replay
from loop.campaign.metrics import Metric, RoundMetrics, of_json
from loop.measure.stability import measure, paired_differences
from loop.measure.stopping import why_stop
from loop.studies.plan import curve_of, points_of

SETS = "mr,babe_gpt35,css_emotion,css_ideology_article,manifestos,babe_smollm2,mr_smollm2"
METRICS = ("accuracy", "macro_f1", "reliable_accuracy")
RULES = ("gain=0.01", "gain=0.02", "plateau")
TEXTS = 1000


def campaign(data: BenchData, rounds: int, batch: int, seeds: int, repetition: int) -> list[Any]:
    """One replayed campaign: each round with what it measured, as the store would hold it."""
    rng = np.random.default_rng([7, repetition])
    rows = np.sort(rng.choice(len(data.gold), min(TEXTS, len(data.gold)), replace=False))
    sample = data.subset(rows)
    learner, shared = FrozenLearner(), Shared()
    numbers = [1000 * repetition + s for s in range(seeds)]
    n, y, k = len(sample.gold), data.test_gold, data.k
    alone = learner.predict(sample, np.eye(k)[sample.y_llm], np.ones(n), numbers)
    first = measure(alone, y, k, bootstrap=300, rng=np.random.default_rng(0))
    made, before = [], alone
    for number in range(1, rounds + 1):
        bought = replay(
            sample,
            POLICIES["goldloop"],
            number * batch,
            rounds=number,
            seed=[3, repetition],
            shared=shared,
        )
        classes = learner.predict(sample, bought.y, bought.weight, numbers)
        rng = np.random.default_rng(1)
        differences = paired_differences(
            before, classes, y, list(METRICS), k=k, bootstrap=300, rng=rng
        )
        arm = measure(classes, y, k, bootstrap=300, rng=np.random.default_rng(0))
        metrics = RoundMetrics(
            arms={"llm_only": first, "loop": arm},
            compared={"previous": differences if number > 1 else {}},
            gold=number * batch,
        )
        made.append(SimpleNamespace(number=number, stage="done", metrics=metrics))
        before = classes
    return made


Points = list[tuple[int, Metric, float]]


def forecasts(points: dict[str, Points]) -> list[dict[str, Any]]:
    """What the rounds up to each one said of every later one, and whether it came so."""
    told = []
    for metric, every in points.items():
        for seen in range(3, len(every)):
            curve = curve_of(every[:seen], metric, np.random.default_rng(seen))
            assert curve is not None
            now = every[seen - 1]
            for later in every[seen:]:
                # The later value has an error of its own; the shared one is the same test texts.
                own = curve.at(later[0]) + later[2] * np.random.default_rng(0).standard_normal(
                    len(curve.a)
                )
                low, high = curve.quantiles(own, (0.025, 0.975))
                kept = (now[1].value, now[1].value)
                told.append(
                    {
                        "metric": metric,
                        "times": later[0] / now[0],
                        "inside": low <= later[1].value <= high,
                        "width": high - low,
                        "off": curve.quantiles(curve.at(later[0]), (0.5,))[0] - later[1].value,
                        "off_if_flat": kept[0] - later[1].value,
                    }
                )
            goal = every[-1][1].value
            if goal > now[1].value + 0.01:
                needed = next(p[0] for p in every if p[1].value >= goal)
                low, high = curve.quantiles(curve.labels_to(goal), (0.025, 0.975))
                told.append(
                    {
                        "metric": metric,
                        "goal": True,
                        "inside": low <= needed <= high,
                        "open": not np.isfinite(high),
                    }
                )
    return told


def stops(rounds: list[Any]) -> list[dict[str, Any]]:
    """Where each rule ends the campaign, and what that saves and costs."""
    told = []
    last = rounds[-1].metrics
    for rule in RULES:
        config = SimpleNamespace(rounds=SimpleNamespace(stop=(rule,), stop_below=None))
        at = next(
            (n for n in range(1, len(rounds) + 1) if why_stop(config, rounds[:n])), len(rounds)
        )
        metrics = rounds[at - 1].metrics
        lost = last.arms["loop"].accuracy.value - metrics.arms["loop"].accuracy.value
        told.append(
            {"rule": rule, "round": at, "saved": 1 - metrics.gold / last.gold, "lost": lost}
        )
    return told


def print_row(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", help="folder with the data sets")
    parser.add_argument("--only", default=SETS)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--batch", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    folder = data_folder(args.data)
    args.out.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    ended: list[dict[str, Any]] = []
    sets = []
    for source in bench_data.SOURCES if folder else (bench_data.DEMO,):
        if folder and source.name not in args.only.split(","):
            continue
        data = None
        for repetition in range(args.repetitions):
            kept = args.out / f"{source.name}-{args.rounds}-{args.batch}-{repetition}.json"
            if not kept.exists():
                data = data or bench_data.load(source, folder)
                if data is None:
                    print(f"{source.name}: no texts or no LLM labels, left out", file=sys.stderr)
                    break
                rounds = campaign(data, args.rounds, args.batch, args.seeds, repetition)
                points = {
                    metric: [(n, m.to_json(), sd) for n, m, sd in points_of(rounds, metric)]
                    for metric in METRICS
                }
                kept.write_text(json.dumps({"points": points, "stops": stops(rounds)}))
                print(f"{source.name} {repetition}: done", file=sys.stderr)
            told = json.loads(kept.read_text())
            sets.append(source.name)
            points = {
                metric: [(n, of_json(Metric, m), sd) for n, m, sd in every]
                for metric, every in told["points"].items()
            }
            found += [{"set": source.name, **line} for line in forecasts(points)]
            ended += [{"set": source.name, **line} for line in told["stops"]]
    names = sorted(set(sets))
    print(f"{len(sets)} replayed campaigns on {len(names)} sets: {', '.join(names)}\n")
    head = "forecast of|how far ahead|forecasts|inside the 95 % interval|mean width|mean error"
    print_row(*head.split("|"), "mean error if nothing changed")
    print_row(*["---"] * 7)
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for line in found:
        if "goal" not in line:
            ahead = "up to 1.5 times" if line["times"] <= 1.5 else "1.5 to 3 times"
            groups[line["metric"], ahead].append(line)
    for (metric, ahead), lines in sorted(groups.items()):
        inside = np.mean([line["inside"] for line in lines])
        width, off, flat = (
            100 * np.mean([abs(line[key]) for line in lines])
            for key in ("width", "off", "off_if_flat")
        )
        shown = [f"{value:.1f}" for value in (width, off, flat)]
        print_row(metric, f"{ahead} the labels", len(lines), f"{100 * inside:.0f} %", *shown)
    goals = [line for line in found if "goal" in line]
    if goals:
        inside = 100 * np.mean([line["inside"] for line in goals])
        unbounded = 100 * np.mean([line["open"] for line in goals])
        print(
            f"\nLabels to a goal (the last round's value): {len(goals)} forecasts, {inside:.0f} %"
            f" inside the interval, {unbounded:.0f} % of the intervals without an upper end"
        )
    print()
    print_row("rule", "ended early", "mean round", "labels saved", "accuracy lost, points")
    print_row(*["---"] * 5)
    for rule in RULES:
        lines = [line for line in ended if line["rule"] == rule]
        early = [line for line in lines if line["round"] < args.rounds]
        lost = np.array([100 * line["lost"] for line in lines])
        half = 1.96 * lost.std(ddof=1) / len(lost) ** 0.5 if len(lost) > 1 else float("nan")
        print_row(
            rule,
            f"{len(early)} of {len(lines)}",
            f"{np.mean([line['round'] for line in lines]):.1f}",
            f"{100 * np.mean([line['saved'] for line in lines]):.0f} %",
            f"{lost.mean():.1f} ({lost.mean() - half:.1f} to {lost.mean() + half:.1f})",
        )


if __name__ == "__main__":
    main()
