"""Signs attempts and writes them down before anyone hears of them.

Receipts form a chain: each names the entry before it. Attempts that finish at the same time are chained and written in
one transaction, with what the ledger says of their tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import msgspec
import trio

from dimnode.daemon.together import together
from dimnode.domain import codec
from dimnode.domain.record import Attempt, SignedEntry
from dimnode.errors import DimError, Unavailable, again
from dimnode.ports import Journal, Signer
from dimnode.security.signing import sign_entry

HEAD = "receipt.head"
Beside = Callable[[str], tuple[str, bytes]]
"""Entry id of the attempt -> key and value that become durable with it."""


@dataclass(slots=True, eq=False)
class _Pending:
    attempt: Attempt
    beside: Beside | None
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
        self.closed = False
        """Nothing is written any more: the node stops."""

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
            self.closed = True
            for pending in self._pending:
                pending.error = Unavailable("the node is stopping")
                pending.done.set()

    async def record(self, attempt: Attempt, beside: Beside | None = None) -> SignedEntry:
        """The signed entry, durable; a receipt gets its place in the chain. Raises what `Journal.append` raises, and
        `DimError` INTERNAL for an attempt that no record can hold."""
        if self.closed:
            raise Unavailable("the node is stopping")
        pending = _Pending(attempt, beside)
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
        values = [pending.beside(entries[n].id) for n, pending in enumerate(batch) if n in entries and pending.beside is not None]
        if head != self._head:
            values.append((HEAD, head.encode()))
        try:
            await together(partial(self._journal.append, [*entries.values()]), *[partial(self._journal.put, *value) for value in values])
            self._head = head
            for n, entry in entries.items():
                batch[n].entry = entry
        except DimError as e:
            for n in entries:
                batch[n].error = again(e)
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
