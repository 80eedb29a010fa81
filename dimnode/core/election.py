"""Who holds a seat, in ``available`` mode: a pure state machine. DESIGN.md section 5.

K seats, one per node at the most. Seats and a pool (the K + 3 reachable eligible nodes with the lowest hash of
their peer id) tell each other beats; everyone else observes. Safety does not hang on this: ballots fence. What
the election promises is that, once the network is stable, min(K, eligible) distinct nodes hold distinct seats,
that a holder that dies is replaced, and that joiners and flapping links displace nobody.

- A peer is *live* if it was heard within ``suspicion`` and hears me. A broken connection shortens that to
  ``disconnect_grace``.
- A seat is vacant if no live peer claims it or vouches for one that does: one broken link does not make two
  holders.
- Of two claims of one seat the lower (support, n, peer, boot) resigns; support is the largest live set of the
  tenure, so the side of more incumbents wins. It does not grow while a rival is seen: those who have just met would
  count each other's side as their own.
- The pool's rank r claims the r-th vacancy after one beat; ranks beyond the vacancies wait ``step`` longer each.
- A claim takes effect once its term is on disk: `PersistTerm` out, `persisted` in.
- A gap in my own ticks (pause, suspension) drops the seat: others had to assume that I died.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import msgspec

from dimnode.domain.node import Beat, Seat

Start = Literal["alone", "lan", "join"]
"""Nobody to find; perhaps somebody by mDNS; bootstrap peers or an invite to find."""
ClaimKey = tuple[int, int, str, str]
_MAX_N = (1 << 53) - 1


@dataclass(frozen=True, slots=True)
class ElectionSettings:
    """Times in seconds."""

    orchestrators: int = 3
    """K, the seats of the swarm."""
    spare: int = 3
    """The pool has this many more nodes than there are seats."""
    beat: float = 0.5
    observe: float = 1.0
    """Between the beats of a node outside seats and pool, at the least."""
    observe_rate: float = 200.0
    """Observers' beats per second and seat in the whole swarm: with N nodes each waits N / this."""
    suspicion: float = 2.0
    disconnect_grace: float = 0.75
    pause: float = 2.0
    """A longer gap between two ticks means that this node slept."""
    step: float = 1.0
    """Between the claims of ranks that have no vacancy of their own."""
    lan_wait: float = 2.0
    join_wait: float = 10.0
    contact_wait: float = 1.0
    """After the first two-way contact, before claiming."""
    probe: float = 2.0
    """Between beats to a pool member that does not answer."""
    forget: float = 60.0
    """After this long a silent peer is forgotten."""
    released: float = 60.0
    """After a release no seat is claimed for this long: longer than a stop may take; a node that released because it
    could not serve tries again."""
    max_leap: int = 1 << 20
    """A beat whose n is higher than mine by more is refused."""
    max_peers: int = 4096
    allow: frozenset[str] = frozenset()
    """Peers that may hold seats; empty: all eligible ones."""


@dataclass(frozen=True, slots=True)
class PersistTerm:
    """Write ``n`` to disk, then call `Election.persisted`."""

    n: int


@dataclass(frozen=True, slots=True)
class Won:
    seat: Seat


@dataclass(frozen=True, slots=True)
class Lost:
    seat: Seat
    reason: Literal["displaced", "pause", "released"]


@dataclass(frozen=True, slots=True)
class SendBeat:
    to: tuple[str, ...]
    beat: Beat


Action = PersistTerm | Won | Lost | SendBeat


@dataclass(slots=True)
class ElectionStatistics:
    beats: int = 0
    stale: int = 0
    refused: int = 0
    """Beats with an impossible claim or a leaping n, or for which there was no room."""
    clones: int = 0
    """Beats from my own id with another boot id: somebody copied this node's disk."""


@dataclass(slots=True)
class _Peer:
    """What a peer last told."""

    boot: str
    seq: int
    at: float
    """When, by my clock; moved back on a disconnect."""
    heard: frozenset[str]
    claim: Seat | None
    vouch: tuple[Seat, ...]


def claim_key(seat: Seat) -> ClaimKey:
    """Of two claims of one seat the higher stays."""
    return (seat.support, seat.n, seat.peer, seat.boot)


@lru_cache(maxsize=16384)
def pool_order(peer: str) -> bytes:
    """The pool is made of the lowest of these."""
    return hashlib.sha256(peer.encode()).digest()


class Election:
    """One node's part. Call `tick` every ``beat / 2`` and do what it says."""

    def __init__(
        self,
        settings: ElectionSettings,
        me: str,
        boot: str,
        *,
        n: int,
        now: float,
        eligible: bool = True,
        start: Start = "alone",
    ) -> None:
        """``n``: the persisted highest term of this node."""
        self.settings = settings
        self.me = me
        self.boot = boot
        self.n = n
        self.eligible = eligible and self._allowed(me)
        self.statistics = ElectionStatistics()
        self._members: tuple[str, ...] = ()
        self._candidates: frozenset[str] = frozenset({me})
        self._peers: dict[str, _Peer] = {}
        self._old_boots: dict[str, list[str]] = {}
        self._pool: tuple[str, ...] = (me,) if self.eligible else ()
        self._claim: Seat | None = None
        self._claiming: Seat | None = None
        self._address = ("", False)
        self._jobs = 0
        self._seq = 0
        self._tick_at = now
        self._told: dict[str, float] = {}
        self._asked: dict[str, float] = {}
        self._vacant_since: dict[int, float] = {}
        self._alone = start == "alone"
        self._joining = start != "alone"
        self._wait = {"alone": 0.0, "lan": settings.lan_wait, "join": settings.join_wait}[start]
        self._quiet = now + self._wait
        self._released_until = now

    def resume(self, n: int, now: float) -> None:
        """Begin now, with the persisted term: for a shell that reads its disk after making this."""
        self.n = max(self.n, n)
        self._tick_at = now
        self._quiet = now + self._wait

    # --- what the node tells --------------------------------------------------------------------

    def advertise(self, grpc: str, local_only: bool) -> None:
        """The address of the orchestrator API that claims carry."""
        self._address = (grpc, local_only)
        if self._claim is not None:
            self._claim = msgspec.structs.replace(self._claim, grpc=grpc, local_only=local_only)

    def tell_load(self, jobs: int) -> None:
        """Unfinished jobs that this node drives: told with the next beat."""
        self._jobs = jobs
        if self._claim is not None:
            self._claim = msgspec.structs.replace(self._claim, jobs=jobs)

    def members(self, eligible: Iterable[str]) -> None:
        """The peers that the registry believes alive, reachable and eligible; me or not does not matter."""
        others = {p for p in eligible if p != self.me and self._allowed(p)}
        if others != self._candidates - {self.me}:
            self._members = tuple(sorted(others, key=pool_order))
            self._candidates = frozenset(others | {self.me})
            for peer in self._asked.keys() - others:
                del self._asked[peer]

    # --- what happened --------------------------------------------------------------------------

    def on_beat(self, beat: Beat, now: float) -> bool:
        """Take in a beat whose sender is known to be ``beat.peer``. False if it was stale or refused."""
        if beat.peer == self.me:
            self.statistics.clones += beat.boot != self.boot
            return False
        if not self._sound(beat):
            self.statistics.refused += 1
            return False
        known = self._peers.get(beat.peer)
        if known is not None and not self._newer(beat, known):
            self.statistics.stale += 1
            return False
        self.statistics.beats += 1
        self.n = max(self.n, beat.n)
        vouch = tuple(v for v in beat.vouch if self._counts(v))
        claim = beat.claim if beat.claim is not None and self._counts(beat.claim) else None
        self._peers[beat.peer] = _Peer(beat.boot, beat.seq, now, frozenset(beat.heard), claim, vouch)
        self._asked.pop(beat.peer, None)
        if self._joining and self.me in beat.heard:
            self._joining = False
            self._quiet = now + self.settings.contact_wait
        return True

    def on_disconnect(self, peer: str, now: float) -> None:
        """The connection broke: unless the peer is heard again very soon, it is not live."""
        at = now - self._window() + self.settings.disconnect_grace
        known = self._peers.get(peer)
        if known is not None:
            known.at = min(known.at, at)
        elif peer in self._candidates:
            self._asked[peer] = min(self._asked.get(peer, at), at)

    def persisted(self, n: int, now: float) -> list[Action]:
        """The term of my claim is on disk: the claim takes effect if the seat is still to be had."""
        claim, self._claiming = self._claiming, None
        if claim is None or claim.n != n or now < max(self._quiet, self._released_until):
            return []
        if any(c.seat == claim.seat for c in self._claims(now)):
            return []
        self._claim = msgspec.structs.replace(claim, grpc=self._address[0], local_only=self._address[1], jobs=self._jobs)
        self._vacant_since.clear()
        self._told.clear()
        return [Won(self._claim), *self._send(now)]

    def not_persisted(self, now: float) -> None:
        """The term could not be written (disk full, say): no claim; try again after ``suspicion``."""
        self._claiming = None
        self._quiet = max(self._quiet, now + self.settings.suspicion)

    def tick(self, now: float) -> list[Action]:
        """Time has passed."""
        gap, self._tick_at = now - self._tick_at, now
        if gap > self.settings.pause:
            return self._slept(now)
        self._forget(now)
        actions = self._defend(now) if self._claim is not None else self._consider(now)
        return actions + self._send(now)

    def release(self, now: float) -> list[Action]:
        """Give the seat up and claim none for ``released`` seconds."""
        self._released_until = now + self.settings.released
        self._claiming = None
        actions = self._drop("released")
        if actions:
            self._told.clear()
            actions += self._send(now)
        return actions

    # --- what is so -----------------------------------------------------------------------------

    def beat(self, now: float, to: str) -> Beat:
        """My answer to a peer's beat."""
        self._told[to] = now
        return self._beat(now, (to,))

    def _beat(self, now: float, to: tuple[str, ...]) -> Beat:
        """``heard`` names seats, pool and recipients only: a beat does not grow with the swarm."""
        self._seq += 1
        live = self.live(now)
        relevant = {*to, *self._core(), *(p for p in live if self._peers[p].claim is not None)}
        return Beat(
            peer=self.me,
            boot=self.boot,
            seq=self._seq,
            n=self.n,
            heard=tuple(sorted(relevant.intersection(self._heard(now)))),
            claim=self._claim,
            vouch=tuple(claim for p in sorted(live) if (claim := self._peers[p].claim) is not None),
        )

    def mine(self) -> Seat | None:
        return self._claim

    def live(self, now: float) -> frozenset[str]:
        """Peers that I hear and that hear me."""
        return frozenset(p for p in self._heard(now) if self.me in self._peers[p].heard)

    def seats(self, now: float) -> tuple[Seat, ...]:
        """Present holders by seat number, the own seat included."""
        best: dict[int, Seat] = {}
        for c in (*self._claims(now), *([self._claim] if self._claim else [])):
            if c.seat not in best or claim_key(c) > claim_key(best[c.seat]):
                best[c.seat] = c
        return tuple(best[i] for i in sorted(best))

    def pool(self) -> tuple[str, ...]:
        """The pool as of the last tick."""
        return self._pool

    # --- decisions ------------------------------------------------------------------------------

    def _slept(self, now: float) -> list[Action]:
        self._peers.clear()
        self._vacant_since.clear()
        self._told.clear()
        self._asked.clear()
        self._claiming = None
        self._joining = False
        self._quiet = now + self.settings.suspicion
        return self._drop("pause") + self._send(now)

    def _drop(self, reason: Literal["displaced", "pause", "released"]) -> list[Action]:
        seat, self._claim = self._claim, None
        return [Lost(seat, reason)] if seat is not None else []

    def _defend(self, now: float) -> list[Action]:
        assert self._claim is not None
        rivals = [c for c in self._claims(now) if c.seat == self._claim.seat]
        if not rivals:
            support = max(self._claim.support, len(self.live(now)) + 1)
            if support > self._claim.support:
                self._claim = msgspec.structs.replace(self._claim, support=support)
        elif any(claim_key(c) > claim_key(self._claim) for c in rivals):
            self._vacant_since.clear()
            self._quiet = now + 2 * self.settings.beat
            self._told.clear()
            return self._drop("displaced")
        return []

    def _consider(self, now: float) -> list[Action]:
        self._update_pool(now)
        if not self.eligible or self._claiming is not None or now < max(self._quiet, self._released_until):
            return []
        claims = self._claims(now)
        filled = {c.seat for c in claims}
        vacant = [i for i in range(self.settings.orchestrators) if i not in filled]
        self._vacant_since = {i: self._vacant_since.get(i, now) for i in vacant}
        if not vacant:
            return []
        seat, wait = self._turn(vacant, {c.peer for c in claims}, now)
        if seat is None or now - self._vacant_since[seat] < wait:
            return []
        self.n += 1
        self._claiming = Seat(seat=seat, n=self.n, peer=self.me, boot=self.boot, support=len(self.live(now)) + 1)
        return [PersistTerm(self.n)]

    def _turn(self, vacant: list[int], holders: set[str], now: float) -> tuple[int | None, float]:
        """Which vacancy is mine, and how long it must have been one. None: I am not in the pool."""
        if self._alone and not self._peers and not self._members:
            return vacant[0], 0.0
        if self.me not in self._pool:
            return None, 0.0
        present = self.live(now) | {self.me}
        rank = [p for p in self._pool if p in present and p not in holders].index(self.me)
        if rank < len(vacant):
            return vacant[rank], self.settings.beat
        return vacant[0], self.settings.beat + self.settings.step * (rank - len(vacant) + 1)

    # --- whom to tell ---------------------------------------------------------------------------

    def _update_pool(self, now: float) -> None:
        """The K + spare lowest of those that are not known to be silent. Reachability is what beats show: a
        peer that was asked and did not answer in time is passed over until it is heard."""
        size = self.settings.orchestrators + self.settings.spare
        pool: list[str] = []
        for peer in self._ranked(now):
            if len(pool) == size:
                break
            if peer == self.me or not self._silent(peer, now):
                pool.append(peer)
        self._pool = tuple(pool)

    def _ranked(self, now: float) -> list[str]:
        if not self.eligible or now < self._released_until:
            return list(self._members)
        mine = pool_order(self.me)
        before = [p for p in self._members if pool_order(p) < mine]
        return [*before, self.me, *self._members[len(before) :]]

    def _silent(self, peer: str, now: float) -> bool:
        known = self._peers.get(peer)
        if known is not None:
            return now - known.at >= self._window()
        asked = self._asked.get(peer)
        return asked is not None and now - asked >= self._window()

    def _send(self, now: float) -> list[Action]:
        self._update_pool(now)
        due = tuple(p for p in self._targets(now) if now - self._told.get(p, -1e9) >= self._every(p, now))
        if not due:
            return []
        for peer in due:
            self._told[peer] = now
            if peer not in self._peers:
                self._asked.setdefault(peer, now)
        return [SendBeat(due, self._beat(now, due))]

    def _targets(self, now: float) -> list[str]:
        holders = {c.peer for c in self._claims(now)}
        released = now < self._released_until
        if self._observer() and holders and not released:
            return sorted(holders)
        return sorted((self._core() | holders | (self._peers.keys() if released else set())) - {self.me})

    def _core(self) -> set[str]:
        """The pool, and those that would be in it if they answered."""
        return {*self._pool, *self._members[: self.settings.orchestrators + self.settings.spare]}

    def _every(self, peer: str, now: float) -> float:
        """A little less than the period, so that beats and answers that cross are not both repeated."""
        if self._silent(peer, now):
            return self.settings.probe
        if self._observer():
            return self._observe_every()
        return 0.8 * self.settings.beat

    # --- knowledge ------------------------------------------------------------------------------

    def _allowed(self, peer: str) -> bool:
        return not self.settings.allow or peer in self.settings.allow

    def _counts(self, claim: Seat) -> bool:
        """A seat beyond mine is that of a node with another ``orchestrators``: none of my business."""
        return self._allowed(claim.peer) and claim.seat < self.settings.orchestrators

    def _sound(self, beat: Beat) -> bool:
        if not 0 <= beat.n <= min(self.n + self.settings.max_leap, _MAX_N):
            return False
        claims = [*beat.vouch, *([beat.claim] if beat.claim else [])]
        if beat.claim is not None and (beat.claim.peer, beat.claim.boot) != (beat.peer, beat.boot):
            return False
        if any(c.seat < 0 or not 0 <= c.n <= beat.n for c in claims):
            return False
        return beat.peer in self._peers or len(self._peers) < self.settings.max_peers

    def _newer(self, beat: Beat, known: _Peer) -> bool:
        if beat.boot == known.boot:
            return beat.seq > known.seq
        old = self._old_boots.setdefault(beat.peer, [])
        if beat.boot in old:
            return False
        old.append(known.boot)
        del old[:-4]
        return True

    def _heard(self, now: float) -> list[str]:
        window = self._window()
        return [p for p, v in self._peers.items() if now - v.at < window]

    def _window(self) -> float:
        """An observer of a large swarm beats seldom, and so hears seldom."""
        return max(self.settings.suspicion, 2.5 * self._observe_every()) if self._observer() else self.settings.suspicion

    def _observer(self) -> bool:
        return self._claim is None and self.me not in self._pool

    def _observe_every(self) -> float:
        return max(self.settings.observe, (len(self._members) + 1) / self.settings.observe_rate)

    def _claims(self, now: float) -> list[Seat]:
        """Claims of others, by live peers' word; a holder's own word beats hearsay about it."""
        live = self.live(now)
        best: dict[str, Seat] = {}
        for p in live:
            for c in self._peers[p].vouch:
                if c.peer != self.me and c.peer not in live and (c.peer not in best or claim_key(c) > claim_key(best[c.peer])):
                    best[c.peer] = c
        for p in live:
            claim = self._peers[p].claim
            if claim is not None:
                best[p] = claim
        return list(best.values())

    def _forget(self, now: float) -> None:
        for peer in [p for p, v in self._peers.items() if now - v.at > self.settings.forget]:
            del self._peers[peer]
            self._old_boots.pop(peer, None)
            self._told.pop(peer, None)
