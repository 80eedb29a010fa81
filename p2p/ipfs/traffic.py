"""What every exchange counts, and the question that it asks before it serves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

MayServe = Callable[[str, Collection[str]], Awaitable[bool]]
"""(peer id, audiences of a block that is not everybody's) -> whether that peer may have it. The peer's other wants wait for it; may not
raise."""


@dataclass(slots=True)
class Traffic:
    fetched_blocks: int = 0
    fetched_bytes: int = 0
    served_blocks: int = 0
    served_bytes: int = 0
    refused_blocks: int = 0
    withheld_blocks: int = 0
    """Asked for by peers that they are not for."""

    def fetched(self, data: bytes) -> None:
        self.fetched_blocks += 1
        self.fetched_bytes += len(data)

    def served(self, blocks: Sequence[tuple[bytes, bytes]]) -> None:
        self.served_blocks += len(blocks)
        self.served_bytes += sum(len(data) for _, data in blocks)
