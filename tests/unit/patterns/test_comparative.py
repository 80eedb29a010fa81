from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patterns.api import Array, Conclusion, Facts, Fail, Finish, PatternError, Run, Seal, TaskResult, Wait
from patterns.comparative import Comparative, plan_comparative
from patterns.consensus import Settings
from patterns.forms import ComparativeConfig
from tests.support.pattern_facts import facts, keys, model, planned, progress, result


def known(n: int = 3, outputs: str = "label p", **more: Any) -> Facts:
    return facts(*[model(f"m{i}", outputs=outputs) for i in range(n)], client_rows=2, client_inputs=frozenset("x"), **more)


def conclude(
    method: str, *outputs: dict[str, Array], rows: int = 2, settings: Settings | None = None, **consensus: Any
) -> Conclusion | Fail:
    names = list(dict.fromkeys(n for o in outputs for n in o))
    form = ComparativeConfig.model_validate(
        {"model_ids": [f"m{i}" for i in range(len(outputs))], "consensus": {"method": method, **consensus}}
    )
    seen = known(len(outputs), " ".join(names))
    plan = plan_comparative(form, seen)
    results = [result(f"m/m{i}", rows, f"n{i}", f"m{i}", **o) for i, o in enumerate(outputs)]
    answer = Comparative(form, plan, seen.models, settings).conclude(0, results[::-1])
    json.dumps(answer.details, allow_nan=False)
    return answer


def concluded(*args: Any, **more: Any) -> Conclusion:
    answer = conclude(*args, **more)
    assert isinstance(answer, Conclusion), answer
    return answer


def failed(*args: Any, **more: Any) -> Fail:
    answer = conclude(*args, **more)
    assert isinstance(answer, Fail), answer
    return answer


def label(*classes: Any) -> dict[str, Array]:
    return {"label": np.array(classes)}


class TestVoting:
    def test_majority_with_dissent_and_agreement(self) -> None:
        answer = concluded("majority_vote", label(1, 2), label(1, 3), label(1, 2))
        assert answer.outputs["class"].tolist() == [1, 2]
        assert answer.outputs["agreement"].tolist() == [1, pytest.approx(2 / 3)]
        assert answer.details["agreement"] == pytest.approx(5 / 6)
        assert answer.details["votes"] == {"m0": [1, 2], "m1": [1, 3], "m2": [1, 2]}
        assert answer.details["dissent"] == [{"row": 1, "class": 2, "votes": {"m1": 3}}]
        assert answer.details["nodes"] == {"m0": "n0", "m1": "n1", "m2": "n2"}

    def test_weights_decide_a_weighted_vote_only(self) -> None:
        two = (label(1, 1), label(2, 2), label(2, 2))
        heavy = {"m0": 5.0}
        assert concluded("weighted_vote", *two, weights=heavy).outputs["class"].tolist() == [1, 1]
        assert concluded("weighted_vote", *two, weights=heavy).details["agreement"] == pytest.approx(5 / 7)
        assert concluded("majority_vote", *two, weights=heavy).outputs["class"].tolist() == [2, 2]

    def test_a_weight_of_zero_has_no_say(self) -> None:
        answer = concluded("weighted_vote", label(1, 1), label(2, 2), weights={"m1": 0})
        assert answer.outputs["class"].tolist() == [1, 1]
        assert answer.details["agreement"] == 1

    def test_a_tie_goes_to_the_smallest_class_and_is_listed(self) -> None:
        answer = concluded("majority_vote", label(2, 1), label(1, 1))
        assert answer.outputs["class"].tolist() == [1, 1]
        assert answer.details["ties"] == [{"row": 0, "classes": [1, 2]}]

    def test_agreement_at_the_threshold_passes_and_below_it_fails_with_the_votes(self) -> None:
        halves = (label(1, 1), label(2, 2))
        assert concluded("majority_vote", *halves, minAgreement=0.5).details["agreement"] == 0.5
        fail = failed("majority_vote", *halves, min_agreement=0.51)
        assert fail.code == "NO_CONSENSUS"
        assert fail.details["votes"] == {"m0": [1, 1], "m1": [2, 2]}
        assert fail.details["agreement"] == 0.5

    def test_unanimous_needs_every_row(self) -> None:
        assert concluded("unanimous", label(1, 2), label(1, 2)).details["agreement"] == 1
        fail = failed("unanimous", label(1, 2), label(1, 3), minAgreement=0.1)
        assert fail.code == "NO_CONSENSUS"
        assert fail.details["min_agreement"] == 1

    def test_the_first_output_in_the_models_own_order_votes(self) -> None:
        seen = facts(model("m0", outputs="z a"), client_rows=2)
        form = ComparativeConfig.model_validate({"model_ids": ["m0"]})
        engine = Comparative(form, plan_comparative(form, seen), seen.models)
        answer = engine.conclude(0, [result("m/m0", 2, "n", "m0", a=np.array([1, 1]), z=np.array([7, 8]))])
        assert answer.outputs["class"].tolist() == [7, 8]  # type: ignore[union-attr]

    def test_a_nan_is_no_vote_and_dissents(self) -> None:
        sure = {"p": np.array([[0.9, 0.1]])}
        answer = concluded("majority_vote", sure, sure, {"p": np.array([[np.nan, 1.0]])}, rows=1)
        assert answer.details["votes"]["m2"] == [None]
        assert answer.details["dissent"] == [{"row": 0, "class": 0, "votes": {"m2": None}}]
        assert answer.details["agreement"] == pytest.approx(2 / 3)

    def test_strings_vote(self) -> None:
        cat = {"label": np.array(["cat"], dtype=object)}
        assert concluded("majority_vote", cat, cat, rows=1).outputs["class"].tolist() == ["cat"]

    def test_mixed_kinds_are_a_clear_error(self) -> None:
        fail = failed("majority_vote", label(1), {"label": np.array(["cat"], dtype=object)}, rows=1)
        assert fail.code == "INVALID_ARGUMENT"

    def test_a_model_that_cannot_vote_is_named(self) -> None:
        fail = failed("majority_vote", label(1, 2), {"label": np.array([0.5, 0.5])})
        assert "model 'm1'" in fail.message

    def test_different_numbers_of_rows_are_a_clear_error(self) -> None:
        seen = facts(model("m0", outputs="label"), model("m1", outputs="label"))
        form = ComparativeConfig.model_validate({"model_ids": ["m0", "m1"]})
        engine = Comparative(form, plan_comparative(form, seen), seen.models)
        fail = engine.conclude(0, [result("m/m0", 2, "n", "m0", **label(1, 2)), result("m/m1", 1, "n", "m1", **label(1))])
        assert isinstance(fail, Fail)
        assert "1, 2" in fail.message

    def test_a_model_without_a_batch_axis_may_vote(self) -> None:
        seen = facts(model("m0", outputs="label", free="x label"))
        form = ComparativeConfig.model_validate({"model_ids": ["m0"]})
        engine = Comparative(form, plan_comparative(form, seen), seen.models)
        answer = engine.conclude(0, [result("m/m0", 1, "n", "m0", **label(1, 2, 3))])
        assert answer.outputs["class"].tolist() == [1, 2, 3]  # type: ignore[union-attr]

    def test_details_are_bounded_and_outputs_are_not(self) -> None:
        answer = concluded("majority_vote", label(*range(50)), label(*range(50, 100)), rows=50, settings=Settings(listed_rows=10))
        assert len(answer.details["votes"]["m0"]) == len(answer.details["ties"]) == len(answer.details["dissent"]) == 10
        assert answer.details["tie_count"] == answer.details["dissent_count"] == 50
        assert len(answer.outputs["class"]) == 50

    @given(st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=1, max_size=5), st.randoms())
    def test_the_order_of_arrival_does_not_matter(self, votes: list[list[int]], chance: Any) -> None:
        form = ComparativeConfig.model_validate({"model_ids": [f"m{i}" for i in range(len(votes))], "consensus": {"min_agreement": 0}})
        seen = known(len(votes), "label")
        engine = Comparative(form, plan_comparative(form, seen), seen.models)
        results = [result(f"m/m{i}", 3, f"n{i}", f"m{i}", **label(*v)) for i, v in enumerate(votes)]
        one = engine.conclude(0, results)
        chance.shuffle(results)
        two = engine.conclude(0, results)
        assert one.details == two.details
        assert (one.outputs["class"] == two.outputs["class"]).all()  # type: ignore[union-attr]


class TestValues:
    def test_mean_with_weights_and_the_share_within_tolerance(self) -> None:
        answer = concluded("mean", {"y": np.array([1.0, 0.0])}, {"y": np.array([1.0, 4.0])}, weights={"m1": 3})
        assert answer.outputs["y"].tolist() == [1.0, 3.0]
        assert answer.details["agreement"] == 0.5
        assert answer.details["dissent"] == [{"model": "m0", "output": "y", "at": [[1]]}, {"model": "m1", "output": "y", "at": [[1]]}]

    def test_median_ignores_an_outlier(self) -> None:
        answer = concluded("median", *({"y": np.array([v])} for v in (1.0, 1.0005, 50.0)), rows=1)
        assert answer.outputs["y"].tolist() == [1.0005]
        assert answer.details["agreement"] == pytest.approx(2 / 3)
        assert answer.details["votes"]["m2"] == {"y": 0.0}

    def test_tolerance_is_the_clients(self) -> None:
        assert concluded("mean", {"y": np.array([1.0])}, {"y": np.array([1.2])}, rows=1, tolerance=0.11).details["agreement"] == 1

    def test_below_the_threshold_it_fails(self) -> None:
        fail = failed("mean", {"y": np.array([1.0])}, {"y": np.array([2.0])}, rows=1)
        assert fail.code == "NO_CONSENSUS"
        assert fail.details["votes"] == {"m0": {"y": 0.0}, "m1": {"y": 0.0}}

    def test_infinities_agree_with_themselves_and_nan_with_nothing(self) -> None:
        assert concluded("median", *[{"y": np.array([np.inf])}] * 3, rows=1).details["agreement"] == 1
        assert failed("mean", {"y": np.array([np.nan])}, {"y": np.array([1.0])}, rows=1).details["agreement"] == 0

    def test_only_outputs_that_all_models_share_as_numbers(self) -> None:
        text = np.array(["t"], dtype=object)
        answer = concluded("mean", {"y": np.ones(1), "a": np.ones(1), "t": text}, {"y": np.ones(1), "t": text}, rows=1)
        assert list(answer.outputs) == ["y"]
        assert answer.details["left_out"] == ["a", "t"]

    def test_a_named_output_alone(self) -> None:
        answer = concluded("mean", *[{"y": np.ones(1), "z": np.ones(1)}] * 2, rows=1, output="z")
        assert list(answer.outputs) == ["z"]

    @pytest.mark.parametrize(
        ("a", "b", "said"),
        [
            ({"y": np.ones(2)}, {"z": np.ones(2)}, "no output is made of numbers in every model"),
            ({"y": np.ones(2)}, {"y": np.ones(3)}, "different shapes"),
            ({"y": np.ones(0)}, {"y": np.ones(0)}, "no values"),
        ],
    )
    def test_what_does_not_compare_is_a_clear_error(self, a: dict[str, Array], b: dict[str, Array], said: str) -> None:
        assert said in failed("mean", a, b).message

    def test_a_named_output_must_be_made_of_numbers(self) -> None:
        text = {"t": np.array(["a"], dtype=object), "y": np.ones(1)}
        assert "'t'" in failed("mean", text, text, rows=1, output="t").message


class TestPlanning:
    def config(self, **more: Any) -> dict[str, Any]:
        return {"model_ids": ["m0", "m1", "m2"], **more}

    def test_one_task_per_model_anywhere(self) -> None:
        _, plan = planned("comparative", self.config(), known())
        assert keys(plan.tasks) == ["m/m0", "m/m1", "m/m2"]
        assert {t.nodes for t in plan.tasks} == {()}
        assert {t.sources[0].kind for t in plan.tasks} == {"client"}
        assert {t.reduce for t in plan.tasks} == {"rows"}

    def test_a_node_by_name(self) -> None:
        _, plan = planned("comparative", self.config(node_id="north"), known(named={"north": ("b",)}))
        assert {t.nodes for t in plan.tasks} == {("b",)}

    def test_several_nodes_share_the_models(self) -> None:
        _, plan = planned("comparative", self.config(nodes=["a", "c"]), known())
        assert [t.nodes for t in plan.tasks] == [("a", "c"), ("c", "a"), ("a", "c")]

    def test_all_models_read_one_nodes_cabinet(self) -> None:
        seen = known(cabinet_rows={"k": {"b": 0, "c": 5}})
        _, plan = planned("comparative", self.config(data_source="k"), seen)
        assert {t.nodes for t in plan.tasks} == {("c",)}
        assert [s.kind for s in plan.tasks[0].sources] == ["cabinet", "client"]

    @pytest.mark.parametrize(
        ("more", "seen", "code"),
        [
            ({"model_ids": ["nobody"]}, {}, "NOT_FOUND"),
            ({"data_source": "k"}, {}, "NOT_FOUND"),
            ({"data_source": "k", "node_id": "a"}, {"cabinet_rows": {"k": {"b": 3}}}, "NOT_FOUND"),
            ({"data_source": "k"}, {"cabinet_rows": {"k": {"gone": 3}}}, "UNAVAILABLE"),
            ({"node_id": "gone"}, {}, "UNAVAILABLE"),
            ({"consensus": {"output": "zzz"}}, {}, "INVALID_ARGUMENT"),
        ],
    )
    def test_what_cannot_be_planned(self, more: dict[str, Any], seen: dict[str, Any], code: str) -> None:
        with pytest.raises(PatternError) as caught:
            planned("comparative", self.config(**more), known(**seen))
        assert caught.value.code == code

    def test_without_client_data(self) -> None:
        with pytest.raises(PatternError, match="the job has none"):
            planned("comparative", {"model_ids": ["m"]}, facts(client_inputs=frozenset()))


class TestDeciding:
    def test_run_then_wait_then_seal_then_finish(self) -> None:
        engine, plan = planned("comparative", {"model_ids": ["m0", "m1", "m2"]}, known())
        assert engine.decide(progress()) == Run(plan.tasks)
        assert engine.decide(progress(dict.fromkeys(keys(plan.tasks), "running"))) == Wait()
        assert engine.decide(progress({"m/m0": "running", "m/m1": "pending"})) == Run(plan.tasks[1:])
        done = dict.fromkeys(keys(plan.tasks), "completed")
        assert engine.decide(progress(done)) == Seal(0, ("m/m0", "m/m1", "m/m2"))
        assert engine.decide(progress(done, {0: ["m/m2", "m/m1", "m/m0"]})) == Finish(0, ("m/m2", "m/m1", "m/m0"))

    def test_one_model_that_fails_for_good_fails_the_job(self) -> None:
        engine, _ = planned("comparative", {"model_ids": ["m0", "m1", "m2"]}, known())
        fail = engine.decide(progress({"m/m0": "completed", "m/m1": "failed"}))
        assert isinstance(fail, Fail)
        assert fail.code == "TASK_FAILED"
        assert "model m1" in fail.message
        assert "broken" in fail.message


def test_results_of_unknown_tasks_are_ignored() -> None:
    engine, _ = planned("comparative", {"model_ids": ["m0"]}, known(1, "label"))
    stray = TaskResult("m/other", "other", "n", 2, {})
    assert isinstance(engine.conclude(0, [stray, result("m/m0", 2, "n", "m0", **label(1, 1))]), Conclusion)
