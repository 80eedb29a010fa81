"""What a round came to, as a block: whoever takes the job over goes on from there, also when the outputs that were aggregated are gone.

The block is DAG-CBOR ``{job, round, plan, seal, outputs, details}``; large outputs are links, so that it is fetched, copied and kept whole. It
counts for one seal only, and from an owner that ordered some of its attempts. Without it the round is aggregated again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from dimnode.core.job_record import Record
from dimnode.core.job_view import SealFact
from dimnode.core.record_blocks import counting_checkpoints
from dimnode.domain import codec
from dimnode.domain.record import Checkpoint
from dimnode.domain.tensors import TensorValue
from dimnode.orchestrator.documents import finite
from dimnode.orchestrator.values import Values
from p2p.ipfs import cid as cids
from p2p.ipfs import dagcbor
from p2p.ipfs.api import BlockCorrupt, ContentError, ContentStore

log = structlog.get_logger(__name__)
PIN = "checkpoint"
"""Reason of the pin of the latest one; what replaces it takes it off."""

Outputs = Mapping[str, TensorValue]


@dataclass(frozen=True, slots=True)
class Place:
    """What a checkpoint is of."""

    job: str
    plan: str
    seal: SealFact

    def head(self) -> dict[str, Any]:
        return {"job": self.job, "round": self.seal.seal.round, "plan": self.plan, "seal": self.seal.id}


class Checkpoints:
    """``probe_timeout``: seconds without progress until one counts as gone."""

    def __init__(self, store: ContentStore, values: Values, probe_timeout: float) -> None:
        self._store = store
        self._values = values
        self._timeout = probe_timeout

    async def save(self, place: Place, outputs: Outputs, details: Mapping[str, Any]) -> str | None:
        """Its CID, once it is durable and pinned; None if it cannot be written: the job goes on without."""
        store = self._store.private_to(place.job)
        try:
            data = dagcbor.encode_linked({**place.head(), "outputs": _linked(outputs), "details": _encoded(details)})
            cid = await store.put_dag_bytes(data, durable=False)
            await store.pin(cid, reason=PIN)
        except (ContentError, codec.CodecError, OSError) as e:
            log.warning("job.no_checkpoint", job=place.job, round=place.seal.seal.round, reason=str(e))
            return None
        return cid

    async def load(self, place: Place, record: Record) -> tuple[str, Outputs] | None:
        """CID and outputs of one that can be had whole; None if there is none."""
        for found in candidates(record, place.seal):
            try:
                document = await self._store.private_to(place.job).get_dag(found.cid, providers=(found.ballot.peer,), timeout=self._timeout)
                outputs = _read(document, place)
                gone = await self._values.gone(outputs, place.job, (found.ballot.peer,))
            except ContentError as e:
                gone = str(e)
            else:
                if gone is None:
                    return found.cid, outputs
            log.info("job.checkpoint_unusable", job=place.job, round=place.seal.seal.round, reason=gone)
        return None

    async def let_go(self, cid: str) -> None:
        """Another one has taken its place."""
        try:
            if await self._store.pinned_for(cid) == PIN:
                await self._store.unpin(cid)
        except ContentError as e:
            log.info("job.checkpoint_kept", cid=cid, reason=str(e))


def candidates(record: Record, seal: SealFact) -> Sequence[Checkpoint]:
    """Checkpoints of that very seal that count, in an order that every owner finds again."""
    found = [(b.ballot, key, b) for key, b in counting_checkpoints(record.items()) if b.seal == seal.id]
    return [b for _, _, b in sorted(found, key=lambda item: item[:2])]


def _linked(outputs: Outputs) -> dict[str, Any]:
    return {
        name: {"dtype": v.dtype, "shape": list(v.shape), "raw": v.raw, "cid": cids.parse(v.cid) if v.cid is not None else None}
        for name, v in outputs.items()
    }


def _encoded(details: Mapping[str, Any]) -> dagcbor.Encoded:
    return dagcbor.Encoded(codec.encode(finite(details)))


def _read(document: Any, place: Place) -> dict[str, TensorValue]:
    """Raises `BlockCorrupt`."""
    if not isinstance(document, Mapping) or {key: document.get(key) for key in place.head()} != place.head():
        raise BlockCorrupt("the checkpoint of something else")
    try:
        return dict(_values(document["outputs"]))
    except (KeyError, TypeError, AttributeError, msgspec.ValidationError) as e:
        raise BlockCorrupt("not a checkpoint") from e


def _values(outputs: Mapping[str, Any]) -> Iterator[tuple[str, TensorValue]]:
    for name, v in outputs.items():
        cid = dagcbor.link_in(v["cid"]).text if v["cid"] is not None else None
        plain = {"dtype": v["dtype"], "shape": v["shape"], "raw": v["raw"], "cid": cid}
        yield name, msgspec.convert(plain, TensorValue, builtin_types=(bytes,))
