"""What the others told: the election's memory of their beats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dimnode.core.election_types import ElectionSettings, claim_key
from dimnode.domain.node import Beat, Seat

_OLD_BOOTS = 4
"""Earlier boot ids remembered of a peer."""


@dataclass(slots=True)
class Peer:
    """What a peer last told."""

    beat: Beat
    at: float
    """When, by my clock; moved back on a disconnect."""
    heard: frozenset[str]
    claim: Seat | None
    vouch: tuple[Seat, ...]
    you: str
    """The boot id by which it knows me; empty if it did not say."""


class Peers:
    """Beats by peer. Nothing here decides; ``window`` is the silence, in seconds, after which a peer is not heard."""

    def __init__(self, settings: ElectionSettings, me: str, boot: str) -> None:
        self._settings = settings
        self._me = me
        self._boot = boot
        self._peers: dict[str, Peer] = {}
        self._old_boots: dict[str, list[str]] = {}
        self._live: tuple[float, float, frozenset[str]] | None = None
        """The last answer of `live`, with what it was asked; until something is taken in."""

    def __len__(self) -> int:
        return len(self._peers)

    def __iter__(self) -> Iterator[str]:
        return iter(self._peers)

    def __contains__(self, peer: str) -> bool:
        return peer in self._peers

    def get(self, peer: str) -> Peer | None:
        return self._peers.get(peer)

    def room(self, peer: str) -> bool:
        return peer in self._peers or len(self._peers) < self._settings.max_peers

    def take(self, beat: Beat, now: float, window: float) -> Peer | None:
        """Remember a beat; what was known before, or None. Raises `StaleBeat`."""
        known = self._peers.get(beat.peer)
        if known is not None and not self._newer(beat, known, now, window):
            raise StaleBeat
        claim = beat.claim if beat.claim is not None and self._counts(beat.claim) else None
        vouch = tuple(v for v in beat.vouch if self._counts(v))
        you = beat.you or (known.you if known is not None and known.beat.boot == beat.boot else "")
        self._live = None
        self._peers[beat.peer] = Peer(beat, now, frozenset(beat.heard), claim, vouch, you)
        return known

    def disconnected(self, peer: str, at: float) -> bool:
        """It counts as heard no later than ``at``. False for unknown peers."""
        known = self._peers.get(peer)
        if known is not None:
            known.at = min(known.at, at)
            self._live = None
        return known is not None

    def clear(self) -> None:
        """Old boot ids stay known: they do not come back."""
        self._live = None
        self._peers.clear()

    def forget(self, now: float) -> list[str]:
        gone = [p for p, v in self._peers.items() if now - v.at > self._settings.forget]
        for peer in gone:
            self._live = None
            del self._peers[peer]
            self._old_boots.pop(peer, None)
        return gone

    def heard(self, now: float, window: float) -> list[str]:
        return [p for p, v in self._peers.items() if now - v.at < window]

    def live(self, now: float, window: float) -> frozenset[str]:
        """Those whom I hear and who hear me, and not somebody else under my name."""
        if self._live is None or self._live[:2] != (now, window):
            found = (p for p, v in self._peers.items() if now - v.at < window and self._me in v.heard and v.you in ("", self._boot))
            self._live = (now, window, frozenset(found))
        return self._live[2]

    def held(self, live: frozenset[str]) -> dict[str, Seat]:
        """Peer -> the claim by its own word."""
        return {p: claim for p in sorted(live) if (claim := self._peers[p].claim) is not None}

    def free_reach(self, live: frozenset[str]) -> dict[str, int]:
        """Candidate without a seat -> its reach, by its own word."""
        known = {p: self._peers[p] for p in live}
        return {p: v.beat.reach for p, v in known.items() if v.claim is None and v.beat.stance == "candidate"}

    def told_spare(self, live: frozenset[str]) -> int:
        """The highest reach of a candidate, by hearsay."""
        return max((self._peers[p].beat.spare for p in live), default=0)

    def doubles(self, now: float, window: float) -> tuple[str, ...]:
        """Boot ids by which others know me that are not mine, if at least half of those I hear say so: a single one may
        be mistaken."""
        heard = self.heard(now, window)
        told = tuple(you for p in heard if (you := self._peers[p].you) not in ("", self._boot))
        return told if 2 * len(told) >= len(heard) else ()

    def claims(self, live: frozenset[str]) -> list[Seat]:
        """Claims of others, by live peers' word; a holder's own word beats hearsay about it."""
        best: dict[str, Seat] = {}
        for p in live:
            for c in self._peers[p].vouch:
                if c.peer != self._me and c.peer not in live and (c.peer not in best or claim_key(c) > claim_key(best[c.peer])):
                    best[c.peer] = c
        for p in live:
            claim = self._peers[p].claim
            if claim is not None:
                best[p] = claim
        return list(best.values())

    def _counts(self, claim: Seat) -> bool:
        """A seat beyond mine is that of a node with another ``orchestrators``: none of my business."""
        allow = self._settings.allow
        return (not allow or claim.peer in allow) and claim.seat < self._settings.orchestrators

    def _newer(self, beat: Beat, known: Peer, now: float, window: float) -> bool:
        if beat.boot == known.beat.boot:
            return beat.seq > known.beat.seq
        old = self._old_boots.setdefault(beat.peer, [])
        if beat.boot in old and now - known.at < window:
            return False
        # A late beat of an earlier life may have got here before any of the present one; whoever goes on is right.
        old.append(known.beat.boot)
        del old[:-_OLD_BOOTS]
        return True


class StaleBeat(Exception):
    """Not newer than what is known."""
