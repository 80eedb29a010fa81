from __future__ import annotations

from typing import Any

import pytest

from patterns.api import Conclusion, Facts, Fail, Finish, PatternError, Run, Seal, Source, Wait
from tests.support.pattern_facts import facts, keys, model, planned, progress, result

DETECT = model("detect", "image", "boxes scores")
CUT = model("cut", "image corners", "crops")
READ = model("read", "crops", "text")


def seen(**more: Any) -> Facts:
    return facts(DETECT, CUT, READ, client_inputs=frozenset({"image"}), **more)


def step(n: int, model_id: str, source: Any = "client_data", **more: Any) -> dict[str, Any]:
    return {"step": n, "model_id": model_id, "input_source": source, **more}


def pipeline(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"pipeline": list(steps)}


CHAIN = pipeline(
    step(1, "detect", outputs={"boxes": "corners"}, timeout=5),
    step(2, "cut", ["client_data", "step_1_output"], node_id="north"),
    step(5, "read", "step_2_output", name="reader", nodes=["c", "b"]),
)


def test_steps_become_tasks() -> None:
    _, plan = planned("chained", CHAIN, seen(named={"north": ("b",)}))
    one, two, three = plan.tasks
    assert keys(plan.tasks) == ["step-1", "step-2", "step-5"]
    assert one.timeout == 5
    assert one.rename_outputs == {"boxes": "corners"}
    assert two.sources == (Source("client"), Source("task", "step-1"))
    assert [t.nodes for t in plan.tasks] == [(), ("b",), ("c", "b")]
    assert three.sources == (Source("task", "step-2"),)


def test_a_step_runs_when_its_sources_are_done() -> None:
    engine, plan = planned("chained", CHAIN, seen(named={"north": ("b",)}))
    assert engine.decide(progress()) == Run(plan.tasks[:1])
    assert engine.decide(progress({"step-1": "running"})) == Wait()
    assert engine.decide(progress({"step-1": "completed"})) == Run(plan.tasks[1:2])
    done = dict.fromkeys(keys(plan.tasks), "completed")
    assert engine.decide(progress(done)) == Seal(0, ("step-1", "step-2", "step-5"))
    assert engine.decide(progress(done, {0: keys(plan.tasks)})) == Finish(0, ("step-1", "step-2", "step-5"))


def test_branches_run_side_by_side() -> None:
    engine, plan = planned(
        "chained", pipeline(step(1, "detect"), step(2, "detect"), step(3, "read", ["step_1_output", "step_2_output"])), seen()
    )
    assert engine.decide(progress()) == Run(plan.tasks[:2])
    assert engine.decide(progress({"step-1": "completed", "step-2": "running"})) == Wait()


def test_a_failed_step_fails_the_job() -> None:
    fail = planned("chained", CHAIN, seen(named={"north": ("b",)}))[0].decide(progress({"step-1": "failed"}))
    assert isinstance(fail, Fail)
    assert fail.code == "TASK_FAILED"
    assert "step-1" in fail.message


def test_the_last_step_is_the_result_and_details_tell_the_steps() -> None:
    engine, _ = planned("chained", CHAIN, seen(named={"north": ("b",)}))
    assert not engine.needs_values
    answer = engine.conclude(0, [result("step-5", node="c"), result("step-1", node="a")])
    assert isinstance(answer, Conclusion)
    assert answer.passthrough == "step-5"
    assert [(s["step"], s["name"], s["node"], s["status"]) for s in answer.details["steps"]] == [
        (1, "step 1", "a", "completed"),
        (2, "step 2", None, "missing"),
        (5, "reader", "c", "completed"),
    ]


def test_without_the_last_steps_result_there_is_none() -> None:
    answer = planned("chained", CHAIN, seen(named={"north": ("b",)}))[0].conclude(0, [])
    assert isinstance(answer, Fail)
    assert answer.code == "DATA_LOSS"


def test_a_cabinet_pins_its_step_to_one_holder_and_comes_first() -> None:
    _, plan = planned(
        "chained", pipeline(step(1, "detect"), step(2, "cut", ["step_1_output", "k"])), seen(cabinet_rows={"k": {"b": 4, "c": 4}})
    )
    assert plan.tasks[1].nodes == ("b",)
    assert [s.kind for s in plan.tasks[1].sources] == ["cabinet", "task"]


def test_a_step_without_wiring_is_left_to_run_time() -> None:
    planned("chained", pipeline(step(1, "detect"), step(2, "read", "step_1_output")), seen())


@pytest.mark.parametrize(
    ("steps", "more", "code", "said"),
    [
        ([step(1, "nobody")], {}, "NOT_FOUND", "config.pipeline[0].modelId"),
        ([step(1, "detect", node_id="gone")], {}, "UNAVAILABLE", "gone"),
        ([step(1, "detect", "k")], {}, "NOT_FOUND", "config.pipeline[0].inputSource"),
        ([step(1, "detect", ["k", "l"])], {"cabinet_rows": {"k": {"a": 1}, "l": {"a": 1}}}, "INVALID_ARGUMENT", "more than one cabinet"),
        ([step(1, "detect", inputs={"image": "zz"})], {}, "INVALID_ARGUMENT", "'zz'"),
        ([step(1, "detect", inputs={"photo": "image"})], {}, "INVALID_ARGUMENT", "'photo'"),
        ([step(1, "detect", outputs={"zz": "a"})], {}, "INVALID_ARGUMENT", "'zz'"),
        ([step(1, "detect", outputs={"boxes": "scores"})], {}, "INVALID_ARGUMENT", "same name"),
        (
            [step(1, "detect"), step(2, "cut", "step_1_output", inputs={"boxes": "corners"})],
            {},
            "INVALID_ARGUMENT",
            "nothing feeds input 'image'",
        ),
        ([step(1, "detect")], {"client_inputs": frozenset()}, "INVALID_ARGUMENT", "the job has none"),
    ],
)
def test_what_cannot_be_planned(steps: list[dict[str, Any]], more: dict[str, Any], code: str, said: str) -> None:
    known = facts(DETECT, CUT, READ, **{"client_inputs": frozenset({"image"}), **more})
    with pytest.raises(PatternError) as caught:
        planned("chained", pipeline(*steps), known)
    assert caught.value.code == code
    assert said in caught.value.message
