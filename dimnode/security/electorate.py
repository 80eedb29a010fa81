"""Lists of voters as the operator signs them. The peer id of the operator's key contains its public half."""

from __future__ import annotations

from dimnode.core.electorate import ElectorateError, check
from dimnode.core.job_record import Verify
from dimnode.domain import codec
from dimnode.domain.voting import Electorate, SignedElectorate
from dimnode.errors import InvalidArgument
from dimnode.ports import Signer
from p2p.identity import verify as verify_with_peer_id

SIGNING_PREFIX = b"dim/electorate/1\0"
MAX_BYTES = 64 * 1024


def sign_electorate(listed: Electorate, operator: Signer) -> SignedElectorate:
    payload = codec.encode(listed)
    return SignedElectorate(payload=payload, signature=operator.sign(SIGNING_PREFIX + payload))


def read_electorate(signed: SignedElectorate, swarm: str, operator: str, verify: Verify = verify_with_peer_id) -> Electorate:
    """Raises `InvalidArgument` for what this operator did not sign for this swarm."""
    try:
        listed = codec.decode(signed.payload, Electorate) if len(signed.payload) <= MAX_BYTES else None
        if listed is None or codec.encode(listed) != signed.payload:
            raise InvalidArgument("this is no list of voters")
        check(listed)
    except (codec.CodecError, ElectorateError) as e:
        raise InvalidArgument(f"this is no list of voters: {e}") from e
    if (listed.swarm, listed.operator) != (swarm, operator):
        raise InvalidArgument("this list of voters is of another swarm or operator")
    if not verify(operator, SIGNING_PREFIX + signed.payload, signed.signature):
        raise InvalidArgument("this list of voters is not signed by the operator")
    return listed
