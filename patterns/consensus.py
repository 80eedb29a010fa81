"""What several models say of the same rows becomes one answer, an agreement, and a list of dissent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patterns.aggregation import median, weighted_mean
from patterns.api import Array, Conclusion, Fail, PatternError
from patterns.forms import Consensus
from patterns.votes import Ballot, Tally, is_real, tally


@dataclass(frozen=True, slots=True)
class Settings:
    """Bounds of what goes into a job's details (outputs hold everything)."""

    listed_rows: int = 10_000
    """Rows whose votes, ties and dissent are listed."""


def effective_weights(rule: Consensus, models: Sequence[str]) -> list[float]:
    """``weights`` count for ``weighted_vote`` and ``mean``; in the other methods every model counts 1."""
    if rule.method in ("weighted_vote", "mean") and rule.weights:
        return [rule.weights.get(m, 1.0) for m in models]
    return [1.0] * len(models)


def least_agreement(rule: Consensus) -> float:
    """``unanimous`` is agreement 1, whatever ``minAgreement`` says."""
    return 1.0 if rule.method == "unanimous" else rule.min_agreement


def by_vote(rule: Consensus, ballots: Mapping[str, Ballot], settings: Settings) -> Conclusion | Fail:
    """Outputs ``class`` [N] and ``agreement`` float64 [N]. Raises `PatternError` if the votes do not compare."""
    models = list(ballots)
    weights = effective_weights(rule, models)
    counted = tally(list(ballots.values()), weights)
    details = {**_head(rule, models, weights), **_vote_details(models, list(ballots.values()), counted, settings.listed_rows)}
    outputs = {"class": counted.winner, "agreement": counted.agreement}
    return _judge(rule, float(counted.agreement.mean()), outputs, details)


def _vote_details(models: Sequence[str], ballots: Sequence[Ballot], counted: Tally, limit: int) -> dict[str, Any]:
    n = len(counted.winner)
    shown = min(n, limit)
    votes = {
        model: [v if cast else None for v, cast in zip(said[:shown].tolist(), ballot.cast[:shown].tolist(), strict=True)]
        for model, said, ballot in zip(models, counted.votes, ballots, strict=True)
    }
    other = np.stack([~(said == counted.winner) | ~b.cast for said, b in zip(counted.votes, ballots, strict=True)])
    rows = np.flatnonzero(other.any(axis=0))
    winners = counted.winner[:shown].tolist()
    dissent = [
        {"row": r, "class": winners[r], "votes": {m: votes[m][r] for i, m in enumerate(models) if other[i, r]}}
        for r in rows.tolist()
        if r < shown
    ]
    return {
        "rows": n,
        "votes": votes,
        "ties": [{"row": r, "classes": c} for r, c in sorted(counted.ties.items()) if r < shown],
        "tie_count": len(counted.ties),
        "dissent": dissent,
        "dissent_count": len(rows),
        "rows_listed": shown,
    }


def by_value(rule: Consensus, outputs: Mapping[str, Mapping[str, Array]], settings: Settings) -> Conclusion | Fail:
    """``mean`` or ``median`` of every output that all models share, element by element, in float64; the
    agreement is the share of all models' values within ``tolerance`` of it. Raises `PatternError`."""
    models = list(outputs)
    weights = effective_weights(rule, models)
    names, left_out = _shared(rule, outputs)
    result: dict[str, Array] = {}
    near: dict[str, NDArray[np.bool_]] = {}
    for name in names:
        values = _stack(name, outputs)
        result[name] = weighted_mean(values, weights) if rule.method == "mean" else median(values)
        near[name] = _within(values, result[name], rule.tolerance)
    total = sum(x.size for x in near.values())
    if total == 0:
        raise PatternError("INVALID_ARGUMENT", "there are no values to compare")
    agreement = float(sum(int(x.sum()) for x in near.values()) / total)
    details = {**_head(rule, models, weights), **_value_details(models, near, settings.listed_rows), "left_out": left_out}
    return _judge(rule, agreement, result, {**details, "tolerance": rule.tolerance})


def _shared(rule: Consensus, outputs: Mapping[str, Mapping[str, Array]]) -> tuple[list[str], list[str]]:
    every = list(dict.fromkeys(n for found in outputs.values() for n in found))
    names = [n for n in every if all(n in found and is_real(found[n]) for found in outputs.values())]
    if rule.output is not None:
        names = [n for n in names if n == rule.output]
    if not names:
        asked = f"output {rule.output!r} is" if rule.output is not None else "no output is"
        raise PatternError("INVALID_ARGUMENT", f"{asked} made of numbers in every model", "Rename outputs, or let the models vote.")
    return names, [n for n in every if n not in names]


def _stack(name: str, outputs: Mapping[str, Mapping[str, Array]]) -> NDArray[np.float64]:
    shapes = {found[name].shape: model for model, found in outputs.items()}
    if len(shapes) > 1:
        shown = ", ".join(f"{list(shape)} from {model}" for shape, model in sorted(shapes.items()))
        raise PatternError("INVALID_ARGUMENT", f"output {name!r} has different shapes: {shown}")
    return np.stack([found[name].astype(np.float64) for found in outputs.values()])


def _within(values: NDArray[np.float64], middle: Array, tolerance: float) -> NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):
        return (values == middle) | (np.abs(values - middle) <= tolerance)


def _value_details(models: Sequence[str], near: Mapping[str, NDArray[np.bool_]], limit: int) -> dict[str, Any]:
    share = {m: {name: float(x[i].mean()) if x[i].size else 1.0 for name, x in near.items()} for i, m in enumerate(models)}
    far = [(m, name, np.argwhere(~x[i])) for i, m in enumerate(models) for name, x in near.items()]
    dissent = [{"model": m, "output": name, "at": at[:limit].tolist()} for m, name, at in far if len(at)]
    return {"votes": share, "dissent": dissent, "dissent_count": sum(len(at) for _, _, at in far)}


def _head(rule: Consensus, models: Sequence[str], weights: Sequence[float]) -> dict[str, Any]:
    return {
        "method": rule.method,
        "min_agreement": least_agreement(rule),
        "models": list(models),
        "weights": dict(zip(models, weights, strict=True)),
    }


def _judge(rule: Consensus, agreement: float, outputs: Mapping[str, Array], details: dict[str, Any]) -> Conclusion | Fail:
    details = {**details, "agreement": agreement}
    least = least_agreement(rule)
    if agreement < least:
        return Fail(
            code="NO_CONSENSUS",
            message=f"the models' agreement is {agreement:.4f}, and {rule.method} needs {least:g}",
            hint="The votes are in the error's details; lower minAgreement or look at the dissenting models.",
            details=details,
        )
    return Conclusion(outputs=outputs, details=details)
