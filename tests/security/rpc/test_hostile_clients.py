"""What hostile or broken clients send to the client API and to the daemon's port."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import grpc.aio
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from dimnode.rpc.bridge import Bridge, open_bridge
from dimnode.rpc.errors import from_rpc_error
from dimnode.rpc.orchestrator_server import OrchestratorServerSettings, serve_orchestrator
from dimnode.rpc.server import ServerSettings
from dimnode.rpc.tls import TlsFiles
from dimnode.rpc.v1 import common_pb2, daemon_pb2
from dimnode.rpc.v1 import orchestrator_pb2 as pb
from dimnode.rpc.v1.daemon_pb2_grpc import DaemonStub
from dimnode.rpc.v1.orchestrator_pb2_grpc import OrchestratorStub
from dimnode.security.certificates import BadCertificate, tls_name
from tests.support.rpc_fakes import FakeApi, FakeSwarm
from tests.support.tls_nodes import TlsNode, TlsSwarm, tls_swarm

LOCAL = [("grpc.use_local_subchannel_pool", 1)]


async def raw_call(bridge: Bridge, address: str, method: str, data: bytes) -> grpc.aio.AioRpcError | bytes:
    async def go() -> Any:
        async with grpc.aio.insecure_channel(address, LOCAL) as channel:
            try:
                return await channel.unary_unary(method)(data, timeout=10)
            except grpc.aio.AioRpcError as e:
                return e

    return await bridge.aio(go())


async def test_garbage_is_refused_and_the_server_lives() -> None:
    rng = random.Random(7)
    async with open_bridge() as bridge, serve_orchestrator(bridge, FakeApi(), FakeSwarm(), "127.0.0.1:0") as server:
        for _ in range(50):
            data = b"\xff" + rng.randbytes(rng.randrange(1, 200))
            for method in ("SubmitJob", "GetJob", "SubmitJobs"):
                error = await raw_call(bridge, server.address, f"/dim.v1.Orchestrator/{method}", data)
                assert isinstance(error, grpc.aio.AioRpcError)
                assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
                assert "Decode" not in (error.details() or "")
        answer = await raw_call(bridge, server.address, "/dim.v1.Orchestrator/GetCluster", b"")
        assert isinstance(answer, bytes)
        assert server.dispatcher.running() == 0


async def test_a_spec_beyond_the_limit_is_refused_by_name_and_not_queued() -> None:
    api = FakeApi()
    settings = OrchestratorServerSettings(max_spec_bytes=10_000, server=ServerSettings(max_message_bytes=100_000))
    async with open_bridge() as bridge, serve_orchestrator(bridge, api, FakeSwarm(), "127.0.0.1:0", settings) as server:
        for size, codes in ((20_000, {grpc.StatusCode.INVALID_ARGUMENT}), (1_000_000, {grpc.StatusCode.RESOURCE_EXHAUSTED})):
            spec = common_pb2.JobSpec(pattern="collaborative")
            spec.client_data["x"].CopyFrom(common_pb2.Tensor(dtype="uint8", shape=[size], raw=b"x" * size))
            data = pb.SubmitJobRequest(spec=spec).SerializeToString()
            error = await raw_call(bridge, server.address, "/dim.v1.Orchestrator/SubmitJob", data)
            assert isinstance(error, grpc.aio.AioRpcError)
            assert error.code() in codes
            assert "larger than" in (error.details() or "")
        problem = from_rpc_error(
            await raw_call(
                bridge,
                server.address,
                "/dim.v1.Orchestrator/SubmitJob",
                pb.SubmitJobRequest(spec=common_pb2.JobSpec(idempotency_key="k" * 20_000)).SerializeToString(),
            )
        ).fields[0]
        assert problem.field == "spec"
        many = pb.SubmitJobsRequest(specs=[common_pb2.JobSpec()] * 1001).SerializeToString()
        error = await raw_call(bridge, server.address, "/dim.v1.Orchestrator/SubmitJobs", many)
        assert isinstance(error, grpc.aio.AioRpcError)
        assert "1000 jobs" in (error.details() or "")
        assert api.submitted == 0


async def test_an_unknown_method_is_unimplemented() -> None:
    async with open_bridge() as bridge, serve_orchestrator(bridge, FakeApi(), FakeSwarm(), "127.0.0.1:0") as server:
        error = await raw_call(bridge, server.address, "/dim.v1.Orchestrator/Shutdown", b"")
        assert isinstance(error, grpc.aio.AioRpcError)
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_bytes_that_are_not_http2_do_no_harm() -> None:
    rng = random.Random(1)
    async with open_bridge() as bridge, serve_orchestrator(bridge, FakeApi(), FakeSwarm(), "127.0.0.1:0") as server:
        host, _, port = server.address.rpartition(":")
        for _ in range(20):
            stream = await trio.open_tcp_stream(host, int(port))
            async with stream:
                await stream.send_all(rng.randbytes(500))
        assert isinstance(await raw_call(bridge, server.address, "/dim.v1.Orchestrator/GetCluster", b""), bytes)


async def health(swarm: TlsSwarm, at: TlsNode, roots: bytes, key: bytes | None, chain: bytes | None) -> Any:
    """The status with which Health ends for a hand-made client."""

    async def go() -> Any:
        credentials = grpc.ssl_channel_credentials(roots, key, chain)
        options = [*LOCAL, ("grpc.ssl_target_name_override", tls_name(at.peer))]
        async with grpc.aio.secure_channel(at.server.address, credentials, options) as channel:
            try:
                return (await DaemonStub(channel).Health(daemon_pb2.HealthRequest(), timeout=5)).status
            except grpc.aio.AioRpcError as e:
                return e.code()

    return await swarm.bridge.aio(go())


def certificate(name: str, signer: tuple[x509.Certificate, Any] | None = None, *, ca: bool = False) -> tuple[bytes, bytes]:
    """Key and certificate, PEM, with any name; signed by itself or by ``signer``."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer[0].subject if signer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=2))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .sign(signer[1] if signer else key, hashes.SHA256())
    )
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), made.public_bytes(Encoding.PEM)


async def test_strangers_do_not_get_in() -> None:
    async with tls_swarm() as swarm:
        a, b = await swarm.node("a"), await swarm.node("b")
        await a.certificates.exchange("b")
        own = a.certificates.own
        assert await health(swarm, b, b.certificates.own.pem, own.key, own.pem) == "ok"
        assert await health(swarm, b, b.certificates.own.pem, None, None) is grpc.StatusCode.UNAVAILABLE
        assert await health(swarm, b, b.certificates.own.pem, *certificate(tls_name("a"))) is grpc.StatusCode.UNAVAILABLE


async def test_a_member_cannot_sign_itself_another_members_name() -> None:
    """Every certificate is a root: a member signs one with a seat holder's name on it. gRPC's verifier lets such a chain
    through although the root may not sign others, so the call itself must be refused."""
    async with tls_swarm() as swarm:
        holder, member, target = await swarm.node("holder"), await swarm.node("member"), await swarm.node("target", trusted=["holder"])
        await holder.certificates.exchange("target")
        await member.certificates.exchange("target")
        mine = member.certificates.own
        signer = (x509.load_pem_x509_certificate(mine.pem), load_pem_private_key(mine.key, None))
        key, forged = certificate(tls_name("holder"), signer)
        for chain in (forged, forged + mine.pem):
            code = await health(swarm, target, target.certificates.own.pem, key, chain)
            assert code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE)


async def test_even_a_root_that_may_sign_is_known_by_its_fingerprint_only() -> None:
    """The same, had a certificate that may sign others been taken in: TLS accepts it, the call is refused."""
    async with tls_swarm() as swarm:
        target = await swarm.node("target", trusted=["holder", "member"])
        root_key, root = certificate(tls_name("member"), ca=True)
        der = x509.load_pem_x509_certificate(root).public_bytes(Encoding.DER)
        with pytest.raises(BadCertificate):
            target.certificates.add("member", der)
        target.certificates._roots += root
        target.certificates._version += 1
        key, forged = certificate(tls_name("holder"), (x509.load_pem_x509_certificate(root), load_pem_private_key(root_key, None)))
        code = await health(swarm, target, target.certificates.own.pem, key, forged + root)
        assert code is grpc.StatusCode.UNAUTHENTICATED


async def test_a_client_is_not_taken_in_by_another_server() -> None:
    """Somebody listens at a peer's address with a certificate of its own, or with another member's."""
    async with tls_swarm() as swarm:
        a, b, c = await swarm.node("a"), await swarm.node("b"), await swarm.node("c")
        await a.certificates.exchange("b")
        await a.certificates.exchange("c")
        own = a.certificates.own
        # c answers where b is expected; only b's certificate is trusted
        swarm.addresses["b"] = c.server.address
        assert await health(swarm, c, b.certificates.own.pem, own.key, own.pem) is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(Exception, match="cannot be reached"):
            await a.client.health("b")


@pytest.mark.parametrize("order", [b"", b"\xff" * 100, b"\xa0", b"\xa1cjob\x01", b"\x80", bytes(range(256))])
async def test_a_garbage_order_is_refused_and_nothing_runs(order: bytes) -> None:
    async with tls_swarm() as swarm:
        a, b = await swarm.node("a"), await swarm.node("b", trusted=["a"])
        async with a.pool.channel("b") as channel:

            async def go(method: str, request: Any) -> Any:
                call = getattr(channel.stub(DaemonStub), method)(request, timeout=5)
                if method == "RunTask":
                    return [u async for u in call]
                return await call

            for method, request, field in (
                ("RunTask", daemon_pb2.RunTaskRequest(order=order), "order"),
                ("CancelTask", daemon_pb2.CancelTaskRequest(ballot=order), "ballot"),
                ("Prewarm", daemon_pb2.PrewarmRequest(), "model_cid"),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as e:
                    await swarm.bridge.aio(go(method, request))
                assert e.value.code() is grpc.StatusCode.INVALID_ARGUMENT
                assert from_rpc_error(e.value).fields[0].field == field
        assert b.tasks.orders == []


async def test_the_client_api_asks_for_certificates_of_the_operators_authority() -> None:
    ca_key, ca = certificate("the operator's authority", ca=True)
    signer = (x509.load_pem_x509_certificate(ca), load_pem_private_key(ca_key, None))
    server_key, server_cert = certificate("dim.example", signer)
    client_key, client_cert = certificate("alice", signer)
    settings = OrchestratorServerSettings(tls=TlsFiles(server_cert, server_key, ca))
    api = FakeApi()
    async with open_bridge() as bridge, serve_orchestrator(bridge, api, FakeSwarm(), "0.0.0.0:0", settings) as server:

        async def go(key: bytes | None, chain: bytes | None) -> Any:
            credentials = grpc.ssl_channel_credentials(ca, key, chain)
            address = server.address.replace("0.0.0.0", "127.0.0.1")
            options = [*LOCAL, ("grpc.ssl_target_name_override", "dim.example")]
            spec = common_pb2.JobSpec(pattern="collaborative")
            spec.config.update({"model_id": "m"})
            async with grpc.aio.secure_channel(address, credentials, options) as channel:
                try:
                    return (await OrchestratorStub(channel).SubmitJob(pb.SubmitJobRequest(spec=spec), timeout=5)).job_id
                except grpc.aio.AioRpcError as e:
                    return e.code()

        assert await bridge.aio(go(client_key, client_cert)) == "job-1"
        assert api.forms[0][1] == "cert:alice"
        assert await bridge.aio(go(None, None)) is grpc.StatusCode.UNAVAILABLE
        assert await bridge.aio(go(*certificate("alice"))) is grpc.StatusCode.UNAVAILABLE
