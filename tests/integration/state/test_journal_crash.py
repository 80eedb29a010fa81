"""What was acknowledged survives SIGKILL at any moment; group commit is fast enough."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import trio

from dimnode.state.journal import open_journal
from tests.support import entries as e

REPOSITORY = Path(__file__).parents[3]


def _acknowledged_before_kill(path: Path, run: int, rng: random.Random) -> list[str]:
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.state.crash_child", str(path), str(run)],
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    with child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(rng.randint(1, 300))]
        time.sleep(rng.uniform(0, 0.02))  # any moment of a transaction
        child.kill()
        lines += child.stdout.readlines()
    return [line.decode().strip() for line in lines if line.endswith(b"\n")]


async def test_all_that_was_acknowledged_is_there_after_kill(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    rng = random.Random(8)
    acknowledged: set[str] = set()
    for run in range(6):
        acknowledged |= set(await trio.to_thread.run_sync(_acknowledged_before_kill, path, run, rng))
        async with open_journal(path) as journal:
            there = await journal.unfinished()
            assert acknowledged <= set(there)
            for job in rng.sample(there, min(50, len(there))):
                assert len(await journal.load(job)) == 2, "an append is there as a whole or not at all"
    assert len(acknowledged) > 100


async def test_thousands_of_single_appends_per_second(tmp_path: Path) -> None:
    count, workers = 3200, 32
    made = [e.core(f"job-{i}") for i in range(count)]

    async def one(worker: int) -> None:
        for i in range(worker, count, workers):
            await journal.append([made[i]])

    async with open_journal(tmp_path / "journal.db") as journal:
        start = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for worker in range(workers):
                nursery.start_soon(one, worker)
        rate = count / (time.perf_counter() - start)
        assert len(await journal.unfinished()) == count
        assert journal.statistics().transactions < count / 4, "appends share transactions"
    print(f"{rate:.0f} appends/s")
    assert rate > 400, "generous: the machine may be busy; the aim is 2,000"
