"""Named sets of defaults: ``--profile dev`` and ``--profile prod``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PROFILES: Mapping[str, Mapping[str, Any]] = {
    "dev": {
        "node.drain": 2.0,
        "swarm.mdns": False,
        "p2p.listen": ("/ip4/127.0.0.1/tcp/4101",),
        "daemon.listen": "127.0.0.1:50052",
        "logging.level": "debug",
        "logging.format": "console",
    },
    "prod": {
        "node.drain": 30.0,
        "swarm.mdns": False,
        "logging.level": "info",
        "logging.format": "json",
    },
}
"""A profile is as weak as a default: file, environment and flags all win over it."""
