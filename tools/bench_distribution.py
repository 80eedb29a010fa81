"""How fast one file gets from one node to several, and how much memory each of them needs.

    python -m tools.bench_distribution [--mb 256] [--nodes 1 3 5] [--ways dim one-source sequential stream tcp] [--uplink MB/s] [--json]

Every node is a process of its own on this machine, so all of them share its cores. ``--uplink``: what each can send, as machines do that
have a line of their own; each connection gets an equal part of it, for ever (the kernel paces the sockets), so those that share what
they send are at a disadvantage. Ways:

- ``dim``: all fetch at once, from the source and from each other, as nodes do.
- ``one-source``: all fetch at once, from the source only.
- ``sequential``: one after the other, from the source only: so many copies of one transfer.
- ``stream``: all copy at once over one libp2p stream each (noise, yamux), to a file, nothing checked.
- ``tcp``: the same over a plain TCP connection.

MB/s is what all nodes together got by the time that the last one had it. ``peak`` is the largest resident memory of a process at any time,
``served`` the share of the blocks that did not come from the source.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio
from libp2p.io.trio import TrioTCPStream

from p2p.identity import Identity
from p2p.ipfs.embedded import EmbeddedStore, open_embedded
from p2p.network import Libp2pNetwork, open_network

MB = 1_000_000
PIECE = 256 * 1024
COPY = "/dim/bench-copy/1"
_SO_MAX_PACING_RATE = 47
"""Linux; bytes per second."""
WAYS = ("dim", "one-source", "sequential", "stream", "tcp")


# --- a process: the source, or a node that wants the file


@asynccontextmanager
async def _node(folder: Path, serves: bool) -> AsyncGenerator[tuple[Libp2pNetwork, EmbeddedStore], None]:
    async def nobody(peer: str, audiences: Collection[str]) -> bool:
        del peer, audiences
        await trio.lowlevel.checkpoint()
        return False

    async with (
        open_network(identity=Identity(os.urandom(32))) as network,
        open_embedded(
            folder,
            host=network.host,
            connected=network.peers,
            open_stream=network.open_stream,
            may_serve=None if serves else nobody,
        ) as store,
    ):
        yield network, store


async def _content(size: int) -> AsyncGenerator[bytes, None]:
    """Bytes that differ from piece to piece, so that no two blocks are one."""
    for number in range((size + PIECE - 1) // PIECE):
        yield (number.to_bytes(8, "big") * (PIECE // 8))[: size - number * PIECE]
        await trio.lowlevel.checkpoint()


def _say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


async def _orders() -> AsyncGenerator[dict[str, Any], None]:
    """One JSON object per line of stdin."""
    while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
        yield json.loads(line)


def _limit_uplink(rate: float, connections: int) -> None:
    """Of this process, in MB/s."""
    made = TrioTCPStream.__init__

    def paced(self: TrioTCPStream, stream: trio.SocketStream) -> None:
        stream.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, int(rate * MB / connections))
        made(self, stream)

    TrioTCPStream.__init__ = paced  # type: ignore[method-assign]


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def source(folder: Path, size: int) -> None:
    """Has the file, as blocks and as a file, and gives it out in every way, until stdin ends."""
    plain = folder / "plain"
    with plain.open("wb") as file:
        async for piece in _content(size):
            file.write(piece)
    async with _node(folder / "blocks", True) as (network, store), trio.open_nursery() as nursery:
        cid, _ = await store.add_file(plain)

        async def copy(stream: Any) -> None:
            """The whole file, then the end."""
            with plain.open("rb") as file:
                while piece := file.read(PIECE):
                    await stream.write(piece) if hasattr(stream, "write") else await stream.send_all(piece)
            await (stream.close() if hasattr(stream, "close") else stream.aclose())

        network.serve_streams(COPY, copy)
        listeners = await nursery.start(partial(trio.serve_tcp, copy, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        _say(address=network.addresses()[0], cid=cid, port=port)
        async for _ in _orders():
            _say(peak=_peak(), served=store.statistics().served_blocks)
        nursery.cancel_scope.cancel()


async def node(folder: Path, way: str) -> None:
    """Gets the file when it is told to, and goes on serving until stdin ends."""
    shares = way == "dim"
    async with _node(folder / "blocks", True) as (network, store):
        _say(address=network.addresses()[0])
        async for order in _orders():
            for address in order.get("connect", ()):
                await network.connect(address)
            if "fetch" in order:
                began, cpu = time.perf_counter(), time.process_time()
                size = await _get(order["fetch"], way, network, store, folder / "file", order["providers"] if shares else [order["source"]])
                _say(
                    seconds=time.perf_counter() - began,
                    cpu=time.process_time() - cpu,
                    size=size,
                    blocks=store.statistics().fetched_blocks,
                )
            else:
                _say(peak=_peak(), served=store.statistics().served_blocks)


async def _get(what: dict[str, Any], way: str, network: Libp2pNetwork, store: EmbeddedStore, target: Path, providers: list[str]) -> int:
    if way not in ("stream", "tcp"):
        return await store.export_file(what["cid"], target, providers=providers, timeout=120)
    stream: Any = (
        await network.open_stream(providers[0], COPY) if way == "stream" else await trio.open_tcp_stream("127.0.0.1", what["port"])
    )
    size = 0
    with target.open("wb") as file:
        while piece := await _read(stream):
            file.write(piece)
            size += len(piece)
        os.fsync(file.fileno())
    await (stream.close() if way == "stream" else stream.aclose())
    return size


async def _read(stream: Any) -> bytes:
    from libp2p.network.stream.exceptions import StreamEOF

    try:
        return await (stream.read(PIECE) if hasattr(stream, "read") else stream.receive_some(PIECE))
    except StreamEOF:
        return b""


# --- the one that measures


@dataclass(frozen=True)
class Result:
    way: str
    nodes: int
    mb: float
    seconds: float
    """Until the last node had it."""
    rate: float
    peak_source: float
    peak_node: float
    cpu: float
    """Seconds of all fetching nodes."""
    served: float


class Process:
    def __init__(self, process: Any) -> None:
        self._process = process
        self._left = b""

    @classmethod
    async def start(cls, nursery: trio.Nursery, *arguments: str) -> tuple[Process, dict[str, Any]]:
        command = [sys.executable, "-m", "tools.bench_distribution", *arguments]
        made = cls(await nursery.start(partial(trio.run_process, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, check=False)))
        return made, await made.answer()

    async def ask(self, **order: Any) -> dict[str, Any]:
        await self._process.stdin.send_all(json.dumps(order).encode() + b"\n")
        return await self.answer()

    async def answer(self) -> dict[str, Any]:
        while b"\n" not in self._left:
            piece = await self._process.stdout.receive_some()
            if not piece:
                raise SystemExit("a process ended early")
            self._left += piece
        line, _, self._left = self._left.partition(b"\n")
        return json.loads(line)

    async def stop(self) -> None:
        await self._process.stdin.aclose()
        await self._process.wait()


def _peer(address: str) -> str:
    return address.rpartition("/")[2]


async def measure(way: str, count: int, size: int, uplink: float) -> Result:
    paced = ("--uplink", str(uplink), "--nodes", str(count))
    with tempfile.TemporaryDirectory(prefix="dim-distribution-") as name:
        folder = Path(name)
        async with AsyncExitStack() as stack:
            nursery = await stack.enter_async_context(trio.open_nursery())
            (folder / "source").mkdir()
            origin, told = await Process.start(
                nursery, "--role", "source", "--folder", str(folder / "source"), "--bytes", str(size), *paced
            )
            processes: list[Process] = []
            addresses: list[str] = []
            for number in range(count):
                (folder / str(number)).mkdir()
                process, ready = await Process.start(
                    nursery, "--role", "node", "--folder", str(folder / str(number)), "--ways", way, *paced
                )
                await process.ask(connect=[told["address"], *addresses] if way == "dim" else [told["address"]])
                processes.append(process)
                addresses.append(ready["address"])
            answers = await _all_get(way, processes, [told["address"], *addresses], told)
            seconds = answers.pop("seconds")
            ends = [await process.ask() for process in processes]
            at_source = await origin.ask()
            for process in (*processes, origin):
                await process.stop()
    fetched = [each for each in answers["nodes"] if each["size"] != size]
    if fetched:
        raise SystemExit(f"{way}: {len(fetched)} nodes have a file of another size")
    blocks = sum(each["blocks"] for each in answers["nodes"])
    return Result(
        way=way,
        nodes=count,
        mb=size / MB,
        seconds=round(seconds, 2),
        rate=round(count * size / MB / seconds, 1),
        peak_source=round(at_source["peak"]),
        peak_node=round(max(each["peak"] for each in ends)),
        cpu=round(sum(each["cpu"] for each in answers["nodes"]), 2),
        served=round(1 - at_source["served"] / blocks, 2) if blocks else 0.0,
    )


async def _all_get(way: str, processes: list[Process], addresses: list[str], told: dict[str, Any]) -> dict[str, Any]:
    answers: list[dict[str, Any]] = []
    peers = [_peer(address) for address in addresses]

    async def one(process: Process, me: str) -> None:
        providers = [peer for peer in peers if peer != me]
        answers.append(await process.ask(fetch={"cid": told["cid"], "port": told["port"]}, source=peers[0], providers=providers))

    began = time.perf_counter()
    if way == "sequential":
        for process, me in zip(processes, peers[1:], strict=True):
            await one(process, me)
    else:
        async with trio.open_nursery() as nursery:
            for process, me in zip(processes, peers[1:], strict=True):
                nursery.start_soon(one, process, me)
    return {"nodes": answers, "seconds": time.perf_counter() - began}


def show(results: list[Result]) -> None:
    print(
        f"{'way':<12} {'nodes':>5} {'MB':>6} {'s':>8} {'MB/s':>7} {'of stream':>9} {'source MB':>9} {'node MB':>8} {'CPU s':>7} {'served':>7}"
    )
    streams = {each.nodes: each.seconds for each in results if each.way == "stream"}
    for r in results:
        ratio = f"{streams[r.nodes] / r.seconds:.2f}" if r.nodes in streams else ""
        print(
            f"{r.way:<12} {r.nodes:>5} {r.mb:>6.0f} {r.seconds:>8} {r.rate:>7} {ratio:>9} "
            f"{r.peak_source:>9.0f} {r.peak_node:>8.0f} {r.cpu:>7} {r.served:>7}"
        )


async def main(size: int, counts: list[int], ways: list[str], uplink: float, as_json: bool) -> None:
    results = [await measure(way, count, size, uplink) for count in counts for way in ways]
    if as_json:
        print(json.dumps([vars(result) for result in results]))
    else:
        show(results)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--mb", type=int, default=256, help="megabytes of the file")
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 3, 5])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--uplink", type=float, default=0.0, help="MB/s that each node can send; 0: as much as it can")
    parser.add_argument("--json", action="store_true")
    for hidden in ("--role", "--folder"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--bytes", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    given = parse()
    if given.role and given.uplink:
        _limit_uplink(given.uplink, given.nodes[0])
    if given.role == "source":
        trio.run(source, Path(given.folder), given.bytes)
    elif given.role == "node":
        trio.run(node, Path(given.folder), given.ways[0])
    else:
        trio.run(main, given.mb * MB, given.nodes, given.ways, given.uplink, given.json)
