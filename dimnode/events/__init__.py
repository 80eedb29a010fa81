"""Job and node events for listeners: hints on documented topics (docs/events.md), in the swarm and through Kubo's pubsub."""
