"""The command line: its commands in groups, one group per file.

``loop.cli.build`` builds what the commands work with, ``loop.cli.terminal`` prints. Heavy
libraries are imported inside the commands, so that ``goldloop --help`` answers at once.
stdout is data; progress and news go to stderr.
"""

from __future__ import annotations

import gc
import io
import os
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from loop import __version__
from loop.addresses import hidden
from loop.cli import campaign, operations, reports, rounds, serving, studies
from loop.cli.options import CAMPAIGN, name_file
from loop.cli.terminal import echo, say
from loop.errors import LoopError, Stopped, foreign, stoppable
from loop.operate.log_file import logging_to

USAGE = typer.BadParameter.__mro__[1]  # typer brings its own click and does not name its errors


GROUPS = {
    "Begin": ("init", "check", "plan", "import-labels", "validate", "demo"),
    "Run the loop": ("run", "status", "people", "report", "codebook", "serve"),
    "Take the result with you": ("export", "model", "predict", "track"),
    "Find out more": ("plateau", "variance", "bench"),
    "One stage at a time": ("annotate", "score", "select", "push", "pull", "train"),
    "Look after it": (
        "doctor",
        "backup",
        "restore",
        "fsck",
        "migrate",
        "upgrade",
        "forget",
        "label-studio",
    ),
}
"""The commands as ``goldloop --help`` lists them."""


class Commands(TyperGroup):
    """All commands; what a library raises in one of them leaves it as a ``LoopError``."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Lists the commands in groups, each with its whole sentence."""
        for title, names in GROUPS.items():
            with formatter.section(title):
                rows = [(name, self.commands[name].help or "") for name in names]
                formatter.write_dl([(name, text.split("\n\n")[0]) for name, text in rows])

    def invoke(self, ctx: Any) -> Any:
        """Runs the command that was asked for."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except Exception as exc:
            if isinstance(exc, (LoopError, typer.Exit, typer.Abort, USAGE)):
                raise
            raise foreign(exc) from exc
        return result


app = typer.Typer(
    name="goldloop",
    cls=Commands,
    help="Find wrong LLM labels, let people correct them, and train a small model on the result.",
    epilog="With your own texts: init, check, run; people label; run again, until it says that the"
    " campaign is finished. `goldloop COMMAND --help` has each command's options. `goldloop"
    " --install-completion` makes the Tab key complete commands.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for group in (campaign, rounds, reports, studies, operations, serving):
    app.add_typer(group.app)
app.add_typer(serving.label_studio_app, name="label-studio")

COLLECTED_AFTER = 50_000
"""New objects after which Python looks for garbage; 700 if nobody says otherwise."""

_debug = False
_log = ExitStack()
"""Closes the log file after the last words."""


def main() -> None:
    """Entry point: one sentence on stderr and exit code 1 for every error; 2 for wrong usage."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us: nobody reads it
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            # A terminal of another encoding then shows \u2013 instead of ending the command.
            stream.reconfigure(errors="backslashreplace")
    # Threads that spin while they wait for each other take whole cores from whatever else runs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Of the many rows about texts none holds itself; to look for that takes longer than to read
    # them.
    gc.set_threshold(COLLECTED_AFTER)
    with _log:
        _run()


def _run() -> None:
    try:
        with stoppable():
            app()
    except LoopError as exc:
        if _debug:
            raise
        _tell([f"Error: {hidden(line)}" for line in str(exc).splitlines()])
        sys.exit(1)
    except Stopped as exc:
        if _debug:
            raise
        _tell(["Stopped. Run the same command again to continue."])
        sys.exit(128 + exc.signal)


def _tell(lines: list[str]) -> None:
    """Last words on stderr, which may be closed or full like stdout."""
    with suppress(OSError, ValueError):
        for line in lines:
            say(line)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # else Python itself tries again at its end, and complains
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _show_version(wanted: bool) -> None:
    if wanted:
        echo(f"goldloop {__version__}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    log_file: Annotated[
        Path | None,
        typer.Option(
            "--log-file",
            envvar="GOLDLOOP_LOG_FILE",
            help="Append what happens to this file, with time, campaign, round and stage.",
        ),
    ] = None,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show version.")
    ] = False,
) -> None:
    """Find wrong LLM labels, let people correct them, and train a small model on the result."""
    global _debug
    _debug = debug
    name_file(CAMPAIGN)
    _log.enter_context(logging_to(log_file))


if __name__ == "__main__":
    main()
