"""Runs DIM's built-in steps in an agent. `loaders.builtin_catalog` says what there is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

from loaders.api import NOTHING, About, Array, InferenceFailed, InputRejected, ModelRejected
from loaders.builtin.checks import Limits, check_inputs
from loaders.builtin_catalog import BUILTIN_SCHEMAS, FORMAT, MAX_DESCRIPTOR_BYTES, parse_descriptor

_WHERE: dict[str, tuple[str, str]] = {
    "dim/ocr-prepare@1": ("loaders.builtin.image", "prepare"),
    "dim/boxes@1": ("loaders.builtin.boxes", "find_boxes"),
    "dim/crop@1": ("loaders.builtin.crop", "crop"),
    "dim/orient@1": ("loaders.builtin.crop", "orient"),
    "dim/ctc@1": ("loaders.builtin.ctc", "decode"),
}
Function = Callable[..., dict[str, Array]]


class BuiltinStep:
    """One loaded step."""

    def __init__(self, name: str, function: Function, limits: Limits) -> None:
        self.name = name
        self.schema = BUILTIN_SCHEMAS[name]
        self._function = function
        self._limits = limits

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Raises `InputRejected`, `InferenceFailed`."""
        check_inputs(self.schema, inputs)
        try:
            return self._function(**inputs, limits=self._limits)
        except InputRejected:
            raise
        except (ValueError, ArithmeticError, MemoryError, RuntimeError, *_vision_errors()) as e:
            raise InferenceFailed(f"{self.name} failed: {type(e).__name__}") from e


class BuiltinLoader:
    """`loaders.api.Loader` for format ``builtin``."""

    format = FORMAT

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()

    def load(self, path: Path, threads: int, about: About = NOTHING) -> BuiltinStep:
        """Raises `ModelRejected`, also when the vision libraries that the step needs are not installed."""
        with path.open("rb") as f:
            name = parse_descriptor(f.read(MAX_DESCRIPTOR_BYTES + 1))
        module, function = _WHERE[name]
        try:
            found = import_module(module)
        except ImportError as e:
            raise ModelRejected(f'{name} needs OpenCV and pyclipper on this node: pip install "dimnode[vision]"') from e
        _grant(threads)
        return BuiltinStep(name, getattr(found, function), self._limits)


def _grant(threads: int) -> None:
    try:
        import cv2
    except ImportError:  # a step without vision, on a node without it
        return
    cv2.setNumThreads(threads)


def _vision_errors() -> tuple[type[Exception], ...]:
    try:
        import cv2
    except ImportError:
        return ()
    return (cv2.error,)
