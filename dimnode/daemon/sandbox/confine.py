"""Puts this process into its sandbox, for good, as far as the system goes; says what is in force.

Called by an agent before it touches a model, while it has one thread. The order matters: namespaces first, since the
later steps forbid them; the filter of system calls last, since it forbids the steps before.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable

from dimnode.daemon.sandbox import landlock, limits, linux, namespaces, seccomp
from dimnode.daemon.sandbox.policy import SYSTEM_FILES, AgentPolicy
from dimnode.daemon.sandbox.report import CannotConfine, Confinement


def confine(policy: AgentPolicy, *, last: Callable[[], None] = lambda: None, seatbelt: bool = False) -> Confinement:
    """Raises `CannotConfine` if the policy requires more than this system has. ``last`` is called when rights have been
    dropped (which resets the parent-death signal) and everything else is still possible. ``seatbelt``: the process was started
    under macOS's sandbox-exec."""
    if sys.platform == "linux" and policy.mode != "off":
        report = _confine_linux(policy, last)
    else:
        last()
        done = limits.apply(limits.wanted(policy, own_user=False))
        means = ("seatbelt",) if seatbelt else ()
        # RLIMIT_DATA bounds nothing on macOS; the node watches there
        report = Confinement(files=means, network=means, processes=means, privileges=means, limits=("rlimits",) if done else ())
    if policy.mode == "require" and not report.complete:
        raise CannotConfine("this system cannot confine agents as required; missing: " + ", ".join(report.missing()))
    return report


def expected() -> Confinement:
    """What `confine` would probably reach on this machine; changes nothing and starts nothing."""
    if sys.platform == "linux":
        return _report(namespaces.likely(), landlock.version(), seccomp.available(), limited=True, privileges=True)
    from dimnode.daemon.sandbox import macos

    means = ("seatbelt",) if sys.platform == "darwin" and macos.available() else ()
    return Confinement(files=means, network=means, processes=means, privileges=means, limits=("rlimits",))


def _confine_linux(policy: AgentPolicy, last: Callable[[], None]) -> Confinement:
    separate = _tried(namespaces.enter)
    limited = limits.apply(limits.wanted(policy, own_user=separate))
    bare = _tried(linux.no_new_privileges) and _tried(linux.drop_capabilities)
    last()
    abi = landlock.version()
    if abi and not _tried(lambda: _landlock(policy, abi)):
        abi = 0
    filtered = seccomp.available() and _tried(lambda: _filter(policy))
    return _report(separate, abi, filtered, limited, bare)


def _landlock(policy: AgentPolicy, abi: int) -> None:
    write = (policy.scratch,) if policy.file_bytes and policy.scratch else ()
    read = (*policy.read, *SYSTEM_FILES, *((policy.scratch,) if policy.scratch else ()))
    landlock.restrict(abi, read=read, write=write, devices=(*policy.devices, "/dev/null"))


def _filter(policy: AgentPolicy) -> None:
    program = seccomp.build(platform.machine(), os.getpid(), writing=policy.file_bytes > 0, devices=bool(policy.devices))
    seccomp.install(program)


def _report(separate: bool, abi: int, filtered: bool, limited: bool, privileges: bool) -> Confinement:
    def means(*pairs: tuple[str, bool]) -> tuple[str, ...]:
        return tuple(name for name, there in pairs if there)

    own = ("seccomp", filtered)
    return Confinement(
        files=means((f"landlock {abi}", abi > 0)),
        network=means(own, ("namespace", separate), ("landlock", abi >= 4)),
        processes=means(own),
        privileges=means(("no_new_privs", privileges), ("namespace", privileges and separate), ("seccomp", privileges and filtered)),
        limits=means(("rlimits", limited)),
    )


def _tried(step: Callable[[], None]) -> bool:
    try:
        step()
    except OSError:
        return False
    return True
