"""One voter of mode ``majority``: a pure state machine. DESIGN.md section 5.

- For each seat it promises each ballot to one candidate (peer and boot), for ever: the promise is on disk before the grant
  leaves. The first ballot of a tenure is its term, so a (seat, term) has one holder.
- A grant is a lease: until it is over, or given back, nobody else gets the seat from this voter. The candidate counts its
  lease from when it sent the poll, and a little shorter, so it ends there before it ends here.
- After a start the leases are forgotten and the promises are not: whoever was promised a seat last has its lease anew, a
  little longer. Nobody else can have had a later one. So a restarted voter unseats nobody, and breaks no lease.
- It grants only what is asked under the very electorate that it has, and only if it is on that list.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from dimnode.core.election_majority_types import Reply
from dimnode.core.election_terms import sane_leap
from dimnode.core.election_types import ElectionSettings, pool_order
from dimnode.core.electorate import tag
from dimnode.domain.node import Seat
from dimnode.domain.voting import Electorate, Lease, Poll, Promises, Vote


@dataclass(slots=True)
class _Granted:
    seat: Seat
    ballot: int
    until: float
    held: bool


@dataclass(slots=True)
class _Heard:
    boot: str
    seq: int
    at: float
    standing: bool


class Voter:
    """``promises``: what is on disk; None if this node never voted."""

    def __init__(self, settings: ElectionSettings, me: str, promises: Promises | None, now: float) -> None:
        self.settings = settings
        self.me = me
        self.n = promises.n if promises else 0
        self.revision = 0
        """Grows with each promise."""
        self.refused = 0
        """Polls that make no sense."""
        self._promised = {s.seat: s for s in promises.seats} if promises else {}
        until = now + settings.lease * (1 + settings.drift)
        self._granted = {s.seat: _Granted(s, s.n, until, held=False) for s in self._promised.values()}
        self._heard: OrderedDict[str, _Heard] = OrderedDict()
        self._listed: Electorate | None = None
        self._tag = ""
        self._settled = False

    def electorate(self, listed: Electorate, *, settled: bool) -> None:
        """The list that this node has now. What was granted stays."""
        self._listed, self._tag, self._settled = listed, tag(listed), settled

    def promises(self) -> Promises:
        """To be written to disk."""
        return Promises(n=self.n, seats=tuple(self._promised[s] for s in sorted(self._promised)))

    def on_poll(self, poll: Poll, now: float) -> Reply:
        """From an authenticated ``poll.peer``. The vote goes out when `promises` are durable as of `Reply.revision`."""
        if not self._sound(poll):
            self.refused += 1
            return Reply(self._vote(poll, False, now))
        if not self._newest(poll, now):
            return Reply(self._vote(poll, False, now))
        self.n = max(self.n, poll.n)
        self._take_back(poll)
        if poll.ask is None or not self._may(poll, poll.ask, now):
            return Reply(self._vote(poll, False, now))
        promise = Seat(seat=poll.ask.seat, n=poll.ballot, peer=poll.peer, boot=poll.boot)
        if self._promised.get(promise.seat) != promise:
            self._promised[promise.seat] = promise
            self.revision += 1
        self._granted[promise.seat] = _Granted(poll.ask, poll.ballot, now + self.settings.lease, poll.held)
        return Reply(self._vote(poll, True, now), self.revision)

    # --- inside

    def _sound(self, poll: Poll) -> bool:
        if not sane_leap(self.n, poll.n, self.settings.max_leap) or poll.seq < 0:
            return False
        ask = poll.ask
        if ask is None:
            return True
        terms = 0 < ask.n <= poll.ballot <= poll.n
        return terms and (ask.peer, ask.boot) == (poll.peer, poll.boot) and 0 <= ask.seat < self.settings.orchestrators

    def _newest(self, poll: Poll, now: float) -> bool:
        """An older poll, overtaken on its way, says what is no longer so."""
        known = self._heard.get(poll.peer)
        if known is not None and known.boot == poll.boot and poll.seq <= known.seq:
            return False
        self._heard[poll.peer] = _Heard(poll.boot, poll.seq, now, poll.standing)
        self._heard.move_to_end(poll.peer)
        while len(self._heard) > self.settings.max_peers:
            self._heard.popitem(last=False)
        return True

    def _take_back(self, poll: Poll) -> None:
        """Whoever asks for one seat, or for none, wants no other. A poll that was sent before the grant was asked for, and
        comes late, says nothing of it: it has a lower term."""
        asked = poll.ask.seat if poll.ask is not None else None
        for seat, granted in tuple(self._granted.items()):
            mine = (granted.seat.peer, granted.seat.boot) == (poll.peer, poll.boot)
            if mine and seat != asked and poll.n >= granted.ballot:
                del self._granted[seat]

    def _may(self, poll: Poll, ask: Seat, now: float) -> bool:
        listed = self._listed
        if listed is None or self.me not in listed.voters or (poll.version, poll.tag) != (listed.version, self._tag):
            return False
        if self.settings.allow and poll.peer not in self.settings.allow:
            return False
        for granted in self._granted.values():
            mine = (granted.seat.peer, granted.seat.boot) == (poll.peer, poll.boot)
            if now < granted.until and not mine and (granted.seat.seat == ask.seat or granted.seat.peer == poll.peer):
                return False
        promised = self._promised.get(ask.seat)
        if promised is None or poll.ballot > promised.n:
            return True
        return (poll.ballot, poll.peer, poll.boot) == (promised.n, promised.peer, promised.boot)

    def _vote(self, poll: Poll, granted: bool, now: float) -> Vote:
        listed = self._listed
        leases = (Lease(seat=g.seat, left=g.until - now, held=g.held) for g in self._granted.values() if now < g.until)
        return Vote(
            voter=self.me,
            seq=poll.seq,
            granted=granted,
            n=self.n,
            version=listed.version if listed else 0,
            tag=self._tag,
            settled=self._settled,
            leases=tuple(leases),
            standing=self._standing(now),
        )

    def _standing(self, now: float) -> tuple[str, ...]:
        """The first in line: as many as could be needed at once."""
        since = now - self.settings.suspicion
        heard = [p for p, h in self._heard.items() if h.standing and h.at > since]
        return tuple(sorted(heard, key=pool_order)[: self.settings.orchestrators + self.settings.spare])
