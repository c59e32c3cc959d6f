"""Addresses as others may see them: without passwords and keys, and without this machine's folders.

What stands in the campaign file goes into the store, the report and the log, so a secret may not
stand there. Secrets come from the environment.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote_plus

_NAMES = (
    r"(?:[\w.-]*(?:pass(?:word|wd|phrase)?|pwd|token|secret|credentials?|signature)"
    r"|(?:[\w.-]*[_-])?(?:api|access|secret|private|auth)?[_-]?key"
    r"|auth|authorization|sig)"
)
_USER = re.compile(r"^[\w+.-]+://(?!/)([^@]*)@")
_QUERY = re.compile(rf"(?:^|[?&;#\s])({_NAMES})\s*=\s*[^&;#\s]", re.IGNORECASE)
_SHOWN_USER = re.compile(r"(\w://)[^\s/@:]*:[^\s'\"]*@")
_SHOWN_QUERY = re.compile(rf"([?&;#]{_NAMES}=)[^&;#\s'\"]+", re.IGNORECASE)


def secret_in(address: str) -> str | None:
    """What secret an address holds, in words; None where it holds none.

    A user name alone is no secret for a database, whose password comes from elsewhere; in the
    address of a web server it is often a token.
    """
    if user := _USER.match(address):
        if ":" in user[1]:
            return "a password"
        if address.lower().startswith("http"):
            return "a user name or token"
    rest = re.search(r"[?#].*", address, re.DOTALL)
    if rest and (named := _QUERY.search(unquote_plus(rest[0]))):
        return f"a value for {named[1]!r}"
    return None


def names_a_secret(key: str) -> bool:
    """Whether a setting of this name holds a secret: ``api_key`` does, ``api_key_env`` not."""
    return re.fullmatch(_NAMES, key, re.IGNORECASE) is not None


def hidden(text: str) -> str:
    """The text, with what may be a secret in an address replaced by ``…``."""
    return _SHOWN_QUERY.sub(r"\1…", _SHOWN_USER.sub(r"\1…@", text))


def without_folders(name: str) -> str:
    """A file or model as a reader elsewhere knows it: of a path on this machine, the last part."""
    on_this_machine = name.startswith(("/", "~", "./", "../"))
    return Path(name).name if on_this_machine else name


def without_secrets(value: object) -> object:
    """JSON values with every string :func:`hidden`."""
    if isinstance(value, str):
        return hidden(value)
    if isinstance(value, dict):
        return {key: without_secrets(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(inner) for inner in value]
    return value
