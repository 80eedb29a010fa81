"""Invites, and which swarm a home ends up in."""

from __future__ import annotations

import base64
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dimnode.core.electorate import first
from dimnode.domain import codec
from dimnode.errors import DimError, FailedPrecondition, InvalidArgument
from dimnode.home import Home, new_key
from dimnode.invite import Invite, Membership, make, parse, settle
from dimnode.security.electorate import sign_electorate
from p2p.identity import Identity, load

PEER = "12D3KooWGRUoAaaGBPhSiuFZjNXZKEDDZZqVLwwMPcbW5nZcDkbr"
ADDRESS = f"/ip4/127.0.0.1/tcp/4101/p2p/{PEER}"
INVITE = Invite(swarm="wards", key="ab" * 32, addresses=(ADDRESS,))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    home.create()
    return home


def join(home: Home, *texts: str, swarm: str = "", key_file: str = "", bootstrap: tuple[str, ...] = ()) -> Membership:
    return settle(home, swarm=swarm, key_file=key_file, bootstrap=bootstrap, join=texts)


def test_round_trip() -> None:
    text = make(INVITE)
    assert text.startswith("dim1")
    assert parse(f" {text}\n") == INVITE


@given(st.integers(min_value=4, max_value=len(make(INVITE)) - 1), st.sampled_from("abcXYZ019-_"))
def test_any_changed_letter_is_noticed(at: int, letter: str) -> None:
    text = make(INVITE)
    changed = text[:at] + letter + text[at + 1 :]
    try:
        assert parse(changed) == INVITE
    except InvalidArgument:
        return


@given(st.text(max_size=200))
def test_random_text_is_refused(text: str) -> None:
    for candidate in (text, "dim1" + text):
        with pytest.raises(InvalidArgument):
            parse(candidate)


def coded(value: object) -> str:
    return "dim1" + base64.urlsafe_b64encode(codec.encode(value)).decode().rstrip("=")


@pytest.mark.parametrize("text", ["dim1", "dim1!!", coded([]), coded({"v": 1}), "dim1" + "A" * 20_000, make(INVITE)[:-5]])
def test_damaged(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse(text)


def test_newer_version_says_so() -> None:
    with pytest.raises(InvalidArgument, match="newer"):
        parse(coded({"v": 2}))


def test_invite_may_not_name_odd_addresses() -> None:
    with pytest.raises(InvalidArgument, match="multiaddr"):
        parse(make(Invite(swarm="s", key="00" * 32, addresses=("/unix/x",))))


def test_new_home_gets_a_swarm_of_its_own(home: Home) -> None:
    member = join(home)
    assert member.swarm == "dim"
    assert member == Membership("dim", home.swarm_key() or "", (), home.operator())
    assert join(home) == member


def test_invite_sets_a_new_home(home: Home) -> None:
    assert join(home, make(INVITE)) == Membership("wards", "ab" * 32, (ADDRESS,))
    assert (home.swarm_name(), home.swarm_key()) == ("wards", "ab" * 32)
    home.mark_started()
    assert join(home) == Membership("wards", "ab" * 32, ())
    assert join(home, make(INVITE)).bootstrap == (ADDRESS,)


def test_initialised_home_that_never_ran_takes_an_invite(home: Home) -> None:
    home.set_swarm("dim", new_key())
    assert join(home, make(INVITE)).swarm == "wards"


def test_invite_is_refused_in_another_swarms_home(home: Home) -> None:
    join(home)
    home.mark_started()
    with pytest.raises(FailedPrecondition, match="another swarm"):
        join(home, make(INVITE))
    home.set_swarm("other", "ab" * 32)
    with pytest.raises(FailedPrecondition, match="other"):
        join(home, make(INVITE))


def test_invite_against_configured_name(home: Home) -> None:
    with pytest.raises(FailedPrecondition, match=r"swarm\.name"):
        join(home, make(INVITE), swarm="elsewhere")
    assert join(home, make(INVITE), swarm="wards").swarm == "wards"


def test_two_swarms_at_once(home: Home) -> None:
    other = make(Invite(swarm="wards", key="cd" * 32, addresses=()))
    with pytest.raises(InvalidArgument, match="different"):
        join(home, make(INVITE), other)


def test_bare_address_needs_a_key(home: Home, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="swarm key"):
        join(home, ADDRESS)
    with pytest.raises(FailedPrecondition, match="swarm key"):
        join(home, bootstrap=(ADDRESS,))
    key_file = tmp_path / "key"
    key_file.write_text("cd" * 32)
    assert join(home, ADDRESS, key_file=str(key_file)) == Membership("dim", "cd" * 32, (ADDRESS,))
    assert join(home, ADDRESS, bootstrap=(ADDRESS,)).bootstrap == (ADDRESS,)


def test_key_file_of_another_swarm(home: Home, tmp_path: Path) -> None:
    join(home)
    home.mark_started()
    key_file = tmp_path / "key"
    key_file.write_text("cd" * 32)
    with pytest.raises(FailedPrecondition, match="another swarm"):
        join(home, key_file=str(key_file))
    with pytest.raises(FailedPrecondition, match="another key"):
        join(home, make(INVITE), key_file=str(key_file))
    with pytest.raises(InvalidArgument, match="cannot be read"):
        join(home, key_file=str(tmp_path / "none"))


@pytest.mark.parametrize("text", ["host:4101", "/ip4/127.0.0.1/tcp/4101", "", "dim1x"])
def test_bad_join(home: Home, text: str) -> None:
    with pytest.raises(DimError):
        join(home, text)


# --- whose lists of voters are believed

OPERATOR = Identity.generate()
LISTED = sign_electorate(first("wards", [PEER], OPERATOR.peer_id), OPERATOR)
WITH_LIST = msgspec.structs.replace(INVITE, operator=OPERATOR.peer_id, electorate=LISTED)


def test_whoever_makes_the_swarm_has_the_operators_key_and_nobody_else_can_read_it(home: Home) -> None:
    member = join(home)
    assert member.operator == home.operator() == load(home.operator_key_path).peer_id
    assert home.operator_key_path.stat().st_mode & 0o777 == 0o600
    assert join(home).operator == member.operator


def test_an_invite_tells_the_operator_and_the_voters_and_the_home_remembers_the_operator(home: Home) -> None:
    assert parse(make(WITH_LIST)) == WITH_LIST
    member = join(home, make(WITH_LIST))
    assert (member.operator, member.electorate) == (OPERATOR.peer_id, LISTED)
    assert not home.operator_key_path.exists()
    assert join(home).operator == OPERATOR.peer_id


def test_an_invite_with_a_list_that_its_operator_did_not_sign_is_refused() -> None:
    forged = msgspec.structs.replace(WITH_LIST, operator=Identity.generate().peer_id)
    foreign = msgspec.structs.replace(WITH_LIST, swarm="another")
    for wrong in (forged, foreign):
        with pytest.raises(InvalidArgument):
            parse(make(wrong))


def test_a_home_that_was_made_for_itself_and_joins_another_swarm_forgets_its_own_operator(home: Home) -> None:
    own = join(home).operator
    assert join(home, make(WITH_LIST)).operator == OPERATOR.peer_id != own


def test_a_swarm_that_never_had_an_operator_tells_none(home: Home) -> None:
    join(home)
    assert join(home, make(INVITE)).operator is None
    assert home.operator() is None


def test_a_home_that_ran_takes_no_other_operator_and_learns_its_own_swarms_if_it_knew_none(home: Home) -> None:
    join(home, make(INVITE))
    home.mark_started()
    assert join(home, make(WITH_LIST)).operator == OPERATOR.peer_id
    other = Identity.generate()
    signed = sign_electorate(first("wards", [PEER], other.peer_id), other)
    with pytest.raises(FailedPrecondition, match="operator"):
        join(home, make(msgspec.structs.replace(INVITE, operator=other.peer_id, electorate=signed)))
