"""Who holds a seat, in ``majority`` mode: the candidate's side, a pure state machine. DESIGN.md section 5.

A seat is a lease that a majority of the electorate granted (`dimnode.core.election_voter`). Every node polls the voters; the
answers say which seats are leased, to whom, for how long, and who would take one.

- A lease counts from when the poll was sent, ``lease`` (1 - ``drift``) seconds by this node's clock, on a majority, and is
  renewed every ``renew``. By any clock it ends here before it ends at the voters.
- A seat is vacant if a majority of the voters says so. Of those that would take one, the first by the hash of their peer
  ids stands for the first vacancy, the second for the second, the others ``step`` later each: so few stand for one seat.
- Who has no majority soon gives its grants back and waits a random time: votes that were split are not split for ever.
- A holder renews before anybody may stand: joiners displace nobody. Nothing else takes a seat from its holder but its own
  silence, its release, or a gap in its ticks.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import msgspec

from dimnode.core.election_majority_types import ExchangeLists, MajorityAction, SendPoll, Settled
from dimnode.core.election_terms import sane_leap
from dimnode.core.election_types import ElectionSettings, Lost, Reason, Won, pool_order
from dimnode.core.electorate import majority, quorum, tag
from dimnode.domain.node import Seat
from dimnode.domain.voting import Electorate, Poll, Vote


@dataclass(frozen=True, slots=True)
class _View:
    """What a voter said, and when."""

    at: float
    vote: Vote


@dataclass(slots=True)
class _Round:
    """One poll that asked for a seat."""

    sent: float
    yes: set[str] = field(default_factory=set[str])
    no: set[str] = field(default_factory=set[str])


class MajorityElection:
    """One node's candidate. Call `tick` every ``renew`` / 3, and at once when it is `urgent`; do what it says."""

    def __init__(
        self, settings: ElectionSettings, me: str, boot: str, *, n: int, now: float, rng: random.Random, eligible: bool = True
    ) -> None:
        """``n``: the highest term that this node remembers."""
        self.settings = settings
        self.me = me
        self.boot = boot
        self.n = n
        self.eligible = eligible and (not settings.allow or me in settings.allow)
        self.refused = 0
        """Votes that make no sense."""
        self._rng = rng
        self._listed: Electorate | None = None
        self._tag = ""
        self._settled = False
        self._stored: set[str] = set()
        """Voters of the version before that have this one."""
        self._views: dict[str, _View] = {}
        self._rounds: dict[int, _Round] = {}
        self._held: Seat | None = None
        self._until = 0.0
        """End of the lease of the seat that is held."""
        self._asked: Seat | None = None
        self._asked_since = 0.0
        self._ballot = 0
        """Under which that seat is asked for: its term, or a higher one."""
        self._vacant_since: dict[int, float] = {}
        self._address = ("", False)
        self._jobs = 0
        self._members = 0
        self._seq = 0
        self._tick_at = now
        self._polled_at = now - settings.renew
        self._stand_at = now
        self._resting_until = now
        self._hurry = False
        self._pending: list[MajorityAction] = []

    # --- what the node tells --------------------------------------------------------------------

    def electorate(self, listed: Electorate, *, settled: bool) -> None:
        """The list that this node has now. Grants under another are not counted with new ones."""
        if listed != self._listed:
            self._rounds.clear()
            self._stored.clear()
            self._views = {p: v for p, v in self._views.items() if p in listed.voters}
            self._hurry = True
        self._listed, self._tag, self._settled = listed, tag(listed), settled

    def advertise(self, grpc: str, local_only: bool) -> None:
        """The address of the orchestrator API that polls carry."""
        self._address = (grpc, local_only)
        if self._held is not None:
            self._held = self._dressed(self._held)
            self._hurry = True

    def tell_load(self, jobs: int) -> None:
        """Unfinished jobs that this node drives: told with the next poll."""
        self._jobs = jobs
        if self._held is not None:
            self._held = self._dressed(self._held)

    def members(self, count: int) -> None:
        """Nodes that the swarm has: in a large one those that are not in line poll seldom."""
        self._members = count

    # --- what happened --------------------------------------------------------------------------

    def tick(self, now: float) -> list[MajorityAction]:
        """Time has passed."""
        self._mind_time(now)
        if self._listed is None:
            return self._flush()
        if self._held is None:
            self._consider(now)
        if self._hurry or now - self._polled_at >= self._every(now):
            self._poll(now)
        return self._flush()

    def on_vote(self, vote: Vote, now: float) -> list[MajorityAction]:
        """The answer of ``vote.voter``, who is authenticated."""
        self._mind_time(now)
        listed = self._listed
        if listed is None or (vote.voter not in listed.voters and vote.voter not in listed.previous):
            return self._flush()
        if not sane_leap(self.n, vote.n, self.settings.max_leap):
            self.refused += 1
            return self._flush()
        self.n = max(self.n, vote.n)
        if (vote.version, vote.tag) != (listed.version, self._tag):
            self._pending.append(ExchangeLists(vote.voter))
        else:
            self._learn_settled(listed, vote)
        if vote.voter in listed.voters:
            known = self._views.get(vote.voter)
            if known is None or vote.seq > known.vote.seq:
                self._views[vote.voter] = _View(now, vote)
            self._count(listed, vote, now)
        return self._flush()

    def release(self, now: float) -> list[MajorityAction]:
        """Give the seat up and stand for none for ``released`` seconds."""
        self._mind_time(now)
        self._resting_until = now + self.settings.released
        held = self._held is not None or self._asked is not None
        self._drop("released")
        self._ask_no_more()
        if held and self._listed is not None:
            self._poll(now)
        return self._flush()

    # --- what is so -----------------------------------------------------------------------------

    @property
    def urgent(self) -> bool:
        """`tick` has something to do at once."""
        return self._hurry or bool(self._pending)

    @property
    def expires(self) -> float | None:
        """When the seat that is held is lost unless it is renewed."""
        return self._until if self._held is not None else None

    def mine(self, now: float) -> Seat | None:
        """The seat that this node holds: by the clock, whether or not it had time to notice."""
        return self._held if now < self._until else None

    def seats(self, now: float) -> tuple[Seat, ...]:
        """Holders by seat number, the own seat included: of whom any voter says that their lease is not over."""
        best: dict[int, tuple[int, float, Seat]] = {}
        for view in self._views.values():
            for lease in view.vote.leases:
                mine = (lease.seat.peer, lease.seat.boot) == (self.me, self.boot)
                if lease.held and not mine and now < view.at + lease.left:
                    found = (lease.seat.n, view.at, lease.seat)
                    best[lease.seat.seat] = max(best.get(lease.seat.seat, found), found, key=lambda f: f[:2])
        if (held := self.mine(now)) is not None:
            best[held.seat] = (held.n, now, held)
        return tuple(best[i][2] for i in sorted(best))

    def sees_majority(self, now: float) -> bool:
        """Whether enough voters answered lately to elect somebody."""
        return self._listed is not None and quorum(self._listed, self._fresh(now).keys(), settled=self._settled)

    # --- the seat that is held ------------------------------------------------------------------

    def _mind_time(self, now: float) -> None:
        """The lease may be over, or this node slept: whatever it believed is old."""
        slept = now - self._tick_at > self.settings.pause
        self._tick_at = now
        if self._held is not None and now >= self._until:
            self._drop("expired")
        if slept:
            self._drop("pause")
            self._ask_no_more()
            self._views.clear()
            self._vacant_since.clear()
            self._hurry = True

    def _drop(self, reason: Reason) -> None:
        seat, self._held = self._held, None
        if seat is not None:
            self._until = 0.0
            self._ask_no_more()
            self._pending.append(Lost(seat, reason))

    def _ask_no_more(self) -> None:
        """No grant of before counts from now on, so that the voters may be told that none is needed."""
        self._asked = None
        self._rounds.clear()
        self._vacant_since.clear()

    def _count(self, listed: Electorate, vote: Vote, now: float) -> None:
        round_ = self._rounds.get(vote.seq)
        seat = self._held or self._asked
        if round_ is None or seat is None:
            return
        if not vote.granted:
            round_.no.add(vote.voter)
            self._overtake(vote)
            if self._held is None and not majority(listed.voters, [v for v in listed.voters if v not in round_.no]):
                self._give_back(now)
            return
        round_.yes.add(vote.voter)
        if not quorum(listed, round_.yes, settled=self._settled):
            return
        until = round_.sent + self.settings.lease * (1 - self.settings.drift)
        if self._held is not None:
            self._until = max(self._until, until)
        elif now < until:
            self._held, self._asked, self._until = self._dressed(seat), None, until
            self._hurry = True
            self._pending.append(Won(self._held))

    def _overtake(self, vote: Vote) -> None:
        """A voter that nobody else has a lease from and that refuses has promised a higher ballot to a rival who lost: the
        holder would not get it back under its own."""
        held = self._held
        if held is None or (vote.version, vote.tag) != (self._listed.version if self._listed else 0, self._tag):
            return
        rivals = (x for x in vote.leases if x.seat.seat == held.seat and (x.seat.peer, x.seat.boot) != (self.me, self.boot))
        if not any(rivals):
            self.n += 1
            self._ballot = self.n

    def _dressed(self, seat: Seat) -> Seat:
        return msgspec.structs.replace(seat, grpc=self._address[0], local_only=self._address[1], jobs=self._jobs)

    # --- standing for one -----------------------------------------------------------------------

    def _consider(self, now: float) -> None:
        if self._asked is not None:
            if now - self._asked_since >= self.settings.ask:
                self._give_back(now)
            return
        vacant = self._vacant(now)
        self._vacant_since = {i: self._vacant_since.get(i, now) for i in vacant}
        if not vacant or not self._stands(now) or now < self._stand_at:
            return
        seat, wait = self._turn(vacant, now)
        if now - self._vacant_since[seat] < wait:
            return
        self.n += 1
        self._ballot = self.n
        self._asked = Seat(seat=seat, n=self.n, peer=self.me, boot=self.boot)
        self._asked_since = now
        self._hurry = True

    def _give_back(self, now: float) -> None:
        self._ask_no_more()
        self._stand_at = now + self._rng.uniform(0.2, 1.2)
        self._hurry = True

    def _stands(self, now: float) -> bool:
        return self.eligible and self._held is None and now >= self._resting_until

    def _vacant(self, now: float) -> list[int]:
        assert self._listed is not None
        free: dict[int, list[str]] = {i: [] for i in range(self.settings.orchestrators)}
        for voter, view in self._fresh(now).items():
            taken = {x.seat.seat for x in view.vote.leases if now < view.at + x.left and (x.seat.peer, x.seat.boot) != (self.me, self.boot)}
            for i in free.keys() - taken:
                free[i].append(voter)
        return [i for i, voters in free.items() if quorum(self._listed, voters, settled=self._settled)]

    def _turn(self, vacant: list[int], now: float) -> tuple[int, float]:
        """Which vacancy is mine, and how long it must have been one."""
        rank = self._line(now).index(self.me)
        if rank < len(vacant):
            return vacant[rank], 0.0
        return self._rng.choice(vacant), self.settings.step * (rank - len(vacant) + 1)

    def _line(self, now: float) -> list[str]:
        """Those that would take a seat, in order."""
        return sorted({self.me, *(p for view in self._fresh(now).values() for p in view.vote.standing)}, key=pool_order)

    def _fresh(self, now: float) -> dict[str, _View]:
        window = max(self.settings.suspicion, 2.5 * self._every(now)) if self._held is None else self.settings.suspicion
        return {p: v for p, v in self._views.items() if now - v.at < window}

    # --- polls ----------------------------------------------------------------------------------

    def _every(self, now: float) -> float:
        """Who is far from any seat looks seldom in a large swarm."""
        s = self.settings
        if self._held is not None or self._asked is not None or (self._stands(now) and self._near(now)):
            return s.renew
        return max(s.renew, self._members / s.observe_rate)

    def _near(self, now: float) -> bool:
        recent = (v.vote.standing for v in self._views.values() if now - v.at < self.settings.suspicion)
        line = sorted({self.me, *(p for standing in recent for p in standing)}, key=pool_order)
        return line.index(self.me) < self.settings.orchestrators + self.settings.spare

    def _poll(self, now: float) -> None:
        assert self._listed is not None
        self._hurry = False
        self._polled_at = now
        self._seq += 1
        seat = self._held or self._asked
        if seat is not None:
            self._rounds = {q: r for q, r in self._rounds.items() if now - r.sent < self.settings.lease}
            self._rounds[self._seq] = _Round(now)
        poll = Poll(
            peer=self.me,
            boot=self.boot,
            seq=self._seq,
            n=self.n,
            version=self._listed.version,
            tag=self._tag,
            ask=seat,
            ballot=self._ballot if seat is not None else 0,
            held=self._held is not None,
            standing=self._stands(now),
        )
        voters = self._listed.voters if self._settled else tuple(sorted({*self._listed.voters, *self._listed.previous}))
        self._pending.append(SendPoll(voters, poll))

    # --- the list -------------------------------------------------------------------------------

    def _learn_settled(self, listed: Electorate, vote: Vote) -> None:
        if self._settled:
            return
        if vote.voter in listed.previous:
            self._stored.add(vote.voter)
        if vote.settled or not listed.previous or majority(listed.previous, self._stored):
            self._settled = True
            self._pending.append(Settled(listed.version))

    def _flush(self) -> list[MajorityAction]:
        actions, self._pending = self._pending, []
        return actions
