"""Which class mix should batch calibration assume once some gold is known?

    python tests/bench/bench_class_mix.py --only manifestos,mr_smollm2,hutto_tweets_3

An even mix, the one that gold for 10 or 25 % of the pool says, or half way: how many labels of the
LLM are right, and of those that repair makes of them, on texts without gold. Gold is drawn at
random. Development sets that ``bench_strategies.py --label-missing`` has labelled; means
over the draws, differences to the whole mix with 95 % t intervals.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import bench_data
import numpy as np
from bench_strategies import data_folder, points
from sklearn.metrics import f1_score

from loop.bench.data_sets import BenchData
from loop.bench.run import pool_sample
from loop.bench.tables import spread
from loop.llm.calibration import PSEUDO
from loop.ports import FloatArray, IntArray
from strategies.calibrate import batch_calibrate, prior_from_gold
from strategies.pool import Pool
from strategies.repair import repair
from strategies.signals.students import out_of_fold_probs

BY_GOLD = {"even": 0.0, "half way": 0.5, "the whole mix": 1.0}
SHOWN = ("LLM right", "LLM macro-F1", "mended right", "mended macro-F1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", help="folder with the data sets")
    parser.add_argument("--only", required=True, help="names of data sets, separated by commas")
    parser.add_argument("--draws", type=int, default=10)
    args = parser.parse_args()
    folder = data_folder(args.data)
    print(f"| set | gold | mix | {' | '.join(SHOWN)} |\n|---|---|---|---|---|---|---|")
    for source in (*bench_data.SOURCES, *bench_data.HUTTO):
        if source.name not in args.only.split(","):
            continue
        data = bench_data.load(source, folder)
        if data is None or source.role != "development":
            parser.error(f"{source.name} is no development set with LLM labels")
        for share in (0.1, 0.25):
            drawn = [one_draw(data, share, draw) for draw in range(args.draws)]
            for mix in BY_GOLD:
                values = np.array([draw[mix] for draw in drawn])
                cells = [f"{100 * mean:.1f}" for mean in values.mean(axis=0)]
                if mix != "the whole mix":
                    gains = (values - [draw["the whole mix"] for draw in drawn]).T
                    told = (points(spread(gain.tolist())) for gain in gains)
                    cells = [f"{cell}, {gain}" for cell, gain in zip(cells, told, strict=True)]
                print(f"| {data.name} | {share:.0%} | {mix} | {' | '.join(cells)} |", flush=True)


def one_draw(data: BenchData, share: float, draw: int) -> Mapping[str, tuple[float, ...]]:
    """Mix -> the values that are shown."""
    sample = pool_sample(data, draw, pool_frac=0.8, dims=128, seed=0)
    n, k = len(sample.gold), sample.k
    rows = np.random.default_rng([5, draw]).permutation(n)[: round(share * n)]
    gold = np.full(n, -1, dtype=np.int64)
    gold[rows] = sample.gold[rows]
    unseen = gold < 0
    told = prior_from_gold(gold, None, k, pseudo=PSEUDO)
    made = {}
    for mix, by_gold in BY_GOLD.items():
        prior = (1.0 - by_gold) / k + by_gold * told
        labels = np.nanmean(batch_calibrate(sample.probs, prior), axis=1).argmax(axis=1)
        mended = repaired_labels(sample, gold, labels, prior)
        made[mix] = (
            *quality(sample.gold[unseen], labels[unseen]),
            *quality(sample.gold[unseen], mended[unseen]),
        )
    return made


def repaired_labels(
    data: BenchData, gold: IntArray, y_llm: IntArray, prior: FloatArray
) -> IntArray:
    n, k = len(gold), data.k
    taught = np.where(gold >= 0, gold, y_llm)
    students = out_of_fold_probs(
        data.embeddings, taught, np.ones(n), k, seeds=2, rng=np.random.default_rng(1)
    )
    pool = Pool(
        probs=data.probs,
        y_llm=y_llm,
        gold=gold,
        embeddings=data.embeddings,
        p_student=students,
        off_label_mass=data.off_label_mass,
        class_prior=prior,
        ordinal=data.ordinal,
        states=data.states,
    )
    mended = repair(pool, "soft", rng=np.random.default_rng(3))
    return np.asarray(mended.y.argmax(axis=1), dtype=np.int64)


def quality(truth: IntArray, labels: IntArray) -> tuple[float, float]:
    """Share of right labels, and macro-F1."""
    return float((truth == labels).mean()), float(f1_score(truth, labels, average="macro"))


if __name__ == "__main__":
    main()
