"""Every node's records of jobs: its own, and the copies that it keeps for others. Lives as long as the node does."""
