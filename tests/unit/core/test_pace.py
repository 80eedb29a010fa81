"""How many jobs a busy orchestrator drives."""

from __future__ import annotations

from dimnode.core.pace import Pace, PaceSettings


def test_nothing_is_begun_while_the_loop_is_late_but_a_few_are_always_driven() -> None:
    pace = Pace(PaceSettings(late=0.1, least=4, pause_most=1.0))
    assert pace.pause(1000) == 0.0
    pace.looked(0.05)
    assert pace.pause(1000) == 0.0
    pace.looked(0.4)
    assert pace.pause(3) == 0.0
    assert pace.pause(4) == 0.4
    pace.looked(60.0)
    assert pace.pause(4) == 1.0


def test_one_look_at_a_loop_that_is_in_time_does_not_make_up_for_it() -> None:
    pace = Pace(PaceSettings(late=0.1, least=0, decay=0.5))
    pace.looked(0.4)
    pauses: list[float] = []
    for _ in range(4):
        pace.looked(0.0)
        pauses.append(pace.pause(1))
    assert pauses == [0.2, 0.1, 0.0, 0.0]
