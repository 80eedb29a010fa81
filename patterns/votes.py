"""The vote rule: how a model's outputs become one vote per row, and how votes are counted.

A vote is the output that the job names; else the model's first integer, boolean or string output of
shape [N]; else the argmax of its first float output [N, C] with C at least 2. A row whose scores
hold a NaN casts no vote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patterns.api import Array, PatternError

_EQUAL = 1e-12
"""Relative difference below which two sums of weights are a tie (floating point, not judgement)."""


@dataclass(frozen=True, slots=True)
class Ballot:
    """One voter's votes: ``classes`` [N] (bool, int64, float64 or str objects) and ``cast`` [N], False
    where there is no vote."""

    classes: Array
    cast: NDArray[np.bool_]


def is_real(array: Array) -> bool:
    """Whether numbers come out of it that can be averaged: booleans, integers, floats."""
    return array.dtype.kind in "biuf"


def vote(outputs: Mapping[str, Array], rows: int | None, named: str | None = None) -> Ballot:
    """The votes in one model's outputs, which must be in the order in which the model declares them.

    ``rows`` is N; None if the model has no batch axis, then any N will do. Raises `PatternError`.
    """
    if named is not None:
        if named not in outputs:
            raise PatternError("INVALID_ARGUMENT", f"there is no output {named!r} to vote with", _have(outputs))
        return _named_vote(named, outputs[named], rows)
    for array in outputs.values():
        if array.ndim == 1 and _fits(array, rows) and array.dtype.kind in "biuOUS":
            return _whole(array)
    for array in outputs.values():
        if array.ndim == 2 and _fits(array, rows) and array.dtype.kind == "f" and array.shape[1] >= 2:
            return _argmax(array)
    raise PatternError("INVALID_ARGUMENT", "no output can vote: none is a class per row or scores per row and class", _have(outputs))


def _named_vote(name: str, array: Array, rows: int | None) -> Ballot:
    if array.ndim == 1 and _fits(array, rows) and array.dtype.kind in "biufOUS":
        return _whole(array)
    if array.ndim == 2 and _fits(array, rows) and array.dtype.kind == "f" and array.shape[1] >= 2:
        return _argmax(array)
    want = "[N] or float [N, C]" if rows is None else f"[{rows}] or float [{rows}, C]"
    raise PatternError("INVALID_ARGUMENT", f"output {name!r} is {_show(array)} and cannot vote", f"A vote has shape {want}, C at least 2.")


def _fits(array: Array, rows: int | None) -> bool:
    return rows is None or array.shape[0] == rows


def _show(array: Array) -> str:
    return f"{array.dtype.name}{list(array.shape)}"


def _have(outputs: Mapping[str, Array]) -> str:
    return "The outputs are " + (", ".join(f"{n} {_show(a)}" for n, a in outputs.items()) or "none") + "."


def _whole(array: Array) -> Ballot:
    classes = _normal(array)
    cast = ~np.isnan(classes) if classes.dtype.kind == "f" else np.ones(len(classes), dtype=np.bool_)
    return Ballot(classes, cast)


def _argmax(scores: Array) -> Ballot:
    cast = np.logical_not(np.isnan(scores).any(axis=1))
    return Ballot(scores.argmax(axis=1).astype(np.int64), np.asarray(cast, dtype=np.bool_))


def _normal(array: Array) -> Array:
    kind = array.dtype.kind
    if kind == "b":
        return array.astype(np.bool_)
    if kind == "f":
        return array.astype(np.float64)
    if kind in "iu":
        if kind == "u" and array.size and int(array.max()) > np.iinfo(np.int64).max:
            raise PatternError("INVALID_ARGUMENT", "a class number is above 2^63 - 1", "Number classes from 0, or name them.")
        return array.astype(np.int64)
    text = [x.decode("utf-8", "replace") if isinstance(x, bytes) else str(x) for x in array.tolist()]
    return np.array(text, dtype=object)


def alike(arrays: Sequence[Array]) -> list[Array]:
    """The same classes in one common kind, so that they compare. Raises `PatternError` if some are
    strings and some are numbers."""
    normal = [_normal(a) for a in arrays]
    kinds = {a.dtype.kind for a in normal}
    if "O" in kinds and len(kinds) > 1:
        raise PatternError(
            "INVALID_ARGUMENT", "some votes are strings and some are numbers", "Name outputs that vote with the same classes."
        )
    if "O" in kinds or len(kinds) <= 1:
        return normal
    return [a.astype(np.float64 if "f" in kinds else np.int64) for a in normal]


def count(classes: Array, cast: NDArray[np.bool_]) -> tuple[Array, NDArray[np.int64]]:
    """Sorted classes that got a vote, and how many each."""
    unique, counts = np.unique(classes[cast], return_counts=True)
    return unique, counts.astype(np.int64)


@dataclass(frozen=True, slots=True)
class Tally:
    """Votes of M voters on N rows, counted by row."""

    votes: list[Array]
    """M arrays [N], all of one kind."""
    winner: Array
    """[N]: the class with the most weight; of several the smallest."""
    agreement: NDArray[np.float64]
    """[N]: the winner's weight over all weight, that of voters without a vote included."""
    ties: dict[int, list[Any]]
    """row -> the classes that tie for the most weight."""


def tally(ballots: Sequence[Ballot], weights: Sequence[float]) -> Tally:
    """Count by row. Raises `PatternError` if the ballots differ in length, have no rows, or a row has no
    vote at all."""
    lengths = sorted({len(b.classes) for b in ballots})
    if len(lengths) != 1:
        raise PatternError("INVALID_ARGUMENT", f"the models vote on different numbers of rows: {', '.join(map(str, lengths))}")
    n = lengths[0]
    if n == 0:
        raise PatternError("INVALID_ARGUMENT", "there are no rows to vote on")
    votes = alike([b.classes for b in ballots])
    cast = np.stack([b.cast for b in ballots])
    silent = np.flatnonzero(~cast.any(axis=0))
    if len(silent):
        raise PatternError("INVALID_ARGUMENT", f"no model has a vote on row {silent[0]} (all its scores are NaN)")
    return _count_rows(votes, cast, np.asarray(weights, dtype=np.float64))


def _count_rows(votes: list[Array], cast: NDArray[np.bool_], weights: NDArray[np.float64]) -> Tally:
    """Weights by (row, class), without a dense rows x classes table: there may be many classes."""
    voters, rows = np.nonzero(cast)
    classes, codes = np.unique(np.stack(votes)[voters, rows], return_inverse=True)
    pairs, where = np.unique(rows * np.int64(len(classes)) + codes, return_inverse=True)
    sums = np.bincount(where, weights=weights[voters], minlength=len(pairs))
    pair_rows, pair_classes = np.divmod(pairs, len(classes))
    starts = np.flatnonzero(np.r_[True, pair_rows[1:] != pair_rows[:-1]])
    best = np.maximum.reduceat(sums, starts)
    top = np.flatnonzero(sums >= best[pair_rows] * (1 - _EQUAL))
    first = np.flatnonzero(np.r_[True, pair_rows[top][1:] != pair_rows[top][:-1]])
    tied: dict[int, list[Any]] = {}
    for row, code in zip(pair_rows[top].tolist(), pair_classes[top].tolist(), strict=True):
        tied.setdefault(row, []).append(classes[code : code + 1].tolist()[0])
    return Tally(
        votes=votes,
        winner=classes[pair_classes[top[first]]],
        agreement=np.minimum(best / weights.sum(), 1.0),
        ties={row: found for row, found in tied.items() if len(found) > 1},
    )
