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
- The pool's rank r claims the r-th vacancy after one beat, at once if the holder itself gave the seat up; ranks beyond the
  vacancies wait ``step`` longer each. Who has been here for a while does not wait for those who have just come.
- A seat is for a node that others can reach: one with less than half the links of a candidate gives way, and claims
  last. It is a preference, not a condition: where nobody is well connected, somebody still holds the seats.
- A claim takes effect once its term is on disk: `PersistTerm` out, `persisted` in.
- A gap in my own ticks (pause, suspension) drops the seat: others had to assume that I died.
- A beat of my own id with an unknown boot id: somebody copied this node's disk. The seat is dropped and none is claimed; if
  it goes on, one of the two ends (`dimnode.core.election_clones`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from dimnode.core.election_clones import Clones
from dimnode.core.election_peers import CANDIDATES, Peers, Sight, StaleBeat
from dimnode.core.election_pool import Pool, far_below
from dimnode.core.election_terms import sane_leap
from dimnode.core.election_types import (
    Action,
    Duplicate,
    ElectionSettings,
    ElectionStatistics,
    Lost,
    PersistTerm,
    Quarantined,
    Reason,
    SendBeat,
    Start,
    Won,
    claim_key,
)
from dimnode.domain.node import Beat, Seat


class Election:
    """One node's part. Call `tick` every ``beat / 2``, and at once when it is `urgent`; do what it says."""

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
        self._peers = Peers(settings, me, boot)
        self._pool = Pool(settings, me, self._peers, eligible=self.eligible)
        self._clones = Clones(settings, boot, now)
        self._claim: Seat | None = None
        self._claiming: Seat | None = None
        self._address = ("", False)
        self._jobs = 0
        self._seq = 0
        self._tick_at = now
        self._told: dict[str, float] = {}
        self._vacant_since: dict[int, float] = {}
        self._vouched: frozenset[str] = frozenset()
        self._outdone_since: float | None = None
        self._support_at = now
        self._pending: list[Action] = []
        self._hurry = False
        self._alone = start == "alone"
        self._joining = start != "alone"
        self._wait = {"alone": 0.0, "lan": settings.lan_wait, "join": settings.join_wait}[start]
        self._quiet = now + self._wait
        self._released_until = now

    def resume(self, n: int, now: float, boots: Iterable[str] = ()) -> None:
        """Begin now, with the persisted term and the boot ids of earlier starts: for a shell that reads its disk after
        making this."""
        self.n = max(self.n, n)
        self._clones.begin(boots, now)
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
        self._pool.set_others(frozenset(p for p in eligible if p != self.me and self._allowed(p)))

    # --- what happened --------------------------------------------------------------------------

    def on_beat(self, beat: Beat, now: float) -> bool:
        """Take in a beat whose sender is known to be ``beat.peer``. False if it was stale or refused."""
        self._mind_gap(now)
        if beat.peer == self.me:
            self._sign(beat.boot, now)
            return False
        if not self._sound(beat):
            self.statistics.refused += 1
            return False
        try:
            before = self._peers.take(beat, now, self._window())
        except StaleBeat:
            self.statistics.stale += 1
            return False
        self.statistics.beats += 1
        self.n = max(self.n, beat.n)
        self._pool.heard(beat.peer)
        if before is not None and before.claim is not None and beat.claim is None:
            # The holder itself gave it up: nobody has to wait whether it comes back.
            self._vacant_since.setdefault(before.claim.seat, now - self.settings.beat)
            self._hurry = True
        if before is not None and {c.peer for c in before.vouch} - {c.peer for c in beat.vouch}:
            self._hurry = True  # theirs may have been the last word for a holder
        if self._joining and self.me in beat.heard:
            self._joining = False
            self._quiet = now + self.settings.contact_wait
        return True

    def on_boot(self, boot: str, now: float) -> None:
        """A heartbeat of my own identity with this boot id was seen; it may be old."""
        self._sign(boot, now, old=True)

    def on_disconnect(self, peer: str, now: float) -> None:
        """The connection broke: unless the peer is heard again very soon, it is not live."""
        at = now - self._window() + self.settings.disconnect_grace
        if not self._peers.disconnected(peer, at):
            self._pool.disconnected(peer, at)

    def persisted(self, n: int, now: float) -> list[Action]:
        """The term of my claim is on disk: the claim takes effect if the seat is still to be had."""
        self._mind_gap(now)
        claim, self._claiming = self._claiming, None
        if claim is None or claim.n != n or now < self._quiet or self._resting(now):
            return []
        if any(c.seat == claim.seat for c in self._claims(now)):
            return []
        self._claim = msgspec.structs.replace(claim, grpc=self._address[0], local_only=self._address[1], jobs=self._jobs)
        self._vacant_since.clear()
        self._outdone_since = None
        self._support_at = now
        self._told.clear()
        return [Won(self._claim), *self._send(now)]

    def not_persisted(self, now: float) -> None:
        """The term could not be written (disk full, say): no claim; try again after ``suspicion``."""
        self._claiming = None
        self._quiet = max(self._quiet, now + self.settings.suspicion)

    def tick(self, now: float) -> list[Action]:
        """Time has passed."""
        self._hurry = False
        if self._mind_gap(now):
            return self._flush() + self._send(now)
        self._tick_at = now
        for peer in self._peers.forget(now):
            self._told.pop(peer, None)
        self._look_for_double(now)
        actions = self._defend(now) if self._claim is not None else self._consider(now)
        return self._flush() + actions + self._send(now)

    def release(self, now: float) -> list[Action]:
        """Give the seat up and claim none for ``released`` seconds."""
        self._mind_gap(now)
        self._released_until = now + self.settings.released
        self._claiming = None
        self._drop("released")
        actions = self._flush()
        if actions:
            self._told.clear()
            actions += self._send(now)
        return actions

    # --- what is so -----------------------------------------------------------------------------

    @property
    def urgent(self) -> bool:
        """`tick` has something to do at once."""
        return self._hurry or bool(self._pending)

    def answer(self, beat: Beat, now: float) -> Beat:
        """My answer to a peer's beat."""
        self._mind_gap(now)
        self._told[beat.peer] = now
        return self._beat(now, (beat.peer,), self._peers.known_boot(beat.peer, beat.boot, now, self._window()))

    def mine(self) -> Seat | None:
        return self._claim

    def live(self, now: float) -> frozenset[str]:
        """Peers that I hear and that hear me."""
        return self._sight(now).live

    def seats(self, now: float) -> tuple[Seat, ...]:
        """Present holders by seat number, the own seat included."""
        best: dict[int, Seat] = {}
        for c in (*self._claims(now), *([self._claim] if self._claim else [])):
            if c.seat not in best or claim_key(c) > claim_key(best[c.seat]):
                best[c.seat] = c
        return tuple(best[i] for i in sorted(best))

    def pool(self) -> tuple[str, ...]:
        """The pool as of the last tick."""
        return self._pool.now

    # --- decisions ------------------------------------------------------------------------------

    def _mind_gap(self, now: float) -> bool:
        """Whether this node slept. What woke it may be a beat, before any tick: its answer must not hold a claim that
        others had to give up as dead, and that would still win against its successor's."""
        slept = now - self._tick_at > self.settings.pause
        if slept:
            self._tick_at = now
            self._peers.clear()
            self._vacant_since.clear()
            self._told.clear()
            self._pool.clear_asked()
            self._claiming = None
            self._joining = False
            self._quiet = max(self._quiet, now + self.settings.suspicion)
            self._drop("pause")
        return slept

    def _drop(self, reason: Reason) -> None:
        seat, self._claim = self._claim, None
        if seat is not None:
            self._vacant_since.clear()
            self._pending.append(Lost(seat, reason))

    def _flush(self) -> list[Action]:
        actions, self._pending = self._pending, []
        return actions

    def _defend(self, now: float) -> list[Action]:
        assert self._claim is not None
        rivals = [c for c in self._claims(now) if c.seat == self._claim.seat]
        if not rivals:
            self._weigh(now)
            self._give_way(now)
        elif any(claim_key(c) > claim_key(self._claim) for c in rivals):
            self._quiet = now + 2 * self.settings.beat
            self._told.clear()
            self._drop("displaced")
        return self._flush()

    def _weigh(self, now: float) -> None:
        """Support outlasts a link that flaps. It does not outlast a cut: whoever comes back from one finds a successor."""
        assert self._claim is not None
        count = len(self.live(now)) + 1
        if count >= self._claim.support or now - self._support_at > self.settings.support_kept:
            self._support_at = now
            if count != self._claim.support:
                self._claim = msgspec.structs.replace(self._claim, support=count)

    def _give_way(self, now: float) -> None:
        """A holder that most others cannot reach is of little use. One seat after the other looks: the first that
        gives way may have been the only one that a better candidate was waiting for."""
        assert self._claim is not None
        if not far_below(self._reach(now), self._best_reach(now)):
            self._outdone_since = None
            return
        if self._outdone_since is None:
            self._outdone_since = now
        if now - self._outdone_since >= self.settings.unreached + 2 * self.settings.step * self._claim.seat:
            self._told.clear()
            self._drop("unreached")

    def _consider(self, now: float) -> list[Action]:
        self._update_pool(now)
        if not self.eligible or self._claiming is not None or now < self._quiet or self._resting(now):
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
        if self._alone and not self._peers and not self._pool.others:
            return vacant[0], 0.0
        if self.me not in self._pool:
            return None, 0.0
        best = self._best_reach(now)
        if far_below(self._reach(now), best):
            return vacant[0], self.settings.beat + self.settings.step * self._pool.size
        sight = self._sight(now)
        # Who has just come claims nothing yet: who has been here for a while does not wait for it. Those who came together do.
        late = sight.waiting if now - self._quiet >= self.settings.suspicion else frozenset[str]()
        standing = {p for p, reach in sight.free.items() if p not in holders | late and not far_below(reach, best)}
        rank = [p for p in self._pool.now if p == self.me or p in standing].index(self.me)
        if rank < len(vacant):
            return vacant[rank], self.settings.beat
        return vacant[0], self.settings.beat + self.settings.step * (rank - len(vacant) + 1)

    def _resting(self, now: float) -> bool:
        return now < self._released_until or self._clones.quarantined(now)

    # --- how well connected ---------------------------------------------------------------------

    def _reach(self, now: float) -> int:
        """How many of seats and pool are live."""
        return len(self.live(now) & (self._pool.core() | {c.peer for c in self._claims(now)}))

    def _best_reach(self, now: float) -> int:
        """The highest that a candidate without a seat has, by its own word or that of a live peer."""
        sight = self._sight(now)
        return max(sight.spare, *sight.free.values(), 0)

    def _vouching(self, now: float) -> dict[str, Seat]:
        """Claims of my live peers; not by the long window of a large swarm's observer, who would vouch for the dead."""
        return self._peers.sight(now, self.settings.suspicion).held if self._observer() else self._sight(now).held

    def _known_spare(self, now: float) -> int:
        """What I tell of candidates is first-hand, or hearsay would outlive them; an observer hears holders only, and passes
        on what they say."""
        sight = self._sight(now)
        return max(sight.spare if self._observer() else 0, *sight.free.values(), 0)

    # --- others with my identity ----------------------------------------------------------------

    def _look_for_double(self, now: float) -> None:
        """Those who know me by another boot id hear somebody else under my name."""
        for boot in self._peers.doubles(now, self._window()):
            self._sign(boot, now)
        if (other := self._clones.unbearable(now)) is not None:
            self._pending.append(Duplicate(other))

    def _sign(self, boot: str, now: float, *, old: bool = False) -> None:
        if not self._clones.sign(boot, now, old=old):
            return
        self.statistics.clones += 1
        self._claiming = None
        if (other := self._clones.news()) is not None:
            self._told.clear()
            self._drop("clone")
            self._pending.append(Quarantined(other))

    # --- whom to tell ---------------------------------------------------------------------------

    def _beat(self, now: float, to: tuple[str, ...], you: str = "") -> Beat:
        """``heard`` names seats, pool and recipients only: a beat does not grow with the swarm."""
        self._seq += 1
        holders = self._sight(now).held.keys()
        reach, stance = self._reach(now), self._stance(now)
        free = self._claim is None and stance in CANDIDATES
        return Beat(
            peer=self.me,
            boot=self.boot,
            seq=self._seq,
            n=self.n,
            heard=tuple(sorted({*to, *self._pool.core(), *holders}.intersection(self._peers.heard(now, self._window())))),
            claim=self._claim,
            vouch=tuple(self._vouching(now).values()),
            stance=stance,
            reach=reach,
            spare=max(reach if free else 0, self._known_spare(now)),
            you=you,
        )

    def _stance(self, now: float) -> Literal["candidate", "waiting", "observer", "resting"]:
        if self._resting(now):
            return "resting"
        if not self.eligible or self._observer():
            return "observer"
        return "waiting" if now < self._quiet else "candidate"

    def _update_pool(self, now: float) -> None:
        self._pool.update(now, self._window(), resting=self._resting(now), reach=self._reach(now), best=self._best_reach(now))

    def _send(self, now: float) -> list[Action]:
        self._update_pool(now)
        vouched = frozenset(self._vouching(now))
        targets = self._targets(now)
        if self._vouched - vouched:
            # A holder is gone for me: as long as others do not know, they believe my last word for it.
            self._told.clear()
        self._vouched = vouched
        due = tuple(p for p in sorted(targets) if now - self._told.get(p, -1e9) >= self._every(p, now))
        if not due:
            return []
        for peer in due:
            self._told[peer] = now
            self._pool.asked(peer, now)
        beat = self._beat(now, due)
        double = [p for p in due if self._peers.doubled(p, now, self._window())]
        actions: list[Action] = []
        if single := tuple(p for p in due if p not in double):
            actions.append(SendBeat(single, beat))
        for peer in double:
            you = self._peers.known_boot(peer, "", now, self._window())
            actions.append(SendBeat((peer,), msgspec.structs.replace(beat, you=you)))
        return actions

    def _targets(self, now: float) -> set[str]:
        holders = {c.peer for c in self._claims(now)}
        released = now < self._released_until
        if self._observer() and holders and not released:
            return holders
        missed = self._peers.missed(now, self._window(), self._pool.size)
        return (self._pool.core() | holders | missed | (set(self._peers) if released else set())) - {self.me}

    def _every(self, peer: str, now: float) -> float:
        """A little less than the period, so that beats and answers that cross are not both repeated."""
        if self._pool.silent(peer, now, self._window()):
            return self.settings.probe
        if self._observer():
            return self._observe_every()
        return 0.8 * self.settings.beat

    # --- knowledge ------------------------------------------------------------------------------

    def _allowed(self, peer: str) -> bool:
        return not self.settings.allow or peer in self.settings.allow

    def _sound(self, beat: Beat) -> bool:
        if not sane_leap(self.n, beat.n, self.settings.max_leap):
            return False
        claims = [*beat.vouch, *([beat.claim] if beat.claim else [])]
        if beat.claim is not None and (beat.claim.peer, beat.claim.boot) != (beat.peer, beat.boot):
            return False
        if any(c.seat < 0 or not 0 <= c.n <= beat.n for c in claims):
            return False
        return self._peers.room(beat.peer)

    def _window(self) -> float:
        """An observer of a large swarm beats seldom, and so hears seldom."""
        return max(self.settings.suspicion, 2.5 * self._observe_every()) if self._observer() else self.settings.suspicion

    def _observer(self) -> bool:
        return self._claim is None and self.me not in self._pool

    def _observe_every(self) -> float:
        return max(self.settings.observe, (len(self._pool.others) + 1) / self.settings.observe_rate)

    def _sight(self, now: float) -> Sight:
        return self._peers.sight(now, self._window())

    def _claims(self, now: float) -> tuple[Seat, ...]:
        return self._sight(now).claims
