"""Selecting a node stays far below what the specification allows."""

from __future__ import annotations

from tools.bench_placement import median_ms


def test_selection_among_a_hundred_nodes_is_well_under_ten_milliseconds() -> None:
    assert median_ms(100, 50) < 3


def test_cost_grows_no_faster_than_the_swarm() -> None:
    """A hundred times the nodes, at most four hundred times the time (caches)."""
    assert median_ms(10_000, 5) < 400 * max(0.02, median_ms(100, 100))
