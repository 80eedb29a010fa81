"""What one agent may use, as its node's admission has computed it. Agents hold to it as far as their frameworks can; the node watches."""

from __future__ import annotations

from collections.abc import MutableMapping

import msgspec


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    threads: int
    """For one inference."""
    memory: int
    """Bytes of RAM; more and it is ended."""
    device: str = "cpu"
    """As `loaders.api.About.device` has it."""
    gpu: int | None = None
    """The only NVIDIA card that it may use, by its number in NVML; None: not one of them."""
    gpu_memory: int = 0
    """Bytes of that card for its tensors; 0: no bound."""


def show_card(grant: Grant, environment: MutableMapping[str, str]) -> None:
    """Lets CUDA see the granted card only, or none if the device is the CPU. To be called before CUDA starts. (See the CUDA programming guide,
    "Environment Variables"; by bus is the order that NVML numbers cards in.)"""
    if grant.gpu is not None:
        environment["CUDA_DEVICE_ORDER"], environment["CUDA_VISIBLE_DEVICES"] = "PCI_BUS_ID", str(grant.gpu)
    elif grant.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
