"""Appends that share statements do what each would do alone."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Sequence
from typing import Any

import pytest

from dimnode.domain.record import Assign, Ballot, SignedEntry, StatusEntry
from dimnode.state import rows, schema
from dimnode.state.bulk import Append, append_all
from tests.support.entries import claim, core, outcome, signed


def database() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    schema.prepare(connection)
    return connection


def an_append(entries: Sequence[SignedEntry], under: dict[str, Ballot] | None = None, fresh: Sequence[str] = (), at: float = 1.0) -> Append:
    by_job: dict[str, list[rows.Row]] = {job: [] for job in under or {}}
    for r in map(rows.row, entries):
        by_job.setdefault(r.job, []).append(r)
    return Append(by_job, under or {}, fresh, at)


def content(connection: sqlite3.Connection) -> dict[str, Any]:
    entries = connection.execute("SELECT job, id, kind, author, payload, signature FROM entries ORDER BY seq").fetchall()
    jobs = connection.execute("SELECT job, digest, at, claim, ended, final, core IS NULL FROM jobs ORDER BY job").fetchall()
    first = connection.execute("SELECT job, (SELECT id FROM entries WHERE seq = core) FROM jobs ORDER BY job").fetchall()
    return {"entries": entries, "jobs": jobs, "cores": first}


def some_entries(rng: random.Random, job: str) -> list[SignedEntry]:
    n = rng.randint(1, 3)
    ballot = Ballot(n, "p", "b")
    choice = [
        core(job, submitted=float(rng.randint(1, 2))),
        claim(n, job=job),
        signed(StatusEntry(job=job, ballot=ballot, status="running", at=float(rng.randint(1, 3)))),
        signed(Assign(job=job, ballot=ballot, task="t", attempt=n, node="x", task_key="k", model_cid="m", at=1.0)),
    ]
    if rng.random() < 0.2:
        choice.append(outcome(n, rng.choice(["completed", "failed", "expired", "cancelled", "deleted"]), job=job))
    return rng.sample(choice, rng.randint(1, len(choice)))


def some_append(rng: random.Random, jobs: int) -> Append:
    chosen = rng.sample([f"j{i}" for i in range(jobs)], rng.randint(1, min(jobs, 12)))
    under = {job: Ballot(rng.randint(1, 3), "p", "b") for job in chosen if rng.random() < 0.5}
    fresh = [job for job in under if rng.random() < 0.3]
    return an_append([e for job in chosen for e in some_entries(rng, job)], under, fresh, at=float(rng.randint(1, 5)))


@pytest.mark.parametrize("seed", range(25))
def test_in_few_statements_as_one_by_one(seed: int) -> None:
    together, single = database(), database()
    rng, same = random.Random(seed), random.Random(seed)
    jobs = rng.choice([2, 8, 40])
    assert same.choice([2, 8, 40]) == jobs
    for _ in range(6):
        group = [some_append(rng, jobs) for _ in range(rng.randint(1, 8))]
        twins = [some_append(same, jobs) for _ in range(same.randint(1, 8))]
        append_all(together, group)
        for twin in twins:
            for job, found in twin.by_job.items():  # one job and one entry after the other
                known = rows.highest_ballot(single, job)
                if job in twin.under and rows.fences(known, twin.under[job], fresh=job in twin.fresh):
                    assert known is not None
                    twin.fenced[job] = known
                    continue
                for r in found:
                    append_all(single, [Append({job: [r]}, {}, (), twin.at)])
        assert [a.fenced for a in group] == [t.fenced for t in twins]
        assert content(together) == content(single)


def test_a_thousand_new_jobs_take_few_statements() -> None:
    connection = database()
    statements: list[str] = []
    connection.set_trace_callback(statements.append)
    append_all(
        connection, [an_append([core(f"j{i}"), claim(1, job=f"j{i}")], {f"j{i}": Ballot(1, "p", "b")}, [f"j{i}"]) for i in range(1000)]
    )
    assert len(statements) < 60
    assert connection.execute("SELECT count(*), count(core) FROM jobs").fetchall() == [(1000, 1000)]
