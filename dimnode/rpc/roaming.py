"""Calls to whichever of several equal servers answers, for programs without an event loop."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc

from dimnode.core.retrying import Attempts, RetrySettings, Setback
from dimnode.errors import Code, DeadlineExceeded, DimError, Unavailable
from dimnode.rpc.errors import from_rpc_error
from dimnode.rpc.finder import BROKEN, Finder, FinderSettings, Greeting, Nobody, detailed
from dimnode.rpc.links import ClientTls, Link, client_closed

T = TypeVar("T")
_RESET = ("RST_STREAM", "Stream removed")
"""What gRPC says, with the codes INTERNAL and UNKNOWN, when a connection broke in the middle of a call."""
_TOO_MANY = "oncurrent RPC"
"""What gRPC says when a server has as many calls as it may have."""


@dataclass(frozen=True, slots=True)
class ClientSettings:
    timeout: float = 30.0
    """Seconds for one call, repetitions included."""
    retry_for: float = 10.0
    """Seconds in which a call that found nobody is tried again, on every address in turn; 0: each address once."""
    backoff_min: float = 0.1
    backoff_max: float = 0.5
    """Pauses after everybody was asked in vain, growing from the least to the most."""
    busy_for: float = 0.0
    """Seconds to wait, as told by the server, when it has too much to do; 0: the error is raised at once."""
    missing_for: float = 10.0
    """Seconds in which a thing that is known to exist may be unknown to those that are asked."""
    finder: FinderSettings = field(default_factory=FinderSettings)
    tls: ClientTls | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    error: DimError
    setback: Setback | None
    """None: trying again would not help."""


class _Failed(Exception):
    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.error.message)
        self.failure = failure


class Connection:
    """Thread-safe; close it after use. Every method raises `DimError`. ``greeting``: see `Finder`."""

    def __init__(
        self,
        targets: Sequence[str],
        make_stub: Callable[[grpc.Channel], Any],
        settings: ClientSettings | None = None,
        greeting: Greeting | None = None,
    ) -> None:
        if not targets:
            raise Unavailable("no address is known", hint="Give --orchestrator HOST:PORT or start a node.")
        self.settings = s = settings or ClientSettings()
        self.finder = Finder(targets, make_stub, s.finder, s.tls, greeting)
        self._retry = RetrySettings(s.retry_for, s.backoff_min, s.backoff_max, s.busy_for, s.missing_for)
        self._rng = random.Random()  # noqa: S311 - not for secrets

    def close(self) -> None:
        """Calls under way end with `Cancelled`; so do later ones."""
        self.finder.close()

    def attempts(self, *, timeout: float = math.inf, exists: bool = False) -> Attempts:
        """A call's patience, for `follow`. ``timeout``: seconds for all of it. ``exists``: whether NOT_FOUND may be a
        matter of time."""
        return Attempts(self._retry, self._rng, deadline=time.monotonic() + timeout, exists=exists)

    def call(self, method: str, request: Any, *, timeout: float | None = None, exists: bool = False) -> Any:
        """A unary call, repeated until somebody answers: only for calls that may be repeated without harm."""
        return self.run(lambda stub, left: getattr(stub, method)(request, timeout=left), timeout=timeout, exists=exists)

    def run(self, attempt: Callable[[Any, float], T], *, timeout: float | None = None, exists: bool = False) -> T:
        """Run ``attempt(stub, seconds left)``, again elsewhere if it fails for want of a server, or says so itself by a
        `DimError`."""
        attempts = self.attempts(timeout=self.settings.timeout if timeout is None else timeout, exists=exists)
        while True:
            try:
                return self._once(attempt, attempts)
            except _Failed as e:
                failure = e.failure
            self._pause(failure, attempts)

    def once(self, attempt: Callable[[Any, float], T], *, timeout: float) -> T:
        """Run it on a server that answers, and do not repeat it."""
        try:
            return self._once(attempt, self.attempts(timeout=timeout))
        except _Failed as e:
            raise e.failure.error from None

    def follow(self, method: str, request: Any, attempts: Attempts, *, endless: bool) -> Iterator[tuple[int, Any]]:
        """The messages of a server stream, each with the number of the stream: it begins again elsewhere when it breaks.
        ``endless``: so it does when the server ends it. Leaving the iteration cancels the call."""
        number = 0
        while True:
            try:
                with closing(self._stream(method, request, attempts)) as messages:
                    for message in messages:
                        yield number, message
                if not endless:
                    return
                failure = Failure(Unavailable("the server ended the stream"), Setback.GONE)
            except _Failed as e:
                failure = e.failure
            number += 1
            self._pause(failure, attempts)

    def _once(self, attempt: Callable[[Any, float], T], attempts: Attempts) -> T:
        link = self._find(attempts)
        with self.finder.using(link):
            try:
                answer = attempt(link.stub, _left(attempts))
            except (grpc.RpcError, ValueError) as e:
                raise _Failed(self._judge(link, e, attempts)) from None
            except DimError as e:
                raise _Failed(self._answered(link, e, attempts)) from None
        self.finder.served(link)
        return answer

    def _stream(self, method: str, request: Any, attempts: Attempts) -> Generator[Any]:
        link = self._find(attempts)
        with self.finder.using(link):
            call = None
            try:
                left = _left(attempts)
                call = getattr(link.stub, method)(request, timeout=left if left < math.inf else None)
                for message in call:
                    self.finder.served(link)
                    attempts.heard()
                    yield message
            except (grpc.RpcError, ValueError) as e:
                raise _Failed(self._judge(link, e, attempts)) from None
            finally:
                if call is not None:
                    call.cancel()
        attempts.avoid.add(link.address)  # of use only if it should not have ended

    def _find(self, attempts: Attempts) -> Link:
        try:
            return self.finder.find(attempts.avoid, attempts.deadline)
        except Nobody as e:
            raise _Failed(Failure(e.error, Setback.GONE)) from None

    def _pause(self, failure: Failure, attempts: Attempts) -> None:
        """Waits as long as is wise before the next attempt, or raises the failure."""
        now = time.monotonic()
        round_over = attempts.avoid.issuperset(self.finder.routes.order(now))
        error, setback = failure.error, failure.setback
        wait = None if setback is None else attempts.after(setback, now, round_over=round_over, retry_after=error.retry_after)
        if wait is None:
            raise error
        self.sleep(wait)

    def sleep(self, seconds: float) -> None:
        """Raises `Cancelled` as soon as the connection is closed."""
        if self.finder.links.closed.wait(max(0.0, seconds)):
            raise client_closed()

    def _judge(self, link: Link, e: Exception, attempts: Attempts) -> Failure:
        """What an attempt that failed means; noted for the next one."""
        self.finder.links.check_open()
        if link.lost is not None:
            attempts.avoid.add(link.address)
            return Failure(self.finder.nobody(), Setback.GONE)
        if not isinstance(e, grpc.RpcError):
            raise e
        error = from_rpc_error(e)
        if detailed(e):
            return self._answered(link, error, attempts)
        code = e.code()  # pyright: ignore[reportAttributeAccessIssue]
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return Failure(DeadlineExceeded("there was no answer in time", hint="It may have been acted on all the same."), None)
        if code in BROKEN or any(text in error.message for text in _RESET):
            attempts.avoid.add(link.address)
            self.finder.broke(link, error)
            return Failure(self.finder.nobody(), Setback.GONE)
        return Failure(error, Setback.BUSY if _TOO_MANY in error.message else None)

    def _answered(self, link: Link, error: DimError, attempts: Attempts) -> Failure:
        """One of our servers refused."""
        match error.code:
            case Code.UNAVAILABLE | Code.CANCELLED:
                self.finder.refused(link)
                setback = Setback.GONE
            case Code.NOT_FOUND:
                setback = Setback.MISSING
            case Code.RESOURCE_EXHAUSTED:
                return Failure(error, Setback.BUSY)
            case _:
                return Failure(error, None)
        attempts.avoid.add(link.address)
        return Failure(error, setback)


def _left(attempts: Attempts) -> float:
    return max(0.0, attempts.deadline - time.monotonic())
