"""What an agent's answers become, results for callers and errors for people, and what callers may ask of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dimnode.core.partial_text import MAX_ROWS
from dimnode.daemon.agent_protocol import Header, SchemaItem
from dimnode.daemon.sandbox.report import Confinement
from dimnode.domain.model import TensorSpec
from dimnode.domain.task import TextPiece
from dimnode.errors import Code, DimError, FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable

Tell = Callable[[TextPiece], None]
Check = Callable[[Confinement], None]


def no_check(confinement: Confinement) -> None:
    """Nothing is asked of an agent's sandbox."""


@dataclass(frozen=True, slots=True)
class Schema:
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    memory: int = 0
    """The most bytes that the agent held."""
    task: str = ""


class AgentCrashed(Unavailable):
    """The agent died while it worked; another node may do better."""


class InferenceError(DimError):
    """The framework failed on inputs that looked right."""

    code = Code.TASK_FAILED


class Said:
    """Tells each piece of text with its place in its row."""

    def __init__(self, tell: Tell | None) -> None:
        self._tell = tell
        self._ends: dict[int, int] = {}

    @property
    def anything(self) -> bool:
        return bool(self._ends)

    def piece(self, row: int, text: str) -> None:
        if self._tell is not None and 0 <= row < MAX_ROWS:
            at = self._ends.get(row, 0)
            self._ends[row] = at + len(text)
            self._tell(TextPiece(row=row, offset=at, text=text))


def specs(items: tuple[SchemaItem, ...]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=i.name, dtype=i.dtype, shape=i.shape, optional=i.optional) for i in items)


def failure(reply: Header) -> DimError:
    """What the agent reported, as an error for people."""
    match reply.kind:
        case "input":
            return InvalidArgument(reply.message, hint="Compare the inputs with the model's schema.")
        case "unconfined":
            return FailedPrecondition(reply.message, hint="Set daemon.sandbox to best, or use another node.")
        case "rejected":
            return FailedPrecondition(f"the model cannot be loaded: {reply.message}")
        case "device":
            return FailedPrecondition(reply.message, hint="Set daemon.device to auto, or use another node.")
        case "memory":
            return ResourceExhausted(reply.message, hint="Send fewer rows at once, or use a node with more memory.")
        case _:
            return InferenceError(reply.message)
