"""Synchronous gRPC connections for programs without an event loop: the CLI and the Python client."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc

from dimnode.errors import Code, DimError, Unavailable
from dimnode.rpc import documents
from dimnode.rpc.convert import from_struct
from dimnode.rpc.errors import from_rpc_error
from dimnode.rpc.server import is_loopback
from dimnode.rpc.v1 import node_pb2 as npb
from dimnode.rpc.v1.node_pb2_grpc import NodeStub

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ClientTls:
    """PEM. ``ca`` None trusts the system's authorities; certificate and key identify this client."""

    ca: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = None
    server_name: str | None = None
    """The name that the server's certificate must hold, if it is not the one that is dialled."""


@dataclass(frozen=True, slots=True)
class ClientSettings:
    timeout: float = 30.0
    """Seconds for one call."""
    retry_for: float = 10.0
    """Seconds in which a call that found nobody is tried again, on every target in turn; 0: each target once."""
    backoff_min: float = 0.1
    backoff_max: float = 1.0
    max_message_bytes: int = 256 * 1024 * 1024
    tls: ClientTls | None = None


class Connection:
    """Channels to one or more servers that are as good as each other. Thread-safe; close it after use."""

    def __init__(self, targets: Sequence[str], make_stub: Callable[[grpc.Channel], Any], settings: ClientSettings | None = None) -> None:
        if not targets:
            raise Unavailable("no address is known", hint="Give --orchestrator HOST:PORT or start a node.")
        self.targets = tuple(targets)
        self.settings = settings or ClientSettings()
        self._make_stub = make_stub
        self._channels: dict[str, tuple[grpc.Channel, Any]] = {}
        self._present = 0
        self._lock = threading.Lock()

    def close(self) -> None:
        with self._lock:
            for channel, _ in self._channels.values():
                channel.close()
            self._channels.clear()

    def stub(self) -> Any:
        """The stub of the present target."""
        with self._lock:
            target = self.targets[self._present]
            kept = self._channels.get(target)
            if kept is None:
                channel = self._open(target)
                kept = self._channels[target] = (channel, self._make_stub(channel))
            return kept[1]

    def _next(self) -> None:
        with self._lock:
            self._present = (self._present + 1) % len(self.targets)

    def _open(self, target: str) -> grpc.Channel:
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", self.settings.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.enable_retries", 0),
            ("grpc.initial_reconnect_backoff_ms", int(self.settings.backoff_min * 1000)),
            ("grpc.max_reconnect_backoff_ms", int(self.settings.backoff_max * 1000)),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if is_loopback(target):
            options.append(("grpc.enable_http_proxy", 0))
        tls = self.settings.tls
        if tls is None or target.startswith("unix:"):
            return grpc.insecure_channel(target, options)
        if tls.server_name:
            options.append(("grpc.ssl_target_name_override", tls.server_name))
        return grpc.secure_channel(target, grpc.ssl_channel_credentials(tls.ca, tls.key, tls.certificate), options)

    def call(self, method: str, request: Any, *, timeout: float | None = None) -> Any:
        """A unary call, repeated on UNAVAILABLE: only for calls that may be repeated without harm. Raises `DimError`."""
        limit = self.settings.timeout if timeout is None else timeout
        return self.retry(lambda stub: getattr(stub, method)(request, timeout=limit))

    def retry(self, attempt: Callable[[Any], T]) -> T:
        """Run ``attempt(stub)`` until it does not end with UNAVAILABLE, for `ClientSettings.retry_for` at the most."""
        end = time.monotonic() + self.settings.retry_for
        tries, pause = 0, self.settings.backoff_min
        while True:
            try:
                return attempt(self.stub())
            except grpc.RpcError as e:
                error = from_rpc_error(e)
            tries += 1
            if error.code is not Code.UNAVAILABLE:
                raise error
            if tries >= len(self.targets):
                if time.monotonic() + pause > end:
                    raise unreachable(error)
                time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - not for secrets
                pause = min(pause * 2, self.settings.backoff_max)
            self._next()

    def once(self, attempt: Callable[[Any], T]) -> T:
        """Run ``attempt(stub)`` without repeating it."""
        try:
            return attempt(self.stub())
        except grpc.RpcError as e:
            error = from_rpc_error(e)
            raise (unreachable(error) if error.code is Code.UNAVAILABLE else error) from None

    def stream(self, method: str, request: Any) -> Iterator[Any]:
        """One server stream, not repeated. Ending the iteration early cancels the call. Raises `DimError`."""
        call = getattr(self.stub(), method)(request)
        try:
            yield from call
        except grpc.RpcError as e:
            error = from_rpc_error(e)
            if error.code is Code.UNAVAILABLE:
                self._next()
            raise error from None
        finally:
            with contextlib.suppress(grpc.RpcError):
                call.cancel()


def unreachable(error: DimError) -> DimError:
    """gRPC's own text on a failed connection holds library internals."""
    if error.hint:
        return error
    return Unavailable("nobody answers at the given address", hint="Is the node running? `dimnode status` tells.")


class NodeClient:
    """The node's own socket. ``target``: ``unix:PATH``. All methods raise `DimError`."""

    def __init__(self, target: str, settings: ClientSettings | None = None) -> None:
        self._connection = Connection([target], NodeStub, settings or ClientSettings(retry_for=0.0))

    def __enter__(self) -> NodeClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def status(self) -> dict[str, Any]:
        return from_struct(self._connection.call("Status", npb.StatusRequest()).status)

    def invite(self) -> str:
        return self._connection.call("Invite", npb.InviteRequest()).invite

    def nodes(self) -> list[dict[str, Any]]:
        answer = self._connection.call("ListNodes", npb.ListRegistryRequest())
        return [documents.node_from_proto(n) for n in answer.nodes]

    def stats(self, node: str = "") -> dict[str, Any]:
        """Of this node, or of another by name or peer id."""
        return from_struct(self._connection.call("NodeStats", npb.NodeStatsRequest(node=node)).stats)

    def add_model_file(
        self, path: str, *, id: str = "", licence: str = "", batch_axis: int | None = None, timeout: float = 600.0
    ) -> dict[str, Any]:
        """``path``: absolute, on the node's machine. ``timeout`` covers the trial run in an agent."""
        request = npb.AddModelFileRequest(path=path, id=id, licence=licence, batch_axis=batch_axis)
        return documents.model_from_proto(self._connection.call("AddModelFile", request, timeout=timeout).model)

    def models(self) -> list[dict[str, Any]]:
        answer = self._connection.call("ListSwarmModels", npb.ListLocalModelsRequest())
        return [documents.model_from_proto(m) for m in answer.models]

    def add_cabinet(self, name: str, path: str, policy: str = "", timeout: float = 600.0) -> dict[str, Any]:
        """``policy``: the policy file's content, JSON; empty for the default policy."""
        request = npb.AddCabinetRequest(name=name, path=path, policy=policy)
        return documents.cabinet_from_proto(self._connection.call("AddCabinet", request, timeout=timeout).cabinet)

    def cabinets(self) -> list[dict[str, Any]]:
        answer = self._connection.call("ListCabinets", npb.ListCabinetsRequest())
        return [documents.cabinet_from_proto(c) for c in answer.cabinets]
