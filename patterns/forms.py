"""The config of each job pattern, as clients write it.

Snake case and camel case are both accepted for every field and unknown fields are errors. These
models check what can be known from the form alone; whether a model or cabinet exists is checked by
the orchestrator, which knows the swarm.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.alias_generators import to_camel

Name = Annotated[str, Field(min_length=1, max_length=256)]
Seconds = Annotated[float, Field(gt=0, le=30 * 24 * 3600, allow_inf_nan=False)]

AGGREGATION_METHODS = (
    "federated_averaging",
    "mean",
    "sum",
    "median",
    "trimmed_mean",
    "majority_vote",
    "concat",
)
CONSENSUS_METHODS = ("weighted_vote", "majority_vote", "unanimous", "mean", "median")
CLIENT_DATA = "client_data"


class Form(BaseModel):
    """Base of everything a client writes: frozen, closed, camel case welcome."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        allow_inf_nan=False,
        strict=False,
    )


class Aggregation(Form):
    method: Literal[
        "federated_averaging",
        "mean",
        "sum",
        "median",
        "trimmed_mean",
        "majority_vote",
        "concat",
    ] = "federated_averaging"
    trim: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    """``trimmed_mean``: the share of values cut at each end."""
    output: Name | None = None
    """``majority_vote``: the output that carries the vote; default as for consensus."""


class CollaborativeConfig(Form):
    """One model on many data sets, then aggregation."""

    model_id: Name
    nodes: tuple[Name, ...] | None = None
    data_source: Name = CLIENT_DATA
    columns: tuple[Name, ...] | dict[Name, tuple[Name, ...]] | None = None
    """Columns of the cabinet that are stacked for the model's one input, or for each named input."""
    min_nodes: Annotated[int, Field(ge=1, le=10_000)] | None = None
    aggregation: Aggregation = Aggregation()
    rounds: Annotated[int, Field(ge=1, le=10_000)] = 1
    feedback: dict[Name, Name] | None = None
    """Output of the aggregate -> input of the next round."""

    @model_validator(mode="after")
    def _consistent(self) -> CollaborativeConfig:
        if self.nodes is not None and len(self.nodes) == 0:
            raise ValueError("nodes must name at least one node, or be left out")
        if self.nodes is not None and len(set(self.nodes)) != len(self.nodes):
            raise ValueError("nodes must not name a node twice")
        if self.nodes is not None and self.min_nodes is not None and self.min_nodes > len(self.nodes):
            raise ValueError("min_nodes must not exceed the number of nodes")
        if self.rounds > 1 and not self.feedback:
            raise ValueError("rounds above 1 need feedback (an output that becomes an input)")
        return self


class Consensus(Form):
    method: Literal["weighted_vote", "majority_vote", "unanimous", "mean", "median"] = "majority_vote"
    weights: dict[Name, Annotated[float, Field(ge=0)]] | None = None
    """By model, as named in ``model_ids``; default 1."""
    min_agreement: Annotated[float, Field(ge=0, le=1)] = 0.5
    output: Name | None = None
    tolerance: Annotated[float, Field(ge=0)] = 1e-3


class ComparativeConfig(Form):
    """Many models on one data set, then consensus."""

    model_ids: Annotated[tuple[Name, ...], Field(min_length=1, max_length=1000)]
    node_id: Name | None = None
    nodes: tuple[Name, ...] | None = None
    data_source: Name = CLIENT_DATA
    columns: tuple[Name, ...] | dict[Name, tuple[Name, ...]] | None = None
    consensus: Consensus = Consensus()

    @model_validator(mode="after")
    def _consistent(self) -> ComparativeConfig:
        if len(set(self.model_ids)) != len(self.model_ids):
            raise ValueError("model_ids must not name a model twice")
        if self.node_id is not None and self.nodes is not None:
            raise ValueError("give node_id or nodes, not both")
        if self.nodes is not None and len(self.nodes) == 0:
            raise ValueError("nodes must name at least one node, or be left out")
        if self.consensus.weights:
            unknown = sorted(set(self.consensus.weights) - set(self.model_ids))
            if unknown:
                raise ValueError(f"consensus.weights names models that are not in model_ids: {', '.join(unknown)}")
            if not any(self.consensus.weights.get(m, 1.0) > 0 for m in self.model_ids):
                raise ValueError("consensus.weights must leave at least one model a weight above 0")
        return self


class Step(Form):
    """One step of a chain. ``inputs``: name as found in the source -> the model's input name.
    ``outputs``: the model's output name -> the name later steps and the client see."""

    step: Annotated[int, Field(ge=1, le=1000)]
    name: Name | None = None
    model_id: Name
    node_id: Name | None = None
    nodes: tuple[Name, ...] | None = None
    input_source: Name | tuple[Name, ...] = CLIENT_DATA
    inputs: dict[Name, Name] | None = None
    outputs: dict[Name, Name] | None = None
    columns: tuple[Name, ...] | dict[Name, tuple[Name, ...]] | None = None
    timeout: Seconds | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Step:
        if self.node_id is not None and self.nodes is not None:
            raise ValueError("give node_id or nodes, not both")
        if self.nodes is not None and len(self.nodes) == 0:
            raise ValueError("nodes must name at least one node, or be left out")
        return self

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.input_source,) if isinstance(self.input_source, str) else self.input_source


def step_of_source(source: str) -> int | None:
    """The N of ``step_N_output``, or None if the source is something else."""
    if source.startswith("step_") and source.endswith("_output"):
        middle = source[len("step_") : -len("_output")]
        if middle.isdigit():
            return int(middle)
    return None


class ChainedConfig(Form):
    """A pipeline in which each step's output feeds a later step."""

    pipeline: Annotated[tuple[Step, ...], Field(min_length=1, max_length=100)]

    @field_validator("pipeline")
    @classmethod
    def _ordered(cls, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        seen: set[int] = set()
        last = 0
        for step in steps:
            if step.step <= last:
                raise ValueError("steps must be numbered upwards, each number once")
            if not step.sources:
                raise ValueError(f"step {step.step} needs an input_source")
            for source in step.sources:
                n = step_of_source(source)
                if n is not None and n not in seen:
                    raise ValueError(f"step {step.step} reads {source}, which is not an earlier step")
            seen.add(step.step)
            last = step.step
        return steps
