"""What a loader is: the code in an agent that knows one framework.

A loader runs in an agent process only. It never executes code that a model file smuggles in, and
raises `ModelRejected` for a file that it will not load.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

Array = NDArray[Any]


class LoaderError(Exception):
    """Base; the message is for people and holds no path."""


class ModelRejected(LoaderError):
    """The file is broken, of another format, or holds something that a loader will not run."""


class InputRejected(LoaderError):
    """The inputs do not fit the model: names, dtypes, ranks or sizes."""


class InferenceFailed(LoaderError):
    """The framework failed on acceptable inputs."""


@dataclass(frozen=True, slots=True)
class TensorSchema:
    name: str
    dtype: str
    """numpy's dtype name, or ``str``."""
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True, slots=True)
class ModelSchema:
    inputs: tuple[TensorSchema, ...]
    outputs: tuple[TensorSchema, ...]


class LoadedModel(Protocol):
    schema: ModelSchema

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One inference. Raises `InputRejected`, `InferenceFailed`."""
        ...


class Loader(Protocol):
    format: str

    def load(self, path: Path, threads: int) -> LoadedModel:
        """``threads``: intra-op threads granted. Raises `ModelRejected`."""
        ...
