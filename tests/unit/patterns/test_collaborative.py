from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patterns.api import Conclusion, Facts, Fail, Finish, PatternError, Run, Seal, Source, Wait
from patterns.collaborative import shard_rows
from tests.support.pattern_facts import facts, keys, model, planned, progress, result

CABINET = {"cabinet_rows": {"k": {"a": 10, "b": 0, "c": 30}}}


def config(method: str = "mean", **more: Any) -> dict[str, Any]:
    return {"model_id": "m", "aggregation": {"method": method}, **more}


def client(rows: int = 7, **more: Any) -> Facts:
    return facts(client_rows=rows, client_inputs=frozenset("x"), **more)


class TestShards:
    @given(st.integers(1, 10_000), st.integers(1, 200))
    def test_cover_all_rows_in_order_near_equal_and_never_empty(self, rows: int, parts: int) -> None:
        shards = shard_rows(rows, parts)
        assert len(shards) == min(rows, parts)
        assert [s[0] for s in shards] == [0, *[s[1] for s in shards[:-1]]]
        assert shards[-1][1] == rows
        sizes = [b - a for a, b in shards]
        assert min(sizes) >= 1
        assert max(sizes) - min(sizes) <= 1


class TestPlanningClientData:
    def test_a_shard_per_node_which_another_node_can_take_over(self) -> None:
        _, plan = planned("collaborative", config(), client(7))
        assert keys(plan.tasks) == ["r0/s0", "r0/s1", "r0/s2"]
        assert [t.nodes for t in plan.tasks] == [("a", "b", "c"), ("b", "c", "a"), ("c", "a", "b")]
        assert [t.sources[0].rows for t in plan.tasks] == [(0, 2), (2, 4), (4, 7)]
        assert not any(t.optional for t in plan.tasks)

    def test_fewer_rows_than_nodes_make_fewer_tasks(self) -> None:
        assert len(planned("collaborative", config(), client(2))[1].tasks) == 2

    def test_only_the_named_nodes_in_their_order(self) -> None:
        _, plan = planned("collaborative", config(nodes=["z", "a"]), client(named={"z": ("c",)}))
        assert [t.nodes for t in plan.tasks] == [("c", "a"), ("a", "c")]

    @pytest.mark.parametrize(
        ("method", "reduce"),
        [("federated_averaging", "mean"), ("trimmed_mean", "mean"), ("sum", "mean"), ("majority_vote", "votes"), ("concat", "rows")],
    )
    def test_what_leaves_the_node(self, method: str, reduce: str) -> None:
        assert {t.reduce for t in planned("collaborative", config(method), client())[1].tasks} == {reduce}

    def test_the_voting_output_and_columns_are_passed_on(self) -> None:
        form = config(columns={"x": ["p"]})
        form["aggregation"] = {"method": "majority_vote", "output": "y"}
        task = planned("collaborative", form, client())[1].tasks[0]
        assert task.vote_output == "y"
        assert task.columns == {"x": ("p",)}

    @pytest.mark.parametrize(
        ("form", "seen", "code"),
        [
            (config(), facts(client_inputs=frozenset()), "INVALID_ARGUMENT"),
            (config(), client(0), "INVALID_ARGUMENT"),
            (config(), facts(client_inputs=frozenset("x")), "INVALID_ARGUMENT"),
            (config(), client(nodes=""), "UNAVAILABLE"),
            (config(nodes=["gone"]), client(), "UNAVAILABLE"),
            (config(min_nodes=4), client(), "UNAVAILABLE"),
            (config(min_nodes=3), client(2), "UNAVAILABLE"),
            ({"model_id": "other"}, client(), "NOT_FOUND"),
            (config(), facts(model(free="x"), client_rows=3), "INVALID_ARGUMENT"),
            (config(rounds=2, feedback={"zz": "x"}), client(), "INVALID_ARGUMENT"),
            (config(rounds=2, feedback={"y": "zz"}), client(), "INVALID_ARGUMENT"),
            (config("majority_vote", rounds=2, feedback={"y": "x"}), client(), "INVALID_ARGUMENT"),
            ({**config(), "aggregation": {"method": "majority_vote", "output": "zz"}}, client(), "INVALID_ARGUMENT"),
        ],
    )
    def test_what_cannot_be_planned(self, form: dict[str, Any], seen: Facts, code: str) -> None:
        with pytest.raises(PatternError) as caught:
            planned("collaborative", form, seen)
        assert caught.value.code == code


class TestPlanningCabinets:
    def test_a_task_for_each_node_with_rows_on_that_node_only(self) -> None:
        _, plan = planned("collaborative", config(data_source="k"), facts(**CABINET))
        assert [t.nodes for t in plan.tasks] == [("a",), ("c",)]
        assert [t.sources for t in plan.tasks] == [(Source("cabinet", "k"),)] * 2

    def test_client_tensors_go_along_whole(self) -> None:
        _, plan = planned("collaborative", config(data_source="k"), facts(client_inputs=frozenset({"w"}), **CABINET))
        assert plan.tasks[0].sources == (Source("cabinet", "k"), Source("client"))
        _, plan = planned("collaborative", config(data_source="k", feedback={"y": "x"}, rounds=2), facts(**CABINET))
        assert plan.tasks[0].sources == (Source("cabinet", "k"), Source("client"))

    def test_min_nodes_makes_tasks_optional_and_missing_nodes_bearable(self) -> None:
        _, plan = planned("collaborative", config(data_source="k", nodes=["c", "gone"], min_nodes=1), facts(**CABINET))
        assert [(t.nodes, t.optional) for t in plan.tasks] == [(("c",), True)]

    @pytest.mark.parametrize(
        ("more", "rows", "code"),
        [
            ({}, {}, "NOT_FOUND"),
            ({"nodes": ["a", "b"]}, {"k": {"a": 1}}, "NOT_FOUND"),
            ({"nodes": ["a", "gone"]}, {"k": {"a": 1, "gone": 1}}, "UNAVAILABLE"),
            ({}, {"k": {"gone": 1}}, "UNAVAILABLE"),
            ({}, {"k": {"a": 0, "b": 0}}, "FAILED_PRECONDITION"),
            ({"min_nodes": 2}, {"k": {"a": 1, "b": 0}}, "UNAVAILABLE"),
        ],
    )
    def test_what_cannot_be_planned(self, more: dict[str, Any], rows: dict[str, dict[str, int]], code: str) -> None:
        with pytest.raises(PatternError) as caught:
            planned("collaborative", config(data_source="k", **more), facts(cabinet_rows=rows))
        assert caught.value.code == code


class TestDeciding:
    def test_one_round(self) -> None:
        engine, plan = planned("collaborative", config(), client())
        assert engine.last_round == 0
        assert engine.decide(progress()) == Run(plan.tasks)
        assert engine.decide(progress(dict.fromkeys(keys(plan.tasks), "running"))) == Wait()
        done = dict.fromkeys(keys(plan.tasks), "completed")
        assert engine.decide(progress(done)) == Seal(0, ("r0/s0", "r0/s1", "r0/s2"))
        assert engine.decide(progress(done, {0: ["r0/s0", "r0/s1", "r0/s2"]})) == Finish(0, ("r0/s0", "r0/s1", "r0/s2"))

    def test_without_min_nodes_one_failure_fails_the_job_at_once(self) -> None:
        fail = planned("collaborative", config(), client())[0].decide(progress({"r0/s0": "running", "r0/s1": "failed"}))
        assert isinstance(fail, Fail)
        assert fail.code == "TASK_FAILED"
        assert fail.details["failed"] == [{"task": "r0/s1", "node": "n", "error": "broken"}]

    def test_with_min_nodes_the_rest_is_waited_for_and_sealed(self) -> None:
        engine, _ = planned("collaborative", config(min_nodes=2), client())
        assert engine.decide(progress({"r0/s0": "running", "r0/s1": "failed", "r0/s2": "completed"})) == Wait()
        assert engine.decide(progress({"r0/s0": "completed", "r0/s1": "failed", "r0/s2": "completed"})) == Seal(0, ("r0/s0", "r0/s2"))
        fail = engine.decide(progress({"r0/s0": "failed", "r0/s1": "failed", "r0/s2": "running"}))
        assert isinstance(fail, Fail)
        assert "2 nodes must complete and only 1 still can" in fail.message

    def test_rounds_feed_the_aggregate_back_and_forget_failed_shards(self) -> None:
        engine, _ = planned("collaborative", config(min_nodes=1, rounds=2, feedback={"y": "x"}), client())
        first = {"r0/s0": "completed", "r0/s1": "failed", "r0/s2": "completed"}
        run = engine.decide(progress(first, {0: ["r0/s0", "r0/s2"]}))
        assert isinstance(run, Run)
        assert keys(run.tasks) == ["r1/s0", "r1/s2"]
        assert run.tasks[1].round == 1
        assert run.tasks[1].sources == (Source("client", rows=(4, 7)), Source("aggregate", "0", {"y": "x"}))
        both = first | {"r1/s0": "completed", "r1/s2": "completed"}
        assert engine.decide(progress(both, {0: ["r0/s0", "r0/s2"]})) == Seal(1, ("r1/s0", "r1/s2"))
        seals = {0: ["r0/s0", "r0/s2"], 1: ["r1/s0", "r1/s2"]}
        assert engine.decide(progress(both, seals)) == Finish(1, ("r1/s0", "r1/s2"))


class TestConcluding:
    def concluded(self, form: dict[str, Any], *results: Any, seen: Facts | None = None) -> Conclusion | Fail:
        engine, _ = planned("collaborative", form, seen or client())
        answer = engine.conclude(0, results)
        json.dumps(answer.details, allow_nan=False)
        return answer

    def test_federated_averaging_weighs_by_rows(self) -> None:
        answer = self.concluded(
            config("federated_averaging"), result("r0/s1", 3, "n1", y=np.array(2.0)), result("r0/s0", 1, "n0", y=np.array(0.0))
        )
        assert isinstance(answer, Conclusion)
        assert answer.outputs["y"] == 1.5
        assert answer.details["rows"] == 4
        assert answer.details["shards"] == [
            {"task": "r0/s0", "node": "n0", "status": "included", "rows": 1, "range": [0, 2]},
            {"task": "r0/s1", "node": "n1", "status": "included", "rows": 3, "range": [2, 4]},
            {"task": "r0/s2", "node": None, "status": "missing", "rows": 0, "range": [4, 7]},
        ]

    def test_rows_come_back_in_the_order_of_the_shards(self) -> None:
        parts = [result(f"r0/s{i}", 1, y=np.array([i])) for i in (2, 0, 1)]
        answer = self.concluded(config("concat"), *parts)
        assert answer.outputs["y"].tolist() == [0, 1, 2]  # type: ignore[union-attr]

    def test_votes_are_summed(self) -> None:
        one = result("r0/s0", 2, **{"class": np.array([1, 5]), "counts": np.array([1, 1])})
        two = result("r0/s1", 1, **{"class": np.array([5]), "counts": np.array([1])})
        answer = self.concluded(config("majority_vote"), one, two)
        assert isinstance(answer, Conclusion)
        assert answer.outputs["counts"].tolist() == [1, 2]
        assert answer.details["winner"] == 5

    def test_outputs_that_are_no_numbers_are_named_though_they_never_left_their_node(self) -> None:
        seen = client(3)
        seen = facts(model(outputs="y name"), client_rows=3)
        answer = self.concluded(config(), result("r0/s0", 1, y=np.ones(2)), seen=seen)
        assert answer.details["left_out"] == ["name"]

    def test_values_that_are_not_finite_are_named(self) -> None:
        assert self.concluded(config(), result("r0/s0", 1, y=np.array([np.nan]))).details["not_finite"] == ["y"]

    def test_a_node_that_turned_out_empty_weighs_nothing(self) -> None:
        answer = self.concluded(config(), result("r0/s0", 0), result("r0/s1", 2, y=np.ones(1)))
        assert isinstance(answer, Conclusion)
        assert [s["status"] for s in answer.details["shards"]] == ["empty", "included", "missing"]

    @pytest.mark.parametrize(
        ("results", "said"),
        [
            ([result("r0/s0", 0)], "no node had any rows"),
            ([result("r0/s0", 1, y=np.array(["a"], dtype=object))], "no output is made of numbers"),
            ([result("r0/s0", 1, y=np.ones(1)), result("r0/s1", 1, y=np.ones(2))], "different shapes"),
        ],
    )
    def test_bad_data_is_a_failure_not_an_exception(self, results: list[Any], said: str) -> None:
        answer = self.concluded(config(), *results)
        assert isinstance(answer, Fail)
        assert said in answer.message
        assert "shards" in answer.details

    @given(st.data())
    def test_the_order_of_arrival_changes_not_a_bit(self, data: st.DataObject) -> None:
        engine, plan = planned("collaborative", config("federated_averaging"), client(9))
        floats = st.floats(-1e9, 1e9)
        results = [
            result(k, data.draw(st.integers(0, 5)) + (i == 0), y=np.array([data.draw(floats)])) for i, k in enumerate(keys(plan.tasks))
        ]
        one = engine.conclude(0, results)
        two = engine.conclude(0, data.draw(st.permutations(results)))
        assert one.outputs["y"].tobytes() == two.outputs["y"].tobytes()  # type: ignore[union-attr]
        assert one.details == two.details
