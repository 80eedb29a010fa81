"""What an agent is started with: its grant, and a sandbox that shows it one model."""

from __future__ import annotations

import sys

from dimnode.daemon.agent_main import AgentOptions
from dimnode.daemon.grant import Grant
from dimnode.daemon.model_file import ModelFile
from dimnode.daemon.sandbox.policy import AgentPolicy, devices
from dimnode.daemon.settings import AgentSettings

WRITABLE = {"darwin": 256 << 20}
"""Core ML compiles models into a temporary folder."""


def options_for(settings: AgentSettings, model: ModelFile, grant: Grant, *, libraries: tuple[str, ...], scratch: str) -> AgentOptions:
    """``libraries``: folders that every agent reads; ``scratch``: its own, which does not exist yet."""
    policy = AgentPolicy(
        mode=settings.sandbox,
        read=(*libraries, str(model.path)),
        scratch=scratch,
        devices=devices((model.format,)) if grant.device != "cpu" else (),
        memory=grant.memory,
        file_bytes=settings.file_bytes or WRITABLE.get(sys.platform, 0),
        open_files=settings.open_files,
        processes=settings.most_threads,
    )
    return AgentOptions(policy=policy, grant=grant, format=model.format)
