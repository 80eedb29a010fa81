"""Every limit of the Kubo backend in one place. Times in seconds."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RpcSettings:
    """The calls themselves."""

    connect_timeout: float = 2.0
    timeout: float = 10.0
    """For an answer to begin, and between two parts of it."""
    connections: int = 16
    """Kept open at once; calls beyond them wait as long as it takes."""


@dataclass(frozen=True, slots=True)
class KuboSettings:
    api: str = "/ip4/127.0.0.1/tcp/5001"
    """See `p2p.ipfs.kubo.address.endpoint`."""
    credentials: str = ""
    """See `p2p.ipfs.kubo.address.authorization`."""
    rpc: RpcSettings = field(default_factory=RpcSettings)
    retry_first: float = 0.5
    """Until a daemon that did not answer is asked again; twice as long after each further failure."""
    retry_most: float = 30.0
    ping: float = 5.0
    """A daemon from which nothing is wanted is asked so often whether it is there."""
    settle: float = 60.0
    """A block that was handed to Kubo is kept here so much longer: its pin may be on its way there."""
    parallel: int = 8
    """Blocks handed over at once."""
    gc_timeout: float = 600.0
    """For Kubo's garbage collection."""
    publish_timeout: float = 120.0
    """For a name to be published: Kubo first tells its network."""
