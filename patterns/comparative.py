"""Comparative: different models on the same data, then consensus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from patterns.api import Array, Conclusion, Decision, Facts, Fail, ModelFacts, PatternError, Plan, Progress, Source, TaskPlan, TaskResult
from patterns.consensus import Settings, by_value, by_vote
from patterns.forms import CLIENT_DATA, ComparativeConfig
from patterns.planning import allowed, check_names, client_source, data_sources, model_facts, one_holder, require_nodes, rotated
from patterns.progress import all_or_nothing
from patterns.votes import Ballot, vote


def plan_comparative(config: ComparativeConfig, facts: Facts) -> Plan:
    """One task per model. Raises `PatternError`."""
    names = (config.node_id,) if config.node_id is not None else config.nodes
    for i, name in enumerate(config.model_ids):
        model = model_facts(facts, name, f"config.modelIds[{i}]")
        if config.consensus.output is not None:
            check_names([config.consensus.output], model.outputs, "config.consensus.output", f"output of model {name!r}")
    sources, nodes = _data(config, facts, names)
    return Plan(
        tuple(
            TaskPlan(key=f"m/{name}", round=0, model=name, sources=sources, nodes=rotated(nodes, i), columns=config.columns)
            for i, name in enumerate(config.model_ids)
        )
    )


def _data(config: ComparativeConfig, facts: Facts, names: Sequence[str] | None) -> tuple[tuple[Source, ...], tuple[str, ...]]:
    """Where the rows come from, and who may read them; no nodes: whoever fits."""
    if config.data_source == CLIENT_DATA:
        source = client_source(facts, "config.dataSource")
        nodes = allowed(facts, names)
        require_nodes(nodes, names)
        return (source,), nodes if names is not None else ()
    holder = one_holder(facts, config.data_source, names, "config.dataSource")
    return data_sources(facts, config.data_source), (holder,)


class Comparative:
    """The decisions and the consensus of one comparative job."""

    needs_values = True
    last_round = 0

    def __init__(self, config: ComparativeConfig, plan: Plan, models: Mapping[str, ModelFacts], settings: Settings | None = None) -> None:
        self._config = config
        self._plan = plan
        self._models = models
        self._settings = settings or Settings()

    def decide(self, progress: Progress) -> Decision:
        return all_or_nothing(0, self._plan.tasks, progress, ready=self._plan.tasks)

    def conclude(self, round_: int, results: Sequence[TaskResult]) -> Conclusion | Fail:
        by_key = {r.key: r for r in results}
        ordered = [by_key[t.key] for t in self._plan.tasks if t.key in by_key]
        nodes: dict[str, Any] = {"nodes": {r.model: r.node for r in ordered}}
        try:
            answer = self._consensus(ordered)
        except PatternError as e:
            return Fail(e.code, f"consensus failed: {e.message}", e.hint, {**nodes, **e.details})
        if isinstance(answer, Fail):
            return Fail(answer.code, answer.message, answer.hint, {**answer.details, **nodes})
        return Conclusion(outputs=answer.outputs, details={**answer.details, **nodes})

    def _consensus(self, results: Sequence[TaskResult]) -> Conclusion | Fail:
        rule = self._config.consensus
        outputs = {r.model: self._declared_order(r) for r in results}
        if rule.method in ("mean", "median"):
            return by_value(rule, outputs, self._settings)
        return by_vote(rule, {r.model: self._ballot(r, outputs[r.model]) for r in results}, self._settings)

    def _declared_order(self, result: TaskResult) -> dict[str, Array]:
        """Outputs in the model's own order, which storage may have changed."""
        first = [n for n in self._models[result.model].outputs if n in result.outputs]
        return {n: result.outputs[n] for n in [*first, *(n for n in result.outputs if n not in first)]}

    def _ballot(self, result: TaskResult, outputs: Mapping[str, Array]) -> Ballot:
        rows = result.rows if self._models[result.model].batched_outputs else None
        try:
            return vote(outputs, rows, self._config.consensus.output)
        except PatternError as e:
            raise PatternError(e.code, f"model {result.model!r}: {e.message}", e.hint) from e
