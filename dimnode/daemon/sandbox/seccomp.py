"""Which system calls an agent may make: a classic BPF program for the kernel's seccomp.

The program is a list of instructions ``(code, jump if true, jump if false, constant)``; building it is pure. Everything
that is not named is refused. See seccomp(2), and Documentation/userspace-api/seccomp_filter.rst of the kernel.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct

from dimnode.daemon.sandbox import linux
from dimnode.daemon.sandbox.syscalls import ALLOWED, CHECKED, REFUSED, Numbers

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
NUMBER, ARCH, ARGS = 0, 4, 16
"""Offsets in ``struct seccomp_data``."""
ARCHES = {"x86_64": (0, 0xC000003E, 317), "aarch64": (1, 0xC00000B7, 277)}
"""Machine: column of the tables, AUDIT_ARCH, number of seccomp(2)."""
X32 = 0x40000000
CLONE_THREAD = 0x00010000
PRCTL_HARMLESS = (3, 15, 16, 23, 27, 39, 41, 42, 0x53564D41)
"""GET_DUMPABLE, SET/GET_NAME, CAPBSET_READ, GET_SECUREBITS, GET_NO_NEW_PRIVS, SET/GET_THP_DISABLE, SET_VMA"""
IOCTL_HARMLESS = (0x5401, 0x541B, 0x5450, 0x5451, 0x5421)
"""TCGETS, FIONREAD, FIONCLEX, FIOCLEX, FIONBIO"""
WRITING = (
    "creat", "mkdir", "mkdirat", "unlink", "unlinkat", "rmdir", "rename", "renameat", "renameat2", "ftruncate", "truncate", "fallocate",
)  # fmt: skip
"""Allowed too if the agent has a folder to write in; Landlock says where."""
SET_MODE_FILTER = 1
Instruction = tuple[int, int, int, int]
_TABLES: Numbers = {**ALLOWED, **CHECKED, **REFUSED}
_REFUSE: Instruction = (RETURN, 0, 0, ERRNO | errno.EPERM)
_PASS: Instruction = (RETURN, 0, 0, ALLOW)


def build(machine: str, pid: int, *, writing: bool = False, devices: bool = False) -> list[Instruction]:
    """The program for the process ``pid``, which may send signals to itself only. Raises `KeyError` for other machines."""
    column, arch, _ = ARCHES[machine]
    out: list[Instruction] = [(LOAD, 0, 0, ARCH), (EQUAL, 1, 0, arch), (RETURN, 0, 0, KILL), (LOAD, 0, 0, NUMBER)]
    if machine == "x86_64":
        out += [(AT_LEAST, 0, 1, X32), _REFUSE]
    extra = WRITING if writing else ()
    for name in (*ALLOWED, *extra, *(("ioctl",) if devices else ())):
        out += _when(_number(name, column), [_PASS])
    for name, body in _checked(pid, devices).items():
        out += _when(_number(name, column), body)
    for name in REFUSED:
        if name not in extra:
            out += _when(_number(name, column), [_REFUSE])
    return [*out, (RETURN, 0, 0, ERRNO | errno.ENOSYS)]


def _number(name: str, column: int) -> int | None:
    return _TABLES[name][column]


def _when(number: int | None, body: list[Instruction]) -> list[Instruction]:
    return [] if number is None else [(EQUAL, 0, len(body), number), *body]


def _checked(pid: int, devices: bool) -> dict[str, list[Instruction]]:
    """Calls that depend on an argument; each body ends with a return."""
    own = _one_of(0, (pid,))
    checks: dict[str, list[Instruction]] = {
        "clone": [(LOAD, 0, 0, ARGS), (ANY_BIT, 0, 1, CLONE_THREAD), _PASS, _REFUSE],
        "kill": own,
        "tgkill": own,
        "rt_sigqueueinfo": own,
        "rt_tgsigqueueinfo": own,
        "prctl": _one_of(0, PRCTL_HARMLESS),
        # looking at limits is fine, a new one is a pointer in the third argument
        "prlimit64": [(LOAD, 0, 0, ARGS + 16), (EQUAL, 0, 3, 0), (LOAD, 0, 0, ARGS + 20), (EQUAL, 0, 1, 0), _PASS, _REFUSE],
        "tkill": [_REFUSE],
    }
    return checks if devices else {**checks, "ioctl": _one_of(1, IOCTL_HARMLESS)}


def _one_of(argument: int, values: tuple[int, ...]) -> list[Instruction]:
    """By the lower half of the argument, which is all that the kernel looks at for these calls."""
    out: list[Instruction] = [(LOAD, 0, 0, ARGS + 8 * argument)]
    for value in values:
        out += [(EQUAL, 0, 1, value), _PASS]
    return [*out, _REFUSE]


def encode(program: list[Instruction]) -> bytes:
    """``struct sock_filter[]``."""
    return b"".join(struct.pack("=HBBI", *i) for i in program)


def available() -> bool:
    """Whether this kernel would take the program; changes nothing."""
    machine = platform.machine()
    if machine not in ARCHES:
        return False
    action = ctypes.c_uint32(ERRNO)
    try:
        linux.syscall(ARCHES[machine][2], 2, 0, ctypes.byref(action))
    except OSError:
        return False
    return True


def install(program: list[Instruction]) -> None:
    """For this thread and all that it starts, for good; ``no_new_privileges`` comes before. Raises `OSError`."""
    code = ctypes.create_string_buffer(encode(program))
    head = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
    linux.syscall(ARCHES[platform.machine()][2], SET_MODE_FILTER, 0, ctypes.byref(head))
