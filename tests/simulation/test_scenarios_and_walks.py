"""Whole swarms in simulation: known dangers as scenarios, and random walks by seed. `.ci/run` plays more walks; any one is
played again with ``make simulate SEED=…``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.simulation.farm import Report, Run, farm, perform_all
from tests.simulation.scenarios import SCENARIOS

SEEDS = range(40)
SEEN = (13, 23, 28, 29, 34, 1001, 1005, 1009)
"""Each of these has found something."""
LARGE = Run(1, nodes=50)
TWICE = Run(5)


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with farm() as made:
        yield made


def played(pool: ProcessPoolExecutor, runs: Iterable[Run], chunk: int = 1) -> list[Report]:
    reports = list(perform_all(pool, runs, chunk))
    broken = [str(r) for r in reports if r.problem]
    assert not broken, "\n\n".join(broken[:3])
    return reports


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_what_is_promised_holds_in_danger(pool: ProcessPoolExecutor, name: str) -> None:
    (report,) = played(pool, [Run(7, scenario=name)])
    assert report.counts["jobs"] >= 1


@pytest.mark.timeout(600)
def test_what_is_promised_holds_on_random_walks(pool: ProcessPoolExecutor) -> None:
    reports = played(pool, [Run(seed) for seed in dict.fromkeys((*SEEDS, *SEEN))], chunk=2)
    counts = sum((r.counts for r in reports), Counter[str]())
    assert counts["completed"] + counts["cancelled"] > 10 * len(reports)
    assert min(counts["crashes"], counts["partitions"], counts["pauses"]) > len(reports) // 4, "the walks are too quiet to show anything"


@pytest.mark.timeout(600)
def test_what_is_promised_holds_among_fifty_nodes(pool: ProcessPoolExecutor) -> None:
    played(pool, [LARGE])


def test_a_seed_is_the_same_walk_each_time(pool: ProcessPoolExecutor) -> None:
    one, two = played(pool, [TWICE, TWICE])
    assert one.counts == two.counts
