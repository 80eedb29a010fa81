"""A bounded priority queue with aging: pure, time is passed in.

Every task has a score: the time it came plus `aging` seconds for each step its priority is below
critical. The lowest score runs next. So among tasks that wait together the higher priority goes first, equal
priorities go in order of arrival, and a low task is overtaken only by what came less than
3 x `aging` seconds after it: everything runs eventually. The score never changes, so a heap holds the order.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from dimnode.errors import InvalidArgument, ResourceExhausted

T = TypeVar("T")
LEVELS = {"critical": 0, "high": 1, "normal": 2, "low": 3}
FRONT = 4
LOOKED_AT = 512
SMOOTHING = 0.2
"""Weight of the latest task in the average that estimates waiting times."""


@dataclass(frozen=True, slots=True)
class QueueStatistics:
    queued: int
    capacity: int
    by_priority: dict[str, int]
    accepted: int
    refused: int
    cancelled: int
    served: int
    oldest_wait: float
    """Seconds that the longest waiting task has waited."""


@dataclass(slots=True, eq=False)
class Ticket(Generic[T]):
    """One waiting item."""

    item: T
    priority: str
    arrived: float
    state: str = field(default="waiting")
    """waiting, served or cancelled"""


class JobQueue(Generic[T]):
    def __init__(self, *, capacity: int, aging: float, slots: int) -> None:
        self._capacity = capacity
        self._aging = aging
        self._slots = slots
        self._heap: list[tuple[float, int, Ticket[T]]] = []
        self._waiting = dict.fromkeys(LEVELS, 0)
        self._count = self._accepted = self._refused = self._cancelled = self._served = 0
        self._average = 1.0

    def __len__(self) -> int:
        return sum(self._waiting.values())

    @property
    def capacity(self) -> int:
        return self._capacity

    def require(self, priority: str, others: int = 0) -> None:
        """Raises what `push` would, with ``others`` more items in the queue (fewer, if negative)."""
        if priority not in LEVELS:
            raise InvalidArgument(f"priority {priority!r} is not known", hint=f"Use one of {', '.join(LEVELS)}.")
        if len(self) + others >= self._capacity:
            self._refused += 1
            raise ResourceExhausted(
                "the node's task queue is full", hint="Try again later or on another node.", retry_after=self.retry_after()
            )

    def push(self, item: T, priority: str, now: float) -> Ticket[T]:
        """Raises `ResourceExhausted` with ``retry_after`` when full, `InvalidArgument` for an unknown priority."""
        self.require(priority)
        level = LEVELS[priority]
        ticket = Ticket(item, priority, now)
        self._count += 1
        heapq.heappush(self._heap, (now + level * self._aging, self._count, ticket))
        self._waiting[priority] += 1
        self._accepted += 1
        return ticket

    def pop(self) -> Ticket[T] | None:
        """The ticket that runs next; None if nothing waits."""
        while self._heap:
            ticket = heapq.heappop(self._heap)[2]
            if ticket.state == "waiting":
                ticket.state = "served"
                self._waiting[ticket.priority] -= 1
                self._served += 1
                return ticket
        return None

    def waiting(self) -> Iterator[T]:
        """Items that wait, in no order; of a long queue only some."""
        return (e[2].item for e in self._heap[:LOOKED_AT] if e[2].state == "waiting")

    def pop_like(self, likes: Callable[[T], bool], most: int) -> list[Ticket[T]]:
        """Up to ``most`` waiting tickets whose items are liked, the best placed first, as if popped. Looks at the front of the queue
        only, so that a long one costs no more."""
        front = heapq.nsmallest(FRONT * most, (e for e in self._heap[:LOOKED_AT] if e[2].state == "waiting"), key=lambda e: e[:2])
        liked = [ticket for _, _, ticket in front if likes(ticket.item)][:most]
        for ticket in liked:
            ticket.state = "served"
            self._waiting[ticket.priority] -= 1
            self._served += 1
        return liked

    def cancel(self, ticket: Ticket[T]) -> bool:
        """Whether it was still waiting. Its place is free at once."""
        if ticket.state != "waiting":
            return False
        ticket.state = "cancelled"
        self._waiting[ticket.priority] -= 1
        self._cancelled += 1
        if len(self._heap) > 2 * len(self) + 16:
            self._heap = [entry for entry in self._heap if entry[2].state == "waiting"]
            heapq.heapify(self._heap)
        return True

    def finished(self, seconds: float) -> None:
        """A served task took so long: feeds the estimate of `retry_after`."""
        self._average += SMOOTHING * (seconds - self._average)

    def retry_after(self) -> float:
        """Seconds until a tenth of the queue has probably run; at least 0.1."""
        return max(0.1, self._average * max(1.0, len(self) / 10) / self._slots)

    def statistics(self, now: float) -> QueueStatistics:
        arrivals = [t.arrived for _, _, t in self._heap if t.state == "waiting"]
        return QueueStatistics(
            queued=len(self),
            capacity=self._capacity,
            by_priority=dict(self._waiting),
            accepted=self._accepted,
            refused=self._refused,
            cancelled=self._cancelled,
            served=self._served,
            oldest_wait=now - min(arrivals) if arrivals else 0.0,
        )
