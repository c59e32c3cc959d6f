"""Builds the connectors that a campaign file names and joins them to the loop, for the commands.

Outside of ``loop.cli`` nothing in ``loop`` imports connectors.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loop.cli.terminal import bar, say
from loop.errors import LoopError

if TYPE_CHECKING:
    from loop.campaign.config import Config, StudentSection
    from loop.campaign.context import Context, Parts
    from loop.campaign.store import Store
    from loop.ports import Raters, Reviewer


@contextmanager
def open_store(config: Config, *, read_only: bool = False) -> Iterator[Store]:
    """The campaign's store, closed at the end.

    Args:
        read_only: the store is neither created nor upgraded, and may lie where nothing can be
            written.

    Raises:
        NoStoreError: ``read_only``, and there is no store yet.
        StoreError: it cannot be opened, or the campaign was begun with other labels.
    """
    from loop.campaign.store import Store

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
        NoStoreError: there is no store yet.
        StoreError: see ``open_store``.
    """
    from loop.campaign.config import load

    config = load(file)
    with open_store(config, read_only=True) as store:
        yield with_learning_rate(config, store, fetch=False), store


@contextmanager
def at_work(file: Path, command: str) -> Iterator[Context]:
    """The campaign at work, with the writer's lock held."""
    from loop.campaign.config import load
    from loop.campaign.lock import writer

    config = load(file)
    with open_store(config) as store, writer(store, config.campaign.name, command):
        check_labels(config)
        context = build_context(config, store, show=bar, say=say)
        with closing(context):
            yield context


def check_labels(config: Config) -> None:
    """Whether people and the LLM can tell the labels apart, before either is asked.

    Raises:
        ReviewerError: two look the same on the labelling page, or one like its own answer "unsure".
        AnnotatorError: two look the same in a prompt.
    """
    from connectors.label_studio.page import shown_names
    from connectors.llm.prompt_text import one_line
    from loop.errors import AnnotatorError

    shown_names(config.port_labels)
    lines: dict[str, str] = {}
    for name in config.label_names:
        other = lines.setdefault(one_line(name), name)
        if other != name:
            raise AnnotatorError(
                f"The labels {other!r} and {name!r} look the same to the model; rename one."
            )


def make_ready(ctx: Context) -> None:
    """Looks, before a campaign begins, for what would stop it once the LLM and people were paid.

    Fetches the encoder where it is not here yet.

    Raises:
        LoopError: the encoder or the LLM is not to be had, or Label Studio has no token.
    """
    from loop.studies.preflight import parts_that_fail

    if ctx.store.last_round(ctx.name) is not None:
        return
    for error in parts_that_fail(ctx.config):
        raise error
    _ = ctx.student.revision  # finds its files, or fetches them


def build_context(config: Config, store: Store, **options: Any) -> Context:
    """The campaign with its parts, and with the learning rate that its students have.

    Args:
        options: of ``Context``: ``show`` and ``say``.
    """
    from loop.campaign.context import Context

    config = with_learning_rate(config, store)
    return Context(config, store, build_parts(config, store), **options)


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

    return Parts(
        texts=lambda: load_campaign_texts(config),
        annotator=lambda: build_annotator(config),
        reviewer=lambda: build_reviewer(config, store),
        student=lambda: build_student(config),
        raters=None if config.raters.kind == "people" else lambda: build_raters(config, store),
    )


def texts_arguments(config: Config) -> dict[str, Any]:
    """What ``connectors.texts.read`` is to be told of the campaign's source."""
    texts = config.texts
    return {
        "source": config.source,
        "format": texts.format,
        "text_column": texts.text_column,
        "gold_column": texts.gold_column,
        "split_column": texts.split_column,
        "hf_split": texts.hf_split,
        "meta_columns": "plain",
        "named": (
            *config.annotator.columns,
            *(config.annotator.prob_columns or ()),
            *filter(None, [config.raters.ratings_column]),
        ),
        "labels": config.label_names,
    }


def load_campaign_texts(config: Config) -> Any:
    """The texts of the campaign's source."""
    from connectors.texts.read import load_texts

    return load_texts(**texts_arguments(config), on_note=say)


def build_annotator(config: Config) -> Any:
    """The LLM that the campaign file names."""
    section = config.annotator
    if section.kind == "recorded":
        from connectors.llm.recorded import RecordedAnnotator

        return RecordedAnnotator(
            section.columns, config.port_labels, prob_columns=section.prob_columns, say=say
        )
    if section.kind == "openai_server":
        from connectors.llm.openai_server import OpenAIServerAnnotator

        return OpenAIServerAnnotator(
            str(section.base_url),
            section.model,
            api_key_env=section.api_key_env,
            chat=section.chat,
            concurrency=section.concurrency,
            votes_when_no_logprobs=section.votes_when_no_logprobs,
        )
    if section.kind == "vllm":
        from connectors.llm.vllm_engine import VllmAnnotator

        return VllmAnnotator(
            section.model,
            gpu_memory_utilization=section.gpu_memory_utilization,
            max_text_tokens=section.max_text_tokens,
            chat=section.chat,
        )
    from connectors.llm.local_lm import LocalLM

    return LocalLM(
        section.model,
        batch_size=section.batch_size,
        max_text_tokens=section.max_text_tokens,
        chat=section.chat,
    )


def build_student(config: Config) -> Any:
    """The student that the campaign file describes."""
    return build_encoder_student(config.student, config.folder)


def build_encoder_student(section: StudentSection, folder: Path) -> Any:
    """A student; an encoder that is a folder is looked up from ``folder``."""
    from loop.student.encoder_student import EncoderStudent

    encoder: str | Path = section.encoder
    if encoder in ("minilm", "mpnet"):
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
    )


def _server(config: Config) -> tuple[str, str]:
    """URL and token of the campaign's Label Studio; starts the local one."""
    if config.label_studio.url == "local":
        from connectors.label_studio import server as label_studio_server

        info = label_studio_server.up(progress=say, show=bar)
        return info.url, info.token
    token = os.environ.get(config.label_studio.token_env, "")
    if not token:
        raise LoopError(
            f"Set {config.label_studio.token_env} to an access token of {config.label_studio.url}"
            " (Label Studio: Account & Settings)."
        )
    return config.label_studio.url, token


def build_reviewer(config: Config, store: Store) -> Reviewer:
    """The campaign's Label Studio."""
    from connectors.label_studio.reviewer import LabelStudioReviewer
    from loop.campaign.panel import Panel

    url, token = _server(config)
    section = config.label_studio
    return LabelStudioReviewer(
        url,
        token,
        project_title=f"goldloop: {config.campaign.name}",
        campaign_id=store.campaign_uid(config.campaign.name),
        labels=config.port_labels,
        task=config.campaign.task,
        assist=section.assist,
        note=section.note,
        overlap=Panel.of(section).first,
    )


def build_raters(config: Config, store: Store) -> Raters:
    """Simulated people who answer with recorded labels or ratings."""
    from connectors.label_studio.simulated_people import RecordedRaters

    items = store.items(config.campaign.name, "pool")
    column = config.raters.ratings_column
    ratings = {
        item.id: list(item.meta.get(column) or ()) if column else [str(item.known_label)]
        for item in items
    }
    return RecordedRaters(
        _server(config)[0],
        _rater_token,
        ratings=ratings,
        overlap=config.label_studio.most,
        seed=config.rounds.seed,
    )


def _rater_token(username: str) -> str:
    from connectors.label_studio import server as label_studio_server

    return label_studio_server.create_user(username)


def local_login() -> tuple[str, str, str] | None:
    """URL, user and password of the local Label Studio, where it runs."""
    from connectors.label_studio import server as label_studio_server

    info = label_studio_server.status()
    return (info.url, info.username, info.password) if info else None


def connect_project(config: Config, store: Store, url: str, tokens: Any) -> None:
    """Makes the campaign's Label Studio project call this server."""
    from connectors.label_studio.reviewer import LabelStudioReviewer
    from loop.serve.tokens import BACKEND_USER, TOKEN_HEADER

    project = store.project_id(config.campaign.name)
    if project is None:
        raise LoopError("There is no Label Studio project yet; run `goldloop run` first.")
    reviewer = build_reviewer(config, store)
    if not isinstance(reviewer, LabelStudioReviewer):
        raise LoopError("Only Label Studio can be connected.")
    reviewer.open_project(project)
    reviewer.connect_server(
        url,
        header=TOKEN_HEADER,
        webhook_token=tokens.webhook,
        user=BACKEND_USER,
        password=tokens.backend,
        use=config.label_studio.assist != "prefill",
    )
    say(f"Connected: project {project} calls {url} when somebody answers.")
