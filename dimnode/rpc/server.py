"""Starting and stopping one gRPC server as a scope: serving is `async with`, and afterwards the port is closed."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import trio
from grpc_health.v1 import _async as async_health  # pyright: ignore[reportAttributeAccessIssue]
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from dimnode.errors import FailedPrecondition
from dimnode.rpc.bridge import Bridge
from dimnode.rpc.dispatch import Dispatcher, Service


@dataclass(frozen=True, slots=True)
class ServerSettings:
    setting: str = "listen"
    """Name of the configuration setting that holds the address, for error messages."""
    grace: float = 1.0
    """Seconds that running calls may take to end when the server stops; then they are cancelled."""
    max_message_bytes: int = 16 * 1024 * 1024
    """Larger requests are refused with RESOURCE_EXHAUSTED before they are read."""
    max_concurrent_calls: int = 10_000
    """Further calls are refused with RESOURCE_EXHAUSTED."""
    keepalive_min_interval: float = 5.0
    """Seconds; clients that ping more often are disconnected."""


@dataclass(frozen=True, slots=True)
class RunningServer:
    address: str
    """Where it really listens: ``host:port``, or ``unix:PATH``."""
    dispatcher: Dispatcher


def options(settings: ServerSettings) -> list[tuple[str, Any]]:
    return [
        ("grpc.so_reuseport", 0),  # with it two servers may bind one port without an error
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", int(settings.keepalive_min_interval * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


@asynccontextmanager
async def serve(
    bridge: Bridge,
    services: Sequence[Service],
    listen: str,
    settings: ServerSettings,
    credentials: grpc.ServerCredentials | None = None,
) -> AsyncGenerator[RunningServer]:
    """Serve on ``listen`` (``host:port``, port 0 for any; ``unix:PATH``), with health checking and reflection,
    while the block runs. Leaving it refuses new calls at once, lets running ones end within ``settings.grace``
    and cancels the rest. Raises `FailedPrecondition` naming ``settings.setting`` if the address cannot be used."""
    dispatcher = Dispatcher(bridge)
    # grpc.aio cannot be stopped in the middle of its start, which takes milliseconds: it would keep the port.
    running = await bridge.aio(_start(dispatcher, services, listen, settings, credentials), interruptible=False)
    try:
        yield RunningServer(running.address, dispatcher)
    finally:
        # Draining goes on when the scope around is cancelled (a seat was lost); the grace bounds it.
        with trio.CancelScope(shield=True):
            dispatcher.end_endless()
            await bridge.aio(running.stop(settings.grace))
            await dispatcher.finish()


class _Server:
    """In the asyncio thread."""

    def __init__(self, server: grpc.aio.Server, checks: Any, address: str) -> None:
        self._server = server
        self._checks = checks
        self.address = address

    async def stop(self, grace: float) -> None:
        await self._checks.enter_graceful_shutdown()
        await self._server.stop(grace)


async def _start(
    dispatcher: Dispatcher,
    services: Sequence[Service],
    listen: str,
    settings: ServerSettings,
    credentials: grpc.ServerCredentials | None,
) -> _Server:
    server = grpc.aio.server(options=options(settings), maximum_concurrent_rpcs=settings.max_concurrent_calls)
    checks = async_health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    for service in services:
        dispatcher.add(server, service)
    names = [s.name for s in services] + [health.SERVICE_NAME, reflection.SERVICE_NAME]
    reflection.enable_server_reflection(names, server)
    try:
        port = server.add_secure_port(listen, credentials) if credentials else server.add_insecure_port(listen)
    except RuntimeError:
        port = 0
    if not port:
        await server.stop(0)
        raise _unusable(settings.setting, listen)
    await server.start()
    for name in ("", *(s.name for s in services)):
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    return _Server(server, checks, listen if listen.startswith("unix:") else f"{listen.rpartition(':')[0]}:{port}")


def _unusable(setting: str, listen: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"{setting} = {listen!r} cannot be used: the port is taken or the address is not this machine's",
        hint=f"Set {setting} to a free port, or to port 0 for any.",
    )


def require_usable(setting: str, listen: str) -> None:
    """For an address that is bound only later: raises `FailedPrecondition` if it cannot be bound now. Blocking."""
    host, _, port = listen.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, proto, _, address in found[:1]:
            with socket.socket(family, kind, proto) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except OSError as e:
        raise _unusable(setting, listen) from e


def is_loopback(listen: str) -> bool:
    """Whether ``host:port`` or ``unix:...`` can be reached from this machine only."""
    if listen.startswith("unix:"):
        return True
    host = listen.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
