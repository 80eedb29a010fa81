"""macOS: the profile for ``sandbox-exec``, which starts an agent in Seatbelt. Written after Apple's profiles in
/System/Library/Sandbox/Profiles; not run here.

Seatbelt cannot be put on a running process by supported means, so agents are not forked on macOS but started under
``sandbox-exec``, and the profile is told on the command line.
"""

from __future__ import annotations

import os
from pathlib import Path

from dimnode.daemon.sandbox.policy import AgentPolicy

PROGRAM = Path("/usr/bin/sandbox-exec")
SYSTEM = ("/usr/lib", "/System", "/Library/Apple", "/private/var/db/dyld", "/private/var/db/timezone", "/private/etc/localtime")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random", "/dev/dtracehelper")
SERVICES = (
    "com.apple.system.logger",
    "com.apple.system.notification_center",
    "com.apple.CoreServices.coreservicesd",
    "com.apple.MTLCompilerService",
)
"""What Metal and Core ML look up."""


def available() -> bool:
    return PROGRAM.exists()


def profile(policy: AgentPolicy, interpreter: str) -> str:
    """The agent may execute its own interpreter, which starts it, and nothing else; processes cannot be forked."""
    # Seatbelt compares files as they are found at the end of links, and a virtual environment's interpreter is one
    program = tuple(dict.fromkeys((interpreter, os.path.realpath(interpreter))))
    environment = str(Path(interpreter).parent.parent / "pyvenv.cfg")
    lines = [
        "(version 1)",
        "(deny default)",
        "(allow sysctl-read)",
        "(allow process-info* (target self))",
        "(allow signal (target self))",
        "(allow file-read-metadata)",
        _rule("file-read*", "literal", ("/", *DEVICES, *program, environment)),
        _rule("file-read*", "subpath", (*SYSTEM, *policy.read, policy.scratch)),
        _rule("file-write-data", "literal", ("/dev/null",)),
        _rule("process-exec", "literal", program),
        "(allow mach-lookup " + " ".join(f"(global-name {_quoted(s)})" for s in SERVICES) + ")",
        '(allow iokit-open (iokit-registry-entry-class "AGXDeviceUserClient") (iokit-registry-entry-class "IOSurfaceRootUserClient"))',
        "(deny network*)",
        "(deny process-fork)",
    ]
    if policy.file_bytes:
        lines.append(_rule("file-write*", "subpath", (policy.scratch,)))
    return "\n".join(lines)


def command(policy: AgentPolicy, arguments: list[str]) -> list[str]:
    """``arguments`` under the sandbox."""
    return [str(PROGRAM), "-p", profile(policy, arguments[0]), *arguments]


def _rule(what: str, how: str, paths: tuple[str, ...]) -> str:
    return f"(allow {what} " + " ".join(f"({how} {_quoted(p)})" for p in paths if p) + ")"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
