"""Every limit of the events in one place. Times in seconds; ``events.*`` of the configuration has the meanings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EventSettings:
    channel: str = "test"
    """Part of the topics' names (`dimnode.domain.events.topic`)."""
    jobs: bool = True
    nodes: bool = True
    """Whether these are published; what others publish is heard in any case."""
    interval: float = 0.5
    batch: int = 100
    queue: int = 1000
    timeout: float = 5.0
    retry_first: float = 1.0
    retry_most: float = 60.0
    max_age: float = 120.0
    remember: int = 200
    looks: float = 0.1
    """Between two looks at what changed."""
    changed_jobs: int = 20_000
    """Jobs that wait to be looked at; more are passed over and counted."""
    told_jobs: int = 20_000
    """Jobs of which it is remembered what was told."""
    inbox: int = 256
    """Messages that wait to be taken in; the oldest is dropped."""
    watchers: int = 64
    """At once."""
    watcher_queue: int = 1000
    """Events that wait for a slow watcher; the oldest is dropped."""
