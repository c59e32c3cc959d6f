"""Builds the connectors that a campaign file names and joins them to the loop, for the commands.

Outside of ``loop.cli`` nothing in ``loop`` imports connectors.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, cast

from loop.cli.terminal import bar, say
from loop.errors import ConfigError, LoopError, NoStoreError, ReviewerError

if TYPE_CHECKING:
    from connectors.llm.recorded import RecordedAnnotator
    from connectors.texts.label_cells import Scale
    from connectors.texts.values import Format
    from loop.campaign.config import Config, StudentSection
    from loop.campaign.context import Context, Parts
    from loop.campaign.extensions import Group
    from loop.campaign.store import Store
    from loop.executor.ray_actors import RayExecutor
    from loop.operate.doctor import Server
    from loop.ports import (
        Annotator,
        AnnotatorSetup,
        Executor,
        Raters,
        Reviewer,
        Show,
        SourceText,
        Student,
        Tracker,
    )
    from loop.serve.tokens import Tokens

log = logging.getLogger(__name__)


@contextmanager
def open_store(config: Config, *, read_only: bool = False) -> Iterator[Store]:
    """The campaign's store, closed at the end.

    Args:
        read_only: the store is neither created nor upgraded, and may lie where nothing can be
            written.

    Raises:
        NoStoreError: ``read_only``, and there is no store yet.
        StoreError: it cannot be opened, the campaign was begun with other labels, or the store that
            the campaign's folder names is gone.
    """
    from loop.campaign.changes import refuse_lost_store
    from loop.campaign.store import Store

    refuse_lost_store(config)
    log.info("the store is opened", extra={"place": {"campaign": config.campaign.name}})
    store = Store(config.store_url, read_only=read_only, say=say)
    try:
        store.check_labels(config.campaign.name, config.label_names)
        yield store
    finally:
        store.close()


@contextmanager
def reading(file: Path) -> Iterator[tuple[Config, Store]]:
    """The campaign file and its store, to read only.

    Raises:
        ConfigError: the file is wrong.
        NoStoreError: there is no store yet, or the campaign has not begun in it.
        StoreError: see ``open_store``.
    """
    from loop.campaign.config import load

    config = load(file)
    name = config.campaign.name
    with open_store(config, read_only=True) as store:
        if not store.item_count(name):
            where = store.engine.url.render_as_string()
            raise NoStoreError(
                f"Campaign {name!r} has not begun in the store at {where}; `goldloop run` begins"
                " it."
            )
        yield with_learning_rate(config, store, fetch=False), store


def refuse_own_files(config: Config, file: Path, out: Path) -> None:
    """Whether a result would take the place of the campaign file, its texts or its store.

    Raises:
        DataError: it would.
    """
    from sqlalchemy import make_url

    from loop.errors import DataError

    url = make_url(config.store_url)
    store = url.database if url.get_backend_name() == "sqlite" else None
    beside = ("", "-wal", "-shm", "-journal")  # SQLite's own files
    own = [
        ("campaign file", str(file)),
        ("source itself", config.source),
        *[("campaign's store", f"{store}{end}") for end in beside if store],
    ]
    for what, path in own:
        if out.exists() and Path(path).exists() and out.samefile(path):
            raise DataError(f"{out} is the {what}; name another file.")


SPENDS = ("run", "annotate", "demo", "validate")
"""Commands that ask the LLM or people, so that what later stages need is looked at first."""


@contextmanager
def at_work(file: Path, command: str) -> Iterator[Context]:
    """The campaign at work, with the writer's lock held."""
    from loop.campaign.config import load
    from loop.campaign.lock import writer
    from loop.executor.ray_actors import RayExecutor

    config = load(file)
    with open_store(config) as store, writer(store, config.campaign.name, command):
        if config.people.platform == "label_studio":
            check_labels(config)
        context = build_context(config, store, show=bar, say=say)
        with closing(context):
            executor = context.parts.executor
            if command in SPENDS and isinstance(executor, RayExecutor):
                executor.check_room()
            yield context


def check_labels(config: Config) -> None:
    """Whether people and the LLM can tell the labels apart, before either is asked.

    Raises:
        ReviewerError: two look the same to people, or one like the page's own answer "unsure".
        AnnotatorError: two look the same in a prompt.
    """
    from connectors.label_studio.page import shown_names
    from loop.errors import AnnotatorError
    from loop.ports import normalise
    from loop.prompt import one_line

    shown_names(config.port_labels)
    lines: dict[str, str] = {}
    seen: dict[str, str] = {}
    for name in config.label_names:
        other = lines.setdefault(one_line(name), name)
        if other != name:
            raise AnnotatorError(
                f"The labels {other!r} and {name!r} look the same to the model; rename one."
            )
        if not normalise(name):
            raise ReviewerError(f"The label {name!a} holds nothing that people can see; rename it.")
        other = seen.setdefault(normalise(name), name)
        if other != name:
            raise ReviewerError(
                f"The labels {other!a} and {name!a} look the same to people: they differ"
                " in their Unicode form or in characters that nobody sees alone. Keep one of them;"
                " values of the source in the other form are read as it."
            )


def make_ready(ctx: Context) -> None:
    """Looks, before a campaign begins, for what would stop it once the LLM and people were paid.

    Fetches the encoder where it is not here yet, and has the local Label Studio installed while the
    LLM labels.

    Raises:
        LoopError: the encoder or the LLM is not to be had, or Label Studio has no token.
    """
    from loop.studies.preflight import parts_that_fail

    if ctx.store.last_round(ctx.name) is not None:
        return
    for error in parts_that_fail(ctx.config):
        raise error
    _ = ctx.student.revision  # finds its files, or fetches them
    local = ctx.config.people.platform == "label_studio" and ctx.config.label_studio.url == "local"
    if local and ctx.config.annotator.kind != "recorded":
        start_label_studio()


def start_label_studio() -> None:
    """Has the local Label Studio installed and started in the background.

    What goes wrong with it is met again, and then said, by whoever needs it.
    """
    from connectors.label_studio import server as label_studio_server

    def start() -> None:
        with suppress(LoopError):
            label_studio_server.up()

    threading.Thread(target=start, daemon=True).start()


def build_context(
    config: Config,
    store: Store,
    *,
    show: Show | None = None,
    say: Callable[[str], None] = lambda _line: None,
) -> Context:
    """The campaign with its parts, and with the learning rate that its students have."""
    from loop.campaign.context import Context
    from loop.ports import show_nothing

    config = with_learning_rate(config, store)
    parts = build_parts(config, store)
    return Context(config, store, parts, show=show or show_nothing, say=say)


def with_learning_rate(config: Config, store: Store, *, fetch: bool = True) -> Config:
    """The campaign file with its students' learning rate, where it names none.

    A campaign that has begun keeps the rate of its rounds as long as its encoder stays, so that
    these compare. Else it is the rate that fits the encoder.

    Args:
        fetch: ask the hub about an encoder that is not here; without it, the rate stays open.
    Raises:
        StudentError: ``fetch``, and there is no such encoder.
    """
    from loop.student.learning_rate import config_folder, fitting_rate, rate_by_name

    student = config.student
    if student.lr is not None:
        return config
    last = store.last_round(config.campaign.name)
    before = last.config["student"] if last is not None else {}
    if before.get("encoder") == student.encoder and before.get("lr"):
        return config.with_lr(before["lr"], "is that of the rounds so far")
    folder = None
    if rate_by_name(student.encoder) is None:
        folder = config_folder(student.encoder, config.folder)
        if folder is None and not fetch:
            return config
        if folder is None:
            from loop.student.encoder_files import fetch_config

            folder = fetch_config(student.encoder)
    rate = fitting_rate(student.encoder, folder)
    return config.with_lr(rate.value, rate.why)


def build_parts(config: Config, store: Store) -> Parts:
    """How to build each part of a campaign; nothing is built yet."""
    from loop.campaign.context import Parts

    executor = build_executor(config)
    return Parts(
        texts=lambda: load_campaign_texts(config),
        annotator=lambda: build_annotator(config, executor),
        reviewer=lambda: build_reviewer(config, store),
        student=lambda: build_student(config, executor),
        raters=None if config.raters.kind == "people" else lambda: build_raters(config, store),
        executor=executor,
    )


def build_executor(config: Config) -> RayExecutor | None:
    """The cluster that the campaign file names, not connected yet; None for this machine."""
    from loop.executor.ray_actors import RayExecutor

    section = config.executor
    if section.kind == "local":
        return None
    return RayExecutor(
        section.address,
        workers=section.workers,
        gpus_per_worker=section.gpus_per_worker,
        say=say,
    )


class TextsArguments(TypedDict):
    """What ``connectors.texts.read`` is to be told of a campaign's source."""

    source: str
    format: Format
    text_column: str
    gold_column: str | None
    split_column: str | None
    hf_split: str
    meta_columns: Literal["plain"] | None
    named: Sequence[str]
    labels: Sequence[str]
    confidences: Sequence[str]
    confidence_scale: Scale


def texts_arguments(config: Config, *, meta: Literal["plain"] | None = "plain") -> TextsArguments:
    """How the campaign's source is to be read, with or without its other columns."""
    texts = config.texts
    recorded = config.annotator.kind == "recorded"
    return {
        "source": config.source,
        "format": texts.format,
        "text_column": texts.text_column,
        "gold_column": texts.gold_column,
        "split_column": texts.split_column,
        "hf_split": texts.hf_split,
        "meta_columns": meta,
        "named": (
            *config.annotator.columns,
            *(config.annotator.prob_columns or ()),
            *filter(None, [config.raters.ratings_column]),
        ),
        "labels": config.label_names,
        "confidences": (config.annotator.prob_columns or ()) if recorded else (),
        "confidence_scale": config.annotator.confidence_scale,
    }


def load_campaign_texts(config: Config) -> Sequence[SourceText]:
    """The texts of the campaign's source."""
    from connectors.texts.read import load_texts

    return load_texts(**texts_arguments(config), on_note=say)


def build_annotator(config: Config, executor: Executor | None = None) -> Annotator:
    """The LLM that the campaign file names.

    Args:
        executor: whose workers compute a model that would be computed in this process.
    Raises:
        LoopError: it cannot be built.
    """
    from loop.llm.elsewhere import ELSEWHERE, AnnotatorElsewhere
    from loop.ports import Annotator

    kind, setup = config.annotator.kind, _annotator_setup(config)
    annotator = cast(Annotator, _built("annotators", kind, setup, Annotator))
    if executor is None or kind not in ELSEWHERE:
        return annotator
    return AnnotatorElsewhere(annotator, kind, setup, executor)


def _annotator_setup(config: Config) -> AnnotatorSetup:
    from loop.ports import AnnotatorSetup

    section = config.annotator
    return AnnotatorSetup(section.model_dump(), section.options, config.port_labels, say)


def _built(group: Group, name: str, setup: object, port: type) -> object:
    """What goldloop or another package builds under a name; it must have all that the port asks."""
    from loop.campaign.extensions import BUILT_IN, load, what

    build = load(group, name)
    if name in BUILT_IN[group]:
        return build(setup)
    try:
        part = build(setup)
    except LoopError:
        raise
    except Exception as exc:  # another package's code may raise anything
        raise ConfigError(
            f"{what(group, name)} cannot be built ({type(exc).__name__}: {exc}). Look at its"
            " options in the campaign file, or update it."
        ) from exc
    asked = [member for member in vars(port) if not member.startswith("_")]
    missing = [member for member in asked if not hasattr(part, member)]
    if missing:
        raise ConfigError(
            f"{what(group, name)} cannot be used: {type(part).__name__} lacks {', '.join(missing)}"
            f" of loop.ports.{port.__name__}."
        )
    return part


def build_recorded(config: Config) -> RecordedAnnotator:
    """The recorded answers that the campaign file names."""
    from connectors.llm.recorded import build

    return build(_annotator_setup(config))


def build_student(config: Config, executor: Executor | None = None) -> Student:
    """The student that the campaign file describes."""
    return build_encoder_student(config.student, config.folder, executor)


def build_encoder_student(
    section: StudentSection, folder: Path, executor: Executor | None = None
) -> Student:
    """A student; an encoder that is a folder is looked up from ``folder``."""
    from loop.student.encoder_student import EncoderStudent
    from loop.student.learning_rate import EMBEDDED

    encoder: str | Path = section.encoder
    if encoder in EMBEDDED:
        from connectors.downloads.models import minilm_dir, mpnet_dir

        encoder = minilm_dir() if encoder == "minilm" else mpnet_dir()
    elif (folder / encoder).is_dir():
        encoder = folder / encoder
    return EncoderStudent(
        encoder,
        epochs=section.epochs,
        batch_size=section.batch_size,
        lr=section.lr,
        weight_decay=section.weight_decay,
        warmup_frac=section.warmup_frac,
        max_tokens=section.max_tokens,
        device=section.device,
        precision=section.precision,
        long_texts=section.long_texts,
        class_weights=section.class_weights,
        checkpoint=section.checkpoint,
        executor=executor,
    )


def build_reviewer(config: Config, store: Store) -> Reviewer:
    """The platform where the campaign's people label.

    Raises:
        LoopError: it cannot be built, or its server cannot be started.
    """
    from loop.deliver.codebook import clear_examples
    from loop.ports import Reviewer, ReviewerSetup

    people, platform = config.people, config.people.platform
    own = config.label_studio.model_dump() if platform == "label_studio" else {}
    setup = ReviewerSetup(
        settings=own,
        options=people.options,
        title=f"goldloop: {config.campaign.name}",
        campaign_id=store.campaign_uid(config.campaign.name),
        labels=config.port_labels,
        task=config.campaign.task,
        assist=people.assist,
        note=people.note,
        overlap=people.panel.first,
        folder=config.folder,
        examples=clear_examples(config, store),
        say=say,
        show=bar,
    )
    return cast(Reviewer, _built("reviewers", platform, setup, Reviewer))


def build_tracker(config: Config, name: str) -> Tracker:
    """An experiment tracker that the campaign file names.

    Raises:
        LoopError: it cannot be built.
    """
    from loop.ports import Tracker, TrackerSetup

    section = config.tracking
    setup = TrackerSetup(section.project, section.uri, config.out / "tracking", say)
    return cast(Tracker, _built("trackers", name, setup, Tracker))


def build_raters(config: Config, store: Store) -> Raters:
    """Simulated people who answer with recorded labels or ratings."""
    from connectors.label_studio.reviewer import address
    from connectors.label_studio.simulated_people import RecordedRaters

    items = store.stored_texts(config.campaign.name, "pool")
    column = config.raters.ratings_column
    return RecordedRaters(
        address(config.label_studio.model_dump(), say=say, show=bar)[0],
        _rater_token,
        ratings={
            item.id: ratings_in(item.meta.get(column) if column else item.known_label, config)
            for item in items
        },
        overlap=config.people.most,
        seed=config.rounds.seed,
    )


def ratings_in(value: object, config: Config) -> list[str]:
    """The labels that people once gave a text, out of a list, also of one written as text."""
    from connectors.llm.label_spelling import label_in
    from connectors.texts.label_cells import labels_in

    names = config.label_names
    try:
        return [label_in(rating, names) or rating for rating in labels_in(value, names)]
    except ValueError:
        return []


def _rater_token(username: str) -> str:
    from connectors.label_studio import server as label_studio_server

    return label_studio_server.create_user(username)


def local_login() -> tuple[str, str, str] | None:
    """URL, user and password of the local Label Studio, where it runs."""
    from connectors.label_studio import server as label_studio_server

    info = label_studio_server.status()
    return (info.url, info.username, info.password) if info else None


def project_tasks(config: Config, project: int) -> list[dict[str, object]]:
    """All tasks of a project of the campaign's Label Studio, with their annotations.

    Raises:
        ReviewerError: the campaign has none, or the project cannot be read.
    """
    if config.people.platform != "label_studio" and config.label_studio.url == "local":
        raise ReviewerError(
            f"People label in {config.people.platform_name}, so that this campaign has no Label"
            " Studio; set label_studio.url to the server that has the project, or give an export."
        )
    from connectors.label_studio.client import Client
    from connectors.label_studio.pull import PAGE_TASKS
    from connectors.label_studio.reviewer import address

    client = Client(*address(config.label_studio.model_dump(), say=say, show=bar))
    client.check()
    return client.listed(project, "read answers", [], PAGE_TASKS, fields="all")


def server_probes(config: Config) -> dict[str, Callable[[], Server]]:
    """How to ask the servers that the campaign needs whether they are there; starts none."""
    probes: dict[str, Callable[[], Server]] = {}
    if config.annotator.kind == "openai_server":
        probes["LLM"] = lambda: _llm_server(config)
    if config.people.platform == "label_studio":
        probes["Label Studio"] = lambda: _label_studio(config)
    return probes


PROBE_S = 5.0  # for one request


def _llm_server(config: Config) -> Server:
    from connectors.llm.openai_server import unserved
    from connectors.llm.server_http import Http
    from loop.operate.doctor import Server

    section = config.annotator
    http = Http(
        str(section.base_url),
        section.api_key_env,
        timeout_s=PROBE_S,
        max_attempts=1,
        backoff_s=0.0,
        concurrency=1,
        transport=None,
    )
    with closing(http):
        if why := unserved(http, section.model, http.models(), chat=section.chat):
            raise LoopError(f"{why} Name one of them as annotator.model.")
    return Server(f"the server at {http.shown} answers and has {section.model}.")


def _label_studio(config: Config) -> Server:
    from connectors.label_studio.client import Client
    from connectors.label_studio.reviewer import address
    from loop.operate.doctor import Server

    if config.label_studio.url == "local":
        from connectors.label_studio import server as label_studio_server

        info = label_studio_server.status()
        if info is None:
            return Server("the local one does not run; `goldloop run` starts it when it is needed.")
        url, token = info.url, info.token
    else:
        url, token = address(config.label_studio.model_dump())
    client = Client(url, token, timeout_s=PROBE_S)
    version = client.check()
    ahead_s = (client.clock - datetime.now(UTC)).total_seconds() if client.clock else None
    return Server(f"version {version} at {client.shown_url} takes the token.", ahead_s)


def connect_project(config: Config, store: Store, url: str, tokens: Tokens) -> None:
    """Makes the campaign's Label Studio project call this server."""
    from connectors.label_studio.reviewer import LabelStudioReviewer
    from loop.serve.tokens import BACKEND_USER, TOKEN_HEADER

    if config.people.platform != "label_studio":
        raise LoopError(
            f"--connect is for Label Studio; people label in {config.people.platform!r} here."
        )
    project = store.project_id(config.campaign.name)
    if project is None:
        raise LoopError("There is no Label Studio project yet; run `goldloop run` first.")
    reviewer = cast(LabelStudioReviewer, build_reviewer(config, store))
    reviewer.open_project(project)
    reviewer.connect_server(
        url,
        header=TOKEN_HEADER,
        webhook_token=tokens.webhook,
        user=BACKEND_USER,
        password=tokens.backend,
        use=config.people.assist != "prefill",
    )
    say(f"Connected: project {project} calls {url} when somebody answers.")
