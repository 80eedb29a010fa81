"""Finds a server that answers, among several that are as good as each other, and watches over calls to it.

A server is greeted before the first call to it: it must answer quickly, and it tells who else there is. While calls
wait for an answer in silence it is greeted again, so that a slow answer and a hung server are told apart.
"""

from __future__ import annotations

import math
import queue
import threading
import time
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
    """After which a client in use asks again who the servers are."""
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
        self._learned_at = -math.inf
        self._present: Link | None = None
        self._thread: threading.Thread | None = None
        self._inbox: queue.SimpleQueue[Outcome | None] = queue.SimpleQueue()

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
        if present is not None and self._fresh(present) and present.address not in avoid:
            return present
        answers: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        failures: list[DimError] = []
        pending = deque(a for a in self.routes.order(time.monotonic()) if a not in avoid)
        waiting = 0
        while pending or waiting:
            if pending:
                address = pending.popleft()
                link = self._link(address)
                if link is None:
                    avoid.add(address)
                    continue
                if self._fresh(link):
                    return link
                waiting += 1
                self._greet(link, lambda *outcome: answers.put(outcome))
            left = max(0.0, deadline - time.monotonic())
            try:
                link, error = answers.get(timeout=min(left, self.settings.stagger) if pending else min(left, threading.TIMEOUT_MAX))
            except queue.Empty:
                if left:
                    continue
                raise Nobody(DeadlineExceeded("nobody answered in time")) from None
            waiting -= 1
            self.links.check_open()
            if error is None:
                return link
            self._settle(link, error)
            avoid.add(link.address)
            failures.append(error)
        raise Nobody(self.nobody(failures))

    def _link(self, address: str) -> Link | None:
        """None if there is no room for one more."""
        try:
            return self.links.get(address)
        except Cancelled:
            raise
        except DimError:
            return None

    def _fresh(self, link: Link) -> bool:
        if link.lost is not None or link.leaving:
            return False
        return self._greeting is None or (link.greeted and time.monotonic() - link.heard_at < self.settings.stale)

    def nobody(self, failures: Sequence[DimError] = ()) -> DimError:
        """What to tell a person: what somebody said, or that nobody says anything."""
        said = next((e for e in failures if e.hint), None)
        if said is not None:
            return said
        names = ", ".join(shown(a) for a in self.routes.order(time.monotonic()))
        return Unavailable(f"nobody answers at {names}", hint="Is the node running? `dimnode status` tells.")

    # --- what calls tell

    @contextmanager
    def using(self, link: Link) -> Generator[None]:
        """For the time of one call: it is watched over."""
        with self.links.use(link):
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

    def _greet(self, link: Link, tell: Callable[[Link, DimError | None], None] | None = None) -> None:
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
            self._learned_at = time.monotonic()
            self.routes.learn(swarm.servers)
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

    def _settle(self, link: Link, error: DimError) -> None:
        """What a greeting in vain means. Not in a thread of gRPC."""
        silent = error.code is Code.DEADLINE_EXCEEDED
        if not (silent and link.calls and link.strikes < STRIKES):
            self.broke(link, error, hung=silent)

    # --- supervision

    def _supervise(self) -> None:
        """One thread watches over all calls; it ends when there were none for a while."""
        if self._thread is not None:
            return
        with self._lock:
            if self._thread is None and not self.links.closed.is_set():
                self._thread = threading.Thread(target=self._watch_over, name="dim-client", daemon=True)
                self._thread.start()

    def _tell_supervisor(self, link: Link, error: DimError | None) -> None:
        self._inbox.put((link, error))

    def _watch_over(self) -> None:
        s = self.settings
        tick = max(0.01, min(s.silence, s.greeting, s.refresh) / 4)
        active = time.monotonic()
        while True:
            try:
                outcome = self._inbox.get(timeout=tick)
            except queue.Empty:
                outcome = None
            if self.links.closed.is_set():
                return
            if outcome is not None:
                link, error = outcome
                if error is None:
                    self.links.let_go(self.routes.known)
                else:
                    self._settle(link, error)
                continue
            now = time.monotonic()
            if self._look_after(now):
                active = now
            elif now - active > s.refresh and self._may_end():
                return

    def _look_after(self, now: float) -> bool:
        """Greets who is silent, and now and then the present one for news; whether any call is under way."""
        s, busy = self.settings, False
        for link in self.links.all():
            if not link.calls:
                continue
            busy = True
            silent = now - max(link.heard_at, link.busy_since) > s.silence
            if link.asked is None and (silent or (link is self._present and now - self._learned_at > s.refresh)):
                self._greet(link)
        return busy

    def _may_end(self) -> bool:
        with self._lock:
            if self._inbox.empty() and not any(link.calls or link.asked for link in self.links.all()):
                self._thread = None
            return self._thread is None


def detailed(e: Any) -> bool:
    """Whether one of our servers said so, and not gRPC."""
    return any(key == DETAILS_KEY for key, _ in e.trailing_metadata() or ())


def shown(address: str) -> str:
    """For people: of a socket's path only the file's name."""
    return f"unix:{address.rpartition('/')[2]}" if address.startswith("unix:") else address
