"""How good the LLM's labels are, from the gold labels that were bought, with intervals.

The bought items are mostly suspects, so every figure is weighted by inclusion probabilities; the
suspects, taken for certain, carry no sampling error, and the random audit carries all of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from strategies.calibrate import effective_size
from strategies.pool import BoolArray, FloatArray, IntArray

MIN_RANDOM = 5  # fewer randomly chosen gold items than this support no interval
SEEN = 0.95  # share of the pool that must have been there for a round to speak for all of it


class TooFewRandomError(ValueError):
    """The randomly chosen gold items cannot speak for the whole pool."""


@dataclass(frozen=True)
class Estimate:
    """A value and its interval at the level asked for."""

    value: float
    low: float
    high: float


def share_interval(value: float, n: float, *, level: float = 0.95) -> tuple[float, float]:
    """Ends of the interval of a share seen in n independent items, as a sample shows it.

    It has a width also where all items agree, unlike a bootstrap, whose replicates are then all
    equal.

    Args:
        value: the share, in [0, 1].
        n: > 0; need not be whole, for items of unequal weight.
    Source: Wilson 1927.
    """
    from scipy.special import ndtri

    q = float(ndtri(0.5 + level / 2.0))
    shrink = 1.0 + q**2 / n
    centre = (value + q**2 / (2.0 * n)) / shrink
    half = q * float(np.sqrt(value * (1.0 - value) / n + q**2 / (4.0 * n**2))) / shrink
    return max(min(centre - half, value), 0.0), min(max(centre + half, value), 1.0)


def unseen(n: float, *, level: float = 0.95) -> float:
    """Largest share, at the level, of something that not one of n independent items shows."""
    return share_interval(0.0, n, level=level)[1]


@dataclass(frozen=True)
class LabelQuality:
    """What the gold labels say about the LLM's labels on the whole pool.

    Attributes:
        accuracy: share of right LLM labels.
        remaining_error: share of wrong labels left once all gold found so far is put in.
        precision: per predicted class; None where fewer than ``MIN_RANDOM`` randomly chosen gold
            items have that prediction.
        recall: per true class; None where fewer than ``MIN_RANDOM`` randomly chosen gold items
            belong to it.
        class_share: per true class.
        macro_f1: mean F1 over all classes (a class with neither members nor predictions has 0).
        kl: KL(P || P_S) in nats, P the true and P_S the LLM's class shares, less its bias.
        n_gold: gold labels used.
        n_random: those of them that chance chose.
    """

    accuracy: Estimate
    remaining_error: Estimate
    precision: tuple[Estimate | None, ...]
    recall: tuple[Estimate | None, ...]
    class_share: tuple[Estimate, ...]
    macro_f1: Estimate
    kl: Estimate
    n_gold: int
    n_random: int


def label_quality(
    y_llm: IntArray,
    gold: IntArray,
    inclusion_prob: FloatArray,
    k: int,
    *,
    round_of: IntArray | None = None,
    arrived: IntArray | None = None,
    p_correct: FloatArray | None = None,
    level: float = 0.95,
) -> LabelQuality:
    """Quality of the LLM's labels on all n items, from the gold ones.

    Args:
        y_llm: (n,) the LLM's labels.
        gold: (n,) class, -1 where unknown.
        inclusion_prob: (n,) probability with which each item was chosen in its round, among the
            items not chosen before; read only where it was.
        k: number of classes.
        round_of: (n,) round in which each item was chosen; None if all came in one round. Where
            gold of chosen items is unknown, it is missing at random among the round's suspects, and
            among its random items.
        arrived: (n,) first round that could choose each item; None if all were there from the
            start. A round that saw less than ``SEEN`` of the pool does not speak for it.
        p_correct: (n,) out-of-fold probability that the LLM is right (of a gold item without its
            own answer), or None. It narrows the intervals as far as it is right, never biases.
        level: of the intervals.

    Returns:
        Estimates with intervals.

    Raises:
        ValueError: shapes that do not fit, fewer than ``MIN_RANDOM`` randomly chosen gold items,
            or inclusion probabilities that leave part of the pool without a chance.
    Source: Saerndal et al. 1992 (difference estimator, linearised ratios); Angelopoulos et al.
        2023, PPI++ (power tuning); Wilson 1927 (interval of a share).
    """
    design = replace(_design(gold, inclusion_prob, round_of, arrived, y_llm), level=level)
    known = design.known
    truth, said = gold[known], y_llm[known]
    right = (truth == said).astype(np.float64)
    f_right = np.zeros(design.n) if p_correct is None else p_correct
    if f_right.shape != (design.n,):
        raise ValueError(f"p_correct must be ({design.n},), not {f_right.shape}")

    accuracy, e_right = _mean(design, right, f_right)
    corrected = float((1.0 - right).sum()) / design.n
    seen_right, most = float(right.sum()) / design.n, 1.0 - corrected
    acc = _share(design, accuracy, e_right)
    acc = Estimate(*(min(max(part, seen_right), most) for part in (acc.value, acc.low, acc.high)))

    precision: list[Estimate | None] = []
    recall: list[Estimate | None] = []
    shares: list[Estimate] = []
    f1, e_f1, f1_hidden = 0.0, np.zeros(len(truth)), 0.0
    per_unit = float(design.spread.sum()) / design.n**2
    p_true, e_true = np.zeros(k), np.zeros((k, len(truth)))
    p_said = np.bincount(y_llm, minlength=k) / design.n
    for c in range(k):
        is_c = (truth == c).astype(np.float64)
        said_c = (said == c).astype(np.float64)
        hit_mean, e_hit = _mean(design, is_c * said_c, (y_llm == c) * 1.0)
        p_true[c], e_true[c] = _mean(design, is_c, (y_llm == c) * 1.0)
        p_true[c] = max(p_true[c], hit_mean)
        shares.append(_share(design, float(p_true[c]), e_true[c]))
        precision.append(_ratio(design, is_c, said == c))
        recall.append(_tuned_ratio(design, hit_mean, e_hit, p_true[c], e_true[c], truth == c))
        both = float(p_said[c] + p_true[c])
        if both > 0:
            f = 2.0 * hit_mean / both
            f1 += f / k
            e_f1 += (2.0 * e_hit - f * e_true[c]) / both / k
            if per_unit > 0 and (design.random & (truth == c)).sum() < MIN_RANDOM:
                # so few show hardly anything of what the LLM does with the class
                f1_hidden += (2.0 / both / k) ** 2 * _one_error(per_unit) * per_unit
    # Each share is an estimate of its own; together they are the whole pool.
    whole = sum(share.value for share in shares)
    shares = [Estimate(s.value / whole, s.low / whole, min(1.0, s.high / whole)) for s in shares]
    # A few items of a rare class can carry nearly all of macro-F1's variance: then these few, and
    # not the whole audit, say how well that variance is known.
    carrying = effective_size(design.spread * e_f1**2)
    few = min(int(design.random.sum()), max(round(2.0 * carrying), 3)) if carrying else None
    left, still = max(1.0 - acc.value - corrected, 0.0), max(1.0 - acc.low - corrected, 0.0)
    if still <= left:  # all that the audit foresees is found; the texts not seen may hold more
        unknown = 1.0 - len(truth) / design.n
        more = unseen(max(int(design.random.sum()), 1), level=level) * unknown
        still = min(still + more, unknown)
    return LabelQuality(
        accuracy=acc,
        remaining_error=Estimate(left, max(1.0 - acc.high - corrected, 0.0), still),
        precision=tuple(precision),
        recall=tuple(recall),
        class_share=tuple(shares),
        macro_f1=_share(design, f1, e_f1, items=few, hidden=f1_hidden),
        kl=_kl(design, p_true, e_true, p_said),
        n_gold=len(truth),
        n_random=int(design.random.sum()),
    )


def weighted_confusion(
    y_llm: IntArray,
    gold: IntArray,
    inclusion_prob: FloatArray,
    k: int,
    *,
    round_of: IntArray | None = None,
    arrived: IntArray | None = None,
) -> FloatArray:
    """Share of the pool that is of each true class and has each label of the LLM.

    How often the LLM gives each label is known, so that the columns are scaled to it.

    Args:
        y_llm: as in ``label_quality``, like all others.

    Returns:
        (k, k), true class by the LLM's label; sums to 1. A label that no gold item has is left out.
    Source: Saerndal et al. 1992 (post-stratification).
    """
    design = _design(gold, inclusion_prob, round_of, arrived, y_llm)
    counts = np.zeros((k, k))
    np.add.at(counts, (gold[design.known], y_llm[design.known]), design.weight)
    said = np.bincount(y_llm, minlength=k) / design.n
    covered = counts.sum(axis=0) > 0
    scale = np.zeros(k)
    scale[covered] = said[covered] / counts.sum(axis=0)[covered]
    return np.asarray(counts * scale / (counts * scale).sum())


def over_all_rounds(
    gold: IntArray,
    inclusion_prob: FloatArray,
    round_of: IntArray,
    *,
    arrived: IntArray | None = None,
) -> FloatArray:
    """Inclusion probabilities by which the gold of several rounds is weighed like one sample.

    The probability of a round is among what the rounds before have left. Weighed by it alone, what
    they took as suspects, often a rare class, counts for less and less.

    Args:
        gold: as in ``label_quality``, like all others.

    Returns:
        (n,) in (0, 1], right up to a common factor; as given where nothing but suspects is known.
    """
    try:
        design = _design(gold, inclusion_prob, round_of, arrived, gold)
    except TooFewRandomError:
        return inclusion_prob
    # Suspects after the last audit speak for nothing but themselves: they weigh least.
    least = design.weight[design.weight > 0].min()
    out = np.ones(len(gold))
    out[design.known] = least / np.maximum(design.weight, least)
    return out


def rate_ratio(hits: int, n: int, other_hits: int, other_n: int) -> Estimate:
    """How many times as often something happens in one group as in another, with its 95 % interval.

    Args:
        hits: of the ``n`` > 0 items of the group.
        other_hits: of the ``other_n`` > 0 items of the other one.

    Returns:
        The ratio of the two shares, half an item added to every count so that none is 0.
    Source: Walter 1975 (the half), Katz et al. 1978 (interval of the logarithm).
    """
    from scipy.special import ndtri

    ratio = ((hits + 0.5) / (n + 0.5)) / ((other_hits + 0.5) / (other_n + 0.5))
    # A whole item here: with half of one, n of n would be certain.
    spread = 1 / (hits + 0.5) - 1 / (n + 1) + 1 / (other_hits + 0.5) - 1 / (other_n + 1)
    factor = float(np.exp(ndtri(0.975) * np.sqrt(spread)))
    return Estimate(ratio, ratio / factor, ratio * factor)


@dataclass(frozen=True)
class _Design:
    """How the gold items came to be chosen.

    Attributes:
        n: items in the pool.
        known: (n,) bool.
        weight: (g,) items of the pool that each gold item stands for.
        spread: (g,) factor of each squared residual in the variance of a total.
        random: (g,) bool, chosen by chance rather than for certain, in a round that has a say.
        level: of the intervals.
    """

    n: int
    known: BoolArray
    weight: FloatArray
    spread: FloatArray
    random: BoolArray
    level: float = 0.95


def _design(
    gold: IntArray,
    inclusion_prob: FloatArray,
    round_of: IntArray | None,
    arrived: IntArray | None,
    y_llm: IntArray,
) -> _Design:
    n = len(gold)
    if y_llm.shape != (n,) or inclusion_prob.shape != (n,):
        raise ValueError(
            f"y_llm and inclusion_prob must be ({n},), not {y_llm.shape} and {inclusion_prob.shape}"
        )
    known: BoolArray = np.asarray(gold >= 0)
    pi = inclusion_prob[known]
    if not ((pi > 0) & (pi <= 1 + 1e-9)).all():
        raise ValueError("inclusion_prob of every gold item must be in (0, 1]")
    pi = np.minimum(pi, 1.0)
    rounds = np.zeros(n, dtype=np.int64) if round_of is None else round_of
    numbers, step = np.unique(rounds[known], return_inverse=True)
    chance: BoolArray = np.asarray(pi < 1 - 1e-9)
    # A round estimates the pool as: gold of earlier rounds for certain, the rest by 1/pi. Rounds
    # that had no random part estimate nothing, unless they took all that was left.
    strength: FloatArray = np.zeros(len(numbers))
    back: FloatArray = np.ones(len(pi))
    for t, number in enumerate(numbers):
        here = step == t
        out = ~known & (rounds == number) if round_of is not None else np.zeros(n, dtype=bool)
        by_chance = inclusion_prob[out] < 1 - 1e-9
        for part, missing in ((here & chance, by_chance), (here & ~chance, ~by_chance)):
            back[part] = part.sum() / max(part.sum() + missing.sum(), 1)
        there = n if arrived is None else int((arrived <= number).sum())
        left = there - int((step < t).sum())
        size = effective_size(1.0 / pi[here & chance])
        if there >= SEEN * n and size > 0:
            strength[t] = size / max(left, 1) ** 2
        elif there == n and int(here.sum()) == left:
            strength[t] = np.inf
    chance &= strength[step] > 0
    if np.isinf(strength).any():  # all that was left, for certain: no other round has a say
        strength = np.isinf(strength).astype(np.float64)
    if not strength.any() or (chance.sum() < MIN_RANDOM and len(pi) < n):
        few = int(chance.sum())
        raise TooFewRandomError(
            f"{few} random text{'s' * (few != 1)} with a label from people cannot speak for {n}"
            f" texts; at least {MIN_RANDOM} are needed (a higher rounds.audit_frac draws more)"
        )
    strength = strength / strength.sum()
    later = strength[::-1].cumsum()[::-1] - strength
    pi = pi * back
    weight = strength[step] / pi + later[step]
    spread = strength[step] ** 2 * (1.0 - pi) / pi**2
    return _Design(n, known, weight, spread, chance)


def _mean(design: _Design, z: FloatArray, f: FloatArray) -> tuple[float, FloatArray]:
    """Mean of z over the pool, helped by f as far as f predicts z, and the residuals.

    Args:
        design: of the g gold items.
        z: (g,) what gold shows.
        f: (n,) a prediction of it for all items.
    """
    share = design.weight / design.weight.sum()
    f_gold = f[design.known]
    z_mean, f_mean = float(share @ z), float(share @ f_gold)
    # The tuning that minimises the variance of the estimate, from the items that cause it.
    v = design.spread
    f_res, z_res = f_gold - f_mean, z - z_mean
    power = float((v * f_res * z_res).sum()) / max(float((v * f_res**2).sum()), 1e-12)
    power = min(max(power, 0.0), 1.0)
    value = z_mean + power * (float(f.mean()) - f_mean)
    return min(max(value, 0.0), 1.0), z_res - power * f_res


def _variance(design: _Design, residual: FloatArray) -> float:
    m = int(design.random.sum())
    return float((design.spread * residual**2).sum()) / design.n**2 * m / max(m - 2, 1)


def _share(
    design: _Design,
    value: float,
    residual: FloatArray,
    *,
    items: int | None = None,
    hidden: float = 0.0,
) -> Estimate:
    """The interval of a value with these residuals, and with variance that these do not show."""
    per_unit = float(design.spread.sum()) / design.n**2
    m = int(design.random.sum())
    return _wilson(value, _variance(design, residual) + hidden, per_unit, design.level, items or m)


def _ratio(design: _Design, z: FloatArray, domain: BoolArray) -> Estimate | None:
    """Weighted mean of z within a domain of the gold items."""
    m = int((domain & design.random).sum())
    if m < MIN_RANDOM:
        return None
    weight = design.weight * domain
    value = float((weight * z).sum() / weight.sum())
    unit = design.spread * domain / weight.sum() ** 2
    variance = float((unit * (z - value) ** 2).sum()) * m / (m - 1)
    return _wilson(value, variance, float(unit.sum()), design.level, m)


def _tuned_ratio(
    design: _Design,
    top: float,
    e_top: FloatArray,
    bottom: float,
    e_bottom: FloatArray,
    domain: BoolArray,
) -> Estimate | None:
    """Ratio of two tuned means, whose denominator counts the items of ``domain``."""
    m = int((domain & design.random).sum())
    if m < MIN_RANDOM or bottom <= 0:
        return None
    value = min(top / bottom, 1.0)
    variance = _variance(design, (e_top - value * e_bottom) / bottom)
    unit = float((design.spread * domain).sum()) / float((design.weight * domain).sum()) ** 2
    return _wilson(value, variance, unit, design.level, m)


def _wilson(value: float, variance: float, per_unit: float, level: float, m: int) -> Estimate:
    """Interval of a share whose variance is known from m random items.

    The variance is turned into the number of independent items that would have it. Residuals that
    are all but zero (no error among few items) prove no certainty: they are taken to be at least
    what one error among the items would have shown.
    """
    from scipy.special import stdtrit

    if per_unit <= 0:
        return Estimate(value, value, value)
    size = max(value * (1.0 - value), _one_error(per_unit)) / max(
        variance, _one_error(per_unit) * per_unit
    )
    q = float(stdtrit(max(m - 1, 1), 0.5 + level / 2.0))
    shrink = 1.0 + q**2 / size
    centre = (value + q**2 / (2.0 * size)) / shrink
    half = q * np.sqrt(value * (1.0 - value) / size + q**2 / (4.0 * size**2)) / shrink
    return Estimate(
        value,
        float(max(min(centre - half, value), 0.0)),
        float(min(max(centre + half, value), 1.0)),
    )


def _one_error(per_unit: float) -> float:
    """Variance of an item, at least: that of a share which one error more would have shown.

    Args:
        per_unit: variance of a mean of items whose own variance is 1; > 0.
    """
    return 1.0 / (1.0 / per_unit + 2.0)


def _kl(design: _Design, p: FloatArray, residual: FloatArray, said: FloatArray) -> Estimate:
    """KL(p || said), its bias removed; the interval inverts a noncentral chi-square law.

    Near zero the estimate is not normal but a scaled chi-square, so the usual interval fails.
    """
    from scipy.optimize import brentq
    from scipy.special import chndtr

    floor = 0.5 / design.n
    shares = np.maximum(p, floor) / np.maximum(p, floor).sum()
    said = np.maximum(said, floor) / np.maximum(said, floor).sum()
    raw = max(float((shares * np.log(shares / said)).sum()), 0.0)  # rounding may fall below 0
    per_unit = float(design.spread.sum()) / design.n**2
    if per_unit <= 0:
        return Estimate(raw, raw, raw)
    least = _one_error(per_unit) * per_unit  # as for a share: no error seen is no certainty
    noise = float(
        sum(max(_variance(design, e), least) / q for e, q in zip(residual, shares, strict=True))
    )
    df = len(p) - 1
    size = df / noise
    statistic = 2.0 * size * raw
    tail = (1.0 - design.level) / 2.0

    def bound(prob: float, statistic: float) -> float:
        if chndtr(statistic, df, 1e-9) <= prob:
            return 0.0
        # No mix is further from the LLM's than its rarest class alone.
        most = -float(np.log(said.min()))
        top = 2.0 * size * most
        if top <= 1e-9 or chndtr(statistic, df, top) > prob:
            return most
        ncp = float(brentq(lambda x: chndtr(statistic, df, x) - prob, 1e-9, top))
        return ncp / (2.0 * size)

    # Shares that agree better than chance lets them would leave no mix possible at all: the upper
    # end is then that of shares which agree as they do on average where nothing differs.
    low, high = bound(1.0 - tail, statistic), bound(tail, max(statistic, float(df)))
    return Estimate(max(raw - df / (2.0 * size), 0.0), low, high)
