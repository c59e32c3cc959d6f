"""Commands that serve a campaign, and the local Label Studio."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from loop.addresses import secret_in
from loop.cli.build import build_context, connect_project, open_store
from loop.cli.options import CAMPAIGN, File
from loop.cli.terminal import bar, say
from loop.errors import LoopError

if TYPE_CHECKING:
    from loop.campaign.config import Config
    from loop.campaign.store import Store

app = typer.Typer()

label_studio_app = typer.Typer(
    help="A local Label Studio, installed and run by goldloop.", no_args_is_help=True
)


@app.command(epilog="Example: goldloop serve --connect")
def serve(
    file: File = CAMPAIGN,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="0: the same as last time, or a free one.")
    ] = 0,
    connect: Annotated[
        bool, typer.Option("--connect", help="Register with the campaign's Label Studio project.")
    ] = False,
    public_url: Annotated[
        str | None, typer.Option(help="Where Label Studio reaches this server, if not at --host.")
    ] = None,
    page_url: Annotated[
        str | None, typer.Option(help="Where people reach the page, if not at --host.")
    ] = None,
) -> None:
    """Read answers as they come, serve the student to Label Studio, and show live progress."""
    try:
        from loop.serve import app as server
    except ImportError as exc:
        raise LoopError("`goldloop serve` needs: pip install 'goldloop[serve]'") from exc
    from connectors.label_studio.ml_backend import MlBackend
    from loop.campaign.config import load
    from loop.report.status import campaign_status
    from loop.serve.current_student import CurrentStudent
    from loop.serve.metrics import metrics_text
    from loop.serve.puller import Puller
    from loop.serve.tokens import Tokens, load_state, save_state, state_file
    from loop.student.inference import SavedClassifier

    for option, address in (("--public-url", public_url), ("--page-url", page_url)):
        if address and (secret := secret_in(address)):
            raise LoopError(
                f"{option} holds {secret}; goldloop has tokens of its own, so leave it out."
            )
    if page_url is not None:
        page_url = _page_address(page_url)
    config = load(file)
    with open_store(config) as store:
        path = state_file(config, store)
        state = load_state(path)
        tokens = Tokens(bytes.fromhex(state["secret"]))
        listener = server.listen(host, port, state.get("port"))
        bound = listener.getsockname()[1]
        wanted = {
            **state,
            "port": bound,
            "page_token": tokens.page,
            "metrics_token": tokens.metrics,
        }
        if state != wanted:
            save_state(path, wanted)
        url = public_url or f"http://{f'[{host}]' if ':' in host else host}:{bound}"
        page = page_url or url
        links = server.OneTimeLinks()
        now = _as_it_is(file, config)
        connection = _Connection(
            connect=lambda: connect_project(now(), store, url, tokens),
            project=lambda: store.project_id(config.campaign.name),
        )

        def pull() -> None:
            if connect:
                connection.keep()
            _pull_quietly(file)

        puller = Puller(pull, say=say)
        student = CurrentStudent(
            config,
            store,
            lambda folder: SavedClassifier(
                folder, device=config.student.device, precision=config.student.precision
            ),
        )
        application = server.make_app(
            server.Served(
                tokens=tokens,
                campaign=config.campaign.name,
                labels=lambda: store.labels(config.campaign.name),
                hint=puller.hint,
                project=connection.project,
                student=student,
                progress=lambda: _progress(now(), store) | puller.to_json(),
                metrics=lambda: metrics_text(campaign_status(now(), store), puller.counts),
                sick=lambda: puller.sick,
                backend=MlBackend(blind=lambda: now().people.assist == "blind"),
                hosts=server.own_hosts(host, public_url, page_url),
                over_https=(page_url or "").startswith("https:"),
                links=links,
            )
        )

        def ready() -> None:
            typer.echo(page)
            if sys.stderr.isatty():
                say(f"Open {page}{links.new()} (good once, for ten minutes).")
                say(f"Later, or elsewhere: {page}; token: {tokens.page}")
            else:  # a log is no place for a secret
                say(f"Progress at {page}; token: page_token in {path}")
            if connect and connection.project() is None:
                say("It registers with the Label Studio project once the first texts are sent.")
            puller.start()

        try:
            server.serve_app(application, listener, ready)
        finally:
            puller.stop()


def _as_it_is(file: Path, config: Config) -> Callable[[], Config]:
    """The campaign file as it is now; as it was, where it cannot be read or is another campaign's.

    Args:
        config: as it was first read.
    """
    from loop.campaign.config import load

    def now() -> Config:
        nonlocal config
        with suppress(LoopError):
            read = load(file)
            if (read.campaign.name, read.store_url) == (config.campaign.name, config.store_url):
                config = read
        return config

    return now


@dataclass
class _Connection:
    """Registers this server with the campaign's project, and with another that takes its place.

    Attributes:
        connect: registers with the present one.
        project: its number, or None before the first push.
    """

    connect: Callable[[], object]
    project: Callable[[], str | None]
    _registered: str | None = None
    _failure: str = ""

    def keep(self) -> None:
        """Registers where that is not done yet; says a failure once, and tries again next time."""
        project = self.project()
        if project in (None, self._registered):
            return
        try:
            self.connect()
        except LoopError as exc:
            if str(exc) != self._failure:
                say(f"Error: {exc}")
            self._failure = str(exc)
        else:
            self._registered, self._failure = project, ""


def _page_address(url: str) -> str:
    """The address without a slash at its end.

    Raises:
        LoopError: it is none of a host, at whose root the page lies.
    """
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        known = False
    if not known or parts.path.strip("/") or parts.query or parts.fragment:
        raise LoopError(
            f"--page-url is {url!r}; it must be http:// or https:// with a host, and a port if need"
            " be, and nothing after it, because the page lies at the root."
        )
    return f"{parts.scheme}://{parts.netloc}"


def _progress(config: Config, store: Store) -> dict[str, Any]:
    """All that the page shows: how the round moves on, and what is still to come."""
    from loop.serve.progress import campaign_progress
    from loop.studies.plan import make_plan, to_come

    told, at = campaign_progress(config, store), datetime.now(UTC)
    plan = make_plan(config, store, at=at)
    return told | {"to_come": to_come(plan, told["pace"]["answers_out"], at)}


@label_studio_app.command("up", epilog="Example: goldloop label-studio up")
def label_studio_up() -> None:
    """Install it if needed, start it on this machine, and say how to log in."""
    from connectors.label_studio import server as label_studio_server

    info = label_studio_server.up(progress=say, show=bar)
    typer.echo(info.url)
    say(f"User {info.username}, password {info.password}")


@label_studio_app.command("down", epilog="Example: goldloop label-studio down")
def label_studio_down() -> None:
    """Stop it; projects and answers stay."""
    from connectors.label_studio import server as label_studio_server

    stopped = label_studio_server.down()
    say("Stopped." if stopped else "It was not running.")


@label_studio_app.command("status", epilog="Example: goldloop label-studio status")
def label_studio_status() -> None:
    """Say whether it runs, and where."""
    from connectors.label_studio import server as label_studio_server

    info = label_studio_server.status()
    if info is None:
        typer.echo("not running")
        raise typer.Exit(1)
    typer.echo(f"running at {info.url} (process {info.pid}, Label Studio {info.version})")


def _pull_quietly(file: Path) -> None:
    """What `goldloop serve` does when answers may be back: as `goldloop pull`, without bars."""
    from loop.campaign.config import load
    from loop.campaign.lock import writer
    from loop.round import pull_answers

    config = load(file)
    with open_store(config) as store, writer(store, config.campaign.name, "serve"):
        round_ = pull_answers(build_context(config, store))
    if round_ is not None and round_.stage not in ("pull", "adjudicate"):
        say(f"Round {round_.number}: everything is answered; next: `goldloop run`.")
