"""What can be set about a daemon, with defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from dimnode.daemon.batching import BatchSettings
from dimnode.daemon.sandbox.report import Mode

Device = Literal["auto", "cpu", "cuda", "tensorrt", "mps"]
GIB = 1 << 30
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """How agents are started and bounded."""

    max_agents: int = 8
    """Agents at once, idle ones included. An idle one makes room when another model needs it."""
    idle_seconds: float = 300.0
    """An agent that had nothing to do for so long is ended."""
    start_timeout: float = 60.0
    """Seconds for an agent that has its framework to load its model."""
    framework_timeout: float = 180.0
    """Seconds for a framework to be imported, and for an agent to be ready for its model."""
    threads: int = 1
    """Threads that one inference may use."""
    memory_base: int = 2 * GIB
    memory_per_model_byte: float = 4.0
    """An agent may hold ``memory_base`` + this many bytes per byte of its model (RLIMIT_DATA)."""
    file_bytes: int = 0
    """Largest file that an agent may write: none."""
    open_files: int = 256
    most_threads: int = 256
    """Threads of one agent's process."""
    cores: int = 0
    """Threads that all inferences together may use; 0: not bounded. One inference runs in any case."""
    device: Device = "auto"
    """Where models run whose framework has a choice. ``auto``: on a GPU that has room, else on the CPU; others: there or not at all."""
    sandbox: Mode = "best"
    """``require``: no agent works that is not confined in every respect; ``best``: as far as the system goes."""
    fork: bool = True
    """Agents are forked from a server that has their framework already (Linux only); else each starts anew."""
    per_model: int = 0
    """Agents that hold the same model, at the most; 0: as many as the cores allow with ``threads`` each."""
    share_from: int = 256 * 1024
    """Tensors of a call go through shared memory from so many bytes on; 0: never."""
    batch: BatchSettings = field(default_factory=BatchSettings)
    watch_interval: float = 0.25
    """Seconds between looks at the memory and threads of agents."""
    max_reply_bytes: int = 1 * GIB
    """Outputs of one inference, all together."""
    backoff_first: float = 0.1
    backoff_most: float = 5.0
    """Pause before a model's agent is started again after a crash; doubles with each."""
    max_crashes: int = 3
    """So many crashes in a row and the model is refused for a while."""
    hang_seconds: float = 120.0
    """A run that has given nothing after so long when its caller's time is over may count as a crash, see `model_health`."""
    refuse_seconds: float = 60.0
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    """Environment variables for agents besides the few they need."""


@dataclass(frozen=True, slots=True)
class PrewarmSettings:
    most: int = 0
    """Models kept warm ahead of need; 0: none."""
    interval: float = 5.0
    pinned: tuple[str, ...] = ()
    """Ids or CIDs."""
    half_life: float = 600.0
    """Seconds after which a use counts half."""
    frequent: float = 2.0
    """Uses, decayed, from which on a model is warmed."""


@dataclass(frozen=True, slots=True)
class DaemonSettings:
    slots: int = field(default_factory=lambda: max(1, os.cpu_count() or 1))
    """Tasks that run at once."""
    queue_capacity: int = 1000
    aging_seconds: float = 30.0
    """Waiting so long counts as much as one step of priority."""
    inline_bytes: int = 64 * 1024
    """Outputs of a task up to this size, together, travel inline; the others by CID."""
    default_timeout: float = 3600.0
    """Seconds for a task whose order has no timeout."""
    fetch_timeout: float = 30.0
    """Seconds without progress after which a fetch is given up."""
    max_input_bytes: int = 1 * GIB
    """One input tensor."""
    cache_bytes: int = 20 * GIB
    """Model files on disk; the least recently used go first."""
    model_bytes: int = 8 * GIB
    """Largest model that this node takes."""
    cabinet_cache_bytes: int = 256 * MIB
    """Cabinet content kept in memory."""
    min_free_memory: int = 256 * MIB
    """Below this no new work is taken."""
    min_free_disk: int = 256 * MIB
    min_free_gpu_memory: int = 256 * MIB
    """What agents leave free on each card."""
    resource_interval: float = 2.0
    """Seconds between looks at memory, processor and disk."""
    stop_grace: float = 3.0
    """Seconds that a stopping daemon takes to hand its tasks back."""
    remembered_tasks: int = 1024
    """Finished attempts that are answered again from memory."""
    kept_attempts: int = 512
    """Finished attempts that wait for somebody to take them; the oldest are dropped from this list, not from the journal."""
    write_retry: float = 2.0
    """Seconds until an attempt that could not be written down (the disk is full) is tried again."""
    tidy_delay: float = 1.0
    """Seconds until the marks of delivered attempts are cleared from the journal, those of that time together."""
    remembered_models: int = 1024
    """Manifests, and models listed as held."""
    prewarm: PrewarmSettings = field(default_factory=PrewarmSettings)
    agents: AgentSettings = field(default_factory=AgentSettings)
