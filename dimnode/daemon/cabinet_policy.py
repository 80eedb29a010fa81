"""What the owner of a cabinet allows. Pure; the time is passed in.

A policy is a JSON object; every field may be left out::

    {"models": ["id or CID", ...],       who may be run on it (default: any model)
     "clients": ["principal", ...],      for whom (default: anyone)
     "outputs": "rows" | "aggregates",   what may leave the node (default: rows)
     "min_rows": 10,                     least rows of a task (default: 1, for aggregates 10)
     "sandbox": true,                    only on a node that confines its agents in every respect
     "expires": "2030-01-31T00:00:00Z"}  or seconds since the epoch; a time without a zone is UTC

``aggregates``: only a mean or class counts over the rows leave the node. An output without the batch axis (new
weights, say) is not reduced, so what is in it is up to the model: it may leave only if the owner named the model in
``models``. An id is whatever a model's manifest says, and anyone may write one: a policy that must bind members of
the swarm names models by CID.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from dimnode.errors import FieldProblem, InvalidArgument, PermissionDenied

MIN_ROWS_OF_AGGREGATES = 10


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    models: tuple[str, ...] | None = None
    clients: tuple[str, ...] | None = None
    outputs: str = "rows"
    min_rows: int = 1
    sandbox: bool = False
    expires: float | None = None
    """Seconds since the epoch."""


OPEN = Policy()


def parse(document: Mapping[str, Any] | None) -> Policy:
    """Raises `InvalidArgument` naming each field that breaks a rule."""
    if document is None:
        return OPEN
    problems = [FieldProblem(f"policy.{k}", "is not a known field") for k in sorted(set(document) - set(Policy.__struct_fields__))]
    values: dict[str, Any] = {}
    for name, check in _CHECKS.items():
        if document.get(name) is None:
            continue
        try:
            values[name] = check(document[name])
        except ValueError as e:
            problems.append(FieldProblem(f"policy.{name}", str(e)))
    if problems:
        raise InvalidArgument(
            "; ".join(f"{p.field} {p.rule}" for p in problems),
            fields=tuple(problems),
            hint="See the section on cabinets in docs/user-guide.md.",
        )
    if values.get("outputs") == "aggregates":
        values.setdefault("min_rows", MIN_ROWS_OF_AGGREGATES)
    return Policy(**values)


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not value or not all(isinstance(v, str) and v for v in value):
        raise ValueError("must be a list of at least one name")
    return tuple(value)


def _outputs(value: Any) -> str:
    if value not in ("rows", "aggregates"):
        raise ValueError('must be "rows" or "aggregates"')
    return value


def _min_rows(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("must be a whole number, 1 or more")
    return value


def _sandbox(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")  # noqa: TRY004 - as for every other value
    return value


def _expires(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0:
        return float(value)
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            pass
        else:
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    raise ValueError("must be an ISO 8601 time or seconds since the epoch")


_CHECKS = {"models": _names, "clients": _names, "outputs": _outputs, "min_rows": _min_rows, "sandbox": _sandbox, "expires": _expires}


def enforce_access(
    policy: Policy, *, cabinet: str, model_cid: str, model_id: str, principal: str, reduce: str, now: float, confined: bool = True
) -> None:
    """Before any data is read. ``model_id``: as the manifest has it; ``confined``: agents are kept from everything that they could be
    kept from. Raises `PermissionDenied`."""
    enforce_sandbox(policy, cabinet=cabinet, confined=confined)
    if policy.expires is not None and now >= policy.expires:
        raise _denied(cabinet, "has expired")
    if policy.clients is not None and principal not in policy.clients:
        raise _denied(cabinet, "does not allow this client")
    if policy.models is not None and model_cid not in policy.models and model_id not in policy.models:
        raise _denied(cabinet, "does not allow this model")
    if policy.outputs == "aggregates" and reduce == "rows":
        raise _denied(cabinet, "allows only aggregates over its rows", "Use an aggregation over nodes that is not concat.")


def enforce_sandbox(policy: Policy, *, cabinet: str, confined: bool) -> None:
    """Also once the agent is there that is to get the data: ``confined`` is then what that one says. Raises `PermissionDenied`."""
    if policy.sandbox and not confined:
        raise _denied(
            cabinet, "allows only agents in a complete sandbox, which this node does not have", "`dimnode doctor` says what is missing."
        )


def enforce_content(
    policy: Policy, *, cabinet: str, rows: int, outputs: Collection[str], batched_outputs: Collection[str], reduce: str
) -> None:
    """Once it is known how many rows go in and what comes out. Raises `PermissionDenied`."""
    if rows < policy.min_rows:
        raise _denied(cabinet, f"needs at least {policy.min_rows} rows in a task")
    if policy.outputs == "aggregates" and reduce != "votes" and policy.models is None:
        loose = sorted(set(outputs) - set(batched_outputs))
        if loose:
            raise _denied(
                cabinet,
                f"does not let output {loose[0]!r} out, which is not reduced over rows",
                "The owner may name the model in the policy.",
            )


def _denied(cabinet: str, why: str, hint: str = "Ask the cabinet's owner.") -> PermissionDenied:
    return PermissionDenied(f"cabinet {cabinet!r} {why}", hint=hint)
