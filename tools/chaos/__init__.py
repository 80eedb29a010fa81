"""A real swarm under fire: node processes in network namespaces, faults, load, and an account of every job."""
