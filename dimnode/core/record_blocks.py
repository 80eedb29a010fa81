"""Which blocks belong to a job's record: its inputs, its latest checkpoint and its result, as far as they are not in the record itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dimnode.core.job_record import Record
from dimnode.domain import codec
from dimnode.domain.record import Assign, Attempt, Body, Checkpoint, Core, OutcomeEntry, Unknown


def blocks_of(record: Record) -> tuple[str, ...]:
    """CIDs, each once. Of a result that is a block of its own this is that block; `tensors_of` tells what it refers to."""
    bodies = [b for _, b in record.items()]
    found = dict.fromkeys(latest_checkpoints(bodies))
    for body in bodies:
        if isinstance(body, Core):
            found.update(dict.fromkeys(tensors_of(_plain(body.spec), "client_data")))
        elif isinstance(body, OutcomeEntry) and body.result is not None:
            found.update(dict.fromkeys(tensors_of(_plain(body.result), "outputs")))
        elif isinstance(body, OutcomeEntry) and body.result_cid is not None:
            found[body.result_cid] = None
    return tuple(found)


def needed_by(bodies: Iterable[Body | Unknown]) -> Iterator[str]:
    """CIDs that a garbage collection leaves alone as long as these entries are kept: the form, inputs, results, what tasks have put
    out, models. (Entries that compaction drops need nothing any more.) `tensors_of` tells what a result block refers to."""
    for body in bodies:
        match body:
            case Core():
                yield body.spec_cid
                yield from tensors_of(_plain(body.spec), "client_data")
            case Assign():
                yield body.model_cid
            case Attempt():
                yield from (value.cid for value in body.outputs.values() if value.cid is not None)
            case OutcomeEntry():
                if body.result is not None:
                    yield from tensors_of(_plain(body.result), "outputs")
                if body.result_cid is not None:
                    yield body.result_cid
            case _:
                continue


def latest_checkpoints(bodies: Iterable[Body | Unknown]) -> Iterator[str]:
    """CIDs of those of the last round that has any. A round is fed by the one before it, and an ended job goes on with none."""
    found: dict[str, int] = {}
    for body in bodies:
        if isinstance(body, OutcomeEntry):
            return
        if isinstance(body, Checkpoint):
            found[body.cid] = body.round
    last = max(found.values(), default=0)
    yield from (cid for cid, number in found.items() if number == last)


def result_blocks(bodies: Iterable[Body | Unknown]) -> Iterator[str]:
    """CIDs of result documents that are blocks of their own."""
    for body in bodies:
        if isinstance(body, OutcomeEntry) and body.result is None and body.result_cid is not None:
            yield body.result_cid


def results_in(bodies: Iterable[Body | Unknown]) -> Iterator[Any]:
    """Result documents that are in the record itself."""
    for body in bodies:
        if isinstance(body, OutcomeEntry) and body.result is not None:
            yield _plain(body.result)


def tensors_of(document: Any, section: str) -> Iterator[str]:
    """CIDs of the tensors under ``client_data`` of a spec, or ``outputs`` of a result document."""
    tensors = document.get(section) if isinstance(document, Mapping) else None
    for tensor in tensors.values() if isinstance(tensors, Mapping) else ():
        cid = tensor.get("cid") if isinstance(tensor, Mapping) else None
        if isinstance(cid, str):
            yield cid


def receipts_of(document: Any) -> Iterator[bytes]:
    """The receipts in a result document: signed entries, canonical DAG-CBOR."""
    tasks = document.get("tasks") if isinstance(document, Mapping) else None
    for task in tasks if isinstance(tasks, (list, tuple)) else ():
        receipt = task.get("receipt") if isinstance(task, Mapping) else None
        if isinstance(receipt, bytes) and receipt:
            yield receipt


def _plain(data: bytes) -> Any:
    try:
        return codec.decode_plain(data)
    except codec.CodecError:
        return None
