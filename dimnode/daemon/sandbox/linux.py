"""The little of libc that the sandbox needs and Python 3.11 lacks. Import it before forking."""

from __future__ import annotations

import contextlib
import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)

PR_SET_PDEATHSIG = 1
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
CAPABILITY_VERSION_3 = 0x20080522
LAST_CAPABILITY = 63


def check(result: int) -> int:
    """Raises `OSError` with errno if a call failed."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def syscall(number: int, *args: object) -> int:
    """Raises `OSError`."""
    return check(_libc.syscall(ctypes.c_long(number), *args))


def prctl(option: int, *args: int) -> int:
    """Raises `OSError`."""
    padded = [*args, *[0] * (4 - len(args))]
    return check(_libc.prctl(option, *(ctypes.c_ulong(a) for a in padded)))


def unshare(flags: int) -> None:
    """Raises `OSError`."""
    check(_libc.unshare(flags))


def no_new_privileges() -> None:
    """Programs with special rights give none from now on; also what Landlock and seccomp ask for. Raises `OSError`."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities() -> None:
    """All, for good. Raises `OSError`."""
    for capability in range(LAST_CAPABILITY + 1):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:  # unknown to this kernel, or the process is not privileged enough to have any
            break
    with contextlib.suppress(OSError):
        prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    check(_libc.capset(ctypes.byref(header), ctypes.byref(nothing)))
