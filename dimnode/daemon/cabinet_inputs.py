"""From a cabinet's columns to a model's inputs. Pure.

An array or column named like an input feeds it; else the numeric columns, in file order, are stacked when one rank-2
input of that width is left; else a lone array feeds a lone input. The query's columns say otherwise.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from dimnode.daemon.cabinet_files import Array, Content
from dimnode.daemon.casting import cast
from dimnode.domain.model import TensorSpec
from dimnode.domain.task import CabinetQuery
from dimnode.errors import FieldProblem, InvalidArgument

HINT = "Give config.columns: the columns for the model's one input, or {input: columns}."


def to_inputs(content: Content, inputs: Sequence[TensorSpec], query: CabinetQuery, given: Collection[str]) -> dict[str, Array]:
    """``inputs`` are the model's, those ``given`` by other sources need nothing. Values have the model's dtypes.
    Raises `InvalidArgument`."""
    wanted = [t for t in inputs if t.name not in given and not t.optional]
    if query.columns is not None:
        found = _chosen(content, _lone(wanted), query.columns)
    elif query.columns_by_input is not None:
        found = _chosen_by_input(content, wanted, query.columns_by_input)
    else:
        found = _by_rule(content, wanted)
    types = {t.name: t.dtype for t in inputs}
    return {name: cast(array, types[name], f"input {name!r} from cabinet {query.name!r}") for name, array in found.items()}


def _lone(wanted: Sequence[TensorSpec]) -> TensorSpec:
    if len(wanted) != 1:
        raise _bad("config.columns", f"must be {{input: columns}}, since the model has {len(wanted)} inputs to feed")
    return wanted[0]


def _chosen(content: Content, t: TensorSpec, columns: Sequence[str]) -> dict[str, Array]:
    unknown = [c for c in columns if c not in content]
    if unknown:
        raise _bad("config.columns", f"names column {unknown[0]!r}, which the cabinet does not have")
    if not columns:
        raise _bad("config.columns", "must name at least one column")
    if len(columns) == 1 and content[columns[0]].ndim == len(t.shape):
        return {t.name: content[columns[0]]}
    return {t.name: _stack([content[c] for c in columns], t)}


def _chosen_by_input(content: Content, wanted: Sequence[TensorSpec], columns: dict[str, tuple[str, ...]]) -> dict[str, Array]:
    names = {t.name for t in wanted}
    for name in columns:
        if name not in names:
            raise _bad(f"config.columns.{name}", "is not an input of the model that the cabinet has to feed")
    found: dict[str, Array] = {}
    for t in wanted:
        if t.name in columns:
            found |= _chosen(content, t, columns[t.name])
        elif t.name in content:
            found[t.name] = content[t.name]
        else:
            raise InvalidArgument(f"nothing in the cabinet feeds input {t.name!r}", hint=HINT)
    return found


def _by_rule(content: Content, wanted: Sequence[TensorSpec]) -> dict[str, Array]:
    found = {t.name: content[t.name] for t in wanted if t.name in content}
    left = [t for t in wanted if t.name not in content]
    if not left:
        return found
    if len(left) == 1 and (stacked := _stacked(content, left[0], set(found))) is not None:
        return {**found, left[0].name: stacked}
    if len(wanted) == 1 and len(content) == 1:
        return {wanted[0].name: next(iter(content.values()))}
    raise InvalidArgument(f"nothing in the cabinet feeds input {left[0].name!r}", hint=HINT)


def _stacked(content: Content, t: TensorSpec, used: Collection[str]) -> Array | None:
    """All numeric columns, or those that feed no other input, if they have the width of the input."""
    if len(t.shape) != 2:
        return None
    width = t.shape[1]
    numeric = {name: a for name, a in content.items() if a.ndim == 1 and a.dtype.kind in "biuf"}
    rest = [a for name, a in numeric.items() if name not in used]
    for columns in (rest, list(numeric.values())):
        if columns and (len(columns) == width or not isinstance(width, int)):
            return _stack(columns, t)
    return None


def _stack(columns: Sequence[Array], t: TensorSpec) -> Array:
    if any(c.ndim != 1 for c in columns) or len(t.shape) not in (1, 2) or (len(t.shape) == 1 and len(columns) > 1):
        raise _bad("config.columns", f"do not fit input {t.name!r} of {len(t.shape)} axes")
    if any(c.dtype.kind == "O" for c in columns) and t.dtype != "str":
        raise _bad("config.columns", f"name text where input {t.name!r} needs {t.dtype}")
    return columns[0] if len(t.shape) == 1 else np.stack(columns, axis=1)


def _bad(field: str, rule: str) -> InvalidArgument:
    return InvalidArgument(f"{field} {rule}", fields=(FieldProblem(field, rule),), hint=HINT)
