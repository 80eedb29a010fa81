"""Greedy decoding of connectionist temporal classification (Graves et al. 2006)."""

from __future__ import annotations

import numpy as np

from loaders.api import Array, InputRejected
from loaders.builtin.checks import Limits, check_finite

BLANK = 0


def decode(probabilities: Array, characters: Array, limits: Limits) -> dict[str, Array]:
    """``probabilities`` float32 [N, T, C], ``characters`` [1]: one string, the characters of classes 1 to
    C - 2 by line -> ``texts`` [N], ``scores`` float32 [N], 0 for an empty text."""
    if not 3 <= probabilities.shape[2] <= limits.classes:
        raise InputRejected(f"input 'probabilities' has {probabilities.shape[2]} classes; 3 to {limits.classes} can be decoded")
    check_finite("probabilities", probabilities)
    alphabet = np.array(["", *_lines(str(characters[0]), limits), " "], dtype=object)
    if len(alphabet) != probabilities.shape[2]:
        raise InputRejected(f"{len(alphabet) - 2} characters do not go with {probabilities.shape[2]} classes: two fewer are needed")
    best = probabilities.argmax(axis=2)
    new = np.ones(best.shape, dtype=bool)
    new[:, 1:] = best[:, 1:] != best[:, :-1]
    keep = new & (best != BLANK)
    peak = probabilities.max(axis=2)
    texts = ["".join(alphabet[row[kept]]) for row, kept in zip(best, keep, strict=True)]
    scores = [float(p[kept].mean()) if kept.any() else 0.0 for p, kept in zip(peak, keep, strict=True)]
    return {"texts": np.array(texts, dtype=object), "scores": np.array(scores, dtype=np.float32)}


def _lines(text: str, limits: Limits) -> list[str]:
    if text.count("\n") > limits.classes or len(text) > 16 * limits.classes:
        raise InputRejected("input 'characters' is too long")
    return text.removesuffix("\n").split("\n")
