"""How soon a node that is new in a swarm with many finished jobs can be used, and knows of them: real node processes, one seat and one
newcomer. Part of `tools.bench_snapshots` (``--nodes``).
"""

from __future__ import annotations

import os
import select
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import trio

from dimnode import node_parts
from dimnode.demo.local_swarm import SETTINGS
from dimnode.errors import DimError
from dimnode.home import Home
from dimnode.rpc.clients import NodeClient
from dimnode.state.journal import open_journal
from tools.bench_snapshots import SWARM, finished

BATCH = 500
PATIENCE = 120.0
"""Seconds for one step."""
POLL = 0.02
QUICK = ("ipfs.snapshot_interval=2", *SETTINGS)


def measure(jobs: int, folder: Path, say: Callable[[str], None]) -> Mapping[str, Any]:
    """Seconds from the newcomer's start."""
    seat, newcomer = Home(folder / "seat"), Home(folder / "newcomer")
    _dimnode("init", "--name", "seat", "--swarm", SWARM, "--home", str(seat.path)).wait(PATIENCE)
    say("filling the journal")
    trio.run(_fill, seat, jobs)
    report: dict[str, Any] = {"jobs": jobs}
    with _running(seat, "seat") as (_, ready):
        report["seat_ready_after"] = round(ready(), 2)
        say("the seat publishes")
        _until(lambda: _status(seat)["state"]["jobs"] >= jobs, "the snapshot is published")
        report["snapshot_seconds"] = round(_status(seat)["state"]["seconds"], 2)
        with NodeClient(seat.control().node) as client:
            invite = client.invite()
        say("a newcomer starts")
        with _running(newcomer, "newcomer", "--join", invite) as (began, ready):
            report["ready_after"] = round(ready(), 2)
            _until(lambda: _caught_up(newcomer).get("informed"), "the newcomer has read the states of all jobs")
            report["informed_after"] = round(time.monotonic() - began, 2)
            _until(lambda: _records(newcomer) >= jobs, "the newcomer has all records")
            report["all_records_after"] = round(time.monotonic() - began, 2)
            report["caught_up"] = _caught_up(newcomer)
    return report


async def _fill(home: Home, jobs: int) -> None:
    """Jobs that this node accepted, drove and ended."""
    signer = await trio.to_thread.run_sync(node_parts.identity, home)
    async with open_journal(home.path / "journal.db") as journal:
        for start in range(0, jobs, BATCH):
            now = time.time()
            await journal.append([e for n in range(start, min(jobs, start + BATCH)) for e in finished(n, signer, now)])


def _dimnode(*arguments: str, log: Path | None = None) -> subprocess.Popen[bytes]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("DIM_")}
    command = [sys.executable, "-m", "dimnode", *arguments]
    with (log or Path(os.devnull)).open("ab") as errors:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env=environ)


@contextmanager
def _running(home: Home, name: str, *more: str) -> Generator[tuple[float, Callable[[], float]], None, None]:
    """When it began, and what waits until the node says that it is ready and returns the seconds that this took."""
    home.create()
    sets = [part for setting in QUICK for part in ("--set", setting)]
    began = time.monotonic()
    process = _dimnode("start", "--home", str(home.path), "--name", name, *sets, *more, log=home.path / "node.log")
    assert process.stdout is not None
    said = process.stdout

    def ready() -> float:
        answered, _, _ = select.select([said], [], [], PATIENCE)
        line = said.readline() if answered else b""
        if not line.startswith(b"dimnode ready"):
            raise SystemExit(f"{name} is not ready: {line!r}")
        return time.monotonic() - began

    try:
        yield began, ready
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        said.close()


def _until(look: Callable[[], Any], what: str) -> None:
    until = time.monotonic() + PATIENCE
    while True:
        try:
            if look():
                return
        except DimError:  # not yet
            pass
        if time.monotonic() > until:
            raise SystemExit(f"not within {PATIENCE:g} s: {what}")
        time.sleep(POLL)


def _status(home: Home) -> dict[str, Any]:
    with NodeClient(home.control().node) as client:
        return client.status()


def _stats(home: Home) -> dict[str, Any]:
    with NodeClient(home.control().node) as client:
        return client.stats()


def _caught_up(home: Home) -> dict[str, Any]:
    return dict(_stats(home)["state"]["caught_up"])


def _records(home: Home) -> int:
    """That the node has, from whomever."""
    with closing(sqlite3.connect(f"file:{home.path / 'journal.db'}?mode=ro", uri=True, timeout=10)) as connection:
        return int(connection.execute("SELECT count(*) FROM jobs WHERE core IS NOT NULL").fetchone()[0])
