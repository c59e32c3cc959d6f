"""What the loop asks of the outside world: protocols, their small values, and item ids.

``connectors`` implements these; ``loop.round`` uses them; only ``loop.cli.build`` joins the two.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from loop.prompt import Label, PromptVariant

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

Progress = Callable[[int], None]
"""Called with the number of items finished since the last call."""


def no_progress(_done: int) -> None:
    """A Progress that shows nothing."""


Show = Callable[[str, int], AbstractContextManager[Progress]]
"""Opens a progress bar: (what is done, how many items) -> Progress."""


def show_nothing(_what: str, _total: int) -> AbstractContextManager[Progress]:
    """A Show that draws nothing."""
    return nullcontext(no_progress)


News = Callable[[str], None]
"""Told one line of news at a time."""


def no_news(_line: str) -> None:
    """A News that tells nobody."""


Block = TypeVar("Block")
Result = TypeVar("Result")
BlockIn = TypeVar("BlockIn", contravariant=True)
ResultOut = TypeVar("ResultOut", covariant=True)


class Job(Protocol[BlockIn, ResultOut]):
    """What the workers of an executor do; it, its blocks and its results can be pickled.

    A block may be worked on more than once, so that work must be idempotent. No worker sees the
    store: only the process that asks writes results down.
    """

    def load(self) -> Callable[[BlockIn, Progress, News], ResultOut]:
        """Loads what is costly, such as a model, once in each worker; what then answers blocks.

        If that has a method ``close``, it is called before a worker takes up another job.
        """
        ...


@dataclass(frozen=True)
class Resources:
    """What the workers of a job are given.

    Attributes:
        workers: the most of them; None = as many as there is room for.
        cpus: cores of each.
        gpus: GPUs of each; a share such as 0.5 where two workers use one.
    """

    workers: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0


class Executor(Protocol):
    """Where the heavy work is done: in this process, beside it, or on other machines."""

    @property
    def room(self) -> Resources:
        """What a worker may have here; a job that uses no GPU asks for none."""
        ...

    @property
    def elsewhere(self) -> bool:
        """Whether workers may be on other machines, which have none of this one's files."""
        ...

    def map(
        self,
        job: Job[Block, Result],
        blocks: Iterable[Block | None],
        resources: Resources,
        *,
        progress: Progress = no_progress,
        say: News = no_news,
    ) -> Generator[tuple[int, Result], None, None]:
        """Results as they come, in any order, each with its block's number from 0.

        A block is taken when a worker is free for it, and never while a result is kept back. None
        instead of a block says that the next one depends on results to come. Where a worker dies,
        its block is given to another one, once. A result may come twice: see ``each_once``.

        Workers stay and keep what they have loaded, as long as the next job is the same object.

        Raises:
            LoopError: a job failed, a worker died twice over the same block, or no worker can be
                started.
        """
        ...

    def close(self) -> None:
        """Ends the workers, whatever they are doing; the next ``map`` starts new ones."""
        ...


def each_once(results: Iterable[tuple[int, Result]]) -> Iterator[tuple[int, Result]]:
    """The first result of each block; a further one says the same again."""
    there: set[int] = set()
    for number, result in results:
        if number not in there:
            there.add(number)
            yield number, result


@dataclass(frozen=True)
class TextItem:
    """One text as an annotator or a rater sees it.

    Attributes:
        id: the database key.
        text: the whole text.
        meta: the other columns of the source, by name.
    """

    id: str
    text: str
    meta: Mapping[str, Any] = field(default_factory=dict)


class SourceText(Protocol):
    """A row of the text source."""

    @property
    def text(self) -> str:
        """The text."""
        ...

    @property
    def gold(self) -> str | None:
        """The human label that the source knows, if any."""
        ...

    @property
    def split(self) -> str | None:
        """The split that the source names, if any."""
        ...

    @property
    def meta(self) -> Mapping[str, Any]:
        """The other columns."""
        ...


@dataclass(frozen=True)
class ClassProbs:
    """An annotator's answer to n items under one prompt variant.

    Attributes:
        probs: (n, k), rows sum to 1; a row of NaN means that the item got no answer.
        off_label_mass: (n,) in [0, 1], probability that the LLM gave to no label at all.
        tokens: (n,) tokens really computed, for the cost ledger: prompt tokens out of a cache left
            out, written ones and failed attempts counted.
        cached_tokens: (n,) prompt tokens that a server took out of its cache and may charge for;
            None where nobody is charged for them.
        output_tokens: (n,) how many of ``tokens`` were written rather than read; None for none.
        problems: item id -> why it got no answer, where the annotator knows.
        states: (n, d) hidden states of the LLM's own, at the last token of each prompt, some way
            up its layers; a row of NaN where there is none. None where the annotator cannot see
            them.
    """

    probs: FloatArray
    off_label_mass: FloatArray
    tokens: IntArray
    cached_tokens: IntArray | None = None
    output_tokens: IntArray | None = None
    problems: Mapping[str, str] = field(default_factory=dict)
    states: NDArray[np.float16] | None = None


@dataclass(frozen=True)
class AnnotatorSetup:
    """What a campaign tells the one who builds its annotator.

    Attributes:
        settings: the keys of ``[annotator]``, with their defaults.
        options: ``[annotator.options]``, as it stands there, for annotators of other packages.
        labels: the classes, in their order.
        say: told one line of news at a time.
    """

    settings: Mapping[str, Any]
    options: Mapping[str, Any]
    labels: tuple[Label, ...]
    say: News = no_news


class Annotator(Protocol):
    """An LLM, or its recorded answers."""

    @property
    def revision(self) -> str:
        """Name and revision of what answers; part of each vote's identity."""
        ...

    def annotate(self, variant: PromptVariant, items: Sequence[TextItem]) -> ClassProbs:
        """Class probabilities of n items under one variant.

        Raises:
            AnnotatorError: nothing can be answered at all.
        """
        ...

    def most_tokens(
        self, variant: PromptVariant, items: Sequence[TextItem]
    ) -> tuple[IntArray, IntArray]:
        """The most tokens that ``annotate`` may count for each of n items, asked in this order.

        Returns:
            (n,) of prompts, computed or out of a cache, and (n,) written, repeated attempts
            counted in both.
        Raises:
            AnnotatorError: as ``annotate``.
        """
        ...

    def close(self) -> None:
        """Lets go of engine, memory and connections; safe to call twice, and before any question.

        The next question opens them again.
        """
        ...


Lots = Iterator[Sequence[TextItem]]
"""Items to be asked, lot by lot; an empty lot says that the next depends on answers to come."""


@runtime_checkable
class StreamingAnnotator(Annotator, Protocol):
    """An annotator that waits for others, so that one slow answer need not hold the rest up."""

    def annotate_stream(
        self, variant: PromptVariant, lots: Lots
    ) -> Iterator[tuple[Sequence[TextItem], ClassProbs]]:
        """Items and their class probabilities as they come, in any order, each item once.

        A lot is taken when there is room for it, and never while answers that came are kept back.
        A generator is thrown a ``Stopped`` that comes while it waits to be continued; it may hand
        over what is under way before it raises that again.

        Raises:
            AnnotatorError: nothing more can be answered; its tokens are those of items that were
                not handed over.
        """
        ...


@dataclass(frozen=True)
class ReviewTask:
    """One item on its way to people.

    Attributes:
        item_id: our key, carried in the task so that it can be found again.
        rank: 0 is labelled first.
        why: one plain sentence for the labelling page, shown only where the campaign asks for it.
        llm_label: the LLM's label, or "" where it gave none; leaves the house only where ``assist``
            is ``prefill``.
        llm_confidence: (0, 1], or 0 without a label.
        assisted: whether the page shows for this item what ``assist`` names.
        answered: people who answered it in a project that is gone; so many fewer are asked.
    """

    item_id: str
    text: str
    round_number: int
    rank: int
    why: str
    llm_label: str
    llm_confidence: float
    assisted: bool = True
    answered: int = 0


@dataclass(frozen=True)
class RawAnnotation:
    """One answer of one person, as it came and as we read it.

    Attributes:
        annotation_id: the server's id.
        annotator: who answered, as the server names them, or as ``UNNAMED`` where it does not.
        label: the chosen class, or None if skipped or unreadable.
        problem: why an answer cannot be used, or None.
        raw: the server's JSON, whatever it is. Numbers that databases cannot hold stand as their
            text, and what is nested too deeply is one JSON text.
    """

    annotation_id: str
    task_id: str
    item_id: str
    annotator: str
    label: str | None
    skipped: bool
    note: str
    lead_time_s: float | None
    updated_at: str
    problem: str | None
    raw: Any


@dataclass(frozen=True)
class GivenLabel:
    """One answer that somebody gave in another tool, or a row of its export without one.

    Attributes:
        texts: column -> a string that may be the text, the likeliest first.
        row: number of the row, line or task in the export.
        person: who answered, as the tool names them; empty where it does not say.
        label: one of the campaign's classes, or None.
        problem: why there is no label; empty where there is one.
        at: when, as the tool writes it; empty where it does not say.
    """

    texts: Mapping[str, str]
    row: int
    person: str
    label: str | None
    problem: str
    at: str


def unknown_label(label: str | None) -> str:
    """The problem of an answer that chose a label which the campaign does not have."""
    return f"unknown label {label!r}"


UNNAMED = re.compile(r"user \d+|deleted user \(answer \d+\)|unknown person")
"""What people are called whom the platform does not name; a name takes its place once it does."""


@dataclass(frozen=True)
class FetchedTask:
    """A task that changed, with its whole set of annotations: what is missing was deleted."""

    task_id: str
    item_id: str
    annotations: tuple[RawAnnotation, ...]


@dataclass(frozen=True)
class Fetched:
    """What changed since a cursor, and the cursor for the next time.

    Attributes:
        whole: every task of ours that the server has was read, not only what changed.
        unserved: ids of changed tasks that the server fails to show.
    """

    tasks: tuple[FetchedTask, ...]
    cursor: str
    whole: bool = False
    unserved: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReviewerSetup:
    """What a campaign tells the one who builds the platform where people label.

    Attributes:
        settings: the platform's own section of the campaign file, if it has one.
        options: ``[people.options]``, as it stands there, for platforms of other packages.
        title: of the project, for people.
        campaign_id: marks what is sent as this campaign's.
        labels: the classes, in their order.
        task: the question put to people.
        assist: what people see besides the text: "blind", "prefill" or "why".
        note: whether people may leave a note.
        overlap: how many people answer each text at first.
        folder: where relative paths begin.
        examples: label name -> texts on which people clearly agreed in earlier rounds.
        say: told one line of news at a time.
        show: opens a progress bar.
    """

    settings: Mapping[str, Any]
    options: Mapping[str, Any]
    title: str
    campaign_id: str
    labels: tuple[Label, ...]
    task: str
    assist: Literal["blind", "prefill", "why"]
    note: bool
    overlap: int
    folder: Path
    examples: Mapping[str, Sequence[str]] = field(default_factory=dict)
    say: News = no_news
    show: Show = show_nothing


class Reviewer(Protocol):
    """Where people label: Label Studio, or another platform."""

    def open_project(self, project_id: str | None) -> str:
        """Checks the server and token, creates or updates the project; its id, to be stored.

        Raises:
            ProjectGoneError: the server does not have it, or it is somebody else's.
            ReviewerError: server down, or wrong token.
        """
        ...

    def send(self, tasks: Sequence[ReviewTask], progress: Progress = no_progress) -> dict[str, str]:
        """Puts the tasks that are not there yet; the server's task id for every item id."""
        ...

    def fetch(self, cursor: str | None) -> Fetched:
        """Tasks whose annotations changed since the cursor; None reads everything."""
        ...

    def ask(self, wanted: Mapping[str, int]) -> None:
        """Opens tasks again until so many people answered each; by the server's task id."""
        ...

    def withdraw(self, item_ids: Sequence[str]) -> set[str]:
        """Takes back what nobody has begun to answer; the items that are there no more.

        Nobody else is asked about those of them that were answered.
        """
        ...

    def queue(self, title: str, item_ids: Sequence[str]) -> None:
        """Shows these items, and no others, in a list of that title."""
        ...

    def url(self) -> str:
        """Where people go to label."""
        ...


@dataclass(frozen=True)
class KnownTexts:
    """Texts whose class people decided.

    Attributes:
        texts: n texts.
        y: (n,) classes.
    """

    texts: Sequence[str]
    y: IntArray


MIN_DEV = 50
"""Known texts below which a student's best epoch would be chosen by chance."""


@dataclass(frozen=True)
class TrainingSet:
    """What a student learns from.

    Attributes:
        texts: n texts.
        y: (n, k) rows sum to 1; hard labels are one-hot.
        weight: (n,) >= 0; 0 leaves the item out.
        dev: texts to choose the best epoch by; no strategy ever sees them.
    """

    texts: Sequence[str]
    y: FloatArray
    weight: FloatArray
    dev: KnownTexts | None = None


@dataclass(frozen=True)
class OwnAnswers:
    """What a student answers for m of the texts that it learned from.

    Attributes:
        answers: (m,) classes.
        y: (m, k) the labels that it learned, rows sum to 1.
        weight: (m,) > 0.
    """

    answers: IntArray
    y: FloatArray
    weight: FloatArray


@dataclass(frozen=True)
class SeedResult:
    """One trained seed.

    Attributes:
        probs: (n_eval, k) on the evaluation texts, in their order.
        path: the saved model's folder, or None if it was not kept.
        own: its answers for texts that it learned from, to see whether it learned; None where
            nobody asked it.
    """

    seed: int
    probs: FloatArray
    seconds: float
    path: Path | None
    own: OwnAnswers | None = None


@dataclass(frozen=True)
class Draws:
    """What a seed draws, each part apart, to see which of them students disagree by.

    Attributes:
        init: seed of the head's first weights.
        order: seed of the order of the texts, and of dropout.
        rows: (m,) rows of the training set to learn from, repeated where drawn twice; None = all.
    """

    init: int
    order: int
    rows: IntArray | None = None


class Student(Protocol):
    """A small classifier and its embeddings."""

    @property
    def revision(self) -> str:
        """Encoder and settings, part of each run's identity."""
        ...

    def embed(self, texts: Sequence[str], progress: Progress = no_progress) -> NDArray[np.float32]:
        """(n, d) sentence embeddings of the pretrained encoder."""
        ...

    def fit(
        self,
        train: TrainingSet,
        eval_texts: Sequence[str],
        labels: Sequence[str],
        seeds: Sequence[int],
        *,
        keep: Mapping[int, Path],
        on_seed: Callable[[SeedResult], None],
        progress: Progress = no_progress,
        draws: Mapping[int, Draws] | None = None,
        start: Mapping[int, Path] | None = None,
        say: News = no_news,
    ) -> None:
        """Trains one model per seed from the pretrained weights and hands over each as it ends.

        Args:
            keep: seed -> folder, for the seeds whose model is to be saved.
            on_seed: called once a seed, in the calling process.
            progress: told of finished texts; each counts once an epoch and seed.
            draws: for seeds that do not draw everything by their own number.
            start: seed -> folder of a model that it continues from instead.
            say: told what the user should know, for instance that memory was short.
        Raises:
            StudentError: the encoder cannot be loaded, or training diverged.
        """
        ...


@dataclass(frozen=True)
class TrackerSetup:
    """What a campaign tells the one who builds an experiment tracker.

    Attributes:
        project: the tracker's project or experiment.
        uri: the tracker's server or database; None leaves it to the tracker's own settings.
        folder: where a tracker may keep files of its own.
        say: told one line of news at a time.
    """

    project: str
    uri: str | None
    folder: Path
    say: News = no_news


@dataclass(frozen=True)
class TrackedRound:
    """A measured round, for a tracker.

    Attributes:
        number: of the round, and the step of its metrics.
        at: when it was measured, in UTC.
        metrics: finite numbers by name.
    """

    number: int
    at: datetime
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class TrackedCampaign:
    """What trackers are told of a campaign: no text, no person and no secret is in it.

    Attributes:
        id: the same each time; it tells the campaign from others of its name.
        name: for people.
        params: the campaign file, by ``section.key``.
        rounds: all that are measured, oldest first.
        files: the report, as of the newest round.
    """

    id: str
    name: str
    params: Mapping[str, str | int | float | bool]
    rounds: Sequence[TrackedRound]
    files: Sequence[Path]


class Tracker(Protocol):
    """Keeps the numbers of experiments, beside the campaign's own report."""

    def track(self, campaign: TrackedCampaign) -> Sequence[int]:
        """Takes the rounds that it does not have yet, each once; the numbers of those.

        May raise whatever it likes: the campaign says so, and sends the rounds another time.
        """
        ...


class Raters(Protocol):
    """Simulated people: they answer through Label Studio like real ones."""

    def answer(self, project_id: str, progress: Progress = no_progress) -> int:
        """Labels every open task of the project; the number of answers given."""
        ...

    def labels_of(self, items: Sequence[TextItem]) -> list[str | None]:
        """The adjudicated label that these raters give each item, for control arms."""
        ...


_NEVER_SEEN = (
    "\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f"  # control characters that are no white space
    "\u00ad\u034f\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufe0e\ufe0f\ufeff\ufff0-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0001"
)
_TAGS = "\U000e0020-\U000e007f"
_UNSEEN = re.compile(f"[{_NEVER_SEEN}]|(?<![\U0001f3f4{_TAGS}])[{_TAGS}]+")  # a flag ends in tags
_ANY_UNSEEN = re.compile(f"[{_NEVER_SEEN}{_TAGS}\u200c\u200d]")
# Joiners mean something inside of words of other scripts, such as Persian and Indian ones, and of
# emoji; elsewhere they are as good as not there.
_BESIDE = r"[^\x00-\u02ff\s\u200c\u200d]"
_JOINERS = re.compile(
    f"(?<!{_BESIDE})(?<![\u200c\u200d])[\u200c\u200d]++|[\u200c\u200d]++(?!{_BESIDE})"
)
_SEEN = re.compile(
    r"[^\s\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\uffa0\ufe00-\ufe0f"
    "\u200c\u200d\U000e0020-\U000e007f\U000e0100-\U000e01ef]"
)


def normalise(text: str) -> str:
    """What tells texts apart: without characters that nobody sees, NFC, single spaces, no ends.

    Two texts with the same normal form are the same item. Case, punctuation and markup count. Where
    nothing can be seen, nothing is left.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    if _ANY_UNSEEN.search(text):
        text = unicodedata.normalize("NFC", _JOINERS.sub("", _UNSEEN.sub("", text)))
    if not _SEEN.search(text):
        return ""
    return " ".join(text.split())


_PASSED_ON = re.compile(r"https?://\S+|www\.\S+|@\w+|^\s*rt\b", re.IGNORECASE)
_NO_WORD = re.compile(r"[\W_]+")


def bare_words(text: str) -> str:
    """A text's letters and digits, equal for texts that say the same; empty where it has none.

    Case, marks, punctuation, addresses and names of users do not count, so that a post and the post
    that passes it on are equal.
    """
    plain = unicodedata.normalize("NFKD", _PASSED_ON.sub(" ", normalise(text))).casefold()
    return _NO_WORD.sub("", plain)


def item_id(campaign: str, text: str) -> str:
    """20 hex digits of SHA-256 over campaign, NUL and the normalised text.

    The same text has another id in another campaign; NUL keeps the two parts from running together.
    """
    seen = f"{campaign}\0{normalise(text)}"
    return hashlib.sha256(seen.encode("utf-8", "surrogatepass")).hexdigest()[:20]
