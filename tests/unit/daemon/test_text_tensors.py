"""Text between node and agent, and as an output: whole, bounded, and never much of it on the event loop."""

from __future__ import annotations

import time

import numpy as np
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from dimnode.daemon import task_outputs, text_tensors
from dimnode.daemon.task_outputs import least_bytes, leave
from dimnode.domain.model import ModelManifest, TensorSpec
from dimnode.domain.record import Ballot
from dimnode.domain.task import TaskOrder
from dimnode.domain.tensors import from_npy, from_numpy, to_numpy
from dimnode.errors import ResourceExhausted
from p2p.ipfs.memory import MemoryExchange, MemoryStore

ORDER = TaskOrder(job="j", task="t", attempt=1, ballot=Ballot(1, "o", "b"), task_key="k", model_id="m", model_cid="c", manifest_cid="f")
TEXT = ModelManifest(
    id="m", cid="c", format="onnx", inputs=(), outputs=(TensorSpec(name="b", dtype="str", shape=("N",)),), size=1, licence=""
)


def objects(values: list[str]) -> np.ndarray:
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out


@given(st.lists(st.text(st.characters(), max_size=20), max_size=40))
def test_text_arrives_unchanged_also_what_is_no_unicode(values: list[str]) -> None:
    data = text_tensors.encode(objects(values))
    assert text_tensors.decode(memoryview(data), len(values)).tolist() == values
    assert text_tensors.decode(memoryview(text_tensors.encode(np.array([*values, "x"]))), len(values) + 1).dtype == object


@pytest.mark.parametrize(
    ("lengths", "texts", "count"),
    [
        ([1], b"", 1),
        ([1], b"ab", 1),
        ([2**64 - 1, 1], b"", 2),
        ([2**63, 2**63], b"", 2),
        ([1], b"\xff", 1),
        ([], b"a", 0),
        ([1], b"a", 1 << 60),
    ],
)
def test_text_that_does_not_fit_is_refused(lengths: list[int], texts: bytes, count: int) -> None:
    with pytest.raises(ValueError, match=r"."):
        text_tensors.decode(memoryview(np.array(lengths, "<u8").tobytes() + texts), count)


def test_what_is_large_is_known_without_reading_it_all() -> None:
    assert not text_tensors.large([objects(["a"] * 100), np.zeros(1 << 20)])
    assert text_tensors.large([objects(["a" * (1 << 16)])])
    assert text_tensors.large([objects(["a"] * 5000)])
    assert text_tensors.large([objects(["a" * 300] * 60), objects(["a" * 300] * 60)])
    assert text_tensors.large([np.array(["a" * 1000] * 10)])


@given(st.lists(st.text(max_size=10), max_size=20))
def test_the_estimate_of_what_text_needs_inline_is_never_too_high(values: list[str]) -> None:
    assert least_bytes(objects(values), 1 << 16) <= from_numpy(objects(values)).nbytes + 1


async def test_small_text_leaves_inline_and_large_text_by_cid() -> None:
    store = MemoryStore("n", MemoryExchange())
    small, many, long = objects(["ä", ""]), objects(["x"] * 50_000), objects(["y" * 70_000, ""])
    for array in (small, many, long):
        value = (await leave(ORDER, TEXT, {"b": array}, len(array), store, 1 << 16))["b"]
        assert (value.cid is None) is (array is small)
        back = to_numpy(value) if value.cid is None else from_npy(await store.private_to("j").get_bytes(value.cid))
        assert back.tolist() == array.tolist()


async def test_one_long_text_among_many_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_outputs, "MOST_NPY", 1 << 20)
    with pytest.raises(ResourceExhausted, match="too long among so many"):
        await leave(ORDER, TEXT, {"b": objects(["a" * 60_000] + ["b"] * 10_000)}, 10_001, MemoryStore("n", MemoryExchange()), 1 << 16)


async def test_much_text_leaves_without_holding_the_loop() -> None:
    longest, last, done = 0.0, time.thread_time(), False

    async def tick() -> None:
        nonlocal longest, last
        while not done:
            await trio.sleep(0)
            longest, last = max(longest, time.thread_time() - last), time.thread_time()

    class Nowhere(MemoryStore):
        async def add_bytes(self, data: bytes, durable: bool = True) -> str:
            return "cid"

        async def pin(self, cid: str, reason: str = "") -> None:
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        await leave(ORDER, TEXT, {"b": objects(["some text"] * 500_000)}, 500_000, Nowhere("n", MemoryExchange()), 1 << 16)
        done = True
    # of this thread's own time, so that other work on the machine does not count
    assert longest < 0.03
