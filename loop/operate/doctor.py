"""What a campaign needs of its machine and its servers: what is there, what is wrong, what to do.

Nothing here waits for long, whatever a server does, and no secret is printed.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeVar

from sqlalchemy import make_url

from loop import __version__
from loop.addresses import hidden
from loop.campaign.changes import refuse_lost_store
from loop.campaign.config import Config, load
from loop.campaign.database import RESTORE, damage, database_file, schema_versions
from loop.campaign.lock import holder_of
from loop.errors import LoopError, foreign

T = TypeVar("T")
DEADLINE_S = 10.0
SKEW_S = 60.0  # answers are read with an overlap of a few minutes
LITTLE_BYTES, TOO_LITTLE_BYTES = 5 * 10**9, 5 * 10**8  # an encoder with its seeds; a store
SHOWN = ("torch", "transformers", "sqlmodel", "alembic", "label-studio-sdk", "faiss-cpu", "numpy")


@dataclass(frozen=True)
class Line:
    """One thing that was looked at.

    Attributes:
        about: what was looked at, in a word or two.
        what: what is the case, and what that means.
        do: what to do; empty where all is well.
    """

    level: Literal["ok", "warning", "problem"]
    about: str
    what: str
    do: str = ""

    def __str__(self) -> str:
        return f"{self.level:8} {self.about}: {self.what}" + (f" {self.do}" if self.do else "")

    def to_json(self) -> dict[str, str]:
        """The same for programs."""
        return asdict(self)


@dataclass(frozen=True)
class Server:
    """What a server said of itself.

    Attributes:
        told: its version or its models, in words.
        ahead_s: how far its clock is ahead of this machine's; None where it does not say.
    """

    told: str
    ahead_s: float | None = None


Probe = Callable[[], Server]
"""Asks a server; raises a ``LoopError`` where it cannot be used."""


def examine(
    file: Path,
    probes: Callable[[Config], dict[str, Probe]],
    *,
    deadline_s: float = DEADLINE_S,
) -> Iterator[Line]:
    """Looks at the machine, and at a campaign where there is one.

    Args:
        file: the campaign file; there may be none.
        probes: how to ask the servers that a campaign needs, by name.
        deadline_s: how long each server may take.
    """
    yield from _programs()
    config = None
    if not file.exists():
        yield Line(
            "ok",
            "campaign",
            f"there is no {file}, so that only the machine was looked at.",
            "`goldloop init` writes one, --file names another.",
        )
    else:
        try:
            config = load(file)
        except LoopError as exc:
            for sentence in str(exc).splitlines():
                yield Line("problem", "campaign", hidden(sentence), "See `goldloop check`.")
        else:
            yield Line("ok", "campaign", f"{file} can be read.")
    yield from _extras(config)
    yield _gpu(config)
    folder = (config.folder if config else file.absolute().parent).resolve()
    yield from _places(folder, config)
    if config is not None:
        yield from _store(config, deadline_s)
        for name, probe in probes(config).items():
            yield from _server(name, probe, deadline_s)


def within(deadline_s: float, ask: Callable[[], T]) -> T:
    """What a call returns, where it does so in time; a call that hangs is left behind.

    Raises:
        LoopError: it takes longer, or fails.
    """
    answers: list[T] = []
    failures: list[LoopError] = []

    def work() -> None:
        try:
            answers.append(ask())
        except Exception as exc:
            failures.append(foreign(exc))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(deadline_s)
    if failures:
        raise failures[0]
    if not answers:
        raise LoopError(f"There was no answer within {deadline_s:g} s.")
    return answers[0]


# the machine


def _programs() -> Iterator[Line]:
    python = platform.python_version()
    yield Line("ok", "goldloop", f"{__version__} on Python {python}, {platform.platform()}.")
    wrong, missing = [], []
    for name, oldest, extra in _requirements():
        if extra is not None:
            continue
        version = _installed(name)
        if version is None:
            missing.append(name)
        elif oldest is not None and _numbers(version) < _numbers(oldest):
            wrong.append(f"{name} {version} (needs {oldest} or newer)")
    versions = ", ".join(f"{name} {_installed(name)}" for name in SHOWN if _installed(name))
    yield Line("ok", "libraries", f"{versions}.")
    if wrong or missing:
        told = "; ".join([*wrong, *(f"{name} is missing" for name in missing)])
        yield Line(
            "problem",
            "libraries",
            f"{told}.",
            "Run `pip install --upgrade .` in goldloop's folder.",
        )


def _requirements() -> Iterator[tuple[str, str | None, str | None]]:
    """Name, oldest version and extra of every package that goldloop asks for."""
    try:
        asked = metadata.requires("goldloop") or []
    except metadata.PackageNotFoundError:  # run from a checkout
        return
    for line in asked:
        if name := re.match(r"[\w.-]+", line):
            oldest = re.search(r">=\s*([\w.]+)", line)
            extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", line)
            yield name[0], oldest and oldest[1], extra and extra[1]


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version.partition("+")[0])[:3])


def _extras(config: Config | None) -> Iterator[Line]:
    """Extras that are not installed; a problem where the campaign needs one."""
    lacking: dict[str, list[str]] = {}
    for name, _, extra in _requirements():
        if extra not in (None, "dev", "bench") and _installed(name) is None:
            lacking.setdefault(str(extra), []).append(name)
    needed = set()
    if config is not None:
        if config.annotator.kind == "vllm":
            needed.add("vllm")
        if config.executor.kind == "ray":
            needed.add("ray")
        if make_url(config.store_url).get_backend_name() == "postgresql":
            needed.add("postgres")
        if config.texts.source.startswith("hf:") or config.texts.format == "hf":
            needed.add("datasets")
        if config.source.endswith((".xlsx", ".xls", ".ods")) or config.texts.format == "excel":
            needed.add("excel")
    for extra in sorted(needed & set(lacking)):
        yield Line(
            "problem",
            "extras",
            f"the campaign needs the extra {extra} ({', '.join(lacking[extra])}).",
            f"Run `pip install 'goldloop[{extra}]'`.",
        )
    if rest := sorted(set(lacking) - needed):
        yield Line("ok", "extras", f"not installed, and not needed: {', '.join(rest)}.")
    elif not lacking:
        yield Line("ok", "extras", "all are installed.")


def _gpu(config: Config | None) -> Line:
    import torch

    wanted = config.student.device if config else "auto"
    if torch.cuda.is_available():
        about = torch.cuda.get_device_properties(0)
        return Line(
            "ok",
            "GPU",
            f"{about.name}, {about.total_memory / 1e9:.0f} GB; torch is for CUDA"
            f" {torch.version.cuda}.",
        )
    if wanted.startswith("cuda") or (config and config.annotator.kind == "vllm"):
        return Line(
            "problem",
            "GPU",
            "the campaign asks for one, and torch sees none.",
            "See whether `nvidia-smi` shows it and whether torch is a build for CUDA, or set"
            ' student.device = "auto".',
        )
    return Line("ok", "GPU", "none; students train on the processor.")


def _places(folder: Path, config: Config | None) -> Iterator[Line]:
    """Room and permissions where the campaign writes."""
    places = {"the campaign's folder": folder, "the models' cache": Path.home()}
    if config is not None:
        places["the results"] = _nearest(config.out)
    if config is not None and (file := database_file(make_url(config.store_url))) is not None:
        places["the store"] = _nearest(file.parent)
    told = set()
    for what, place in places.items():
        if not os.access(place, os.W_OK | os.X_OK):
            yield Line(
                "problem",
                "permissions",
                f"{place} ({what}) cannot be written.",
                f"Make it writable for this user: `chown -R $USER {place}`.",
            )
        device, free = place.stat().st_dev, shutil.disk_usage(place).free
        if device in told:
            continue
        told.add(device)
        room = f"{free / 1e9:,.1f} GB are free at {place}."
        if free < TOO_LITTLE_BYTES:
            yield Line("problem", "disk", room, "Make room: a round would stop half-way.")
        elif free < LITTLE_BYTES:
            yield Line("warning", "disk", room, "Models of several seeds may not fit; make room.")
        else:
            yield Line("ok", "disk", room)


def _nearest(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.is_dir())


# the store


def _store(config: Config, deadline_s: float) -> Iterator[Line]:
    where = make_url(config.store_url).render_as_string()
    file = database_file(make_url(config.store_url))
    try:
        version, schemas = within(deadline_s, lambda: schema_versions(config.store_url))
    except LoopError as exc:
        do = "See whether it can be read." if file else "See whether the database runs."
        yield Line("problem", "store", hidden(str(exc)), do)
        return
    if file is not None and version is not None:
        with suppress(LoopError):  # of a store so large that this takes longer, `fsck` tells
            if (what := within(deadline_s, lambda: damage(file))) is not None:
                yield Line("problem", "store", f"{file} is damaged: {what[:200]}.", RESTORE)
                return
    if version is None:
        try:
            refuse_lost_store(config)
        except LoopError as exc:
            yield Line("problem", "store", str(exc), "Look for the store, or for a backup.")
            return
        yield Line("ok", "store", f"there is none at {where} yet; `goldloop run` creates it.")
    elif version not in schemas:
        yield Line(
            "problem",
            "store",
            f"schema {version} at {where} is of a newer goldloop.",
            "Upgrade goldloop.",
        )
    elif version != schemas[-1]:
        yield Line(
            "warning",
            "store",
            f"schema {version} at {where} is of an earlier goldloop.",
            "Run `goldloop upgrade`.",
        )
    else:
        yield Line("ok", "store", f"{where} can be read and has the newest schema, {version}.")
    if file is None or not file.exists():
        return
    if not os.access(file, os.W_OK):
        yield Line("problem", "store", f"{file} cannot be written.", f"Run `chmod u+w {file}`.")
    if stat.S_IMODE(file.stat().st_mode) & 0o077:
        yield Line(
            "warning",
            "store",
            f"other users of this machine can read {file}, with its texts.",
            f"Run `chmod 600 {file}`.",
        )
    lock = file.with_name(f"{file.name}.{config.campaign.name}.lock")
    if (holder := holder_of(lock)) is not None:
        yield Line("ok", "lock", f"the campaign is being written to by {holder}.")


# servers


def _server(name: str, probe: Probe, deadline_s: float) -> Iterator[Line]:
    try:
        server = within(deadline_s, probe)
    except LoopError as exc:
        yield Line("problem", name, hidden(str(exc)), "See whether it runs, then ask again.")
        return
    yield Line("ok", name, hidden(server.told))
    if server.ahead_s is not None and abs(server.ahead_s) > SKEW_S:
        way = "ahead of" if server.ahead_s > 0 else "behind"
        yield Line(
            "warning",
            name,
            f"its clock is {abs(server.ahead_s):,.0f} s {way} this machine's.",
            "Have both keep the time (NTP): answers are read by the time of their change.",
        )


def as_json(lines: list[Line]) -> dict[str, Any]:
    """All lines for programs."""
    problems = sum(line.level == "problem" for line in lines)
    return {
        "python": sys.version.split()[0],
        "problems": problems,
        "lines": [line.to_json() for line in lines],
    }
