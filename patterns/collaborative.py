"""Collaborative: one model on different data, then aggregation, round by round.

The data is a cabinet on each node, which only that node can read, or the client's rows in shards of
near-equal size, which any of the nodes can take over. Round r > 0 is round 0 with the last aggregate
fed back; a shard that failed for good is not asked again in later rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from patterns import aggregation
from patterns.api import (
    Array,
    Conclusion,
    Decision,
    Facts,
    Fail,
    Finish,
    ModelFacts,
    PatternError,
    Plan,
    Progress,
    Reduce,
    Seal,
    Source,
    TaskPlan,
    TaskResult,
)
from patterns.forms import CLIENT_DATA, CollaborativeConfig
from patterns.planning import (
    allowed,
    check_names,
    client_source,
    data_sources,
    holders,
    model_facts,
    peers_of,
    require_nodes,
    rotated,
)
from patterns.progress import drive, failure, with_status
from patterns.reduce import CLASS, COUNTS


def reduction(method: str) -> Reduce:
    """What leaves the node for an aggregation method."""
    match method:
        case "majority_vote":
            return "votes"
        case "concat":
            return "rows"
        case _:
            return "mean"


def plan_collaborative(config: CollaborativeConfig, facts: Facts) -> Plan:
    """One task per node with data. Raises `PatternError`."""
    model = model_facts(facts, config.model_id, "config.modelId")
    _check(config, model)
    work = _client_work(config, facts, model) if config.data_source == CLIENT_DATA else _cabinet_work(config, facts)
    if config.min_nodes is not None and len(work) < config.min_nodes:
        raise PatternError(
            "UNAVAILABLE",
            f"config.minNodes is {config.min_nodes} and only {len(work)} nodes have data for this now",
            "Wait for more nodes, or lower minNodes.",
        )
    return Plan(tuple(_task(config, i, sources, nodes) for i, (sources, nodes) in enumerate(work)))


def _task(config: CollaborativeConfig, i: int, sources: tuple[Source, ...], nodes: tuple[str, ...]) -> TaskPlan:
    return TaskPlan(
        key=f"r0/s{i}",
        round=0,
        model=config.model_id,
        sources=sources,
        nodes=nodes,
        reduce=reduction(config.aggregation.method),
        vote_output=config.aggregation.output if config.aggregation.method == "majority_vote" else None,
        columns=config.columns,
        optional=config.min_nodes is not None,
    )


def _check(config: CollaborativeConfig, model: ModelFacts) -> None:
    if config.aggregation.output is not None:
        check_names([config.aggregation.output], model.outputs, "config.aggregation.output", "output of the model")
    if config.feedback:
        votes = config.aggregation.method == "majority_vote"
        check_names(config.feedback, (CLASS, COUNTS) if votes else model.outputs, "config.feedback", "output of the aggregate")
        check_names(config.feedback.values(), model.inputs, "config.feedback", "input of the model")


Work = list[tuple[tuple[Source, ...], tuple[str, ...]]]


def _client_work(config: CollaborativeConfig, facts: Facts, model: ModelFacts) -> Work:
    source = client_source(facts, "config.dataSource")
    nodes = allowed(facts, config.nodes)
    if not model.batched_inputs:
        raise PatternError(
            "INVALID_ARGUMENT",
            f"config.dataSource: no input of model {config.model_id!r} has a batch axis, so client_data cannot be split",
            "Give batch_axis when the model is added, or use cabinets.",
        )
    if not facts.client_rows:
        raise PatternError(
            "INVALID_ARGUMENT", "client_data: there are no rows to split", f"Give the inputs {', '.join(sorted(model.batched_inputs))}."
        )
    require_nodes(nodes, config.nodes)
    shards = shard_rows(facts.client_rows, len(nodes))
    return [((replace(source, rows=rows),), rotated(nodes, i)) for i, rows in enumerate(shards)]


def shard_rows(rows: int, parts: int) -> list[tuple[int, int]]:
    """Half-open ranges that cover ``rows`` in order, sizes at most one apart, none empty: fewer ranges
    than ``parts`` if there are fewer rows."""
    n = min(rows, parts)
    edges = [rows * i // n for i in range(n + 1)]
    return list(pairwise(edges))


def _cabinet_work(config: CollaborativeConfig, facts: Facts) -> Work:
    rows = holders(facts, config.data_source, "config.dataSource")
    if config.nodes is not None:
        _check_listed(config, facts, rows)
    nodes = [p for p in allowed(facts, config.nodes) if p in rows]
    require_nodes(nodes, config.nodes)
    sources = data_sources(facts, config.data_source, needs_client=bool(config.feedback))
    work: Work = [(sources, (p,)) for p in nodes if rows[p] > 0]
    if not work:
        raise PatternError("FAILED_PRECONDITION", f"config.dataSource: cabinet {config.data_source!r} has no rows on any node")
    return work


def _check_listed(config: CollaborativeConfig, facts: Facts, rows: Mapping[str, int]) -> None:
    """Every node that the client lists must have the cabinet and be there, unless ``min_nodes`` says
    how many are enough."""
    fit = set(facts.nodes)
    for name in config.nodes or ():
        peers = peers_of(facts, name)
        if not any(p in rows for p in peers) and any(p in fit for p in peers):
            raise PatternError("NOT_FOUND", f"config.nodes: node {name!r} has no cabinet {config.data_source!r}")
        if config.min_nodes is None and not any(p in fit for p in peers):
            raise PatternError("UNAVAILABLE", f"config.nodes: node {name!r} cannot run this now", "Wait for it, or set minNodes.")


class Collaborative:
    """The decisions and the aggregation of one collaborative job."""

    needs_values = True

    def __init__(self, config: CollaborativeConfig, plan: Plan, model: ModelFacts) -> None:
        self._config = config
        self._plan = plan
        self._model = model

    @property
    def last_round(self) -> int:
        return self._config.rounds - 1

    def tasks(self, round_: int, progress: Progress) -> tuple[TaskPlan, ...]:
        """The tasks of a round; those of round r > 0 follow from round 0 and the seal before."""
        if round_ == 0:
            return self._plan.tasks
        alive = {_shard(key) for key in progress.seals[round_ - 1]}
        return tuple(self._in_round(t, round_) for t in self._plan.tasks if _shard(t.key) in alive)

    def _in_round(self, task: TaskPlan, round_: int) -> TaskPlan:
        back = Source(kind="aggregate", ref=str(round_ - 1), rename=dict(self._config.feedback or {}))
        return replace(task, key=f"r{round_}/{_shard(task.key)}", round=round_, sources=(*task.sources, back))

    def decide(self, progress: Progress) -> Decision:
        round_ = 0
        while round_ in progress.seals:
            if round_ == self.last_round:
                return Finish(round_, progress.seals[round_])
            round_ += 1
        tasks = self.tasks(round_, progress)
        failed = with_status(tasks, progress, "failed")
        least = self._config.min_nodes if self._config.min_nodes is not None else len(self._plan.tasks)
        if len(tasks) - len(failed) < least:
            return failure(failed, progress, self._shortage(least, len(tasks) - len(failed)))
        done = with_status(tasks, progress, "completed")
        if len(done) + len(failed) == len(tasks):
            return Seal(round_, tuple(t.key for t in done))
        return drive(tasks, progress)

    def _shortage(self, least: int, left: int) -> str:
        return "" if self._config.min_nodes is None else f"{least} nodes must complete and only {left} still can; "

    def conclude(self, round_: int, results: Sequence[TaskResult]) -> Conclusion | Fail:
        order = {t.key.partition("/")[2]: i for i, t in enumerate(self._plan.tasks)}
        ordered = sorted(results, key=lambda r: order[_shard(r.key)])
        details = self._details(round_, ordered)
        try:
            outputs, more = self._aggregate([r for r in ordered if r.rows > 0])
        except PatternError as e:
            return Fail(e.code, f"aggregation failed: {e.message}", e.hint, details)
        return Conclusion(outputs=outputs, details={**details, **more})

    def _aggregate(self, results: Sequence[TaskResult]) -> tuple[dict[str, Array], dict[str, Any]]:
        if not results:
            raise PatternError("FAILED_PRECONDITION", "no node had any rows")
        how = self._config.aggregation
        if how.method == "majority_vote":
            return aggregation.count_classes(results)
        if how.method == "concat":
            outputs, _ = aggregation.concat(results, self._model.batched_outputs)
        else:
            outputs, _ = aggregation.combine(how.method, results, how.trim)
            if not outputs:
                raise PatternError("INVALID_ARGUMENT", "no output is made of numbers", "Use majority_vote or concat.")
        named = [n for n in self._model.outputs if n not in outputs]
        odd = [n for n, a in outputs.items() if a.dtype.kind == "f" and not np.isfinite(a).all()]
        return outputs, {"left_out": named, "not_finite": odd}

    def _details(self, round_: int, results: Sequence[TaskResult]) -> dict[str, Any]:
        by_shard = {_shard(r.key): r for r in results}
        return {
            "method": self._config.aggregation.method,
            "rounds": self._config.rounds,
            "round": round_,
            "rows": sum(r.rows for r in results),
            "shards": [_shard_details(t, by_shard.get(_shard(t.key))) for t in self._plan.tasks],
        }


def _shard(key: str) -> str:
    """``r3/s1`` -> ``s1``"""
    return key.partition("/")[2]


def _shard_details(task: TaskPlan, result: TaskResult | None) -> dict[str, Any]:
    rows = next((list(s.rows) for s in task.sources if s.rows is not None), None)
    span = {"range": rows} if rows is not None else {}
    if result is None:
        return {"task": task.key, "node": None, "status": "missing", "rows": 0, **span}
    return {"task": result.key, "node": result.node, "status": "included" if result.rows else "empty", "rows": result.rows, **span}
