"""What the executor does to a task's outputs before they leave the node.

Pure numerics over whole arrays: a node calls it in a thread, after the agent has answered.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from patterns.api import Array, PatternError, Reduce
from patterns.votes import count, is_real, vote

CLASS = "class"
COUNTS = "counts"


def reduce_outputs(
    outputs: Mapping[str, Array],
    rows: int,
    batched_outputs: frozenset[str],
    how: Reduce,
    vote_output: str | None,
) -> dict[str, Array]:
    """The outputs that may leave the node.

    ``rows``: nothing is done. ``mean``: an output with the batch axis becomes its mean over the rows, in
    float64, shape [...] without axis 0; others stay; what is not made of real numbers is left out, and
    so is a mean over no rows. ``votes``: only ``class`` (sorted, [C]) and ``counts`` (int64, [C]).
    ``outputs`` must be in the model's order. Raises `PatternError` if an output does not have ``rows``
    rows although it has the batch axis, or nothing can vote.
    """
    if how == "rows":
        return dict(outputs)
    for name in outputs:
        if name in batched_outputs and (outputs[name].ndim == 0 or outputs[name].shape[0] != rows):
            raise PatternError(
                "INVALID_ARGUMENT",
                f"output {name!r} has shape {list(outputs[name].shape)} where {rows} rows went in",
                "The model's batch axis is not what its schema says; give batch_axis when the model is added.",
            )
    if how == "votes":
        ballot = vote(outputs, rows if batched_outputs else None, vote_output)
        classes, counts = count(ballot.classes, ballot.cast)
        return {CLASS: classes, COUNTS: counts}
    return {
        name: _mean(array) if name in batched_outputs else array
        for name, array in outputs.items()
        if is_real(array) and not (name in batched_outputs and rows == 0)
    }


def _mean(array: Array) -> Array:
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(array.mean(axis=0, dtype=np.float64))
