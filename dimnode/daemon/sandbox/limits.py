"""Resource limits, for good: setrlimit(2)."""

from __future__ import annotations

import resource
import signal
import sys

from dimnode.daemon.sandbox.policy import AgentPolicy


def wanted(policy: AgentPolicy, *, own_user: bool) -> dict[int, int]:
    """``own_user``: processes are counted for this agent alone, not for everything that its user runs."""
    out = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: policy.file_bytes,
        resource.RLIMIT_NOFILE: policy.open_files,
        resource.RLIMIT_DATA: policy.memory,
    }
    if own_user:
        out[resource.RLIMIT_NPROC] = policy.processes
    if sys.platform == "linux":
        out[resource.RLIMIT_MSGQUEUE] = 0
    return out


def apply(limits: dict[int, int]) -> bool:
    """Whether all are in force, as low as wanted or lower."""
    # a write beyond the limit fails with an error instead of ending the process
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    done = True
    for which, amount in limits.items():
        _, hard = resource.getrlimit(which)
        least = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
        try:
            resource.setrlimit(which, (least, least))
        except (ValueError, OSError):
            done = False
    return done
