"""How fast content moves by bitswap on loopback, and how much memory the fetching process needs.

Each provider is a process of its own; the file is fetched from one and from three of them.

    python tools/bench_bitswap.py [--sizes 64 256] [--providers 1 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio

from p2p.identity import Identity
from p2p.ipfs.embedded import EmbeddedStore, open_embedded
from p2p.network import Libp2pNetwork, open_network

MB = 1_000_000


@asynccontextmanager
async def _node(folder: Path) -> AsyncGenerator[tuple[Libp2pNetwork, EmbeddedStore], None]:
    async with (
        open_network(identity=Identity(os.urandom(32))) as network,
        open_embedded(folder, host=network.host, connected=network.peers, open_stream=network.open_stream) as store,
    ):
        yield network, store


async def provide(folder: Path, megabytes: int) -> None:
    """Serve a file until stdin ends; prints its address and CID."""
    async with _node(folder) as (network, store):
        cid, _ = await store.add_stream(_content(megabytes))
        print(json.dumps({"address": network.addresses()[0], "cid": cid}), flush=True)
        await trio.to_thread.run_sync(sys.stdin.buffer.read)


async def _content(megabytes: int) -> AsyncGenerator[bytes, None]:
    for number in range(megabytes * 4):
        yield number.to_bytes(8, "big") * 31_250
        await trio.lowlevel.checkpoint()


async def fetch(folder: Path, target: Path, addresses: list[str], cid: str) -> None:
    async with _node(folder) as (network, store):
        providers = [await network.connect(address) for address in addresses]
        base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started, cpu = time.perf_counter(), time.process_time()
        size = await store.export_file(cid, target, providers=providers)
        seconds = time.perf_counter() - started
        result = {
            "MB": size // MB,
            "MB_per_s": round(size / MB / seconds, 1),
            "cpu_s": round(time.process_time() - cpu, 2),
            "peak_MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "before_MB": base // 1024,
            "blocks": store.statistics().fetched_blocks,
        }
        print(json.dumps(result), flush=True)


async def measure(size: int, count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with AsyncExitStack() as stack:
            nursery = await stack.enter_async_context(trio.open_nursery())
            running = [await _start(nursery, "--provide", str(folder / f"p{i}"), "--sizes", str(size)) for i in range(count)]
            ready = [json.loads(await _line(process)) for process in running]
            command = ["--fetch", str(folder / "f"), "--cid", ready[0]["cid"], "--addresses", *(each["address"] for each in ready)]
            result = json.loads(await _line(await _start(nursery, *command)))
            for process in running:
                await process.stdin.aclose()
    return {"providers": count, **result}


async def _start(nursery: trio.Nursery, *arguments: str) -> Any:
    command = [sys.executable, __file__, *arguments]
    return await nursery.start(partial(trio.run_process, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, check=False))


async def _line(process: Any) -> bytes:
    text = b""
    while not text.endswith(b"\n"):
        piece = await process.stdout.receive_some()
        if not piece:
            raise SystemExit("a process ended early")
        text += piece
    return text


async def main(sizes: list[int], providers: list[int], as_json: bool) -> None:
    results = [await measure(size, count) for size in sizes for count in providers]
    if as_json:
        print(json.dumps(results))
        return
    print(f"{'MB':>6} {'providers':>10} {'MB/s':>8} {'CPU s':>8} {'peak MB':>8} {'blocks':>8}")
    for each in results:
        print(f"{each['MB']:>6} {each['providers']:>10} {each['MB_per_s']:>8} {each['cpu_s']:>8} {each['peak_MB']:>8} {each['blocks']:>8}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256], metavar="MB")
    parser.add_argument("--providers", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--json", action="store_true")
    for hidden in ("--provide", "--fetch", "--cid"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--addresses", nargs="+", default=[], help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    given = parse()
    if given.provide:
        trio.run(provide, Path(given.provide), given.sizes[0])
    elif given.fetch:
        trio.run(fetch, Path(given.fetch), Path(given.fetch + ".out"), given.addresses, given.cid)
    else:
        trio.run(main, given.sizes, given.providers, given.json)
