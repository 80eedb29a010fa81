"""Facts, results and progress for pattern tests, in few words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from patterns.api import Array, Engine, Facts, ModelFacts, Plan, Progress, TaskResult, TaskState
from patterns.engines import make_engine, make_plan
from patterns.forms import ChainedConfig, CollaborativeConfig, ComparativeConfig

CONFIGS = {"collaborative": CollaborativeConfig, "comparative": ComparativeConfig, "chained": ChainedConfig}


def model(name: str = "m", inputs: str = "x", outputs: str = "y", batched: str | None = None, free: str = "") -> ModelFacts:
    """``outputs`` and ``inputs`` are words; all are batched but those in ``free``."""
    loose = set(free.split())
    ins, outs = inputs.split(), (outputs if batched is None else batched).split()
    return ModelFacts(
        name=name,
        inputs=tuple(ins),
        outputs=tuple(outputs.split()),
        batched_inputs=frozenset(set(ins) - loose),
        batched_outputs=frozenset(set(outs) - loose),
    )


def facts(*models: ModelFacts, nodes: str = "a b c", **more: Any) -> Facts:
    known = models or (model(),)
    return Facts(models={m.name: m for m in known}, nodes=tuple(nodes.split()), **more)


def planned(pattern: str, config: Mapping[str, Any], known: Facts) -> tuple[Engine, Plan]:
    form = CONFIGS[pattern].model_validate(config)
    plan = make_plan(pattern, form, known)
    return make_engine(pattern, form, plan, known.models), plan


def result(key: str, rows: int = 1, node: str = "n", model: str = "m", **outputs: Array) -> TaskResult:
    return TaskResult(key=key, model=model, node=node, rows=rows, outputs=outputs)


def progress(states: Mapping[str, str] | None = None, seals: Mapping[int, Sequence[str]] | None = None) -> Progress:
    tasks: dict[str, TaskState] = {k: TaskState(k, s, node="n", error="broken") for k, s in (states or {}).items()}  # type: ignore[arg-type]
    return Progress(tasks, {r: tuple(k) for r, k in (seals or {}).items()})


def keys(tasks: Iterable[Any]) -> list[str]:
    return [t.key for t in tasks]
