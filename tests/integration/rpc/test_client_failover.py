"""The client against orchestrators that vanish, hang, move and refuse: real gRPC over loopback."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from dimnode.client import Client
from dimnode.errors import Cancelled, Code, DeadlineExceeded, DimError, InvalidArgument, ResourceExhausted, Unavailable
from tests.support.impatient_clients import FORM, HUNG_WITHIN, QUICK, background, seats, settings
from tests.support.orchestrators import Swarm, wait_for


@pytest.fixture
def swarm() -> Iterator[Swarm]:
    with Swarm() as swarm:
        yield swarm


# --- finding and following


def test_it_learns_the_others_and_survives_the_one_it_was_given(swarm: Swarm) -> None:
    a, b, _ = seats(swarm, 3)
    with Client(a.address) as dim:  # with the settings that everybody has
        job = dim.submit(FORM)["job_id"]
        assert len(dim.addresses()) == 3
        for dead in (a, b):
            dead.kill()
            began = time.monotonic()
            assert dim.get(job)["job_id"] == job
            took = time.monotonic() - began
            print(f"the next call after kill -9: {took * 1000:.0f} ms")
            assert took < 1.0


def test_the_next_call_succeeds_soon_after_another_has_come_up(swarm: Swarm) -> None:
    a, b = seats(swarm, 2)
    b.kill()
    with Client([a.address, b.address]) as dim:
        job = dim.submit(FORM)["job_id"]
        a.kill()
        up: list[float] = []
        timer = threading.Timer(1.5, lambda: (b.gate.revive(), swarm.holders.append(b), up.append(time.monotonic())))
        timer.start()
        assert dim.get(job)["job_id"] == job
        took = time.monotonic() - up[0]
        timer.join()
        print(f"after another was up: {took * 1000:.0f} ms")
        assert took < 1.0


def test_who_is_gone_is_forgotten_and_its_channel_closed_and_newcomers_are_learned(swarm: Swarm) -> None:
    a, b = seats(swarm, 2)
    with Client(a.address, settings()) as dim:
        job = dim.submit(FORM)["job_id"]
        a.gate.kill()
        assert dim.get(job)
        assert b.gate.connections() == 1
        a.gate.revive()
        swarm.holders.remove(b)
        c = swarm.start()
        watching, _ = background(lambda: list(dim.watch(job)))
        wait_for(lambda: set(dim.addresses()) == {a.address, c.address}, "b is forgotten and c known")
        swarm.change(job, status="completed")
        watching.join(10)
        wait_for(lambda: b.gate.connections() == 0, "the channel to b is closed")
        assert dim.get(job)
        assert b.gate.connections() == 0


def test_the_given_address_is_there_when_all_that_was_learned_has_gone(swarm: Swarm) -> None:
    a, b = seats(swarm, 2)
    with Client(a.address, settings()) as dim:
        job = dim.submit(FORM)["job_id"]
        a.kill()
        assert dim.get(job)
        assert b.asked["GetJob"] == 1
        b.kill()
        a.gate.revive()
        swarm.holders.append(a)
        assert dim.get(job)
        assert a.asked["GetJob"] == 1


def test_another_swarm_on_a_known_port_gets_nothing(swarm: Swarm) -> None:
    with Swarm("other") as other:
        a, b = seats(swarm, 2)
        with Client(a.address, settings(retry_for=0.3, finder=replace(QUICK, stale=0.0))) as dim:
            dim.submit(FORM)
            a.kill()
            b.kill()
            strangers = [other.start(port=int(o.address.rpartition(":")[2])) for o in (a, b)]
            with pytest.raises(Unavailable, match="another swarm"):
                dim.submit(FORM)
        assert not other.jobs
        assert all(s.asked.keys() <= {"GetCluster"} for s in strangers)


def test_a_told_address_where_somebody_else_answers_is_not_used(swarm: Swarm) -> None:
    """As when another machine's loopback address is told: here it belongs to somebody else, of a swarm of the same name."""
    with Swarm(swarm.name) as other:
        a, b = seats(swarm, 2)
        with Client(a.address, settings(retry_for=0.5)) as dim:
            dim.submit(FORM)
            b.gate.kill()
            stranger = other.start(port=int(b.address.rpartition(":")[2]))
            stranger.peer = "stranger"
            a.gate.kill()
            with pytest.raises(Unavailable, match="nobody answers"):
                dim.submit(FORM)
        assert stranger.asked["SubmitJob"] == 0


def test_channels_are_bounded(swarm: Swarm) -> None:
    many = seats(swarm, 6)
    finder = replace(QUICK, max_channels=2)
    with Client([o.address for o in many], settings(finder=finder)) as dim:
        job = dim.submit(FORM)["job_id"]
        for o in many[:-1]:
            o.kill()
            assert dim.get(job)
            assert len(dim._connection.finder.links) <= 2
            assert sum(x.gate.connections() for x in many) <= 2


def test_nobody_there_names_who_was_asked() -> None:
    text = r"nobody answers at 127\.0\.0\.1:1, unix:such\.sock"
    with Client(["127.0.0.1:1", "unix:/tmp/no/such.sock"], settings(retry_for=0.2)) as dim, pytest.raises(Unavailable, match=text):
        dim.nodes()


# --- hung and slow


def test_a_hung_orchestrator_is_left_in_bounded_time_and_alone_for_a_while(swarm: Swarm) -> None:
    a, b = seats(swarm, 2)
    with Client(a.address, settings()) as dim:
        job = dim.submit(FORM)["job_id"]
        a.hang()
        began = time.monotonic()
        assert dim.get(job)
        took = time.monotonic() - began
        assert 0.4 < took < HUNG_WITHIN
        began = time.monotonic()
        for _ in range(20):
            assert dim.get(job)
        assert time.monotonic() - began < 1.0
        b.kill()
        a.thaw()
        assert dim.get(job), "it is asked again when the others fail"


def test_a_hung_address_does_not_hold_up_a_new_client(swarm: Swarm) -> None:
    a, b, c = seats(swarm, 3)
    a.hang()
    b.hang()
    with Client([a.address, b.address, c.address]) as dim:
        began = time.monotonic()
        dim.submit(FORM)
        assert time.monotonic() - began < 1.2, "the next one is asked while the first still says nothing"


def test_one_that_comes_up_is_not_missed_while_another_says_nothing(swarm: Swarm) -> None:
    a, b = seats(swarm, 2)
    b.kill()
    a.hang()
    with Client([a.address, b.address], settings(finder=replace(QUICK, greeting=6.0, stagger=0.1))) as dim:
        timer = threading.Timer(0.5, lambda: (b.gate.revive(), swarm.holders.append(b)))
        timer.start()
        began = time.monotonic()
        dim.submit(FORM)
        assert time.monotonic() - began < 3.0
        timer.join()


def test_a_slow_answer_is_waited_for_and_not_asked_for_again(swarm: Swarm) -> None:
    a, b = seats(swarm, 2)
    for o in (a, b):
        o.before["SubmitJob"] = lambda _: time.sleep(2.5)  # several times the silence
    with Client(a.address, settings()) as dim:
        dim.submit(FORM)
    assert (a.asked["SubmitJob"], b.asked["SubmitJob"]) == (1, 0)
    assert a.asked["GetCluster"] > 2


def test_when_all_hang_the_deadline_of_the_call_holds(swarm: Swarm) -> None:
    a, b = seats(swarm, 2)
    with Client(a.address, settings(timeout=1.5)) as dim:
        dim.submit(FORM)
        a.gate.hang()
        b.gate.hang()
        began = time.monotonic()
        with pytest.raises(DimError) as caught:
            dim.nodes()
        assert caught.value.code in (Code.DEADLINE_EXCEEDED, Code.UNAVAILABLE)
        assert time.monotonic() - began < 2.5


# --- repeating


def test_a_submission_whose_answer_was_lost_makes_no_second_job(swarm: Swarm) -> None:
    a, b = seats(swarm, 2)
    a.after["SubmitJob"] = lambda _: a.kill()
    with Client(a.address, settings()) as dim:
        assert dim.submit({**FORM, "min_copies": 2})["job_id"] == "job-0"
    assert b.asked["SubmitJob"] == 1
    assert list(swarm.jobs) == ["job-0"]
    assert swarm.specs["job-0"].min_copies == 2
    (key,) = swarm.keys
    assert key


def test_the_forms_own_key_is_kept(swarm: Swarm) -> None:
    a, _ = seats(swarm, 2)
    with Client(a.address, settings()) as dim:
        for _ in range(2):
            assert dim.submit({**FORM, "idempotency_key": "mine"})["job_id"] == "job-0"
    assert list(swarm.keys) == ["mine"]


@pytest.mark.parametrize("error", [Unavailable("the owner is away", hint="Wait."), Cancelled("the seat was lost")])
def test_who_cannot_do_it_now_sends_the_call_elsewhere(swarm: Swarm, error: DimError) -> None:
    a, b = seats(swarm, 2)

    def refuse(_: Any) -> None:
        raise error

    a.before["SubmitJob"] = refuse
    with Client(a.address, settings()) as dim:
        dim.submit(FORM)
        assert (a.asked["SubmitJob"], b.asked["SubmitJob"]) == (1, 1)
        b.before["SubmitJob"] = refuse
    with Client(a.address, settings(retry_for=0.3)) as dim, pytest.raises(type(error), match=error.message):
        dim.submit(FORM)


def test_what_is_wrong_is_not_repeated(swarm: Swarm) -> None:
    a, b = seats(swarm, 2)

    def refuse(_: Any) -> None:
        raise InvalidArgument("no such model")

    a.before["SubmitJob"] = b.before["SubmitJob"] = refuse
    with Client(a.address, settings()) as dim, pytest.raises(InvalidArgument):
        dim.submit(FORM)
    assert a.asked["SubmitJob"] + b.asked["SubmitJob"] == 1


def test_a_busy_orchestrator_is_waited_for_only_if_the_settings_say_so(swarm: Swarm) -> None:
    (a,) = seats(swarm, 1)
    free_at = time.monotonic() + 1e9

    def refuse(_: Any) -> None:
        if time.monotonic() < free_at:
            raise ResourceExhausted("the queue is full", retry_after=0.3)

    a.before["SubmitJob"] = refuse
    with Client(a.address, settings()) as dim, pytest.raises(ResourceExhausted) as caught:
        dim.submit(FORM)
    assert caught.value.retry_after == 0.3
    free_at = time.monotonic() + 0.5
    with Client(a.address, settings(busy_for=10.0)) as dim:
        dim.submit(FORM)
    assert a.asked["SubmitJob"] == 1 + 3, "not before the time that it named"


# --- threads and the end


def test_many_threads_share_a_client_through_a_failover(swarm: Swarm) -> None:
    many = seats(swarm, 3)
    with Client(many[0].address, settings()) as dim, ThreadPoolExecutor(16) as pool:
        jobs = [pool.submit(lambda: dim.submit(FORM)["job_id"]) for _ in range(200)]
        wait_for(lambda: len(swarm.jobs) > 50, "some are in")
        many[0].kill()
        assert len({j.result(30) for j in jobs}) == 200
    assert len(swarm.jobs) == 200


@pytest.mark.parametrize("what", ["an answer", "an event", "an election", "a hung one"])
def test_closing_ends_calls_under_way_and_leaves_no_thread(swarm: Swarm, what: str) -> None:
    before = set(threading.enumerate())
    a, _ = seats(swarm, 2)
    servers = set(threading.enumerate()) - before
    dim = Client(a.address, settings())
    job = dim.submit(FORM)["job_id"]
    reached = threading.Event()
    work: Callable[[], Any] = dim.nodes
    match what:
        case "an answer":
            work = lambda: (reached.set(), dim.wait(job))  # noqa: E731
        case "an event":
            work = lambda: [reached.set() for _ in dim.watch(job)]  # noqa: E731
        case "an election":
            for o in list(swarm.holders):
                o.kill()
            reached.set()
        case _:
            for o in list(swarm.holders):
                o.gate.hang()
            reached.set()
    thread, out = background(work)
    assert reached.wait(10)
    time.sleep(0.1)  # so that it is in the middle, as far as that matters
    began = time.monotonic()
    dim.close()
    thread.join(10)
    assert time.monotonic() - began < 1.0
    assert isinstance(out[0], Cancelled)
    assert "closed" in out[0].message
    with pytest.raises(Cancelled, match="closed"):
        dim.nodes()
    dim.close()

    def left() -> list[str]:
        return [t.name for t in set(threading.enumerate()) - before - servers if t.name not in ("gate",) and "ThreadPool" not in t.name]

    wait_for(lambda: not left(), "no thread is left")


def test_an_idle_client_still_learns_where_to_turn(swarm: Swarm) -> None:
    (a,) = seats(swarm, 1)
    with Client(a.address, settings(finder=replace(QUICK, idle_refresh=0.5))) as dim:
        job = dim.submit(FORM)["job_id"]
        for _ in range(3):
            b = swarm.start()
            wait_for(lambda b=b: b.address in dim.addresses(), "the newcomer is known")
            swarm.holders[0].kill()
            wait_for(lambda: len(set(dim.addresses()) - {a.address}) == 1, "the others are forgotten")
        assert dim.get(job)["job_id"] == job


def test_a_client_that_nobody_closed_leaves_no_thread(swarm: Swarm) -> None:
    (a,) = seats(swarm, 1)
    dim = Client(a.address, settings(finder=replace(QUICK, idle_refresh=0.3)))
    dim.nodes()
    assert any(t.name == "dim-client" for t in threading.enumerate())
    del dim
    wait_for(lambda: all(t.name != "dim-client" for t in threading.enumerate()), "the supervisor has ended")


def test_a_deadline_of_the_call_itself_is_told_as_such(swarm: Swarm) -> None:
    (a,) = seats(swarm, 1)
    a.before["ListNodes"] = lambda _: time.sleep(1.0)
    with Client(a.address, settings(timeout=0.5)) as dim, pytest.raises(DeadlineExceeded):
        dim.nodes()
    assert a.asked["ListNodes"] == 1
