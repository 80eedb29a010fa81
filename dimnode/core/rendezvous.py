"""An order of peers per job that every node computes alike, without asking anyone (rendezvous hashing).

When a peer comes or goes, the others keep their order: only its own share of the jobs moves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def rendezvous(job: str, peers: Iterable[str]) -> list[str]:
    """The peers, each once, by sha-256 over job and peer, the first choice first. The same for every order of ``peers``."""
    seed = hashlib.sha256(job.encode() + b"\0")

    def weight(peer: str) -> tuple[bytes, str]:
        h = seed.copy()
        h.update(peer.encode())
        return h.digest(), peer

    return sorted(set(peers), key=weight)
