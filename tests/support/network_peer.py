"""A node in a process of its own, for tests that kill or stop it: ``python -m tests.support.network_peer NUMBER ADDRESS [BOOTSTRAP]``.

It prints its address, answers ``echo`` and publishes ``tick`` on topic ``t`` ten times a second.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import trio

from p2p.network import open_network
from tests.support.network_contract import accept, echo
from tests.support.networks import QUICK, identity


async def main(number: int, listen: str, bootstrap: tuple[str, ...]) -> None:
    async with open_network(identity=identity(number), settings=replace(QUICK, listen=(listen,), bootstrap=bootstrap)) as network:
        network.serve("echo", echo)
        network.subscribe("t", accept)
        print(network.addresses()[0], flush=True)
        while True:
            await network.publish("t", b"tick")
            await trio.sleep(0.1)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), sys.argv[2], tuple(sys.argv[3:]))
