"""Every limit of the swarm's DHT in one place. Times are seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DhtSettings:
    timeout: float = 10.0
    """For one question to the swarm: finding holders, announcing content, reading or writing a name."""
    answer_timeout: float = 3.0
    """For one step with one peer, dialling included: a peer that hangs must not use up the whole time."""
    refresh: float = 600.0
    """Between two looks for members that the routing table does not have."""
    providers: int = 8
    """Holders of one content that are looked for."""
    at_once: int = 4
    """Questions under way; more wait, within their time."""
    lacking: float = 10.0
    """After a search that found nothing, the same is not looked for again for so long."""
    lacking_most: int = 1024

    most_providers: int = 8_192
    """Announcements of others that are kept. When it is full, whoever has most there loses its oldest."""
    provider_lifetime: float = 86_400.0
    """An announcement that is not repeated for so long is forgotten."""
    most_records: int = 512
    """Records of names that are kept for others, as above."""
    record_lifetime: float = 86_400.0
    most_addresses: int = 1_024
    """Members whose addresses were learnt from answers."""
    addresses_each: int = 8

    streams_at_once: int = 4
    """Of one peer that are served."""
    streams_rate: float = 20.0
    """Streams of one peer per second; more are reset."""
    streams_burst: float = 200.0
    serve_timeout: float = 10.0
    """Longest life of a stream that is served."""
    announcements_rate: float = 10.0
    """Announcements of one peer that are taken per second."""
