"""Cuts a sorted sequence of keys into pieces that stay the same where the sequence does (a Prolly tree's rule).

A piece ends after a key whose own hash says so, whatever is before it. So one more key changes one piece, or cuts one in two; every
other piece, and the block that is made of it, stays what it was. Two nodes with the same keys make the same pieces.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

AVERAGE = 32
"""Keys in a piece, as a mean."""
MOST = 8 * AVERAGE
"""A piece ends here in any case, so that nobody who can choose keys makes it endless. Where this rule cuts, pieces after it are cut
otherwise until the next key whose hash ends one."""


@dataclass(frozen=True, slots=True)
class Chunk:
    first: str
    last: str
    keys: tuple[str, ...]
    fingerprint: bytes
    """Of keys and tokens: equal ones have equal content."""


def ends(key: str, level: int = 0) -> bool:
    """Whether a piece ends after this key; ``level``: of the tree, so that its levels are cut at different keys."""
    return int.from_bytes(hashlib.sha256(b"%d:" % level + key.encode()).digest()[:4], "big") % AVERAGE == 0


class Fingerprint:
    """Made key by key."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, key: str, token: bytes) -> None:
        raw = key.encode()
        self._hash.update(len(raw).to_bytes(4, "big") + raw + len(token).to_bytes(4, "big") + token)

    def digest(self) -> bytes:
        return self._hash.digest()


class Chunker:
    """Takes keys in ascending order. ``token``: what changes when what belongs to the key does."""

    def __init__(self, level: int = 0) -> None:
        self._level = level
        self._keys: list[str] = []
        self._print = Fingerprint()
        self._latest: str | None = None

    def add(self, key: str, token: bytes) -> Chunk | None:
        """The piece that this key ends. Raises `ValueError` if it does not come after the one before."""
        if self._latest is not None and key <= self._latest:
            raise ValueError("keys must come in ascending order")
        self._latest = key
        self._print.add(key, token)
        self._keys.append(key)
        return self.flush() if len(self._keys) >= MOST or ends(key, self._level) else None

    def flush(self) -> Chunk | None:
        """What is left."""
        if not self._keys:
            return None
        chunk = Chunk(self._keys[0], self._keys[-1], tuple(self._keys), self._print.digest())
        self._keys, self._print = [], Fingerprint()
        return chunk
