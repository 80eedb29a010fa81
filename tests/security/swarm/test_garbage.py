"""Noise, foreign certificates and uncalled-for tasks at every port and socket of a running node."""

from __future__ import annotations

import random
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from dimnode.client import Client
from dimnode.rpc.v1 import daemon_pb2
from dimnode.rpc.v1 import orchestrator_pb2 as pb
from dimnode.rpc.v1.daemon_pb2_grpc import DaemonStub
from dimnode.rpc.v1.orchestrator_pb2_grpc import OrchestratorStub
from dimnode.security.certificates import CertificateSettings, make_certificate
from tests.support.real_swarm import RealNode, RealSwarm, mlp, one_task, rows

ROUNDS = 15
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@pytest.fixture
def node(swarm: RealSwarm) -> Iterator[RealNode]:
    """Whatever a test does to it, it works on and has not met an error of its own."""
    node = swarm["node-001"]
    pid = node.pid
    yield node
    assert node.running
    assert node.pid == pid
    x = rows(2)
    for asked in swarm.nodes.values():
        with asked.client() as client:
            got = client.wait(client.submit(one_task("model-001"), {"x": x})["job_id"])
        np.testing.assert_allclose(got["outputs"]["probabilities"], mlp(x), rtol=1e-6)
    assert not node.crashed(), node.log()


def throw(connect: Callable[[], socket.socket], rng: random.Random) -> bytes:
    """All kinds of noise, each over its own connection; what came back."""
    back = b""
    for i in range(ROUNDS):
        noise = rng.randbytes(rng.choice([1, 20, 5000, 200_000]))
        data = [noise, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", PREFACE + noise, b"\x16\x03\x01" + noise, b""][i % 5]
        with connect() as sock:
            sock.settimeout(0.3)
            try:
                sock.sendall(data)
                back += sock.recv(65536)
            except OSError:
                continue
    return back


def tcp(address: str) -> Callable[[], socket.socket]:
    host, _, port = address.rpartition(":")
    return lambda: socket.create_connection((host, int(port)), timeout=2)


def unix(path: Path) -> Callable[[], socket.socket]:
    def connect() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(2)
        sock.connect(str(path))
        return sock

    return connect


def libp2p_address(node: RealNode) -> str:
    parts = node.address().split("/")
    return f"{parts[2]}:{parts[4]}"


@pytest.mark.parametrize("where", ["client API", "daemon", "network", "node socket", "orchestrator socket"])
def test_noise_changes_nothing_and_gets_no_answer_worth_reading(node: RealNode, where: str) -> None:
    status = node.status()
    connect = {
        "client API": tcp(status["grpc"]),
        "daemon": tcp(status["daemon_grpc"]),
        "network": tcp(libp2p_address(node)),
        "node socket": unix(node.home.socket_path("node")),
        "orchestrator socket": unix(node.home.socket_path("orchestrator")),
    }[where]
    back = throw(connect, random.Random(where))
    for secret in (b"Traceback", str(node.home.path).encode(), b"dimnode", b".py"):
        assert secret not in back


def test_many_connections_that_say_nothing_do_not_keep_others_out(node: RealNode) -> None:
    """More than the relay serves at once, on the node's own sockets and its ports."""
    status = node.status()
    idle = [tcp(status["grpc"])() for _ in range(40)] + [tcp(libp2p_address(node))() for _ in range(40)]
    try:
        with node.client() as client:
            assert client.cluster()["orchestrators"]
    finally:
        for sock in idle:
            sock.close()


def call_health(address: str, key: bytes | None, certificate: bytes | None, root: bytes, name: str) -> grpc.StatusCode:
    credentials = grpc.ssl_channel_credentials(root, key, certificate)
    with grpc.secure_channel(address, credentials, [("grpc.ssl_target_name_override", name)]) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            DaemonStub(channel).RunTask(daemon_pb2.RunTaskRequest(order=b""), timeout=5).next()
        return caught.value.code()  # type: ignore[attr-defined]


def certificate_of(address: str) -> tuple[bytes, str]:
    """The certificate that the daemon shows, and the name in it: an attacker can see both."""
    from cryptography import x509

    host, _, port = address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host, int(port)), timeout=5) as sock, context.wrap_socket(sock) as tls:
        der = tls.getpeercert(binary_form=True)
    assert der is not None
    names = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return ssl.DER_cert_to_PEM_cert(der).encode(), names.get_values_for_type(x509.DNSName)[0]


def test_the_daemon_talks_only_to_certificates_that_were_exchanged(node: RealNode, swarm: RealSwarm) -> None:
    """Not without one, nor with a stranger's, nor with one in the name of the seat's holder."""
    address = swarm["node-002"].status()["daemon_grpc"]
    root, name = certificate_of(address)
    assert call_health(address, None, None, root, name) is grpc.StatusCode.UNAVAILABLE
    for peer in ("12D3KooWstranger", node.status()["peer_id"]):
        own = make_certificate(peer, time.time(), CertificateSettings())
        assert call_health(address, own.key, own.pem, root, name) is grpc.StatusCode.UNAVAILABLE


def test_the_sockets_and_secrets_are_the_owners_alone(node: RealNode) -> None:
    for path in (node.home.socket_path("node"), node.home.socket_path("orchestrator"), node.home.identity_path, node.home.swarm_key_path):
        assert path.stat().st_mode & 0o077 == 0, path.name
    assert node.home.path.stat().st_mode & 0o077 == 0


def test_an_upload_that_is_cut_off_leaves_the_node_as_it_was(node: RealNode) -> None:
    half, go_on = threading.Event(), threading.Event()

    def chunks() -> Iterator[pb.ArtifactChunk]:
        for _ in range(8):
            yield pb.ArtifactChunk(data=b"x" * 250_000)
        half.set()
        go_on.wait(30)

    with grpc.insecure_channel(node.status()["grpc"]) as channel:
        call = OrchestratorStub(channel).PutArtifact.future(chunks())
        assert half.wait(30)
        call.cancel()
        go_on.set()
    with Client(node.status()["grpc"]) as client:
        assert client.put_artifact(b"whole")["size"] == 5


def test_the_command_line_survives_a_closed_pipe(node: RealNode) -> None:
    command = f"{sys.executable} -m dimnode nodes --home {node.home.path} --json | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr
