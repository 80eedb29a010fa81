"""How several sources become the inputs of one task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from patterns.api import Source

T = TypeVar("T")


def visible(names: Iterable[str], rename: Mapping[str, str]) -> dict[str, str]:
    """Name in the source -> name that the model sees. A renamed tensor displaces one that already has
    that name; it is not seen under its old name."""
    there = list(names)
    taken = {rename[n] for n in there if n in rename}
    out = {n: rename[n] for n in there if n in rename}
    out.update({n: n for n in there if n not in rename and n not in taken})
    return out


def feed(inputs: Sequence[str], sources: Iterable[tuple[Source, Mapping[str, T]]]) -> dict[str, T]:
    """The values for a model's ``inputs`` out of its sources' values, whatever a value is (an array, a
    reference). Later sources win; names that are no input are left out; an input that nothing feeds is
    absent from the answer."""
    wanted = set(inputs)
    out: dict[str, T] = {}
    for source, values in sources:
        for name, seen_as in visible(values, source.rename).items():
            if seen_as in wanted:
                out[seen_as] = values[name]
    return {name: out[name] for name in inputs if name in out}
