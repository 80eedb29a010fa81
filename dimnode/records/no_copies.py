"""`dimnode.ports.Copies` of a node without others."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from dimnode.ports import Copied, Written


class NoCopies:
    async def write(self, jobs: Sequence[Written], *, wanted: int | None = None) -> list[Copied]:
        del wanted
        await trio.lowlevel.checkpoint()
        return [Copied(w.job, 0) for w in jobs]

    def others(self, job: str) -> int:
        del job
        return 0

    def insists(self) -> bool:
        return False

    def enough(self, job: str) -> bool:
        del job
        return True

    async def counts(self, job: str) -> bool:
        del job
        await trio.lowlevel.checkpoint()
        return True

    def drop(self, jobs: Sequence[str]) -> None:
        del jobs
