"""Signs attempts and writes them down before anyone hears of them.

Receipts form a chain: each names the entry before it. Attempts that finish at the same time are chained and written in
one transaction.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import trio

from dimnode.domain import codec
from dimnode.domain.record import Attempt, SignedEntry
from dimnode.errors import DimError, Unavailable
from dimnode.ports import Journal, Signer
from dimnode.security.signing import sign_entry
from p2p.groups import leaves

HEAD = "receipt.head"


@dataclass(slots=True, eq=False)
class _Pending:
    attempt: Attempt
    done: trio.Event = field(default_factory=trio.Event)
    entry: SignedEntry | None = None
    error: DimError | None = None


class Recorder:
    def __init__(self, signer: Signer, journal: Journal) -> None:
        self._signer = signer
        self._journal = journal
        self._pending: list[_Pending] = []
        self._wake = trio.Event()
        self._head = ""
        self._closed = False

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self._head = (await self._journal.get(HEAD) or b"").decode()
        task_status.started()
        try:
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                batch, self._pending = self._pending, []
                await self._write(batch)
        finally:
            self._closed = True
            for pending in self._pending:
                pending.error = Unavailable("the node is stopping")
                pending.done.set()

    async def record(self, attempt: Attempt) -> SignedEntry:
        """The signed entry, durable; a receipt gets its place in the chain. Raises what `Journal.append` raises."""
        if self._closed:
            raise Unavailable("the node is stopping")
        pending = _Pending(attempt)
        self._pending.append(pending)
        self._wake.set()
        await pending.done.wait()
        if pending.error is not None:
            raise pending.error
        assert pending.entry is not None
        return pending.entry

    async def _write(self, batch: list[_Pending]) -> None:
        head = self._head
        entries: dict[int, SignedEntry] = {}
        for n, pending in enumerate(batch):
            try:
                entries[n] = entry = self._sign(pending.attempt, head)
            except codec.CodecError:
                pending.error = DimError("the attempt cannot be written down")
                continue
            if pending.attempt.receipt is not None:
                head = entry.id
        try:
            async with trio.open_nursery() as nursery:  # side by side, so that both share one transaction
                nursery.start_soon(self._journal.append, list(entries.values()))
                if head != self._head:
                    nursery.start_soon(self._journal.put, HEAD, head.encode())
            self._head = head
            for n, entry in entries.items():
                batch[n].entry = entry
        except* DimError as group:
            e = next(leaves(group))
            assert isinstance(e, DimError)
            for n in entries:
                batch[n].error = type(e)(e.message, hint=e.hint, retry_after=e.retry_after)
        finally:
            for pending in batch:
                if pending.error is None and pending.entry is None:
                    pending.error = Unavailable("the node is stopping")
                pending.done.set()

    def _sign(self, attempt: Attempt, previous: str) -> SignedEntry:
        if attempt.receipt is not None:
            receipt = msgspec.structs.replace(attempt.receipt, previous=previous)
            attempt = msgspec.structs.replace(attempt, receipt=receipt)
        return sign_entry(attempt, self._signer)
