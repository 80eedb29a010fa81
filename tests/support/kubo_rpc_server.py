"""A small server that speaks the documented RPC of Kubo over a store in memory. It is not Kubo: it shows that our side speaks
what https://docs.ipfs.tech/reference/kubo/rpc/ describes, and it fails on demand as no real daemon does.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import h11
import trio

from p2p.identity import Identity
from p2p.ipfs import cid as cids
from p2p.ipfs.api import BadCid, BlockMissing, ContentError
from p2p.ipfs.ipns import name_of
from p2p.ipfs.memory import MemoryStore
from p2p.ipfs.unixfs import Block
from tests.support.content_contract import nothing

CODECS = {"raw": cids.RAW, "dag-pb": cids.DAG_PB, "dag-cbor": cids.DAG_CBOR}
Fault = Literal["", "500", "hang", "garbage", "corrupt", "full", "cut off", "html"]
Answer = tuple[int, bytes]


class Failed(Exception):
    """What Kubo answers with status 500 and a message."""


@dataclass
class KuboRpcServer:
    store: MemoryStore = field(default_factory=MemoryStore)
    elsewhere: dict[str, bytes] = field(default_factory=dict)
    """Blocks that the daemon's own peers have."""
    fault: Fault = ""
    authorization: str = ""
    """What it wants to see in that header."""
    offline: bool = False
    """It has no peers: what is not there is said so at once, instead of being looked for."""
    old_options: bool = False
    """It knows a block's codec as ``format``."""
    keys: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    pubsub: bool = True
    """It was started with --enable-pubsub-experiment."""
    heard: list[tuple[str, bytes]] = field(default_factory=list)
    """(topic, message) of what was published."""
    calls: list[str] = field(default_factory=list)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """The same with their options."""
    mute: frozenset[str] = frozenset()
    """Commands that are carried out and never answered."""
    lag: dict[str, float] = field(default_factory=dict)
    """Seconds between the carrying out of a command and its answer."""
    peer_id: str = "12D3KooWGRUVh5jLyQk8yC5CJfyGNRfSLi9oQyR1zcWiWGLwkxK1"
    api: str = ""
    listening: trio.CancelScope = field(default_factory=trio.CancelScope)

    # --- commands

    async def hang(self, options: dict[str, str], body: bytes) -> Any:
        """In place of a command."""
        await trio.sleep_forever()

    async def id(self, options: dict[str, str], body: bytes) -> Any:
        return {"ID": self.peer_id, "Addresses": [], "AgentVersion": "test"}

    async def block_put(self, options: dict[str, str], body: bytes) -> Any:
        if self.fault == "full":
            raise Failed("failed to write: no space left on device")
        codec = options.get("format" if self.old_options else "cid-codec")
        if codec is None:
            return {"Key": "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG", "Size": len(body)}
        cid = cids.compute(CODECS[codec], body)
        await self.store._blocks.put([Block(cid, body)], durable=True)
        return {"Key": cid.text, "Size": len(body)}

    async def block_get(self, options: dict[str, str], body: bytes) -> Any:
        cid = cids.parse(options["arg"])
        data = await self.store._blocks.get(cid)
        if data is None and options.get("offline") != "true" and not self.offline:
            if cid.text not in self.elsewhere:
                await trio.sleep_forever()
            data = self.elsewhere[cid.text]
        if data is None:
            raise Failed(f"block was not found locally (offline): ipld: could not find {cid}")
        return data[:-1] + bytes((data[-1] ^ 1,)) if self.fault == "corrupt" and data else data

    async def block_stat(self, options: dict[str, str], body: bytes) -> Any:
        cid = cids.parse(options["arg"])
        size = await self.store._blocks.size(cid)
        if size is None:
            raise Failed(f"block was not found locally (offline): ipld: could not find {cid}")
        return {"Key": cid.text, "Size": size}

    async def pin_add(self, options: dict[str, str], body: bytes) -> Any:
        recursive = options["recursive"] == "true"
        before = (await self.store.list_pins()).get(options["arg"])
        if before is not None and before.recursive and not recursive:
            raise Failed(f"pin: {options['arg']} already pinned recursively")
        try:
            await self.store.pin(options["arg"], recursive=recursive)
        except BlockMissing as error:
            raise Failed(f"pin: block was not found locally (offline): ipld: could not find {options['arg']}") from error
        return {"Pins": [options["arg"]]}

    async def pin_rm(self, options: dict[str, str], body: bytes) -> Any:
        before = (await self.store.list_pins()).get(options["arg"])
        if before is None:
            raise Failed("not pinned or pinned indirectly")
        if before.recursive and options["recursive"] != "true":
            raise Failed(f"{options['arg']} is pinned recursively")
        await self.store.unpin(options["arg"])
        return {"Pins": [options["arg"]]}

    async def pin_ls(self, options: dict[str, str], body: bytes) -> Any:
        kinds = {cid: "recursive" if pin.recursive else "direct" for cid, pin in (await self.store.list_pins()).items()}
        if "arg" in options and options["arg"] not in kinds:
            raise Failed(f"path '{options['arg']}' is not pinned")
        wanted = {cid: kind for cid, kind in kinds.items() if cid == options.get("arg", cid) and kind == options.get("type", kind)}
        return {"Keys": {cid: {"Type": kind, "Name": ""} for cid, kind in wanted.items()}}

    async def repo_stat(self, options: dict[str, str], body: bytes) -> Any:
        statistics = self.store.statistics()
        return {
            "RepoSize": statistics.bytes,
            "StorageMax": 10_000_000_000,
            "NumObjects": statistics.blocks,
            "RepoPath": "/",
            "Version": "fs-repo@15",
        }

    async def repo_gc(self, options: dict[str, str], body: bytes) -> Any:
        done = await self.store.collect(nothing(), grace=0)
        return b"".join(b'{"Key":{"/":"bafkrei"}}\n' for _ in range(done.blocks))

    async def add(self, options: dict[str, str], body: bytes) -> Any:
        assert (options["cid-version"], options["raw-leaves"], options["chunker"]) == ("1", "true", "size-262144")
        cid = await self.store.add_bytes(body)
        if options.get("pin") == "true":
            await self.store.pin(cid)
        return {"Name": cid, "Hash": cid, "Size": str(len(body))}

    async def cat(self, options: dict[str, str], body: bytes) -> Any:
        return await self.store.get_bytes(options["arg"])

    async def dag_put(self, options: dict[str, str], body: bytes) -> Any:
        return {"Cid": {"/": await self.store.put_dag_bytes(body)}}

    async def dag_get(self, options: dict[str, str], body: bytes) -> Any:
        return await self.store.get_dag(options["arg"])

    async def key_list(self, options: dict[str, str], body: bytes) -> Any:
        return {"Keys": [{"Name": label, "Id": name} for label, name in self.keys.items()]}

    async def key_gen(self, options: dict[str, str], body: bytes) -> Any:
        if options["arg"] in self.keys:
            raise Failed("key with name already exists")
        assert options["type"] == "ed25519"
        self.keys[options["arg"]] = name_of(Identity.generate().peer_id)
        return {"Name": options["arg"], "Id": self.keys[options["arg"]]}

    async def key_rm(self, options: dict[str, str], body: bytes) -> Any:
        return {"Keys": [{"Name": options["arg"], "Id": self.keys.pop(options["arg"])}]}

    async def name_publish(self, options: dict[str, str], body: bytes) -> Any:
        if options["key"] not in self.keys:
            raise Failed(f"no key by the given name was found: {options['key']}")
        assert re.fullmatch(r"\d+s", options["lifetime"])
        assert re.fullmatch(r"\d+s", options["ttl"])
        name = self.keys[options["key"]]
        self.names[name] = options["arg"]
        return {"Name": name, "Value": options["arg"]}

    async def name_resolve(self, options: dict[str, str], body: bytes) -> Any:
        name = options["arg"].removeprefix("/ipns/")
        if name not in self.names:
            raise Failed("could not resolve name")
        return {"Path": self.names[name]}

    async def pubsub_pub(self, options: dict[str, str], body: bytes) -> Any:
        if not self.pubsub:
            raise Failed("experimental pubsub feature not enabled, run daemon with --enable-pubsub-experiment to use")
        topic = options["arg"]
        if not topic.startswith("u"):
            raise Failed("failed to decode topic: selected encoding not supported")
        self.heard.append((base64.urlsafe_b64decode(topic[1:] + "=" * (-len(topic[1:]) % 4)).decode(), body))
        return b""

    # --- HTTP

    async def answer(self, request: h11.Request, body: bytes) -> Answer:
        target = urlsplit(request.target.decode())
        command = target.path.removeprefix("/api/v0/")
        self.calls.append(command)
        headers = {name.decode(): value.decode() for name, value in request.headers}
        if request.method != b"POST":
            return 405, b"405 - Method Not Allowed"
        if self.authorization and headers.get("authorization") != self.authorization:
            return 403, b"403 - Forbidden"
        if command == "test/fault":  # for tests in other processes
            self.fault = parse_qs(target.query, keep_blank_values=True)["arg"][0]  # type: ignore[assignment]
            return 200, b"{}"
        if self.fault == "hang":
            await trio.sleep_forever()
        if self.fault == "html":
            return 200, b"<html>a proxy's page</html>"
        if self.fault == "500":
            return 500, b"internal server error"
        call: Callable[[dict[str, str], bytes], Awaitable[Any]] | None = getattr(self, command.replace("/", "_"), None)
        if call is None:
            return 404, b"404 page not found"
        options = {name: values[-1] for name, values in parse_qs(target.query).items()}
        self.requests.append((command, options))
        try:
            found = await call(options, _file(headers.get("content-type", ""), body))
        except (Failed, ContentError, BadCid, KeyError) as error:
            return 500, json.dumps({"Message": str(error), "Code": 0, "Type": "error"}).encode()
        if command in self.mute:
            await trio.sleep_forever()
        await trio.sleep(self.lag.get(command, 0.0))
        if self.fault == "garbage":
            return 200, b"[1, 2"
        return 200, found if isinstance(found, bytes) else json.dumps(found).encode() + b"\n"

    async def handle(self, stream: trio.abc.Stream) -> None:
        connection = h11.Connection(h11.SERVER)
        try:
            while True:
                request, body = None, b""
                while True:
                    event = connection.next_event()
                    if event is h11.NEED_DATA:
                        connection.receive_data(await stream.receive_some(65536))
                    elif isinstance(event, h11.Request):
                        request = event
                    elif isinstance(event, h11.Data):
                        body += bytes(event.data)
                    elif isinstance(event, h11.EndOfMessage):
                        break
                    else:
                        return
                assert request is not None
                status, said = await self.answer(request, body)
                length = len(said) + (10 if self.fault == "cut off" else 0)
                head = h11.Response(status_code=status, headers=[("content-length", str(length)), ("content-type", "application/json")])
                await stream.send_all(connection.send(head) or b"")
                await stream.send_all(connection.send(h11.Data(data=said)) or b"")
                if self.fault == "cut off":
                    return
                await stream.send_all(connection.send(h11.EndOfMessage()) or b"")
                if connection.our_state is h11.MUST_CLOSE:
                    return
                connection.start_next_cycle()
        except (trio.BrokenResourceError, h11.RemoteProtocolError):
            return
        finally:
            await trio.aclose_forcefully(stream)


def _file(content_type: str, body: bytes) -> bytes:
    """The one file of a form."""
    found = re.search("boundary=([^;]+)", content_type)
    if not found:
        return b""
    boundary = found.group(1).strip('"').encode()
    return body.split(b"\r\n\r\n", 1)[1].rsplit(b"\r\n--" + boundary, 1)[0]


@asynccontextmanager
async def kubo_rpc_server(path: Path | None = None, port: int = 0, **options: Any) -> AsyncIterator[KuboRpcServer]:
    """On a free loopback port, or on the Unix socket ``path``. Cancelling ``listening`` ends it before the block does."""
    server = KuboRpcServer(**options)
    if path is not None:
        socket = trio.socket.socket(trio.socket.AF_UNIX)
        await socket.bind(str(path))
        socket.listen(16)
        listeners = [trio.SocketListener(socket)]
        server.api = f"unix:{path}"
    else:
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
        server.api = f"/ip4/127.0.0.1/tcp/{listeners[0].socket.getsockname()[1]}"
    async with trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus[None]) -> None:
            with server.listening:
                await trio.serve_listeners(server.handle, listeners, task_status=task_status)

        await nursery.start(serve)
        try:
            yield server
        finally:
            nursery.cancel_scope.cancel()


async def main(port: int) -> None:
    async with kubo_rpc_server(port=port, offline=True):
        print("ready", flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    import sys

    trio.run(main, int(sys.argv[1]))
