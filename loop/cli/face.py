"""A campaign as notebooks and scripts use it; the commands of the same names call the same methods.

``goldloop`` re-exports it. Nothing heavy is imported before a method needs it, and nothing but the
final model's weights is kept between calls: neither the store nor the right to write to it.
"""

from __future__ import annotations

import html
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import wraps
from inspect import Parameter, signature
from itertools import chain
from numbers import Integral, Real
from pathlib import Path
from signal import getsignal, raise_signal
from types import NoneType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Self, TypeVar, cast

from loop.addresses import hidden
from loop.cli.build import (
    at_work,
    build_annotator,
    build_context,
    build_encoder_student,
    build_recorded,
    build_tracker,
    check_labels,
    local_login,
    make_ready,
    open_store,
    project_tasks,
    reading,
    refuse_own_files,
    texts_arguments,
    with_learning_rate,
)
from loop.cli.terminal import bar, say
from loop.errors import (
    UNHANDLED,
    ConfigError,
    DataError,
    LoopError,
    NoStoreError,
    Stopped,
    counted,
    foreign,
    stoppable,
)

if TYPE_CHECKING:
    import pandas as pd

    from connectors.texts.read import TextRow
    from loop.bench.data_sets import BenchData
    from loop.bench.tables import BenchResult
    from loop.campaign.config import Config
    from loop.campaign.context import Context
    from loop.campaign.store import Store
    from loop.campaign.tables import Round
    from loop.deliver.predict import Labeller, Predictions
    from loop.deliver.track import Tracked
    from loop.people.import_labels import Import
    from loop.ports import Student
    from loop.studies.plan import Plan
    from loop.studies.preflight import Preflight

P = ParamSpec("P")
T = TypeVar("T")
Records = list[dict[str, Any]]
ROWS = 1024  # of the source that are in memory at a time


def _raises_loop_errors(function: Callable[P, T]) -> Callable[P, T]:
    """Arguments of the annotated types alone; all errors leave the function as a ``LoopError``.

    NumPy's numbers and lists of any kind are welcome, and become Python's own. Ctrl-C is answered
    as on the command line: what is paid for is stored first.

    Raises:
        LoopError: an argument is missing, unknown or of another type.
    """
    takes, name = signature(function), function.__qualname__.removesuffix(".__init__")

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            given = takes.bind(*args, **kwargs)
        except TypeError as exc:
            raise LoopError(f"{name}: {exc}.") from None
        try:
            for argument, value in given.arguments.items():
                given.arguments[argument] = _plain(name, takes.parameters[argument], value)
            with stoppable():
                return function(*given.args, **given.kwargs)
        except LoopError:
            raise
        except Stopped as exc:
            if getsignal(exc.signal) in UNHANDLED:
                raise_signal(exc.signal)  # a KeyboardInterrupt, or the end, as without us
            raise
        except Exception as exc:
            raise foreign(exc) from exc

    return call


def _plain(function: str, parameter: Parameter, value: Any) -> Any:
    """The value of an argument in Python's own types; refuses what its annotation does not name."""
    if parameter.annotation is Parameter.empty:  # self, cls
        return value
    if parameter.kind is Parameter.VAR_POSITIONAL:
        one = parameter.replace(kind=Parameter.POSITIONAL_ONLY)
        return tuple(_plain(function, one, each) for each in value)
    if getattr(value, "ndim", None) == 0:  # a scalar of NumPy's, such as its True
        value = value.item()
    kinds = [_KINDS[kind] for kind in parameter.annotation.split(" | ")]
    for kind in kinds:
        if kind.holds(value):
            return kind.made(value)
    wanted, given = " or ".join(kind.words for kind in kinds), " ".join(repr(value).split())
    raise LoopError(f"{function} takes {wanted} as {parameter.name}, and not {given:.80}.")


@dataclass(frozen=True)
class _Kind:
    """What an argument may be.

    Attributes:
        plain: makes a value one of Python's own types; None leaves it as it is.
    """

    words: str
    type: type
    plain: Callable[[Any], Any] | None = None

    def holds(self, value: Any) -> bool:
        """Whether a value is of this kind; True and False are no numbers."""
        return isinstance(value, self.type) and (self.type is bool or not isinstance(value, bool))

    def made(self, value: Any) -> Any:
        """The value in Python's own types."""
        return value if self.plain is None else self.plain(value)


@dataclass(frozen=True)
class _ListOf(_Kind):
    """A list of any kind, whose members are of the type; no text is one."""

    def holds(self, value: Any) -> bool:
        many = isinstance(value, Collection) and not isinstance(value, str | bytes)
        return many and not _is_table(value) and all(map(super().holds, value))

    def made(self, value: Any) -> Any:
        return [super(_ListOf, self).made(each) for each in value]


def _is_table(value: Any) -> bool:
    """Whether it holds columns or keys, whose names would be taken for the members of a list."""
    named = isinstance(value, Mapping) or hasattr(value, "columns")
    return named or getattr(value, "ndim", 1) != 1


_KINDS = {
    "None": _Kind("None", NoneType),
    "bool": _Kind("True or False", bool),
    "int": _Kind("a whole number", Integral, int),
    "float": _Kind("a number", Real, float),
    "str": _Kind("a text", str, str),
    "Path": _Kind("a path", Path),
    "Iterable[str]": _Kind("a list (a text each)", Iterable),  # `predict` names what is no text
    "Sequence[str]": _ListOf("a list (a text each)", str, str),
    "Sequence[float]": _ListOf("a list (a number each)", Real, float),
}
"""Annotation of an argument -> what it may be."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a campaign, or worth knowing.

    Attributes:
        level: an error keeps the campaign from running; a warning or a note does not.
        where: the campaign file, with the line where one is known.
        message: what is wrong and what to do.
    """

    level: Literal["error", "warning", "note"]
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.level}: {self.where}: {self.message}"


class Campaign:
    """A campaign, named by its file.

    Every call reads the campaign file, opens the store and closes it again, as a command does, so
    that commands and other notebooks can work on the same campaign between two calls. News and
    progress bars go to stderr. Every method raises ``LoopError`` or a subclass, and nothing else.

    Args:
        file: the campaign file. It is read by the first call; ``open`` reads it at once.
    """

    @_raises_loop_errors
    def __init__(self, file: str | Path) -> None:
        self.file = Path(file)
        self._labeller: tuple[object, Labeller] | None = None

    @classmethod
    @_raises_loop_errors
    def open(cls, file: str | Path = "goldloop.toml") -> Self:
        """The campaign of a file, wherever the process goes afterwards.

        Raises:
            ConfigError: there is no such file, or it is wrong; every problem with its line.
        """
        from loop.campaign.config import load

        campaign = cls(Path(file).absolute())
        load(campaign.file)
        return campaign

    def close(self) -> None:
        """Frees the memory of the final model; ``predict`` loads it again."""
        self._labeller = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # going on

    @_raises_loop_errors
    def check(self) -> list[Problem]:
        """Everything that is wrong with the campaign file and its texts; empty if all is fine.

        Raises:
            ConfigError: the file is wrong; every problem with its line.
        """
        return looked_at(self.file)[0]

    @_raises_loop_errors
    def forecast(self) -> list[str]:
        """What running the campaign from its beginning will take, in lines for people to read.

        Texts by split, the mix of the known labels, LLM calls, people's answers and time, money,
        and students. Call ``check`` first: a file that is wrong has no forecast.
        """
        from loop.campaign.config import load

        config = load(self.file)
        return list(_preflight(config, _texts_of(config)).lines)

    @_raises_loop_errors
    def run(
        self,
        rounds: int | None = None,
        wait: bool = False,
        close: bool = False,
        until: str | Sequence[str] = (),
    ) -> bool:
        """Runs the loop as far as it goes; run it again to resume.

        Args:
            rounds: rounds to finish now; None is all that are left.
            wait: wait while people label.
            close: continue with the answers received so far.
            until: further stopping rules for this run, as in ``rounds.stop``; one, or a list.

        Returns:
            Whether the rounds that were asked for, or the campaign, are finished; False: the last
            round waits for people.
        Raises:
            BusyError: another process is writing to the campaign.
            LoopError: a stage failed; what was done is kept.
        """
        if rounds is not None and rounds < 1:
            raise LoopError(
                f"rounds must be 1 or more, or None for all that are left; not {rounds}."
            )
        until = (until,) if isinstance(until, str) else tuple(until)
        check_rules(until)
        with at_work(self.file, "run") as ctx:
            make_ready(ctx)
            return run_rounds(ctx, rounds=rounds, wait=wait, close=close, until=until)

    @_raises_loop_errors
    def track(self) -> dict[str, list[int]]:
        """Sends the trackers of ``tracking.to`` the measured rounds that they do not have yet.

        ``run`` does it after each round; this is for a tracker that failed or came later.

        Returns:
            Tracker -> numbers of the rounds that it took now.
        Raises:
            BusyError: another process is writing to the campaign.
            ConfigError: the campaign file names no tracker.
            LoopError: a tracker took nothing; those that did keep what they took.
        """
        with at_work(self.file, "track") as ctx:
            if not ctx.config.tracking.to:
                raise ConfigError(
                    f'{self.file} names no tracker; add [tracking] with to = "mlflow" or "wandb".'
                )
            sent = track_measured(ctx)
        if failed := [tracked.name for tracked in sent if tracked.problem]:
            raise LoopError(f"{' and '.join(failed)} did not take the rounds; see above.")
        return {tracked.tracker: list(tracked.rounds) for tracked in sent}

    @_raises_loop_errors
    def import_labels(
        self,
        source: str | Path | None = None,
        *,
        project: int | None = None,
        text_column: str | None = None,
        label_column: str | None = None,
    ) -> Import:
        """Takes labels that people gave in another tool as gold; again, and nothing changes.

        Args:
            source: an export of Label Studio, doccano, Argilla, Prodigy or spaCy, or a table.
            project: instead of a file, the number of a project of the campaign's Label Studio.
            text_column: where the texts are; None finds the campaign's texts anywhere.
            label_column: where the labels are, of Label Studio the name of the tag; None looks.

        Returns:
            Which texts' labels were taken, which were not, and why; ``lines()`` says it.
        Raises:
            BusyError: another process is writing to the campaign.
            DataError: the file cannot be read, or nobody can tell which column holds the labels.
            ReviewerError: the project cannot be read.
        """
        from connectors.texts.tool_exports import answers_of, read_export
        from loop.next_round import open_campaign
        from loop.people.import_labels import import_labels

        if (source is None) == (project is None):
            raise LoopError("Name a file with people's labels, or --project NUMBER, and not both.")
        columns = {"text_column": text_column, "label_column": label_column}
        with at_work(self.file, "import-labels") as ctx:
            names = ctx.config.label_names
            if project is not None:
                shown = f"Label Studio's project {project}"
                tasks = list(enumerate(project_tasks(ctx.config, project), start=1))
                if not tasks:
                    raise DataError(f"{shown} has no tasks.")
                export_ = answers_of(tasks, names, shown, **columns)
            else:
                shown = str(source)
                split = ctx.config.texts.hf_split
                export_ = read_export(shown, names, **columns, hf_split=split)
                for note in export_.notes:
                    say(note)
            open_campaign(ctx)
            return import_labels(ctx, shown, export_.tool, export_.answers)

    # where it stands

    @_raises_loop_errors
    def status(self) -> dict[str, Any]:
        """Where the campaign stands, as ``goldloop status --json`` prints it.

        Returns:
            Among others ``round``, ``stage``, ``sent``, ``back``, ``gold`` (counts of texts),
            ``budget``, ``metrics`` of the last round measured (each between 0 and 1, with ``low``
            and ``high``), and ``next``, the command to run next.
        Raises:
            NoStoreError: the campaign was never run.
        """
        from loop.report.status import campaign_status

        with reading(self.file) as (config, store):
            told = campaign_status(config, store)
            if told["stage"] == "pull" and config.people.platform == "label_studio":
                told["label_at"] = _label_at(config, store)
        return told

    @_raises_loop_errors
    def plan(self, *goals: str | Sequence[str]) -> Plan:
        """What the campaign still takes: labels to each goal, people's time, money, days.

        Args:
            goals: values to reach, such as "accuracy=0.8" or "remaining-error=0.05", or lists of
                them; none takes those of ``rounds.stop``.

        Returns:
            ``goals``, each with ``labels``, the further gold labels that it takes, ``low`` to
            ``high``, or None where nobody can tell yet.
        Raises:
            NoStoreError: the campaign was never run; ``forecast`` says what it takes.
            StageError: an unknown goal.
        """
        from loop.studies.plan import make_plan

        with reading(self.file) as (config, store):
            each = [(goal,) if isinstance(goal, str) else goal for goal in goals]
            return make_plan(config, store, [*chain.from_iterable(each)])

    @_raises_loop_errors
    def rounds(self) -> pd.DataFrame | Records:
        """The report's table: one row per round and per reference.

        Returns:
            A data frame, or a list of dicts without pandas: ``name``, ``arm``, ``round`` (missing
            for references that are trained once), ``gold_bought``, and each metric between 0 and
            1 as ``accuracy``, ``accuracy_low``, ``accuracy_high``, …, missing where there is none.
        Raises:
            NoStoreError: the campaign was never run.
        """
        from loop.campaign.metrics import WITH_SPREADS, Metric
        from loop.report.collect import campaign_view

        with reading(self.file) as (config, store):
            view = campaign_view(config, store)
        records = []
        for row in view.ordered:
            record: dict[str, Any] = {
                "name": row.name,
                "arm": row.arm,
                "round": row.round,
                "gold_bought": row.gold_bought,
            }
            for key in WITH_SPREADS:
                metric = row.metrics.get(key) or Metric(float("nan"))
                ends = {"": metric.value, "_low": metric.low, "_high": metric.high}
                for end, value in ends.items():
                    record[key + end] = None if value != value else value
            records.append(record)
        metrics = [key + end for key in WITH_SPREADS for end in ("", "_low", "_high")]
        types = {"round": "Int64", "gold_bought": "int64"} | dict.fromkeys(metrics, "float64")
        return _table(records, ["name", "arm", "round", "gold_bought", *metrics], types)

    @_raises_loop_errors
    def labels(self) -> pd.DataFrame | Records:
        """The final labels with their provenance: one row per text of the pool.

        Returns:
            A data frame, or a list of dicts without pandas, with the columns that ``goldloop
            export`` writes: ``id``, ``text``, ``label``, ``source`` (gold, repaired, llm), ``how``,
            ``confidence``, ``round``, ``llm_label``, ``llm_confidence``, ``suspicion``.
        Raises:
            NoStoreError: the campaign was never run.
            StageError: nothing is labelled yet.
        """
        from loop.deliver.export import final_labels

        with reading(self.file) as (config, store):
            return _table(final_labels(config, store))

    # taking away

    @_raises_loop_errors
    def export(
        self, out: str | Path, *, all_rows: bool = False, card: str | Path | None = None
    ) -> int:
        """Writes the final labels to a CSV, JSONL or Parquet file, or a data set folder.

        Args:
            all_rows: write every row of the source, in its order and with all its columns, and the
                label beside it; else one row for each different text to label. The source must be
                a file, and so must ``out``.
            card: also writes a data set card in Markdown there: what the labels are, where they
                come from, how good they are.

        Returns:
            The number of labels.
        Raises:
            DataError: unknown extension, a file of the campaign's own, one that cannot be read or
                written, or ``card`` is a file that is no data set card of goldloop's.
            StageError: nothing is labelled yet.
        """
        from connectors.texts.write import write_labels
        from loop.deliver.data_card import data_card, refuse_other_files
        from loop.deliver.export import final_labels, labels_by_text
        from loop.files import SHARED, write_whole

        with reading(self.file) as (config, store):
            for path in (out, card):
                if path is not None:
                    refuse_own_files(config, self.file, Path(path))
            if card is not None:
                refuse_other_files(Path(card))
                if Path(card).resolve() == Path(out).resolve():
                    raise DataError(f"{card} cannot hold both labels and card; name two files.")
            records = final_labels(config, store)
            text = "" if card is None else data_card(config, store, records)
            labels = labels_by_text(config, store) if all_rows else {}
            apart = store.item_count(config.campaign.name) - len(records)
        written = sum(record["label"] is not None for record in records)
        if silent := 0 if all_rows else len(records) - written:
            say(f"Without a label: {counted(silent, 'row')}, for which nobody gave one.")
        if all_rows:
            written, apart = _write_all_rows(config, labels, Path(out)), 0
        else:
            write_labels(records, out)
        if card is not None:  # last: the labels may be a new folder around it
            write_whole(Path(card), text, mode=SHARED)
        if apart:
            say(
                f"Left out: {counted(apart, 'text')}, held out for tests and examples or come"
                " since. With --all-rows every row of the source is written."
            )
        return written

    @_raises_loop_errors
    def report(self, out: str | Path | None = None) -> Path:
        """Writes ``report.html`` and ``rounds.json``.

        Args:
            out: their folder; None is the campaign's own, ``runs``.

        Returns:
            The report's path.
        Raises:
            NoStoreError: the campaign was never run.
        """
        from loop.report.collect import write_outputs

        with reading(self.file) as (config, store):
            return write_outputs(config, store, None if out is None else Path(out))

    @_raises_loop_errors
    def model(
        self, folder: str | Path | None = None, *, seeds: bool = True, force: bool = False
    ) -> Path:
        """Makes the final model of the last finished round, or finds that it is up to date.

        Args:
            folder: where it goes; None is ``runs/final``.
            seeds: keep the seeds' models, for ``stability``.
            force: build it again.

        Returns:
            The model's folder.
        Raises:
            StageError: no round is finished yet.
            StudentError: the folder holds something else, or training failed.
        """
        from loop.deliver.final_model import make_final_model

        with at_work(self.file, "model") as ctx:
            place = ctx.config.out / "final" if folder is None else Path(folder)
            made = make_final_model(ctx, place, keep_seeds=seeds, force=force)
        for line in made.news:
            say(line)
        return made.folder

    @_raises_loop_errors
    def predict(
        self, texts: Iterable[str], *, fast: bool = False, device: str = "auto"
    ) -> Predictions:
        """Labels texts with the campaign's final model, which stays loaded until ``close``.

        Args:
            texts: n of them; one without letters gets no label.
            fast: only the final model: no stability, several times faster.
            device: auto, cpu, cuda, cuda:1, …

        Returns:
            ``labels`` (n), ``probabilities`` (n, k) in the order of ``classes``, and ``stability``
            (n,), the share of the seeds that agree with the label.
        Raises:
            DataError: something else than texts.
            StudentError: there is no final model yet, or it is damaged.
        """
        from loop.deliver.predict import predictions

        if isinstance(texts, str | bytes):
            raise DataError("predict takes a list of texts, not a single text; give [text].")
        if _is_table(texts):
            raise DataError(
                "predict takes a list of texts, not a table or a dict; give one column of it, such"
                ' as table["text"].'
            )
        given = list(texts)
        for row, text in enumerate(given):
            if not isinstance(text, str):
                raise DataError(
                    f"predict takes texts; number {row} of the list is of type"
                    f" {type(text).__name__}. Leave it out, or write it as a text."
                )
        return predictions(self._final_labeller(fast, device), given)

    def _final_labeller(self, fast: bool, device: str) -> Labeller:
        """The final model, loaded again where ``goldloop model`` has written it since."""
        from loop.campaign.config import load
        from loop.deliver.predict import Labeller, saved_model
        from loop.student.encoder_files import RECORD

        config = load(self.file)
        folder = config.out / "final"
        saved_model(folder, config.label_names)
        key = (folder, fast, device, (folder / RECORD).stat().st_mtime_ns)
        if self._labeller is None or self._labeller[0] != key:
            self._labeller = None  # frees the old one first
            self._labeller = (key, Labeller(folder, fast=fast, device=device))
        return self._labeller[1]

    # what a notebook shows

    def __repr__(self) -> str:
        name, facts = self._summary()
        width = max(map(len, facts))
        lines = [f"{fact:{width}}  {value}" for fact, value in facts.items()]
        return "\n  ".join([f"Campaign {name}", *lines])

    def _repr_html_(self) -> str:
        name, facts = self._summary()
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(fact)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for fact, value in facts.items()
        )
        return f"<table><caption>Campaign {html.escape(name)}</caption>{rows}</table>"

    def _summary(self) -> tuple[str, dict[str, str]]:
        """The campaign's name, and where it stands; an error is part of what is shown."""
        from loop.campaign.config import load
        from loop.campaign.metrics import METRICS, Metric, of_json
        from loop.report.wording import with_interval

        file = {"file": str(self.file)}
        try:
            name = load(self.file).campaign.name
        except LoopError as exc:
            return "that cannot be read", file | {"problem": hidden(str(exc))}
        try:
            status = self.status()
        except NoStoreError:
            return name, file | {"stage": "not begun; run() begins it"}
        except LoopError as exc:
            return name, file | {"problem": hidden(str(exc))}
        facts = file | {
            "round": f"{status['round']} of {status['rounds']}",
            "stage": str(status["stage"]),
            "texts sent": str(status["sent"]),
            "answered": str(status["back"]),
            "gold labels": str(status["gold"]),
        }
        for info in METRICS.values():
            stored = (status["metrics"] or {}).get(info.key)
            if stored and (shown := with_interval(of_json(Metric, stored))):
                facts[f"{info.title}, round {status['measured_round']}"] = shown
        return name, facts | {"next": str(status["next"])}


def _label_at(config: Config, store: Store) -> str:
    """Where people label, without asking the server."""
    url = config.label_studio.url
    if url == "local":
        login = local_login()
        if login is None:
            return "the local Label Studio, which does not run (`goldloop label-studio up`)"
        url = login[0]
    project = store.project_id(config.campaign.name)
    return f"{url.rstrip('/')}/projects/{project}/data?labeling=1"


def looked_at(file: Path) -> tuple[list[Problem], tuple[str, ...]]:
    """What ``Campaign.check`` and ``Campaign.forecast`` say, from reading the texts once."""
    from connectors.texts.read import find_problems
    from loop.campaign.config import line_of, load, text_of

    config = load(file)
    raw = text_of(file)
    line = line_of(raw, ("texts", "text_column")) or line_of(raw, ("texts", "source")) or 1
    problems = []
    try:
        if config.people.platform == "label_studio":
            check_labels(config)
        with _begun(config):
            pass
    except LoopError as exc:
        problems.append(Problem("error", str(file), str(exc)))
    problems += [
        Problem(problem.level, f"{file}:{line}", problem.message)
        for problem in find_problems(**texts_arguments(config, meta=None))
    ]
    if any(problem.level == "error" for problem in problems):
        return problems, ()
    try:
        rows = _texts_of(config)
    except LoopError as exc:
        return [*problems, Problem("error", str(file), str(exc))], ()
    problems += _annotator_problems(config, file, rows)
    foreseen = _preflight(config, rows)
    problems += [Problem("error", str(file), error) for error in foreseen.errors]
    problems += [Problem("warning", str(file), told) for told in foreseen.warnings]
    return problems, foreseen.lines


@contextmanager
def _begun(config: Config) -> Iterator[Store | None]:
    """The store of a campaign that has begun, to read only; None where it has not.

    Raises:
        LoopError: the campaign file was edited in a way that the campaign cannot follow.
    """
    from loop.campaign.changes import edits, refuse_lost_store, refuse_other_folder
    from loop.campaign.store import Store

    refuse_lost_store(config)
    try:
        store = Store(config.store_url, read_only=True)
    except LoopError:  # there is none yet, or `goldloop run` upgrades it or says what is wrong
        yield None
        return
    with closing(store):
        store.check_labels(config.campaign.name, config.label_names)
        refuse_other_folder(config, store)
        edits(config, store)
        yield store if store.item_count(config.campaign.name) else None


def _texts_of(config: Config) -> list[TextRow]:
    """The source's texts, and those that a campaign keeps although they are there no more.

    Raises:
        LoopError: the source cannot be read, or a campaign that has begun cannot take it up.
    """
    from connectors.texts.read import TextRow, load_texts
    from loop.campaign.import_texts import import_new_texts
    from loop.ports import item_id

    rows, name = load_texts(**texts_arguments(config)), config.campaign.name
    with _begun(config) as store:
        if store is None:
            return rows
        rounds = store.rounds(name)
        seed = rounds[0].seed if rounds else config.rounds.seed
        import_new_texts(config, store, rows, seed=seed, writes=False)
        there = {item_id(name, row.text) for row in rows}
        kept = [i for i in store.stored_texts(name) if item_id(name, i.text) not in there]
    return rows + [TextRow(i.text, i.known_label, i.split, i.meta) for i in kept]


def _preflight(config: Config, rows: Sequence[TextRow]) -> Preflight:
    from loop.campaign.store import Store
    from loop.studies.preflight import preflight

    with closing(Store("sqlite:///:memory:")) as nothing:  # as if it had not begun
        config = with_learning_rate(config, nothing, fetch=False)
    return preflight(config, rows, config.annotator.model, _recorded_mix(config, rows))


def _write_all_rows(config: Config, labels: Mapping[str, Mapping[str, Any]], out: Path) -> int:
    """The source's rows with their labels beside them; how many have one."""
    from connectors.texts.stream import TextStream, writing
    from loop.deliver.export import LABEL_COLUMNS
    from loop.ports import item_id

    if config.source.startswith("hf:") or Path(config.source).is_dir():
        raise DataError("--all-rows is for a source that is a file, and this one is a data set.")
    stream = TextStream(Path(config.source), config.texts.text_column, config.texts.format)
    names: dict[str, str] = {}
    for name in LABEL_COLUMNS:
        free = name
        while free in stream.columns:  # also where the source is itself such a file
            free = f"goldloop_{free}"
        names[name] = free
    added = {names[name]: kind for name, kind in LABEL_COLUMNS.items()}
    nothing = dict.fromkeys(LABEL_COLUMNS)
    written = 0
    with writing(out, stream, added, config.label_names) as write:
        for piece in stream.pieces(ROWS):
            rows = []
            for row in piece:
                record = labels.get(item_id(config.campaign.name, row.text), nothing)
                written += record["label"] is not None
                rows.append({**row.values, **{names[n]: record[n] for n in LABEL_COLUMNS}})
            write(rows)
    for line in stream.lines():
        say(line)
    say(f"Rows of the source: {stream.rows:,}, of which {written:,} have a label.")
    return written


def _recorded_mix(config: Config, rows: Sequence[TextRow]) -> dict[str, Counter[str]]:
    """Column with LLM labels -> how often each label is read from it; "" where none is."""
    from loop.ports import TextItem
    from loop.prompt import PromptVariant

    if config.annotator.kind != "recorded":
        return {}
    annotator, names = build_recorded(config), config.label_names
    items = [TextItem(str(i), row.text, row.meta) for i, row in enumerate(rows)]
    mix = {}
    for number, column in enumerate(config.annotator.columns):
        variant = PromptVariant(number, config.campaign.task, config.port_labels, ())
        try:
            probs = annotator.annotate(variant, items).probs
        except LoopError:  # told as a problem of its own
            continue
        mix[column] = Counter(names[int(p.argmax())] if p.sum() > 0 else "" for p in probs)
    return mix


def _annotator_problems(config: Config, file: Path, rows: Sequence[TextRow]) -> list[Problem]:
    from loop.campaign.extensions import BUILT_IN, Group
    from loop.campaign.extensions import load as load_part
    from loop.ports import TextItem

    problems = []
    if note := config.old_keys_note:
        problems.append(Problem("warning", str(file), note))
    if config.prompt.label_form == "ids" and config.annotator.kind == "local_lm":
        problems.append(
            Problem(
                "warning",
                str(file),
                'prompt.label_form = "ids" is for larger models; one as small as smollm2-135m'
                " answers near chance with class numbers.",
            )
        )
    if config.annotator.kind == "recorded":
        items = [TextItem(str(i), row.text, row.meta) for i, row in enumerate(rows)]
        try:
            build_recorded(config).check(items)
        except LoopError as exc:
            problems.append(Problem("error", str(file), str(exc)))
    for group, name in (
        ("annotators", config.annotator.kind),
        ("reviewers", config.people.platform),
        *(("strategies", signal) for signal in config.strategy.signals),
        *(("trackers", tracker) for tracker in config.tracking.to),
    ):
        try:
            load_part(cast(Group, group), name)
            if group == "trackers":
                build_tracker(config, name)
            if group == "annotators" and name not in BUILT_IN["annotators"]:
                build_annotator(config).close()
        except LoopError as exc:
            problems.append(Problem("error", str(file), str(exc)))
    return problems


def _table(
    records: Records, columns: Sequence[str] | None = None, types: dict[str, str] | None = None
) -> pd.DataFrame | Records:
    """A data frame, or the records themselves where pandas is not installed."""
    try:
        import pandas as pd
    except ModuleNotFoundError as exc:
        if exc.name != "pandas":  # pandas is there, but broken
            raise
        return records
    return pd.DataFrame(records, columns=columns).astype(types or {})


# the loop, for ``run`` and the demo


def check_rules(rules: Sequence[str]) -> None:
    """Refuses what is no stopping rule.

    Raises:
        LoopError: with all rules that there are.
    """
    from loop.campaign.config import stop_rule

    for rule in rules:
        try:
            stop_rule(rule)
        except ValueError as exc:
            raise LoopError(f"{exc}.") from None


def run_rounds(
    ctx: Context, *, rounds: int | None, wait: bool, close: bool, until: Sequence[str] = ()
) -> bool:
    """Runs the loop as far as it goes, see :meth:`Campaign.run`."""
    from loop.next_round import (
        how_to_extend,
        open_campaign,
        open_round,
        take_in_new_texts,
        what_next,
        why_finished,
        why_reached,
    )
    from loop.report.verdict import campaign_verdict
    from loop.round import close_early, run_round, write_missing_results

    open_campaign(ctx)
    write_missing_results(ctx)
    finished, told, measured = 0, "", False
    while rounds is None or finished < rounds:
        take_in_new_texts(ctx)
        if until and (reason := why_reached(ctx, until)):
            say(f"Stopped as --until asked: {reason}. `goldloop run` without it continues.")
            break
        begun = ctx.store.last_round(ctx.name) is not None
        if begun and (reason := why_finished(ctx)):
            say(f"The campaign is finished: {reason}. {how_to_extend(ctx.config, ctx.store)}")
            if not finished:  # the last round may have ended before its trackers were told
                track_measured(ctx)
            break
        if measured:  # after the last round the table says it
            verdict = campaign_verdict(ctx.config, ctx.store, what_next(ctx.config, ctx.store))
            say(f"{verdict.llm}\n{verdict.gain}")
            measured = False
        round_ = run_round(ctx)
        if round_.stage == "done":
            finished += 1
            say(f"Round {round_.number} is done.")
            track_measured(ctx)
            measured = True
        elif close:
            close_early(ctx, open_round(ctx))
            close = False  # the round that waits now, not those that are opened after it
        else:
            news = waiting_line(ctx, round_)
            if news != told:
                say(news)
                told = news
            if not wait:
                return False
            if ctx.parts.executor is not None:
                ctx.parts.executor.close()  # a cluster's machines are free while people label
            time.sleep(5)
    return True


def track_measured(ctx: Context) -> list[Tracked]:
    """Sends the measured rounds to the campaign's trackers, and says what became of it."""
    if not ctx.config.tracking.to:
        return []
    from loop.deliver.track import track_rounds

    sent = track_rounds(ctx.config, ctx.store, lambda name: build_tracker(ctx.config, name))
    for tracked in sent:
        say(tracked.line)
    return sent


def waiting_line(ctx: Context, round_: Round) -> str:
    """What is back, and where people label; or what comes next."""
    from loop.next_round import next_command, what_next
    from loop.people.tally import tally, tally_line

    if round_.stage == "done":
        return f"Round {round_.number} is done. {what_next(ctx.config, ctx.store)}"
    if round_.stage != "pull":
        return f"Round {round_.number} is ready for {round_.stage}; next: {next_command(round_)}."
    reviews = ctx.store.reviews(ctx.name, round_.id)
    became = tally(reviews)
    news = f"Round {round_.number}: {counted(became.sent, 'text')} sent, {tally_line(became)}."
    config = ctx.config
    local = config.people.platform == "label_studio" and config.label_studio.url == "local"
    login = local_login() if local else None
    who = f" (user {login[1]}, password {login[2]})" if login else ""
    return f"{news} People label at {ctx.reviewer.url()}{who}; then `goldloop run` continues."


# strategies side by side


@_raises_loop_errors
def bench(
    source: str | Path,
    label: str,
    *,
    llm_column: str | None = None,
    votes: Sequence[str] = (),
    annotator: str | Path | None = None,
    text_column: str = "text",
    split_column: str | None = None,
    strategies: Sequence[str] = ("goldloop", "random", "entropy"),
    budgets: Sequence[float] = (0.05, 0.1, 0.25),
    rounds: int = 3,
    student: str = "frozen",
    encoder: str = "minilm",
    lr: float | None = None,
    seeds: int = 5,
    repetitions: int = 5,
    out: str | Path = "bench",
) -> BenchResult:
    """Replays strategies side by side at equal gold budget on texts whose labels are known.

    Args:
        source: CSV, JSONL or Parquet with gold labels.
        label: column with the human labels.
        llm_column: column with the LLM's labels.
        votes: columns with its votes; the first leads. Instead of ``llm_column``.
        annotator: campaign file whose annotator and prompt label the texts first. Instead of both.
        text_column: column with the texts.
        split_column: column that names test rows.
        strategies: policies to compare; the first is compared with each of the others.
        budgets: shares of the pool to buy, in (0, 1].
        rounds: rounds that a budget is spread over.
        student: "frozen" heads on embeddings, quick, or "encoder", fine-tuned.
        encoder: hub name, folder, or embedded: minilm, mpnet.
        lr: learning rate of the fine-tuned student; None is what fits the encoder.
        seeds: students per label set, 2 or more.
        repetitions: samples of the pool; with 1, intervals are over test texts.
        out: folder for results.json, .txt and .svg, and for the annotator's votes.

    Raises:
        DataError: the texts or labels are wrong, a strategy is unknown, or settings make no sense.
        LoopError: not one source of LLM labels, or an unknown student.
    """
    from connectors.llm.label_spelling import label_in
    from connectors.texts.read import load_texts
    from loop.bench.data_sets import data_from_rows
    from loop.bench.peers import peers
    from loop.bench.policies import POLICIES
    from loop.bench.run import run_bench
    from loop.bench.tables import write_results
    from loop.campaign.config import StudentSection

    columns = list(votes) or ([llm_column] if llm_column else [])
    if bool(columns) == (annotator is not None):
        raise LoopError(
            "Name the LLM's labels, --llm-column COLUMN or --votes COLUMN,COLUMN,…, or what gives"
            " them, --annotator CAMPAIGN_FILE (in Python: llm_column, votes, annotator)."
        )
    if student not in ("frozen", "encoder"):
        raise LoopError(f"Unknown student {student!r}; allowed: frozen, encoder.")
    source, out = Path(source), Path(out)
    model = build_encoder_student(StudentSection(encoder=encoder, lr=lr, seeds=seeds), Path.cwd())
    if annotator is not None:
        texts = {"text_column": text_column, "gold_column": label, "split_column": split_column}
        data = _annotated(Path(annotator), source, texts, out, model)
    else:
        rows = load_texts(
            str(source),
            on_note=say,
            text_column=text_column,
            gold_column=label,
            split_column=split_column,
            meta_columns="plain",
            named=columns,
        )
        data = data_from_rows(source.stem, rows, columns, model.embed, read_label=label_in, say=say)
    with bar("Replaying", repetitions * (2 + len(strategies) * len(budgets))) as progress:
        result = run_bench(
            [data],
            strategies,
            budgets=budgets,
            rounds=rounds,
            learner=None if student == "frozen" else model,
            seeds=seeds,
            repetitions=repetitions,
            policies={**POLICIES, **peers()},
            progress=progress,
        )
    for path in write_results(result, out):
        say(f"Wrote {path}")
    return result


def _annotated(
    file: Path, source: Path, texts: dict[str, str | None], out: Path, student: Student
) -> BenchData:
    """The texts of a file, labelled by a campaign file's annotator; its votes are kept in out."""
    from loop.bench.data_sets import data_from_votes
    from loop.campaign.config import StoreSection, load
    from loop.llm.votes import read_votes
    from loop.pool_arrays import llm_states
    from loop.round import run_stage

    given = load(file)
    section = given.texts.model_copy(update={"source": str(source.resolve()), **texts})
    store_section = StoreSection(
        url=f"sqlite:///{out.resolve() / 'annotated.db'}", folder=str(out.resolve())
    )
    config = given.model_copy(update={"texts": section, "store": store_section})
    out.mkdir(parents=True, exist_ok=True)
    with open_store(config) as store:
        context = build_context(config, store, show=bar, say=say)
        with closing(context):
            run_stage(context, "annotate")
            pool = store.items(context.name, "pool")
            votes = read_votes(config, store, context.annotator.revision, pool)
            states = llm_states(context, pool, votes.answered).values
            test = store.items(context.name, "test")
    return data_from_votes(
        source.stem,
        config.label_names,
        pool,
        votes,
        test,
        student.embed,
        ordinal=config.campaign.ordinal,
        states=states,
    )
