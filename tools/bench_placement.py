"""Node selection among 100 and 10,000 nodes: median milliseconds of one choice, as JSON. Targets: SPEC section 5."""

from __future__ import annotations

import json
import statistics
import time

from dimnode.core.placement import Candidate, Need, place


def fleet(count: int) -> list[Candidate]:
    """Nodes of unlike load, price and cache."""
    return [
        Candidate(
            peer=f"peer-{i}",
            state="alive" if i % 50 else "suspect",
            loaders=frozenset({"onnx", "builtin"} if i % 4 else {"pt2"}),
            memory_free=(1 + i % 16) << 30,
            price=1.0 + i % 7,
            slots=1 + i % 4,
            busy=i % 9,
            queue_capacity=16,
            cached=frozenset({"model"}) if i % 3 == 0 else frozenset(),
            warm=frozenset({"model"}) if i % 30 == 0 else frozenset(),
        )
        for i in range(count)
    ]


def median_ms(count: int, repeats: int) -> float:
    """Of the calling thread's CPU time, so that a busy machine does not count."""
    nodes, need = fleet(count), Need(format="onnx", model_cid="model", memory=2 << 30, budget=6.0)
    taken: list[float] = []
    for _ in range(repeats):
        start = time.thread_time()
        place(nodes, need)
        taken.append((time.thread_time() - start) * 1000)
    return statistics.median(taken)


def run() -> dict[str, float]:
    return {"selection_100_ms": median_ms(100, 200), "selection_10000_ms": median_ms(10_000, 30)}


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
