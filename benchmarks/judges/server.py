"""``fjx serve`` for tests of other servers: started once for all tests that want it alike.

Plain Python: it is imported in an environment that has no fjx.
"""

from __future__ import annotations

import atexit
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from socket import socket

HOST = "127.0.0.1"
START_SECONDS = 900.0
STOP_SECONDS = 60.0
POLL_SECONDS = 0.2
SHOWN_LOG_LINES = 15


class Server:
    """A running ``fjx serve``.

    Raises:
        RuntimeError: it ended, or was not ready in time; the message holds its last lines.
    """

    def __init__(self, python: str, options: Sequence[str], port: int | None = None) -> None:
        self.options = tuple(options)
        self.port = port or _free_port()
        self.url = f"http://{HOST}:{self.port}"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        command = [python, "-m", "fjx", "serve", "--port", str(self.port), *options]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self.process.poll() is None

    def log(self) -> str:
        """The last lines that it wrote."""
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-SHOWN_LOG_LINES:])

    def stop(self) -> int:
        """End it and return its exit code."""
        self.process.terminate()
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def _wait_until_ready(self) -> None:
        begin = time.monotonic()
        while status(f"{self.url}/ready") != 200:
            if not self.running or time.monotonic() - begin > START_SECONDS:
                raise RuntimeError(f"fjx serve {' '.join(self.options)}:\n{self.log()}")
            time.sleep(POLL_SECONDS)


class SharedServer:
    """One server at a time, which is kept for as long as its options stay the same."""

    def __init__(self, python: str) -> None:
        self._python = python
        self._server: Server | None = None
        atexit.register(self.stop)

    def start(self, options: Sequence[str]) -> Server:
        """A server with these options: the running one, if they are its own."""
        server = self._server
        if server is None or server.options != tuple(options) or not server.running:
            self.stop()
            self._server = server = Server(self._python, options)
        return server

    def stop(self) -> None:
        """End the server, if one runs."""
        if self._server is not None:
            self._server.stop()
            self._server = None


def command_line() -> str:
    """How this script was called, without the folders of this machine."""
    script, *arguments = sys.argv
    short = [Path(argument).name if os.sep in argument else argument for argument in arguments]
    return shlex.join(["python", f"benchmarks/judges/{Path(script).name}", *short])


def end_servers_on_sigterm() -> None:
    """An exit runs the clean-up that ends servers; the signal's own action does not."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def status(url: str) -> int | None:
    """The HTTP status of a GET; None if nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def _free_port() -> int:
    with socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])
