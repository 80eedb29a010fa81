"""What the others told: the election's memory of their beats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from dimnode.core.election_types import ElectionSettings, claim_key
from dimnode.domain.node import Beat, Seat

CANDIDATES = frozenset({"candidate", "waiting"})
"""Stances of those in the pool that may claim a seat, now or soon."""
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


class Sight:
    """What live peers (whom I hear and who hear me) tell at one instant."""

    def __init__(self, me: str, live: Mapping[str, Peer]) -> None:
        self._me = me
        self._peers = live
        self.live = frozenset(live)

    @cached_property
    def held(self) -> dict[str, Seat]:
        """Peer -> the claim by its own word."""
        return {p: v.claim for p, v in sorted(self._peers.items()) if v.claim is not None}

    @cached_property
    def free(self) -> dict[str, int]:
        """Candidate without a seat -> its reach, by its own word."""
        return {p: v.beat.reach for p, v in self._peers.items() if v.claim is None and v.beat.stance in CANDIDATES}

    @cached_property
    def waiting(self) -> frozenset[str]:
        """Those of `free` that claim nothing yet."""
        return frozenset(p for p in self.free if self._peers[p].beat.stance == "waiting")

    @cached_property
    def spare(self) -> int:
        """The highest reach of a candidate, by hearsay."""
        return max((v.beat.spare for v in self._peers.values()), default=0)

    @cached_property
    def claims(self) -> tuple[Seat, ...]:
        """Claims of others; a holder's own word beats hearsay about it. Observers hear less often than others: what they
        say counts where nobody else speaks."""
        best: dict[str, Seat] = {}
        first_hand = [v for v in self._peers.values() if v.claim is not None or v.beat.stance in CANDIDATES]
        for v in first_hand or self._peers.values():
            for c in v.vouch:
                if c.peer != self._me and c.peer not in self.live and (c.peer not in best or claim_key(c) > claim_key(best[c.peer])):
                    best[c.peer] = c
        return tuple({**best, **self.held}.values())


class Peers:
    """Beats by peer. Nothing here decides; ``window`` is the silence, in seconds, after which a peer is not heard."""

    def __init__(self, settings: ElectionSettings, me: str, boot: str) -> None:
        self._settings = settings
        self._me = me
        self._boot = boot
        self._peers: dict[str, Peer] = {}
        self._old_boots: dict[str, dict[str, int]] = {}
        """Peer -> boot id -> the last number heard of that life, oldest first."""
        self._doubled: dict[str, float] = {}
        """When a peer last went on speaking in an earlier life: two nodes have its identity."""
        self._sight: tuple[float, float, Sight] | None = None
        """The last one, with the time and window that it is of; until something is taken in."""

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
        self._sight = None
        self._peers[beat.peer] = Peer(beat, now, frozenset(beat.heard), claim, vouch)
        return known

    def disconnected(self, peer: str, at: float) -> bool:
        """It counts as heard no later than ``at``. False for unknown peers."""
        known = self._peers.get(peer)
        if known is not None:
            known.at = min(known.at, at)
            self._sight = None
        return known is not None

    def clear(self) -> None:
        """Old boot ids stay known: they do not come back."""
        self._sight = None
        self._peers.clear()

    def forget(self, now: float) -> list[str]:
        gone = [p for p, v in self._peers.items() if now - v.at > self._settings.forget]
        for peer in gone:
            self._sight = None
            del self._peers[peer]
            self._old_boots.pop(peer, None)
            self._doubled.pop(peer, None)
        return gone

    def heard(self, now: float, window: float) -> list[str]:
        return [p for p, v in self._peers.items() if now - v.at < window]

    def missed(self, now: float, window: float, most: int) -> set[str]:
        """Those that fell silent last, if nobody is left: the only one that I reach may not be among those I would ask anyway."""
        if self.sight(now, window).live:
            return set()
        return {p for _, p in sorted((v.at, p) for p, v in self._peers.items() if now - v.at >= window)[-most:]}

    def sight(self, now: float, window: float) -> Sight:
        if self._sight is None or self._sight[:2] != (now, window):
            # Those who hear me, and not somebody else under my name.
            peers = self._peers.items()
            mutual = {p: v for p, v in peers if now - v.at < window and self._me in v.heard and v.beat.you in ("", self._boot)}
            self._sight = (now, window, Sight(self._me, mutual))
        return self._sight[2]

    def doubled(self, peer: str, now: float, window: float) -> bool:
        """Two nodes speak under this id."""
        return now - self._doubled.get(peer, -1e9) < window

    def known_boot(self, peer: str, asker: str, now: float, window: float) -> str:
        """The boot id by which I know a peer, as ``asker`` (one of its boot ids) should hear it: if two of them speak, each
        hears of the other."""
        known = self._peers.get(peer)
        if known is None or now - known.at >= window:
            return ""
        if known.beat.boot == asker and self.doubled(peer, now, window):
            return next(reversed(self._old_boots[peer]))
        return known.beat.boot

    def doubles(self, now: float, window: float) -> tuple[str, ...]:
        """Boot ids by which others know me that are not mine, if at least half of those I hear say so: a single one may
        be mistaken."""
        heard = self.heard(now, window)
        told = tuple(you for p in heard if (you := self._peers[p].beat.you) not in ("", self._boot))
        return told if 2 * len(told) >= len(heard) else ()

    def _counts(self, claim: Seat) -> bool:
        """A seat beyond mine is that of a node with another ``orchestrators``: none of my business."""
        allow = self._settings.allow
        return (not allow or claim.peer in allow) and claim.seat < self._settings.orchestrators

    def _newer(self, beat: Beat, known: Peer, now: float, window: float) -> bool:
        if beat.boot == known.beat.boot:
            return beat.seq > known.beat.seq
        old = self._old_boots.setdefault(beat.peer, {})
        if beat.boot in old and now - known.at < window:
            if beat.seq > old[beat.boot]:
                old[beat.boot] = beat.seq
                self._doubled[beat.peer] = now
            return False
        # A late beat of an earlier life may have got here before any of the present one; whoever goes on is right.
        old.pop(beat.boot, None)
        old[known.beat.boot] = known.beat.seq
        for boot in list(old)[:-_OLD_BOOTS]:
            del old[boot]
        return True


class StaleBeat(Exception):
    """Not newer than what is known."""
