"""Addresses given and learned."""

from __future__ import annotations

import pytest

from dimnode.core.routes import Routes, Told

FAR = Told("p1", "10.0.0.1:1")
HERE = Told("p2", "127.0.0.1:2", local_only=True)


def test_what_was_given_stays_and_what_was_told_goes_with_the_list() -> None:
    routes = Routes(["a:1", "b:1", "a:1"], here=True, far=True)
    routes.learn([FAR, HERE])
    assert routes.order(0.0) == ("a:1", "b:1", "10.0.0.1:1", "127.0.0.1:2")
    assert routes.peer_of("10.0.0.1:1") == "p1"
    routes.learn([Told("p3", "c:1")])
    assert routes.order(0.0) == ("a:1", "b:1", "c:1")
    assert not routes.known("10.0.0.1:1")
    routes.learn([])
    assert routes.order(0.0) == ("a:1", "b:1")
    assert routes.known("a:1")


def test_a_given_address_that_is_told_too_remains_a_given_one() -> None:
    routes = Routes(["10.0.0.1:1"], here=False, far=True)
    routes.learn([FAR])
    assert routes.peer_of("10.0.0.1:1") is None
    assert routes.order(0.0) == ("10.0.0.1:1",)


@pytest.mark.parametrize(
    ("here", "far", "used"), [(True, False, {"127.0.0.1:2"}), (False, True, {"10.0.0.1:1"}), (True, True, {"10.0.0.1:1", "127.0.0.1:2"})]
)
def test_only_addresses_that_mean_something_here_and_keep_secrets_are_used(here: bool, far: bool, used: set[str]) -> None:
    routes = Routes(["g:1"], here=here, far=far)
    routes.learn([FAR, HERE, Told("p4", ""), Told("p5", "0.0.0.0:9"), Told("p6", "[::]:9")])
    assert set(routes.order(0.0)) == {"g:1", *used}


def test_a_list_without_end_is_cut() -> None:
    routes = Routes(["g:1"], here=True, far=True, most_told=3)
    routes.learn([Told(f"p{n}", f"h:{n}") for n in range(1000)])
    assert len(routes.order(0.0)) == 4


def test_who_is_forgotten_and_told_again_has_no_past() -> None:
    routes = Routes(["g:1"], here=True, far=True)
    routes.learn([FAR])
    routes.standing.failed(FAR.address, 0.0, hung=True)
    routes.learn([])
    routes.learn([FAR])
    assert not routes.standing.rests(FAR.address, 0.1)
