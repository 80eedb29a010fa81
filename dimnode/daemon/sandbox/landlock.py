"""Which files an agent may open: Landlock, in the kernel since 5.13. See landlock(7).

What is not allowed is refused; there are no exceptions within what is allowed. The rules hold for this thread and all that it starts,
for good, whoever they are. Metadata (stat) is not covered: an agent can learn that a file exists, not what is in it.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable

from dimnode.daemon.sandbox import linux

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
"""The same numbers on every machine."""
VERSION = 1
PATH_BENEATH = 1
WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5
MAKE_DIR, MAKE_REG, REFER, TRUNCATE, IOCTL_DEV = 1 << 7, 1 << 8, 1 << 13, 1 << 14, 1 << 15
READ = READ_FILE | READ_DIR
WRITE = READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | TRUNCATE
DEVICE = READ_FILE | WRITE_FILE | IOCTL_DEV
FOR_FILES = WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
"""Rights that make sense for what is not a folder."""
FIRST_RIGHTS = (1 << 13) - 1
NETWORK = 3
"""Binding and connecting TCP."""
SCOPES = 3
"""Abstract Unix sockets and signals, outside of the sandbox."""


def version() -> int:
    """Of the kernel's Landlock; 0: none. Changes nothing."""
    try:
        return linux.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), VERSION)
    except OSError:
        return 0


def handled(abi: int) -> tuple[int, int, int]:
    """Rights that a ruleset of this version takes away: files, network, scopes."""
    files = FIRST_RIGHTS
    for since, right in ((2, REFER), (3, TRUNCATE), (5, IOCTL_DEV)):
        files |= right if abi >= since else 0
    return files, NETWORK if abi >= 4 else 0, SCOPES if abi >= 6 else 0


def restrict(abi: int, *, read: Iterable[str], write: Iterable[str], devices: Iterable[str]) -> None:
    """``no_new_privileges`` comes before. Paths that are not there are left out. Raises `OSError`."""
    files, network, scopes = handled(abi)
    attributes = struct.pack("=QQQ", files, network, scopes)[: 24 if abi >= 6 else 16 if abi >= 4 else 8]
    ruleset = linux.syscall(CREATE_RULESET, ctypes.c_char_p(attributes), ctypes.c_size_t(len(attributes)), 0)
    try:
        for paths, rights in ((read, READ), (write, WRITE), (devices, DEVICE)):
            for path in paths:
                _allow(ruleset, path, rights & files)
        linux.syscall(RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= FOR_FILES
        rule = struct.pack("=Qi", rights, fd)
        linux.syscall(ADD_RULE, ruleset, PATH_BENEATH, ctypes.c_char_p(rule), 0)
    finally:
        os.close(fd)
