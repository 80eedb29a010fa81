"""What a loader is: the code in an agent that knows one framework.

A loader runs in an agent process only. It never executes code that a model file smuggles in, and
raises `ModelRejected` for a file that it will not load.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

Array = NDArray[Any]


class LoaderError(Exception):
    """Base; the message is for people and holds no path."""


class ModelRejected(LoaderError):
    """The file is broken, of another format, or holds something that a loader will not run."""


class DeviceMissing(LoaderError):
    """The model was to run on a device that this machine, or the framework as it is installed, does not have."""


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
    optional: bool = False
    """An input that may be left out."""


@dataclass(frozen=True, slots=True)
class ModelSchema:
    inputs: tuple[TensorSchema, ...]
    outputs: tuple[TensorSchema, ...]
    task: str = ""
    """What the model is for, where that is known: ``text-generation``."""
    sample: Mapping[str, Array] = field(default_factory=dict[str, Array])
    """Inputs for a trial run, where zeros would not do."""


@dataclass(frozen=True, slots=True)
class Golden:
    """Inputs with the outputs that the author got for them. Outputs that are left out are not compared."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    rtol: float = 1e-3
    atol: float = 1e-4
    """A value may differ by ``atol + rtol * |expected|``."""


@dataclass(frozen=True, slots=True)
class About:
    """What a model's manifest says to its loader, for formats that do not tell it themselves."""

    inputs: tuple[TensorSchema, ...] = ()
    outputs: tuple[TensorSchema, ...] = ()
    architecture: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Which allow-listed architecture the weights belong to, and its sizes (safetensors)."""
    golden: Golden | None = None
    device: str = "auto"
    """One of `loaders.devices.DEVICES`, for loaders that have a choice. One that is not here is `DeviceMissing`, but for ``auto``."""
    gpu_memory: int = 0
    """Bytes of the card that the model may take; 0: no bound."""


NOTHING = About()


class LoadedModel(Protocol):
    schema: ModelSchema

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One inference. Raises `InputRejected`, `InferenceFailed`."""
        ...


Tell = Callable[[int, str], None]
"""Called with a row and the next piece of its text."""


@runtime_checkable
class StreamingModel(Protocol):
    """A model whose answer comes bit by bit."""

    def stream(self, inputs: Mapping[str, Array], tell: Tell) -> dict[str, Array]:
        """As `LoadedModel.run`; the pieces of a row, joined, are its text in the output ``text``."""
        ...


class Loader(Protocol):
    format: str

    def load(self, path: Path, threads: int, about: About = NOTHING) -> LoadedModel:
        """``threads``: intra-op threads granted. Raises `ModelRejected`, `DeviceMissing`."""
        ...
