"""ML programs (MIL) to ONNX: the frame. What each operator becomes is in the tables of `loaders.coreml.operators_*`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from loaders.api import Array, ModelRejected
from loaders.coreml.mil import Argument, Function, Kind, Operation, Ref
from loaders.onnx_writer import ONNX_TYPES, GraphWriter


class Unsupported(ModelRejected):
    """An operator, or a use of one, that has no translation; the message names it."""


class Translation:
    """One function on its way: its graph, and what is known of its values."""

    def __init__(self, function: Function) -> None:
        self.graph = GraphWriter()
        self.function = function
        self.kinds: dict[str, Kind] = dict(function.inputs)
        self._constants: dict[str, Any] = {}
        self._emitted: set[str] = set()

    # --- what handlers ask ------------------------------------------------------------------------

    def has(self, op: Operation, name: str) -> bool:
        return bool(op.inputs.get(name))

    def value(self, op: Operation, name: str, default: Any = None) -> Any:
        """A parameter that must be constant: an array, a string, or a list. Raises `Unsupported` if it is computed."""
        found = op.inputs.get(name)
        if not found:
            return default
        known = self._known(found[0])
        if known is None:
            raise Unsupported(f"{op.type} with a {name} that is computed")
        return known

    def integers(self, op: Operation, name: str, default: Sequence[int] | None = None) -> list[int]:
        """Raises `ModelRejected` if it is missing and has no default."""
        found = self.value(op, name, default)
        if found is None:
            raise ModelRejected(f"{op.type} of the program has no {name}")
        return [int(n) for n in np.asarray(found).ravel().tolist()]

    def integer(self, op: Operation, name: str, default: int | None = None) -> int:
        return self.integers(op, name, None if default is None else [default])[0]

    def number(self, op: Operation, name: str, default: float) -> float:
        return float(np.asarray(self.value(op, name, default)).ravel()[0])

    def flag(self, op: Operation, name: str, default: bool = False) -> bool:
        return bool(np.asarray(self.value(op, name, default)).ravel()[0])

    def text(self, op: Operation, name: str, default: str) -> str:
        return str(self.value(op, name, default))

    def tensor(self, op: Operation, name: str = "x") -> str:
        """The name of an argument in the graph; constants are written when they are first used."""
        found = op.inputs.get(name)
        if not found:
            raise ModelRejected(f"{op.type} of the program has no {name}")
        return self.argument(found[0])

    def tensors(self, op: Operation, name: str) -> list[str]:
        return [self.argument(a) for a in op.inputs.get(name) or ()]

    def argument(self, argument: Argument) -> str:
        if not isinstance(argument, Ref):
            return self.graph.constant(_array(argument))
        if argument.name in self._constants:
            return self.graph.constant(_array(self._constants[argument.name]), argument.name)
        if argument.name not in self.kinds:
            raise ModelRejected("the program uses a value before it is made")
        return argument.name

    def kind(self, op: Operation, name: str = "x") -> Kind:
        found = op.inputs.get(name)
        if not found:
            raise ModelRejected(f"{op.type} of the program has no {name}")
        known = self._known(found[0])
        if known is not None:
            array = _array(known)
            return Kind("str" if array.dtype.kind in "OU" else array.dtype.name, array.shape)
        return self.kinds[found[0].name]

    def rank(self, op: Operation, name: str = "x") -> int:
        return len(self.kind(op, name).shape)

    def constant(self, op: Operation, name: str) -> Array | None:
        """An argument if it is a constant array, else None."""
        found = op.inputs.get(name)
        known = self._known(found[0]) if found else None
        return None if known is None else _array(known)

    def scalar(self, value: float, like: str) -> str:
        """A constant of a dtype."""
        return self.graph.constant(np.asarray(value, dtype=like))

    def long(self, values: Sequence[int]) -> str:
        """ONNX wants shapes and axes as int64 tensors."""
        return self.graph.constant(np.asarray(list(values), np.int64))

    def as_long(self, op: Operation, name: str) -> str:
        """A computed or constant integer argument as int64."""
        known = self.constant(op, name)
        if known is not None:
            return self.graph.constant(known.astype(np.int64))
        return self.graph.node("Cast", [self.tensor(op, name)], to=ONNX_TYPES["int64"])

    def cast(self, value: str, dtype: str, out: str = "") -> str:
        return self.graph.node("Cast", [value], out, to=ONNX_TYPES[dtype])

    # --- running ----------------------------------------------------------------------------------

    def define(self, op: Operation, value: Any) -> None:
        """The operator's output is a constant."""
        self._constants[op.outputs[0][0]] = value

    def run(self, handlers: dict[str, Handler]) -> bytes:
        """The ONNX file. Raises `Unsupported` naming all operators that have no translation."""
        self._refuse_unknown(handlers)
        for name, kind in self.function.inputs:
            self.graph.input(name, _numeric(name, kind), _axes(name, kind.shape))
        for op in self.function.operations:
            for name, kind in op.outputs:
                self.kinds[name] = kind
            if op.type == "const":
                self.define(op, op.value)
            else:
                handlers[op.type](self, op)
        for name in self.function.outputs:
            self._output(name)
        return self.graph.model()

    def _output(self, name: str) -> None:
        kind = self.kinds.get(name)
        if kind is None:
            raise ModelRejected("the program returns a value that it does not make")
        if name in self._constants:
            self.graph.node("Identity", [self.graph.constant(_array(self._constants[name]))], name)
        self.graph.output(name, _numeric(name, kind), [None if n is None else n for n in kind.shape])

    def _refuse_unknown(self, handlers: dict[str, Handler]) -> None:
        used = {op.type for op in self.function.operations}
        unknown = sorted((used - set(handlers) - {"const"}) | self.function.has_blocks)
        if unknown:
            plural = "s" if len(unknown) > 1 else ""
            raise Unsupported(f"the CoreML operator{plural} {', '.join(unknown)[:500]} cannot be translated and run on this system")

    def _known(self, argument: Argument) -> Any:
        return self._constants.get(argument.name) if isinstance(argument, Ref) else argument


Handler = Callable[[Translation, Operation], None]


def out(op: Operation, number: int = 0) -> str:
    return op.outputs[number][0]


def _array(value: Any) -> Array:
    if isinstance(value, list):
        return np.asarray([np.asarray(v) for v in value])
    return np.asarray(value, dtype=object) if isinstance(value, str) else np.asarray(value)


def _numeric(name: str, kind: Kind) -> str:
    if kind.dtype not in ONNX_TYPES:
        raise Unsupported(f"{name!r} of the CoreML model is a {kind.dtype}, which cannot go in or out here")
    return kind.dtype


def _axes(name: str, shape: Sequence[int | None]) -> list[int | str | None]:
    """Sizes that may vary: CoreML names none. The first axis is taken for the batch that all inputs share."""
    return [n if n is not None else "batch" if axis == 0 else f"{name}_{axis}" for axis, n in enumerate(shape)]
