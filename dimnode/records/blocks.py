"""All blocks of a record: what it names, and what a result that is a block of its own names."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence

import structlog

from dimnode.core.job_record import Record
from dimnode.core.job_view import view
from dimnode.core.record_blocks import blocks_of, result_blocks, tensors_of
from dimnode.records.messages import BlocksAnswer, BlocksRequest
from p2p.ipfs.api import ContentError, ContentStore

log = structlog.get_logger(__name__)
KeepBlocks = Callable[[BlocksRequest], Awaitable[Collection[str]]]
"""Fetches blocks of a job and pins them; returns those that are here now."""


async def blocks_here(record: Record, store: ContentStore, timeout: float) -> list[str]:
    """CIDs of the record's blocks that this node has. ``timeout`` is seconds without progress, for a result document."""
    cids = list(blocks_of(record))
    try:
        cids += await _of_result(record, store, timeout)
    except ContentError as e:
        log.warning("records.result_unreadable", job=record.job, reason=str(e))
    return [cid for cid in dict.fromkeys(cids) if await store.has(cid)]


async def ask_to_keep(
    ask: Callable[[BlocksRequest], Awaitable[BlocksAnswer]], me: str, job: str, cids: Sequence[str], most: int
) -> set[str]:
    """Has a node, by ``ask``, fetch blocks from here and keep them, ``most`` of them in one request; those that it has now. Raises as ``ask``."""
    kept: set[str] = set()
    for start in range(0, len(cids), most):
        kept.update((await ask(BlocksRequest(job=job, cids=tuple(cids[start : start + most]), providers=(me,)))).kept)
    return kept


async def keep_whole(record: Record, store: ContentStore, keep: KeepBlocks, providers: Sequence[str], timeout: float) -> bool:
    """Whether this node has all blocks of the record now: what it lacked was fetched and pinned, what a result document names after
    the document."""
    cids = blocks_of(record)
    if not await _kept(record.job, cids, keep, providers):
        return False
    try:
        tensors = await _of_result(record, store, timeout)
    except ContentError as e:
        log.warning("records.result_unreadable", job=record.job, reason=str(e))
        return False
    return await _kept(record.job, tensors, keep, providers)


async def _kept(job: str, cids: Collection[str], keep: KeepBlocks, providers: Sequence[str]) -> bool:
    return not cids or set(cids) <= set(await keep(BlocksRequest(job=job, cids=tuple(cids), providers=tuple(providers))))


async def _of_result(record: Record, store: ContentStore, timeout: float) -> list[str]:
    """What a result document that is a block of its own, and here, refers to. Raises `ContentError`."""
    outcome = view(record).outcome
    for cid in result_blocks([outcome] if outcome is not None else []):
        if await store.has(cid):
            return list(tensors_of(await store.get_dag(cid, timeout=timeout), "outputs"))
    return []
