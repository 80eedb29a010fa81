"""Who is asked for which block, and when somebody else is: decisions only, no I/O and no clock.

Each wanted block is asked of one peer at a time (so that several providers share the work and nothing is
fetched twice), of a second one when the first is slow. Named providers come first; when none is left,
connected peers are asked whether they have it. Events go in through the methods, what to send comes out
of `actions`.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from p2p.ipfs.cid import Cid
from p2p.ipfs.settings import ExchangeSettings

_LATE_MEMORY = 1024
_STRIKES = 3
_LACKED_MOST = 16
_HELPFUL_MOST = 32
_TOLD_MOST = 3
_LOST_MOST = 3
"""Peers that went away in the midst of it, after which the others are asked anew."""


class Ask(enum.Enum):
    HAVE = "have"
    BLOCK = "block"
    CANCEL = "cancel"


class Delivery(enum.Enum):
    WANTED = "wanted"
    LATE = "late"
    """Asked for once and no longer needed."""
    UNSOLICITED = "unsolicited"
    """Never asked for, or the content of one that was asked for is wrong: the two look the same."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send this request to a peer."""

    peer: str
    cid: Cid
    ask: Ask


@dataclass(frozen=True, slots=True)
class Search:
    """Nobody who is known has it: find others, and say so by `WantBook.searched`."""

    cid: Cid


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Nobody can be asked any more and no search is under way, or nothing has moved for the want's timeout."""

    cid: Cid
    corrupt: bool
    """A peer that was asked sent wrong content."""


Action = Send | Search | GiveUp


@dataclass(slots=True)
class _Want:
    cid: Cid
    timeout: float
    progress: float
    candidates: dict[str, None] = field(default_factory=dict)
    asked: dict[str, float] = field(default_factory=dict)
    probing: dict[str, float] = field(default_factory=dict)
    tried: set[str] = field(default_factory=set)
    lacking: dict[str, None] = field(default_factory=dict)
    """Peers that were asked and do not have it yet."""
    told: dict[str, int] = field(default_factory=dict)
    """Peers that lacked it and said later that they have it, and how often."""
    again: dict[str, None] = field(default_factory=dict)
    """Peers that stalled or sent rubbish once: asked again when there is nobody else."""
    lost: int = 0
    """How many went away that had been asked."""
    may_search: bool = False
    search: bool | None = None
    """Not yet, under way (True), over (False)."""
    corrupt: bool = False


@dataclass(slots=True)
class _Peer:
    asked: set[Cid] = field(default_factory=set)
    late: OrderedDict[Cid, int] = field(default_factory=OrderedDict)
    """How often a block that is not needed any more may still come: a request that was taken back may have
    been answered already, and one that is made again is answered twice."""
    heard: float = float("-inf")
    brought: float = float("-inf")
    """When it last delivered a block that was wanted."""
    reached: float = float("-inf")
    """Of the blocks that it delivered the latest time of asking: what it was asked for before that, it has passed over."""
    lacked: int = 0
    """Blocks in a row that it was asked for and did not have, at most `_LACKED_MOST`: it may have parts of a DAG only."""
    strikes: int = 0
    distrusted_until: float = float("-inf")
    was_connected: bool = False


class WantBook:
    """``searches``: whether somebody carries out `Search`."""

    def __init__(self, settings: ExchangeSettings, connected: Callable[[], Collection[str]], *, searches: bool = False) -> None:
        self._settings = settings
        self._connected = connected
        self._searches = searches
        self._helpful: OrderedDict[str, float] = OrderedDict()
        self._wants: dict[Cid, _Want] = {}
        self._peers: dict[str, _Peer] = {}
        self._actions: list[Action] = []

    def __len__(self) -> int:
        return len(self._wants)

    def actions(self) -> list[Action]:
        """What to do now; each is handed out once."""
        actions, self._actions = self._actions, []
        return actions

    def want(self, cid: Cid, providers: Iterable[str], timeout: float, now: float, *, search: bool = True) -> None:
        """Ask for a block; asking again adds providers and keeps the longer timeout. ``search``: if need be, strangers may be asked who has it."""
        want = self._wants.setdefault(cid, _Want(cid, timeout, now))
        want.may_search |= search and self._searches
        want.timeout = max(want.timeout, timeout)
        self._add(want, tuple(providers) or self._recently_helpful(now))
        self._assign(want, now)

    def searched(self, cid: Cid, found: Iterable[str], now: float) -> None:
        """A search is over."""
        found = tuple(found)
        for peer in found:
            self._note_helpful(peer, now)
        want = self._wants.get(cid)
        if want is not None:
            want.search = False
            self._add(want, found)
            self._assign(want, now)

    def leave(self, cid: Cid) -> None:
        """Nobody here waits for the block any more."""
        want = self._wants.pop(cid, None)
        if want is not None:
            for peer in (*want.asked, *want.probing):
                self._cancel(peer, cid)
            for peer in want.lacking:
                if peer not in want.asked:
                    self._actions.append(Send(peer, cid, Ask.CANCEL))  # it would say, or send it, when it has it

    def heard(self, peer: str, now: float) -> None:
        """Bytes arrived from a peer that is asked for something."""
        if peer in self._peers:
            self._peers[peer].heard = now

    def trusts(self, peer: str, now: float) -> bool:
        return peer not in self._peers or self._peers[peer].distrusted_until <= now

    def have(self, peer: str, cid: Cid, now: float) -> None:
        """It answers a probe, or it got what it lacked when it was asked."""
        want = self._wants.get(cid)
        if want is None:
            return
        if want.probing.pop(peer, None) is None:
            told = want.told.get(peer, 0)
            if peer not in want.tried or peer in want.again or told >= _TOLD_MOST:
                return
            want.told[peer] = told + 1
            want.lacking.pop(peer, None)
            want.tried.discard(peer)
        want.candidates[peer] = None
        self._assign(want, now)

    def dont_have(self, peer: str, cid: Cid, now: float) -> None:
        want = self._wants.get(cid)
        if want is not None and (peer in want.asked or peer in want.probing):
            state = self._peer(peer)
            state.lacked = min(_LACKED_MOST, state.lacked + (peer in want.asked))
            self._drop(want, peer)
            want.lacking[peer] = None
            self._count_late(state, cid, 1)  # some send it as soon as they have it
            self._assign(want, now)
            self._fill(now)

    def delivered(self, peer: str, cid: Cid, now: float) -> Delivery:
        """A block with this content arrived."""
        state = self._peer(peer)
        want = self._wants.get(cid)
        if cid not in state.asked and cid not in state.late and (want is None or peer not in want.probing):
            self.refused(peer, now)
            return Delivery.UNSOLICITED
        if cid not in state.asked:
            self._count_late(state, cid, -1)
        if want is None:
            return Delivery.LATE
        state.reached = max(state.reached, want.asked.pop(peer, state.reached))
        want.probing.pop(peer, None)
        state.asked.discard(cid)
        state.brought = now
        state.lacked //= 2
        if peer in self._helpful:
            self._note_helpful(peer, now)
        self.leave(cid)
        self._fill(now)
        return Delivery.WANTED

    def down(self, peer: str, now: float) -> None:
        """A peer cannot be reached."""
        self._peer(peer).was_connected = False
        for want in list(self._wants.values()):
            want.lacking.pop(peer, None)
            if peer in want.asked or peer in want.probing or peer in want.candidates:
                was_asked = peer in want.asked
                self._drop(want, peer)
                want.again.pop(peer, None)
                if was_asked and want.lost < _LOST_MOST:
                    want.lost += 1
                    want.tried = {peer, *want.again}  # who lacked the block before may have got it, from that very peer perhaps
                self._assign(want, now)

    def refused(self, peer: str, now: float) -> None:
        """The peer sent a block that cannot be what it was asked for; the third time it is not asked any
        more for a while. Blocks that it was asked for are asked of others first."""
        state = self._peer(peer)
        state.strikes += 1
        if state.strikes >= _STRIKES:
            state.strikes = 0
            state.distrusted_until = now + self._settings.distrust
        for want in list(self._wants.values()):
            if peer in want.asked or peer in want.probing:
                want.corrupt = want.corrupt or peer in want.asked
                self._drop(want, peer, again=True)
                self._cancel(peer, want.cid)
                self._assign(want, now)

    def tick(self, now: float) -> None:
        """Deadlines."""
        connected = self._connected()
        for name, peer in list(self._peers.items()):
            if name in connected:
                peer.was_connected = True
            elif peer.was_connected:
                self.down(name, now)
        for want in list(self._wants.values()):
            self._tick_want(want, now)
        self._forget_idle_peers(connected, now)

    def _tick_want(self, want: _Want, now: float) -> None:
        for peer, since in (*want.asked.items(), *want.probing.items()):
            quiet = now - max(since, self._peer(peer).heard)
            if quiet > self._settings.stall or now - since > self._settings.patience:
                self._drop(want, peer, again=peer in want.asked)
                self._cancel(peer, want.cid)
        moving = [self._peer(peer).heard for peer in (*want.asked, *want.candidates)]
        want.progress = max((want.progress, *moving))
        if now - want.progress > want.timeout:
            self._give_up(want)
        elif self._is_slow(want, now):
            self._ask_somebody(want, now)
        else:
            self._assign(want, now)

    def _is_slow(self, want: _Want, now: float) -> bool:
        """Whether the only one that is asked brings nothing, or brings later ones first. Who works through what it was asked for before is
        not slow: on a busy machine, all would be, and everything would be fetched twice."""
        if len(want.asked) != 1:
            return False
        ((name, since),) = want.asked.items()
        peer = self._peer(name)
        return now - (since if since < peer.reached else max(since, peer.brought)) > self._settings.hedge

    def _assign(self, want: _Want, now: float) -> None:
        """See to it that somebody is asked, or give up."""
        if want.asked or self._ask_somebody(want, now):
            return
        if any(self.trusts(peer, now) for peer in want.candidates) or want.probing:
            return  # their windows are full, or an answer is on its way
        if self._probe(want, now):
            return
        if want.search is None and want.may_search:
            want.search = True
            self._actions.append(Search(want.cid))
        again = [peer for peer in want.again if self.trusts(peer, now)]
        if again:
            want.again.clear()
            want.tried.difference_update(again)
            want.candidates.update(dict.fromkeys(again))
            self._ask_somebody(want, now)
        elif want.cid in self._wants and not want.search:
            self._give_up(want)

    def _add(self, want: _Want, peers: Iterable[str]) -> None:
        for peer in peers:
            if peer not in want.tried and peer not in want.asked:
                want.candidates[peer] = None

    def _recently_helpful(self, now: float) -> tuple[str, ...]:
        return tuple(peer for peer, at in self._helpful.items() if at + self._settings.helpful > now)

    def _note_helpful(self, peer: str, now: float) -> None:
        self._helpful.pop(peer, None)
        self._helpful[peer] = now
        if len(self._helpful) > _HELPFUL_MOST:
            self._helpful.popitem(last=False)

    def _ask_somebody(self, want: _Want, now: float) -> bool:
        free = [p for p in want.candidates if self.trusts(p, now) and len(self._peer(p).asked) < self._settings.window]
        if not free:
            return False
        peer = min(free, key=lambda name: len(self._peer(name).asked) + (0 if name in want.told else self._peer(name).lacked))
        del want.candidates[peer]
        want.asked[peer] = now
        self._peer(peer).asked.add(want.cid)
        self._actions.append(Send(peer, want.cid, Ask.BLOCK))
        return True

    def _probe(self, want: _Want, now: float) -> bool:
        others = [p for p in self._connected() if p not in want.tried and p not in want.again and self.trusts(p, now)]
        for peer in others[: self._settings.probe_peers]:
            self._peer(peer)
            want.probing[peer] = now
            self._actions.append(Send(peer, want.cid, Ask.HAVE))
        return bool(others)

    def _fill(self, now: float) -> None:
        """A place in a window is free."""
        for want in list(self._wants.values()):
            if not want.asked:
                self._assign(want, now)

    def _drop(self, want: _Want, peer: str, *, again: bool = False) -> None:
        """The peer does not count for this want any more."""
        want.candidates.pop(peer, None)
        want.asked.pop(peer, None)
        want.probing.pop(peer, None)
        want.tried.add(peer)
        self._peer(peer).asked.discard(want.cid)
        if again:
            want.again[peer] = None

    def _give_up(self, want: _Want) -> None:
        self.leave(want.cid)
        self._actions.append(GiveUp(want.cid, want.corrupt))

    def _cancel(self, peer: str, cid: Cid) -> None:
        state = self._peer(peer)
        state.asked.discard(cid)
        self._count_late(state, cid, 1)
        self._actions.append(Send(peer, cid, Ask.CANCEL))

    def _count_late(self, state: _Peer, cid: Cid, change: int) -> None:
        count = state.late.pop(cid, 0) + change
        if count > 0:
            state.late[cid] = count
        if len(state.late) > _LATE_MEMORY:
            state.late.popitem(last=False)

    def _peer(self, peer: str) -> _Peer:
        return self._peers.setdefault(peer, _Peer())

    def _forget_idle_peers(self, connected: Collection[str], now: float) -> None:
        for name, peer in list(self._peers.items()):
            if name not in connected and not peer.asked and peer.distrusted_until <= now and not self._mentions(name):
                del self._peers[name]

    def _mentions(self, peer: str) -> bool:
        return any(peer in want.candidates or peer in want.asked or peer in want.probing for want in self._wants.values())
