"""What a report says of a campaign, as frozen values.

The page, the table in the terminal and ``rounds.json`` are all drawn from one ``ReportView``, so
they cannot disagree. Values in it lie between 0 and 1 (alpha may be negative) and are shown times
100 with one decimal; what was not measured is shown as a dash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from loop.campaign.metrics import (
    Arm,
    Calibration,
    FrozenAgreement,
    LlmQuality,
    Metric,
    Predictor,
    Recovered,
    Reliability,
    Share,
    Suspects,
    ToGoal,
)

if TYPE_CHECKING:
    from loop.people.person import Person

ARMS: tuple[Arm, ...] = ("llm_only", "loop", "random", "all_gold")
"""In the order in which they are shown."""

ARM_NAMES: dict[str, str] = {
    "loop": "goldloop",
    "llm_only": "LLM labels only",
    "random": "Random control",
    "all_gold": "All gold",
}
MISSING = "–"
NOT_COMPARABLE = "†"
"""Marks a round that is not to be compared with those before it."""


@dataclass(frozen=True)
class ClassRow:
    """One class: recall, precision, agreement of the seeds, and test texts of that class."""

    label: str
    recall: Metric | None = None
    alpha: Metric | None = None
    n: int | None = None
    precision: Metric | None = None


@dataclass(frozen=True)
class ReportRow:
    """One set of students.

    Attributes:
        round: None for references that are trained once.
        gold_bought: labels that people gave so far; texts that came back without one do not count.
        metrics: by key, see ``loop.campaign.metrics``; None or absent is shown as a dash.
        pushed_wrong: by reason (suspect, audit, …), texts whose LLM label people found wrong among
            those sent in this round.
        recovered: by metric name.
        against: paired differences by metric: this row minus ``llm_only``, ``random``,
            ``all_gold``, or ``previous``, the round before.
        confusion: share of the test texts by true class and label, mean over the seeds.
        label_quality: of the LLM's labels in the round; None for other arms, like the next two.
        not_comparable: keys of the campaign file that changed since the round before and keep the
            two from being compared.
    """

    arm: Arm
    round: int | None
    gold_bought: int
    metrics: Mapping[str, Metric | None] = field(default_factory=dict)
    per_class: tuple[ClassRow, ...] = ()
    pushed_wrong: Mapping[str, Share] = field(default_factory=dict)
    recovered: Mapping[str, Recovered] = field(default_factory=dict)
    against: Mapping[str, Mapping[str, Metric]] = field(default_factory=dict)
    confusion: tuple[tuple[float, ...], ...] = ()
    label_quality: LlmQuality | None = None
    predictor: Predictor | None = None
    suspects: Suspects | None = None
    not_comparable: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What the row is called in tables."""
        if self.arm == "loop":
            mark = NOT_COMPARABLE if self.not_comparable else ""
            return MISSING if self.round is None else f"Round {self.round}{mark}"
        if self.arm == "random" and self.round is not None:
            return f"Random, round {self.round}"
        return ARM_NAMES[self.arm]


@dataclass(frozen=True)
class People:
    """Who answered, and how well they agree.

    Attributes:
        alpha: Krippendorff's alpha among people, ordinal where the classes are; None without two
            answers to compare.
        answers: answers given, all rounds together.
        annotators: different people.
        overlap: answers asked for per text.
        rows: how well each of them labels.
    """

    alpha: Metric | None
    answers: int
    annotators: int | None = None
    overlap: int | None = None
    rows: tuple[Person, ...] = ()


@dataclass(frozen=True)
class BudgetLine:
    """One thing that is spent, such as ``gold labels`` or ``USD``."""

    name: str
    spent: float
    limit: float | None = None


@dataclass(frozen=True)
class PartRow:
    """What changes when one part of a seed is drawn again; see ``loop.studies.variance``."""

    name: str
    churn: Metric | None
    share: Metric | None
    alpha: Metric | None
    accuracy_sd: Metric | None
    macro_f1_sd: Metric | None


@dataclass(frozen=True)
class Instability:
    """Which part of the variance comes from what.

    Attributes:
        round: whose labels were learned.
        student: ``encoder`` or ``frozen``.
        told: one sentence.
    """

    round: int
    student: str
    bases: int
    items: int
    parts: tuple[PartRow, ...]
    told: str


@dataclass(frozen=True)
class CurveRow:
    """A learning curve of one kind of label; see ``loop.studies.plateau``."""

    name: str
    arm: Arm
    sizes: tuple[int, ...]
    points: tuple[Metric, ...]
    asymptote: Metric
    doubling: Metric
    shown_at: tuple[float, ...]
    fitted: tuple[Metric, ...]


@dataclass(frozen=True)
class LearningCurves:
    """Whether more LLM labels would help.

    Attributes:
        round: whose merged labels were learned.
        student: ``encoder`` or ``frozen``.
        metric: the measured column's title.
        told: one sentence.
    """

    round: int
    student: str
    metric: str
    seeds: int
    items: int
    curves: tuple[CurveRow, ...]
    told: str


@dataclass(frozen=True)
class Verdict:
    """Four short paragraphs of whole sentences.

    Attributes:
        llm: how good the LLM's labels are, and how many are still wrong.
        gain: what people's labels did to the students, and what is not shown.
        goal: what it takes until few enough labels are wrong, or what is missing to tell.
        next: what to do now.
    """

    llm: str
    gain: str
    goal: str
    next: str

    @property
    def paragraphs(self) -> tuple[str, ...]:
        """In the order in which they are read."""
        return (self.llm, self.gain, self.goal, self.next)

    def to_json(self) -> dict[str, str]:
        """By name."""
        return asdict(self)


@dataclass(frozen=True)
class CaughtError:
    """One text whose LLM label people overruled.

    Attributes:
        text: its beginning, where it is long.
        reason: why it was sent: ``suspect``, ``audit``, ``coverage``, …
        signal: which signal of suspicion ranked it highest.
        ahead_of: share of the round's texts that this signal held less suspect.
    """

    text: str
    llm_label: str
    gold: str
    round: int
    reason: str
    signal: str
    ahead_of: float


@dataclass(frozen=True)
class Methods:
    """A paragraph for a paper with what it cites.

    Attributes:
        paragraph: plain text, with numbers in brackets.
        references: in the order of those numbers.
    """

    paragraph: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class ReportView:
    """All that a report says.

    Attributes:
        simulated: the people were simulated; said wherever they are mentioned.
        accuracy_from: ``test`` (gold test labels), ``audit`` (audit sample weighted by 1/pi), or
            None where nothing says what is right.
        collapsed: whether the newest students give every text the same label.
        verdict: what the campaign shows; None only where nothing but figures is at hand.
        llm: the newest round's; None where too little gold is known.
        votes: how often the students are right, by how many of them agree; the newest round's.
        overruled: texts whose LLM label people found wrong, all rounds together.
        caught: some of them.
        to_goal: what is still to be done.
        failed_seeds: seeds of the newest students that learned nothing from their labels.
        over: what the intervals are over.
        comparisons: the newest round against each reference, paired, in sentences.
        notes: what a reader must know beside the figures.
        methods: for a paper.
        provenance: versions, seeds and the campaign file as run; values are JSON.
    """

    campaign: str
    task: str
    labels: tuple[str, ...]
    rows: tuple[ReportRow, ...]
    seeds: int
    simulated: bool
    evaluated: int | None = None
    accuracy_from: Literal["test", "audit"] | None = "test"
    collapsed: bool = False
    verdict: Verdict | None = None
    people: People | None = None
    calibration: Calibration | None = None
    llm: LlmQuality | None = None
    votes: Reliability | None = None
    overruled: int = 0
    caught: tuple[CaughtError, ...] = ()
    to_goal: ToGoal | None = None
    frozen: FrozenAgreement | None = None
    failed_seeds: tuple[int, ...] = ()
    instability: Instability | None = None
    plateau: LearningCurves | None = None
    over: str = "items"
    budget: tuple[BudgetLine, ...] = ()
    comparisons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    methods: Methods | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""

    @property
    def ordered(self) -> tuple[ReportRow, ...]:
        """Rows by arm, then by round."""
        return tuple(sorted(self.rows, key=lambda r: (ARMS.index(r.arm), r.round or 0)))

    def last(self, arm: Arm) -> ReportRow | None:
        """An arm's newest row."""
        rows = [row for row in self.ordered if row.arm == arm]
        return rows[-1] if rows else None


def class_of(row: ReportRow, label: str) -> ClassRow:
    """The row of a class, empty if the arm has none."""
    return next((c for c in row.per_class if c.label == label), ClassRow(label))
