"""What an orchestrator asks of a daemon, and what it gets back."""

from __future__ import annotations

from typing import Literal

import msgspec

from dimnode.domain.record import Ballot, SignedEntry
from dimnode.domain.tensors import TensorValue


class TaskInput(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor for the model's input ``name``; with ``rows`` only that half-open range of axis 0."""

    name: str
    value: TensorValue
    rows: tuple[int, int] | None = None


class CabinetQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Inputs from a cabinet of the executing node."""

    name: str
    columns: tuple[str, ...] | None = None
    """For the model's one input."""
    columns_by_input: dict[str, tuple[str, ...]] | None = None


class TaskOrder(msgspec.Struct, frozen=True, kw_only=True):
    job: str
    task: str
    """Task key within the job."""
    attempt: int
    ballot: Ballot
    task_key: str
    model_id: str
    model_cid: str
    manifest_cid: str
    inputs: tuple[TaskInput, ...] = ()
    cabinet: CabinetQuery | None = None
    reduce: Literal["rows", "mean", "votes"] = "rows"
    vote_output: str | None = None
    rename_outputs: dict[str, str] = {}
    priority: str = "normal"
    timeout: float | None = None
    """Seconds from acceptance, queueing and fetching included."""
    providers: tuple[str, ...] = ()
    """Peer ids that are likely to have the model and the inputs."""
    principal: str = ""
    """Who submitted the job, for cabinet policies."""


class TextPiece(msgspec.Struct, frozen=True, kw_only=True):
    """Some characters of a text that is still growing."""

    row: int
    """Which prompt it answers."""
    offset: int
    """Characters of the row before it."""
    text: str


class PartialOutput(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of one task's text, for those who watch its job. A later attempt begins the text anew."""

    task: str
    attempt: int
    row: int
    offset: int
    text: str


class TaskUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """Progress of one task; the last one carries the signed attempt entry."""

    stage: Literal["accepted", "fetching", "running", "partial", "finished"]
    entry: SignedEntry | None = None
    """With ``finished``: the `Attempt`, signed by the executor."""
    piece: TextPiece | None = None
    """With ``partial``. A hint: bounded, may be left out, is told again to callers that come later."""


class TaskReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one node has of one job: for the owner who takes it over."""

    finished: tuple[SignedEntry, ...] = ()
    """Its attempts that have ended, failed and cancelled ones included."""
    running: tuple[tuple[str, int], ...] = ()
    """(task key, attempt number) of what it has accepted and not finished, queued ones included. The same attempt
    ordered under the new ballot is adopted."""
