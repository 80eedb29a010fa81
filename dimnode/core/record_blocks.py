"""Which blocks belong to a job's record: its inputs, its latest checkpoint and its result, as far as they are not in the record itself.

Whoever may sign entries may write anything where a CID belongs. What is none is no block: it is left out here, so that nobody
who asks a store for blocks of a record is answered with an error.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dimnode.core.job_record import Record
from dimnode.domain import codec
from dimnode.domain.record import Assign, Attempt, Ballot, Body, Checkpoint, Claim, Core, OutcomeEntry, SealEntry, Unknown

_CID = re.compile("b(?:afkrei|afybei|afyrei)[a-h][a-z2-7]{50}[aeimquy4]")
"""Version 1, sha2-256, raw or dag-pb or dag-cbor, in canonical base32: what the content store takes. Decisions do not import that."""


def is_cid(text: str) -> bool:
    """Whether a content store can have it."""
    return _CID.fullmatch(text) is not None


def blocks_of(record: Record) -> tuple[str, ...]:
    """CIDs, each once. Of a result that is a block of its own this is that block; `tensors_of` tells what it refers to."""
    entries = list(record.items())
    found = dict.fromkeys(latest_checkpoints(entries))
    for _, body in entries:
        if isinstance(body, Core):
            found.update(dict.fromkeys(tensors_of(_plain(body.spec), "client_data")))
        elif isinstance(body, OutcomeEntry) and body.result is not None:
            found.update(dict.fromkeys(tensors_of(_plain(body.result), "outputs")))
        elif isinstance(body, OutcomeEntry) and body.result_cid is not None:
            found[body.result_cid] = None
    return tuple(cid for cid in found if is_cid(cid))


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


def counting_checkpoints(entries: Iterable[tuple[str, Body | Unknown]]) -> list[tuple[str, Checkpoint]]:
    """With their entry ids, those of a seal that is there, by an owner that ordered one of its attempts: of that the executor's
    signature tells. Any member may claim a job, and say then what a round that it had no part in came to."""
    bodies = dict(entries)
    claimed = {b.ballot for b in bodies.values() if isinstance(b, Claim)}
    seals = {key: (b.round, _ordered_by(b, bodies) & claimed) for key, b in bodies.items() if isinstance(b, SealEntry)}
    found = [(key, b, seals.get(b.seal)) for key, b in bodies.items() if isinstance(b, Checkpoint)]
    return [(key, b) for key, b, seal in found if seal is not None and b.round == seal[0] and b.ballot in seal[1]]


def _ordered_by(seal: SealEntry, bodies: Mapping[str, Body | Unknown]) -> set[Ballot]:
    """What an executor says of a ballot of its own tells nothing, unless it has made all of the round and could say anything of it."""
    sealed = [b for key in seal.attempts.values() if isinstance(b := bodies.get(key), Attempt)]
    own = Counter(b.ballot for b in sealed if b.node == b.ballot.peer)
    return {b.ballot for b in sealed if b.node != b.ballot.peer or own[b.ballot] == len(seal.attempts)}


def latest_checkpoints(entries: Iterable[tuple[str, Body | Unknown]]) -> Iterator[str]:
    """CIDs of those of the last round that has any that count. A round is fed by the one before it, and an ended job goes on with
    none."""
    entries = list(entries)
    if any(isinstance(body, OutcomeEntry) for _, body in entries):
        return
    found = [body for _, body in counting_checkpoints(entries)]
    last = max((body.round for body in found), default=0)
    yield from dict.fromkeys(body.cid for body in found if body.round == last)


def result_blocks(bodies: Iterable[Body | Unknown]) -> Iterator[str]:
    """CIDs of result documents that are blocks of their own."""
    for body in bodies:
        if isinstance(body, OutcomeEntry) and body.result is None and body.result_cid is not None and is_cid(body.result_cid):
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
        if isinstance(cid, str) and is_cid(cid):
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
