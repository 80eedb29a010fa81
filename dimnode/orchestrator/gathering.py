"""Calls that come at the same time go on together: group commit for requests.

While a batch is under way, what comes meanwhile waits and forms the next one; not for long, if it is slow. Who comes alone waits for nobody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog
import trio

from dimnode.errors import Code, DimError, ResourceExhausted, Unavailable, again
from p2p.groups import collapse

log = structlog.get_logger(__name__)
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class GatheringSettings:
    at_once: int = 1
    """Batches under way, beyond which calls wait for the next one."""
    slow_after: float = 0.1
    """Seconds after which a batch is one that nobody waits for."""
    most: int = 64
    """Calls in a batch."""
    max_bytes: int = 4 * 1024 * 1024
    """Of them; one alone may be larger."""
    max_waiting: int = 4_096
    large: int = 64 * 1024
    """Bytes of inputs above which a call goes alone."""


class _Call(Generic[T, R]):
    __slots__ = ("answer", "done", "error", "item", "kind", "size")

    def __init__(self, item: T, kind: Hashable, size: int) -> None:
        self.item = item
        self.kind = kind
        self.size = size
        self.done = trio.Event()
        self.answer: R | None = None
        self.error: Exception | None = None


class Gathering(Generic[T, R]):
    """``act`` gets items of one kind and answers each, in order; it may raise a `DimError` for all of them. ``start`` starts a task in the
    owner's nursery, and says whether it could."""

    def __init__(
        self,
        act: Callable[[Hashable, Sequence[T]], Awaitable[Sequence[R | Exception]]],
        start: Callable[..., bool],
        settings: GatheringSettings | None = None,
    ) -> None:
        self._act = act
        self._start = start
        self._settings = settings or GatheringSettings()
        self._waiting: deque[_Call[T, R]] = deque()
        self._under_way: set[int] = set()
        """Batches that are waited for, by identity."""
        self.pending = 0
        """Calls that are not answered."""

    async def call(self, item: T, kind: Hashable, size: int) -> R:
        """The item's answer. ``size``: about how many bytes it has. Of who is cancelled an item that waits is dropped, one that is
        under way goes its way. Raises what ``act`` raises or answers, `Unavailable` if the owner ends, `ResourceExhausted` if too many wait."""
        if len(self._waiting) >= self._settings.max_waiting:
            raise ResourceExhausted("too many submissions wait here", hint="Try again, or use another orchestrator.", retry_after=1.0)
        call: _Call[T, R] = _Call(item, kind, size)
        self._waiting.append(call)
        self.pending += 1
        self._more()
        try:
            await call.done.wait()
        except trio.Cancelled:
            if call in self._waiting:
                self._waiting.remove(call)
            raise
        finally:
            self.pending -= 1
        if call.error is not None:
            raise call.error
        assert call.answer is not None
        return call.answer

    def _more(self) -> None:
        while self._waiting and len(self._under_way) < self._settings.at_once:
            batch = self._next()
            self._under_way.add(id(batch))
            if not self._start(self._go, batch):
                self._under_way.discard(id(batch))
                self._fail([*batch, *self._waiting])
                self._waiting.clear()
                return

    def _next(self) -> list[_Call[T, R]]:
        """The longest waiting, and those of its kind after it, as many as fit."""
        first = self._waiting[0]
        batch: list[_Call[T, R]] = []
        room = max(self._settings.max_bytes, first.size)
        for call in self._waiting:
            if call.kind == first.kind:
                room -= call.size
                if room < 0 or len(batch) >= self._settings.most:
                    break
                batch.append(call)
        taken = set(map(id, batch))
        self._waiting = deque(c for c in self._waiting if id(c) not in taken)
        return batch

    async def _go(self, batch: list[_Call[T, R]]) -> None:
        with collapse():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._answer, batch, nursery.cancel_scope)
                await trio.sleep(self._settings.slow_after)
                self._let_next_by(batch)

    async def _answer(self, batch: list[_Call[T, R]], passing: trio.CancelScope) -> None:
        try:
            answered = list(zip(batch, await self._act(batch[0].kind, [c.item for c in batch]), strict=True))
        except DimError as e:
            for call in batch:
                call.error = again(e)
        except Exception as e:
            log.error("a batch failed", calls=len(batch), exc_info=e)
            for call in batch:
                call.error = DimError("internal error", code=Code.INTERNAL, hint="The node's log has the details.")
        else:
            for call, answer in answered:
                if isinstance(answer, Exception):
                    call.error = answer
                else:
                    call.answer = answer
        finally:
            self._fail([c for c in batch if c.answer is None and c.error is None])
            for call in batch:
                call.done.set()
            self._let_next_by(batch)
            passing.cancel()

    def _let_next_by(self, batch: list[_Call[T, R]]) -> None:
        """It has been answered, or takes long."""
        if id(batch) in self._under_way:
            self._under_way.remove(id(batch))
            self._more()

    @staticmethod
    def _fail(calls: Sequence[_Call[T, R]]) -> None:
        for call in calls:
            call.error = Unavailable("this orchestrator is stopping", hint="Try another orchestrator.", retry_after=1.0)
            call.done.set()
