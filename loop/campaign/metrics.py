"""What a round measured, as typed values, and the one table of the metrics.

The store keeps ``RoundMetrics`` as JSON. Rounds of older versions lack what came later; such fields
keep their defaults. Shares, and all metrics but alpha, lie between 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, TypeAdapter, model_serializer

Json = dict[str, Any]
"""What ``json`` reads and writes."""

Number = Annotated[float, BeforeValidator(lambda read: math.nan if read is None else read)]
"""A float that is nan in memory and null in JSON where it is not defined."""

Over = Literal["items and seeds", "items"]
Arm = Literal["loop", "llm_only", "random", "all_gold"]
"""Whose labels a set of students learned."""

ONCE: tuple[Arm, ...] = ("llm_only", "all_gold")
"""Arms that are trained once and serve every round."""


@dataclass(frozen=True)
class MetricInfo:
    """How one metric is called and read.

    Attributes:
        title: heads a column.
        name: for readers outside the report, where nothing explains the title.
        meaning: of the column, for the report.
        spread: key of its standard deviation over the seeds, or None.
        needs_gold: False where the predictions alone suffice.
    """

    key: str
    title: str
    name: str
    meaning: str
    spread: str | None = None
    higher_is_better: bool = True
    needs_gold: bool = True


METRICS: dict[str, MetricInfo] = {
    info.key: info
    for info in (
        MetricInfo(
            "alpha_k",
            "alpha_K",
            "alpha_K between seeds",
            "how far the seeds agree with each other beyond chance (Krippendorff's alpha)",
            needs_gold=False,
        ),
        MetricInfo(
            "p_uc",
            "p_uc",
            "share of unchanged predictions",
            "share of test texts on which all seeds give the same label",
            needs_gold=False,
        ),
        MetricInfo(
            "churn",
            "churn",
            "share of predictions that change between two seeds",
            "share of labels that differ between two seeds, on average; lower is better",
            higher_is_better=False,
            needs_gold=False,
        ),
        MetricInfo(
            "accuracy",
            "accuracy",
            "accuracy",
            "share of test texts that are labelled correctly, mean over the seeds",
            spread="accuracy_sd",
        ),
        MetricInfo(
            "macro_f1",
            "macro-F1",
            "macro-F1",
            "F1 of every class, averaged so that rare classes count as much as common ones",
            spread="macro_f1_sd",
        ),
        MetricInfo(
            "reliable_accuracy",
            "reliable acc.",
            "reliable accuracy (all seeds right)",
            "share of test texts that every seed gets right; nothing but better labels raises it",
        ),
    )
}
"""Every metric by its key, in the order in which they are shown."""

WITH_SPREADS = tuple(key for i in METRICS.values() for key in (i.key, i.spread) if key)
"""Each metric's key, then that of its spread."""

AGREEMENT = ("alpha_k", "ac1", "p_uc", "churn")
"""Metrics of how far the seeds agree; they say nothing of students that all give one class."""

ONE_CLASS = (
    "every seed gives every text the same label, so the seeds had nothing to disagree about and no"
    " stability is shown"
)

COMPARED = tuple(key for key in METRICS if key != "churn")
"""What sets of students are compared by: churn would say what alpha_k and p_uc say already."""


@dataclass(frozen=True)
class Metric:
    """A value with its 95 % interval.

    Attributes:
        value: nan where the metric is undefined; ``note`` says why.
        low: nan where no interval was asked for, or none can be had.
        high: likewise.
        note: why the value is undefined, or what to keep in mind when reading it.
    """

    value: Number
    low: Number = math.nan
    high: Number = math.nan
    note: str = ""

    @property
    def known(self) -> bool:
        """Whether there is a value."""
        return not math.isnan(self.value)

    @property
    def has_interval(self) -> bool:
        """Whether both ends are known."""
        return not math.isnan(self.low + self.high)

    @model_serializer
    def to_json(self) -> dict[str, float | str | None]:
        """Numbers by name; nan becomes None, which JSON knows."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        shown: dict[str, float | str | None] = {
            name: None if math.isnan(x) else float(x) for name, x in numbers.items()
        }
        return shown | ({"note": self.note} if self.note else {})


@dataclass(frozen=True)
class Stability:
    """Every metric of one trained set of seeds.

    Attributes:
        items: n test items.
        known: how many of them have a gold label.
        over: what the intervals are over; items alone where there are fewer than three seeds. Those
            of ``accuracy_sd`` and ``macro_f1_sd`` are over seeds, for these very items.
        ac1: Gwet's AC1, agreement beyond chance that a common class does not pull down.
        accuracy: mean over seeds; its companion ``accuracy_sd`` is the sample standard deviation.
        recall: one Metric per class, mean over seeds; None without gold, like all that needs it.
    """

    items: int
    seeds: int
    known: int
    alpha_k: Metric
    ac1: Metric
    p_uc: Metric
    churn: Metric
    alpha_per_class: tuple[Metric, ...]
    over: Over = "items"
    accuracy: Metric | None = None
    accuracy_sd: Metric | None = None
    macro_f1: Metric | None = None
    macro_f1_sd: Metric | None = None
    reliable_accuracy: Metric | None = None
    recall: tuple[Metric, ...] | None = None
    precision: tuple[Metric, ...] | None = None
    f1: tuple[Metric, ...] | None = None

    def metric(self, key: str) -> Metric | None:
        """One of ``WITH_SPREADS``; None where it has no value."""
        metric: Metric | None = getattr(self, key)
        return metric if metric is not None and metric.known else None


@dataclass(frozen=True)
class Share:
    """A share of n things."""

    share: float
    n: int


@dataclass(frozen=True)
class Recovered:
    """How much of the gap between LLM labels and gold labels was closed.

    Attributes:
        share: (metric - LLM only) / (all gold - LLM only), or None where the gap is within noise.
        gap: the denominator.
        noise: what a gap must exceed for the share to be told.
    """

    share: float | None
    gap: float
    noise: float | None = None


@dataclass(frozen=True)
class FrozenAccuracy:
    """Accuracy of the full student and of the frozen one, and frozen minus full, paired."""

    full: float | None
    frozen: float | None
    difference: Metric


@dataclass(frozen=True)
class FrozenAgreement:
    """How far frozen heads agree with the full student on the test texts.

    Attributes:
        same: share of equal labels of a seed of each.
        kappa: the same beyond chance.
        itself: the same share between two seeds of the full student.
        short: ``itself`` minus ``same``.
        accuracy: None where no test text has a known label.
    """

    same: Metric
    kappa: Metric
    itself: Metric
    short: Metric
    accuracy: FrozenAccuracy | None = None


@dataclass(frozen=True)
class Reliability:
    """How well confidence fits accuracy.

    Attributes:
        ece: expected calibration error, in [0, 1].
        accuracy: of the labels.
        bins: confidence, accuracy and number of texts, least confident first.
    """

    ece: float
    accuracy: float
    bins: tuple[tuple[float, float, int], ...]


@dataclass(frozen=True)
class Calibration:
    """What was done to the LLM's probabilities, and what it did to them.

    Attributes:
        view: ``raw``, ``batch``, ``contextual`` or ``gold``.
        reason: one sentence, or empty.
        n: audit texts with gold that both were measured on.
        raw: None where too few audit texts have gold, like ``used``.
        used: of the labels in use.
    """

    view: str
    reason: str
    n: int = 0
    raw: Reliability | None = None
    used: Reliability | None = None


@dataclass(frozen=True)
class NoLlmLabel:
    """Texts of the pool to which the LLM gave no label.

    Attributes:
        share: of the pool.
        without_any_label: how many of them people gave none either.
    """

    n: int
    share: float
    without_any_label: int


@dataclass(frozen=True)
class LlmQuality:
    """How good the LLM's labels in use are, on the texts of the pool that have one.

    This is the only estimate of it: report, status, ``rounds.json`` and notebooks all show this.

    Attributes:
        problem: why nothing but ``unanswered`` is known, or empty.
        unanswered: None in rounds of older versions.
        accuracy: share of right labels.
        remaining_error: share of wrong labels left once all gold found so far is put in.
        precision: per predicted class; None where too few randomly drawn gold items have it.
        recall: per true class; None where too few randomly drawn gold items belong to it.
        class_share: per true class.
        macro_f1: mean F1 over all classes.
        kl: KL(P || P_S) in nats, P the true and P_S the LLM's class shares.
        n_gold: gold labels used.
        n_random: those of them that chance chose.
        labels: the order of the classes.
        remaining_at_most: what the share of wrong or missing labels in the whole pool stays below
            with 95 % confidence over all planned rounds together.
        confusion: (k, k) share of the pool by true class and the LLM's label, sums to 1; empty in
            rounds of older versions.
    """

    problem: str = ""
    unanswered: NoLlmLabel | None = None
    accuracy: Metric | None = None
    remaining_error: Metric | None = None
    precision: tuple[Metric | None, ...] = ()
    recall: tuple[Metric | None, ...] = ()
    class_share: tuple[Metric | None, ...] = ()
    macro_f1: Metric | None = None
    kl: Metric | None = None
    n_gold: int = 0
    n_random: int = 0
    labels: tuple[str, ...] = ()
    remaining_at_most: float | None = None
    confusion: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class Predictor:
    """How well wrong labels were foreseen in the batch that a round bought.

    Attributes:
        n: items of the batch whose gold has come.
        learned_from: earlier gold labels.
        auroc: weighted by 1/pi, like ``expected``, ``found``, ``bins`` and ``brier``; None where
            all or none were wrong.
        flagged: items of P(wrong) > 1/2.
        precision: share of wrong labels among the flagged items, not weighted.
        expected: share of wrong labels that was foreseen.
        found: share of wrong labels that people found.
        brier: mean squared error of P(wrong).
        bins: mean P(wrong), share wrong and number of items, by fifths of P(wrong).
    """

    n: int
    learned_from: int
    auroc: Metric | None = None
    flagged: int = 0
    precision: float | None = None
    expected: float | None = None
    found: float | None = None
    brier: float | None = None
    bins: tuple[tuple[float, float, int], ...] = ()


@dataclass(frozen=True)
class Wrong:
    """How many of n labels people found wrong."""

    wrong: int
    n: int

    def __add__(self, other: Wrong) -> Wrong:
        return Wrong(self.wrong + other.wrong, self.n + other.n)


@dataclass(frozen=True)
class Suspects:
    """Whether suspects were wrong more often than random texts.

    Attributes:
        suspects, random: of this round.
        tried: whether suspects were sent; else the most suspect random texts stand for them.
        ratio: of the two shares, over ``rounds`` rounds; None where too few texts tell.
        next: what the next round's batch is made of, besides its audit, by the same rounds.
        rounds: this one, and as many before it as small batches need.
        together: suspects and random texts of these rounds; None: of this one alone.
    """

    suspects: Wrong
    random: Wrong
    tried: bool
    ratio: Metric | None
    next: Literal["suspects", "coverage"]
    rounds: int = 1
    together: tuple[Wrong, Wrong] | None = None


@dataclass(frozen=True)
class ToGoal:
    """What is still to be done.

    Attributes:
        wrong: the goal, largest share of wrong labels.
        chosen: whether the campaign file names it.
        labels: texts that people must still label. Its ends are bounds for 95 % of samples, see
            ``loop.measure.to_goal``. None where it cannot be told.
        usd: price of their answers; None without a price.
        hours: people's time; None where nobody's time is known.
        missing: why ``labels`` is None, or empty.
    """

    wrong: float
    chosen: bool
    labels: Metric | None = None
    usd: Metric | None = None
    hours: Metric | None = None
    missing: str = ""


@dataclass(frozen=True)
class RoundMetrics:
    """All that a round measured.

    Attributes:
        arms: the students, by arm.
        compared: by reference and metric, loop minus the reference, paired; ``previous`` is the
            round before.
        not_comparable: keys of the campaign file that changed since the round before and keep the
            two from being compared.
        tests: evaluated items that stay the same; None in rounds of older versions.
        frozen: None where nothing could be compared.
        confusion: by arm, (k, k) share of the known items by true class and label.
        label_quality: of the LLM's labels in use.
        predictor: None where the campaign foresees no errors.
        suspects: None where nothing came back.
        recovered: by metric.
        bought: texts sent to people.
        gold: gold labels, and those of the random control; None in rounds of older versions.
        per_class_n: (k,) evaluated items of each class.
        accuracy_from: ``test`` (gold test labels), ``audit`` (audit sample weighted by 1/pi), or
            None where nothing says what is right.
        pushed_wrong: by reason (suspect, audit, …), texts whose LLM label people found wrong.
        people_alpha: agreement among people.
        learned_nothing: seeds of the loop's own students that learned nothing from their labels.
        votes: of the loop's students, how often the class that most seeds give is right, by the
            share of the seeds that give it; None without gold, or where all give one class.
    """

    arms: Mapping[Arm, Stability] = field(default_factory=dict)
    compared: Mapping[str, Mapping[str, Metric]] = field(default_factory=dict)
    not_comparable: tuple[str, ...] = ()
    tests: int | None = None
    frozen: FrozenAgreement | None = None
    confusion: Mapping[Arm, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    label_quality: LlmQuality | None = None
    predictor: Predictor | None = None
    suspects: Suspects | None = None
    calibration: Calibration | None = None
    recovered: Mapping[str, Recovered] = field(default_factory=dict)
    bought: int = 0
    pool: int = 0
    gold: int | None = None
    random_gold: int | None = None
    answers: int = 0
    evaluated: int = 0
    per_class_n: tuple[int, ...] = ()
    accuracy_from: Literal["test", "audit"] | None = None
    pushed_wrong: Mapping[str, Share] = field(default_factory=dict)
    people_alpha: float | None = None
    learned_nothing: tuple[int, ...] = ()
    votes: Reliability | None = None

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> RoundMetrics:
        """Reads what this version or an older one stored.

        Older ones also stored a second estimate of the LLM's labels as they were before gold had a
        say, as ``llm``. It is read where there is no other.
        """
        known = {name: value for name, value in stored.items() if value not in (None, {})}
        if "llm" in known:
            known.setdefault("label_quality", known["llm"])
        return of_json(cls, known)


Measured = TypeVar("Measured")


_ADAPTERS: dict[object, TypeAdapter[Any]] = {}  # making one takes milliseconds


def _adapter(kind: type[Measured]) -> TypeAdapter[Measured]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def of_json(kind: type[Measured], stored: object) -> Measured:
    """A value of this module, or one that holds some, out of JSON.

    Raises:
        ValueError: the JSON is of something else.
    """
    return _adapter(kind).validate_python(stored)


def as_json(value: object) -> Json:
    """A dataclass as JSON values; nan becomes None."""
    shown: Json = _adapter(type(value)).dump_python(value, mode="json")
    return shown
