"""What a task is fed: from the sources of its plan to the inputs of its order."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from dimnode.domain import codec
from dimnode.domain.job_form import JobForm
from dimnode.domain.model import ModelManifest
from dimnode.domain.record import Attempt
from dimnode.domain.task import CabinetQuery, TaskInput
from dimnode.domain.tensors import TensorValue, content_digest, from_numpy, to_numpy
from dimnode.errors import FieldProblem, InvalidArgument
from patterns.api import Source, TaskPlan
from patterns.sources import feed

Aggregates = Mapping[int, Mapping[str, TensorValue]]
"""round -> outputs of its conclusion."""


def cabinet_of(plan: TaskPlan) -> CabinetQuery | None:
    for source in plan.sources:
        if source.kind == "cabinet":
            if plan.columns is None:
                return CabinetQuery(name=source.ref)
            if isinstance(plan.columns, Mapping):
                return CabinetQuery(name=source.ref, columns_by_input=dict(plan.columns))
            return CabinetQuery(name=source.ref, columns=tuple(plan.columns))
    return None


def inputs_of(
    plan: TaskPlan,
    manifest: ModelManifest,
    form: JobForm,
    done: Callable[[str], Attempt],
    aggregates: Aggregates,
) -> tuple[TaskInput, ...]:
    """The tensors for one task, later sources winning. Tensors that the model has no input for are left
    out; a lone tensor feeds a lone input whatever its name. Raises `InvalidArgument` if a source has
    nothing for the model."""
    names = [t.name for t in manifest.inputs]
    values = [(s, _values(s, form, done, aggregates)) for s in plan.sources if s.kind != "cabinet"]
    fed = feed(names, values)
    seen = {n: v for _, found in values for n, v in found.items()}
    from_cabinet = any(s.kind == "cabinet" for s in plan.sources)
    if not fed and not from_cabinet and len(names) == 1 and len(seen) == 1:
        fed = {names[0]: next(iter(seen.values()))}
    if not fed and not from_cabinet:
        rule = f"has none of the inputs of {manifest.id} ({', '.join(names)}); it has {', '.join(sorted(seen)) or 'nothing'}"
        raise InvalidArgument(f"the source of task {plan.key} {rule}", fields=(FieldProblem("config", rule),), hint="Rename with `inputs`.")
    rows = next((s.rows for s in plan.sources if s.rows is not None), None)
    batched = manifest.batched_inputs()
    return tuple(_sliced(n, v, rows if n in batched else None) for n, v in fed.items())


def _values(source: Source, form: JobForm, done: Callable[[str], Attempt], aggregates: Aggregates) -> Mapping[str, TensorValue]:
    match source.kind:
        case "client":
            return form.client_data
        case "task":
            return done(source.ref).outputs
        case "aggregate":
            return aggregates[int(source.ref)]
        case "cabinet":
            return {}


def _sliced(name: str, value: TensorValue, rows: tuple[int, int] | None) -> TaskInput:
    """Inline tensors are cut here, so that a shard does not carry the others' rows; a tensor by CID is
    cut where it is used."""
    if rows is None or value.raw is None:
        return TaskInput(name=name, value=value, rows=rows)
    return TaskInput(name=name, value=from_numpy(np.ascontiguousarray(to_numpy(value)[rows[0] : rows[1]])))


def task_key(plan: TaskPlan, model_cid: str, inputs: tuple[TaskInput, ...], node: str) -> str:
    """Equal keys, equal work: model, input contents, parameters, round and, for a cabinet, whose."""
    query = cabinet_of(plan)
    return codec.digest(
        codec.encode(
            {
                "model": model_cid,
                "inputs": [[i.name, content_digest(i.value), list(i.rows) if i.rows else None] for i in inputs],
                "reduce": plan.reduce,
                "vote": plan.vote_output,
                "rename": dict(plan.rename_outputs),
                "round": plan.round,
                "cabinet": [query, node] if query else None,
            }
        )
    )
