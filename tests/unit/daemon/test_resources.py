"""What the machine has, what is promised, and what others hear of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dimnode.core.needs import GPU_CONTEXT
from dimnode.daemon.agent_watch import usage
from dimnode.daemon.gpus import Gpu
from dimnode.daemon.grant import Grant
from dimnode.daemon.resources import Reservations, Snapshot, available_memory, capabilities, refusal


def test_what_is_promised_counts_until_it_has_been_loaded_and_seen() -> None:
    promised = Reservations()
    slow, quick = (
        Grant(threads=1, memory=1, device="cuda", gpu=1, gpu_memory=7),
        Grant(threads=1, memory=1, device="cuda", gpu=1, gpu_memory=7),
    )
    promised.add(slow, 100)
    for _ in range(5):
        promised.looked()  # it may have been half loaded then
    promised.add(quick, 10)
    promised.loaded(quick)
    assert (promised.memory, promised.on_card(1), promised.on_card(0)) == (110, 2 * (7 + GPU_CONTEXT), 0)
    promised.looked()
    assert (promised.memory, promised.on_card(1)) == (100, 7 + GPU_CONTEXT), "equal grants are not the same"
    promised.loaded(slow)
    assert promised.memory == 100
    promised.looked()
    assert (promised.memory, promised.on_card(1)) == (0, 0)


def test_two_that_start_together_do_not_take_the_same_memory() -> None:
    snapshot, promised = Snapshot(1000, 500, 0.0, 1000), Reservations()
    outcomes = []
    for _ in range(3):
        reason = refusal(snapshot, memory=200 + promised.memory, disk=0, min_memory=50, min_disk=0)
        outcomes.append(reason is None)
        if reason is None:
            promised.add(Grant(threads=1, memory=400), 200)
    assert outcomes == [True, True, False]


def test_capabilities_tell_of_cards_and_sandbox() -> None:
    told = capabilities(("onnx",), ("files", "network"), (Gpu("NVIDIA T4", 16 << 30),))
    assert (told.gpus, told.gpu_memory, told.sandbox) == (("NVIDIA T4",), (16 << 30,), ("files", "network"))
    assert told.gpu_formats == (), "that a card is there does not mean that a loader can use it"


def test_a_limit_of_its_own_bounds_what_a_node_takes_for_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unit").mkdir()
    files = {
        "/proc/self/cgroup": "1:name=x:/\n0::/unit\n",
        "/sys/fs/cgroup/unit/memory.max": "1000\n",
        "/sys/fs/cgroup/unit/memory.current": "400\n",
    }
    real = Path.read_text

    def read(self: Path, *args: object, **more: object) -> str:
        return files[str(self)] if str(self) in files else real(self)

    monkeypatch.setattr(Path, "read_text", read)
    assert available_memory(5000) == 600
    assert available_memory(100) == 100
    files["/sys/fs/cgroup/unit/memory.max"] = "max\n"
    assert available_memory(5000) == 5000
    files["/sys/fs/cgroup/unit/memory.max"] = "odd\n"
    assert available_memory(5000) == 5000


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_memory_of_processes_that_are_gone_is_left_out() -> None:
    import os

    found = usage([os.getpid(), 2**22 + 1])
    assert set(found) == {os.getpid()}
    assert found[os.getpid()].memory > 1 << 20
    assert found[os.getpid()].threads >= 1
