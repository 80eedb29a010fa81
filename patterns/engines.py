"""The way into the patterns: plan a job, store and restore the plan, make its engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from patterns.api import Engine, Facts, ModelFacts, PatternError, Plan
from patterns.chained import Chained, plan_chained
from patterns.collaborative import Collaborative, plan_collaborative
from patterns.comparative import Comparative, plan_comparative
from patterns.forms import ChainedConfig, CollaborativeConfig, ComparativeConfig

AnyConfig = CollaborativeConfig | ComparativeConfig | ChainedConfig


def make_plan(pattern: str, config: AnyConfig, facts: Facts) -> Plan:
    """The tasks of a job as they follow from its config and what is known now.

    Raises `PatternError`: ``INVALID_ARGUMENT`` and ``NOT_FOUND`` for what the client must correct,
    ``UNAVAILABLE`` for what time may bring (no node can run it now), ``FAILED_PRECONDITION`` else.
    """
    match config:
        case CollaborativeConfig() if pattern == "collaborative":
            return plan_collaborative(config, facts)
        case ComparativeConfig() if pattern == "comparative":
            return plan_comparative(config, facts)
        case ChainedConfig() if pattern == "chained":
            return plan_chained(config, facts)
        case _:
            raise _mismatch(pattern)


def make_engine(pattern: str, config: AnyConfig, plan: Plan, models: Mapping[str, ModelFacts]) -> Engine:
    """The engine of a planned job; ``models`` are `Facts.models`. Raises `PatternError`."""
    match config:
        case CollaborativeConfig() if pattern == "collaborative":
            return Collaborative(config, plan, models[config.model_id])
        case ComparativeConfig() if pattern == "comparative":
            return Comparative(config, plan, models)
        case ChainedConfig() if pattern == "chained":
            return Chained(config, plan)
        case _:
            raise _mismatch(pattern)


def _mismatch(pattern: str) -> PatternError:
    return PatternError("INVALID_ARGUMENT", f"pattern {pattern!r} does not go with this config")


def plan_to_plain(plan: Plan) -> dict[str, Any]:
    """Dicts, lists, strings, numbers, None: for a record."""
    return _plain(msgspec.to_builtins(plan))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def plan_from_plain(plain: Mapping[str, Any]) -> Plan:
    """The inverse of `plan_to_plain`. Raises `PatternError` if it is not a plan."""
    try:
        return msgspec.convert(dict(plain), Plan)
    except msgspec.ValidationError as e:
        raise PatternError("DATA_LOSS", f"the stored plan cannot be read: {e}") from e
