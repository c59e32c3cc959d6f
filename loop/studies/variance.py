"""Which of its random parts a student's instability comes from.

From several bases, one part is drawn again while all else stays: the head's first weights; the
order of the texts and dropout; the folds and students that mend the LLM's labels, from the same
gold; the texts themselves, with their labels (bootstrap). The share of labels that this changes,
divided by the share that changes when everything is drawn again, is the part's total-effect index:
the shares may sum to more than 1, because parts act together.

Source: Jansen 1999, Analysis of variance designs for model output (the pairs that differ in one
part); Sobol 2001 (total effects).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations

import numpy as np

from loop.campaign.config import as_run
from loop.campaign.context import Context
from loop.campaign.metrics import ONE_CLASS, Json, Metric, as_json
from loop.campaign.tables import Round, TrainingLabels
from loop.chance import stream
from loop.measure.held_out import Truth
from loop.measure.metric import (
    item_sums,
    metrics_of,
    one_class,
    replicates,
    seed_spread,
    times_100,
    with_width,
)
from loop.ports import Draws, FloatArray, IntArray
from loop.report.wording import PARTS_TOGETHER, RANDOM_PARTS, SAME_EVERYWHERE
from loop.studies.side_runs import SideRuns, merged_labels

FROZEN = (
    " This is of frozen heads, which end at the same weights wherever they start and see all texts"
    " in every step: ask the full student too."
)
BOOTSTRAP = 1000
MIN_BASES = 3
Mend = Callable[[Context, Round], TrainingLabels]
OTHER_SEEDS = 10_000  # from here on, seeds of what is drawn again


@dataclass(frozen=True)
class Part:
    """What changes when one part is drawn again.

    Attributes:
        churn: share of labels that change.
        share: churn relative to drawing everything again.
        alpha: agreement beyond chance of students that differ in this part alone.
        accuracy_sd: standard deviation of accuracy that the part alone causes; None without gold.
    """

    churn: Metric
    share: Metric
    alpha: Metric
    accuracy_sd: Metric | None
    macro_f1_sd: Metric | None


@dataclass(frozen=True)
class Variance:
    """The instability taken apart.

    Attributes:
        parts: of ``RANDOM_PARTS`` and ``PARTS_TOGETHER``, by name.
        told: one plain sentence.
        items: texts that were classified.
    """

    round_number: int
    student: str
    bases: int
    items: int
    parts: dict[str, Part]
    told: str

    def to_json(self) -> Json:
        """Plain values."""
        return as_json(self)


def measure_variance(runs: SideRuns, bases: int, mend: Mend) -> Variance:
    """Trains seven students a base (six where they are frozen) and takes their changes apart.

    Where no label is mended, two fewer.

    Args:
        runs: of the round whose labels are learned.
        bases: at least ``MIN_BASES``; intervals narrow with it.
        mend: what a round's students learn, by the round's seed.
    Raises:
        ValueError: too few bases.
        StudentError: training failed.
    """
    if bases < MIN_BASES:
        raise ValueError(f"intervals need {MIN_BASES} bases or more, not {bases}")
    y, weight = merged_labels(runs)
    mends = as_run(runs.round_.config).strategy.repair != "keep"
    parts = [
        name
        for name in RANDOM_PARTS
        if (name != "order" or runs.kind == "encoder") and (name != "mending" or mends)
    ]
    draws = _draws(runs.round_.seed, bases, np.flatnonzero(weight > 0), parts)
    predictions = runs.train(f"{len(draws)} students", y, weight, draws)
    for j in range(bases if mends else 0):
        seed = OTHER_SEEDS + runs.round_.seed + j
        again = merged_labels(runs, mend(runs.ctx, _with_seed(runs.round_, seed)))
        what = f"2 students of labels mended again, {j + 1} of {bases}"
        predictions |= runs.train(what, *again, _mended_draws(draws, j))
    rng = stream("variance", runs.round_.seed, runs.round_.number)
    taken = take_apart(predictions, bases, parts, runs.truth, len(runs.ctx.config.labels), rng=rng)
    told = taken[1] + FROZEN if runs.kind == "frozen" else taken[1]
    return Variance(
        runs.round_.number, runs.kind, bases, int(runs.truth.stable.sum()), taken[0], told
    )


def _draws(seed: int, bases: int, used: IntArray, parts: Sequence[str]) -> dict[str, Draws]:
    draws = {}
    for j in range(bases):
        own, other = seed + j, seed + OTHER_SEEDS + j
        draw = [stream("variance draws", seed, j, then=[i]) for i in range(2)]
        resampled = [np.asarray(rng.choice(used, len(used)), np.int64) for rng in draw]
        draws[f"base-{j}"] = Draws(own, own)
        draws[f"init-{j}"] = Draws(other, own)
        if "order" in parts:
            draws[f"order-{j}"] = Draws(own, other)
        for i in range(2):
            draws[f"sample-{j}-{i}"] = Draws(own, own, resampled[i])
    return draws


def _mended_draws(draws: Mapping[str, Draws], j: int) -> dict[str, Draws]:
    """What the students of a base's labels draw that were mended again: nothing new."""
    return {f"mending-{j}": draws[f"base-{j}"], f"all-{j}": draws[f"sample-{j}-1"]}


def _with_seed(round_: Round, seed: int) -> Round:
    return Round(**round_.model_dump() | {"seed": seed})


def _pairs(bases: Sequence[int], parts: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """Runs that differ in a part alone, by part."""
    pairs = {
        "init": [(f"base-{j}", f"init-{j}") for j in bases],
        "order": [(f"base-{j}", f"order-{j}") for j in bases],
        "mending": [(f"base-{j}", f"mending-{j}") for j in bases],
        "sample": [(f"sample-{j}-0", f"sample-{j}-1") for j in bases],
        "seed": [(f"base-{i}", f"base-{j}") for i, j in combinations(bases, 2)],
        "repetition": [(f"mending-{i}", f"mending-{j}") for i, j in combinations(bases, 2)],
        "all": [
            (f"sample-{i}-0", f"all-{j}" if "mending" in parts else f"sample-{j}-1")
            for i, j in permutations(bases, 2)
        ],
    }
    return {name: pairs[name] for name in (*parts, *_together(parts))}


def _together(parts: Sequence[str]) -> list[str]:
    needs = {"seed": "order", "repetition": "mending"}
    return [name for name in PARTS_TOGETHER if name not in needs or needs[name] in parts]


def take_apart(
    predictions: Mapping[str, IntArray],
    bases: int,
    parts: Sequence[str],
    truth: Truth,
    k: int,
    *,
    rng: np.random.Generator,
) -> tuple[dict[str, Part], str]:
    """What each part changes, and a sentence about it.

    Args:
        predictions: (n,) classes of every run of ``measure_variance``, by its name.
        bases: their number.
        parts: names in ``RANDOM_PARTS``.
        truth: of the n texts.
        k: number of classes.
        rng: draws the replicates.
    """
    stable, known = truth.stable, truth.y >= 0
    numbers = list(range(bases))
    if one_class(np.stack([of_run[stable] for of_run in predictions.values()])):
        nothing = Metric(np.nan, note=ONE_CLASS)
        part = Part(nothing, nothing, nothing, None, None)
        return dict.fromkeys((*parts, *_together(parts)), part), SAME_EVERYWHERE

    def changes(chosen: Sequence[int]) -> Callable[[FloatArray], dict[str, FloatArray]]:
        pairs = _pairs(chosen, parts)
        apart = {
            name: np.mean([predictions[a][stable] != predictions[b][stable] for a, b in runs_of], 0)
            for name, runs_of in pairs.items()
        }
        shares = {
            name: np.mean(
                [np.eye(k)[predictions[run][stable]] for pair in runs_of for run in pair], 0
            )
            for name, runs_of in pairs.items()
        }

        def of(weights: FloatArray) -> dict[str, FloatArray]:
            total = weights.sum(1)
            values = {}
            for name in pairs:
                churn = weights @ apart[name] / total
                expected = 1 - ((weights @ shares[name] / total[:, None]) ** 2).sum(1)
                values[f"{name}.churn"] = churn
                with np.errstate(divide="ignore", invalid="ignore"):
                    values[f"{name}.alpha"] = np.where(expected > 0, 1 - churn / expected, np.nan)
            with np.errstate(divide="ignore", invalid="ignore"):
                for name in pairs:
                    values[f"{name}.share"] = values[f"{name}.churn"] / values["all.churn"]
            for a, b in permutations(parts, 2):
                values[f"{a}-{b}"] = values[f"{a}.churn"] - values[f"{b}.churn"]
            return values

        return of

    base = np.ones(int(stable.sum()))
    point = changes(numbers)(base[None, :])
    drawn = [changes(numbers)(w) for w in replicates(base, BOOTSTRAP, rng)]
    spread = {name: np.concatenate([replicate[name] for replicate in drawn]) for name in point}
    without = [changes([j for j in numbers if j != left]) for left in numbers]
    of_bases, noise = seed_spread(without, base, rng), rng.standard_t(bases - 1, BOOTSTRAP)
    ends: dict[str, tuple[float, float]] = {}
    shown = np.bincount(np.concatenate([of[stable] for of in predictions.values()]), minlength=k)
    by_chance = 1 - float(((shown / shown.sum()) ** 2).sum())

    def scale(name: str) -> float:
        """What a value changes at most per share of the texts that differ."""
        if name.endswith(".alpha"):
            return 1 / max(by_chance, 1e-9)
        return 1 / max(float(point["all.churn"][0]), 1e-9) if name.endswith(".share") else 1.0

    for name, values in spread.items():
        there = np.isfinite(values)
        shaken = (values + of_bases[name] * noise)[there]
        shaken = shaken[np.isfinite(shaken)]
        if not shaken.size:
            ends[name] = (np.nan, np.nan)
            continue
        low, high = map(float, np.percentile(shaken, [2.5, 97.5]))
        ends[name] = with_width(
            low, high, len(base), difference=not name.endswith(".churn"), scale=scale(name)
        )

    def metric(name: str, low: float, high: float) -> Metric:
        if not np.isfinite(point[name][0]):
            return Metric(np.nan)
        bottom, top = np.clip(ends[name], low, high)
        return Metric(float(point[name][0]), float(bottom), float(top))

    deviations = _deviations(predictions, bases, parts, truth, k) if known.any() else {}
    measured = {
        name: Part(
            metric(f"{name}.churn", 0.0, 1.0),
            metric(f"{name}.share", 0.0, np.inf),
            metric(f"{name}.alpha", -np.inf, 1.0),
            deviations.get((name, "accuracy")),
            deviations.get((name, "macro_f1")),
        )
        for name in (*parts, *_together(parts))
    }
    ordered = sorted(parts, key=lambda name: -measured[name].churn.value)
    clear = [ends[f"{ordered[0]}-{other}"][0] > 0 for other in ordered[1:]]
    return measured, _told(measured, ordered, clear, bases)


def _deviations(
    predictions: Mapping[str, IntArray], bases: int, parts: Sequence[str], truth: Truth, k: int
) -> dict[tuple[str, str], Metric]:
    """Standard deviations that a part alone causes, with chi-square intervals over the bases."""
    from scipy.special import chdtri

    known = truth.y >= 0
    value = {}
    for run, classes in predictions.items():
        sums = item_sums(classes[None, known], truth.y[known], k)
        of_run = metrics_of(sums, truth.weight[None, known], 1)
        value[run] = {key: float(of_run[key][0]) for key in ("accuracy", "macro_f1")}
    deviations = {}
    for name, pairs in _pairs(range(bases), parts).items():
        # pairs of one part are independent; those among bases have one degree of freedom less
        df = bases if name in parts else bases - 1
        for key in ("accuracy", "macro_f1"):
            sd = float(
                np.sqrt(np.mean([(value[a][key] - value[b][key]) ** 2 for a, b in pairs]) / 2)
            )
            low, high = np.sqrt(df / chdtri(df, [0.025, 0.975])) * sd
            deviations[name, key] = Metric(sd, float(low), float(high)) if sd else Metric(sd)
    return deviations


ADVICE = {
    "init": "averaging seeds steadies such students, more labels may not",
    "order": "averaging seeds steadies such students, more labels may not",
    "mending": "more gold steadies the labels that such students learn, averaging seeds does not",
    "sample": "more or better labels steady such students, averaging seeds does not",
}


def _told(
    changed: Mapping[str, Part], ordered: Sequence[str], clear: Sequence[bool], bases: int
) -> str:
    def part(name: str) -> str:
        return f"{RANDOM_PARTS[name]}: {times_100(changed[name].churn, ' %')}"

    shown = "; ".join(part(name) for name in ordered)
    everything = f"{100 * changed['all'].churn.value:.1f} % where everything is drawn again"
    first = ordered[0]
    if not changed["all"].churn.value:
        return "No label changes, whatever is drawn again."
    if all(clear):
        return (
            f"The largest part of the instability comes from {RANDOM_PARTS[first]}. Labels that"
            f" change when one part is drawn again: {shown}; {everything}. So {ADVICE[first]}."
        )
    return (
        f"{bases} bases are too few to tell which part the instability comes from most."
        f" Labels that change when one part is drawn again: {shown}; {everything}."
    )
