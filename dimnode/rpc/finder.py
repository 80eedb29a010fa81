"""Finds a server that answers, among several that are as good as each other, and watches over calls to it.

A server is greeted before the first call to it: it must answer quickly, and it tells who else there is. While calls
wait for an answer in silence it is greeted again, so that a slow answer and a hung server are told apart.
"""

from __future__ import annotations

import math
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from dimnode.core.routes import Routes, Told
from dimnode.errors import Cancelled, Code, DeadlineExceeded, DimError, Unavailable
from dimnode.rpc.errors import DETAILS_KEY, from_rpc_error
from dimnode.rpc.links import ClientTls, Link, Links, LinkSettings, client_closed
from dimnode.rpc.server import is_loopback

Outcome = tuple[Link, DimError | None]
BROKEN = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED})
"""What gRPC itself says when a server is not there."""
STRIKES = 2
"""Greetings in vain before calls under way are given up."""


@dataclass(frozen=True, slots=True)
class FinderSettings:
    """Seconds."""

    greeting: float = 1.5
    """In which a server must answer a greeting."""
    stagger: float = 0.25
    """Without an answer, after which the next address is greeted, too."""
    silence: float = 2.5
    """Without a word during a call, after which the server is greeted; two greetings in vain, and it is gone."""
    refresh: float = 5.0
    """After which a client in use asks again who the servers are; sooner after a change."""
    idle_refresh: float = 30.0
    """The same for one that is not in use: it still must know where to turn tomorrow."""
    stale: float = 3.0
    """After which a connection that was not used is greeted before it is used: gRPC may have made it anew, and somebody
    else may answer now."""
    max_channels: int = 8
    max_message_bytes: int = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Swarm:
    name: str
    servers: tuple[Told, ...]


@dataclass(frozen=True, slots=True)
class Greeting:
    """The question that every server of this kind answers quickly."""

    method: str
    request: Any
    read: Callable[[Any], Swarm]


class Nobody(Exception):
    """``error`` is for the caller."""

    def __init__(self, error: DimError) -> None:
        super().__init__(error.message)
        self.error = error


class Finder:
    """Thread-safe. ``greeting`` None: servers are taken as they are. Otherwise the swarm of the first that answers is
    the client's, and an address where another swarm answers is not used."""

    def __init__(
        self,
        targets: Sequence[str],
        make_stub: Callable[[grpc.Channel], Any],
        settings: FinderSettings,
        tls: ClientTls | None = None,
        greeting: Greeting | None = None,
    ) -> None:
        self.settings = settings
        local = [is_loopback(t) for t in targets]
        self.routes = Routes(targets, here=any(local), far=tls is not None or not all(local))
        self.links = Links(make_stub, LinkSettings(settings.greeting, settings.max_channels, settings.max_message_bytes, tls))
        self._lock = self.links.lock
        self._greeting = greeting
        self._swarm = ""
        self._present: Link | None = None
        self._used_at = -math.inf
        self._interval = settings.refresh
        self._refresh_at = math.inf
        self._thread: threading.Thread | None = None
        self._inbox: queue.SimpleQueue[Outcome | None] = queue.SimpleQueue()
        self._dozing = False

    def close(self) -> None:
        self.links.close()
        with self._lock:
            thread = self._thread
            self._inbox.put(None)
        if thread is not None:
            thread.join()

    # --- whom to ask

    def find(self, avoid: set[str], deadline: float) -> Link:
        """Who answers first, the others are added to ``avoid``: addresses are greeted in their order, one
        `FinderSettings.stagger` after the other. Raises `Nobody`, or `Cancelled` after `close`."""
        present = self._present
        if present is not None and self.fresh(present) and present.address not in avoid:
            return present
        return _Search(self, avoid, deadline).run()

    def link_to(self, address: str) -> Link | None:
        """None if there is no room for one more."""
        try:
            return self.links.get(address)
        except Cancelled:
            raise
        except DimError:
            return None

    def fresh(self, link: Link) -> bool:
        if link.lost is not None or link.leaving:
            return False
        return self._greeting is None or (link.greeted and time.monotonic() - link.heard_at < self.settings.stale)

    def nobody(self, failures: Sequence[DimError] = ()) -> DimError:
        """What to tell a person: what somebody said, or that nobody says anything."""
        said = next((e for e in failures if e.hint), None)
        if said is not None:
            return said
        names = ", ".join(shown(a) for a in (*self.routes.given, *self.routes.told()))
        return Unavailable(f"nobody answers at {names}", hint="Is the node running? `dimnode status` tells.")

    # --- what calls tell

    @contextmanager
    def using(self, link: Link) -> Generator[None]:
        """For the time of one call: it is watched over."""
        with self.links.use(link):
            self._used_at = time.monotonic()
            if self._greeting is not None:
                self._supervise()
            yield

    def served(self, link: Link) -> None:
        now = time.monotonic()
        with self._lock:
            link.heard_at, link.strikes = now, 0
            self.routes.standing.served(link.address, now)
            if link.lost is None:
                self._present = link

    def refused(self, link: Link) -> None:
        """It is there, and cannot do it now."""
        now = time.monotonic()
        with self._lock:
            link.heard_at = now
            self.routes.standing.failed(link.address, now)

    def broke(self, link: Link, error: DimError, *, hung: bool = False) -> None:
        """The connection is of no use any more. Not in a thread of gRPC."""
        with self._lock:
            if link.lost is not None:
                return
            self.routes.standing.failed(link.address, time.monotonic(), hung=hung)
        self.links.lose(link, error)

    # --- greetings

    def greet(self, link: Link, tell: Callable[[Link, DimError | None], None] | None = None) -> None:
        """Calls ``tell`` when the server has answered, or not. One greeting at a time is under way on a link."""
        greeting = self._greeting
        assert greeting is not None
        with self._lock:
            if link.asked is not None:
                if tell is not None:
                    link.asked.append(tell)
                return
            link.asked = [self._tell_supervisor] if tell is None else [tell, self._tell_supervisor]
        try:
            future = getattr(link.stub, greeting.method).future(greeting.request, timeout=self.settings.greeting)
        except ValueError:  # the channel was closed in this moment
            self._greeted(link, link.lost or client_closed())
            return
        self._supervise()
        future.add_done_callback(lambda done: self._greeted(link, self._read(link, done, greeting)))

    def _read(self, link: Link, done: Any, greeting: Greeting) -> DimError | None:
        """What is wrong with an answer, None if all is well. In a thread of gRPC."""
        peer = self.routes.peer_of(link.address)
        code = done.code()
        if code is grpc.StatusCode.OK:
            return self._learn(link, peer, greeting.read(done.result()))
        if detailed(done) or code not in BROKEN:  # who refuses to greet is there; only who was told must show who it is
            error = from_rpc_error(done)
            return error if error.code is Code.UNAVAILABLE or peer is not None else None
        return DeadlineExceeded("it does not answer") if code is grpc.StatusCode.DEADLINE_EXCEEDED else Unavailable("it is not there")

    def _learn(self, link: Link, peer: str | None, swarm: Swarm) -> DimError | None:
        with self._lock:
            if self._swarm and swarm.name and swarm.name != self._swarm:
                hint = "" if peer is not None else "Give addresses of one swarm only."
                return Unavailable(f"{shown(link.address)} belongs to another swarm", hint=hint)
            if peer is not None and all(t.peer != peer for t in swarm.servers):
                return Unavailable("somebody else answers there")
            self._swarm = self._swarm or swarm.name
            before = set(self.routes.told())
            self.routes.learn(swarm.servers)
            changed = before != set(self.routes.told())
            self._interval = self.settings.refresh / 8 if changed else self._interval * 2
            self._refresh_at = min(self._refresh_at, time.monotonic() + self._interval)
        return None

    def _greeted(self, link: Link, error: DimError | None) -> None:
        with self._lock:
            tells, link.asked = link.asked or [], None
            if error is None:
                link.greeted, link.heard_at, link.strikes = True, time.monotonic(), 0
                self.routes.standing.answered(link.address)
            else:
                link.strikes += 1
        for tell in tells:
            tell(link, error)

    def settle(self, link: Link, error: DimError) -> None:
        """What a greeting in vain means. Not in a thread of gRPC."""
        silent = error.code is Code.DEADLINE_EXCEEDED
        if not (silent and link.calls and link.strikes < STRIKES):
            self.broke(link, error, hung=silent)

    # --- supervision

    def _supervise(self) -> None:
        """One thread watches over all calls, for as long as this object is used by anybody."""
        if self._dozing:
            self._inbox.put(None)
        if self._thread is None:
            with self._lock:
                if self._thread is None and not self.links.closed.is_set():
                    self._thread = threading.Thread(
                        target=_watch_over, args=(weakref.ref(self), self._inbox), name="dim-client", daemon=True
                    )
                    self._thread.start()

    def _tell_supervisor(self, link: Link, error: DimError | None) -> None:
        self._inbox.put((link, error))

    def look_after(self, outcome: Outcome | None) -> float | None:
        """One step of the supervisor: seconds until the next one, None at the end."""
        self._dozing = False
        if self.links.closed.is_set():
            return None
        if outcome is not None:
            link, error = outcome
            if error is None:
                self.links.let_go(self.routes.known)
            else:
                self.settle(link, error)
            return 0.0
        now = time.monotonic()
        for link in self.links.all():
            if link.calls and link.asked is None and now - max(link.heard_at, link.busy_since) > self.settings.silence:
                self.greet(link)
        in_use = self._in_use(now)
        self._keep_up(now, in_use)
        self._dozing = not in_use
        if in_use or self._in_use(now):  # looked at again: who comes after this wakes us
            return min(self.settings.silence, self.settings.greeting, self.settings.refresh) / 4
        return max(0.01, self._refresh_at - now)

    def _in_use(self, now: float) -> bool:
        return now - self._used_at < self.settings.refresh or any(link.calls for link in self.links.all())

    def _keep_up(self, now: float, in_use: bool) -> None:
        """Asks now and then who the servers are."""
        self._interval = min(self._interval, self.settings.refresh if in_use else self.settings.idle_refresh)
        self._refresh_at = min(self._refresh_at, now + self._interval)
        if now < self._refresh_at:
            return
        self._refresh_at = now + self._interval
        link = self.link_to(self.routes.order(now)[0])
        if link is not None:
            self.greet(link)


class _Search:
    """One round of greetings for one call."""

    def __init__(self, finder: Finder, avoid: set[str], deadline: float) -> None:
        self._finder = finder
        self._settings = finder.settings
        self._avoid = avoid
        self._began = time.monotonic()
        self._deadline = deadline
        self._answers: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._asked: set[str] = set()
        self._pending = deque(a for a in finder.routes.order(self._began) if a not in avoid)
        self._failures: list[DimError] = []

    def run(self) -> Link:
        while self._pending or self._asked:
            if self._pending:
                link = self._ask(self._pending.popleft())
                if link is not None:
                    return link
                if not self._asked:
                    continue
            link = self._take()
            if link is not None:
                return link
        raise Nobody(self._finder.nobody(self._failures))

    def _ask(self, address: str) -> Link | None:
        """The link if there is no need to ask."""
        link = self._finder.link_to(address)
        if link is None:
            self._avoid.add(address)
            return None
        if self._finder.fresh(link):
            return link
        self._asked.add(address)
        self._finder.greet(link, lambda *outcome: self._answers.put(outcome))
        return None

    def _take(self) -> Link | None:
        """Waits for an answer. While only silent ones are left, the others get another chance now and then: one of them
        may have come up."""
        left = self._deadline - time.monotonic()
        stagger = self._settings.stagger
        try:
            link, error = self._answers.get(timeout=max(0.0, min(left, stagger if self._pending else 2 * stagger)))
        except queue.Empty:
            if left <= 0:
                raise Nobody(DeadlineExceeded("nobody answered in time")) from None
            now = time.monotonic()
            if not self._pending and now - self._began < self._settings.greeting:
                self._pending.extend(a for a in self._finder.routes.order(now) if a not in self._asked)
            return None
        self._asked.discard(link.address)
        self._finder.links.check_open()
        if error is None:
            return link
        self._finder.settle(link, error)
        self._avoid.add(link.address)
        self._failures.append(error)
        return None


def _watch_over(finder: weakref.ref[Finder], inbox: queue.SimpleQueue[Outcome | None]) -> None:
    """Ends when the finder was closed or forgotten."""
    wait: float | None = 0.0
    while wait is not None:
        try:
            outcome = inbox.get(timeout=wait)
        except queue.Empty:
            outcome = None
        here = finder()
        if here is None:
            return
        wait = here.look_after(outcome)
        del here


def detailed(e: Any) -> bool:
    """Whether one of our servers said so, and not gRPC."""
    return any(key == DETAILS_KEY for key, _ in e.trailing_metadata() or ())


def shown(address: str) -> str:
    """For people: of a socket's path only the file's name."""
    return f"unix:{address.rpartition('/')[2]}" if address.startswith("unix:") else address
