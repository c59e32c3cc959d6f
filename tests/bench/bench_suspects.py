"""How much more often than a random text does a suspect have a wrong label?

    python tests/bench/bench_suspects.py --only babe_gpt35,css_emotion,manifestos --draws 10

Plays the buying of whole campaigns, round by round, and counts the wrong labels among the suspects;
texts that are drawn at random, and rounds that the guard gives to these, are left out. The divisor
is the share of wrong labels in the pool sample, which is known here. Data sets and labels are those
of ``bench_strategies.py``, which first takes the labels of the embedded language model
(``--label-missing``). With ``--judges OUT`` suspects are also chosen as in a campaign with
``strategy.repair_students = "fine-tuned"``; what the judges said is kept in the folder, so that a
run broken off goes on. Ratios are pooled over the draws, with a 95 % bootstrap over these; draws
overlap, so that it is somewhat too narrow.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial

import bench_data
import numpy as np
from bench_ablation import Patches, patched
from bench_strategies import data_folder, student

from loop.bench.data_sets import BenchData
from loop.bench.learners import KeptPredictions
from loop.bench.policies import POLICIES, Policy
from loop.bench.replay import replay
from loop.bench.run import pool_sample
from loop.ports import IntArray
from strategies.signals import learned_error

WAYS: dict[str, tuple[str, Patches]] = {
    "entropy": ("goldloop-entropy", ()),
    "gold believed from 50": ("goldloop", ((learned_error, "BELIEVED_FROM", 50.0),)),
    "default": ("goldloop", ()),
}
BOOTSTRAP = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", help="folder with the data sets")
    parser.add_argument("--only", required=True, help="names of data sets, separated by commas")
    parser.add_argument("--budget", type=float, default=0.1, help="share of the pool")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--pool", type=float, default=0.8, help="share of the pool in each draw")
    parser.add_argument("--judges", dest="out", metavar="OUT", help="folder; fine-tunes MiniLM")
    parser.add_argument("--epochs", type=int, default=8, help="of the judges")
    args = parser.parse_args()
    folder = data_folder(args.data)
    rounds = " / ".join(str(number) for number in range(1, args.rounds + 1))
    print(
        f"| set | wrong in the pool | suspects by | wrong, round {rounds} | ratio |"
        " rounds given to random texts |\n|---|---|---|---|---|---|"
    )
    for source in (*bench_data.SOURCES, *bench_data.HUTTO):
        if source.name not in args.only.split(","):
            continue
        data = bench_data.load(source, folder)
        if data is None:
            parser.error(f"{source.name}: no texts or no LLM labels, see bench_strategies.py")
        ways = WAYS | ({"default with judges": ("goldloop-judged", ())} if args.out else {})
        for way, (policy, patches) in ways.items():
            with patched(patches):
                print(row(data, way, without_the_end(POLICIES[policy]), args), flush=True)


def without_the_end(policy: Policy) -> Policy:
    """The policy without the last mending, whose labels nobody reads here."""
    if policy.judged_suspects:
        return replace(policy, tuned=False)
    return replace(policy, repair="keep")


def row(data: BenchData, way: str, policy: Policy, args: argparse.Namespace) -> str:
    """One line of the table: a data set and a way to choose suspects."""
    # (draws, rounds) suspects, those with a wrong label among them; (draws,) wrong in the pool
    asked: IntArray = np.zeros((args.draws, args.rounds), dtype=np.int64)
    wrong, base = asked.copy(), np.zeros(args.draws)
    learner = fine_tuned(args) if policy.judged_suspects else None
    for draw in range(args.draws):
        sample = pool_sample(data, draw, pool_frac=args.pool, dims=128, seed=0)
        missed = sample.gold != sample.y_llm
        base[draw] = missed.mean()
        budget = round(args.budget * len(missed))
        judge = partial(learner.cross_fit, sample, seed=draw) if learner else None
        bought = replay(sample, policy, budget, rounds=args.rounds, seed=[0, draw], judge=judge)
        for number in range(args.rounds):
            rows = bought.rows[(bought.round == number + 1) & (bought.reason == "suspect")]
            asked[draw, number], wrong[draw, number] = len(rows), missed[rows].sum()
    rng = np.random.default_rng(0)
    drawn = rng.integers(args.draws, size=(BOOTSTRAP, args.draws))

    def ratio(draws: IntArray) -> float:
        return float(wrong[draws].sum() / asked[draws].sum() / base[draws].mean())

    low, high = np.quantile([ratio(draws) for draws in drawn], [0.025, 0.975])
    shares = 100 * wrong.sum(axis=0) / np.maximum(asked.sum(axis=0), 1)
    given = int((asked[:, 1:] == 0).sum())
    return (
        f"| {data.name} | {100 * base.mean():.0f} | {way} |"
        f" {' / '.join(f'{share:.0f}' for share in shares)} |"
        f" {ratio(np.arange(args.draws)):.2f} ({low:.2f} to {high:.2f}) |"
        f" {given} of {asked[:, 1:].size} |"
    )


def fine_tuned(args: argparse.Namespace) -> KeptPredictions:
    """MiniLM, as the other tables of fine-tuned students have it."""
    settings = {"encoder": "minilm", "lr": 1e-4, "batch_size": 8, "max_tokens": 64}
    made = student(
        argparse.Namespace(student="encoder", epochs=args.epochs, out=args.out, **settings)
    )
    assert isinstance(made, KeptPredictions)
    return made


if __name__ == "__main__":
    main()
