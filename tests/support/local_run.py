"""A job form run in one process: real engines, real models, no swarm. What a swarm must come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dimnode.domain.job_form import parse_job_form
from dimnode.domain.model import ModelManifest, TensorSpec
from loaders.api import LoadedModel
from patterns.api import Array, Conclusion, Engine, Facts, Fail, Finish, ModelFacts, Progress, Run, Seal, TaskPlan, TaskResult, TaskState
from patterns.engines import make_engine, make_plan, plan_from_plain, plan_to_plain
from patterns.reduce import reduce_outputs
from patterns.sources import feed

Arrays = Mapping[str, Array]
Cabinets = Mapping[str, Mapping[str, Arrays]]
"""node -> cabinet -> columns"""


def model_facts(name: str, model: LoadedModel) -> ModelFacts:
    def specs(found: Sequence[Any]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name=t.name, dtype=t.dtype, shape=t.shape) for t in found)

    manifest = ModelManifest(id=name, cid="", format="onnx", inputs=specs(model.schema.inputs), outputs=specs(model.schema.outputs), size=0)
    return ModelFacts(
        name,
        tuple(t.name for t in manifest.inputs),
        tuple(t.name for t in manifest.outputs),
        manifest.batched_inputs(),
        manifest.batched_outputs(),
    )


class LocalRun:
    def __init__(self, nodes: Sequence[str], models: Mapping[str, LoadedModel], cabinets: Cabinets | None = None) -> None:
        self.nodes = tuple(nodes)
        self.models = models
        self.cabinets = cabinets or {}
        self.facts = {name: model_facts(name, m) for name, m in models.items()}

    def run(self, form: Mapping[str, Any], client: Arrays) -> tuple[dict[str, Array], Mapping[str, Any]]:
        """Outputs and details. A job that fails raises `AssertionError` with its `Fail`."""
        job = parse_job_form(dict(form))
        plan = make_plan(job.pattern, job.config, self._facts(client))
        plan = plan_from_plain(plan_to_plain(plan))
        engine = make_engine(job.pattern, job.config, plan, self.facts)
        return self._drive(engine, client)

    def _facts(self, client: Arrays) -> Facts:
        batched = {n for m in self.facts.values() for n in m.batched_inputs}
        rows = {len(a) for n, a in client.items() if n in batched}
        cabinets: dict[str, dict[str, int]] = {}
        for node, found in self.cabinets.items():
            for name, columns in found.items():
                cabinets.setdefault(name, {})[node] = len(next(iter(columns.values())))
        return Facts(
            models=self.facts,
            nodes=self.nodes,
            client_rows=rows.pop() if rows else None,
            cabinet_rows=cabinets,
            client_inputs=frozenset(client),
        )

    def _drive(self, engine: Engine, client: Arrays) -> tuple[dict[str, Array], Mapping[str, Any]]:
        done: dict[str, TaskResult] = {}
        seals: dict[int, tuple[str, ...]] = {}
        aggregates: dict[int, Arrays] = {}
        while True:
            states = {k: TaskState(k, "completed", r.node, r.rows) for k, r in done.items()}
            decision = engine.decide(Progress(states, seals))
            match decision:
                case Run():
                    for task in decision.tasks:
                        done[task.key] = self._task(task, client, done, aggregates)
                case Seal():
                    seals[decision.round] = decision.keys
                    if decision.round < engine.last_round:
                        aggregates[decision.round] = self._conclude(engine, decision.round, decision.keys, done).outputs
                case Finish():
                    conclusion = self._conclude(engine, decision.round, decision.keys, done)
                    outputs = done[conclusion.passthrough].outputs if conclusion.passthrough else conclusion.outputs
                    return dict(outputs), conclusion.details
                case _:
                    raise AssertionError(decision)

    def _conclude(self, engine: Engine, round_: int, keys: Sequence[str], done: Mapping[str, TaskResult]) -> Conclusion:
        conclusion = engine.conclude(round_, [done[k] for k in keys])
        assert not isinstance(conclusion, Fail), conclusion
        return conclusion

    def _task(self, task: TaskPlan, client: Arrays, done: Mapping[str, TaskResult], aggregates: Mapping[int, Arrays]) -> TaskResult:
        model, known = self.models[task.model], self.facts[task.model]
        node = task.nodes[0] if task.nodes else self.nodes[0]
        found: list[Any] = []
        for source in task.sources:
            match source.kind:
                case "client":
                    span = slice(*source.rows) if source.rows else slice(None)
                    found.append((source, {n: a[span] if n in known.batched_inputs else a for n, a in client.items()}))
                case "cabinet":
                    found.append((source, self._columns(task, known, self.cabinets[node][source.ref])))
                case "task":
                    found.append((source, done[source.ref].outputs))
                case "aggregate":
                    found.append((source, aggregates[int(source.ref)]))
        inputs = {n: self._cast(model, n, a) for n, a in feed(known.inputs, found).items()}
        rows = next((len(inputs[n]) for n in known.inputs if n in known.batched_inputs and n in inputs), 1)
        outputs = reduce_outputs(model.run(inputs), rows, known.batched_outputs, task.reduce, task.vote_output)
        return TaskResult(task.key, task.model, node, rows, {task.rename_outputs.get(n, n): a for n, a in outputs.items()})

    @staticmethod
    def _columns(task: TaskPlan, known: ModelFacts, columns: Arrays) -> dict[str, Array]:
        chosen = task.columns if isinstance(task.columns, Mapping) else {known.inputs[0]: tuple(task.columns or columns)}
        return {n: columns[c[0]] if len(c) == 1 else np.stack([columns[k] for k in c], axis=1) for n, c in chosen.items()}

    @staticmethod
    def _cast(model: LoadedModel, name: str, array: Array) -> Array:
        dtype = next(t.dtype for t in model.schema.inputs if t.name == name)
        return array if dtype == "str" else np.ascontiguousarray(array, dtype=dtype)
