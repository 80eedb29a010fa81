"""Graphics processors, as their makers' tools tell of them."""

from __future__ import annotations

import ctypes
import json
from typing import Any

import pytest

from dimnode.daemon.gpus import NOT_TOLD, Gpu, _Memory, _Process, apple, nvidia


class Nvml:
    """NVML's calls, in Python: what they write where."""

    def __init__(self, cards: list[tuple[bytes, int, int]], code: int = 0) -> None:
        self.cards, self.code, self.down = cards, code, False

    def nvmlInit_v2(self) -> int:
        return self.code

    def nvmlShutdown(self) -> int:
        self.down = True
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        ctypes.cast(count, ctypes.POINTER(ctypes.c_uint))[0] = len(self.cards)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, device: Any) -> int:
        ctypes.cast(device, ctypes.POINTER(ctypes.c_void_p))[0] = index.value + 1
        return 0

    def nvmlDeviceGetName(self, device: Any, name: Any, length: Any) -> int:
        assert length.value == 96
        name.value = self.cards[device.value - 1][0]
        return 0

    def nvmlDeviceGetMemoryInfo(self, device: Any, memory: Any) -> int:
        _, total, free = self.cards[device.value - 1]
        ctypes.cast(memory, ctypes.POINTER(_Memory))[0] = _Memory(total, free, total - free)
        return 0


class TellingNvml(Nvml):
    """A driver that tells of processes."""

    def nvmlDeviceGetComputeRunningProcesses_v3(self, device: Any, count: Any, infos: Any) -> int:
        number = ctypes.cast(count, ctypes.POINTER(ctypes.c_uint))
        if device.value == 2:
            return 7  # there is not room for all of them
        assert number[0] == len(infos)
        infos[0], infos[1] = _Process(41, 3 << 30, 0, 0), _Process(42, NOT_TOLD, 0, 0)
        number[0] = 2
        return 0


def test_processes_on_a_card_where_the_driver_tells_of_them() -> None:
    nvml: Any = TellingNvml([(b"one", 16 << 30, 1 << 30), (b"two", 16 << 30, 1 << 30)])
    assert [c.processes for c in nvidia(nvml)] == [((41, 3 << 30),), ()]
    assert ctypes.sizeof(_Process) == 24, "as nvmlProcessInfo_t is laid out"


def test_nvidia_cards_with_their_memory() -> None:
    nvml: Any = Nvml([(b"NVIDIA H100", 80 << 30, 70 << 30), (b"NVIDIA T4", 16 << 30, 1 << 30)])
    assert nvidia(nvml) == (Gpu("NVIDIA H100", 80 << 30, 70 << 30), Gpu("NVIDIA T4", 16 << 30, 1 << 30))
    assert nvml.down


def test_a_driver_that_does_not_answer_is_an_os_error() -> None:
    broken: Any = Nvml([], code=9)
    with pytest.raises(OSError, match="NVML answers 9"):
        nvidia(broken)


def test_apple_by_its_profile() -> None:
    assert apple(json.dumps({"SPDisplaysDataType": [{"sppci_model": "Apple M3 Max"}, {"other": 1}]})) == (Gpu("Apple M3 Max", 0),)
    assert apple("no json") == apple("[]") == apple("{}") == ()
