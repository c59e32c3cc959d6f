"""A round's metrics, from the predictions of every arm."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from loop.campaign.changes import incomparable
from loop.campaign.metrics import (
    COMPARED,
    METRICS,
    ONCE,
    Arm,
    FrozenAccuracy,
    FrozenAgreement,
    Metric,
    Recovered,
    Reliability,
    RoundMetrics,
    Share,
    Stability,
)
from loop.campaign.tables import IMPORTED, Item, Round, Run, round_id
from loop.chance import stream
from loop.measure.frozen_agreement import agreement
from loop.measure.held_out import Truth, truth_of
from loop.measure.metric import one_class
from loop.measure.stability import measure, paired_differences, recovered_share
from loop.people.gold import people_alpha
from loop.ports import IntArray
from loop.student.kept_vectors import item_embeddings
from loop.training_sets import LabelSet, loop_labels, random_control, seeds_of

if TYPE_CHECKING:
    from loop.campaign.context import Context


def measure_round(ctx: Context, round_: Round, evaluated: Sequence[Item]) -> RoundMetrics:
    """What the predictions say, and what was bought.

    Accuracy is measured on test items with a known label; without those, on the audit items, each
    weighted by the inverse of its probability of being drawn. Stability needs no label at all. What
    gold says of the LLM's labels is another matter, see ``loop.measure.llm_quality``.
    """
    runs = ctx.store.runs(ctx.name)
    truth = truth_of(ctx, evaluated)
    labels = ctx.config.label_names
    k, seed = len(labels), (round_.seed, round_.number)
    seeds = seeds_of(ctx, round_)
    everyone: tuple[Arm, ...] = ("loop", "llm_only", "random", "all_gold")
    predictions = {
        arm: np.array(list(by_seed.values()), dtype=np.int64)
        for arm in everyone
        if (by_seed := _predictions(runs, round_, arm, len(evaluated), seeds))
    }
    arms = {arm: _measured(classes, truth, k, seed) for arm, classes in predictions.items()}
    compared: dict[str, dict[str, Metric]] = {
        arm: _differences(classes, predictions["loop"], truth, k, seed)
        for arm, classes in predictions.items()
        if arm != "loop"
    }
    before = _round_before(ctx, round_)
    apart: list[str] = []
    if before is not None:
        apart = incomparable(before.config, round_.config)
        pair = None if apart else _same_seeds(ctx, runs, before, round_, truth)
        if pair is not None:
            n = pair[0].shape[1]
            shared = truth if n == len(evaluated) else truth.first(n)
            compared["previous"] = _differences(*pair, shared, k, seed)
    gaps: dict[str, Metric] = {}
    if {"loop", "llm_only", "all_gold"} <= set(predictions):
        gaps = _differences(predictions["llm_only"], predictions["all_gold"], truth, k, seed)
    reviews = ctx.store.reviews(ctx.name)
    answers = ctx.store.annotations(ctx.name)
    return RoundMetrics(
        arms=arms,
        compared=compared,
        not_comparable=tuple(apart),
        tests=int(truth.stable.sum()),
        frozen=_frozen(ctx, round_, evaluated, predictions["loop"], truth),
        confusion={
            arm: _confusion(predictions[arm], truth, k)
            for arm in everyone[:2]
            if arm in predictions and truth.source
        },
        recovered=_recovered(arms, gaps),
        bought=len(reviews),
        pool=len(ctx.keys("pool")),
        gold=sum(g.how != IMPORTED for g in ctx.store.gold(ctx.name).values()),
        random_gold=len(random_control(ctx, ctx.keys("pool"))) if "random" in predictions else 0,
        answers=len(answers),
        evaluated=len(evaluated),
        per_class_n=tuple(np.bincount(truth.y[truth.y >= 0], minlength=k).tolist()),
        accuracy_from=truth.source,
        pushed_wrong=_pushed_wrong(ctx, round_),
        people_alpha=people_alpha(answers, labels, ordinal=ctx.config.campaign.ordinal),
        learned_nothing=tuple(
            run.seed
            for run in _newest_runs(runs, round_, "loop", len(evaluated), seeds)
            if run.learned is False
        ),
        votes=_votes(predictions["loop"], truth, k),
    )


def _predictions(
    runs: Sequence[Run], round_: Round, arm: str, n: int, seeds: Sequence[int] | None = None
) -> dict[int, list[int]]:
    """Seed -> (n,) predictions, of an arm's newest set of seeds; of the seeds named alone."""
    return {r.seed: r.predictions for r in _newest_runs(runs, round_, arm, n, seeds)}


def _newest_runs(
    runs: Sequence[Run], round_: Round, arm: str, n: int, seeds: Sequence[int] | None
) -> list[Run]:
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        wanted = seeds is None or run.seed in seeds
        if wanted and run.arm == arm and (run.round_id == round_.id or arm in ONCE):
            groups[run.label_set].append(run)
    usable = [g for g in groups.values() if all(len(r.predictions) == n for r in g)]
    if not usable:
        return []
    newest = max(usable, key=lambda group: max(r.id or 0 for r in group))
    return sorted(newest, key=lambda r: r.seed)


def _round_before(ctx: Context, round_: Round) -> Round | None:
    """The last measured round before this one."""
    before = [r for r in ctx.store.rounds(ctx.name) if r.metrics and r.number < round_.number]
    return before[-1] if before else None


def _same_seeds(
    ctx: Context, runs: Sequence[Run], before: Round, round_: Round, truth: Truth
) -> tuple[IntArray, IntArray] | None:
    """(s, n') predictions of the round before and of this one, by the seeds that both have.

    They are of the first n' of the evaluated items: the test items, which come first, as far as
    both rounds have them, and the others if they are the same. None where nothing is shared, or
    fewer than two seeds, which could not disagree.
    """
    metrics, n, tests = before.metrics, len(truth.y), int(truth.stable.sum())
    if metrics is None:
        return None
    had, had_tests = metrics.evaluated, metrics.tests
    if had_tests is None:
        had_tests = tests if metrics.accuracy_from == "audit" else had
    shared = n if (had, had_tests) == (n, tests) else min(had_tests, tests)
    then = _predictions(runs, before, "loop", had)
    now = _predictions(runs, round_, "loop", n, seeds_of(ctx, round_))
    common = sorted(then.keys() & now.keys())
    if not shared or len(common) < 2:
        return None
    a, b = (np.array([side[s][:shared] for s in common], dtype=np.int64) for side in (then, now))
    return a, b


STABLE = ("items", "seeds", "over", "alpha_k", "ac1", "p_uc", "churn", "alpha_per_class")
"""Fields of a measurement that need no gold."""


def _measured(predictions: IntArray, truth: Truth, k: int, seed: Sequence[int]) -> Stability:
    """Stability on the test items, accuracy on the items whose class is known."""

    def on(rows: NDArray[np.bool_], y: IntArray | None) -> Stability:
        rng = stream("intervals", *seed)
        weight = None if y is None else truth.weight[rows]
        return measure(predictions[:, rows], y, k, weight=weight, rng=rng)

    known = truth.y >= 0
    if truth.source is None:
        return on(truth.stable, None)
    right = on(known, truth.y[known])
    stable = right if (known == truth.stable).all() else on(truth.stable, None)
    return replace(right, **{key: getattr(stable, key) for key in STABLE})


def _differences(
    a: IntArray, b: IntArray, truth: Truth, k: int, seed: Sequence[int]
) -> dict[str, Metric]:
    """By metric, b minus a: paired over items, with 95 % intervals."""
    differences: dict[str, Metric] = {}
    for needs_gold in (False, True):
        keys = [key for key in COMPARED if METRICS[key].needs_gold == needs_gold]
        if needs_gold and not truth.source:
            continue
        rows = truth.y >= 0 if needs_gold else truth.stable
        differences |= paired_differences(
            a[:, rows],
            b[:, rows],
            truth.y[rows] if needs_gold else None,
            keys,
            k=k,
            weight=truth.weight[rows],
            rng=stream("differences", *seed),
        )
    return {key: differences[key] for key in COMPARED if key in differences}


def _frozen(
    ctx: Context, round_: Round, evaluated: Sequence[Item], full: IntArray, truth: Truth
) -> FrozenAgreement | None:
    """How far a frozen student of the same labels agrees with the full one, and how right it is."""
    frozen = _frozen_predictions(ctx, loop_labels(ctx, round_), evaluated, range(len(full)))
    k, rows = len(ctx.config.labels), truth.stable
    if not rows.any():
        return None
    agreed = agreement(
        full[:, rows],
        frozen[:, rows],
        k,
        rng=stream("frozen agreement", round_.seed, round_.number),
    )
    accuracy = None
    if truth.source:
        known = truth.y >= 0
        rng = np.random.default_rng(0)  # unused: no replicate is drawn
        right = [
            measure(
                side[:, known], truth.y[known], k, weight=truth.weight[known], bootstrap=0, rng=rng
            )
            for side in (full, frozen)
        ]
        apart = _differences(full, frozen, truth, k, (round_.seed, round_.number))["accuracy"]
        of_full, of_frozen = (
            None if m.accuracy is None or not m.accuracy.known else m.accuracy.value for m in right
        )
        accuracy = FrozenAccuracy(of_full, of_frozen, apart)
    return FrozenAgreement(**agreed, accuracy=accuracy)


def _frozen_predictions(
    ctx: Context,
    labels: LabelSet,
    evaluated: Sequence[Item],
    seeds: Sequence[int],
) -> IntArray:
    """(s, n) classes that frozen heads give the evaluated texts.

    Args:
        ctx: the campaign; its encoder embeds.
        labels: what a round's students learn.
        evaluated: the n texts.
        seeds: as many as the full student has.
    Raises:
        StudentError: the encoder cannot be loaded.
        ValueError: no label has a positive weight.
    """
    from loop.student.frozen_student import FrozenHeads

    row = {item_id: i for i, item_id in enumerate(labels.ids)}
    train = [item for item in ctx.keys("pool") if item.id in row]
    rows = [row[item.id] for item in train]
    probs = FrozenHeads().probs(
        item_embeddings(ctx, train),
        labels.y[rows],
        labels.weight[rows],
        item_embeddings(ctx, evaluated),
        seeds,
    )
    return np.asarray(probs.argmax(axis=2), dtype=np.int64)


def _confusion(predictions: IntArray, truth: Truth, k: int) -> tuple[tuple[float, ...], ...]:
    """(k, k) share of the known items by true class and label, mean over the seeds."""
    known = truth.y >= 0
    counts = np.zeros((k, k))
    for of_seed in predictions[:, known]:
        np.add.at(counts, (truth.y[known], of_seed), truth.weight[known])
    return tuple(tuple(line) for line in (counts / counts.sum()).tolist())


def _votes(predictions: IntArray, truth: Truth, k: int) -> Reliability | None:
    """How often the class that most seeds give is right, by the share of the seeds that give it."""
    known = truth.y >= 0
    s = len(predictions)
    if s < 2 or not known.any() or one_class(predictions):
        return None
    counts = np.stack([(predictions[:, known] == c).sum(axis=0) for c in range(k)])
    agree, right = counts.max(axis=0), counts.argmax(axis=0) == truth.y[known]
    weight = truth.weight[known] / truth.weight[known].sum()
    bins = tuple(
        (
            votes / s,
            float(np.average(right[agree == votes], weights=weight[agree == votes])),
            int((agree == votes).sum()),
        )
        for votes in range(1, s + 1)
        if (agree == votes).any()
    )
    gaps = [weight[agree == round(share * s)].sum() * abs(share - acc) for share, acc, _ in bins]
    return Reliability(float(sum(gaps)), float(weight @ right), bins)


def _recovered(arms: Mapping[Arm, Stability], gaps: Mapping[str, Metric]) -> dict[str, Recovered]:
    """Share of the gap between LLM labels and gold labels that the loop closed, per metric.

    A gap counts as noise while its paired interval reaches zero's side: noise is half its width.
    """
    shares = {}
    for key, gap in gaps.items():
        loop, llm, gold = (arms[arm].metric(key) for arm in ("loop", "llm_only", "all_gold"))
        if loop is None or llm is None or gold is None or not gap.has_interval:
            continue
        noise = (gap.high - gap.low) / 2
        share, size = recovered_share(loop.value, llm.value, gold.value, noise=noise)
        shares[key] = Recovered(share, size, noise)
    return shares


def _pushed_wrong(ctx: Context, round_: Round) -> dict[str, Share]:
    """Share of this round's pushed items whose LLM label people found wrong, by reason."""
    gold = ctx.store.gold(ctx.name)
    reviews = ctx.store.reviews(ctx.name, round_.id)
    scores = ctx.store.scores(round_id(round_), [r.item_id for r in reviews])
    wrong: dict[str, list[bool]] = defaultdict(list)
    for review in reviews:
        said = scores[review.item_id].llm_label
        if review.item_id in gold and said is not None:
            wrong[review.reason].append(said != gold[review.item_id].label)
    return {
        reason: Share(sum(of_reason) / len(of_reason), len(of_reason))
        for reason, of_reason in sorted(wrong.items())
    }
