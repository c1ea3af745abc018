"""Whether a worker reaches those from which it fetches: the driver may reach both where they do not
reach each other.

To be reached is to be answered by the other machine's kernel, which takes a connection, or refuses
it, for a process that computes, compiles, loads, or is stopped. So a worker that is slow is
reached.
"""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Callable, Collection

_TRIES = 5
"""Attempts in a row that must fail before an address counts as out of reach; all together take the
time after which a silent worker counts as lost."""
_OURS = {errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM}
"""Errors of this machine, which say nothing about the other end."""


def reaches(address: str, seconds: float) -> bool:
    """Whether the machine of a process (``host:port``) answers within ``seconds``."""
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host.strip("[]"), int(port)), seconds).close()
    except (ConnectionRefusedError, ConnectionResetError):
        return True
    except OSError as error:
        return error.errno in _OURS
    return True


class ReachabilityMonitor:
    """Tries some addresses one after the other, again and again, in a thread of its own."""

    def __init__(
        self,
        addresses: Callable[[], Collection[str]],
        seconds: float,
        tries: Callable[[str, float], bool] = reaches,
    ) -> None:
        """
        Args:
            addresses: gives those to try now; called in the thread.
            seconds: without an answer after which one is out of reach.
            tries: see `reaches`.
        """
        self._addresses, self._tries = addresses, tries
        self._each = seconds / _TRIES
        self._failed: dict[str, int] = {}
        threading.Thread(target=self._run, name="fjx-reach", daemon=True).start()

    @property
    def unreached(self) -> tuple[str, ...]:
        """The addresses that are out of reach."""
        return tuple(at for at, failed in self._failed.items() if failed >= _TRIES)

    def _run(self) -> None:
        while True:
            next_time = time.monotonic() + self._each
            self._failed = {
                address: 0 if self._tries(address, self._each) else self._failed.get(address, 0) + 1
                for address in self._addresses()
            }
            time.sleep(max(next_time - time.monotonic(), 0.0))
