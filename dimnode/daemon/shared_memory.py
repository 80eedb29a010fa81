"""Memory that a node and one agent share for large tensors: a memfd, which has no name and is gone with the last process that
holds it, whatever ends them. Its size is sealed, so that neither side can pull it away under the other.

Where the system has no memfd (macOS), tensors travel in frames.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import sys

LEAST = 1 << 20
AVAILABLE = sys.platform == "linux"


def size_for(nbytes: int) -> int:
    """Grown in powers of two, so that it settles soon."""
    return max(LEAST, 1 << (nbytes - 1).bit_length())


def create(size: int) -> tuple[int, mmap.mmap]:
    """A descriptor to give away (the caller closes it) and the memory. Raises `OSError`."""
    fd = os.memfd_create("dim-tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        return fd, mmap.mmap(fd, size)
    except BaseException:
        os.close(fd)
        raise


def attach(fd: int, size: int) -> mmap.mmap:
    """Takes the descriptor. Raises `OSError`, `ValueError`."""
    try:
        return mmap.mmap(fd, size)
    finally:
        os.close(fd)
