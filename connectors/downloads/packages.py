"""Files of published packages, fetched once into the cache, with their hashes checked.

Packages are fetched with pip, so pip's own settings (mirrors, proxies, offline folders) hold. They
are pinned by hash, never installed, and kept in one cache folder. Everything appears there in one
piece: it is prepared beside its place and then renamed.

    cache_dir()/packages/NAME-VERSION-HASH/FILE    as downloaded
    cache_dir()/models/NAME-HASH/                  folders that transformers can load
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from loop.errors import FetchError
from loop.files import locked

log = logging.getLogger(__name__)

DOWNLOAD_TIMEOUT_S = 1800.0


# the cache


def cache_dir() -> Path:
    """GOLDLOOP_CACHE, else XDG_CACHE_HOME/goldloop, else ~/.cache/goldloop; not created here."""
    if own := os.environ.get("GOLDLOOP_CACHE"):
        return Path(own).expanduser().absolute()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).expanduser().absolute() / "goldloop"
    return Path("~/.cache/goldloop").expanduser()


def sha256_of(path: Path) -> str:
    """Hash of a file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def one_at_a_time(target: Path) -> Iterator[None]:
    """Holds the right to create ``target``; removes what a killed holder left half-done."""
    with ExitStack() as held:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(target.parent / f".{target.name}.lock"))
        except OSError as exc:
            raise FetchError(
                f"The cache folder {target.parent} cannot be written ({exc.strerror});"
                " set GOLDLOOP_CACHE to a folder that can."
            ) from exc
        for leftover in target.parent.glob(f".{target.name}.part-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield


@contextmanager
def prepared(target: Path) -> Iterator[Path]:
    """An empty folder that becomes ``target`` if the block succeeds, and vanishes if it does not.

    Where somebody else has put the target in the meantime, theirs stays.
    """
    try:
        part = Path(tempfile.mkdtemp(prefix=f".{target.name}.part-", dir=target.parent))
    except OSError as exc:
        raise FetchError(f"{target.parent} cannot be written: {exc.strerror}.") from exc
    try:
        yield part
        part.chmod(0o755)  # mkdtemp makes folders that nobody else can read
        try:
            part.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    except OSError as exc:
        raise FetchError(f"{target} cannot be written: {exc.strerror or exc}.") from exc
    finally:
        shutil.rmtree(part, ignore_errors=True)


# packages


def fetch_package(name: str, version: str, sha256: str, *, source: bool = False) -> Path:
    """The file of a published package, from the cache or through pip; not installed.

    pip is given the hash as well, so a wrong file is refused before anything in it can run (asking
    for a source archive makes pip read its metadata, which runs its ``setup.py``).

    Args:
        sha256: 64 hex digits of the file.
        source: the source archive instead of the wheel.
    Returns:
        The file's path in the cache; its hash was checked in this very call.
    Raises:
        FetchError: pip is missing, the package cannot be had, or its hash is wrong.
    """
    folder = cache_dir() / "packages" / f"{name}-{version}-{sha256[:12]}"
    with one_at_a_time(folder):
        if folder.is_dir():
            files = list(folder.iterdir())
            if len(files) == 1 and files[0].is_file() and sha256_of(files[0]) == sha256:
                return files[0]
            log.warning("%s is damaged; fetching it again", folder)
            shutil.rmtree(folder)
        log.info("fetching %s %s", name, version)
        with prepared(folder) as part:
            _download(name, version, sha256, part, source=source)
            files = list(part.iterdir())
            if len(files) != 1:
                raise FetchError(
                    f"pip fetched {len(files)} files for {name}=={version}; one was expected."
                )
            got = sha256_of(files[0])
            if got != sha256:
                raise wrong_hash(f"{name}=={version}", sha256, got)
        return folder / files[0].name


def wrong_hash(what: str, expected: str, got: str) -> FetchError:
    """The error of a file whose hash is not the expected one."""
    return FetchError(
        f"{what} has a wrong hash: expected sha256 {expected}, got {got}. The file was discarded;"
        " check which package index pip uses."
    )


def _download(name: str, version: str, sha256: str, folder: Path, *, source: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="goldloop-") as scratch:
        wanted = Path(scratch) / "wanted.txt"
        wanted.write_text(f"{name}=={version} --hash=sha256:{sha256}\n", encoding="utf-8")
        # -P: a file named pip.py in the current folder is not what is meant
        command = [sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", "--no-input"]
        command += ["download", "--quiet", "--no-deps", "--require-hashes", "--retries", "2"]
        if not source:
            command += ["--only-binary", ":all:"]
        elif importlib.util.find_spec("setuptools"):
            command += ["--no-binary", ":all:", "--no-build-isolation"]  # no second download
        else:
            command += ["--no-binary", name]
        command += ["--dest", str(folder), "--requirement", str(wanted)]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=DOWNLOAD_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as exc:
            raise FetchError(
                f"{name}=={version} could not be fetched within {DOWNLOAD_TIMEOUT_S:.0f} seconds;"
                " check the network connection."
            ) from exc
    if done.returncode:
        raise _pip_failure(f"{name}=={version}", sha256, done.stdout + done.stderr)


def _pip_failure(package: str, sha256: str, said: str) -> FetchError:
    if "No module named pip" in said:
        return FetchError(
            f"{package} is fetched with pip, which {sys.executable} lacks;"
            f" run `{sys.executable} -m ensurepip`."
        )
    got = re.search(r"Got\s+([0-9a-f]{64})", said)
    if got:
        return wrong_hash(package, sha256, got[1])
    errors = [line for line in said.splitlines() if line.startswith("ERROR:")]
    reason = (errors or said.strip().splitlines() or ["no message"])[-1].removeprefix("ERROR:")
    return FetchError(
        f"{package} cannot be fetched ({reason.strip()[:300]});"
        " check the network connection and pip's settings (`pip config list`)."
    )
