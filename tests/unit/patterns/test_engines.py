"""What holds for every pattern: plans survive storage, decisions follow from facts alone, every job ends."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dimnode.domain import codec
from patterns.api import Decision, Engine, Facts, Fail, Finish, PatternError, Progress, Run, Seal, TaskState, Wait
from patterns.engines import make_engine, make_plan, plan_from_plain, plan_to_plain
from patterns.forms import ChainedConfig, CollaborativeConfig
from tests.support.pattern_facts import facts, model, planned

SEEN = facts(
    model("m"), model("n"), client_rows=5, cabinet_rows={"k": {"a": 3, "c": 9}}, client_inputs=frozenset({"x"}), named={"north": ("a",)}
)
JOBS: dict[str, tuple[str, dict[str, Any]]] = {
    "shards": ("collaborative", {"model_id": "m"}),
    "some shards": ("collaborative", {"model_id": "m", "min_nodes": 2}),
    "rounds": ("collaborative", {"model_id": "m", "min_nodes": 1, "rounds": 3, "feedback": {"y": "x"}}),
    "cabinets": ("collaborative", {"model_id": "m", "data_source": "k", "columns": {"x": ["p", "q"]}, "aggregation": {"method": "concat"}}),
    "votes": ("comparative", {"model_ids": ["m", "n"], "node_id": "north", "columns": ["p"]}),
    "chain": (
        "chained",
        {
            "pipeline": [
                {"step": 1, "model_id": "m", "timeout": 2, "outputs": {"y": "z"}},
                {"step": 2, "model_id": "n", "input_source": "step_1_output", "inputs": {"z": "x"}},
                {"step": 3, "model_id": "n", "input_source": ["client_data", "step_1_output", "step_2_output"]},
            ]
        },
    ),
}


@pytest.mark.parametrize("job", JOBS)
def test_a_plan_survives_storage(job: str) -> None:
    _, plan = planned(*JOBS[job], SEEN)
    plain = plan_to_plain(plan)
    assert plan_from_plain(json.loads(json.dumps(plain))) == plan
    assert plan_from_plain(codec.decode_plain(codec.encode(plain))) == plan


def test_what_is_no_plan_is_refused() -> None:
    with pytest.raises(PatternError, match="cannot be read"):
        plan_from_plain({"tasks": [{"key": 7}]})


def test_a_pattern_and_a_config_must_go_together() -> None:
    config = CollaborativeConfig(model_id="m")
    with pytest.raises(PatternError):
        make_plan("chained", config, SEEN)
    with pytest.raises(PatternError):
        make_engine("comparative", config, make_plan("collaborative", config, SEEN), SEEN.models)
    with pytest.raises(PatternError):
        make_plan("comparative", ChainedConfig.model_validate(JOBS["chain"][1]), SEEN)


class Walk:
    """A job under a random orchestrator: tasks start, finish, fail and are retried in any order."""

    def __init__(self, engine: Engine, chance: random.Random, failures: float) -> None:
        self.engine = engine
        self.chance = chance
        self.failures = failures
        self.tasks: dict[str, TaskState] = {}
        self.seals: dict[int, tuple[str, ...]] = {}

    def decide(self) -> Decision:
        """The same whatever the order in which facts arrived, and however often it is asked."""
        items = list(self.tasks.items())
        decisions: list[Decision] = []
        for _ in range(3):
            self.chance.shuffle(items)
            decisions.append(self.engine.decide(Progress(dict(items), dict(self.seals))))
        assert decisions[0] == decisions[1] == decisions[2]
        return decisions[0]

    def finish_one(self) -> None:
        running = sorted(k for k, t in self.tasks.items() if t.status == "running")
        assert running, "the engine waits and nothing runs"
        key = self.chance.choice(running)
        status = "failed" if self.chance.random() < self.failures else self.chance.choice(["completed", "completed", "pending"])
        self.tasks[key] = TaskState(key, status, "n", 1)  # type: ignore[arg-type]

    def to_the_end(self, most: int = 1000) -> Finish | Fail:
        for _ in range(most):
            decision = self.decide()
            match decision:
                case Run():
                    assert decision.tasks
                    for task in decision.tasks:
                        assert task.key not in self.tasks or self.tasks[task.key].status == "pending"
                        self.tasks[task.key] = TaskState(task.key, "running")
                    self.finish_one()
                case Wait():
                    self.finish_one()
                case Seal():
                    assert decision.round not in self.seals
                    assert decision.keys
                    assert all(self.tasks[k].status == "completed" for k in decision.keys)
                    self.seals[decision.round] = decision.keys
                case Finish() | Fail():
                    return decision
        raise AssertionError("the job does not end")


@pytest.mark.parametrize("job", JOBS)
@given(seed=st.integers(0, 2**32), failures=st.sampled_from([0.0, 0.1, 0.5]))
def test_every_job_ends(job: str, seed: int, failures: float) -> None:
    engine, _ = planned(*JOBS[job], SEEN)
    walk = Walk(engine, random.Random(seed), failures)
    end = walk.to_the_end()
    if isinstance(end, Finish):
        assert end.round == engine.last_round
        assert end.keys == walk.seals[engine.last_round]
    if failures == 0:
        assert isinstance(end, Finish)


@given(rows=st.integers(1, 50), nodes=st.integers(1, 12), least=st.integers(1, 12))
def test_min_nodes_is_met_at_planning_or_refused(rows: int, nodes: int, least: int) -> None:
    seen = Facts(models={"m": model()}, nodes=tuple(f"n{i}" for i in range(nodes)), client_rows=rows)
    config = CollaborativeConfig(model_id="m", min_nodes=least)
    if least > min(rows, nodes):
        with pytest.raises(PatternError):
            make_plan("collaborative", config, seen)
    else:
        assert len(make_plan("collaborative", config, seen).tasks) >= least
