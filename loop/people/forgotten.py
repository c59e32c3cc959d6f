"""People whose names were taken out of a campaign, so that no later answer brings them back.

The store keeps no name of theirs, only a slow hash that tells them when they answer again, and the
pseudonym that stands for them. Who knows the store and guesses a name can see that it was right.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

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

    def new_pseudonym(self, name: str, taken: Iterable[str]) -> str:
        """``person-3f2a``: of the hash, with as many digits as make it nobody else's."""
        others, digits = {*taken, *self.pseudonyms.values()}, self.hash_of(name)
        length = next(n for n in range(4, 33) if f"person-{digits[:n]}" not in others)
        return f"person-{digits[:length]}"


def without_name(value: Any, names: Iterable[str], pseudonym: str, *, own: bool = False) -> Any:
    """JSON values in which the names, as whole words, are the pseudonym.

    Args:
        own: it is an answer of this person: fields that say who somebody is become the pseudonym.
    """
    words = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    # A dot before a letter goes on: ann@example.org.uk is somebody else.
    pattern = re.compile(rf"(?<![\w@.+])(?:{words})(?![\w@]|\.\w)", re.IGNORECASE)

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
