"""What an agent is granted, with made-up machines and cards."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from dimnode.core.needs import GPU_CONTEXT, gpu_memory_needed, memory_needed
from dimnode.daemon.admission import Admission, Freed, NoGpuRoom
from dimnode.daemon.agent_watch import too_much_of_a_card
from dimnode.daemon.gpus import Gpu
from dimnode.daemon.grant import Grant, show_card
from dimnode.daemon.resources import NoRoom, ResourceMonitor, Snapshot
from dimnode.daemon.settings import AgentSettings, DaemonSettings
from dimnode.domain.model import Needs
from dimnode.errors import FailedPrecondition
from loaders import devices

GIB = 1 << 30
MIB = 1 << 20
NEEDY = Needs(gpu_memory=2 * GIB)
SETTINGS = DaemonSettings(slots=1, min_free_memory=GIB, min_free_gpu_memory=GIB, agents=AgentSettings(threads=3))


class Machine:
    """Its latest look can be changed."""

    def __init__(self, *free: int, memory: int = 64 * GIB, device: Any = "auto", built: tuple[str, ...] = ("cuda",)) -> None:
        """``free``: bytes on each of its cards, of 16 GiB."""
        self.latest = Snapshot(64 * GIB, memory, 0.0, GIB, tuple(Gpu(f"card {i}", 16 * GIB, f) for i, f in enumerate(free)))
        settings = replace(SETTINGS, agents=replace(SETTINGS.agents, device=device))
        built_for = {"onnx": built, "pt2": built, "mlx": (), "builtin": ()}
        self.granted: list[Grant] = []
        self.admission = Admission(settings, latest=lambda: self.latest, built_for=lambda format: built_for[format])

    def grant(self, needs: Needs = Needs(), *, format: str = "onnx", size: int = MIB, freed: Freed | None = None) -> Grant:  # noqa: B008 - frozen
        granted = self.admission.grant(format, size, needs, freed or Freed())
        self.granted.append(granted)
        return granted

    def all_loaded(self) -> None:
        for grant in self.granted:
            self.admission.loaded(grant)
        self.admission.looked()


def test_what_a_model_needs_is_what_its_manifest_says_or_a_guess() -> None:
    assert memory_needed("onnx", 100, Needs(memory=5000)) == 5000
    assert memory_needed("onnx", 9000, Needs(memory=5000)) == 9000, "a model is in memory, whatever somebody claims"
    assert memory_needed("pt2", 100, Needs()) > memory_needed("onnx", 100, Needs()) > 300
    assert gpu_memory_needed(100, Needs(gpu_memory=7)) == 7
    assert gpu_memory_needed(100, Needs(gpu=True)) > 100
    assert [n.any_gpu for n in (Needs(), Needs(gpu=True), Needs(gpu_memory=1))] == [False, True, True]


def test_memory_is_granted_beside_the_reserve_and_what_is_promised() -> None:
    machine = Machine(memory=6 * GIB)
    needs = Needs(memory=2 * GIB)
    assert machine.grant(needs) == Grant(threads=3, memory=machine.admission._settings.agents.memory_base + 4 * MIB, device="cpu")
    machine.grant(needs)
    assert machine.admission.memory_free(Freed()) == GIB
    with pytest.raises(NoRoom, match="not enough free memory"):
        machine.grant(needs)
    assert machine.admission.shortage("onnx", MIB, needs, Freed()) is not None
    assert machine.admission.shortage("onnx", MIB, needs, Freed(memory=GIB)) is None, "idle agents make room"
    machine.grant(needs, freed=Freed(memory=GIB))
    machine.all_loaded()
    assert machine.admission.memory_free(Freed()) == 5 * GIB, "by now it shows in what is free"


def test_a_model_that_says_it_takes_more_may_use_more() -> None:
    assert Machine().grant(Needs(memory=30 * GIB)).memory == 30 * GIB


def test_the_card_with_most_room_is_granted_and_what_is_promised_counts() -> None:
    machine = Machine(4 * GIB, 7 * GIB)
    assert machine.admission.gpu_free(Freed()) == (3 * GIB, 6 * GIB)
    first, second, third = machine.grant(NEEDY), machine.grant(NEEDY), machine.grant(NEEDY)
    assert (first.device, first.gpu, first.gpu_memory) == ("cuda", 1, 2 * GIB)
    assert (second.gpu, third.gpu) == (1, 0)
    with pytest.raises(NoGpuRoom, match="not enough free GPU memory: 2560 MiB needed"):
        machine.grant(NEEDY)
    assert machine.grant(NEEDY, freed=_freed(first)).gpu == 1
    machine.all_loaded()
    assert machine.admission.gpu_free(Freed()) == (3 * GIB, 6 * GIB)


def _freed(*grants: Grant) -> Freed:
    freed = Freed()
    for grant in grants:
        freed.add(0, grant)
    return freed


def test_no_room_is_granted_twice_however_long_a_model_loads() -> None:
    machine = Machine(24 * GIB, memory=21 * GIB)
    machine.latest = replace(machine.latest, gpus=(Gpu("card", 24 * GIB, 24 * GIB),))
    first = machine.grant(Needs(memory=16 * GIB, gpu_memory=16 * GIB))
    for _ in range(5):
        machine.admission.looked()
    with pytest.raises(NoRoom, match="not enough free memory"):
        machine.grant(Needs(memory=16 * GIB))
    with pytest.raises(NoGpuRoom):
        machine.grant(Needs(memory=GIB, gpu_memory=16 * GIB))
    machine.admission.loaded(first)
    machine.admission.looked()
    assert machine.grant(Needs(memory=16 * GIB)).memory == 16 * GIB, "the look has it by now"


def test_what_an_agent_was_granted_of_a_card_is_no_other_agents_though_it_does_not_use_it_yet() -> None:
    machine = Machine()
    machine.latest = replace(machine.latest, gpus=(Gpu("card", 24 * GIB, 22 * GIB),))  # one agent holds 2 GiB of it, and may take 16
    theirs, mine = Grant(threads=1, memory=1, device="cuda", gpu=0, gpu_memory=16 * GIB), Needs(gpu_memory=16 * GIB)
    freed = Freed()
    freed.hold(theirs)
    assert machine.admission.gpu_free(freed) == (24 * GIB - 16 * GIB - GPU_CONTEXT - GIB,)
    with pytest.raises(NoGpuRoom):
        machine.grant(mine, freed=freed)
    freed.add(0, theirs)
    assert machine.admission.gpu_free(freed) == (23 * GIB,), "no more comes back than the card has"
    assert machine.grant(mine, freed=freed).gpu == 0


def test_a_model_that_can_do_without_goes_to_the_cpu_if_the_cards_are_full() -> None:
    machine = Machine(GIB)
    assert machine.grant().device == "cpu"
    with pytest.raises(NoGpuRoom):
        Machine(GIB, device="cuda").grant()
    assert Machine(8 * GIB).grant().gpu_memory == gpu_memory_needed(MIB, Needs())


@pytest.mark.parametrize(
    ("machine", "format"),
    [
        (Machine(), "onnx"),
        (Machine(8 * GIB, built=()), "onnx"),
        (Machine(8 * GIB, device="cpu"), "onnx"),
        (Machine(8 * GIB, device="mps"), "onnx"),
        (Machine(8 * GIB), "builtin"),
    ],
)
def test_what_cannot_use_a_card_here_says_so_and_is_not_advertised(machine: Machine, format: str) -> None:
    with pytest.raises(FailedPrecondition, match="needs a GPU that this node does not have, or cannot use"):
        machine.grant(NEEDY, format=format)
    assert machine.admission.shortage(format, MIB, NEEDY, Freed()) is None, "room is not what is missing"
    assert machine.admission.gpu_formats((format,), machine.latest.gpus) == ()


def test_what_can_use_a_card_is_advertised() -> None:
    formats = ("onnx", "pt2", "mlx", "builtin")
    machine = Machine(8 * GIB)
    assert machine.admission.gpu_formats(formats, machine.latest.gpus) == ("onnx", "pt2")
    assert machine.admission.gpu_formats(formats, ()) == ()
    both = Machine(8 * GIB, device="tensorrt", built=("tensorrt", "cuda"))
    assert both.admission.gpu_formats(formats, both.latest.gpus) == ("onnx", "pt2")


@pytest.mark.parametrize(("device", "cards", "built"), [("cuda", (), ("cuda",)), ("tensorrt", (8 * GIB,), ()), ("mps", (), ())])
def test_a_device_that_is_demanded_goes_to_the_loader_which_knows_best(device: str, cards: tuple[int, ...], built: tuple[str, ...]) -> None:
    grant = Machine(*cards, device=device, built=built).grant()
    assert (grant.device, grant.gpu) == (device, None)


def test_apples_cards_share_the_machines_memory() -> None:
    machine = Machine(0, built=("mps",))
    machine.latest = replace(machine.latest, gpus=(Gpu("Apple M3", 0),))
    assert machine.grant(NEEDY) == Grant(threads=3, memory=machine.grant().memory, device="auto")
    assert machine.admission.gpu_formats(("onnx",), machine.latest.gpus) == ("onnx",)


def test_an_agent_sees_its_card_only() -> None:
    seen: dict[str, str] = {}
    show_card(Grant(threads=1, memory=1, device="cuda", gpu=2), seen)
    assert seen == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "2"}
    show_card(Grant(threads=1, memory=1), seen)
    assert seen["CUDA_VISIBLE_DEVICES"] == ""
    untouched: dict[str, str] = {}
    show_card(Grant(threads=1, memory=1, device="cuda"), untouched)
    assert untouched == {}


def test_who_takes_more_of_its_card_than_it_was_granted_is_found() -> None:
    grant = Grant(threads=1, memory=1, device="cuda", gpu=1, gpu_memory=GIB)
    most = GIB + GPU_CONTEXT
    cards = (Gpu("a", 16 * GIB, 0, ((7, 99 * GIB),)), Gpu("b", 16 * GIB, 0, ((7, most), (8, most + 1))))
    assert not too_much_of_a_card(grant, 7, cards)
    assert too_much_of_a_card(grant, 8, cards)
    assert not too_much_of_a_card(grant, 9, cards), "not told"
    assert not too_much_of_a_card(grant, 8, cards[:1]), "the card is gone, or its driver does not answer"
    assert not too_much_of_a_card(Grant(threads=1, memory=1), 8, cards)


def test_what_a_framework_is_built_for_shows_in_its_files(tmp_path: Path) -> None:
    (tmp_path / "capi").mkdir()
    assert devices._files("onnxruntime", [tmp_path], apple=False) == ()
    (tmp_path / "capi/libonnxruntime_providers_cuda.so").touch()
    assert devices._files("onnxruntime", [tmp_path], apple=False) == ("cuda",)
    (tmp_path / "capi/libonnxruntime_providers_tensorrt.so").touch()
    assert devices._files("onnxruntime", [tmp_path], apple=False) == ("tensorrt", "cuda")
    assert devices._files("mlx", [tmp_path], apple=False) == ()
    assert devices._files("mlx", [tmp_path], apple=True) == ("mps",)
    assert devices.built_for("builtin") == devices.built_for("no such") == ()


@pytest.mark.skipif(sys.platform != "linux" or os.path.exists("/dev/nvidia0"), reason="about machines whose packages are for the CPU")
def test_packages_for_the_cpu_are_not_taken_for_others() -> None:
    assert devices.built_for("onnx") == ()


async def test_a_look_at_the_cards_that_failed_is_made_good_by_the_next(tmp_path: Path, autojump_clock: MockClock, caplog: Any) -> None:
    card = (Gpu("card", 16 * GIB, GIB),)
    looks = iter([card, (), card, (replace(card[0], memory_free=5),)])
    changes: list[tuple[Gpu, ...]] = []

    def look(folder: Path, before: tuple[Gpu, ...]) -> Snapshot:
        return Snapshot(1, 1, 0.0, 1, next(looks, card))

    monitor = ResourceMonitor(tmp_path, interval=1.0, on_change=lambda: changes.append(monitor.cards), look=look)
    with caplog.at_level(logging.WARNING):
        async with trio.open_nursery() as nursery:
            await nursery.start(monitor.run)
            assert monitor.cards == card
            while len(changes) < 3:
                await trio.sleep(1)
            nursery.cancel_scope.cancel()
    assert changes[0] == ()
    assert changes[1] == card
    assert changes[2][0].memory_free == 5
    assert "number of graphics processors" in caplog.text
