"""DIM, the Decentralized Inference Machine: AI jobs across machines that belong to different people."""

__version__ = "0.1.0"
PROTOCOL_VERSION = 1
"""Spoken in the hello of every connection; nodes of another version are refused explicitly."""
