"""grpc.aio beside trio: one asyncio loop in a thread of its own for the life of the process.

gRPC's asyncio API is the only one of its Python APIs that serves many calls without a thread for
each, and it binds itself to its loop for good; the rest of DIM is trio. So the loop is started once and
kept, and a `Bridge` (one per trio run) hands work over in both directions: `Bridge.aio` awaits a
coroutine of the loop, `Bridge.stream` reads an asynchronous iterator of the loop, and `Bridge.spawn` (from the
loop's thread) starts a trio task in the bridge's nursery.

Hand-overs are posted in order and in batches: under load one wake-up of the other thread carries many.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, TypeVar

import outcome
import structlog
import trio

from dimnode.errors import Cancelled
from dimnode.rpc.streams import ToTrio

T = TypeVar("T")
Post = Callable[..., None]
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class BridgeSettings:
    stream_buffer: int = 16
    """Messages of one stream that may wait between the two threads."""


class StreamCall(Protocol):
    """What `Bridge.stream` needs of a gRPC call: `grpc.aio.UnaryStreamCall` has it."""

    def __aiter__(self) -> AsyncIterator[Any]: ...

    def cancel(self) -> bool: ...


class _Mailbox:
    """Callbacks for another thread, run there in order. ``wake`` runs a function in that thread."""

    def __init__(self, wake: Callable[[Callable[[], None]], object]) -> None:
        self._wake = wake
        self._waiting: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._woken = False

    def post(self, fn: Callable[..., object], *args: Any) -> None:
        # Append before looking at the flag; `_drain` clears the flag before it looks at the queue. In either
        # order of events every item is seen.
        self._waiting.append((fn, args))
        if not self._woken:
            self._woken = True
            self._wake(self._drain)

    def _drain(self) -> None:
        self._woken = False
        while self._waiting:
            fn, args = self._waiting.popleft()
            fn(*args)


class _LoopThread:
    """The asyncio loop and its thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="grpc-aio", daemon=True)
        self._thread.start()
        atexit.register(self._stop)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def _stop(self) -> None:
        """At the interpreter's end: a daemon thread must not be in the middle of something then."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout=2)


_guard = threading.Lock()


@functools.cache
def _make_loop_thread() -> _LoopThread:
    return _LoopThread()


def _loop_thread() -> _LoopThread:
    with _guard:
        return _make_loop_thread()


class Bridge:
    """The way between one trio run and the asyncio loop. Made by `open_bridge`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, nursery: trio.Nursery, settings: BridgeSettings) -> None:
        self.loop = loop
        self.settings = settings
        self._nursery = nursery
        self._token = trio.lowlevel.current_trio_token()
        self._closed = False
        self.to_trio: Post = _Mailbox(self._wake_trio).post
        """Run a function in the trio thread soon. Called from the asyncio thread; the function must not raise."""
        self.to_asyncio: Post = _Mailbox(loop.call_soon_threadsafe).post
        """Run a function in the asyncio thread soon. Called from the trio thread; must not raise."""

    def _wake_trio(self, fn: Callable[[], None]) -> None:
        try:
            self._token.run_sync_soon(fn)
        except trio.RunFinishedError:
            _log.debug("trio has ended, a hand-over was dropped")

    async def aio(self, coro: Coroutine[Any, Any, T], *, interruptible: bool = True) -> T:
        """Await an asyncio coroutine from trio. A trio cancellation cancels the coroutine (unless it is not
        ``interruptible``) and waits until it has ended; a cancellation from within asyncio becomes `Cancelled`."""
        call = _AioCall(self, coro, interruptible)
        self.to_asyncio(call.start)
        return await trio.lowlevel.wait_task_rescheduled(call.abort)

    async def run(self, fn: Callable[..., T], *args: Any) -> T:
        """Call a synchronous function in the asyncio thread."""

        async def call() -> T:
            return fn(*args)

        return await self.aio(call())

    async def stream(self, open_call: Callable[[], StreamCall]) -> AsyncGenerator[Any, None]:
        """The messages of a server-streaming call, with bounded buffering. ``open_call`` runs in the asyncio
        thread. Closing the generator cancels the call."""
        inbox: ToTrio[Any] = ToTrio(self.to_trio, self.to_asyncio, self.settings.stream_buffer)
        pump = _Pump(self.loop, open_call, inbox)
        self.to_asyncio(pump.start)
        try:
            async for message in inbox:
                yield message
        finally:
            self.to_asyncio(pump.cancel)

    def spawn(self, job: Callable[[], Awaitable[None]], refused: Callable[[], None]) -> None:
        """Start a trio task; called in the trio thread (through `to_trio`). ``job`` must not raise. If the
        bridge is closing, ``refused`` is called instead."""
        if self._closed:
            refused()
        else:
            self._nursery.start_soon(job)

    def close(self) -> None:
        self._closed = True


class _AioCall:
    """One `Bridge.aio`: a coroutine of the loop that a trio task waits for."""

    __slots__ = ("_bridge", "_cancelled", "_coro", "_future", "_interruptible", "_raise_cancel", "_task")

    def __init__(self, bridge: Bridge, coro: Coroutine[Any, Any, Any], interruptible: bool) -> None:
        self._interruptible = interruptible
        self._bridge = bridge
        self._coro = coro
        self._task = trio.lowlevel.current_task()
        self._future: asyncio.Task[Any] | None = None
        self._cancelled = False
        self._raise_cancel: Callable[[], NoReturn] | None = None

    # in the asyncio thread
    def start(self) -> None:
        self._future = self._bridge.loop.create_task(self._coro)
        self._future.add_done_callback(self._finished)

    def _cancel(self) -> None:
        if self._future is not None:
            self._future.cancel()

    def _finished(self, future: asyncio.Task[Any]) -> None:
        if future.cancelled():
            result: outcome.Outcome[Any] = outcome.Error(Cancelled("the call was cancelled"))
            self._cancelled = True
        elif (error := future.exception()) is not None:
            result = outcome.Error(error)
        else:
            result = outcome.Value(future.result())
        self._bridge.to_trio(self._deliver, result)

    # in the trio thread
    def abort(self, raise_cancel: Callable[[], NoReturn]) -> trio.lowlevel.Abort:
        if not self._interruptible:
            return trio.lowlevel.Abort.FAILED
        self._raise_cancel = raise_cancel
        self._bridge.to_asyncio(self._cancel)
        return trio.lowlevel.Abort.FAILED  # rescheduled when the coroutine has ended

    def _deliver(self, result: outcome.Outcome[Any]) -> None:
        if self._cancelled and self._raise_cancel is not None:
            result = outcome.capture(self._raise_cancel)
        trio.lowlevel.reschedule(self._task, result)


class _Pump:
    """Moves the messages of a streaming call into an inbox; lives in the asyncio thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, open_call: Callable[[], StreamCall], inbox: ToTrio[Any]) -> None:
        self._loop = loop
        self._open = open_call
        self._inbox = inbox
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = self._loop.create_task(self._run())

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        error: BaseException | None = None
        call: StreamCall | None = None
        try:
            call = self._open()
            async for message in call:
                await self._inbox.send(message)
        except asyncio.CancelledError:
            error = Cancelled("the call was cancelled")
        except Exception as e:  # noqa: BLE001 - it is raised again in the trio task that reads the stream
            error = e
        finally:
            if call is not None:
                call.cancel()
            self._inbox.finish(error)


@asynccontextmanager
async def open_bridge(settings: BridgeSettings | None = None) -> AsyncGenerator[Bridge]:
    """A bridge for this trio run. On exit its tasks are cancelled: stop servers and close channels first."""
    async with trio.open_nursery() as nursery:
        bridge = Bridge(_loop_thread().loop, nursery, settings or BridgeSettings())
        try:
            yield bridge
        finally:
            bridge.close()
            nursery.cancel_scope.cancel()
