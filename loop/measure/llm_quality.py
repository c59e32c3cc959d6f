"""What the gold so far says: how good the LLM's labels are, how well their errors were foreseen.

Both are computed after every round.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from loop.campaign.config import Config
from loop.campaign.metrics import (
    LlmQuality,
    Metric,
    NoLlmLabel,
    Predictor,
    RoundMetrics,
    Suspects,
    Wrong,
)
from loop.campaign.tables import Round
from loop.measure.collapsed import measured_rounds
from loop.measure.metric import times_100, with_width
from loop.ports import FloatArray, IntArray
from strategies.estimate import (
    Estimate,
    TooFewRandomError,
    label_quality,
    rate_ratio,
    weighted_confusion,
)
from strategies.fuse import weighted_auroc
from strategies.pool import Pool
from strategies.signals.learned_error import probability_wrong

BINS = 5
BOOTSTRAP = 500
MIN_COMPARED = 10
"""Suspects, and random texts, that are compared at least. Of five each, suspects wrong in 60 % of
cases seem no worse than random texts wrong in 30 % about once in four times."""
STOP_RISK = 0.05
"""Chance of stopping too early that is shared out among all planned rounds."""


def quality_metrics(
    config: Config,
    y_llm: IntArray,
    gold: IntArray,
    inclusion_prob: FloatArray,
    round_of: IntArray,
    suspicion: FloatArray,
    answered: NDArray[np.bool_] | None = None,
    arrived: IntArray | None = None,
) -> LlmQuality:
    """Quality of the LLM's labels on the texts of the pool that it gave one.

    Args:
        config: names the classes and the number of rounds.
        y_llm: (n,) the LLM's labels in use.
        gold: (n,) class, -1 where unknown.
        inclusion_prob: (n,) of the chosen items, in the round that chose each.
        round_of: (n,) when each was chosen, as ``order_of_gold`` counts, also of texts whose gold
            did not come back; -1 where none was.
        suspicion: (n,) in [0, 1], free of each item's own gold; it narrows the intervals.
        answered: (n,) bool, whether the LLM gave a label; the others count neither right nor wrong.
            None where it gave one to all.
        arrived: (n,) first round that could choose each text; None if all were there from the
            start.

    Returns:
        The estimates with 95 % intervals. In ``remaining_at_most`` each of the planned rounds has
        an equal share of the risk (Bonferroni). Gold that never came back is taken to be missing at
        random. Where too few gold items were chosen at random, nothing but ``problem``, which says
        so, and ``unanswered``.
    """
    answered = np.ones(len(gold), dtype=bool) if answered is None else answered
    n, without = len(answered), int((~answered).sum())
    missing = int((~answered & (gold < 0)).sum())
    unanswered = NoLlmLabel(without, without / n, missing)
    y_llm, gold, round_of = y_llm[answered], gold[answered], round_of[answered]
    inclusion_prob, suspicion = inclusion_prob[answered], suspicion[answered]
    arrived = None if arrived is None else arrived[answered]
    k, p_correct = len(config.labels), 1.0 - np.clip(suspicion, 0.0, 1.0)
    try:
        quality, bound = (
            label_quality(
                y_llm,
                gold,
                inclusion_prob,
                k,
                round_of=round_of,
                arrived=arrived,
                p_correct=p_correct,
                level=level,
            )
            for level in (0.95, 1.0 - 2.0 * STOP_RISK / config.rounds.rounds)
        )
        confusion = weighted_confusion(
            y_llm, gold, inclusion_prob, k, round_of=round_of, arrived=arrived
        )
    except TooFewRandomError as exc:
        return LlmQuality(problem=str(exc), unanswered=unanswered)
    return LlmQuality(
        unanswered=unanswered,
        accuracy=_metric(quality.accuracy),
        remaining_error=_metric(quality.remaining_error),
        precision=tuple(None if e is None else _metric(e) for e in quality.precision),
        recall=tuple(None if e is None else _metric(e) for e in quality.recall),
        class_share=tuple(map(_metric, quality.class_share)),
        macro_f1=_metric(quality.macro_f1),
        kl=_metric(quality.kl),
        n_gold=quality.n_gold,
        n_random=quality.n_random,
        labels=config.label_names,
        remaining_at_most=(bound.remaining_error.high * (n - without) + missing) / n,
        confusion=tuple(tuple(line) for line in confusion.tolist()),
    )


def _metric(estimate: Estimate) -> Metric:
    return Metric(estimate.value, estimate.low, estimate.high)


def predictor_metrics(
    pool: Pool,
    batch: NDArray[np.bool_],
    gold: IntArray,
    inclusion_prob: FloatArray,
    *,
    rng: np.random.Generator,
) -> Predictor:
    """How well wrong labels were foreseen in the batch that the round bought.

    Args:
        pool: as the round saw it when it chose: gold of earlier rounds only, students of them.
        batch: (n,) bool, items of this round whose gold has come since.
        gold: (n,) what people said.
        inclusion_prob: (n,) of the items of the batch.
        rng: deals the earlier gold to folds, and draws the bootstrap.

    Returns:
        The area under the curve has a 95 % bootstrap interval over items; it is None where fewer
        than two were wrong, or right.
    Raises:
        ValueError: the pool holds gold of the batch.
    Source: Gneiting and Raftery 2007 (Brier score), Hanley and McNeil 1982 (area under the curve).
    """
    rows = np.flatnonzero(batch)
    learned_from = int((pool.gold >= 0).sum())
    if not len(rows):
        return Predictor(0, learned_from)
    if (pool.gold[rows] >= 0).any():
        raise ValueError("the predictor must not have seen the gold that it is judged by")
    p_wrong = probability_wrong(pool, rng=rng)[rows]
    wrong = gold[rows] != pool.y_llm[rows]
    weight = 1.0 / inclusion_prob[rows]
    weight = weight / weight.mean()
    flagged = p_wrong > 0.5
    edges = np.quantile(p_wrong, np.linspace(0, 1, BINS + 1)[1:-1])
    place = np.searchsorted(edges, p_wrong, side="right")
    bins = []
    for number in range(BINS):
        here = place == number
        if here.any():
            share = weight[here] / weight[here].sum()
            bins.append((float(share @ p_wrong[here]), float(share @ wrong[here]), int(here.sum())))
    return Predictor(
        len(rows),
        learned_from,
        auroc=_auroc(p_wrong, wrong, weight, rng),
        flagged=int(flagged.sum()),
        precision=float(wrong[flagged].mean()) if flagged.any() else None,
        expected=float(np.average(p_wrong, weights=weight)),
        found=float(np.average(wrong, weights=weight)),
        brier=float(np.average((p_wrong - wrong) ** 2, weights=weight)),
        bins=tuple(bins),
    )


def _auroc(
    scores: FloatArray, wrong: NDArray[np.bool_], weight: FloatArray, rng: np.random.Generator
) -> Metric | None:
    fewer = min(int(wrong.sum()), int((~wrong).sum()))
    if fewer < 2:  # a single text ranks somewhere, which says nothing
        return None
    drawn = []
    for _ in range(BOOTSTRAP):
        rows = rng.integers(len(scores), size=len(scores))
        if wrong[rows].any() and not wrong[rows].all():
            drawn.append(weighted_auroc(scores[rows], wrong[rows], weight[rows]))
    low, high = map(float, np.percentile(drawn, [2.5, 97.5]))
    low, high = with_width(low, high, fewer)
    value = weighted_auroc(scores, wrong, weight)
    return Metric(value, low, high)


def suspect_metrics(
    reason: Sequence[str],
    wrong: NDArray[np.bool_],
    suspicion: FloatArray,
    earlier: Sequence[Suspects] = (),
) -> Suspects:
    """Whether suspects were wrong more often than random texts.

    A round without suspects, all of whose texts were drawn at random, compares the quarter of them
    that it held most suspect with the others. A small round is taken together with those before it.

    Args:
        reason: (b,) why each text was sent: suspect, audit or coverage.
        wrong: (b,) whether people found the label in use wrong.
        suspicion: (b,) as of when the batch was chosen.
        earlier: of the rounds before, oldest first.

    Returns:
        ``ratio`` is None where all rounds together have fewer than ``MIN_COMPARED`` suspects or
        random texts, or no label was wrong; ``next`` is ``coverage`` where the suspects were not
        wrong more often, so that the next round's whole batch is drawn at random, else
        ``suspects``.
    """
    suspect = np.array([r == "suspect" for r in reason], dtype=bool)
    others = np.array([r in ("audit", "coverage") for r in reason], dtype=bool)
    tried = bool(suspect.any())
    if not tried:
        rows = np.flatnonzero(others)
        suspect[rows[np.argsort(-suspicion[rows], kind="stable")[: len(rows) // 4]]] = True
        others &= ~suspect
    of_round = [Wrong(int(wrong[group].sum()), int(group.sum())) for group in (suspect, others)]
    (suspects, random), rounds = of_round, 1
    for before in reversed(earlier):
        if min(suspects.n, random.n) >= MIN_COMPARED:
            break
        suspects, random = suspects + before.suspects, random + before.random
        rounds += 1
    told = min(suspects.n, random.n) >= MIN_COMPARED and suspects.wrong + random.wrong > 0
    more = suspects.wrong * random.n > random.wrong * suspects.n
    counts = (suspects.wrong, suspects.n, random.wrong, random.n)
    return Suspects(
        of_round[0],
        of_round[1],
        tried,
        _metric(rate_ratio(*counts)) if told else None,
        "coverage" if told and not more else "suspects",
        rounds,
        (suspects, random) if rounds > 1 else None,
    )


def covers_next(rounds: Sequence[Round]) -> bool:
    """Whether the newest measured round found that suspects are not worth asking about."""
    measured = measured_rounds(rounds)
    newest = measured[-1][1].suspects if measured else None
    return newest is not None and newest.next == "coverage"


def suspect_line(suspects: Suspects) -> str | None:
    """What ``suspect_metrics`` say, and what follows from it, in a sentence or two."""
    ratio = suspects.ratio
    if ratio is None:
        return None
    shares = [
        f"{100 * group.wrong / group.n:.0f} % of {group.n}"
        for group in suspects.together or (suspects.suspects, suspects.random)
    ]
    begin = "The label was wrong for"
    named = ("texts sent as suspects", "drawn at random")
    if suspects.rounds > 1:
        begin = f"In the last {suspects.rounds} rounds together the label was wrong for"
        named = ("texts that goldloop ranked most suspect", "random texts")
    elif not suspects.tried:
        named = (
            "the random texts that goldloop ranked most suspect",
            "other texts, all drawn at random",
        )
    line = (
        f"{begin} {shares[0]} {named[0]} and for {shares[1]} {named[1]}:"
        f" {ratio.value:.1f} times as often ({ratio.low:.1f} to {ratio.high:.1f})"
    )
    if suspects.next == "coverage":
        return (
            f"{line}. Suspects are not wrong more often here, so a further round's whole batch is"
            " drawn at random, spread over all kinds of texts"
        )
    if ratio.low <= 1.0:
        return f"{line}. So few texts may show this by chance; suspects are sent again"
    return line


def quality_lines(metrics: RoundMetrics) -> list[str]:
    """What a round's ``predictor`` and ``suspects`` say, and which texts have no label.

    How good the labels are, ``loop.report.verdict`` says.
    """
    lines = []
    quality, foreseen = metrics.label_quality or LlmQuality(), metrics.predictor
    missing = quality.unanswered
    if missing is not None and missing.n:
        lines.append(
            f"The LLM gave no label to {missing.n} texts ({100 * missing.share:.1f} % of the"
            " pool). They count neither as right nor as wrong;"
            f" {missing.without_any_label} of them have no label from people either"
        )
    if foreseen is not None and foreseen.auroc is not None:
        auroc = foreseen.auroc
        can = "goldloop can tell which labels are wrong"
        if auroc.low <= 0.5:
            can = "goldloop cannot yet tell which labels are wrong"
        elif metrics.suspects is not None and metrics.suspects.next == "coverage":
            can = "Within the last batch, goldloop ranked wrong labels above right ones"
        lines.append(
            f"{can} (AUROC {times_100(auroc)} on the last batch, where 50 is chance; it had learned"
            f" from {foreseen.learned_from} earlier labels of people)"
        )
    if metrics.suspects is not None and (line := suspect_line(metrics.suspects)):
        lines.append(line)
    return lines
