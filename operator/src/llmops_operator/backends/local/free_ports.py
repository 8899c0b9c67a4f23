"""Ports on this machine's loopback address that nobody listens on."""

from __future__ import annotations

import random
import socket
import threading

HOST = "127.0.0.1"
RANGE = range(20000, 30000)
"""Below the ports that kernels give to outgoing connections, which could take one while its program is being started anew."""

TRIES = 200


class NoFreePort(Exception):
    """So many ports were tried and all were taken."""


class FreePorts:
    """Hands out ports, none of them twice until it is given back. Any thread may ask."""

    def __init__(self) -> None:
        self._taken: set[int] = set()
        self._asking = threading.Lock()

    def take(self, preferred: int | None) -> int:
        """The preferred port when it is free, so that addresses stay; another one when not. Raises `NoFreePort`."""
        candidates = [] if preferred is None else [preferred]
        candidates += random.sample(RANGE, TRIES)
        with self._asking:
            for port in candidates:
                if port not in self._taken and is_free(port):
                    self._taken.add(port)
                    return port
        raise NoFreePort(
            f"{TRIES} ports between {RANGE.start} and {RANGE.stop} were tried and all are in use: end some program"
        )

    def keep(self, port: int) -> None:
        """Count a port as taken that a program listens on already."""
        self._taken.add(port)

    def give_back(self, port: int) -> None:
        """The port may be handed out again."""
        self._taken.discard(port)


def is_free(port: int) -> bool:
    """Whether a program could listen on the port now."""
    with socket.socket() as probe:
        # As servers do: connections of an earlier one that linger in TIME_WAIT are no hindrance.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError:
            return False
    return True
