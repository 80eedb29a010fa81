"""Graphics processors, as their makers' tools tell of them."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
from pathlib import Path
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


FAKE_DRIVER = r"""
#include <stdio.h>
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int pid; unsigned long long used; unsigned int gpu, compute; } process_t;
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned int *n) { *n = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int i, void **device) { *device = (void *)(0x7fff00000000UL + i); return i < 2 ? 0 : 2; }
static int number(void *device) { return (int)((unsigned long)device - 0x7fff00000000UL); }
int nvmlDeviceGetName(void *device, char *name, unsigned int length) { snprintf(name, length, "Fake %d", number(device)); return 0; }
int nvmlDeviceGetMemoryInfo(void *device, memory_t *m) {
  m->total = 17179869184ULL; m->free = 1073741824ULL * (number(device) + 1); m->used = m->total - m->free; return 0;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned int *count, process_t *found) {
  if (number(device) || *count < 2) return 3;
  found[0] = (process_t){4242, 3221225472ULL, 0xffffffffU, 0xffffffffU};
  found[1] = (process_t){4243, ~0ULL, 0xffffffffU, 0xffffffffU};
  *count = 2;
  return 0;
}
"""


def test_a_driver_in_c_is_understood(tmp_path: Path) -> None:
    """Its structures are laid out by a compiler, as NVML's are."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    (tmp_path / "nvml.c").write_text(FAKE_DRIVER)
    library = tmp_path / "libfake.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(tmp_path / "nvml.c")], check=True, timeout=60)
    assert nvidia(ctypes.CDLL(str(library))) == (
        Gpu("Fake 0", 16 << 30, 1 << 30, ((4242, 3 << 30),)),
        Gpu("Fake 1", 16 << 30, 2 << 30),
    )
