"""All blocks of a record: what it names, and what a result that is a block of its own names."""

from __future__ import annotations

import structlog

from dimnode.core.job_record import Record
from dimnode.core.job_view import view
from dimnode.core.record_blocks import blocks_of, tensors_of
from p2p.ipfs.api import ContentError, ContentStore

log = structlog.get_logger(__name__)


async def blocks_here(record: Record, store: ContentStore, timeout: float) -> list[str]:
    """CIDs of the record's blocks that this node has. ``timeout`` is seconds without progress, for a result document."""
    cids = list(blocks_of(record))
    outcome = view(record).outcome
    if outcome is not None and outcome.result is None and outcome.result_cid is not None and await store.has(outcome.result_cid):
        try:
            cids += tensors_of(await store.get_dag(outcome.result_cid, timeout=timeout), "outputs")
        except ContentError as e:
            log.warning("records.result_unreadable", job=record.job, reason=str(e))
    return [cid for cid in dict.fromkeys(cids) if await store.has(cid)]
