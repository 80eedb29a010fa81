"""From names in a job form to peer ids, and what an engine may know of the swarm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dimnode.domain.job_form import AnyConfig, JobForm
from dimnode.domain.model import ModelManifest
from dimnode.domain.tensors import TensorValue
from dimnode.errors import FailedPrecondition, FieldProblem, InvalidArgument, NotFound
from dimnode.ports import Registry
from patterns.api import Facts, ModelFacts
from patterns.forms import CLIENT_DATA, ChainedConfig, CollaborativeConfig, ComparativeConfig, step_of_source


def peer_of(registry: Registry, name: str, field: str) -> str:
    """The one peer of that name or id. Raises `NotFound`, `FailedPrecondition` if two share the name."""
    found = registry.find(name)
    if len(found) > 1:
        raise FailedPrecondition(f"{field} names {name!r}, which {len(found)} nodes are called", hint="Use the peer id.")
    if not found:
        raise NotFound(f"{field} names {name!r}, which is not a node of this swarm", hint="`dimnode nodes` lists the nodes.")
    return found[0].heartbeat.peer_id


def names_of(config: AnyConfig) -> dict[str, str]:
    """Every node that a config names -> the field that names it."""

    def many(names: tuple[str, ...] | None, field: str) -> dict[str, str]:
        return {n: f"{field}[{i}]" for i, n in enumerate(names or ())}

    def one(name: str | None, field: str) -> dict[str, str]:
        return {} if name is None else {name: field}

    match config:
        case CollaborativeConfig():
            return many(config.nodes, "config.nodes")
        case ComparativeConfig():
            return {**one(config.node_id, "config.node_id"), **many(config.nodes, "config.nodes")}
        case ChainedConfig():
            found: dict[str, str] = {}
            for i, step in enumerate(config.pipeline):
                found |= one(step.node_id, f"config.pipeline[{i}].node_id") | many(step.nodes, f"config.pipeline[{i}].nodes")
            return found


def models_of(config: AnyConfig) -> tuple[str, ...]:
    """Every model that a job names, once, in order."""
    match config:
        case CollaborativeConfig():
            return (config.model_id,)
        case ComparativeConfig():
            return config.model_ids
        case ChainedConfig():
            return tuple(dict.fromkeys(s.model_id for s in config.pipeline))


def sources_of(config: AnyConfig) -> tuple[str, ...]:
    """Every data source outside the job itself: ``client_data`` or cabinet names."""
    match config:
        case CollaborativeConfig() | ComparativeConfig():
            return (config.data_source,)
        case ChainedConfig():
            return tuple(dict.fromkeys(src for s in config.pipeline for src in s.sources if step_of_source(src) is None))


def model_facts(name: str, manifest: ModelManifest) -> ModelFacts:
    return ModelFacts(
        name=name,
        inputs=tuple(t.name for t in manifest.inputs),
        outputs=tuple(t.name for t in manifest.outputs),
        batched_inputs=manifest.batched_inputs(),
        batched_outputs=manifest.batched_outputs(),
        optional_inputs=frozenset(t.name for t in manifest.inputs if t.optional),
    )


def gather_facts(form: JobForm, manifests: Mapping[str, ModelManifest], registry: Registry, *, assume_data: bool = False) -> Facts:
    """What the engines may know now. ``assume_data``: plan as if the client's data were there, a row for
    each node, if the form has none (a dry run). Raises `InvalidArgument` if batched inputs disagree in
    length."""
    facts = {name: model_facts(name, m) for name, m in manifests.items()}
    formats = {m.format for m in manifests.values()} if form.pattern == "collaborative" else set[str]()
    alive = [v for v in registry.alive() if not v.heartbeat.leaving]
    nodes = [v.heartbeat for v in alive if formats <= set(v.heartbeat.capabilities.loaders)]
    nodes.sort(key=lambda h: (h.load.running + h.load.queued, h.name, h.peer_id))
    cabinets: dict[str, dict[str, int]] = {}
    for name in sources_of(form.config):
        if name != CLIENT_DATA:
            cabinets[name] = {v.heartbeat.peer_id: c.rows for v in alive for c in v.heartbeat.cabinets if c.name == name}
    rows = client_rows(form.client_data, facts.values()) if CLIENT_DATA in sources_of(form.config) and form.client_data else None
    assumed = assume_data and not form.client_data
    return Facts(
        models=facts,
        nodes=tuple(h.peer_id for h in nodes),
        client_rows=max(1, len(nodes)) if assumed else rows,
        cabinet_rows=cabinets,
        named={name: (peer_of(registry, name, field),) for name, field in names_of(form.config).items()},
        client_inputs=None if assumed else frozenset(form.client_data),
    )


def client_rows(data: Mapping[str, TensorValue], models: Iterable[ModelFacts]) -> int | None:
    """Length of axis 0 of the client tensors that feed a batched input."""
    models = tuple(models)
    lengths: dict[str, int] = {}
    for name, value in data.items():
        lone = len(data) == 1
        batched = any(name in m.batched_inputs or (lone and len(m.inputs) == 1 and m.batched_inputs) for m in models)
        if batched and value.shape:
            lengths[name] = value.shape[0]
    if not lengths:
        return None
    if len(set(lengths.values())) > 1:
        rule = "must have as many rows as the other batched inputs (" + ", ".join(f"{n}: {k}" for n, k in lengths.items()) + ")"
        field = f"client_data.{next(iter(lengths))}"
        raise InvalidArgument(f"{field} {rule}", fields=(FieldProblem(field, rule),))
    return next(iter(lengths.values()))
