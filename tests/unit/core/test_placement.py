"""Which node runs a task, and what is said of the others."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dimnode.core.placement import Candidate, Need, Weights, place, refusal

NEED = Need(format="onnx", model_cid="m", memory=100 << 20)


def node(peer: str = "a", **changes: Any) -> Candidate:
    given: dict[str, Any] = {"state": "alive", "loaders": frozenset({"onnx"}), "memory_free": 1 << 30, "slots": 2, "queue_capacity": 4}
    return Candidate(peer=peer, **(given | changes))


def card(peer: str = "a", **changes: Any) -> Candidate:
    return node(peer, **({"gpus": 1, "gpu_formats": frozenset({"onnx"})} | changes))


def need(**changes: Any) -> Need:
    return Need(**({"format": "onnx", "model_cid": "m"} | changes))


@pytest.mark.parametrize(
    ("candidate", "wish", "reason"),
    [
        (node(state="suspect"), NEED, "is suspect"),
        (node(leaving=True), NEED, "is leaving the swarm"),
        (node(loaders=frozenset({"pt2"})), NEED, "has no loader for onnx"),
        (node(memory_free=50 << 20), NEED, "has 50 MiB of memory free and 100 are needed"),
        (node(), need(allowed=("b",)), "is not among the nodes of the job"),
        (node(), need(cabinet="ward"), "has no cabinet ward"),
        (node(), need(gpu=True), "has no GPU"),
        (node(gpus=1, gpu_formats=frozenset({"pt2"})), need(gpu=True), "has a GPU that its loader for onnx cannot use"),
        (card(gpu_memory=8 << 30), need(gpu=True, gpu_memory=9 << 30), "has no GPU with 9216 MiB of memory"),
        (
            card(gpu_memory=8 << 30, gpu_free=1 << 30),
            need(gpu=True, gpu_memory=2 << 30),
            "has 1024 MiB of GPU memory free and 2048 are needed",
        ),
        (
            node(cabinets=frozenset({"ward"}), barred=frozenset({"ward"})),
            need(cabinet="ward"),
            "lacks the complete sandbox that cabinet ward demands",
        ),
        (node(price=3.0), need(budget=2.5), "asks 3 and 2.5 are left of max_cost"),
        (node(price=3.0), need(budget=-1.0), "asks 3 and 0 are left of max_cost"),
        (node(busy=6), NEED, "has a full queue"),
    ],
)
def test_each_filter_refuses_with_its_reason(candidate: Candidate, wish: Need, reason: str) -> None:
    placement = place([candidate, card("zz", cabinets=frozenset({"ward"}))], wish, explain=True)
    assert placement.refused["a"] == reason
    assert placement.chosen in ("zz", None)
    assert placement.ranked in (("zz",), ())


def test_what_fits_passes() -> None:
    fit = card(cabinets=frozenset({"ward"}), gpu_memory=8 << 30, gpu_free=2 << 30, price=2.0)
    assert place([fit], need(cabinet="ward", gpu=True, gpu_memory=2 << 30, budget=2.0, allowed=("a",))).chosen == "a"
    full = card(gpu_memory=8 << 30, gpu_free=0, warm=frozenset({"m"}))
    assert place([full], need(gpu=True, gpu_memory=2 << 30)).chosen == "a", "a loaded model needs no more of the card"
    assert place([card()], need(gpu=True, gpu_memory=1 << 40)).chosen == "a", "a card that does not tell its memory may have enough"
    assert place([node(memory_free=0, warm=frozenset({"m"}))], NEED).chosen == "a", "a loaded model needs no more memory"
    assert place([node(queue_capacity=0, busy=99)], NEED).chosen == "a", "no bound told, no bound applied"


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({}, {"busy": 1}),
        ({"warm": frozenset({"m"})}, {"cached": frozenset({"m"})}),
        ({"cached": frozenset({"m"})}, {}),
        ({"price": 1.0}, {"price": 2.0}),
        ({"price": 0.0}, {"price": 2.0}),
        ({"latency": 0.001}, {"latency": 0.2}),
        ({"slots": 8, "busy": 2}, {"slots": 2, "busy": 1}),
        ({"busy": 0, "price": 9.0}, {"busy": 4, "price": 1.0, "cached": frozenset({"m"})}),
    ],
)
def test_ranking(better: dict[str, Any], worse: dict[str, Any]) -> None:
    assert place([node("a", **worse), node("b", **better)], NEED).ranked == ("b", "a")


@pytest.mark.parametrize("better", [{"warm": frozenset({"m"})}, {"price": 0.5}, {"latency": 0.001}, {"cached": frozenset({"m"})}])
@pytest.mark.parametrize("tasks", [10, 100, 1000])
def test_what_makes_a_node_better_is_worth_one_round_of_tasks_however_long_the_queues_are(better: dict[str, Any], tasks: int) -> None:
    busy = {"a": 0, "b": 0}
    for _ in range(tasks):
        chosen = place([node("a", busy=busy["a"], queue_capacity=0, **better), node("b", busy=busy["b"], queue_capacity=0)], NEED).chosen
        assert chosen is not None
        busy[chosen] += 1
    assert 0 <= busy["a"] - busy["b"] <= 2


def test_an_idle_node_is_preferred_to_a_cheap_one_without_a_free_slot() -> None:
    assert place([node("a", price=1.0, busy=2), node("b", price=1000.0)], NEED).chosen == "b"


def test_reputation_weighs() -> None:
    assert place([node("a"), node("b")], NEED, reputation={"b": 0.9}).chosen == "b"
    assert place([node("a"), node("b")], NEED, reputation={"b": 0.9}, weights=Weights(reputation=0.0)).chosen == "a"


def test_ties_follow_the_jobs_order_then_the_peer_id_and_input_order_does_not_matter() -> None:
    nodes = [node(p) for p in "abcd"]
    assert place(nodes[::-1], NEED).ranked == tuple("abcd")
    assert place(nodes, need(allowed=("c", "a"))).ranked == ("c", "a")


def test_nodes_that_failed_the_task_come_last() -> None:
    assert place([node("a"), node("b", busy=3)], need(avoid=frozenset({"a"}))).ranked == ("b", "a")
    assert place([node("a")], need(avoid=frozenset({"a"}))).chosen == "a"


def test_most_bounds_the_answer() -> None:
    assert len(place([node(f"n{i}") for i in range(50)], NEED, most=3).ranked) == 3


def test_among_many_equals_the_answer_is_the_same_as_for_few() -> None:
    many = [node(f"n{i:03}") for i in range(200)]
    assert place(many, NEED).ranked == tuple(f"n{i:03}" for i in range(16))


def test_explanations_hold_scores_and_reasons_of_all() -> None:
    placement = place([node("a"), node("b", state="dead")], NEED, explain=True)
    assert set(placement.scores) == {"a"}
    assert dict(placement.refused) == {"b": "is dead"}


def test_what_a_task_waits_for() -> None:
    assert place([], NEED).why_none() == "a node to join the swarm"
    placement = place([node("a", state="dead"), node("b", state="dead"), node("c", loaders=frozenset())], NEED)
    assert placement.chosen is None
    assert placement.why_none() == "a node that can run it (2 of 3: is dead)"


nodes = st.builds(
    lambda state, loader, memory, gpus, gpu_free, barred, cabinet, price, busy, capacity, cached, warm, leaving: {
        "state": state, "loaders": frozenset({loader}), "memory_free": memory, "gpus": gpus, "cabinets": frozenset({cabinet}), "price": price,
        "gpu_formats": frozenset({loader}), "gpu_free": gpu_free, "gpu_memory": 100, "barred": frozenset({barred}),
        "busy": busy, "queue_capacity": capacity, "cached": frozenset({cached}), "warm": frozenset({warm}), "leaving": leaving,
    },
    st.sampled_from(["alive", "alive", "suspect"]), st.sampled_from(["onnx", "pt2"]), st.integers(0, 200), st.integers(0, 1),
    st.sampled_from([None, 5, 50]), st.sampled_from(["", "ward"]),
    st.sampled_from(["", "ward"]), st.sampled_from([0.0, 1.0, 2.0]), st.integers(0, 8), st.sampled_from([0, 4]), st.sampled_from(["", "m"]),
    st.sampled_from(["", "m"]), st.booleans(),
)  # fmt: skip
needs = st.builds(
    lambda memory, gpu, gpu_memory, cabinet, allowed, budget: need(memory=memory, gpu=gpu, gpu_memory=gpu_memory, cabinet=cabinet, allowed=allowed, budget=budget),
    st.sampled_from([0, 100]), st.booleans(), st.sampled_from([0, 20, 200]), st.sampled_from([None, "ward"]), st.sampled_from([(), ("n1", "n0", "n3")]), st.sampled_from([None, 1.0]),
)  # fmt: skip


@given(st.lists(nodes, max_size=8), needs)
@settings(max_examples=300, deadline=None)
def test_the_chosen_are_exactly_those_that_no_filter_refuses(made: list[dict[str, Any]], wish: Need) -> None:
    candidates = [node(f"n{i}", **changes) for i, changes in enumerate(made)]
    quick, full = place(candidates, wish), place(candidates, wish, explain=True)
    assert set(quick.ranked) == {c.peer for c in candidates if refusal(c, wish) is None}
    assert set(full.refused) | set(full.ranked) == {c.peer for c in candidates}
    assert quick.ranked == full.ranked
    shuffled = candidates[:]
    random.Random(1).shuffle(shuffled)
    assert place(shuffled, wish).ranked == quick.ranked
