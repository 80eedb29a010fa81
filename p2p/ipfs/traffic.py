"""What every exchange counts, and the question that it asks before it serves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

MayServe = Callable[[str, str], bool]
"""(peer id, CID) -> whether that peer may have the block. Quick, may not raise."""


@dataclass(slots=True)
class Traffic:
    fetched_blocks: int = 0
    fetched_bytes: int = 0
    served_blocks: int = 0
    served_bytes: int = 0
    refused_blocks: int = 0

    def fetched(self, data: bytes) -> None:
        self.fetched_blocks += 1
        self.fetched_bytes += len(data)

    def served(self, blocks: Sequence[tuple[bytes, bytes]]) -> None:
        self.served_blocks += len(blocks)
        self.served_bytes += sum(len(data) for _, data in blocks)
