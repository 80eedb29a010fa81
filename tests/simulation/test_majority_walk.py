"""The random walk of a whole swarm that elects by majority. At all times: one holder of a (seat, term), one valid lease of a seat,
and what users were told is on most of the voters' disks."""

from __future__ import annotations

import pytest

from tests.simulation.farm import Run, farm, perform_all

SEEDS = range(500, 505)


@pytest.mark.timeout(300)
def test_walks_and_partitions_break_no_promise() -> None:
    named = ("a_minority_loses_its_seats_and_acknowledges_nothing", "an_end_that_only_a_minority_has_is_not_shown")
    runs = [*(Run(seed, nodes=3 + 2 * (seed % 2), mode="majority") for seed in SEEDS), *(Run(7, 5, name) for name in named)]
    with farm() as pool:
        for report in perform_all(pool, runs, chunk=2):
            assert not report.problem, str(report)
