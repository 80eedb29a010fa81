"""What an agent gets before it starts, or why it gets nothing now. Pure: looks and settings come in, grants go out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from dimnode.core.needs import GPU_CONTEXT, gpu_memory_needed, memory_needed
from dimnode.daemon.gpus import Gpu
from dimnode.daemon.grant import Grant
from dimnode.daemon.model_file import ModelFile
from dimnode.daemon.resources import NoRoom, Reservations, Snapshot, refusal
from dimnode.daemon.settings import AgentSettings, DaemonSettings
from dimnode.domain.model import Needs
from dimnode.errors import FailedPrecondition


class NoGpuRoom(NoRoom):
    """It is a card that is full."""


@dataclass(slots=True)
class Freed:
    """What agents that were ended just now, or could be, give back."""

    memory: int = 0
    gpus: Counter[int] = field(default_factory=Counter[int])
    """Bytes by card."""
    held: Counter[int] = field(default_factory=Counter[int])
    """Bytes by card that are granted to agents that live or start, these included: what one does not use yet is not another's."""

    def add(self, memory: int, grant: Grant) -> None:
        self.memory += memory
        if grant.gpu is not None:
            self.gpus[grant.gpu] += grant.gpu_memory + GPU_CONTEXT

    def hold(self, grant: Grant) -> None:
        if grant.gpu is not None:
            self.held[grant.gpu] += grant.gpu_memory + GPU_CONTEXT


NOTHING_FREED = Freed()
Admit = Callable[[str, int, Needs, Freed], Grant]
"""Format, size and needs of a model. Raises `NoRoom`, and `FailedPrecondition` for what this node can never do."""


def memory_bound(settings: AgentSettings, size: int, needs: Needs) -> int:
    return max(needs.memory, settings.memory_base + int(settings.memory_per_model_byte * size))


def unbounded(settings: AgentSettings) -> Admit:
    """For a pool without a node around it: whatever is asked for."""
    return lambda format, size, needs, freed: Grant(threads=settings.threads, memory=memory_bound(settings, size, needs))


class Idle(Protocol):
    """An idle agent, as far as what it gives back goes."""

    grant: Grant
    used: int
    """Bytes of memory."""


A = TypeVar("A", bound=Idle)


def granted_with(admit: Admit, model: ModelFile, may_go: Sequence[A], chosen: list[A], freed: Freed) -> Grant:
    """Adds to ``chosen``, the idle agents that end in any case, as many of ``may_go`` as must end for a grant, the first ones first: for a
    card only those that hold a part of one. ``freed``: nothing as yet. Raises as ``admit``."""
    left = list(may_go)
    for agent in chosen:
        freed.add(agent.used, agent.grant)
    while True:
        try:
            return admit(model.format, model.size, model.needs, freed)
        except NoRoom as e:
            agent = next((a for a in left if a.grant.gpu is not None or not isinstance(e, NoGpuRoom)), None)
            if agent is None:
                raise
            left.remove(agent)
            chosen.append(agent)
            freed.add(agent.used, agent.grant)


class Admission:
    def __init__(self, settings: DaemonSettings, *, latest: Callable[[], Snapshot], built_for: Callable[[str], tuple[str, ...]]) -> None:
        """``latest``: the last look at the machine; ``built_for``: see `loaders.devices`."""
        self._settings, self._latest, self._built_for = settings, latest, built_for
        self._promised = Reservations()

    def looked(self) -> None:
        """There is a new look."""
        self._promised.looked()

    def loaded(self, grant: Grant) -> None:
        """Whoever got this grant has loaded its model, or will not."""
        self._promised.loaded(grant)

    def grant(self, format: str, size: int, needs: Needs, freed: Freed) -> Grant:
        """`Admit`. What is granted is promised: it counts until the look after `loaded`."""
        memory = memory_needed(format, size, needs)
        granted = self._granted(format, size, needs, freed, memory)
        self._promised.add(granted, memory)
        return granted

    def shortage(self, format: str, size: int, needs: Needs, freed: Freed) -> str | None:
        """Why no agent could be started now; None if it could, or if something else than room is amiss, which is said when it is tried."""
        try:
            self._granted(format, size, needs, freed, memory_needed(format, size, needs))
        except NoRoom as e:
            return e.message
        except FailedPrecondition:
            pass
        return None

    def _granted(self, format: str, size: int, needs: Needs, freed: Freed, memory: int) -> Grant:
        s = self._settings
        needed = memory + self._promised.memory - freed.memory
        reason = refusal(self._latest(), memory=needed, disk=0, min_memory=s.min_free_memory, min_disk=0)
        if reason is not None:
            raise NoRoom(reason, hint="Try another node, or later.", retry_after=s.resource_interval)
        device, card, gpu_memory = self._device(format, size, needs, freed)
        bound = memory_bound(s.agents, size, needs)
        return Grant(threads=s.agents.threads, memory=bound, device=device, gpu=card, gpu_memory=gpu_memory)

    # --- cards -----------------------------------------------------------------------------------

    def _device(self, format: str, size: int, needs: Needs, freed: Freed) -> tuple[str, int | None, int]:
        """(device, card, bytes of it). ``auto`` goes to the CPU if the cards are full, unless the model is of no use there."""
        wanted, built = self._settings.agents.device, self._built_for(format)
        cards = self._latest().gpus
        usable = bool(self.gpu_formats((format,), cards))
        if needs.any_gpu and not usable:
            raise FailedPrecondition("the model needs a GPU that this node does not have, or cannot use", hint="Use another node.")
        if wanted == "cpu" or (wanted == "auto" and not usable):
            return "cpu", None, 0
        if wanted == "mps" or "cuda" not in built or not cards:
            return wanted, None, 0
        nbytes = gpu_memory_needed(size, needs)
        free = [self._gpu_free(i, freed) for i in range(len(cards))]
        best = max(range(len(cards)), key=lambda i: free[i])
        if free[best] >= nbytes + GPU_CONTEXT:
            return ("cuda" if wanted == "auto" else wanted), best, nbytes
        if wanted == "auto" and not needs.any_gpu:
            return "cpu", None, 0
        raise NoGpuRoom(
            f"not enough free GPU memory: {(nbytes + GPU_CONTEXT) >> 20} MiB needed beside the reserve, {max(0, free[best]) >> 20} free",
            hint="Try another node, or later.", retry_after=self._settings.resource_interval,
        )  # fmt: skip

    def _gpu_free(self, index: int, freed: Freed = NOTHING_FREED) -> int:
        card = self._latest().gpus[index]
        free = card.memory_free - self._promised.on_card(index) + freed.gpus[index]
        if card.memory_total:
            free = min(free, card.memory_total - max(0, freed.held[index] - freed.gpus[index]))
        return free - self._settings.min_free_gpu_memory

    # --- what others may know --------------------------------------------------------------------

    def gpu_formats(self, formats: tuple[str, ...], cards: tuple[Gpu, ...]) -> tuple[str, ...]:
        """Those of which a model can use such cards here."""
        wanted = self._settings.agents.device
        if wanted == "cpu" or not cards:
            return ()
        device = "cuda" if wanted == "tensorrt" else wanted
        return tuple(f for f in formats if (built := self._built_for(f)) and (wanted == "auto" or device in built))

    def memory_free(self, freed: Freed) -> int:
        """Bytes that one more agent could have."""
        return max(0, self._latest().memory_free - self._settings.min_free_memory - self._promised.memory + freed.memory)

    def gpu_free(self, freed: Freed) -> tuple[int, ...]:
        return tuple(max(0, self._gpu_free(i, freed)) for i in range(len(self._latest().gpus)))
