"""Appends to the journal given as argument and prints each id that was acknowledged, until it is killed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import trio

from dimnode.state.journal import open_journal
from tests.support import entries as e


async def main(path: Path, run: str) -> None:
    async def one(worker: int) -> None:
        for i in range(1_000_000):
            job = f"job-{run}-{worker}-{i}"
            await journal.append([e.core(job), e.claim(1, job=job)])
            os.write(1, f"{job}\n".encode())

    async with open_journal(path) as journal, trio.open_nursery() as nursery:
        for worker in range(8):
            nursery.start_soon(one, worker)


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), sys.argv[2])
