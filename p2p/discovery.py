"""Whom to dial and when: bootstrap peers for ever, others while the node has too few connections.

`DialPlan` decides from events, time and a random source; `Dialer` acts.
"""

from __future__ import annotations

import logging
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

import trio

from p2p.api import NetworkError, Unreachable
from p2p.settings import DialSettings

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Target:
    """A peer that might be dialled."""

    peer: str
    addresses: dict[str, None] = field(default_factory=dict)
    """In order of preference; at most `MOST_ADDRESSES`."""
    bootstrap: bool = False
    wanted: bool = False
    """Found on the LAN: dialled whatever the number of connections."""
    failures: int = 0
    due: float = 0.0
    dialling: bool = False


MOST_ADDRESSES = 16


class DialPlan:
    """Times are seconds of any one clock."""

    def __init__(self, settings: DialSettings, rng: random.Random) -> None:
        self._settings = settings
        self._rng = rng
        self._targets: OrderedDict[str, Target] = OrderedDict()

    def mention(self, peer: str, addresses: Iterable[str], now: float, *, bootstrap: bool = False, wanted: bool = False) -> None:
        """Addresses of a peer became known (again): it is worth a try now."""
        target = self._targets.pop(peer, None) or Target(peer)
        self._targets[peer] = target
        fresh = dict.fromkeys(addresses)
        is_news = any(address not in target.addresses for address in fresh)
        target.addresses = dict.fromkeys(list(fresh | target.addresses)[:MOST_ADDRESSES])
        target.bootstrap |= bootstrap
        target.wanted |= wanted
        if is_news or (target.failures >= self._settings.known_attempts and not target.bootstrap):
            target.failures = 0
            target.due = min(target.due, now)
        self._forget()

    def _forget(self) -> None:
        while len(self._targets) > self._settings.known_peers:
            victim = next((t for t in self._targets.values() if not t.bootstrap and not t.dialling), None)
            if victim is None:
                return
            del self._targets[victim.peer]

    def addresses(self, peer: str) -> tuple[str, ...]:
        target = self._targets.get(peer)
        return tuple(target.addresses) if target else ()

    def due(self, now: float, connected: frozenset[str]) -> list[Target]:
        """What to dial now; each is then busy until `succeeded`, `failed` or `abandoned` says otherwise."""
        chosen: list[Target] = []
        busy = sum(target.dialling for target in self._targets.values())
        lacking = self._settings.target_peers - len(connected) - busy
        for target in self._candidates(connected):
            if target.due > now or busy + len(chosen) >= self._settings.at_once:
                continue
            if target.bootstrap or target.wanted or lacking > 0:
                lacking -= 1
                target.dialling = True
                chosen.append(target)
        return chosen

    def _candidates(self, connected: frozenset[str]) -> list[Target]:
        free = [t for t in self._targets.values() if t.peer not in connected and not t.dialling and t.addresses]
        self._rng.shuffle(free)
        usable = [t for t in free if t.bootstrap or t.failures < self._settings.known_attempts]
        return sorted(usable, key=lambda t: not (t.bootstrap or t.wanted))

    def next_due(self, now: float, connected: frozenset[str]) -> float | None:
        """Seconds until `due` may have something, if nothing else happens; None: never."""
        lacking = len(connected) < self._settings.target_peers
        times = [t.due for t in self._candidates(connected) if t.bootstrap or t.wanted or lacking]
        return max(0.0, min(times) - now) if times else None

    def succeeded(self, peer: str) -> None:
        if (target := self._targets.get(peer)) is not None:
            target.dialling = False
            target.failures = 0
            target.due = 0.0

    def failed(self, peer: str, now: float) -> None:
        if (target := self._targets.get(peer)) is not None:
            target.dialling = False
            target.due = now + self._backoff(target.failures)
            target.failures += 1

    def lost(self, peer: str, now: float) -> None:
        """A connection broke: dial soon, but let the peer finish dying first."""
        if (target := self._targets.get(peer)) is not None:
            target.failures = 0
            target.due = now + self._backoff(0)

    def _backoff(self, failures: int) -> float:
        settings = self._settings
        steady = min(settings.backoff_most, settings.backoff_first * settings.backoff_factor ** min(failures, 64))
        return steady * (1 + settings.jitter * self._rng.uniform(-1, 1))


class Dialer:
    """Keeps the plan; dials by ``dial(peer, addresses)``, which raises `NetworkError`."""

    def __init__(
        self,
        plan: DialPlan,
        dial: Callable[[str, tuple[str, ...]], Awaitable[None]],
        connected: Callable[[], frozenset[str]],
        start: Callable[..., None],
    ) -> None:
        self._plan = plan
        self._dial = dial
        self._connected = connected
        self._start = start
        self._changed = trio.Event()
        self._underway: dict[str, trio.Event] = {}
        self._outcome: dict[str, Unreachable | None] = {}

    def mention(self, peer: str, addresses: Iterable[str], *, bootstrap: bool = False, wanted: bool = False) -> None:
        self._plan.mention(peer, addresses, trio.current_time(), bootstrap=bootstrap, wanted=wanted)
        self._changed.set()

    def addresses(self, peer: str) -> tuple[str, ...]:
        return self._plan.addresses(peer)

    def lost(self, peer: str) -> None:
        self._plan.lost(peer, trio.current_time())
        self._changed.set()

    async def run(self) -> None:
        while True:
            self._changed = trio.Event()
            now = trio.current_time()
            for target in self._plan.due(now, self._connected()):
                self._start(self._try, target.peer)
            pause = self._plan.next_due(now, self._connected())
            with trio.move_on_after(float("inf") if pause is None else max(pause, 0.01)):
                await self._changed.wait()

    async def _try(self, peer: str) -> None:
        try:
            await self.connect(peer)
        except NetworkError as problem:
            log.debug("%s", problem)
        self._changed.set()

    async def connect(self, peer: str) -> None:
        """Returns when the peer is connected. One dial serves all that wait. Raises `Unreachable`."""
        if peer in self._connected():
            self._plan.succeeded(peer)
            return
        if (event := self._underway.get(peer)) is None:
            event = self._underway[peer] = trio.Event()
            self._outcome.pop(peer, None)
            self._start(self._dial_once, peer, event)
        await event.wait()
        if peer not in self._connected():
            raise self._outcome.get(peer) or Unreachable(f"{peer} could not be reached")

    async def _dial_once(self, peer: str, event: trio.Event) -> None:
        outcome: Unreachable | None = None
        try:
            addresses = self._plan.addresses(peer)
            if not addresses:
                raise Unreachable(f"no address of {peer} is known")
            await self._dial(peer, addresses)
            self._plan.succeeded(peer)
        except Unreachable as problem:
            outcome = problem
            self._plan.failed(peer, trio.current_time())
        finally:
            del self._underway[peer]
            if outcome is not None:
                self._outcome[peer] = outcome
            event.set()


async def dial_any(addresses: Iterable[str], one: Callable[[str], Awaitable[None]], stagger: float) -> None:
    """Tries addresses one after the other, not waiting for one to fail before the next starts; the first that
    succeeds ends the others. Raises the last `Unreachable`."""
    problems: list[Unreachable] = []
    async with trio.open_nursery() as nursery:

        async def attempt(address: str, failed: trio.Event) -> None:
            try:
                await one(address)
                nursery.cancel_scope.cancel()
            except Unreachable as problem:
                problems.append(problem)
                failed.set()

        tried = 0
        for address in addresses:
            tried += 1
            failed = trio.Event()
            nursery.start_soon(attempt, address, failed)
            with trio.move_on_after(stagger):
                await failed.wait()
    if len(problems) == tried:
        raise problems[-1] if problems else Unreachable("no usable address is known")
