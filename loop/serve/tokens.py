"""The secret of ``goldloop serve`` and the tokens derived from it.

Nobody can turn one token into another: one is for webhooks, one for the ML backend, one for
people. The secret lies beside the store, readable by its owner only.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from loop.campaign.config import Config
from loop.campaign.store import Store
from loop.errors import StoreError
from loop.files import write_whole

TOKEN_HEADER = "X-Goldloop-Token"  # noqa: S105 - the name of a header
BACKEND_USER = "goldloop"


@dataclass(frozen=True)
class Tokens:
    """What each kind of caller must show."""

    secret: bytes

    def __repr__(self) -> str:
        return "Tokens(…)"

    def _derived(self, purpose: str) -> str:
        digest = hmac.new(self.secret, purpose.encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")

    @cached_property
    def webhook(self) -> str:
        """Sent by Label Studio with each webhook, as a header."""
        return self._derived("webhook")

    @cached_property
    def backend(self) -> str:
        """The password of the ML backend."""
        return self._derived("ml backend")

    @cached_property
    def page(self) -> str:
        """What people type to see the progress."""
        return self._derived("page")

    @cached_property
    def metrics(self) -> str:
        """What Prometheus sends to read the metrics, and nothing else, as a bearer token."""
        return self._derived("metrics")

    @cached_property
    def cookie(self) -> str:
        """What a browser keeps once they did."""
        return self._derived("cookie")


def state_file(config: Config, store: Store) -> Path:
    """Where the secret and the last port lie: beside the store, or with the campaign's outputs."""
    url = store.engine.url
    name = f"{config.campaign.name}.serve.json"
    if url.get_backend_name() == "sqlite":
        database = Path(str(url.database))
        return database.with_name(f"{database.name}.{name}")
    return config.out / name


def load_state(path: Path) -> dict[str, Any]:
    """The secret and the last port; a new secret is made where there is none.

    Raises:
        StoreError: the file cannot be read or written, or others can read it.
    """
    try:
        if path.exists():
            if path.stat().st_mode & 0o077:
                raise StoreError(
                    f"{path} holds a secret that others can read; run `chmod 600` on it."
                )
            state = json.loads(path.read_text(encoding="utf-8"))
            bytes.fromhex(state["secret"])
            return dict(state)
        return save_state(path, {"secret": secrets.token_hex(32)})
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise StoreError(
            f"{path} cannot be used ({type(exc).__name__}); delete it to make a new secret."
        ) from exc


def save_state(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Writes the file whole, for its owner alone."""
    write_whole(path, json.dumps(state))
    return state
