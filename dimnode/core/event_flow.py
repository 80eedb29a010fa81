"""How fast events go out, and which messages of others are believed. Pure; time is passed in."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dimnode.core.rate_limit import RateLimiter, RateLimitSettings
from dimnode.domain.events import MAX_BYTES, Event, Kind, Message


class Outgoing:
    """Events that wait for the next message: at most ``capacity``, the oldest gives way and is counted. A message holds at most ``batch``
    of them, and follows the one before after ``interval`` seconds at the earliest: the first of a burst goes at once, the rest together."""

    def __init__(self, capacity: int, batch: int, interval: float) -> None:
        self._capacity = capacity
        self._batch = batch
        self._interval = interval
        self._events: deque[Event] = deque()
        self._next = float("-inf")
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._events)

    def put(self, event: Event) -> None:
        self._events.append(event)
        self._make_room()

    def due_at(self) -> float | None:
        """When the next message may go (monotonic); None: there is nothing to say."""
        return self._next if self._events else None

    def take(self, now: float) -> tuple[Event, ...]:
        """The next message's events; empty if it may not go yet."""
        if not self._events or now < self._next:
            return ()
        self._next = now + self._interval
        return tuple(self._events.popleft() for _ in range(min(self._batch, len(self._events))))

    def give_back(self, events: Sequence[Event]) -> None:
        """They could not be sent: they are the first again, as far as there is room for them."""
        self._events.extendleft(reversed(events))
        self._make_room()

    def _make_room(self) -> None:
        while len(self._events) > self._capacity:
            self._events.popleft()
            self.dropped += 1


class Numbers:
    """Numbers that grow, also over restarts and clocks that are set back while running: milliseconds of the wall clock, or one more."""

    def __init__(self) -> None:
        self._last = 0

    def next(self, wall: float) -> int:
        self._last = max(self._last + 1, int(wall * 1000))
        return self._last


@dataclass(frozen=True, slots=True)
class IntakeSettings:
    max_age: float = 120.0
    """Seconds by which a message's time may differ from this node's clock."""
    rate: float = 20.0
    """Messages per second of one publisher and kind."""
    burst: int = 40
    publishers: int = 1024
    """Whose messages are remembered; the longest silent is forgotten."""
    window: int = 256
    """Numbers of one publisher that are remembered; older ones count as repeated."""


class Intake:
    """Judges messages of one kind: whatever is not the author's, not of now, or was heard before changes nothing."""

    def __init__(self, kind: Kind, channel: str, settings: IntakeSettings) -> None:
        self._kind = kind
        self._channel = channel
        self._settings = settings
        self._seen: OrderedDict[str, OrderedDict[int, None]] = OrderedDict()
        self._limiter = RateLimiter(RateLimitSettings(settings.rate, settings.burst, settings.publishers))
        self.refused: Counter[str] = Counter()

    def judge(
        self,
        size: int,
        read: Callable[[], tuple[str, Message]],
        authentic: Callable[[], bool],
        *,
        author: str | None,
        wall: float,
        now: float,
    ) -> bool:
        """Whether to believe a message of ``size`` bytes. ``read`` gives its signer and content and may raise `ValueError`; ``authentic``
        checks the signature and is asked last, for it is the dearest. ``author``: who is known to have sent it, if anybody is.
        ``wall`` and ``now``: this node's clocks."""
        reason = self._reason(size, read, authentic, author, wall, now)
        if reason:
            self.refused[reason] += 1
        return not reason

    def _reason(
        self, size: int, read: Callable[[], tuple[str, Message]], authentic: Callable[[], bool], author: str | None, wall: float, now: float
    ) -> str:
        if size > MAX_BYTES:
            return "oversized"
        try:
            signer, message = read()
        except ValueError:
            return "malformed"
        if message.publisher != signer or (author is not None and author != signer):
            return "forged"
        if message.kind != self._kind or message.channel != self._channel:
            return "foreign"
        if abs(wall - message.at) > self._settings.max_age:
            return "old"
        if self._repeated(signer, message.seq):
            return "repeated"
        if not authentic():
            return "forged"
        if self._limiter.take(signer, now) is not None:
            return "rapid"
        self._note(signer, message.seq)
        return ""

    def _repeated(self, signer: str, seq: int) -> bool:
        seen = self._seen.get(signer)
        if seen is None:
            return False
        return seq in seen or (len(seen) >= self._settings.window and seq < min(seen))

    def _note(self, signer: str, seq: int) -> None:
        seen = self._seen.setdefault(signer, OrderedDict())
        self._seen.move_to_end(signer)
        seen[seq] = None
        while len(seen) > self._settings.window:
            del seen[min(seen)]
        while len(self._seen) > self._settings.publishers:
            self._seen.popitem(last=False)
