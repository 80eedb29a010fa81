"""Chained: a pipeline in which each step's output feeds a later step.

Steps whose sources are done run at once, side by side where they do not depend on each other. The
job's outputs are those of the last step, passed on by reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from patterns.api import Conclusion, Decision, Facts, Fail, ModelFacts, PatternError, Plan, Progress, Source, TaskPlan, TaskResult
from patterns.forms import CLIENT_DATA, ChainedConfig, Step, step_of_source
from patterns.planning import allowed, check_names, client_source, holders, model_facts, one_holder, require_nodes
from patterns.progress import all_or_nothing
from patterns.sources import visible


def step_key(step: int) -> str:
    return f"step-{step}"


def plan_chained(config: ChainedConfig, facts: Facts) -> Plan:
    """One task per step. Raises `PatternError`."""
    seen: dict[int, frozenset[str]] = {}
    tasks: list[TaskPlan] = []
    for i, step in enumerate(config.pipeline):
        field = f"config.pipeline[{i}]"
        model = model_facts(facts, step.model_id, f"{field}.modelId")
        check_names(step.inputs.values() if step.inputs else (), model.inputs, f"{field}.inputs", f"input of model {step.model_id!r}")
        check_names(step.outputs or (), model.outputs, f"{field}.outputs", f"output of model {step.model_id!r}")
        _check_fed(step, model, facts, seen, field)
        seen[step.step] = _outputs(step, model, field)
        tasks.append(_task(step, facts, field))
    return Plan(tuple(tasks))


def _outputs(step: Step, model: ModelFacts, field: str) -> frozenset[str]:
    renamed = step.outputs or {}
    names = [renamed.get(n, n) for n in model.outputs]
    if len(set(names)) != len(names):
        raise PatternError("INVALID_ARGUMENT", f"{field}.outputs gives two outputs the same name")
    return frozenset(names)


def _check_fed(step: Step, model: ModelFacts, facts: Facts, seen: Mapping[int, frozenset[str]], field: str) -> None:
    """Names that the client gives must exist, and a step that is wired by hand must be wired in full, as
    far as can be known before anything has run. A step without ``inputs`` is left to run time, where a
    lone tensor feeds a lone input whatever its name."""
    rename = step.inputs or {}
    fed: set[str] = set()
    known: set[str] = set()
    for source in step.sources:
        names = _names_in(source, facts, seen)
        if names is None:
            return
        known |= names
        fed |= set(visible(names, rename).values())
    lost = [n for n in rename if n not in known]
    if lost:
        raise PatternError("INVALID_ARGUMENT", f"{field}.inputs reads {lost[0]!r}, which no source of the step has", _have(known))
    missing = [n for n in model.inputs if n not in fed and n not in model.optional_inputs]
    if missing and step.inputs:
        raise PatternError("INVALID_ARGUMENT", f"{field}: nothing feeds input {missing[0]!r} of model {step.model_id!r}", _have(known))


def _have(names: set[str]) -> str:
    return f"Its sources have {', '.join(sorted(names)) or 'nothing'}."


def _names_in(source: str, facts: Facts, seen: Mapping[int, frozenset[str]]) -> frozenset[str] | None:
    """Names of the tensors in a source; None if that is not known yet."""
    if source == CLIENT_DATA:
        return facts.client_inputs
    n = step_of_source(source)
    return None if n is None else seen[n]


def _task(step: Step, facts: Facts, field: str) -> TaskPlan:
    names = (step.node_id,) if step.node_id is not None else step.nodes
    cabinets = [s for s in step.sources if s != CLIENT_DATA and step_of_source(s) is None]
    if len(cabinets) > 1:
        raise PatternError("INVALID_ARGUMENT", f"{field}.inputSource names more than one cabinet", "Use a step for each.")
    sources = tuple(_source(s, step, facts, f"{field}.inputSource") for s in step.sources)
    return TaskPlan(
        key=step_key(step.step),
        round=0,
        model=step.model_id,
        sources=tuple(sorted(sources, key=lambda s: s.kind != "cabinet")),
        nodes=_nodes(cabinets, names, facts, field),
        rename_outputs=dict(step.outputs or {}),
        columns=step.columns,
        timeout=step.timeout,
    )


def _nodes(cabinets: Sequence[str], names: Sequence[str] | None, facts: Facts, field: str) -> tuple[str, ...]:
    if cabinets:
        return (one_holder(facts, cabinets[0], names, f"{field}.inputSource"),)
    nodes = allowed(facts, names)
    require_nodes(nodes, names)
    return nodes if names is not None else ()


def _source(name: str, step: Step, facts: Facts, field: str) -> Source:
    rename = dict(step.inputs or {})
    n = step_of_source(name)
    if n is not None:
        return Source(kind="task", ref=step_key(n), rename=rename)
    if name == CLIENT_DATA:
        client_source(facts, field)
        return Source(kind="client", rename=rename)
    holders(facts, name, field)
    return Source(kind="cabinet", ref=name, rename=rename)


class Chained:
    """The decisions of one chained job."""

    needs_values = False
    last_round = 0

    def __init__(self, config: ChainedConfig, plan: Plan) -> None:
        self._config = config
        self._plan = plan

    def decide(self, progress: Progress) -> Decision:
        done = {key for key, state in progress.tasks.items() if state.status == "completed"}
        ready = [t for t in self._plan.tasks if all(s.ref in done for s in t.sources if s.kind == "task")]
        return all_or_nothing(0, self._plan.tasks, progress, ready)

    def conclude(self, round_: int, results: Sequence[TaskResult]) -> Conclusion | Fail:
        by_key = {r.key: r for r in results}
        last = self._plan.tasks[-1].key
        if last not in by_key:
            return Fail("DATA_LOSS", "the last step's result is not there")
        steps = [_step_details(s, by_key.get(step_key(s.step))) for s in self._config.pipeline]
        return Conclusion(passthrough=last, details={"steps": steps})


def _step_details(step: Step, result: TaskResult | None) -> dict[str, Any]:
    return {
        "step": step.step,
        "name": step.name or f"step {step.step}",
        "model": step.model_id,
        "task": step_key(step.step),
        "node": result.node if result else None,
        "status": "completed" if result else "missing",
    }
