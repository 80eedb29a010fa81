"""Inside namespaces: cuts and heals between the client and one node, and writes what came through as JSON. Run by a test."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

from tools.chaos.network import CLIENT, Network, address, both

ECHO = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.bind(("0.0.0.0", 7))
    print("up", flush=True)
    heard = 0
    while True:
        _, asker = s.recvfrom(10)
        heard += 1
        s.sendto(str(heard).encode(), asker)
"""
"""Answers with how many questions it has heard."""
SILENCE = 0.3


def ask(sock: socket.socket, node: int) -> str:
    sock.sendto(b"?", (address(node), 7))
    try:
        return sock.recv(10).decode()
    except TimeoutError:
        return ""


def main() -> None:
    network = Network(2)
    echo = subprocess.Popen([*network.enter(1), sys.executable, "-c", ECHO], stdout=subprocess.PIPE, text=True)
    assert echo.stdout is not None
    assert echo.stdout.readline() == "up\n"
    here, there = (CLIENT, 1), (1, CLIENT)
    said: list[str] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(SILENCE)
        said.append(ask(sock, 1))
        for ways in ({there}, {here}, both([1], [CLIENT, 2])):
            network.cut(ways)
            said.append(ask(sock, 1))
            network.heal(ways)
            said.append(ask(sock, 1))
        network.cut({here})
        network.cut({here})
        network.heal({here})
        said.append(ask(sock, 1))  # one of two cuts is healed
        network.heal({here})
        said.append(ask(sock, 1))
    echo.kill()
    print(json.dumps(said))


if __name__ == "__main__":
    main()
