"""gRPC calls to trio handlers.

A service is an object with one method for each of the contract's, run in trio:

    async def SubmitJob(self, request, call) -> response            unary
    def WatchJob(self, request, call) -> AsyncIterator[response]     server stream
    async def PutArtifact(self, requests, call) -> response          client stream, requests an async iterator

A handler refuses with a `DimError`. Anything else it raises is logged once here and reaches the client as
INTERNAL without its text. A handler is cancelled when its client goes away or the server stops.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import structlog
import trio
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message

from dimnode.errors import Cancelled, Code, DimError, InvalidArgument, Unavailable
from dimnode.rpc.bridge import Bridge
from dimnode.rpc.errors import to_status
from dimnode.rpc.streams import ToAsyncio, ToTrio

T = TypeVar("T")
_log = structlog.get_logger(__name__)


class Call:
    """Who calls: what a handler may know of the connection. Made in asyncio while gRPC's call lives: gRPC frees what its
    context points to with the call, and a handler may get its turn, or look again, after the client has gone."""

    __slots__ = ("_auth", "metadata")

    def __init__(self, context: Any) -> None:
        self._auth: Mapping[str, Sequence[bytes]] = context.auth_context()
        self.metadata: tuple[tuple[str, str | bytes], ...] = tuple(context.invocation_metadata() or ())

    @property
    def certificate(self) -> bytes | None:
        """PEM of the client's certificate, None without mutual TLS."""
        return self._first("x509_pem_cert")

    @property
    def common_name(self) -> str | None:
        name = self._first("x509_common_name")
        return None if name is None else name.decode(errors="replace")

    def _first(self, key: str) -> bytes | None:
        values = self._auth.get(key)
        return values[0] if values else None


@asynccontextmanager
async def closing(messages: AsyncIterator[T]) -> AsyncGenerator[AsyncIterator[T]]:
    """Closes an iterator at the end if it can be closed: generators run their cleanup there and then."""
    try:
        yield messages
    finally:
        aclose = getattr(messages, "aclose", None)
        if aclose is not None:
            await aclose()


class _Job:
    """One call's trio side. Made in asyncio, everything else happens in trio."""

    __slots__ = ("_dispatcher", "_done", "_error", "method", "scope", "work")

    def __init__(self, dispatcher: Dispatcher, method: str, work: Callable[[], Awaitable[Any]], done: Callable[[Any, Any], None]) -> None:
        self._dispatcher = dispatcher
        self.method = method
        self.work = work
        self._done = done
        """(value, error); called once, in trio."""
        self._error: DimError | None = None
        self.scope = trio.CancelScope()

    def start(self) -> None:
        self._dispatcher.admit(self)

    def cancel(self, error: DimError | None = None) -> None:
        self._error = self._error or error
        self.scope.cancel()

    def refuse(self) -> None:
        self._done(None, _stopping())

    async def run(self) -> None:
        value: Any = None
        error: DimError | None = _stopping()  # holds if the whole program is being cancelled
        try:
            with self.scope:
                value = await self.work()
                error = None
            if self.scope.cancelled_caught:
                error = self._cancelled()
        except Exception as e:  # noqa: BLE001 - the edge: a handler's failure must not end the node
            # What fails in the moment of a cancellation comes in one group with it, and nobody waits for it.
            error = self._cancelled() if self.scope.cancel_called else _outside_form(e, self.method)
        finally:
            self._dispatcher.left(self)
            self._done(value, error)

    def _cancelled(self) -> DimError:
        return self._error or Cancelled("the call was cancelled")


def _stopping() -> DimError:
    return Unavailable("the server is stopping", hint="Ask another node.")


def _outside_form(error: Exception, method: str) -> DimError:
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, DimError):
        return error
    _log.error("a handler failed", method=method, exc_info=error)
    return DimError("internal error", code=Code.INTERNAL, hint="The node's log has the details.")


@dataclass(frozen=True, slots=True)
class Service:
    """A contract and the object that fulfils it."""

    descriptor: ServiceDescriptor
    handler: object
    endless: frozenset[str] = frozenset()
    """Server streams with no end of their own: ended with UNAVAILABLE as soon as the server stops, so that
    their clients turn elsewhere, instead of being waited for."""

    @property
    def name(self) -> str:
        return self.descriptor.full_name


class Dispatcher:
    """The running calls of one server."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._jobs: set[_Job] = set()
        self._endless: set[str] = set()
        self._open = True
        self._idle = trio.Event()

    # in trio
    def admit(self, job: _Job) -> None:
        if not self._open:
            job.refuse()
            return
        self._jobs.add(job)
        self._bridge.spawn(job.run, lambda: self._refused(job))

    def _refused(self, job: _Job) -> None:
        self.left(job)
        job.refuse()

    def left(self, job: _Job) -> None:
        self._jobs.discard(job)
        if not self._open and not self._jobs:
            self._idle.set()

    def running(self) -> int:
        return len(self._jobs)

    def end_endless(self) -> None:
        """Ends the streams that would never end."""
        for job in list(self._jobs):
            if job.method in self._endless:
                job.cancel(_stopping())

    async def finish(self) -> None:
        """Refuses what still comes, cancels what is left and waits for it."""
        self._open = False
        for job in list(self._jobs):
            job.cancel(_stopping())
        if self._jobs:
            await self._idle.wait()

    # in asyncio
    async def _unary(self, method: str, work: Callable[[], Awaitable[Any]]) -> Any:
        future: asyncio.Future[Any] = self._bridge.loop.create_future()
        job = _Job(self, method, work, lambda value, error: self._bridge.to_asyncio(_settle, future, value, error))
        self._bridge.to_trio(job.start)
        try:
            return await future
        except asyncio.CancelledError:
            self._bridge.to_trio(job.cancel)
            raise

    async def _stream(self, method: str, make: Callable[[], AsyncIterator[Any]]) -> AsyncIterator[Any]:
        bridge = self._bridge
        out: ToAsyncio[Any] = ToAsyncio(bridge.to_trio, bridge.to_asyncio, bridge.settings.stream_buffer)

        async def work() -> None:
            messages = make()
            async with closing(messages):
                async for message in messages:
                    await out.send(message)

        job = _Job(self, method, work, lambda _, error: out.finish(error))
        bridge.to_trio(job.start)
        try:
            async for message in out:
                yield message
        finally:
            bridge.to_trio(job.cancel)

    def add(self, server: grpc.aio.Server, service: Service) -> None:
        """Register a service; in asyncio, before the server starts."""
        self._endless.update(f"{service.name}/{m}" for m in service.endless)
        handlers = {m.name: self._handler(m, getattr(service.handler, m.name)) for m in service.descriptor.methods}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.name, handlers),))

    def _handler(self, method: MethodDescriptor, fn: Callable[..., Any]) -> grpc.RpcMethodHandler[Any, Any]:
        name = f"{method.containing_service.full_name}/{method.name}"
        if method.client_streaming:
            make, behave = grpc.stream_unary_rpc_method_handler, self._client_stream(name, fn)
        elif method.server_streaming:
            make, behave = grpc.unary_stream_rpc_method_handler, self._server_stream(name, fn)
        else:
            make, behave = grpc.unary_unary_rpc_method_handler, self._one(name, fn)
        return make(behave, request_deserializer=_reader(method), response_serializer=_serialize)

    def _one(self, name: str, fn: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def behave(request: Any, context: Any) -> Any:
            call = Call(context)
            try:
                return await self._unary(name, lambda: fn(_checked(request), call))
            except DimError as e:
                return await _abort(context, e)

        return behave

    def _server_stream(self, name: str, fn: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
        async def behave(request: Any, context: Any) -> AsyncIterator[Any]:
            call = Call(context)
            try:
                async with aclosing(self._stream(name, lambda: fn(_checked(request), call))) as messages:  # pyright: ignore[reportArgumentType]
                    async for message in messages:
                        yield message
            except DimError as e:
                await _abort(context, e)

        return behave

    def _client_stream(self, name: str, fn: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        bridge = self._bridge

        async def behave(requests: AsyncIterator[Any], context: Any) -> Any:
            call = Call(context)
            inbox: ToTrio[Any] = ToTrio(bridge.to_trio, bridge.to_asyncio, bridge.settings.stream_buffer)
            pump = bridge.loop.create_task(_pump(requests, inbox))
            try:
                return await self._unary(name, lambda: fn(inbox, call))
            except DimError as e:
                return await _abort(context, e)
            finally:
                pump.cancel()

        return behave


async def _pump(requests: AsyncIterator[Any], inbox: ToTrio[Any]) -> None:
    error: DimError | None = Cancelled("the call was cancelled")
    try:
        async for request in requests:
            await inbox.send(_checked(request))
        error = None
    except DimError as e:
        error = e
    finally:
        inbox.finish(error)


def _settle(future: asyncio.Future[Any], value: Any, error: DimError | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)


async def _abort(context: Any, error: DimError) -> None:
    code, text, metadata = to_status(error)
    await context.abort(code, text, metadata)


class _Garbage:
    """Bytes that are not the message of the contract. A deserializer that raises would be answered by gRPC
    itself, with the exception's text and an error in the log."""


_GARBAGE = _Garbage()


def _reader(method: MethodDescriptor) -> Callable[[bytes], Message | _Garbage]:
    kind = message_factory.GetMessageClass(method.input_type)

    def read(data: bytes) -> Message | _Garbage:
        try:
            return kind.FromString(data)
        except DecodeError:
            return _GARBAGE

    return read


def _checked(request: Any) -> Any:
    if request is _GARBAGE:
        raise InvalidArgument("the request is not a message of this method's type")
    return request


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
