"""People whose names were taken out of a campaign, so that no later answer brings them back.

The store keeps no name of theirs, only a slow hash that tells them when they answer again, and the
pseudonym that stands for them. Who knows the store and guesses a name can see that it was right.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache
from html.entities import codepoint2name
from typing import Any
from urllib.parse import quote

from sqlmodel import Session

from loop.campaign.store import Store

COMMAND, WHAT = "forget", "person"
"""How the audit trail keeps them."""
PERSONAL = frozenset(
    {
        "completed_by",
        "created_by",
        "updated_by",
        "last_created_by",
        "last_updated_by",
        "reviewed_by",
        "created_username",
        "username",
        "user",
        "email",
        "first_name",
        "last_name",
        "initials",
        "phone",
        "avatar",
        "reviewer",
    }
)
"""Fields of an answer that say who somebody is, whatever stands in them."""


class Forgotten:
    """The people of a campaign who were forgotten.

    Args:
        uid: the campaign's.
        pseudonyms: by the hash of the name.
    """

    def __init__(self, uid: str, pseudonyms: Mapping[str, str]) -> None:
        self._uid = uid
        self.pseudonyms = dict(pseudonyms)
        self._hashes: dict[str, str] = {}

    @classmethod
    def of(cls, store: Store, session: Session, campaign: str) -> Forgotten:
        """Those that the store knows of."""
        events = store.events(campaign, COMMAND, WHAT, session=session)
        return cls(
            store.campaign_uid(campaign),
            {e.detail["hash"]: e.detail["pseudonym"] for e in events},
        )

    def hash_of(self, name: str) -> str:
        """What tells a person without naming them; slow on purpose, about 0.05 s."""
        if name not in self._hashes:
            self._hashes[name] = hashlib.scrypt(
                name.casefold().encode("utf-8", "replace"),
                salt=self._uid.encode(),
                n=2**14,
                r=8,
                p=1,
                dklen=16,
            ).hex()
        return self._hashes[name]

    def pseudonym(self, name: str) -> str | None:
        """What stands for a person who was forgotten; None for everybody else."""
        return self.pseudonyms.get(self.hash_of(name)) if self.pseudonyms else None

    def remember(
        self, store: Store, session: Session, campaign: str, name: str, pseudonym: str
    ) -> None:
        """From now on the pseudonym stands for this name too, in the caller's transaction."""
        if self.pseudonym(name) is None:
            digest = self.hash_of(name)
            self.pseudonyms[digest] = pseudonym
            store.log(session, campaign, COMMAND, WHAT, hash=digest, pseudonym=pseudonym)

    def new_pseudonym(self, name: str, taken: Iterable[str]) -> str:
        """``person-3f2a``: of the hash, with as many digits as make it nobody else's."""
        others, digits = {*taken, *self.pseudonyms.values()}, self.hash_of(name)
        length = next(n for n in range(4, 33) if f"person-{digits[:n]}" not in others)
        return f"person-{digits[:length]}"


@lru_cache
def _pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    """Any of the names as a whole word, however it is escaped: in HTML, JSON, CSV or an address."""
    letter = r"\\u00[c-f][0-9a-f]|\\u0[1-5][0-9a-f]{2}"  # Latin, Greek and Cyrillic, in JSON
    first, second = letter.split("|")
    begins = (
        r"(?:(?<![\w@.+])|(?<=\\[nrtbf])|"  # JSON's escaped line breaks end in a letter
        rf"(?<=\\u[0-9a-f]{{4}})(?<!{first})(?<!{second}))"
    )
    # A dot before a letter goes on: ann@example.org.uk is somebody else.
    ends = rf"(?![\w@\u0300-\u036f]|\.\w|{letter})"
    words = "|".join(
        "".join(_written(c) for c in unicodedata.normalize("NFC", name)) for name in names
    )
    return re.compile(f"{begins}(?:{words}){ends}", re.IGNORECASE)


def _written(letter: str) -> str:
    """A pattern of the ways to write a letter or sign of a name."""
    if letter.isascii() and letter.isalnum():
        return letter
    if letter.isspace():
        return r"(?:\s+|&nbsp;|&#160;|&#xa0;|\\u00a0|%20|\+)"
    forms = {f"\\{letter}"} if letter.isascii() else set()  # as LaTeX and Markdown have it
    for case in {letter, letter.lower(), letter.upper()}:
        for form in (case, unicodedata.normalize("NFD", case)):
            forms |= {form, json.dumps(form)[1:-1], quote(form, safe="", errors="replace")}
        for one in case:
            forms |= {f"\\u{ord(one):04x}", f"&#{ord(one)};", f"&#x{ord(one):x};"}
            if (name := codepoint2name.get(ord(one))) is not None:
                forms.add(f"&{name};")
    forms |= {"'": {"&apos;"}, '"': {'""'}}.get(letter, set())  # XML, CSV
    return f"(?:{'|'.join(map(re.escape, sorted(forms, key=len, reverse=True)))})"


def without_name(value: Any, names: Iterable[str], pseudonym: str, *, own: bool = False) -> Any:
    """JSON values in which the names, as whole words, are the pseudonym.

    A name is also known as files write it: escaped for HTML, JSON, CSV or an address, with its
    accents apart.

    Args:
        own: it is an answer of this person: fields that say who somebody is become the pseudonym.
    """
    pattern = _pattern(tuple(sorted(names, key=len, reverse=True)))

    def clean(part: Any) -> Any:
        if isinstance(part, str):
            return pattern.sub(pseudonym, part)
        if isinstance(part, list):
            return [clean(inner) for inner in part]
        if isinstance(part, dict):
            return {
                clean(key): pseudonym
                if own and key in PERSONAL and inner is not None
                else clean(inner)
                for key, inner in part.items()
            }
        return part

    return clean(value)
