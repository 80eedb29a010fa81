"""Which graphics processors this machine has. Imports no framework. Blocks: call it in a thread.

NVIDIA: by NVML, the driver's own library, if it is installed. Apple: by ``system_profiler``. (Both written after the
makers' documentation; neither runs where this was written.)
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import subprocess
import sys
from dataclasses import dataclass

NVML = "libnvidia-ml.so.1"
SYSTEM_PROFILER = "/usr/sbin/system_profiler"


@dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    memory_total: int
    """Bytes; 0: unknown, or shared with the processor."""
    memory_free: int = 0
    processes: tuple[tuple[int, int], ...] = ()
    """(process id, bytes of this card), where the driver tells."""


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Process(ctypes.Structure):
    """nvmlProcessInfo_t of the calls that end in _v3."""

    _fields_ = (
        ("pid", ctypes.c_uint),
        ("memory", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


MOST_PROCESSES = 256
NOT_TOLD = (1 << 64) - 1


def look() -> tuple[Gpu, ...]:
    """None if there are none, or none that can be asked."""
    if sys.platform == "darwin":
        return apple(_profile())
    with contextlib.suppress(OSError, AttributeError):
        return nvidia(ctypes.CDLL(NVML))
    return ()


def nvidia(nvml: ctypes.CDLL) -> tuple[Gpu, ...]:
    """Raises `OSError` if the driver does not answer. See the NVML API reference, nvmlDeviceGetMemoryInfo."""
    _ok(nvml.nvmlInit_v2())
    try:
        count = ctypes.c_uint()
        _ok(nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)))
        return tuple(_nvidia_device(nvml, i) for i in range(count.value))
    finally:
        nvml.nvmlShutdown()


def _nvidia_device(nvml: ctypes.CDLL, index: int) -> Gpu:
    device, name, memory = ctypes.c_void_p(), ctypes.create_string_buffer(96), _Memory()
    _ok(nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(device)))
    _ok(nvml.nvmlDeviceGetName(device, name, ctypes.c_uint(len(name))))
    _ok(nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)))
    return Gpu(name.value.decode(errors="replace"), memory.total, memory.free, _processes(nvml, device))


def _processes(nvml: ctypes.CDLL, device: ctypes.c_void_p) -> tuple[tuple[int, int], ...]:
    """None from drivers that do not tell, or have more of them than anybody reads."""
    found, count = (_Process * MOST_PROCESSES)(), ctypes.c_uint(MOST_PROCESSES)
    with contextlib.suppress(AttributeError, OSError):
        _ok(nvml.nvmlDeviceGetComputeRunningProcesses_v3(device, ctypes.byref(count), found))
        return tuple((p.pid, p.memory) for p in found[: count.value] if p.memory != NOT_TOLD)
    return ()


def _ok(code: int) -> None:
    if code:
        raise OSError(f"NVML answers {code}")


def _profile() -> str:
    try:
        done = subprocess.run([SYSTEM_PROFILER, "-json", "SPDisplaysDataType"], capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return "{}"
    return done.stdout


def apple(profile: str) -> tuple[Gpu, ...]:
    """From the profiler's JSON; what has no model name is left out."""
    try:
        items = json.loads(profile).get("SPDisplaysDataType", [])
    except (ValueError, AttributeError):
        return ()
    names = [str(i.get("sppci_model", "")) for i in items if isinstance(i, dict)]
    return tuple(Gpu(name, 0) for name in names if name)
